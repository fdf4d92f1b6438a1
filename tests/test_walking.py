"""The walking people: the same again by seed, a truth that every COCO tool reads, a command that says what is wrong."""
import contextlib, io, json
import numpy as np
import pytest
from pycocotools.coco import COCO
from hrnet_nbdev.coco_eval import coco_scores
from hrnet_nbdev.people import LIMITS
from hrnet_nbdev.video import VideoReader
from hrnet_nbdev.walking import gait, plan_walk, walk_scene, write_walk
from test_cli import refuse, run

@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    return write_walk(folder / "walk.mp4", seconds=4, fps=12.5, size=(192, 128), seed=2, pairs=1)

def test_a_seed_gives_the_same_frames_and_truth():
    one, again, other = ([*walk_scene(seed, frames=4, fps=2, size=(96, 64))] for seed in (5, 5, 6))
    assert all((a == b).all() and s == t for (a, s), (b, t) in zip(one, again))
    assert any((a != b).any() for (a, _), (b, _) in zip(one, other))

def test_the_frame_rate_only_changes_how_often_one_looks():
    slow, fast = ([*walk_scene(1, frames=n, fps=f, size=(96, 64))] for n, f in ((5, 5), (10, 10)))
    for (a, s), (b, t) in zip(slow, fast[::2]): assert (a == b).all() and s == t

def test_the_truth_scores_full_marks_against_itself(written):
    with contextlib.redirect_stdout(io.StringIO()): truth = COCO(str(written))
    results = [dict(image_id=a["image_id"], category_id=1, keypoints=a["keypoints"], score=1.0) for a in truth.anns.values() if a["num_keypoints"]]
    assert len(results) > 60 and coco_scores(truth, results)["AP"] == pytest.approx(1)

def test_the_video_and_the_truth_belong_together(written):
    truth = json.loads(written.read_text())
    with VideoReader(written.with_suffix(".mp4")) as video:
        assert (float(video.fps), video.size) == (12.5, (192, 128))
        frames = list(video)
    assert len(frames) == len(truth["images"]) == 50
    assert [image["time"] for image in truth["images"][:3]] == [0, .08, .16]
    scene = list(walk_scene(2, 50, 12.5, (192, 128), 1))
    assert max(np.abs(a.astype(int) - b).mean() for a, (b, _) in zip(frames, scene)) < 8

def test_ids_and_joints_go_on_from_frame_to_frame():
    last = {}
    seen = set()
    for frame, annotations in walk_scene(0, frames=200, size=(160, 96)):
        ids = [a["track_id"] for a in annotations]
        assert len(set(ids)) == len(ids)
        now = {a["track_id"]: np.array(a["keypoints"]).reshape(17, 3) for a in annotations}
        for i in now.keys() & last.keys():
            both = (now[i][:, 2] > 0) & (last[i][:, 2] > 0)
            assert not both.any() or np.abs(now[i] - last[i])[both, :2].max() < .08 * 160
        assert all(a["num_keypoints"] == (now[a["track_id"]][:, 2] > 0).sum() and a["bbox"][2] > 0 for a in annotations)
        last, seen = now, seen | set(ids)
    assert seen == {1, 2, 3, 4, 5, 6}

def test_nearer_people_hide_farther_ones():
    hidden = {}
    for _, annotations in walk_scene(0, frames=60, fps=7.5, size=(160, 96)):
        for a in annotations: hidden.setdefault(a["track_id"], []).append(a["num_keypoints"])
    assert min(hidden[1]) == 0 and max(hidden[1]) == 17      # the one who waves is covered for a moment

def test_they_cross_and_one_comes_back():
    walkers = {walker.track_id: walker for walker in plan_walk(np.random.default_rng(3), 8.0, 640, 384)}
    for a, b in ((2, 3), (4, 5)):
        one, other = walkers[a], walkers[b]
        meet = (other.start - one.start) / (one.speed - other.speed)
        assert one.speed * other.speed < 0 and 0 < meet < 8 and 0 < one.start + one.speed * meet < 640
    first, back = walkers[2], walkers[6]
    assert back.person is first.person and back.speed == -first.speed
    assert [w.track_id for w in plan_walk(np.random.default_rng(0), 2.0, 640, 384, pairs=0)] == [1]

def test_angles_stay_within_a_bodys_limits():
    for phase in np.linspace(0, 7, 60):
        for name, value in gait(phase).items():
            low, high = LIMITS[name.split("_")[-1]]
            assert low <= value <= high, name

def test_the_command(tmp_path):
    status, err, out = run("hrnet_walk", tmp_path / "new" / "a.mp4", "--seconds", "0.4", "--width", "96", "--height", "64", "--pairs", "1")
    assert status == 0 and "a.json" in out and (tmp_path / "new" / "a.mp4").stat().st_size > 1000
    assert len(json.loads((tmp_path / "new" / "a.json").read_text())["images"]) == 10

@pytest.mark.parametrize("said, args", [("let it end in .mp4", ["a.json"]), ("above 0", ["a.mp4", "--seconds", "0"]), ("above 0", ["a.mp4", "--seconds", "nan"]),
                                        ("above 0", ["a.mp4", "--fps", "-1"]), ("even numbers", ["a.mp4", "--width", "321"]),
                                        ("even numbers", ["a.mp4", "--height", "10"]), ("pairs is 99", ["a.mp4", "--pairs", "99"])])
def test_bad_numbers_are_refused(tmp_path, said, args):
    refuse(said, "hrnet_walk", tmp_path / args[0], *args[1:])
    assert not list(tmp_path.iterdir())

def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refuse("", "hrnet_walk", tmp_path / "file" / "a.mp4", "--seconds", "0.2", "--width", "96", "--height", "64")
