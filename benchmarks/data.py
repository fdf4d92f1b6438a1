"""Pictures per second and process, and where the time of a training item goes: `python benchmarks/data.py COCO_FOLDER [SPLIT] [SIZE]`

One thread, the first 36 pictures of the split, the fastest of nine rounds: other programs only ever slow it down.
"""
import sys, time
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg
from hrnet_nbdev.data import CocoPoses, TrainTransform, collate_poses, draw_heatmaps, single_thread, tag_indices
from hrnet_nbdev.files import read_image


def report(name, f, items, repeats=9):
    "Print the mean time of `f` over `items`, in the fastest of the `repeats`; return it in milliseconds."
    for item in items: f(item)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for item in items: f(item)
        times.append(1000 * (time.perf_counter() - start) / len(items))
    print(f"{name:36s} {min(times):7.2f} ms", flush=True)
    return min(times)


def loaded(data, count=720):
    "Pictures per second from a loader with one worker process."
    data.ids = (data.ids * count)[:count]
    loader = DataLoader(data, 12, num_workers=1, collate_fn=collate_poses, worker_init_fn=single_thread)
    for n, _ in enumerate(loader):
        if n == 4: start = time.perf_counter()      # the worker is up
    return 12 * (n - 4) / (time.perf_counter() - start)


def main(root, split="train2017", size=512):
    torch.set_num_threads(1); cv2.setNumThreads(0)
    data, transform, size = CocoPoses(root, split), TrainTransform(int(size)), int(size)
    some = range(min(len(data), 36))
    files, raws = [torch.from_numpy(np.fromfile(data.image_path(i), np.uint8)) for i in some], [data.raw(i) for i in some]
    items = [transform(r) for r in raws]
    warp, placement = transform.affine, dict(center=(320, 240), scale=2.6, rotation=20., mirrored=True)
    warped = warp.apply(raws[0]["image"], **placement)
    def targets(joints): draw_heatmaps(joints[0], size // 4), draw_heatmaps(joints[1], size // 2), tag_indices(joints[0], size // 4)
    read = report("read and decode the picture", lambda i: read_image(data.image_path(i)), some)
    report("  decode with torchvision, to compare", lambda b: decode_jpeg(b, ImageReadMode.RGB), files)
    report("mask", data.mask, some)
    report("transform", transform, raws)
    report("  of which warp the picture", lambda r: warp.apply(r["image"], **placement), raws)
    report("  of which warp the mask, twice", lambda r: warp.apply_to_masks([r["mask"].view(np.uint8) * 255], **placement), raws)
    report("  of which channels first", lambda r: torch.from_numpy(warped).permute(2, 0, 1).contiguous(), raws)
    whole = report("item (all of the above)", lambda i: transform(data.raw(i)), some)
    report("targets of one item, on the CPU", lambda it: targets([j[None] for j in it["joints"]]), items)
    data.transform = transform
    print(f"a second: {1000 / whole:.0f} pictures, {1000 / read:.0f} when only read, {loaded(data):.0f} through a loader with one worker")


if __name__ == "__main__": main(*sys.argv[1:])
