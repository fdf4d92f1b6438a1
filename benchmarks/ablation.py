"""What each choice of the evaluation is worth, in AP and in milliseconds: flip, scales, refine, adjust, decoder, changed one at a time.

    python benchmarks/ablation.py                     # the shipped model, 200 synthetic pictures (hrnet_synthetic draws them)
    python benchmarks/ablation.py --size 256 --only protocol decoder
    python benchmarks/ablation.py --weights W --root data/COCO --size 512 --device cuda --batch-size 8

Writes benchmarks/results/ablation_SIZE.json, which notebook 05_coco_eval shows. The choices are run in turns, several rounds of them, and
the quickest time of each stage counts: other programs only ever slow it down.
"""
import argparse
import json
from pathlib import Path

import torch

from hrnet_nbdev.coco_eval import coco_scores, predict_dataset
from hrnet_nbdev.data import CocoPoses
from hrnet_nbdev.files import write_json
from hrnet_nbdev.higherhrnet import load_pose_model

HERE = Path(__file__).parent
CHOICES = {'protocol': {}, 'flip': dict(flip=False), 'scales': dict(scales=(0.5, 1, 2)), 'refine': dict(refine=False), 'adjust': dict(adjust=False),
           'decoder': dict(decoder='fast'), 'threshold': dict(det_thr=0.3), 'threshold, decoder': dict(det_thr=0.3, decoder='fast'),
           'all off': dict(flip=False, refine=False, adjust=False), 'all off, decoder': dict(flip=False, refine=False, decoder='fast')}


def measure(model, data, choices, rounds, **options):
    "For each choice AP and AR in per cent, people per picture, and the milliseconds a picture of each stage."
    times, results = {name: [] for name in choices}, {}
    for _ in range(rounds):
        for name in choices:
            times[name].append({})
            results[name] = predict_dataset(model, data, progress=False, timings=times[name][-1], **options | CHOICES[name])
    scores = {name: coco_scores(data.coco, r, data.schema.sigmas) for name, r in results.items()}
    return {name: dict({k: round(100 * scores[name][k], 2) for k in ('AP', 'AP50', 'AP75', 'AR')}, people=round(len(results[name]) / len(data), 1),
                       ms={k: round(1000 * min(t[k] for t in times[name]) / len(data), 2) for k in ('read', 'network', 'grouping')}) for name in choices}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', default=HERE.parent / 'pretrained/tiny_pose.safetensors')
    parser.add_argument('--root', default=HERE.parent / 'data/synthetic/coco')
    parser.add_argument('--split', default='val')
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--only', nargs='+', choices=CHOICES, default=list(CHOICES), metavar='CHOICE')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, data = load_pose_model(args.weights).to(args.device), CocoPoses(args.root, args.split, only_annotated=False)
    about = dict(weights=Path(args.weights).name, pictures=len(data), split=args.split, input_size=args.size, device=args.device,
                 threads=args.threads, batch_size=args.batch_size, torch=torch.__version__)
    print(json.dumps(about))
    print(f'{"changed":<20} {"AP":>6} {"AP50":>6} {"AP75":>6} {"AR":>6} {"people":>7} {"read":>6} {"network":>8} {"grouping":>9}   milliseconds a picture')
    rows = measure(model, data, args.only, args.rounds, input_size=args.size, batch_size=args.batch_size)
    for name, row in rows.items():
        ms = row['ms']
        print(f'{name:<20} {row["AP"]:6.2f} {row["AP50"]:6.2f} {row["AP75"]:6.2f} {row["AR"]:6.2f} {row["people"]:7.1f} {ms["read"]:6.1f} '
              f'{ms["network"]:8.1f} {ms["grouping"]:9.1f}   {CHOICES[name] or "as published"}')
    write_json(HERE / f'results/ablation_{args.size}.json', dict(about=about, rows=rows), indent=1)


if __name__ == '__main__': main()
