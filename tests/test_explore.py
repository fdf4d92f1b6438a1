"The explorer and the dashboard without a browser: controls are moved by assignment, buttons by `click()`."
import datetime, json, os, shutil
import cv2
import numpy as np
import pytest
from hrnet_nbdev.explore import explore
from hrnet_nbdev.explorer import Explorer, grouping_step, list_pictures, maps_to_view, same_people
from hrnet_nbdev.files import UserError
from hrnet_nbdev.grouping import match, top_k
from hrnet_nbdev.inference import PosePredictor
from hrnet_nbdev.synthetic import write_coco
from hrnet_nbdev.watch import RunWatch, Speed, run_text, step_images, view_run, watch_run

@pytest.fixture(scope="module")
def root(tmp_path_factory): return write_coco(tmp_path_factory.mktemp("pictures")/"coco", train=0, val=4, people=(2, 4), seed=108, workers=1)

@pytest.fixture(scope="module")
def predictor(): return PosePredictor()

@pytest.fixture
def widget(root, predictor): return explore(root, predictor)

@pytest.fixture
def passes(predictor):
    "Counts the network's forward passes."
    counted = []
    hook = predictor.model.register_forward_hook(lambda *_: counted.append(1))
    yield counted
    hook.remove()

def test_sliders_group_again_without_the_network(widget, passes):
    start = widget.image.value
    for name, values in dict(det_thr=(0.3, 1.0), tag_thr=(0.2, 3.0), score_thr=(0.0, 0.5)).items():
        for value in values: getattr(widget, name).value = value
    assert widget.explorer.predictor.grouping["tag_thr"] == 3.0 and widget.explorer.predictor.hiding["score_thr"] == 0.5
    assert "0 people" in widget.table.value and widget.image.value != start
    widget.reset.click()
    assert widget.image.value == start and not passes

def test_the_network_runs_once_for_each_way_to_look(widget, passes):
    widget.flip.value = True
    assert len(passes) == 1 and widget.explorer.poses.tags.shape[2] == 2
    widget.scales.value = (1, 2)
    assert len(passes) == 3
    seen = len(passes)
    widget.scales.value = (1,)
    widget.flip.value = False
    widget.flip.value = True
    assert len(passes) == seen  # all known from before
    widget.which.value = 1
    assert len(passes) == seen + 1 and widget.explorer.number == 1

def test_the_callers_predictor_stays_as_it_is(root, predictor):
    before = dict(predictor.grouping), dict(predictor.hiding), predictor.flip
    w = explore(root, predictor)
    w.det_thr.value, w.score_thr.value, w.flip.value = 0.9, 0.9, True
    assert (predictor.grouping, predictor.hiding, predictor.flip) == before

@pytest.mark.parametrize("settings", [{}, dict(det_thr=0.02), dict(tag_thr=0.1), dict(det_thr=0.3, tag_thr=5.0)])
def test_steps_equal_match(root, predictor, settings):
    for _, load in list_pictures(root):
        heatmaps, tags, _ = predictor.maps(load()[0])
        peaks, order, thr = top_k(heatmaps, tags, det_thr=settings.get("det_thr", 0.1)), list(predictor.schema.order), dict(det_thr=0.1, tag_thr=1.0) | settings
        steps = [grouping_step(peaks, n, order, **thr) for n in range(len(order))]
        assert len(steps[0].before) == 0
        for a, b in zip(steps, steps[1:]): np.testing.assert_array_equal(a.after, b.before)
        np.testing.assert_array_equal(steps[-1].after, match(*peaks, **thr, joint_order=order))
        for s in steps:  # every candidate ends where the step says, with its own value and tags
            np.testing.assert_array_equal(s.after[s.person, s.joint], s.candidates.astype(np.float32))
            assert len(set(s.person)) == len(s.person) and s.cost.shape == (len(s.candidates), len(s.before))

def test_stepper_goes_forth_and_back(widget):
    e, seen = widget.explorer, []
    widget.first.click()
    assert "nobody yet" in widget.table.value
    for k in range(1, len(e.order) + 1):
        widget.forth.click()
        seen.append(widget.image.value)
        assert f"{k} of 17" in widget.where.value and e.title(e.order[k - 1]) in widget.where.value
    widget.forth.click()
    assert e.step == 17
    for k in range(16, 0, -1):
        widget.back.click()
        assert widget.image.value == seen[k - 1]
    widget.leave.click()
    assert widget.where.value == "" and "people found" in widget.table.value

def test_click_takes_the_nearest_joint(widget):
    e = widget.explorer
    numbers = same_people(e.poses, e.everyone)
    for pose, number in zip(e.poses.keypoints, numbers):
        for k in (5, 11):
            if not pose[k, 2]: continue
            widget.do(e.click, *(pose[k, :2] * e.factor))
            joint, candidate = e.clicked
            there = e.places(e.peaks[1])
            sure = (e.peaks[2] >= e.predictor.hiding["joint_thr"])
            far = np.where(sure, np.hypot(*np.moveaxis(there - pose[k, :2] * e.factor, -1, 0)), np.inf)
            assert far[joint, candidate] == far.min() < e.factor
            if joint == k: assert e.current.person[candidate] == number
            assert f"You clicked the {e.title(joint)}" in widget.table.value
    widget.joint.value = 9
    widget.do(e.click, 0, 0)
    assert e.clicked[0] == 9  # only the chosen joint's
    widget.det_thr.value = 1.0
    assert e.clicked is None
    widget.do(e.click, 10, 10)
    assert e.clicked is None  # nothing there to click on

def test_clicks_of_the_browser_arrive(widget):
    e = widget.explorer
    x, y = e.poses.keypoints[0, 5, :2] * e.factor
    widget.events._dom_handlers({"type": "click", "dataX": int(x), "dataY": int(y)})
    assert e.clicked is not None and "You clicked" in widget.table.value

def test_layers(widget):
    widget.people.value = False
    pictures = []
    for layer in ("picture", "heatmap", "tags", "targets"):
        widget.layer.value = layer
        pictures.append(widget.image.value)
    widget.joint.value = 9
    pictures.append(widget.image.value)
    assert len(set(pictures)) == len(pictures)
    widget.reset.click()
    assert widget.joint.label == "all joints" and widget.explorer.joint is None and widget.explorer.layer == "picture"

@pytest.mark.parametrize("udp", [False, True])
def test_targets_lie_on_the_true_joints(root, predictor, udp):
    e = Explorer(PosePredictor(predictor.model, size=128, udp=udp), list_pictures(root))
    maps, resize = e.targets()
    for person in e.joints:
        x, y, v = person[9]
        if not v: continue
        shown = maps_to_view(maps[9].numpy(), resize, e.view, e.factor)
        assert shown[int(y * e.factor), int(x * e.factor)] > 0.8

def test_truth_needs_annotations(root, predictor):
    w = explore(sorted((root/"images"/"val2017").iterdir()), predictor)
    w.truth.value = True
    assert "annotated" in w.message.value
    w.truth.value = False
    assert w.message.value == ""

def test_uploads(widget):
    e, start = widget.explorer, widget.image.value
    file = lambda name, content: dict(name=name, type="image/jpeg", size=len(content), content=memoryview(content), last_modified=datetime.datetime(2026, 1, 1))
    good = cv2.imencode(".jpg", np.full((60, 90, 3), 128, np.uint8))[1].tobytes()
    widget.upload.value = (file("broken.jpg", good[:40]),)
    assert "broken.jpg cannot be read" in widget.message.value and "/" not in widget.message.value.split(">")[1].split("<")[0]
    assert widget.image.value == start and widget.which.value == 0
    widget.upload.value = (file("../../grey.jpg", good),)
    assert e.pictures[-1][0] == "grey.jpg" and widget.which.value == len(e.pictures) - 1
    assert "0 people" in widget.table.value and widget.message.value == ""

def test_other_folders(widget, root, tmp_path):
    start = widget.image.value
    for bad in (tmp_path/"nowhere", tmp_path):
        widget.path.value = str(bad)
        assert str(bad) in widget.message.value and widget.image.value == start
    (tmp_path/"torn.jpg").write_bytes(b"no picture")
    widget.path.value = str(tmp_path/"torn.jpg")
    assert "torn.jpg" in widget.message.value and widget.image.value == start and len(widget.which.options) == 4
    shutil.copy(next((root/"images"/"val2017").iterdir()), tmp_path/"a.jpg")
    widget.path.value = str(tmp_path/"a.jpg")
    assert len(widget.which.options) == 1 and "people found" in widget.table.value

def test_nothing_to_explore_is_a_sentence(tmp_path):
    assert "nowhere" in explore(tmp_path/"nowhere").value
    assert "none.safetensors" in explore(weights=str(tmp_path/"none.safetensors")).value

def test_unknown_setting(root, predictor):
    with pytest.raises(ValueError, match="no setting"): Explorer(predictor, list_pictures(root)).set(thr=1)

SETTINGS = dict(command="hrnet_train_pose", preset="tiny", steps=100, batch_size=4, lr=0.001, peak_lr=0.008)

@pytest.fixture
def run(tmp_path):
    "A run that is under way, and a function that lets it go on."
    folder = tmp_path/"pose"
    folder.mkdir()
    (folder/"config.json").write_text(json.dumps(dict(settings=SETTINGS)))
    def write(*records, torn="", at=None):
        with open(folder/"metrics.jsonl", "a") as f: f.write("".join(json.dumps(r) + "\n" for r in records) + torn)
        if at: os.utime(folder/"metrics.jsonl", (at, at))
    return folder, write

LINE = lambda step: dict(step=step, heatmap_1=1 / step, push=0.1, pull=0.2, loss=2 / step, lr=0.001)

def test_dashboard_follows_a_run(run):
    folder, write = run
    w = RunWatch(folder)
    assert w.look() and "step 0 of 100" in w.text.value
    write(LINE(20), at=1000)
    assert w.look()
    first = bytes(w.figure.value)
    assert first.startswith(b"\x89PNG") and w.bar.value == 0.2
    write(LINE(40), dict(step=40, AP=0.25), torn='{"step": 60, "heat', at=1010)  # half a line: being written just now
    assert w.look() and w.view.step == 40 and w.figure.value != first
    assert "best AP 0.250 at step 40" in w.text.value and "16 images/s" in w.text.value and "30 s left" in w.text.value
    (folder/"pictures").mkdir()
    (folder/"pictures"/"step_0000040.jpg").write_bytes(b"jpeg")
    assert w.look() and w.picture.value == b"jpeg" and "Step 40" in w.caption.value

def test_dashboard_ends_with_the_run(run):
    folder, write = run
    write(LINE(100))
    assert "last evaluation" in run_text(view_run(folder))
    w = watch_run(folder, every=0.02)
    assert w.thread.is_alive()
    write(dict(step=100, AP=0.5))
    w.thread.join(20)
    assert not w.thread.is_alive() and "finished" in w.text.value and w.button.disabled

def test_dashboard_stops_when_told(run):
    w = watch_run(run[0], every=60)
    w.button.click()
    w.thread.join(20)
    assert not w.thread.is_alive()

def test_dashboard_waits_for_a_run_and_notices_when_it_goes(run, tmp_path):
    folder, write = run
    w = RunWatch(tmp_path/"later")
    assert w.look() and "waiting for a training to begin" in w.text.value
    folder.rename(tmp_path/"later")
    assert w.look() and "step 0 of 100" in w.text.value
    shutil.rmtree(tmp_path/"later")
    assert not w.look() and "is gone" in w.text.value

def test_dashboard_of_a_classifier_and_of_silence(run):
    folder, write = run
    (folder/"config.json").write_text(json.dumps(dict(settings=dict(SETTINGS, command="hrnet_pretrain"))))
    write(dict(step=20, loss=2.0, train_top1=0.3, lr=0.1), dict(step=20, top1=0.4, top5=0.8), at=1000)
    view = view_run(folder)
    assert "best top1 0.400" in run_text(view) and "no news for" in run_text(view, now=5000) and "no news" not in run_text(view, now=1100)
    w = RunWatch(folder)
    assert w.look() and bytes(w.figure.value).startswith(b"\x89PNG")

def test_speed_forgets_what_a_resumed_run_takes_back(run):
    folder, write = run
    speed = Speed()
    for step, at in ((20, 1000), (40, 1010)):
        write(LINE(step), at=at)
        speed.note(view_run(folder))
    assert speed.steps_per_second == 2
    (folder/"metrics.jsonl").write_text(json.dumps(LINE(20)) + "\n")
    speed.note(view_run(folder))
    assert speed.steps_per_second is None
    assert step_images(SETTINGS) == 8

def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"): view_run(tmp_path)
    (tmp_path/"config.json").write_text("{}")
    with pytest.raises(UserError, match="what was to be run"): view_run(tmp_path)
