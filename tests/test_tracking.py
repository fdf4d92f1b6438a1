"""Tracking: ids that stay, the One Euro filter, and the counts of mistakes."""
import json, math
from dataclasses import replace
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hrnet_nbdev.data import COCO_SCHEMA
from hrnet_nbdev.inference import Poses
from hrnet_nbdev.tracking import OneEuro, Tracker, disturbed, pair_up, pairwise_oks, pose_areas, track_scores, true_poses
from hrnet_nbdev.walking import walk_scene

BODY = np.random.default_rng(0).uniform((-20, -45), (20, 45), (17, 2))

def people(*centers, ids=None):
    "`Poses` of people of one shape at the given places."
    joints = np.array([np.c_[BODY + c, np.ones(17)] for c in centers], np.float32).reshape(-1, 17, 3)
    return Poses(joints, np.ones(len(joints), np.float32), np.zeros((len(joints), 17, 1), np.float32), COCO_SCHEMA, ids)

def follow(video, **options):
    tracker = Tracker(**options)
    return [tracker(poses) for poses in video]

@pytest.fixture(scope="module")
def walk():
    "Two crossings and a return: the true poses of 200 frames."
    return [true_poses(annotations) for _, annotations in walk_scene(0, frames=200, size=(160, 96))]

@pytest.mark.parametrize("seed", range(4))
def test_true_poses_with_noise_gaps_and_false_alarms_keep_their_ids(walk, seed):
    rng = np.random.default_rng(seed)
    scores = track_scores(follow([disturbed(poses, rng) for poses in walk]), walk)
    # a swap while several people hide each other may happen, and is taken back
    assert scores["switches"] <= 2 and scores["IDF1"] > .85 and 6 <= scores["ids"] <= 8

def test_undisturbed_poses_are_followed_without_a_mistake(walk):
    scores = track_scores(follow(walk), walk)
    assert scores["switches"] == 0
    # somebody of whom one or two joints are in the picture may be taken for a piece of somebody else
    assert scores["false_alarms"] == 0 and scores["misses"] < .03 * scores["people"]

def test_the_order_of_the_people_does_not_matter(walk):
    rng = np.random.default_rng(0)
    shuffled = [poses[rng.permutation(len(poses))] for poses in walk]
    for one, other in zip(follow(walk, smooth=True), follow(shuffled, smooth=True)):
        a, b = one[np.argsort(one.ids)], other[np.argsort(other.ids)]
        assert len(a) == len(b)
        np.testing.assert_allclose(a.keypoints, b.keypoints, atol=1e-3)

def crossing(hidden=range(22, 29)):
    "Two people who pass each other; the second one is not found in the `hidden` frames."
    for n in range(50):
        places = [(100 + 4 * n, 100), (300 - 4 * n, 104)]
        yield people(*places[:1 if n in hidden else 2]), people(*places, ids=np.array([1, 2]))

def test_a_crossing_with_a_gap():
    seen, truth = map(list, zip(*crossing()))
    scores = track_scores(follow(seen), truth)
    assert scores["switches"] == 0 and scores["ids"] == 2
    assert track_scores(follow(seen, memory=0), truth)["switches"] > 0
    assert track_scores(follow(seen, max_gap=0), truth)["ids"] > 2

def test_gaps_are_bridged_up_to_max_gap_and_no_further():
    for away, ids in ((.8, [1]), (1.2, [2])):
        tracker = Tracker(max_gap=1.0, min_hits=1)
        tracker(people((100, 100)), 0.0)
        tracker(people(), .5); tracker(people(), away)
        assert tracker(people((100, 100)), away + .04).ids.tolist() == ids

def test_ids_are_never_given_again_and_newcomers_wait():
    tracker = Tracker(max_gap=.1)
    ids = [tracker(poses).ids.tolist() for poses in [people((50, 50))] + [people()] * 5 + [people((50, 50))] * 3]
    assert ids == [[1]] + [[]] * 6 + [[2], [2]]

def test_frames_without_anybody_one_person_and_a_single_picture():
    assert [len(poses) for poses in follow([people()] * 3)] == [0, 0, 0]
    assert follow([people()])[0].ids.shape == (0,)
    assert follow([people((50, 50), (250, 50))])[0].ids.tolist() == [1, 2]
    assert {i for poses in follow([people((50 + n, 50)) for n in range(30)]) for i in poses.ids} == {1}

def test_a_hundred_people():
    places = np.stack(np.meshgrid(np.arange(10) * 60, np.arange(10) * 120), -1).reshape(-1, 2).astype(float)
    rng, speed = np.random.default_rng(0), np.random.default_rng(1).normal(0, 1.5, places.shape)
    order = [rng.permutation(100) for _ in range(10)]
    found = follow([people(*(places + n * speed)[o]) for n, o in enumerate(order)])
    of = [dict(zip(o.tolist(), poses.ids.tolist())) for o, poses in zip(order, found)]
    assert all(ids == of[0] for ids in of) and len(set(of[0].values())) == 100

def test_missing_joints_and_numbers_that_are_none():
    video = [people((100 + n, 100), (250 - n, 100)) for n in range(6)]
    video[2].keypoints[0, 3:9] = np.nan
    video[3].keypoints[0, :, 2] = 0
    video[4].keypoints[1, 5, 0] = np.inf
    found = follow(video, smooth=True)
    assert all(np.isfinite(poses.keypoints).all() for poses in found)
    assert [poses.ids.tolist() for poses in found] == [[1, 2], [1, 2], [1, 2], [2], [1, 2], [1, 2]]

def test_joints_of_somebody_else_are_left_out():
    video = [people((100, 100), (300, 100)) for _ in range(4)]
    mixed = video[-1].keypoints
    mixed[:, :8] = mixed[::-1, :8].copy()
    last = follow(video)[-1]
    assert sorted(last.ids) == [1, 2]
    for joints, center in zip(last.keypoints[np.argsort(last.ids)], (100, 300)):
        shown = joints[joints[:, 2] > 0]
        assert 8 <= len(shown) < 17 and (abs(shown[:, 0] - center) < 40).all()

def test_halves_of_one_person_are_no_newcomer():
    video = [people((100 + n, 100)) for n in range(4)] + [people((104 + n, 100), (104 + n, 100)) for n in range(6)]
    for poses in video[4:]: poses.keypoints[0, :9, 2], poses.keypoints[1, 9:, 2] = 0, 0
    assert [len(poses) for poses in follow(video)] == [1] * 10
    assert {i for poses in follow(video) for i in poses.ids} == {1}

def test_time_that_stands_still_or_goes_back_does_no_harm():
    tracker = Tracker(smooth=True)
    for n, time in enumerate((0, .04, .04, .02, .3, .34)): found = tracker(people((100 + n, 100)), time)
    assert found.ids.tolist() == [1] and np.isfinite(found.keypoints).all()

def test_settings_that_make_no_sense():
    for bad in (dict(max_gap=-1), dict(min_hits=0), dict(fps=0), dict(memory=-1), dict(reach=-1)):
        with pytest.raises(ValueError): Tracker(**bad)

@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200)), max_size=6), min_size=1, max_size=8), st.integers(1, 3), st.booleans())
def test_an_id_occurs_once_in_a_frame(video, min_hits, smooth):
    for frame, poses in zip(video, follow([people(*frame) for frame in video], min_hits=min_hits, smooth=smooth)):
        assert len(set(poses.ids.tolist())) == len(poses) <= len(frame) and (poses.ids > 0).all()
        assert np.isfinite(poses.keypoints).all() and poses.keypoints.dtype == np.float32

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 10 ** 6))
def test_pairs_are_a_matching_and_none_is_weak(t, p, seed):
    similarity = np.random.default_rng(seed).random((t, p))
    rows, cols = pair_up(similarity, .4)
    assert len(set(rows.tolist())) == len(rows) and len(set(cols.tolist())) == len(cols) and (similarity[rows, cols] >= .4).all()
    # nobody is left over who could still be paired
    free = np.delete(np.delete(similarity, rows, 0), cols, 1)
    assert not (free >= .4).any()

def test_pairwise_oks_equals_the_evaluators():
    from hrnet_nbdev.coco_eval import oks
    rng = np.random.default_rng(0)
    a, b = people((100, 100), (130, 90)).keypoints, people((104, 100), (128, 95), (300, 0)).keypoints
    a[0, 3:6, 2] = b[:, 8, 2] = 0
    b[..., :2] += rng.normal(0, 3, b[..., :2].shape)
    table = pairwise_oks(a, b, COCO_SCHEMA.sigmas)
    for i in range(2):
        for j in range(3):
            truth = np.c_[a[i, :, :2], (a[i, :, 2] > 0) & (b[j, :, 2] > 0)]
            area = max(pose_areas(a[[i]])[0], pose_areas(b[[j]])[0])
            assert table[i, j] == pytest.approx(oks(b[j], truth, area, COCO_SCHEMA.sigmas), abs=1e-6)

def scalar_one_euro(values, times, min_cutoff, beta, d_cutoff=1.0):
    "The paper's algorithm, one number at a time, written down independently."
    alpha = lambda cutoff, period: 1 / (1 + (1 / (2 * math.pi * cutoff)) / period)
    out, slope = [values[0]], 0.0
    for previous, now, x in zip(times, times[1:], values[1:]):
        period = now - previous
        a = alpha(d_cutoff, period)
        slope = a * (x - out[-1]) / period + (1 - a) * slope
        a = alpha(min_cutoff + beta * abs(slope), period)
        out.append(a * x + (1 - a) * out[-1])
    return out

def test_one_euro_equals_a_scalar_loop():
    rng = np.random.default_rng(0)
    values, times = rng.normal(0, 1, (40, 5)).cumsum(0), rng.uniform(.01, .1, 40).cumsum()
    filter = OneEuro(1.3, .7)
    got = np.array([filter(v[:, None], t)[:, 0] for v, t in zip(values, times)])
    want = np.array([scalar_one_euro(column.tolist(), times.tolist(), 1.3, .7) for column in values.T]).T
    np.testing.assert_allclose(got, want, rtol=1e-10)

def test_one_euro_is_the_same_in_time_at_any_frame_rate():
    curve = lambda t: 50 * np.clip(t - .5, 0, 1)
    ends = []
    for fps in (25, 50, 100, 200):
        filter, out = OneEuro(1.0, .05), {}
        for n in range(2 * fps + 1): out[n / fps] = filter([[curve(n / fps)]], n / fps)[0, 0]
        ends.append([out[t] for t in (.8, 1.0, 1.4, 1.8)])
    assert np.ptp(ends, 0).max() < 1.5           # of 50 pixels
    assert np.ptp(ends[2:], 0).max() < .4        # and the finer, the closer

def test_one_euro_with_missing_points():
    filter, x = OneEuro(), np.array([[1., 1], [5, 5]])
    filter(x, 0)
    np.testing.assert_array_equal(filter(x + 1, .1, [True, False])[1], [6, 6])      # handed back as it came
    late = filter(x + 3, 60.0, [True, True])
    assert abs(late[1] - 8).max() < .1           # after a minute nothing of the old place is left

def test_smoothing_leaves_ids_alone_and_calms(walk):
    rng = np.random.default_rng(0)
    noisy = [disturbed(poses, rng, lost=0, false_alarms=0) for poses in walk]
    raw, calm = follow(noisy), follow(noisy, smooth=True)
    assert all((a.ids == b.ids).all() for a, b in zip(raw, calm))
    def tremble(video):
        at = [{int(i): joints for i, joints in zip(poses.ids, poses.keypoints)}[1] for poses in video[:40]]      # she who waves, standing
        return np.abs(np.diff([joints[11:, :2] for joints in at], axis=0)).mean()
    assert tremble(calm) < .6 * tremble(raw)

def test_track_scores_by_hand():
    ids = lambda *numbers: np.array(numbers)
    truth = [people((50, 50), (200, 50), ids=ids(1, 2))] * 3
    found = [people((50, 50), (200, 50), ids=ids(5, 6)), people((200, 50), ids=ids(5)), people((50, 50), (200, 50), (350, 50), ids=ids(5, 6, 7))]
    scores = track_scores(found, truth)
    assert {k: scores[k] for k in ("people", "found", "misses", "false_alarms", "switches", "ids")} == dict(people=6, found=6, misses=1, false_alarms=1, switches=2, ids=3)
    assert scores["MOTA"] == pytest.approx(1 - 4 / 6) and scores["IDF1"] == pytest.approx(2 * 4 / 12)
    assert track_scores([people(ids=ids())], [people(ids=ids())])["MOTA"] == 1
    json.dumps(scores)
    with pytest.raises(ValueError): track_scores(found[:2], truth)

def test_the_same_calls_give_the_same_ids(walk):
    rng = lambda: np.random.default_rng(3)
    twice = [follow([disturbed(poses, r) for poses in walk[:60]]) for r in (rng(), rng())]
    assert all((a.ids == b.ids).all() for a, b in zip(*twice))
