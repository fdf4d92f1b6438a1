"""Are ids kept? python benchmarks/tracking.py [CLIPS] [OUT.json]

Walking people (walking.py) of 8 seconds, two crossings and a return each, seen by the shipped tiny model and, as a control, as true
poses with noise, missing joints and people, and false alarms. Each part of the tracker is switched off in turn.
"""
import json, math, sys
from pathlib import Path
import cv2
import numpy as np
import torch
from hrnet_nbdev.inference import PosePredictor
from hrnet_nbdev.tracking import Tracker, disturbed, track_scores, true_poses
from hrnet_nbdev.walking import walk_scene

VARIANTS = {"the tracker": {}, "no motion model": dict(memory=0), "no gaps bridged": dict(max_gap=0),
            "neither": dict(memory=0, max_gap=0), "joints of others taken": dict(reach=math.inf), "newcomers at once": dict(min_hits=1),
            "newcomers after 3 frames": dict(min_hits=3), "gaps up to 0.35 s": dict(max_gap=.35), "gaps up to 1.4 s": dict(max_gap=1.4)}

def clip(seed, predictor):
    "Poses found by the model, true poses disturbed, true poses; lists with one `Poses` a frame."
    scene = list(walk_scene(seed, frames=200, fps=25.0))
    truth, rng = [true_poses(annotations) for _, annotations in scene], np.random.default_rng(seed)
    return dict(tiny=[predictor(frame) for frame, _ in scene], control=[disturbed(t, rng) for t in truth]), truth

def total(clips, kind, options):
    "Counts summed over the clips; MOTA, IDF1 averaged."
    scores = []
    for found, truth in clips:
        tracker = Tracker(fps=25.0, **options)
        # the tiny model places joints coarsely: a person counts as found from OKS 0.35 on
        scores.append(track_scores([tracker(poses) for poses in found[kind]], truth, min_oks=.35 if kind == "tiny" else .5))
    mean = lambda name: round(float(np.mean([s[name] for s in scores])), 3)
    return {name: mean(name) if name in ("MOTA", "IDF1") else sum(s[name] for s in scores) for name in scores[0]}

def main(clips=8, out="benchmarks/results/tracking.json"):
    torch.set_num_threads(1); cv2.setNumThreads(0)
    predictor = PosePredictor("tiny", decoder="fast", det_thr=.2)
    shown = [clip(seed, predictor) for seed in range(100, 100 + int(clips))]      # seeds that no setting was chosen on
    true_ids = sum(len({i for t in truth for i in t.ids.tolist()}) for _, truth in shown)
    results = {kind: {name: total(shown, kind, options) for name, options in VARIANTS.items()} for kind in ("tiny", "control")}
    Path(out).write_text(json.dumps(dict(clips=int(clips), frames=200, true_ids=true_ids, **results), indent=1) + "\n")
    for kind, rows in results.items():
        for name, s in rows.items(): print(f"{kind:8s} {name:26s} switches {s['switches']:4d}  ids {s['ids']:4d} of {true_ids}  MOTA {s['MOTA']:.3f}  IDF1 {s['IDF1']:.3f}")

if __name__ == "__main__": main(*sys.argv[1:])
