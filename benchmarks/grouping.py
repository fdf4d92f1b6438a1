"""Time of grouping per stage, ours against plain loops, on scenes like those a flip-tested image of 512 x 704 pixels gives.

    python benchmarks/grouping.py                 # 1, 10 and 30 people, two threads
    python benchmarks/grouping.py --device cuda --people 30 --no-oracle
    python benchmarks/grouping.py --background noise   # tags of the background drawn pixel by pixel: the worst case for pruning

"exact" groups maps enlarged to the input's size, as the evaluation does; "fast" groups the same maps at their own, half as large.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests'))
import grouping_oracle as oracle

from hrnet_nbdev import grouping as G


def scene(people, height=512, width=704, dims=2, missing=0.25, background='smooth', seed=0):
    """Heatmaps [17, H/2, W/2] and tags [17, H/2, W/2, L] as the flip test leaves them, before they are projected to H x W.
    Each person has a box in which all 17 tag maps hold roughly its tag, and most of 17 joints in it; everyone has a nose."""
    g = torch.Generator().manual_seed(seed)
    h, w = height // 2, width // 2
    ys, xs = torch.arange(h)[:, None], torch.arange(w)
    heat = 0.002 * torch.randn(17, h, w, generator=g)
    shape = (17 * dims, h // 16, w // 16) if background == 'smooth' else (17 * dims, h, w)
    tags = F.interpolate(4 * torch.randn(1, *shape, generator=g), size=(h, w), mode='bilinear')[0].view(17, dims, h, w).movedim(1, -1)
    sides = torch.rand(people, 2, generator=g) * torch.tensor([60, 100]) + 30
    corners = torch.rand(people, 2, generator=g) * (torch.tensor([w, h]) - sides - 1)
    own = 1.5 * (torch.arange(people) - people / 2)[:, None, None] + 0.1 * torch.randn(people, 17, dims, generator=g)
    for (x0, y0), (x1, y1), tag in zip(corners.long().tolist(), (corners + sides).long().tolist(), own):
        if background == 'smooth': tags[:, y0:y1, x0:x1] = tag[:, None, None]
    for corner, side, tag in zip(corners, sides, own):
        for k in range(17):
            x, y = corner + side * torch.rand(2, generator=g)
            if k and torch.rand((), generator=g) < missing: continue
            square = (xs - x) ** 2 + (ys - y) ** 2
            blob = (0.5 + 0.5 * torch.rand((), generator=g)) * torch.exp(-square / 8)
            tags[k][(blob > heat[k]) & (square < 64)] = tag[k]
            heat[k] = torch.maximum(heat[k], blob)
    return heat, tags + 0.02 * torch.randn(tags.shape, generator=g)


def project(heat, tags):
    "The maps enlarged to the size of the network's input."
    heat = F.interpolate(heat[None], scale_factor=2, mode='bilinear')[0]
    return heat, F.interpolate(tags.movedim(-1, 1), scale_factor=2, mode='bilinear').movedim(1, -1).contiguous()


def median_ms(f, device, repeat):
    "Medians of the wall-clock and of the processor time of `f()` in milliseconds, after two warm-up calls."
    times = []
    for i in range(repeat + (2 if repeat > 1 else 0)):
        wall, cpu = time.perf_counter(), time.process_time()
        f()
        if device == 'cuda': torch.cuda.synchronize()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return np.median(times[2 if repeat > 1 else 0:], 0) * 1e3


def stages(heat, tags, nms_kernel=5, place=G.quarter_offset):
    "Name -> our stage as a function without arguments, fed with the results of the stages before."
    def top_k(): return G.top_k(heat, tags, nms_kernel=nms_kernel)
    peaks = top_k()
    people = torch.from_numpy(G.match(*peaks)).to(heat.device)
    def adjust(): return G.adjust_joints(people, heat, place=place)
    placed = adjust()
    return {'top-k': top_k, 'match': lambda: G.match(*peaks), 'adjust': adjust,
            'refine': lambda: G.refine_poses(placed, heat, tags, place=place),
            'group (all)': lambda: G.group(heat, tags, nms_kernel=nms_kernel, place=place)}


def oracle_stages(heat, tags, nms_kernel=5, place=oracle.quarter):
    "The same stages in plain loops."
    heat, tags = heat.cpu().numpy(), tags.cpu().numpy()

    def top_k(): return [oracle.peaks(h, t, 30, 0.1, nms_kernel) for h, t in zip(heat, tags)]
    peaks = top_k()
    people = oracle.match(peaks)
    placed = oracle.adjust(people, heat, place)
    return {'top-k': top_k, 'match': lambda: oracle.match(peaks), 'adjust': lambda: oracle.adjust(people, heat, place),
            'refine': lambda: oracle.refine(placed, heat, tags, place),
            'group (all)': lambda: oracle.group(heat, tags, nms_kernel=nms_kernel, place=place)}


def report(decoder, people, heat, tags, args, ours, loops):
    "Print one line a stage; the results of both must be equal."
    poses, scores = G.group(heat, tags, **ours)
    fills = int((G.group(heat, tags, refine=False, **ours)[0][..., 2] == 0).sum())
    slow = oracle_stages(heat, tags, **loops) if args.oracle else {}
    if slow:
        want, want_scores = slow['group (all)']()
        assert np.array_equal(poses.cpu().numpy(), want) and np.allclose(scores.cpu().numpy(), want_scores), 'results differ'
    print(f'{decoder:<7} {people:>6} people drawn: {len(poses)} found, {fills} joints to fill')
    for name, stage in stages(heat, tags, **ours).items():
        wall, cpu = median_ms(stage, args.device, args.repeat)
        took = median_ms(slow[name], 'cpu', 1 if people > 10 else 3)[0] if slow else float('nan')
        print(f'{decoder:<7} {people:>6} {name:<12} {wall:9.2f} {cpu:9.2f} {took:10.1f} {took / wall:6.0f}x')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--people', type=int, nargs='+', default=[1, 10, 30])
    parser.add_argument('--size', type=int, nargs=2, default=[512, 704], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--background', choices=['smooth', 'noise'], default='smooth')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeat', type=int, default=21)
    parser.add_argument('--oracle', action=argparse.BooleanOptionalAction, default=True, help='time the plain loops too')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'{args.size[0]} x {args.size[1]}, two tags, background {args.background}, {args.device}, {args.threads} threads, '
          f'medians of {args.repeat} runs (loops: 1 to 3), milliseconds')
    print(f'{"decoder":<7} {"people":>6} {"stage":<12} {"ours":>9} {"its CPU":>9} {"loops":>10} {"ratio":>7}')
    for people in args.people:
        maps = tuple(t.to(args.device) for t in scene(people, *args.size, background=args.background))
        report('exact', people, *project(*maps), args, {}, {})
        report('fast', people, *maps, args, dict(nms_kernel=3, place=G.parabola_offset), dict(nms_kernel=3, place=oracle.parabola))


if __name__ == '__main__': main()
