"""W32 at 512 px, as on COCO, for a few steps on the CPU: killed, resumed, and the same to the last bit. Minutes: `pytest -m slow`."""
import signal
import pytest
from hrnet_nbdev.synthetic import write_coco
from test_coco_mini import MINI, subset
from test_training import finish, same_end, start, wait_for_step

@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["synthetic", "photographs"])
def test_w32_at_512_is_killed_and_resumes(tmp_path, pictures):
    if pictures == "photographs" and not MINI.is_dir(): pytest.skip("../shared/coco_mini is absent")
    root = subset(tmp_path / "coco") if pictures == "photographs" else write_coco(tmp_path / "coco", train=8, val=2, size=512, seed=3, workers=1)
    run = lambda out, *more: start("train_pose", root, "--out", tmp_path / out, "--preset", "w32-512", "--batch_size", 2, "--steps", 4, "--cpu", "--workers", 1,
                                   "--log_every", 1, "--save_every", 1, "--eval_limit", 1, "--eval_every", 4, "--no-flip_test", *more)
    status, out = finish(run("whole"), 900)
    assert status == 0 and "learning rate" in out, out
    process = run("torn")
    wait_for_step(tmp_path / "torn", 2, process)
    process.send_signal(signal.SIGKILL); process.wait()
    status, out = finish(run("torn", "--resume"), 900)
    assert status == 0, out
    same_end(tmp_path / "whole", tmp_path / "torn")
