"""Runs that are killed for real: SIGKILL in the middle of an epoch, SIGTERM, and what the resumed run ends with."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from hrnet_nbdev.synthetic import write_coco, write_imagenet
from hrnet_nbdev.runs import read_metrics, read_state

TINY = dict(os.environ, OMP_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    "Small COCO and ImageNet folders."
    root = tmp_path_factory.mktemp("sets")
    return (write_coco(root / "coco", train=24, val=4, size=96, seed=5, workers=1),
            write_imagenet(root / "imagenet", train=6, val=2, size=48, seed=5, workers=1))

def start(module, *args):
    return subprocess.Popen([sys.executable, "-m", f"hrnet_nbdev.{module}", *map(str, args)], env=TINY,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def finish(process):
    out, _ = process.communicate(timeout=300)
    return process.returncode, out

def wait_for_step(run, step, process):
    "Wait until the run has logged `step`."
    for _ in range(1200):
        log = Path(run) / "metrics.jsonl"
        if log.exists() and any(json.loads(line)["step"] >= step for line in log.read_text().splitlines(True) if line.endswith("\n")): return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("the run does not get on")

def same_end(a, b):
    one, two = read_state(a), read_state(b)
    assert one["step"] == two["step"]
    for k in one["model"]: assert torch.equal(one["model"][k], two["model"][k]), k
    assert read_metrics(a) == read_metrics(b)
    best = [load_file(Path(run) / "best.safetensors") for run in (a, b)]
    for k in best[0]: assert torch.equal(best[0][k], best[1][k]), k

def classifier(root, out, *more):
    return start("imagenet", root, "--out", out, "--preset", "tiny", "--size", 32, "--width", 8, "--batch_size", 8, "--steps", 30,
                 "--precision", "no", "--cpu", "--log_every", 1, "--save_every", 4, "--eval_every", 2, *more)

@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_any_moment(sets, tmp_path, workers):
    status, out = finish(classifier(sets[1], tmp_path / "whole", "--workers", workers))
    assert status == 0, out
    for kill_at in (5, 18):        # 7 steps an epoch: inside the first, inside the third
        process = classifier(sets[1], tmp_path / "torn", "--workers", workers, "--resume")
        wait_for_step(tmp_path / "torn", kill_at, process)
        process.send_signal(signal.SIGKILL); process.wait()
    status, out = finish(classifier(sets[1], tmp_path / "torn", "--workers", workers, "--resume"))
    assert status == 0, out
    same_end(tmp_path / "whole", tmp_path / "torn")

def test_pose_run_saves_on_sigterm_and_resumes(sets, tmp_path):
    args = lambda out, *more: (sets[0], "--out", out, "--preset", "tiny", "--size", 64, "--width", 8, "--batch_size", 4, "--steps", 12, "--ema", 0.9,
                               "--precision", "no", "--cpu", "--workers", 0, "--log_every", 1, "--eval_every", 1, "--eval_limit", 2, *more)
    status, out = finish(start("train_pose", *args(tmp_path / "whole")))
    assert status == 0, out
    process = start("train_pose", *args(tmp_path / "torn"))
    wait_for_step(tmp_path / "torn", 3, process)
    process.send_signal(signal.SIGTERM)
    status, out = finish(process)
    assert status == 130 and "Traceback" not in out
    assert 3 <= read_state(tmp_path / "torn")["step"] < 12
    status, out = finish(start("train_pose", *args(tmp_path / "torn", "--resume")))
    assert status == 0, out
    same_end(tmp_path / "whole", tmp_path / "torn")

def test_two_processes_train_like_one(sets, tmp_path):
    "Half the batch on each of two processes: the same global batches. Batch norm sees half of them, so weights differ a little."
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29713", "-m", "hrnet_nbdev.imagenet"]
    args = lambda out, size: [str(sets[1]), "--out", str(out), "--preset", "tiny", "--size", "32", "--width", "8", "--batch_size", str(size), "--steps", "3",
                              "--precision", "no", "--cpu", "--workers", "0", "--log_every", "1"]
    two = subprocess.run(torchrun + args(tmp_path / "two", 4), env=TINY, capture_output=True, text=True, timeout=300)
    assert two.returncode == 0, two.stderr[-2000:]
    one = subprocess.run([sys.executable, "-m", "hrnet_nbdev.imagenet"] + args(tmp_path / "one", 8), env=TINY, capture_output=True, text=True, timeout=300)
    assert one.returncode == 0, one.stderr
    a, b = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [r["step"] for r in a] == [r["step"] for r in b]
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=0.1) and a[0]["lr"] == b[0]["lr"]
    assert read_state(tmp_path / "two")["processes"] == 2

def test_damaged_state_is_named(sets, tmp_path):
    (tmp_path / "run/last").mkdir(parents=True)
    (tmp_path / "run/last/state.pt").write_bytes(b"half of a fi")
    status, out = finish(classifier(sets[1], tmp_path / "run", "--resume"))
    assert status == 1 and "state.pt cannot be read" in out and "Traceback" not in out
