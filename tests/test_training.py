"""Runs that are killed for real: SIGKILL in the middle of an epoch, SIGTERM, and what the resumed run ends with."""
import contextlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from hrnet_nbdev.train_pose import train_pose
from hrnet_nbdev.synthetic import write_coco, write_imagenet
from hrnet_nbdev import training
from hrnet_nbdev.files import UserError
from hrnet_nbdev.imagenet import pretrain
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

def finish(process, timeout=300):
    out, _ = process.communicate(timeout=timeout)
    return process.returncode, out

def wait_for_step(run, step, process):
    "Wait until the run has logged `step`."
    for _ in range(6000):
        log = Path(run) / "metrics.jsonl"
        if log.exists() and any(json.loads(line)["step"] >= step for line in log.read_text().splitlines(True) if line.endswith("\n")): return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("the run does not get on")

def wait_for_writing(run, process):
    "Wait until the run is in the middle of writing its state."
    while not list((Path(run) / "last").glob(".state.*")): assert process.poll() is None, process.stdout.read()

def same_end(a, b):
    one, two = read_state(a), read_state(b)
    assert one["step"] == two["step"]
    for k in one["model"]: assert torch.equal(one["model"][k], two["model"][k]), k
    assert read_metrics(a) == read_metrics(b)
    best = [load_file(Path(run) / "best.safetensors") for run in (a, b)]
    for k in best[0]: assert torch.equal(best[0][k], best[1][k]), k
    assert [p.name for p in (Path(b) / "last").iterdir()] == ["state.pt"]        # nothing half written is left

def classifier(root, out, *more):
    return start("imagenet", root, "--out", out, "--preset", "tiny", "--size", 32, "--width", 8, "--batch_size", 8, "--steps", 30,
                 "--precision", "no", "--cpu", "--log_every", 1, "--save_every", 4, "--eval_every", 2, *more)

@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_any_moment(sets, tmp_path, workers):
    status, out = finish(classifier(sets[1], tmp_path / "whole", "--workers", workers))
    assert status == 0, out
    for kill_at in (5, "saving", 18):        # 7 steps an epoch: inside the first, while a state is being written, inside the third
        process = classifier(sets[1], tmp_path / "torn", "--workers", workers, "--resume")
        if kill_at == "saving": wait_for_writing(tmp_path / "torn", process)
        else: wait_for_step(tmp_path / "torn", kill_at, process)
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

def torchrun(port, *args):
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), *map(str, args)],
                            env=TINY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def test_two_processes_equal_one(sets):
    "Gradients of both networks with batch norm shared, running statistics, and an evaluation of 13 pictures."
    status, out = finish(torchrun(29713, Path(__file__).parent / "two_processes.py", *sets))
    assert status == 0 and "two processes equal one" in out, out[-3000:]

def test_two_processes_stop_together_and_resume(sets, tmp_path):
    args = lambda out, *more: ("-m", "hrnet_nbdev.imagenet", sets[1], "--out", out, "--preset", "tiny", "--size", 32, "--width", 8, "--batch_size", 4, "--steps", 14,
                               "--precision", "no", "--cpu", "--workers", 0, "--log_every", 2, "--eval_every", 2, *more)
    status, out = finish(torchrun(29714, *args(tmp_path / "whole")))
    assert status == 0 and "2 processes x 4 images" in out, out[-2000:]
    process = torchrun(29715, *args(tmp_path / "torn"))
    wait_for_step(tmp_path / "torn", 4, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert 4 <= read_state(tmp_path / "torn")["step"] < 14 and read_state(tmp_path / "torn")["processes"] == 2
    status, out = finish(torchrun(29716, *args(tmp_path / "torn", "--resume")))
    assert status == 0, out[-2000:]
    same_end(tmp_path / "whole", tmp_path / "torn")
    status, out = finish(classifier(sets[1], tmp_path / "torn", "--batch_size", 4, "--steps", 14, "--resume"))
    assert status == 1 and "was started with" in out, out

def test_ctrl_c_with_loader_processes_saves(sets, tmp_path):
    "A terminal sends Ctrl-C to the loader's processes as well."
    process = subprocess.Popen([sys.executable, "-m", "hrnet_nbdev.imagenet", str(sets[1]), *"--preset tiny --size 32 --width 8 --batch_size 8 --epochs 500 --cpu --workers 2".split(),
                                "--log_every", "1", "--out", str(tmp_path / "run")], env=TINY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    wait_for_step(tmp_path / "run", 3, process)
    os.killpg(process.pid, signal.SIGINT)
    status, out = finish(process)
    assert status == 130 and "Traceback" not in out and read_state(tmp_path / "run")["step"] >= 3, out

def test_a_loader_left_open_does_not_hold_up_the_exit(tmp_path):
    "Its processes ignore the SIGTERM that Python ends them with, and are waited for."
    script = tmp_path / "left_open.py"
    script.write_text("from torch.utils.data import DataLoader\nfrom hrnet_nbdev.runs import leave_signals_alone\n"
                      "batches = iter(DataLoader(range(1000), num_workers=2, worker_init_fn=leave_signals_alone))\nprint(next(batches))\n")
    done = subprocess.run([sys.executable, str(script)], env=TINY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "tensor([0])\n" and done.stderr == "", done

def test_damaged_state_is_named(sets, tmp_path):
    (tmp_path / "run/last").mkdir(parents=True)
    (tmp_path / "run/last/state.pt").write_bytes(b"half of a fi")
    status, out = finish(classifier(sets[1], tmp_path / "run", "--resume"))
    assert status == 1 and "state.pt cannot be read" in out and "Traceback" not in out

# In this process, as a notebook would

SMALL = dict(preset="tiny", size=32, width=8, batch_size=8, workers=0, cpu=True, precision="no", progress=False, log_every=1)

def test_unreadable_pictures_stop_or_are_skipped(sets, tmp_path, capsys):
    shutil.copytree(sets[1], tmp_path / "imagenet")
    torn = sorted((tmp_path / "imagenet/train").glob("*/*"))[3]
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{torn.name} cannot be read"): pretrain(tmp_path / "imagenet", tmp_path / "strict", epochs=2, **SMALL)
    pretrain(tmp_path / "imagenet", tmp_path / "lenient", epochs=2, max_bad=1, **SMALL)
    assert torn.name in (tmp_path / "lenient/bad.txt").read_text() and f"{torn.name} cannot be read" in capsys.readouterr().err
    other = sorted((tmp_path / "imagenet/train").glob("*/*"))[30]
    other.write_bytes(b"")
    with pytest.raises(UserError, match="more than 1 pictures cannot be read"): pretrain(tmp_path / "imagenet", tmp_path / "two", epochs=2, max_bad=1, **SMALL)

@pytest.mark.parametrize("steps, log_every", [(40, 1), (40, 7)])
def test_a_loss_that_explodes_keeps_the_last_good_state(sets, tmp_path, steps, log_every):
    with pytest.raises(UserError, match="not a finite number|diverges|not finite numbers"):
        pretrain(sets[1], tmp_path / "run", steps=steps, lr=1e6, save_every=1, **SMALL | dict(log_every=log_every))
    state = read_state(tmp_path / "run")
    assert state is None or all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())

def test_a_full_disk_loses_nothing(sets, tmp_path, monkeypatch):
    save, full = torch.save, []
    def out_of_space(state, path):
        if state["step"] > 10: Path(path).write_bytes(b"half"); full.append(path); raise OSError(28, "No space left on device", str(path))
        save(state, path)
    monkeypatch.setattr(torch, "save", out_of_space)
    with pytest.raises(OSError, match="No space left"): pretrain(sets[1], tmp_path / "run", steps=20, save_every=5, **SMALL)
    assert full and read_state(tmp_path / "run")["step"] == 10 and not full[0].exists()
    monkeypatch.undo()
    pretrain(sets[1], tmp_path / "run", steps=20, save_every=5, resume=True, **SMALL)
    pretrain(sets[1], tmp_path / "whole", steps=20, save_every=5, **SMALL)
    same_end(tmp_path / "whole", tmp_path / "run")

def test_dry_run_measures_and_writes_nothing(sets, tmp_path, capsys):
    found = pretrain(sets[1], tmp_path / "run", epochs=20, dry_run=True, **SMALL)
    out = capsys.readouterr().out
    assert not (tmp_path / "run").exists() and "images/s" in out and "140 steps of 8 images" in out
    assert found["images_per_second"] > 0 and found["parameters"] > 1e5 and found["hours"] == pytest.approx(140 * 8 / found["images_per_second"] / 3600)

def test_modern_extras_train_and_resume(sets, tmp_path):
    "Mixup, CutMix, RandAugment, smoothing, EMA and accumulation draw random numbers of their own: those must come back too."
    modern = dict(SMALL, steps=12, save_every=4, mixup=0.2, cutmix=1.0, randaugment=9, smoothing=0.1, ema=0.9, accumulate=2, batch_size=4, cosine=True)
    pretrain(sets[1], tmp_path / "whole", **modern)
    with pytest.raises(KeyboardInterrupt):
        with stop_request(after=6): pretrain(sets[1], tmp_path / "torn", **modern)
    assert read_state(tmp_path / "torn")["step"] == 6
    pretrain(sets[1], tmp_path / "torn", resume=True, **modern)
    same_end(tmp_path / "whole", tmp_path / "torn")

def test_weights_count_when_a_run_that_may_resume_starts(sets, tmp_path, capsys):
    "A cluster's script always says --resume: at the first start the given backbone must be used all the same."
    small = dict(preset="tiny", size=64, width=8, batch_size=4, eval_limit=1, **{k: v for k, v in SMALL.items() if k in ("workers", "cpu", "precision", "progress", "log_every")})
    train_pose(sets[0], tmp_path / "first", steps=1, **small)
    train_pose(sets[0], tmp_path / "next", steps=1, weights=tmp_path / "first/best.safetensors", resume=True, **small)
    assert "HigherHRNet" in capsys.readouterr().out                          # the table of what was loaded
    with pytest.raises(UserError, match="gone"): train_pose(sets[0], tmp_path / "other", steps=1, weights=tmp_path / "gone.safetensors", resume=True, **small)
    train_pose(sets[0], tmp_path / "next", steps=1, weights=tmp_path / "gone.safetensors", resume=True, **small)      # goes on from its own state

@contextlib.contextmanager
def stop_request(after):
    "Ask for a stop when the learning rate of step `after` is set."
    steps, sent = training.train_step, []
    def counted(*args):
        if args[5] == after - 1 and not sent: sent.append(os.kill(os.getpid(), signal.SIGTERM))      # a second one would interrupt at once
        return steps(*args)
    training.train_step = counted
    try: yield
    finally: training.train_step = steps
