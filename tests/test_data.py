"""The COCO data set class, the augmentation and the targets on small folders made here, and on what users get wrong."""
import json, pickle
import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from hypothesis import given, settings, strategies as st
from pycocotools import mask as rle_tools
from scipy.stats import kstest
from hrnet_nbdev import annotations
from hrnet_nbdev.annotations import CROWDPOSE
from hrnet_nbdev.data import (COCO_SCHEMA, CocoPoses, TrainTransform, collate_poses, draw_heatmaps, gaussian_patch, ignore_mask,
                              normalize, read_schema, single_thread, tag_indices)
from hrnet_nbdev.files import UserError

COCO17 = dict(id=1, name="person", keypoints=list(COCO_SCHEMA.names), skeleton=[[a + 1, b + 1] for a, b in COCO_SCHEMA.limbs])

def person(number, image_id, joints, **fields):
    joints = np.asarray(joints, float)
    return dict(id=number, image_id=image_id, category_id=1, iscrowd=0, area=100., bbox=[0, 0, 10, 10], segmentation=[],
                num_keypoints=int((joints[:, 2] > 0).sum()), keypoints=joints.ravel().tolist()) | fields

def write_folder(root, category=COCO17, annotations=None, split="train2017"):
    "A COCO folder of three 80x60 pictures: two people in the first, one in the second, nobody in the third."
    rng, k = np.random.default_rng(0), len(category["keypoints"])
    joints = lambda: np.column_stack([rng.integers(5, 75, k), rng.integers(5, 55, k), np.arange(k) % 3])
    if annotations is None: annotations = [person(1, 7, joints()), person(2, 7, joints()), person(3, 5, joints())]
    images = [dict(id=i, file_name=f"{i:012d}.png", height=60, width=80) for i in (7, 5, 9)]
    (root/"annotations").mkdir(parents=True)
    (root/"images"/split).mkdir(parents=True)
    for im in images: cv2.imwrite(str(root/"images"/split/im["file_name"]), rng.integers(0, 255, (60, 80, 3), np.uint8))
    (root/f"annotations/person_keypoints_{split}.json").write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=[category])))
    return root

@pytest.fixture
def folder(tmp_path): return write_folder(tmp_path/"coco")

def edit(folder, change, name="annotations/person_keypoints_train2017.json"):
    content = json.loads((folder/name).read_text())
    change(content)
    (folder/name).write_text(json.dumps(content))

# ---- schema

def test_own_schema():
    "A category's own sigmas win; unknown parts and joints without a partner are allowed."
    schema = read_schema(dict(keypoints=["Tail", "paw_left", "paw_right", "left_fin"], sigmas=[1, 2, 3, 4]))
    assert schema.flip == (0, 2, 1, 3) and schema.sigmas == (1, 2, 3, 4) and schema.limbs == ()
    assert read_schema(dict(keypoints=["tail", "nose"])).sigmas == (.079, .026)

@pytest.mark.parametrize("category, says", [
    (dict(name="cat"), "'cat' names no key points"),
    (dict(name="p", keypoints=["a", "b"], skeleton=[[0, 1]]), "count its 2 key points from 1"),
    (dict(name="p", keypoints=["a", "b"], sigmas=[.1]), "2 key points but 1 sigmas")])
def test_bad_schema(category, says):
    with pytest.raises(UserError, match=says): read_schema(category)

# ---- the data set

def test_folder(folder):
    data = CocoPoses(folder, "train")
    assert data.split == "train2017" and data.ids == [7, 5] and len(data) == 2 and data.schema == COCO_SCHEMA
    raw = data.raw(0)
    assert raw["image"].shape == (60, 80, 3) and raw["image"].dtype == np.uint8 and raw["id"] == 7 and raw["ann_ids"] == [1, 2]
    assert raw["joints"].shape == (2, 17, 3) and raw["joints"].dtype == np.float32
    assert raw["mask"].shape == (60, 80) and raw["mask"].dtype == bool and raw["mask"].all()
    everything = CocoPoses(folder, "train2017", only_annotated=False)
    assert everything.ids == [7, 5, 9] and everything[2]["joints"].shape == (0, 17, 3)

def test_own_split_name(tmp_path):
    write_folder(tmp_path/"c", split="val")
    assert CocoPoses(tmp_path/"c", "val").split == "val"

def test_fields_left_out(folder):
    "Other people's files lack `iscrowd` and `num_keypoints`; the evaluator needs them."
    def strip(content):
        for a in content["annotations"]: del a["iscrowd"], a["num_keypoints"]
    edit(folder, strip)
    data = CocoPoses(folder, "train2017")
    assert [(a["iscrowd"], a["num_keypoints"]) for a in data.people(0)] == [(0, 11), (0, 11)]

def test_parts_agree(folder):
    "What is read without the picture is what `raw` gives, and what the dictionaries say."
    data = CocoPoses(folder, "train2017", only_annotated=False)
    for i, raw in enumerate(map(data.raw, range(3))):
        np.testing.assert_array_equal(data.joints(i), raw["joints"])
        np.testing.assert_array_equal(data.mask(i), raw["mask"])
        assert data.image_size(i) == raw["image"].shape[:2] and [a["id"] for a in data.people(i)] == data.ann_ids(i) == raw["ann_ids"]
        np.testing.assert_array_equal(np.reshape([a["keypoints"] for a in data.people(i)], (-1, 17, 3)), raw["joints"])
    assert data.category_id == 1 and data.has_truth

def test_exif_is_ignored(folder):
    "COCO's annotators saw the pictures as they are stored, so a note to turn them must not be obeyed."
    data, note = CocoPoses(folder, "train2017"), Image.Exif()
    note[0x0112] = 6
    before = data.raw(0)["image"]
    Image.fromarray(before).save(data.image_path(0), exif=note)
    assert Image.open(data.image_path(0)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(data.raw(0)["image"], before)

def test_list_of_pictures(folder):
    "COCO's test sets have no people; test-dev is a part of test, whose pictures it shares."
    images = json.loads((folder/"annotations/person_keypoints_train2017.json").read_text())["images"]
    with pytest.raises(UserError, match="image_info_test-dev2017.json is missing: unpack image_info_test2017"): CocoPoses(folder, "test-dev")
    (folder/"annotations/image_info_test-dev2017.json").write_text(json.dumps(dict(images=images[:2], categories=[dict(id=1, name="person")])))
    with pytest.raises(UserError, match="images/test2017 is missing: unpack test2017.zip"): CocoPoses(folder, "test-dev")
    (folder/"images/train2017").rename(folder/"images/test2017")
    data = CocoPoses(folder, "test-dev", only_annotated=False)
    assert not data.has_truth and data.split == "test-dev2017" and data.ids == [7, 5] and data.schema == COCO_SCHEMA
    assert data.raw(0)["joints"].shape == (0, 17, 3) and data.people(0) == [] and data.coco.cats[data.category_id]["keypoints"]
    with pytest.raises(UserError, match="annotates nobody"): CocoPoses(folder, "test-dev")

# ---- tables kept for the next start

@pytest.fixture
def keep(monkeypatch, tmp_path):
    "Tables of small files are kept, too, and the user's cache is a folder of ours."
    monkeypatch.setattr(annotations, "CACHE_FROM", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))

def forbid_building(monkeypatch):
    def build(file): raise AssertionError("read again")
    monkeypatch.setattr(annotations, "build_table", build)

def kept(folder): return sorted((folder/"annotations").glob(".*"))

def test_second_start_reads_table(folder, keep, monkeypatch):
    edit(folder, lambda c: c["annotations"].append(person(4, 5, np.zeros((17, 3)), segmentation=[[0, 0, 5, 0, 5, 5, 0, 5]])))
    monkeypatch.setattr(annotations, "CACHE_FROM", 1e9)
    plain = CocoPoses(folder, "train2017", only_annotated=False)
    monkeypatch.setattr(annotations, "CACHE_FROM", 0)
    assert kept(folder) == [] and plain.table.file == ""
    CocoPoses(folder, "train2017")
    forbid_building(monkeypatch)
    again = CocoPoses(folder, "train2017", only_annotated=False)
    assert len(kept(folder)) == 1 and again.ids == plain.ids and again.schema == plain.schema and not again.mask(1).all()
    for i in range(3):
        for a, b in zip(plain.raw(i).values(), again.raw(i).values()): np.testing.assert_array_equal(a, b)

def test_changed_file_is_read_again(folder, keep, monkeypatch):
    CocoPoses(folder, "train2017")
    edit(folder, lambda c: c["annotations"][0]["keypoints"].__setitem__(0, 11.0))
    edit(folder, lambda c: c["annotations"][0]["keypoints"].__setitem__(2, 2))
    assert CocoPoses(folder, "train2017").joints(0)[0, 0, [0, 2]].tolist() == [11, 2] and len(kept(folder)) == 1
    monkeypatch.setattr(annotations, "TABLE_VERSION", 99)
    CocoPoses(folder, "train2017")
    assert len(kept(folder)) == 1 and kept(folder)[0].stem.endswith("-99")

@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:50], lambda b: b[:-7], lambda b: b"x" * len(b), lambda b: b[:-40] + b"y" + b[-39:]])
def test_damaged_table_is_replaced(folder, keep, damage):
    whole = CocoPoses(folder, "train2017")
    file = kept(folder)[0]
    damaged = damage(file.read_bytes())
    file.unlink(); file.write_bytes(damaged)      # not in place: the first data set maps the old file
    np.testing.assert_array_equal(CocoPoses(folder, "train2017").joints(0), whole.joints(0))
    assert annotations.load_table(file)

def test_folder_that_is_read_only(folder, keep, monkeypatch, tmp_path):
    save = annotations.save_table
    def refuse(table, path):
        if path.parent == folder/"annotations" or refuse.all: raise PermissionError("read-only")
        save(table, path)
    refuse.all = True
    monkeypatch.setattr(annotations, "save_table", refuse)
    assert CocoPoses(folder, "train2017").table.file == ""                 # nowhere: works all the same
    refuse.all = False
    assert CocoPoses(folder, "train2017").table.file.startswith(str(tmp_path/"cache"))
    forbid_building(monkeypatch)
    assert len(CocoPoses(folder, "train2017").joints(0)) == 2 and kept(folder) == []

def test_spawned_process_gets_a_name(folder, keep):
    data = CocoPoses(folder, "train2017", TrainTransform(64))
    text = pickle.dumps(data.table)
    assert len(text) < 500 and b"safetensors" in text
    there = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(there.raw(1)["joints"], data.raw(1)["joints"])
    assert "coco" not in vars(data)                                        # training has no use for the dictionaries

def test_ignore_mask_kinds():
    "Crowds with plain and packed run lengths, and people without key points as polygons."
    box = np.zeros((60, 80), np.uint8, order="F")
    box[10:20, 30:50] = 1
    packed = rle_tools.encode(box)
    text = dict(size=[60, 80], counts=packed["counts"].decode())
    runs = dict(size=[60, 80], counts=[1810] + [10, 50] * 19 + [10, 1840])
    polygon = [[30, 10, 50, 10, 50, 20, 30, 20]]
    joints = np.zeros((17, 3))
    for fields in (dict(iscrowd=1, segmentation=text), dict(iscrowd=1, segmentation=runs), dict(segmentation=polygon),
                   dict(segmentation=text)):
        np.testing.assert_array_equal(ignore_mask([person(1, 7, joints, **fields)], 60, 80), box == 0)
    joints[0] = 1
    assert ignore_mask([person(1, 7, joints, segmentation=polygon)], 60, 80).all()      # someone with a joint counts
    two = [person(1, 7, joints * 0, segmentation=polygon + [[0, 0, 5, 0, 5, 5, 0, 5]]), person(2, 7, joints * 0)]
    assert (~ignore_mask(two, 60, 80)).sum() == 200 + 25

# ---- what users get wrong

def remove_images(f): [p.unlink() for p in sorted((f/"images/train2017").iterdir())[:2]]
def remove_folder(f): remove_images(f); [p.unlink() for p in (f/"images/train2017").iterdir()]; (f/"images/train2017").rmdir()
def captions(f): edit(f, lambda c: (c.pop("categories"), [a.pop("keypoints") for a in c["annotations"]]))
def instances(f): edit(f, lambda c: (c["categories"][0].pop("keypoints"), [a.pop("keypoints") for a in c["annotations"]]))
def cut_off(f): (p := f/"annotations/person_keypoints_train2017.json").write_text(p.read_text()[:500])

@pytest.mark.parametrize("spoil, says", [
    (remove_images, r"images/train2017 lacks 2 of the 3 annotated pictures, 000000000007.png|lacks 2 of the 3 .*000000000005.png"),
    (remove_folder, r"images/train2017 is missing: unpack train2017.zip"),
    (lambda f: (f/"annotations/person_keypoints_train2017.json").unlink(), "person_keypoints_train2017.json is missing: unpack"),
    (captions, "train2017.json holds no key points"),
    (instances, "train2017.json holds no key points"),
    (lambda f: (f/"annotations/person_keypoints_train2017.json").write_text("[1, 2]"), "holds no key points"),
    (cut_off, "not a valid key-point annotation file"),
    (lambda f: edit(f, lambda c: c["annotations"].clear()), "train2017.json annotates nobody"),
    (lambda f: edit(f, lambda c: c["categories"][0]["skeleton"].append([0, 3])), "train2017.json: the skeleton")])
def test_spoilt_folder(folder, spoil, says):
    spoil(folder)
    with pytest.raises(UserError, match=says): CocoPoses(folder, "train2017")

def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="nothing is not a folder"): CocoPoses(tmp_path/"nothing", "train2017")

def test_spoilt_pictures(folder):
    data = CocoPoses(folder, "train2017")
    data.image_path(0).write_bytes(data.image_path(0).read_bytes()[:40])
    with pytest.raises(UserError, match="000000000007.png cannot be read"): data[0]
    data.image_path(0).write_text("this is not a picture")
    with pytest.raises(UserError, match="000000000007.png cannot be read"): data[0]
    cv2.imwrite(str(data.image_path(0)), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(UserError, match="000000000007.png is 40x30 pixels, its annotation says 80x60"): data[0]
    data.image_path(0).unlink()
    with pytest.raises(UserError, match="000000000007.png is missing"): data[0]

def test_other_files_beside_pictures(folder):
    (folder/"images/train2017/notes.txt").write_text("not a picture, and nobody's business")
    assert CocoPoses(folder, "train2017")[0]["image"].shape == (60, 80, 3)

@pytest.mark.parametrize("change, says", [
    (lambda c: c["images"][1].pop("height"), "image 5 has no usable height"),
    (lambda c: c["images"][1].update(id="five"), "image five has no usable id"),
    (lambda c: c["annotations"][1].pop("image_id"), "annotation 2 has no usable image_id"),
    (lambda c: c["annotations"][1].update(num_keypoints=0, segmentation=[[1, 2]]), "segmentation of annotation 2 is neither"),
    (lambda c: c["annotations"][1].update(iscrowd=1, segmentation=dict(size=[6, 8], counts=[40, 8])), "not for a picture of 80x60")])
def test_damaged_records(folder, change, says):
    edit(folder, change)
    with pytest.raises(UserError, match=f"train2017.json: .*{says}"): CocoPoses(folder, "train2017")

def test_wrong_number_of_joints(folder):
    edit(folder, lambda c: c["annotations"][0]["keypoints"].pop())
    with pytest.raises(UserError, match="train2017.json: annotation 1 does not have 17 key points"): CocoPoses(folder, "train2017")

def test_crowd_without_joints(folder):
    "Crowds need no list of key points."
    edit(folder, lambda c: c["annotations"].append(dict(id=9, image_id=7, category_id=1, iscrowd=1, segmentation=[[0, 0, 5, 0, 5, 5]])))
    assert len(CocoPoses(folder, "train2017").raw(0)["joints"]) == 2

# ---- augmentation

def dots(size=192):
    "A black picture with a red, a green and a blue dot: the three joints of a person."
    joints = np.array([[[60, 50, 2], [140, 90, 1], [110, 150, 2]]], np.float32)
    image = np.zeros((size, size, 3), np.uint8)
    for k, (x, y, _) in enumerate(joints[0].astype(int)): image[y - 2:y + 3, x - 2:x + 3, k] = 255
    return dict(image=image, joints=joints, mask=np.ones((size, size), bool), id=1)

DOTS = read_schema(dict(keypoints=["left_a", "right_a", "b"]))

@pytest.mark.parametrize("flip", [0, 1])
def test_joints_stay_on_the_picture(flip):
    "After the transform every joint lies on the dot of its colour; mirrored, left_a is the dot that was right_a's."
    torch.manual_seed(0)
    transform = TrainTransform(256, DOTS, scale=(.9, 1.2), translation=5, flip=flip)
    for _ in range(8):
        item = transform(dots())
        colors = item["image"].double()[list(DOTS.flip) if flip else [0, 1, 2]]
        at = torch.arange(256.)
        middles = torch.stack([(colors.sum(axis) * at).sum(-1) / colors.sum((1, 2)) for axis in (1, 2)], -1).numpy()
        for level, stride in enumerate((4, 2)):
            joints = item["joints"][level][0].numpy()
            # mirrored maps: w - 1 - x at each size, so a map's pixel 0 is the input's pixel stride - 1
            np.testing.assert_allclose(joints[:, :2] * stride + [flip * (stride - 1), 0], middles, atol=0.2)
            assert joints[:, 2].tolist() == ([1, 2, 2] if flip else [2, 1, 2])

def test_left_and_right_change_places():
    torch.manual_seed(0)
    still = dict(rotation=0, scale=(1, 1), translation=0)
    plain, mirrored = (TrainTransform(192, DOTS, flip=f, **still)(dots())["joints"][1][0] for f in (0, 1))
    np.testing.assert_allclose(plain, dots()["joints"][0] / [2, 2, 1])
    np.testing.assert_allclose(mirrored[:, 0], 95 - plain[[1, 0, 2], 0])
    np.testing.assert_allclose(mirrored[:, 1:], plain[[1, 0, 2], 1:])

def test_mask_follows_picture():
    "Outside the picture nothing counts, and an ignored square lands where the picture's square lands."
    torch.manual_seed(3)
    raw = dots()
    raw["image"][:] = 255
    raw["image"][80:160, 40:120] = 0
    raw["mask"] = raw["image"][..., 0] > 0
    item = TrainTransform(256, DOTS, scale=(1.4, 1.5))(raw)
    small = cv2.resize(item["image"][0].numpy(), (64, 64), interpolation=cv2.INTER_AREA)
    assert item["masks"][0].shape == (64, 64) and item["masks"][1].shape == (128, 128) and item["masks"][0].dtype == torch.bool
    assert (item["masks"][0].numpy() != (small > 127)).mean() < 0.03
    assert 0.2 < item["masks"][0].float().mean() < 0.8

def test_placement_distribution():
    "Rotation, scale, flip uniform over their ranges; the shift in whole pixels, upper end left out (see test_golden_data)."
    affine = TrainTransform(512).affine
    affine.set_random_seed(0)
    drawn = [affine.get_params_dependent_on_data(dict(shape=(480, 640, 3)), {}) for _ in range(4000)]
    scale, rotation = (np.array([d[k] for d in drawn]) for k in ("scale", "rotation"))
    assert kstest(scale / 2.4, "uniform", (0.75, 0.75)).pvalue > 0.01
    assert kstest(rotation, "uniform", (-30, 60)).pvalue > 0.01
    assert abs(np.mean([d["mirrored"] for d in drawn]) - 0.5) < 0.03
    shift, reach = np.array([d["center"] - [320, 240] for d in drawn]), (40 * scale).astype(int)[:, None]
    assert (shift == shift.round()).all() and (shift >= -reach).all() and (shift < reach).all()
    for axis in range(2): assert kstest((shift[:, axis] + reach[:, 0] + 0.5) / (2 * reach[:, 0]), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(np.column_stack([scale, rotation, shift]).T) - np.eye(4)).max() < 0.05

@pytest.mark.parametrize("size", [0, -32, 100])
def test_bad_size(size):
    with pytest.raises(UserError, match="multiple of 32"): TrainTransform(size)

def test_settings_switch_off(folder):
    raw = CocoPoses(folder, "train2017").raw(0)
    a, b = (TrainTransform(64, rotation=0, scale=(1, 1), translation=0, flip=0)(raw) for _ in range(2))
    assert torch.equal(a["image"], b["image"])
    np.testing.assert_allclose(a["joints"][0][..., 0], (raw["joints"][..., 0] - 10) * 16 / 60, atol=1e-5)

def test_torch_seed_fixes_item(folder):
    raw = CocoPoses(folder, "train2017").raw(0)
    transform = TrainTransform(64, extra=(A.RandomBrightnessContrast(p=0.5), A.ToGray(p=0.5)))
    def items(seed): torch.manual_seed(seed); return [transform(raw) for _ in range(3)]
    a, b, c = items(1), items(1), items(2)
    assert all(torch.equal(x["image"], y["image"]) and torch.equal(x["joints"][0], y["joints"][0]) for x, y in zip(a, b))
    assert not torch.equal(a[0]["image"], c[0]["image"]) and not torch.equal(a[0]["image"], a[1]["image"])

def test_extras_draw_independently(folder):
    "Two transforms with probability 1/2 are both applied a quarter of the time, not always together."
    raw = CocoPoses(folder, "train2017").raw(0)
    transform = TrainTransform(32, extra=(A.InvertImg(p=0.5), A.ToGray(p=0.5)))
    torch.manual_seed(0)
    both = 0
    for _ in range(200):
        transform(raw)
        both += all(t.params for t in transform.compose.transforms[:2])
    assert 30 < both < 70

def test_extras_see_picture_masks_and_joints():
    still = dict(rotation=0, scale=(1, 1), translation=0, flip=0)
    raw = dots()
    raw["mask"][:96] = False
    turned = TrainTransform(192, DOTS, extra=(A.Rotate((180, 180), p=1),), **still)(raw)
    np.testing.assert_allclose(turned["joints"][1][0, :, :2], (191 - raw["joints"][0, :, :2]) / 2, atol=0.1)
    assert turned["masks"][1][:47].all() and not turned["masks"][1][49:].any()
    gone = TrainTransform(192, DOTS, extra=(A.CenterCrop(40, 40),), **still)(raw)      # joints outside stay in the list
    assert gone["joints"][0].shape == (1, 3, 3)

def test_nobody_and_batches(folder):
    data = CocoPoses(folder, "train2017", TrainTransform(64), only_annotated=False)
    batch = collate_poses([data[i] for i in (0, 1, 2)])
    assert batch["image"].shape == (3, 3, 64, 64) and batch["image"].dtype == torch.uint8 and batch["ids"].tolist() == [7, 5, 9]
    assert [j.shape for j in batch["joints"]] == [(3, 2, 17, 3)] * 2 and not batch["joints"][0][1, 1].any()
    assert [m.shape for m in batch["masks"]] == [(3, 16, 16), (3, 32, 32)]
    empty = collate_poses([data[2]])
    assert empty["joints"][0].shape == (1, 1, 17, 3) and not draw_heatmaps(empty["joints"][0], 16).any()
    assert normalize(batch["image"]).dtype == torch.float32

def test_workers_repeat(folder):
    "Two loader processes give the same batches for the same seed."
    data = CocoPoses(folder, "train2017", TrainTransform(64))
    def run():
        torch.manual_seed(5)
        loader = torch.utils.data.DataLoader(data, 1, shuffle=True, num_workers=2, collate_fn=collate_poses, worker_init_fn=single_thread)
        return [b["image"] for b in loader]
    assert all(torch.equal(a, b) for a, b in zip(run(), run()))

# ---- targets

def drawn_one_by_one(joints, size, sigma):
    "The definition, joint by joint: the oracle of the vectorised function."
    h, w = size
    maps = np.zeros((joints.shape[1], h, w), np.float32)
    d = np.arange(0, 6 * sigma + 3) - 3 * sigma - 1
    patch = np.exp(-(d[:, None]**2 + d**2) / (2 * sigma**2)).astype(np.float32)
    for p in joints:
        for k, (x, y, v) in enumerate(p):
            x, y = int(x), int(y)
            if v <= 0 or not (0 <= x < w and 0 <= y < h): continue
            left, top = int(np.round(x - 3 * sigma - 1)), int(np.round(y - 3 * sigma - 1))
            right, bottom = int(np.round(x + 3 * sigma + 2)), int(np.round(y + 3 * sigma + 2))
            for row in range(max(0, top), min(bottom, h)):
                for col in range(max(0, left), min(right, w)):
                    maps[k, row, col] = max(maps[k, row, col], patch[row - top, col - left])
    return maps

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 1.1]), st.integers(9, 40), st.integers(9, 40))
def test_heatmaps_equal_loop(seed, sigma, h, w):
    rng = np.random.default_rng(seed)
    people = rng.integers(0, 5)
    joints = np.concatenate([rng.uniform(-4, 44, (people, 3, 2)), rng.integers(0, 3, (people, 3, 1))], 2).astype(np.float32)
    maps = draw_heatmaps(torch.from_numpy(joints)[None], (h, w), sigma)[0].numpy()
    np.testing.assert_array_equal(maps, drawn_one_by_one(joints, (h, w), sigma))

def test_batched_targets_equal_single():
    rng = torch.Generator().manual_seed(0)
    joints = torch.rand(3, 4, 17, 3, generator=rng) * torch.tensor([70., 70, 2])
    assert torch.equal(draw_heatmaps(joints, 64), torch.cat([draw_heatmaps(j[None], 64) for j in joints]))
    assert torch.equal(tag_indices(joints, 64), torch.cat([tag_indices(j[None], 64) for j in joints]))

def test_tag_indices_by_hand():
    joints = torch.tensor([[[[1., 2, 0], [3.9, 1.2, 2], [9, 0, 2]], [[-.5, 0, 1], [0, -1, 2], [2, 2, 2]]]])   # map 4 high, 8 wide
    assert tag_indices(joints, (4, 8)).tolist() == [[[[32 + 8 + 3, 1], [0, 0], [0, 0]], [[0, 1], [64 + 18, 1], [0, 0]]]]

@pytest.mark.parametrize("sigma", [0.5, 1, 1.5, 2, 2.5, 3])
def test_gaussian_patch(sigma):
    patch = gaussian_patch(sigma)
    assert patch.shape[0] == patch.shape[1] == 6 * sigma + 3 and torch.equal(patch, patch.T) and torch.equal(patch, patch.flip(0))
    assert (patch.max() == 1) == (3 * sigma % 1 == 0)

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_targets_on_gpu():
    joints = torch.rand(4, 40, 17, 3) * torch.tensor([140., 140, 2]) - torch.tensor([5., 5, 0])
    for size, sigma in ((128, 2.), (96, 1.5)):
        assert torch.equal(draw_heatmaps(joints.cuda(), size, sigma).cpu(), draw_heatmaps(joints, size, sigma))
        assert torch.equal(tag_indices(joints.cuda(), size).cpu(), tag_indices(joints, size))
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(normalize(images.cuda()).cpu(), normalize(images))
