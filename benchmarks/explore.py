"""Milliseconds of a move in the explorer, one thread: python benchmarks/explore.py [SIZE] [PICTURES]

Times what happens between the move of a slider and the new picture for the browser: grouping, skeletons, JPEG, table. Medians; the
network, which such a move does not need, is timed beside it in the same run. SIZE is the short side of its input.
"""
import sys, time
import cv2
import numpy as np
import torch
from hrnet_nbdev.explore import explore

def median(f, values):
    "Median milliseconds of `f(value)`."
    times = []
    for value in values:
        start = time.perf_counter()
        f(value)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))

def main(size=512, pictures=None):
    torch.set_num_threads(1); cv2.setNumThreads(0)
    widget = explore(pictures, size=int(size))
    e = widget.explorer
    w, h = e.maps[2].size
    print(f"maps {w} x {h}, picture shown {e.view.shape[1]} x {e.view.shape[0]}, {len(e.poses)} people")
    report = lambda what, ms: print(f"{what:44s} {ms:8.1f} ms")
    report("the network alone", median(lambda _: e.predictor.maps(e.image), range(7)))
    report("detection slider", median(lambda v: setattr(widget.det_thr, "value", v), np.linspace(0.05, 0.6, 31)))
    widget.reset.click()
    report("tag slider", median(lambda v: setattr(widget.tag_thr, "value", v), np.linspace(0.1, 4, 31)))
    widget.reset.click()
    report("step forward", median(lambda _: widget.forth.click(), range(len(e.order))))
    widget.leave.click()
    for layer in ("heatmap", "tags"):
        widget.layer.value = layer
        report(f"detection slider over the layer {layer}", median(lambda v: setattr(widget.det_thr, "value", v), np.linspace(0.05, 0.6, 31)))

if __name__ == "__main__": main(*sys.argv[1:])
