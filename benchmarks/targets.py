"""Milliseconds to draw the targets of a batch, one joint at a time against all at once: `python benchmarks/targets.py [BATCH] [PEOPLE] [REPEATS]`

Heatmaps of 128 and 256 pixels and the tag indices, as HigherHRNet-W32 at 512 needs them; on the CPU with one thread, and on a GPU where there is one.
"""
import sys, time
import numpy as np
import torch
from hrnet_nbdev.data import draw_heatmaps, gaussian_patch, tag_indices

SIZES = 128, 256


def loop_heatmaps(joints, size, sigma=2.0):
    "joints [P, K, 3] -> [K, size, size], one joint at a time."
    maps, patch, middle = np.zeros((joints.shape[1], size, size), np.float32), gaussian_patch(sigma).numpy(), int(3 * sigma + 1)
    for person in joints.tolist():
        for heatmap, (x, y, v) in zip(maps, person):
            x, y = int(x), int(y)
            if v <= 0 or not (0 <= x < size and 0 <= y < size): continue
            left, top = x - middle, y - middle
            there = heatmap[max(0, top):top + len(patch), max(0, left):left + len(patch)]
            there[:] = np.maximum(there, patch[max(0, -top):, max(0, -left):][:there.shape[0], :there.shape[1]])
    return torch.from_numpy(maps)


def loop_tags(joints, size):
    "joints [P, K, 3] -> [P, K, 2], one joint at a time."
    out = torch.zeros(*joints.shape[:2], 2, dtype=torch.int64)
    for row, person in zip(out, joints.tolist()):
        found = [[k * size**2 + int(y) * size + int(x), 1] for k, (x, y, v) in enumerate(person) if v > 0 and 0 <= int(x) < size and 0 <= int(y) < size]
        for n, place in enumerate(found): row[n] = torch.tensor(place)
    return out


def one_by_one(joints):
    maps = [torch.stack([loop_heatmaps(j, s) for j in level]) for level, s in zip(joints, SIZES)]
    return *maps, torch.stack([loop_tags(j, SIZES[0]) for j in joints[0]])


def at_once(joints):
    return *(draw_heatmaps(level, s) for level, s in zip(joints, SIZES)), tag_indices(joints[0], SIZES[0])


def milliseconds(f, joints, repeats):
    "Median time of one call."
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        f(joints)
        if joints[0].is_cuda: torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times[3:])[repeats // 2]


def main(batch=12, people=5, repeats=21):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = torch.rand(batch, people, 17, 3) * torch.tensor([140., 140, 3]) - torch.tensor([6., 6, 0])
    place[..., 2] = place[..., 2].floor()
    joints = [place, place * torch.tensor([2., 2, 1])]
    for a, b in zip(one_by_one(joints), at_once(joints)): assert torch.equal(a, b)
    print(f"{batch} pictures of {people} people: one by one {milliseconds(one_by_one, joints, repeats):.1f} ms, at once {milliseconds(at_once, joints, repeats):.1f} ms")
    if torch.cuda.is_available(): print(f"at once on the GPU {milliseconds(at_once, [j.cuda() for j in joints], repeats):.2f} ms")


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
