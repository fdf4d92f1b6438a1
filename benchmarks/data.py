"""Milliseconds of each step of one training item, one thread: python benchmarks/data.py COCO_FOLDER [SPLIT] [SIZE]"""
import sys, time
import cv2
import torch
from hrnet_nbdev.data import CocoPoses, TrainTransform, collate_poses, draw_heatmaps, ignore_mask, tag_indices
from hrnet_nbdev.files import read_image

def report(name, f, items, repeats=9):
    "Print the mean time of `f` over `items`, in the fastest of the `repeats`: other programs only ever slow it down."
    for item in items: f(item)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for item in items: f(item)
        times.append((time.perf_counter() - start) / len(items))
    print(f"{name:36s} {1000 * min(times):7.2f} ms")

def main(root, split="train2017", size=512):
    torch.set_num_threads(1); cv2.setNumThreads(0)
    data, transform, size = CocoPoses(root, split), TrainTransform(int(size)), int(size)
    some = range(min(len(data), 36))
    raws, annotations = [data.raw(i) for i in some], [data.coco.imgToAnns.get(data.ids[i], ()) for i in some]
    items = [transform(r) for r in raws]
    def targets(joints): draw_heatmaps(joints[0], size // 4), draw_heatmaps(joints[1], size // 2), tag_indices(joints[0], size // 4)
    report("read the picture", lambda i: read_image(data.image_path(i)), some)
    report("mask", lambda i: ignore_mask(annotations[i], *raws[i]["image"].shape[:2]), some)
    report("raw item (both)", data.raw, some)
    report("transform", transform, raws)
    report("item (all of the above)", lambda i: transform(data.raw(i)), some)
    report("targets of one item", lambda it: targets([j[None] for j in it["joints"]]), items)
    batch = collate_poses(items[:12])
    report("targets of a batch of 12", lambda b: targets(b["joints"]), [batch])

if __name__ == "__main__": main(*sys.argv[1:])
