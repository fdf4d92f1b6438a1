"""What an option buys: the tiny pose model trained on the synthetic set with and without it, over several seeds.

    python benchmarks/recipes.py                       # all variants, three seeds each: an hour of two cores
    python benchmarks/recipes.py --variants base,udp --seeds 0

Every run keeps its folder under --runs and is not repeated; the table and the curves go to benchmarks/results/recipes.json."""
import platform
from pathlib import Path
import torch
from fastcore.script import call_parse
from hrnet_nbdev.files import read_json, write_json
from hrnet_nbdev.imagenet import pretrain
from hrnet_nbdev.runs import read_metrics
from hrnet_nbdev.synthetic import write_coco, write_imagenet
from hrnet_nbdev.train_pose import train_pose

VARIANTS = {"base": {}, "scratch": dict(weights=None), "scale_aware": dict(scale_aware=True), "udp": dict(udp=True)}

@call_parse
def main(
    variants:str=",".join(VARIANTS), # which to train
    seeds:str="0,1,2", # of weights, order and augmentation
    epochs:int=6, # of each pose training
    runs:str="runs/recipes", # folder of the runs
    data:str="data/synthetic", # folder of the synthetic data sets
    workers:int=0, # loader processes
):
    "Train, then write the last AP of each run and the curve of AP over the steps."
    coco, classes, runs = write_coco(Path(data)/"coco"), write_imagenet(Path(data)/"imagenet"), Path(runs)
    backbone = runs/"pretrain"/"best.safetensors"
    common = dict(preset="tiny", workers=workers, cpu=True, progress=False, resume=True)
    pretrain(classes, runs/"pretrain", **common)
    out = Path("benchmarks/results/recipes.json")
    read = lambda: read_json(out)["runs"] if out.exists() else {}
    for seed in seeds.split(","):
        for name in variants.split(","):
            options = dict(weights=backbone) | VARIANTS[name]
            train_pose(coco, runs/f"{name}_{seed}", epochs=epochs, eval_every=epochs / 5, seed=int(seed), **options, **common)
            curve = [(r["step"], r["AP"], r["AP50"]) for r in read_metrics(runs/f"{name}_{seed}") if "AP" in r]
            found = read()                                 # others may have written: variants can be trained side by side
            found.setdefault(name, {})[seed] = dict(AP=curve[-1][1], AP50=curve[-1][2], curve=[c[:2] for c in curve])
            print(f"{name:12} seed {seed}: AP {curve[-1][1]:.3f}, AP50 {curve[-1][2]:.3f}", flush=True)
            write_json(out, dict(epochs=epochs, machine=f"{platform.processor() or platform.machine()}, torch {torch.__version__}", runs=found), indent=1)
    for name, by_seed in read().items():
        ap = torch.tensor([r["AP"] for r in by_seed.values()])
        print(f"{name:12} AP {ap.mean():.3f}, from {ap.min():.3f} to {ap.max():.3f} over {len(ap)} seeds")
