"""Milliseconds of each stage of inference, one thread: python benchmarks/inference.py WEIGHTS COCO_FOLDER [SPLIT] [SIZE] [DEVICE]

WEIGHTS may be "w32": the full-size model with random weights, for the time of the network alone.
"""
import sys, time
import cv2
import torch
from hrnet_nbdev.coco_eval import multi_scale_size, resize_image, scale_maps, to_image_px
from hrnet_nbdev.data import COCO_SCHEMA, CocoPoses, normalize
from hrnet_nbdev.files import read_image
from hrnet_nbdev.grouping import group
from hrnet_nbdev.higherhrnet import HigherHRNet, load_pose_model

def report(name, f, items, device, repeats=3):
    "Mean time of `f` over `items`, in the fastest of the `repeats`: other programs only ever slow it down. Returns the results."
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    results, times = [f(*it) for it in items], []
    for _ in range(repeats):
        wait(); start = time.perf_counter()
        for it in items: f(*it)
        wait(); times.append((time.perf_counter() - start) / len(items))
    print(f"{name:44s} {1000 * min(times):8.2f} ms")
    return results

@torch.no_grad()
def main(weights, root, split="val2017", size=512, device="cpu", count=4):
    torch.set_num_threads(1); cv2.setNumThreads(0)
    data = CocoPoses(root, split, only_annotated=True)
    model = (HigherHRNet().eval() if weights == "w32" else load_pose_model(weights)).to(device)
    paths = [(data.image_path(i),) for i in range(min(len(data), count))]
    images = report("read", read_image, paths, device)
    resizes = [multi_scale_size(*im.shape[1::-1], int(size)) for im in images]
    inputs = report("resize", resize_image, list(zip(images, resizes)), device)
    batches = [(normalize(torch.from_numpy(im).to(device).permute(2, 0, 1)[None]),) for im in inputs]
    report("network, one look", model, batches, device)
    sizes = [r.size for r in resizes]
    report("maps, one look (network, heads, projection)", scale_maps, [(model, im, s) for im, s in zip(inputs, sizes)], device)
    maps = report("maps with flip", scale_maps, [(model, im, s, COCO_SCHEMA.flip) for im, s in zip(inputs, sizes)], device)
    report("grouping without refinement", lambda h, t: group(h, t, refine=False), maps, device)
    found = report("grouping", group, maps, device)
    report("projection back", to_image_px, [(poses, r) for (poses, _), r in zip(found, resizes)], device)
    print(f"{sum(len(p) for p, _ in found) / len(found):.1f} people a picture, inputs such as {sizes[0][0]} x {sizes[0][1]}")

if __name__ == "__main__": main(*sys.argv[1:])
