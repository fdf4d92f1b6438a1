"""Pictures to people on this machine: where the time goes, and what each setting of the predictor costs or saves.

    python benchmarks/inference.py                                                  # the shipped model at its own size, drawn scenes, one thread
    python benchmarks/inference.py --weights w32 --size 256 --count 2 --repeats 3   # the full-size model with random weights: for the time only
    python benchmarks/inference.py --coco COCO_FOLDER --device cuda                 # photographs, on a GPU
    python benchmarks/inference.py --out benchmarks/results/inference_cpu.json      # what 06_inference prints; the other: --out ..._w32.json

First the stages of one picture, then whole predictors in turns, so that whatever else the machine does hits all of them: the median time of a
picture, the median of the ratios to the plain predictor within a turn (above 1: faster), and how many of the plain predictor's joints another
one finds within half a pixel.
"""
import platform, statistics, time
from importlib.metadata import version
import cv2
import numpy as np
import torch
from fastcore.script import call_parse
from hrnet_nbdev.coco_eval import multi_scale_size, resize_image, scale_maps, to_image_px
from hrnet_nbdev.data import COCO_SCHEMA, CocoPoses, normalize
from hrnet_nbdev.files import read_image, user_errors, write_json
from hrnet_nbdev.grouping import group
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.inference import PosePredictor
from hrnet_nbdev.synthetic import draw_scene

WAYS = {                                     # name: settings that differ from the plain predictor
    "plain: float32, channels first": dict(channels_last=False),
    "channels last (the default on a CPU)": {},
    "channels last, bf16": dict(precision="bf16"),
    "channels last, fp16": dict(precision="fp16"),
    "channels last, batches of 4": dict(batch_size=4),
    "channels last, fast decoder": dict(decoder="fast"),
    "channels last, metric mode": dict(display=False),
    "channels last, flip": dict(flip=True),
    "channels last, scales 0.5, 1, 2": dict(scales=(0.5, 1, 2)),
}

def predictor_of(weights, size, device, channels_last=True, **settings):
    "A predictor; `w32` stands for the full-size model with random weights."
    model = PosePredictor(weights, device=device).model if weights != "w32" else HigherHRNet().eval()
    model = model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return PosePredictor(model, size or PosePredictor(weights, device=device).size, device=device, **{"precision": "no"} | settings)

def cpu_name():
    "What Linux calls the processor; elsewhere what Python does."
    try: return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): return platform.processor() or platform.machine()

def seconds(f, *args):
    began = time.perf_counter()
    f(*args)
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - began

@torch.no_grad()
def stages(predictor, images, repeats):
    "Median milliseconds of each stage of one picture, and what the last one found."
    found, device = {}, predictor.device
    def measure(name, f, items):
        f(*items[0])
        found[name] = 1000 * statistics.median(seconds(f, *item) for _ in range(repeats) for item in items)
        return [f(*item) for item in items]
    resizes = [multi_scale_size(*im.shape[1::-1], predictor.size) for im in images]
    inputs = measure("resize", resize_image, list(zip(images, resizes)))
    measure("network, one look", predictor.model, [(normalize(torch.from_numpy(im).to(device).permute(2, 0, 1)[None]),) for im in inputs])
    sizes = [r.size for r in resizes]
    maps = measure("maps, one look (network, heads, projection)", scale_maps, [(predictor.model, im, s) for im, s in zip(inputs, sizes)])
    measure("maps with flip", scale_maps, [(predictor.model, im, s, COCO_SCHEMA.flip) for im, s in zip(inputs, sizes)])
    measure("grouping without refinement", lambda h, t: group(h, t, refine=False), maps)
    people = measure("grouping", group, maps)
    measure("projection back", to_image_px, [(poses, r) for (poses, _), r in zip(people, resizes)])
    return found

def staying(plain, other):
    "Share of the joints of `plain` that `other` (people of the same pictures) finds within half a pixel."
    near = []
    for a, b in zip(plain, other):
        ours, theirs = (p.keypoints[p.keypoints[..., 2] > 0] for p in (a, b))
        gap = np.linalg.norm(ours[:, None, :2] - theirs[None, :, :2], axis=-1)
        near += (gap.min(1, initial=np.inf) < 0.5).tolist()
    return float(np.mean(near)) if near else None

@call_parse
@user_errors
def main(
    weights: str = "tiny", # checkpoint file, tiny, or w32
    coco: str = "", # COCO folder to take pictures from; none: drawn scenes
    split: str = "val2017", # of that folder
    size: int = 0, # short side of the network's input; 0: as the checkpoint says
    count: int = 20, # pictures
    repeats: int = 5, # turns
    threads: int = 1, # of the CPU
    device: str = "cpu", # or cuda
    out: str = "", # JSON file to write
):
    "Time of the stages and of the settings of `PosePredictor`."
    torch.set_num_threads(threads); cv2.setNumThreads(0)
    data = CocoPoses(coco, split) if coco else None
    images = [read_image(data.image_path(n)) if data else draw_scene((0, 1, n))[0] for n in range(min(count, len(data)) if data else count)]
    predictors = {name: predictor_of(weights, size, device, **settings) for name, settings in WAYS.items()}
    plain, size = next(iter(predictors)), next(iter(predictors.values())).size
    machine = dict(cpu=cpu_name(), device=device, threads=threads, torch=version("torch"), model=weights, size=size, pictures=count)
    print(machine)
    parts = stages(predictors["channels last (the default on a CPU)"], images, repeats)
    for name, ms in parts.items(): print(f"{name:46s}{ms:9.2f} ms")
    people = {name: p(images) for name, p in predictors.items()}                     # the first run, not measured
    turns = [{name: seconds(p, images) / len(images) for name, p in predictors.items()} for _ in range(repeats)]
    rows = []
    for name in predictors:
        ratio = statistics.median(turn[plain] / turn[name] for turn in turns)
        rows.append(dict(way=name, milliseconds=1000 * statistics.median(turn[name] for turn in turns), ratio=ratio,
                         people=sum(map(len, people[name])), staying=staying(people[plain], people[name])))
        stay = "" if rows[-1]["staying"] is None else f"{rows[-1]['staying']:8.1%} of the joints stay"
        print("{way:46s}{milliseconds:9.2f} ms a picture{ratio:7.2f} x{people:6d} people".format(**rows[-1]) + stay)
    if out: write_json(out, dict(machine=machine, stages=parts, ways=rows), indent=1)
