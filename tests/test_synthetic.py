"""The synthetic data sets: COCO's format and honesty, determinism, the folder's manners, the command."""
import contextlib, hashlib, io, json, subprocess, sys
from collections import Counter
from pathlib import Path
import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings, strategies as st
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from hrnet_nbdev import people, synthetic
from hrnet_nbdev.data import COCO_SCHEMA, CocoPoses, read_schema
from hrnet_nbdev.files import UserError, read_image
from hrnet_nbdev.synthetic import draw_class, draw_scene, write_coco, write_imagenet

def fingerprint(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).rglob("*") if p.is_file()}

def load(root, split):
    with contextlib.redirect_stdout(io.StringIO()): return COCO(root/f"annotations/person_keypoints_{split}2017.json")

@pytest.fixture(scope="module")
def folder(tmp_path_factory): return write_coco(tmp_path_factory.mktemp("set")/"coco", 60, 60, size=160, seed=1, workers=1)

@pytest.fixture(scope="module")
def records(folder): return [load(folder, split).dataset for split in ("train", "val")]

# COCO's format

def test_fields_and_types_are_cocos(records):
    for data in records:
        assert set(data) == {"info", "licenses", "images", "annotations", "categories"}
        for image in data["images"]:
            assert set(image) == {"license", "file_name", "coco_url", "height", "width", "date_captured", "flickr_url", "id"}
            assert image["file_name"] == f"{image['id']:012d}.jpg" and image["license"] == data["licenses"][0]["id"]
        for a in data["annotations"]:
            assert set(a) == {"segmentation", "num_keypoints", "area", "iscrowd", "keypoints", "image_id", "bbox", "category_id", "id"}
            assert isinstance(a["id"], int) and isinstance(a["area"], float) and a["area"] > 0 and a["iscrowd"] in (0, 1)
            assert all(isinstance(v, int) and v in (0, 1, 2) for v in a["keypoints"][2::3]) and len(a["keypoints"]) == 51

def test_ids_are_unique_over_both_splits(records):
    for what in ("images", "annotations"):
        ids = [r["id"] for data in records for r in data[what]]
        assert len(ids) == len(set(ids)) and min(ids) > 0

def test_category_is_cocos():
    schema = read_schema(synthetic.CATEGORY)
    assert (schema.names, schema.flip, schema.limbs) == (COCO_SCHEMA.names, COCO_SCHEMA.flip, COCO_SCHEMA.limbs)

def test_keypoints_lie_in_the_picture_and_are_counted(records):
    for data in records:
        size = {i["id"]: (i["width"], i["height"]) for i in data["images"]}
        for a in data["annotations"]:
            joints = np.reshape(a["keypoints"], (17, 3))
            w, h = size[a["image_id"]]
            assert a["num_keypoints"] == (joints[:, 2] > 0).sum()
            assert (joints[joints[:, 2] == 0] == 0).all()
            assert (joints[:, :2] >= 0).all() and (joints[:, :2] <= (w - 1, h - 1)).all()

def test_regions_boxes_and_areas_agree(folder):
    coco, ious = load(folder, "val"), []
    for a in coco.dataset["annotations"]:
        mask = coco.annToMask(a)
        if a["iscrowd"]: assert mask.sum() == a["area"] and cv2.boundingRect(mask) == tuple(a["bbox"])
        else: ious.append(rle_tools.iou([a["bbox"]], [list(map(float, cv2.boundingRect(mask)))], [0])[0, 0])
        assert a["area"] <= a["bbox"][2]*a["bbox"][3]
    assert np.median(ious) > .9

def test_pictures_have_the_stated_size(folder, records):
    for split, data in zip(("train", "val"), records):
        for image in data["images"][:10]:
            h, w, _ = read_image(folder/f"images/{split}2017"/image["file_name"]).shape
            assert (h, w) == (image["height"], image["width"]) and max(h, w) == 160 and min(h, w) >= 119

def test_truth_scores_one_by_the_official_evaluator(folder):
    for split in ("train", "val"):
        coco = load(folder, split)
        results = [dict(image_id=a["image_id"], category_id=1, keypoints=a["keypoints"], score=.5 + a["id"] % 7/20)
                   for a in coco.dataset["annotations"] if a["num_keypoints"]]
        with contextlib.redirect_stdout(io.StringIO()):
            judge = COCOeval(coco, coco.loadRes(results), "keypoints")
            judge.evaluate(), judge.accumulate(), judge.summarize()
        assert len(results) > 50 and judge.stats[0] == 1 and set(judge.stats) <= {1, -1}   # -1: nobody is large in pictures so small

def test_our_own_data_set_reads_it(folder):
    data = CocoPoses(folder, "val")
    masked = 0
    for i in range(len(data)):
        raw = data.raw(i)
        assert raw["joints"].shape[1:] == (17, 3) and raw["mask"].shape == raw["image"].shape[:2]
        masked += not raw["mask"].all()
    assert len(data) > 45 and masked > 0   # crowds and people without key points are kept out of the loss

# honesty

def test_all_of_cocos_special_cases_occur():
    cases = Counter()
    for i in range(150):
        _, found = draw_scene((5, i, 0), 96)
        cases.update(nobody=not found, crowd=any(a["iscrowd"] for a in found), several=sum(a["num_keypoints"] > 0 for a in found) >= 3,
                     unmarked=any(not a["num_keypoints"] and not a["iscrowd"] for a in found))
        cases.update(f"v{v}" for a in found if a["num_keypoints"] for v in a["keypoints"][2::3])
    assert min(cases[k] for k in ("nobody", "crowd", "unmarked")) >= 4 and cases["several"] > 50
    shares = np.array([cases[f"v{v}"] for v in (0, 1, 2)])/sum(cases[f"v{v}"] for v in (0, 1, 2))
    assert shares[0] < .15 and .15 < shares[1] < .4 and shares[2] > .5

@pytest.mark.parametrize("number", range(6))
def test_the_others_can_only_hide_joints(number):
    canvas, actors = synthetic.render_scene(np.random.default_rng((8, number)), 160, (2, 5))
    for owner, (fig, silhouette) in enumerate(actors, 1):
        alone = people.Canvas(np.zeros_like(canvas.rgb))
        people.draw_person(alone, fig, owner)
        before, after = (people.person_keypoints(c, fig, owner, 2) for c in (alone, canvas))
        assert (alone.owner == owner).sum() == silhouette >= (canvas.owner == owner).sum()
        assert (before[:, :2] == after[:, :2]).all() and (after[:, 2] <= before[:, 2]).all()
        nearest = owner == len(actors) and not (canvas.owner == synthetic.OCCLUDER).any()
        if nearest: assert (before == after).all()   # nobody is in front of the one painted last

def test_a_visible_joint_shows_its_own_person():
    for i in range(20):
        canvas, actors = synthetic.render_scene(np.random.default_rng((9, i)), 160, (1, 5))
        for owner, (fig, _) in enumerate(actors, 1):
            for x, y, v in people.person_keypoints(canvas, fig, owner, 2):
                if v == 2: assert canvas.owner[int(round(2*y + .5)), int(round(2*x + .5))] == owner

@given(st.integers(0, 10**6), st.floats(-180, 180))
@settings(max_examples=60, deadline=None)
def test_bones_keep_their_length_and_angles_their_limits(seed, yaw):
    person = people.sample_person(np.random.default_rng(seed))
    for name, degrees in person["angle"].items():
        low, high = people.LIMITS[name.split("_")[-1]]
        assert low <= degrees <= high
    points, length = people.body_points(person["angle"], person["length"]), person["length"]
    for side in people.SIDES:
        for bone, a, b in (("thigh", "hip", "knee"), ("shin", "knee", "ankle"), ("upper_arm", "shoulder", "elbow"), ("forearm", "elbow", "wrist")):
            assert np.isclose(np.linalg.norm(points[f"{side}_{a}"] - points[f"{side}_{b}"]), length[bone])
    fig = people.project_person(person | dict(yaw=yaw), 100, 0)
    assert np.isclose(np.hypot(*(fig.xy["left_hip"] - fig.xy["right_hip"])), abs(np.cos(np.radians(yaw)))*200*length["hip"])

def test_sides_swap_when_a_person_turns_round():
    person = people.sample_person(np.random.default_rng(0)) | dict(roll=0.)
    angle = dict.fromkeys(person["angle"], 0.)
    for yaw, sign in ((0., 1), (20., 1), (160., -1), (180., -1)):
        xy = people.project_person(person | dict(yaw=yaw, angle=angle), 100, 0).xy
        for joint in ("eye", "ear", "shoulder", "hip", "ankle"):
            assert sign*(xy[f"left_{joint}"][0] - xy[f"right_{joint}"][0]) > 0

@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_run_lengths_agree_with_pycocotools(h, w, seed):
    mask = np.random.default_rng(seed).random((h, w)) < .5
    rle = synthetic.mask_to_rle(mask)
    assert (rle_tools.decode(rle_tools.frPyObjects(rle, h, w)).astype(bool) == mask).all() and rle["size"] == [h, w]

# determinism

def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    one = write_coco(tmp_path/"a", 6, 3, size=64, workers=1)
    two = write_coco(tmp_path/"b", 6, 3, size=64, workers=2)
    assert fingerprint(one) == fingerprint(two)

def test_splits_and_seeds_share_no_picture(tmp_path):
    roots = [write_coco(tmp_path/str(s), 12, 12, size=64, seed=s, workers=1) for s in (0, 1)]
    pictures = [h for r in roots for name, h in fingerprint(r).items() if name.endswith(".jpg")]
    assert len(pictures) == 48 == len(set(pictures))

def test_more_pictures_begin_with_the_same_ones(tmp_path):
    few, many = (fingerprint(write_coco(tmp_path/str(n), n, 0, size=64, workers=1)) for n in (2, 4))
    assert {k for k in few if k.endswith(".jpg")} < set(many) and all(many[k] == h for k, h in few.items() if k.endswith(".jpg"))

@pytest.mark.parametrize("people_range", [(0, 0), (1, 1), (6, 6)])
def test_number_of_people(people_range):
    for i in range(6):
        canvas, actors = synthetic.render_scene(np.random.default_rng(i), 96, people_range)
        assert len(actors) == people_range[0] and (people_range[1] or not draw_scene(i, 96, people_range)[1])

# the folder's manners

def test_complete_folder_is_returned_at_once(folder):
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert write_coco(folder, 60, 60, size=160, seed=1) == folder
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}

def test_interrupted_and_older_folders_are_drawn_again(tmp_path):
    root = write_coco(tmp_path/"coco", 3, 2, size=64, workers=1)
    good, card = fingerprint(root), root/"synthetic.json"
    settings_ = json.loads(card.read_text())
    (root/"annotations/person_keypoints_val2017.json").unlink()            # killed before the end
    card.write_text(json.dumps(settings_ | dict(complete=False)))
    (root/"images/train2017/.000000000001.4242.tmp.jpg").touch()           # what a kill leaves behind
    assert fingerprint(write_coco(root, 3, 2, size=64, workers=1)) == good
    next(root.glob("images/val2017/*.jpg")).write_bytes(b"of another version")
    card.write_text(json.dumps(settings_ | dict(version=0)))
    assert fingerprint(write_coco(root, 3, 2, size=64, workers=1)) == good

def test_an_interrupt_in_the_middle_leaves_a_folder_that_can_be_finished(tmp_path, monkeypatch):
    draw, calls = synthetic.draw_scene, []
    def stops(*args):
        if len(calls) == 2: raise KeyboardInterrupt
        calls.append(args)
        return draw(*args)
    monkeypatch.setattr(synthetic, "draw_scene", stops)
    with pytest.raises(KeyboardInterrupt): write_coco(tmp_path/"coco", 4, 1, size=64, workers=1)
    assert not (tmp_path/"coco/annotations").exists()                      # no annotation file without its pictures
    monkeypatch.undo()
    write_coco(tmp_path/"coco", 4, 1, size=64, workers=1)
    assert fingerprint(tmp_path/"coco") == fingerprint(write_coco(tmp_path/"other", 4, 1, size=64, workers=1))

@pytest.mark.parametrize("write", [write_coco, write_imagenet])
def test_other_data_is_never_touched(write, tmp_path):
    real = tmp_path/"COCO"
    (real/"annotations").mkdir(parents=True)
    (real/"annotations/person_keypoints_train2017.json").write_text("precious")
    before = fingerprint(real)
    with pytest.raises(UserError, match="COCO holds other data"): write(real, 2, 1)
    assert fingerprint(real) == before
    with pytest.raises(UserError, match="is a file"): write(real/"annotations/person_keypoints_train2017.json", 2, 1)

def test_other_settings_are_refused(tmp_path):
    root = write_imagenet(tmp_path/"set", 1, 1, size=32, workers=1)
    before = fingerprint(root)
    for again in (lambda: write_imagenet(root, 2, 1, size=32), lambda: write_coco(root, 1, 1, size=32)):
        with pytest.raises(UserError, match="other settings"): again()
    assert fingerprint(root) == before

@pytest.mark.parametrize("wrong", [dict(train=-1), dict(val=-5), dict(size=0), dict(seed=-1), dict(workers=0), dict(people=(3, 1)), dict(people=(-1, 1))])
def test_numbers_that_make_no_sense(wrong, tmp_path):
    with pytest.raises(UserError, match=next(iter(wrong))): write_coco(tmp_path/"new", **wrong)
    assert not (tmp_path/"new").exists()

# the classes

def test_imagenet_folder(tmp_path):
    root = write_imagenet(tmp_path/"in", train=3, val=2, size=40, workers=1)
    labels = yaml.safe_load((root/"wordnet_labels.yaml").read_text())
    folders = sorted(p.name for p in (root/"train").iterdir())
    assert [l["wnid"] for l in labels] == folders == sorted(p.name for p in (root/"val").iterdir())
    assert [l["index"] for l in labels] == list(range(10)) and len({l["name"] for l in labels}) == 10
    for split, n in (("train", 3), ("val", 2)):
        for wnid in folders: assert len(list((root/split/wnid).glob("*.JPEG"))) == n
    assert read_image(next(root.glob("val/*/*.JPEG"))).shape == (40, 40, 3)
    assert len(set(fingerprint(root/"train").values()) | set(fingerprint(root/"val").values())) == 50

def nearest_centroid(features):
    "Accuracy of the nearest class mean; features(split, label, i) -> vector, 30 to learn from and 20 to test per class."
    x = [np.array([[features(split, k, i) for i in range(n)] for k in range(10)]) for split, n in ((0, 30), (1, 20))]
    d = np.linalg.norm(x[1][:, :, None] - x[0].mean(1), axis=-1)
    return (d.argmin(-1) == np.arange(10)[:, None]).mean()

def test_mean_colour_does_not_tell_the_classes_but_shape_does():
    picture = lambda split, k, i: draw_class((6, split, 1000*k + i), k, 48)
    colour = lambda *a: picture(*a).mean((0, 1))
    def spectrum(*a):
        "How much detail at which scale: the radial mean of the Fourier magnitudes, blind to colour, place and turn."
        f = np.abs(np.fft.fftshift(np.fft.fft2(picture(*a).mean(-1))))
        r = np.hypot(*np.mgrid[-24:24, -24:24]).astype(int)
        profile = np.log(np.bincount(r.ravel(), f.ravel())/np.bincount(r.ravel()))[1:24]
        return profile - profile.mean()
    assert nearest_centroid(colour) < .2      # chance is 0.1
    assert nearest_centroid(spectrum) > .22

# the command

def command(*args):
    return subprocess.run([sys.executable, "-m", "hrnet_nbdev.synthetic", *map(str, args)], capture_output=True, text=True, timeout=120)

def test_command_writes_both_sets(tmp_path):
    done = command(tmp_path, "--train", 2, "--val", 1, "--size", 64, "--class_train", 1, "--class_val", 1, "--class_size", 32, "--most", 2, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path/"coco"), str(tmp_path/"imagenet")]
    assert len(list(tmp_path.glob("coco/images/train2017/*.jpg"))) == 2 and len(list(tmp_path.glob("imagenet/val/*/*.JPEG"))) == 10

def test_command_says_what_is_wrong(tmp_path):
    (tmp_path/"coco").mkdir()
    (tmp_path/"coco/holiday.jpg").touch()
    for args, said in (((tmp_path,), "holds other data"), ((tmp_path/"new", "--train", -1), "train is -1")):
        done = command(*args)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
