"""Geometry, masks, training items and targets against the stored figures of the reference (tests/golden)."""
import json
from pathlib import Path
import cv2
import numpy as np
import pytest
import torch
from hrnet_nbdev.data import (CocoPoses, TrainTransform, affine_matrix, draw_heatmaps, gaussian_patch, normalize, tag_indices)

GOLDEN = Path(__file__).parent/"golden"
COCO_MINI = Path(__file__).parents[2]/"shared/coco_mini"
ITEMS = range(4)
TARGETS = np.load(GOLDEN/"targets.npz")
CASES = [k[:-len(".joints")] for k in TARGETS.files if k.endswith(".joints")]

@pytest.fixture(scope="module")
def mini():
    if not COCO_MINI.is_dir(): pytest.skip("needs ../shared/coco_mini")
    return CocoPoses(COCO_MINI, "train2017")

@pytest.fixture(scope="module")
def items(): return np.load(GOLDEN/"coco_train_items.npz")

def sparse(z, key):
    "A heatmap stored as differences of indices, and values."
    maps = np.zeros(np.prod(z[f"{key}.shape"]), np.float32)
    maps[np.cumsum(z[f"{key}.idx"])] = z[f"{key}.val"]
    return maps.reshape(z[f"{key}.shape"])

def bits(packed, shape): return np.unpackbits(packed)[:np.prod(shape)].reshape(shape).astype(bool)

def opencv_key(key): return key if int(cv2.__version__.split(".")[0]) >= 5 else f"{key}.opencv4.11"

# ---- geometry

@pytest.mark.parametrize("case", json.loads((GOLDEN/"geometry.json").read_text())["train_affine"])
def test_train_affine(case):
    matrix = affine_matrix(case["center"], case["scale"], case["res"], case["rot"])
    np.testing.assert_allclose(matrix, case["matrix"], rtol=1e-12, atol=1e-11)
    joints = np.array(case["joints"]) @ matrix[:2, :2].T + matrix[:2, 2]
    np.testing.assert_allclose(joints, case["joints_out"], rtol=1e-12, atol=1e-10)

@pytest.mark.parametrize("n", ITEMS)
def test_item_matrices(items, n):
    center, scale, rot = (items[f"{n}.{k}"] for k in ("center", "scale", "rot"))
    for size, matrix in zip((128, 256, 512), items[f"{n}.matrices"]):
        np.testing.assert_allclose(affine_matrix(center, float(scale), size, float(rot)), matrix, rtol=1e-12, atol=1e-11)

# ---- COCO pictures: joints, masks, complete items

def test_masks_and_joints(mini):
    z = np.load(GOLDEN/"coco_train_masks_joints.npz")
    assert mini.ids == z["image_ids"].tolist()
    for i, (image_id, masked) in enumerate(zip(mini.ids, z["n_masked_pixels"])):
        raw = mini.raw(i)
        np.testing.assert_array_equal(raw["joints"], z[f"{image_id}.joints"])
        assert raw["joints"].dtype == np.float32 and raw["ann_ids"] == z[f"{image_id}.ann_ids"].tolist()
        assert (~raw["mask"]).sum() == masked
        if masked: np.testing.assert_array_equal(raw["mask"], bits(z[f"{image_id}.mask"], z[f"{image_id}.shape"]))

@pytest.mark.parametrize("n", ITEMS)
def test_complete_item(mini, items, n):
    transform = TrainTransform(512, mini.schema)
    placement = {k: items[f"{n}.{g}"] for k, g in (("center", "center"), ("scale", "scale"), ("rotation", "rot"), ("mirrored", "flip"))}
    transform.affine.get_params_dependent_on_data = lambda params, data: placement
    item = transform(mini.raw(mini.ids.index(int(items[f"{n}.image_id"]))))
    image = normalize(item["image"])
    stats = [image.double().mean(), image.double().std(correction=0), image.abs().max()]
    np.testing.assert_allclose(stats, items[opencv_key(f"{n}.image.stats")], atol=1e-5)
    # uint8 pictures are equal bit for bit, so only the rounding of the normalisation is left
    np.testing.assert_allclose(image[:, ::8, ::8], items[opencv_key(f"{n}.image.sub")], atol=1e-6)
    for level, size in enumerate((128, 256)):
        np.testing.assert_array_equal(item["masks"][level], bits(items[opencv_key(f"{n}.mask{level}")], items[f"{n}.mask{level}.shape"]))
        joints = item["joints"][level][None]
        found = tag_indices(joints, size)[0].numpy()
        np.testing.assert_array_equal(found, items[f"{n}.joints{level}"][:len(found)])
        assert not items[f"{n}.joints{level}"][len(found):].any()
        np.testing.assert_allclose(draw_heatmaps(joints, size)[0], sparse(items, f"{n}.heatmaps{level}"), atol=1e-7)

# ---- targets

@pytest.mark.parametrize("case", CASES)
def test_targets(case):
    group = case.split(".")[0]
    size, sigma = int(TARGETS[f"{group}.res"]), float(TARGETS[f"{group}.sigma"])
    patch = TARGETS[f"{group}.patch"]
    np.testing.assert_allclose(gaussian_patch(sigma), patch[:len(gaussian_patch(sigma)), :len(gaussian_patch(sigma))], rtol=1e-6)
    joints = torch.from_numpy(TARGETS[f"{case}.joints"])[None].float()
    maps = draw_heatmaps(joints, size, sigma)[0].numpy()
    if f"{case}.heatmaps.idx" in TARGETS: np.testing.assert_array_equal(maps, sparse(TARGETS, f"{case}.heatmaps"))
    np.testing.assert_allclose(maps.astype(np.float64).sum((1, 2)), TARGETS[f"{case}.hm_sum"], rtol=1e-12)
    np.testing.assert_array_equal(maps.max((1, 2)), TARGETS[f"{case}.hm_max"])
    np.testing.assert_array_equal((maps != 0).sum((1, 2)), TARGETS[f"{case}.hm_nonzero"])
    np.testing.assert_array_equal(maps.reshape(17, -1).argmax(1), TARGETS[f"{case}.hm_argmax"])
    for key, per_joint in (("joints_tpj", True), ("joints_shared", False)):
        found, stored = tag_indices(joints, size, per_joint)[0].numpy(), TARGETS[f"{case}.{key}"]
        np.testing.assert_array_equal(found, stored[:len(found)])
        assert not stored[len(found):].any()

def test_more_than_thirty_people():
    "The reference raises IndexError for 31 people; ours has no such limit."
    assert str(TARGETS["over30_error"]) == "IndexError"
    joints = torch.full((1, 40, 17, 3), 2.) * torch.arange(40)[:, None, None]
    assert draw_heatmaps(joints, 128).shape == (1, 17, 128, 128)
    found = tag_indices(joints, 128)
    assert found.shape == (1, 40, 17, 2) and found[0, 39, 0].tolist() == [78 * 128 + 78, 1]

# ---- the random placement

@pytest.mark.parametrize("n", ITEMS)
def test_draws_give_placement(mini, items, n):
    "The stored random calls, read as our description of the distribution, give the stored placement."
    (_, for_scale), (_, for_rotation), (_, dx, low, high), (_, dy, _, _), (_, for_flip) = json.loads(str(items[f"{n}.draws"]))
    size = mini.coco.imgs[int(items[f"{n}.image_id"])]
    scale = min(size["height"], size["width"]) / 200 * (0.75 + for_scale * 0.75)
    assert scale == pytest.approx(float(items[f"{n}.scale"]), rel=1e-12)
    assert (2 * for_rotation - 1) * 30 == pytest.approx(float(items[f"{n}.rot"]), rel=1e-12)
    assert high == -low == pytest.approx(40 * scale)
    np.testing.assert_array_equal(items[f"{n}.center"], [size["width"] / 2 + dx, size["height"] / 2 + dy])
    assert bool(items[f"{n}.flip"]) == (for_flip < 0.5)
    # the same numbers from the same seed: whole pixels, the upper end left out
    np.random.seed(int(items[f"{n}.seed"]))
    np.random.random(2)
    assert [np.random.randint(-int(high), int(high)) for _ in range(2)] == [dx, dy]
