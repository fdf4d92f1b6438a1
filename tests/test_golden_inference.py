"""Test-time geometry and whole inference against the stored figures of the reference (tests/golden)."""
import json, zlib
from pathlib import Path
import cv2
import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, golden_state
from hrnet_nbdev.coco_eval import (Resize, affine_to_resized, multi_scale_size, predict_maps, resize_image, scale_maps,
                                   to_image_px)
from hrnet_nbdev.data import COCO_SCHEMA, normalize
from hrnet_nbdev.files import read_image
from hrnet_nbdev.grouping import group
from hrnet_nbdev.higherhrnet import HigherHRNet

PICTURES = Path(__file__).parents[2]/"shared/coco_mini/images"
GEOMETRY = json.loads((GOLDEN/"geometry.json").read_text())
FILES = sorted(GOLDEN.glob("inference_*.npz"))
MODES = ("single", "multi")

# ---- geometry

def test_multi_scale_sizes():
    for row in GEOMETRY["multi_scale"]:
        got = multi_scale_size(row["w"], row["h"], row["input_size"], row["factor"], row["min_factor"])
        assert (got.size, list(got.center)) == ((row["resized_w"], row["resized_h"]), row["center"])
        np.testing.assert_allclose(got.scale, row["scale"], rtol=1e-14)
        # the reference computes its matrices from float32 corner points
        np.testing.assert_allclose(affine_to_resized(got), row["matrix"], atol=1e-4)
        np.testing.assert_allclose(affine_to_resized(got, inverse=True), row["inverse"], atol=1e-4)

def test_single_scale_size_is_multi_scale_with_one_factor():
    for row in GEOMETRY["single_resize"]:
        got = multi_scale_size(row["w"], row["h"], row["input_size"])
        assert (got.size, list(got.center)) == ((row["resized_w"], row["resized_h"]), row["center"])
        np.testing.assert_allclose(got.scale, row["scale"], rtol=1e-14)

def test_projection_back():
    for row in GEOMETRY["transform_preds"]:
        resize = Resize(tuple(row["heatmap_size"]), tuple(row["center"]), tuple(row["scale"]))
        got = to_image_px(np.array(row["coords"], np.float32)[None], resize)[0]
        np.testing.assert_allclose(got, np.array(row["result"], np.float32), rtol=1e-6, atol=1e-4)

# ---- whole inference

@pytest.fixture(scope="module")
def weights(): return {}

@pytest.fixture(scope="module", params=[(f, m) for f in FILES for m in MODES], ids=lambda p: f"{p[0].stem[10:]}-{p[1]}")
def case(request, weights):
    "Stored figures, their prefix, and the golden model with the stored change of its last layers."
    file, mode = request.param
    z = np.load(file)
    model = weights.setdefault("model", HigherHRNet())
    state = weights.setdefault(str(z["salt"]), golden_state(model, str(z["salt"])))
    model.load_state_dict(state)
    adapt = json.loads(str(z[f"{mode}.adapt"]))
    coarse, fine = model.final_layers
    with torch.no_grad():
        for layer in (coarse, fine):
            layer.weight[:17] *= adapt["a_hm"]
            layer.bias[:17] *= adapt["a_hm"]
        coarse.weight[17:] *= adapt["a_tag"]
        coarse.bias[17:] *= adapt["a_tag"]
        coarse.bias[17:] += torch.tensor(adapt["tag_bias"])
        fine.bias += torch.tensor(adapt["hm_bias"])
    return z, mode, model.eval()

def stats(x): x = np.asarray(x, np.float64); return [x.mean(), x.std(), np.abs(x).max()]

def same_maps(got, z, key):
    np.testing.assert_allclose(stats(got), z[f"{key}.stats"], atol=1e-4)
    if f"{key}.sub" in z: np.testing.assert_allclose(got[:, 3::8, 3::8], z[f"{key}.sub"], atol=1e-4)

def stored_inputs(z, mode):
    "(scale factor as text, network input) as far as the file has them; scale 2 is not stored."
    return [(s, z[f"resized_s{s}"]) for s in ("0.5", "1") if f"{mode}.s{s}.out0.stats" in z]

def picture(z):
    if not PICTURES.is_dir(): pytest.skip("needs ../shared/coco_mini")
    image = read_image(PICTURES/str(z["image_file"]))
    if zlib.crc32(image.tobytes()) != z["image_crc32"]: pytest.skip("this OpenCV decodes the picture differently")
    return image

@torch.no_grad()
def test_network_outputs(case):
    z, mode, model = case
    for s, image in stored_inputs(z, mode):
        x = normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
        plain, mirrored = model(x), [o.flip(-1) for o in model(x.flip(-1))]
        # of the mirrored picture the reference keeps the coarse map enlarged already
        mirrored[0] = torch.nn.functional.interpolate(mirrored[0], mirrored[1].shape[-2:], mode="bilinear", align_corners=False)
        for i, out in enumerate(plain + mirrored):
            key = f"{mode}.s{s}.out{i}"
            step = int(z[f"{key}.stride"])
            np.testing.assert_allclose(stats(out), z[f"{key}.stats"], atol=1e-4)
            np.testing.assert_allclose(out[0, :, step//2 - 1::step, step//2 - 1::step], z[f"{key}.sub"], atol=1e-4)

@torch.no_grad()
def test_heads_and_flip(case):
    z, mode, model = case
    size = tuple(z[f"{mode}.base_size"].tolist())
    for s, image in stored_inputs(z, mode):
        both, tags = scale_maps(model, image, size, COCO_SCHEMA.flip)
        alone, alone_tags = scale_maps(model, image, size)
        np.testing.assert_allclose(stats(alone), z[f"{mode}.s{s}.heatmaps0.stats"], atol=1e-4)
        np.testing.assert_allclose(stats(2 * both - alone), z[f"{mode}.s{s}.heatmaps1.stats"], atol=1e-4)
        for i in (0, 1): np.testing.assert_allclose(stats(tags[..., i]), z[f"{mode}.s{s}.tags{i}.stats"], atol=1e-4)
        np.testing.assert_allclose(alone_tags[..., 0], tags[..., 0], atol=1e-5)

@pytest.fixture(scope="module")
def maps(case):
    "Final maps: from the stored network input where one scale is enough, from the picture for three."
    z, mode, model = case
    if mode == "multi": return predict_maps(model, picture(z), int(z["input_size"]), scales=(0.5, 1, 2))
    resize = Resize(*(tuple(z[f"{mode}.{k}"].tolist()) for k in ("base_size", "center", "scale")))
    with torch.no_grad(): return *scale_maps(model, z["resized_s1"], resize.size, COCO_SCHEMA.flip), resize

def test_maps(case, maps):
    z, mode, _ = case
    heatmaps, tags, resize = maps
    assert (1, *heatmaps.shape) == tuple(z[f"{mode}.final_heatmaps.shape"]) and (1, *tags.shape) == tuple(z[f"{mode}.tags.shape"])
    same_maps(heatmaps, z, f"{mode}.final_heatmaps")
    same_maps(tags, z, f"{mode}.tags")
    assert (list(resize.size), list(resize.center)) == (z[f"{mode}.base_size"].tolist(), z[f"{mode}.center"].tolist())

@pytest.mark.parametrize("variant", ["default", "no_detection_val"])
def test_people(case, maps, variant):
    z, mode, _ = case
    heatmaps, tags, resize = maps
    key, flags = f"{mode}.{variant}", json.loads(str(z[f"{mode}.{variant}.flags"]))
    use_score = variant == "default"
    # every candidate peak ends up in some person, whatever the ties
    found = group(heatmaps, tags, use_score=use_score, refine=False)[0]
    assert (found[..., 2] > 0).sum() == flags["candidates"]
    # costs are rounded distances: where several assignments cost the same, the reference's choice is its Munkres' (see 04_grouping)
    if flags["nonunique_steps"]: return
    poses, scores = group(heatmaps, tags, use_score=use_score)
    assert len(poses) == flags["people"]
    np.testing.assert_allclose(poses[..., :2], z[f"{key}.grouped"][..., :2], atol=1e-3)
    np.testing.assert_allclose(poses[..., 2:], z[f"{key}.grouped"][..., 2:], atol=1e-4)
    np.testing.assert_allclose(scores, z[f"{key}.scores"], atol=1e-4)
    np.testing.assert_allclose(to_image_px(poses, resize), z[f"{key}.final_results"], atol=1e-3)

def test_resized_pictures(case):
    z, mode, _ = case
    image = picture(z)
    if int(cv2.__version__.split(".")[0]) != int(str(z["opencv"]).split(".")[0]): pytest.skip("warps differ between OpenCV 4 and 5")
    factors, (h, w) = z[f"{mode}.scale_factors"].tolist(), image.shape[:2]
    for s in factors:
        got = resize_image(image, multi_scale_size(w, h, int(z["input_size"]), s, min(factors)))
        assert zlib.crc32(got.tobytes()) == z[f"{mode}.s{s:g}.resized.crc32"]
