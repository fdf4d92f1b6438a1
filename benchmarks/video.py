"""Frames per second of `hrnet_pose` on a video of walking people: its stages one after the other, and overlapped.

    python benchmarks/video.py                                   # the shipped model at its own size
    python benchmarks/video.py --weights w32 --input-size 512    # the full-size network with random weights, for the time alone

Medians over the repeats, which take turns; the ratio is between runs of the same minute."""
import statistics, tempfile, time
from pathlib import Path
import torch
from fastcore.script import call_parse
from hrnet_nbdev.files import user_errors, write_json
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.inference import PosePredictor
from hrnet_nbdev.pose_video import batches, limits, pose_video, video_stages, video_writers
from hrnet_nbdev.tracking import Tracker
from hrnet_nbdev.video import VideoReader, VideoWriter
from hrnet_nbdev.walking import walk_scene

def in_turn(predictor, source, out, views):
    "The same stages without the threads: every frame goes through all of them before the next one is read."
    with VideoReader(source) as reader, video_writers(reader, out / "in_turn", predictor.schema) as (write, _, _):
        stages, done = video_stages(predictor, Tracker(), views, write).values(), 0
        for batch in batches(reader, predictor.batch_size):
            for stage in stages: batch = stage(batch)
            done += len(batch)
    return done

@call_parse
@user_errors
def main(
    weights:str="tiny", # checkpoint, or w32: the full-size network with random weights
    input_size:int=0, # short side of the network's input; 0: as the checkpoint says
    frames:int=200, # length of the video
    width:int=640, # of the video
    height:int=384, # of the video
    views:str="skeleton", # as for hrnet_pose
    batch_size:int=1, # frames that the network takes at once
    repeats:int=3, # of each
    device:str="", # cuda or cpu; default: the GPU when there is one
    out:str="", # JSON file for the results
):
    "Time video with and without overlap."
    torch.manual_seed(0)
    predictor = PosePredictor(HigherHRNet() if weights == "w32" else weights, input_size or None, device=device or None, decoder="fast", batch_size=batch_size)
    folder, views = Path(tempfile.mkdtemp()), tuple(views.split(","))
    with VideoWriter(folder / "walk.mp4", 25) as writer:
        for image, _ in walk_scene(frames=frames, size=(width, height)): writer.write(image)
    seconds, results = {"in turn": [], "overlapped": []}, []
    for repeat in range(repeats + 1):                                       # the first is for warming up
        for name, times in seconds.items():
            begin = time.perf_counter()
            if name == "in turn": in_turn(predictor, folder / "walk.mp4", folder, views)
            else: results.append(pose_video(predictor, folder / "walk.mp4", folder, "overlapped", views, progress=False))
            if repeat: times.append(time.perf_counter() - begin)
    rates = {name: frames / statistics.median(times) for name, times in seconds.items()}
    print(f"{weights} at {predictor.size}, video {width} x {height}, {frames} frames, views {','.join(views)}, batch {batch_size}, {predictor.device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, rate in rates.items(): print(f"{name:12}{rate:8.1f} frames/s")
    print(f"ratio       {rates['overlapped'] / rates['in turn']:8.2f}")
    print(limits(results[-1].busy, results[-1].seconds))
    if out: write_json(Path(out), dict(rates, busy=results[-1].busy, seconds=results[-1].seconds, device=predictor.device, views=views, size=predictor.size), indent=1)
