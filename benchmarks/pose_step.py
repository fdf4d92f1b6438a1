"""A training step of HigherHRNet, from pictures on the disk to updated weights, in each precision and memory layout.

    python benchmarks/pose_step.py data/COCO                                    # W32 at 512 px; on the GPU where there is one
    python benchmarks/pose_step.py data/synthetic/coco --batch-size 1 --cpu     # what a laptop can do

Every line is a dry run of `hrnet_train_pose` (median of nine steps); ratios are to the first."""
import contextlib, io, platform
from pathlib import Path
import torch
from fastcore.script import call_parse
from hrnet_nbdev.files import user_errors, write_json
from hrnet_nbdev.train_pose import train_pose

@call_parse
@user_errors
def main(
    root:str, # COCO folder
    preset:str="w32-512", # of hrnet_train_pose
    batch_size:int=12, # pictures a step
    workers:int=4, # loader processes
    compiled:bool=False, # each setting with torch.compile, too
    peak_tflops:float=0.0, # what the maker promises of the device in bf16: prints the share of it that is reached
    cpu:bool=False, # do not use a GPU
    out:str="", # JSON file for the results
):
    "Time the training step."
    device, rows = "CPU" if cpu or not torch.cuda.is_available() else torch.cuda.get_device_name(), []
    print(f"{preset}, {batch_size} pictures a step, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for compile in (False, True)[:1 + compiled]:
        for precision in ("no", "bf16"):
            for channels_last in (False, True):
                with contextlib.redirect_stdout(io.StringIO()):
                    found = train_pose(root, preset=preset, batch_size=batch_size, workers=workers, precision=precision, channels_last=channels_last,
                                       compile=compile, cpu=cpu, dry_run=True, progress=False)
                rows.append(dict(precision=precision, channels_last=channels_last, compile=compile, **found))
                tflops = 6e-12 * found["macs"] * found["images_per_second"]
                print(f"{'float32' if precision == 'no' else 'bf16':8} {'channels_last' if channels_last else 'contiguous':14} {'compiled' if compile else '':9}"
                      f"{found['images_per_second']:8.2f} images/s  {found['images_per_second'] / rows[0]['images_per_second']:5.2f} x  {tflops:7.2f} TFLOP/s"
                      f"{f' ({tflops / peak_tflops:.0%} of the peak)' if peak_tflops else ''}  {found['memory'] / 1e9:5.1f} GB", flush=True)
    if out: write_json(Path(out), dict(device=device, machine=platform.machine(), torch=torch.__version__, preset=preset, batch_size=batch_size, rows=rows), indent=1)
