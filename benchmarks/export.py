"""One picture through the network: torch, torch compiled, torch in bf16, and onnxruntime, on this CPU.

    python benchmarks/export.py                                              # the shipped model at 128 px, and W32 at 512 px, two threads
    python benchmarks/export.py --out benchmarks/results/export_cpu.json     # what 05d_export plots

All ways run in turns, so that whatever else the machine does hits all of them. Given are the medians, the median of the ratios to plain torch
within a turn (above 1: faster), and how far the maps are from plain torch's, relative to the largest value. W32 has random weights, which does not matter for the time.
"""
import os, platform, statistics, tempfile, time
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
import torch
from fastcore.script import call_parse
from hrnet_nbdev.export import OnnxPose, export_onnx
from hrnet_nbdev.files import user_errors, write_json
from hrnet_nbdev.higherhrnet import HigherHRNet, load_pose_model
from hrnet_nbdev.hrnet import count_macs

def ways(model, images, threads, compiled):
    "Name of each way to run the network, and a function that does it."
    last, turned = deepcopy(model).to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    def in_bf16(network):
        with torch.autocast("cpu", torch.bfloat16): return network(turned)
    yield "torch", lambda: model(images)
    yield "torch, channels_last", lambda: last(turned)
    yield "torch, channels_last, bf16", lambda: in_bf16(last)
    if compiled:
        fast = torch.compile(last)
        yield "torch.compile, channels_last", lambda: fast(turned)
        yield "torch.compile, channels_last, bf16", lambda: in_bf16(fast)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "model.onnx")
        pose = OnnxPose(Path(folder) / "model.onnx", ["CPUExecutionProvider"], threads)
    yield "onnxruntime", lambda: pose(images)

def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

def measure(name, model, size, repeats, threads, compiled):
    "One row for each way."
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    functions, times = dict(ways(model, images, threads, compiled)), []
    outputs = {way: function() for way, function in functions.items()}      # the first call compiles and allocates
    for turn in range(repeats):
        order = list(functions)[:: -1 if turn % 2 else 1]
        times.append({way: seconds(functions[way]) for way in order})
    for way in functions:
        away = max(float((o.float() - p).abs().max() / p.abs().max()) for o, p in zip(outputs[way], outputs["torch"]))
        ratio = statistics.median(t["torch"] / t[way] for t in times)
        milliseconds = 1000 * statistics.median(t[way] for t in times)
        print(f"{name:6}{way:36}{milliseconds:9.1f} ms {ratio:6.2f} x   {away:.0e} away", flush=True)
        yield dict(model=name, size=size, macs=count_macs(model, images.shape), way=way, milliseconds=milliseconds, ratio=ratio, away=away)

def machine(threads):
    "What the figures were measured on."
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return dict(cpu=names[0] if names else platform.processor(), cores=os.cpu_count(), threads=threads, python=platform.python_version(),
                date=time.strftime("%Y-%m-%d"), **{p: version(p) for p in ("torch", "onnxruntime")})

@call_parse
@user_errors
@torch.no_grad()
def main(
    weights: str = "pretrained/tiny_pose.safetensors", # the small model
    threads: int = 2, # of torch and of onnxruntime
    repeats: int = 9, # turns with W32; the small model gets five times as many
    compiled: bool = True, # torch.compile too: it takes a minute before the first run
    out: str = "", # JSON file for the results
):
    "Time the network in torch and in onnxruntime."
    torch.set_num_threads(threads)
    about = machine(threads)
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    cases = (("tiny", load_pose_model(weights), 128, 5 * repeats), ("W32", HigherHRNet().eval(), 512, repeats))
    rows = [row for name, model, size, turns in cases for row in measure(name, model, size, turns, threads, compiled)]
    if out: write_json(out, dict(machine=about, rows=rows), indent=1)
