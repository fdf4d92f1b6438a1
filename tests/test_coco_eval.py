"""The evaluation as a tool: scores, results files, batches and processes, bad input."""
import json, os, subprocess, sys, zipfile
from copy import deepcopy
import cv2
import numpy as np
import pytest
import torch
from golden_weights import load_golden
from hypothesis import HealthCheck, given, settings, strategies as st
from hrnet_nbdev import coco_eval as ev
from hrnet_nbdev.data import COCO_SCHEMA, CocoPoses, draw_heatmaps
from hrnet_nbdev.files import UserError, write_json
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.weights import save_weights

RNG = np.random.default_rng(0)

def person(image_id, ann_id, x, y, size=60, visible=17, K=17):
    "An annotation whose joints are spread over a square of `size` pixels."
    joints = np.c_[np.random.default_rng(ann_id).uniform(0, size, (K, 2)) + (x, y), np.full(K, 2)].round(1)
    joints[visible:] = 0
    return dict(id=ann_id, image_id=image_id, category_id=1, iscrowd=0, num_keypoints=visible, keypoints=joints.ravel().tolist(),
                bbox=[x, y, size, size], area=size * size * 0.6, segmentation=[[x, y, x + size, y, x + size, y + size, x, y + size]])

def write_split(root, annotations, n_images=4, names=None, sigmas=None, side=(128, 160)):
    h, w = side
    category = dict(id=1, name="person", keypoints=list(names or COCO_SCHEMA.names), skeleton=[[1, 2]])
    if sigmas: category["sigmas"] = sigmas
    images = [dict(id=10 + i, file_name=f"{10 + i:012d}.jpg", width=w, height=h) for i in range(n_images)]
    for image in images:
        path = root/"images/val2017"/image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), RNG.integers(0, 255, (h, w, 3), dtype=np.uint8))
    write_json(root/"annotations/person_keypoints_val2017.json", dict(images=images, annotations=annotations, categories=[category]))
    return CocoPoses(root, "val", only_annotated=False)

@pytest.fixture
def data(tmp_path):
    "Four pictures: two people, one person, a crowd, nobody."
    crowd = person(12, 4, 0, 0, visible=0) | dict(iscrowd=1, segmentation=dict(size=[128, 160], counts=[128 * 160]))
    return write_split(tmp_path/"coco", [person(10, 1, 5, 5), person(10, 2, 70, 40), person(11, 3, 0, 0, 130), crowd])

def perfect(coco):
    "The annotations as results."
    return [r for a in coco.anns.values() if a["num_keypoints"]
            for r in ev.poses_to_coco(np.reshape(a["keypoints"], (1, -1, 3)), [1.0], a["image_id"])]

def perfect_person(image_id): return ev.poses_to_coco(np.ones((1, 17, 3)), [1.0], image_id)[0]

@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HigherHRNet(width=8, modules=(1, 1, 1), blocks=1, stem=16, deconv_blocks=1).eval()

@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")/"toy.safetensors"
    save_weights(model, path, input_size=64)
    return path

# ---- scores

def test_truth_scores_one(data):
    scores = ev.coco_scores(data.coco, perfect(data.coco))
    assert tuple(scores) == ev.SCORE_NAMES
    assert np.allclose(list(scores.values()), 1)

def test_scores_leave_results_and_truth_alone(data):
    results = perfect(data.coco)
    before, truth = deepcopy(results), deepcopy(data.coco.anns)
    ev.coco_scores(data.coco, results)
    assert results == before
    assert {k: v["keypoints"] for k, v in truth.items()} == {k: v["keypoints"] for k, v in data.coco.anns.items()}

def test_no_detections_score_zero(data):
    scores = ev.coco_scores(data.coco, [])
    assert scores["AP"] == scores["AR"] == 0

def test_nothing_to_find_is_minus_one(tmp_path):
    coco = write_split(tmp_path, []).coco
    for people_only in (False, True): assert ev.coco_scores(coco, [], people_only=people_only)["AP"] == -1
    assert ev.coco_scores(coco, [perfect_person(10)], people_only=True)["AP"] == -1

def test_false_positives_on_empty_pictures_cost(data):
    "The protocol matters: a detection where nobody is counts, unless only pictures with people are scored."
    ghost = perfect(data.coco)[0] | dict(image_id=13, score=2.0)
    results = perfect(data.coco) + [ghost]
    assert ev.coco_scores(data.coco, results)["AP"] < 1
    assert ev.coco_scores(data.coco, results, people_only=True)["AP"] == pytest.approx(1)
    assert ev.people_images(data.coco) == [10, 11]

def test_detection_in_a_crowd_is_free(data):
    inside = perfect(data.coco)[0] | dict(image_id=12, score=2.0)
    assert ev.coco_scores(data.coco, perfect(data.coco) + [inside])["AP"] == pytest.approx(1)

def test_scores_of_some_pictures(data):
    results = [r for r in perfect(data.coco) if r["image_id"] == 10]
    assert ev.coco_scores(data.coco, results)["AR"] < 1
    assert ev.coco_scores(data.coco, results, image_ids=[10])["AR"] == pytest.approx(1)

@pytest.mark.parametrize("visible", [17, 9, 1])
def test_oks_equals_pycocotools(data, visible):
    truth = person(10, 99, 30, 30, visible=visible)
    pose = np.reshape(truth["keypoints"], (-1, 3)) + [3, -2, 0]
    found = ev.poses_to_coco(pose[None], [0.5], 10)[0] | dict(id=1, area=1, iscrowd=0)
    official = ev.COCOeval(iouType="keypoints")
    official.params.imgIds, official.params.catIds = [10], [1]
    official._gts[10, 1], official._dts[10, 1] = [truth], [found]
    got = ev.oks(pose, np.reshape(truth["keypoints"], (-1, 3)), truth["area"], COCO_SCHEMA.sigmas)
    assert got == pytest.approx(official.computeOks(10, 1)[0, 0], abs=1e-12)

def test_oks_needs_a_labelled_joint():
    with pytest.raises(ValueError, match="labelled"): ev.oks(np.zeros((17, 3)), np.zeros((17, 3)), 1, COCO_SCHEMA.sigmas)

def test_other_schema_uses_its_own_sigmas(tmp_path):
    names, loose, tight = ["tip", "left_end", "right_end", "tail"], [0.3] * 4, [0.005] * 4
    scores = []
    for name, sigmas in (("loose", loose), ("tight", tight)):
        data = write_split(tmp_path/name, [person(10, 1, 5, 5, K=4, visible=4)], names=names, sigmas=sigmas)
        results = perfect(data.coco)
        results[0]["keypoints"][0] += 8
        scores.append(ev.coco_scores(data.coco, results, data.schema.sigmas)["AP"])
    assert scores[0] == pytest.approx(1) and scores[1] < 0.8

# ---- two libraries

@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10 ** 6), jitter=st.sampled_from([0, 2, 8, 30]), sigmas=st.sampled_from([None, (0.05,) * 17]), people_only=st.booleans(),
       only=st.sampled_from([None, [10, 12, 13], [13]]), bbox=st.booleans())
def test_both_libraries_agree(tmp_path_factory, seed, jitter, sigmas, people_only, only, bbox):
    "On random people, small and large, with few or no labels, crowds, people found twice, not at all, or where nobody is; equal scores too."
    rng = np.random.default_rng(seed)
    truth = [person(10 + int(rng.integers(4)), n, *rng.uniform(0, 60, 2).tolist(), int(rng.choice([20, 40, 130])), int(rng.choice([17, 9, 1, 0]))) for n in range(1, 9)]
    truth[0] |= dict(iscrowd=1, num_keypoints=0)
    coco = write_split(tmp_path_factory.mktemp("two"), truth).coco
    found = []
    for a in truth * 2:
        if rng.random() < 0.3: continue
        pose = np.reshape(a["keypoints"], (17, 3)) + np.c_[rng.normal(0, jitter, (17, 2)), np.zeros(17)]
        found += ev.poses_to_coco(pose[None], [rng.integers(1, 5) / 4], a["image_id"] if rng.random() < 0.9 else 13)
    if not bbox: found = [{k: v for k, v in r.items() if k != "bbox"} for r in found]
    scores = [ev.coco_scores(coco, found, sigmas, only, people_only, library) for library in ("pycocotools", "faster-coco-eval")]
    assert list(scores[0]) == list(scores[1]) == list(ev.SCORE_NAMES)
    np.testing.assert_allclose(list(scores[1].values()), list(scores[0].values()), atol=1e-9)

def test_the_second_library_may_be_missing(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="pip install faster-coco-eval"): ev.coco_scores(data.coco, [], library="faster-coco-eval")
    with pytest.raises(UserError, match="unknown"): ev.coco_scores(data.coco, [], library="coco")

def test_the_second_library_without_results(data):
    assert ev.coco_scores(data.coco, [], library="faster-coco-eval") == ev.coco_scores(data.coco, [])

# ---- results files

def test_results_are_plain_json(data):
    results = ev.poses_to_coco(np.ones((2, 17, 5), np.float32), np.ones(2, np.float32), np.int64(10))
    assert json.loads(json.dumps(results)) == results
    assert set(results[0]) == {"image_id", "category_id", "keypoints", "score", "bbox"} and len(results[0]["keypoints"]) == 51
    assert ev.poses_to_coco(np.zeros((0, 17, 4)), [], 10) == []

@pytest.mark.parametrize("change, says", [
    (lambda r: dict(annotations=r), "not a list"),
    (lambda r: [dict(image_id=10, category_id=1, bbox=[0, 0, 1, 1], score=1)], "no key point results"),
    (lambda r: [dict(image_id=10, caption="a cat")], "no key point results"),
    (lambda r: ["text"], "no key point results"),
    (lambda r: r + [r[0] | dict(image_id=77)], "image_ids.*77"),
    (lambda r: r + [r[0] | dict(image_id="10")], "image_ids"),
    (lambda r: r + [r[0] | dict(category_id=3)], "category_ids"),
    (lambda r: r + [r[0] | dict(keypoints=[1.0] * 42)], "51 finite"),
    (lambda r: r + [r[0] | dict(keypoints=["x"] * 51)], "51 finite"),
    (lambda r: r + [r[0] | dict(keypoints=7)], "51 finite"),
    (lambda r: r + [r[0] | dict(score=float("nan"))], "finite"),
])
def test_bad_results_are_explained(data, change, says):
    with pytest.raises(UserError, match=says): ev.coco_scores(data.coco, change(perfect(data.coco)))

def test_truth_without_areas_is_explained(data):
    del data.coco.anns[1]["area"]
    with pytest.raises(UserError, match="area"): ev.coco_scores(data.coco, [])

# ---- prediction

def test_predict_dataset_restores_the_mode(model, data):
    model.train()
    results = ev.predict_dataset(model, data, limit=2, progress=False, input_size=64, det_thr=0.0)
    assert model.training
    model.eval()
    assert {r["image_id"] for r in results} <= {10, 11}

def test_evaluate_limits_pictures_and_scores(model, data):
    scores, results = ev.evaluate(model, data.file.parents[1], "val", limit=1, progress=False, input_size=64, flip=False)
    assert scores["AR"] >= 0 and {r["image_id"] for r in results} <= {10}

def lively_model():
    "Golden weights: random, but their heatmaps reach the threshold, so that there is something to group."
    return load_golden(HigherHRNet(width=8, modules=(1, 1, 1), blocks=1, stem=16, deconv_blocks=1))

@pytest.fixture
def mixed(tmp_path):
    "Seven pictures of three network input sizes, in an order that batches must not keep."
    sides = [(128, 160), (128, 128), (128, 160), (160, 128), (128, 160), (128, 128), (64, 80)]
    data = write_split(tmp_path/"mixed", [person(10, 1, 5, 5)], n_images=7)
    for i, side in enumerate(sides): cv2.imwrite(str(data.image_path(i)), np.random.default_rng(i).integers(0, 255, (*side, 3), dtype=np.uint8))
    return data

@pytest.mark.parametrize("options", [dict(), dict(flip=False), dict(scales=(0.5, 1), decoder="fast")])
def test_batches_change_nothing(mixed, options):
    model, options = lively_model(), dict(options, input_size=64, progress=False)
    alone = ev.predict_dataset(model, mixed, **options)
    assert [r["image_id"] for r in alone] == sorted(r["image_id"] for r in alone) and len({r["image_id"] for r in alone}) > 4
    for batch_size in (2, 3, 50):
        together = ev.predict_dataset(model, mixed, batch_size=batch_size, **options)
        assert [r["image_id"] for r in together] == [r["image_id"] for r in alone]
        for a, b in zip(alone, together): np.testing.assert_allclose(a["keypoints"], b["keypoints"], atol=1e-3)

def test_batches_hold_like_pictures():
    pictures = list(enumerate("aabcabbbb"))
    batches = list(ev.equal_batches(iter(pictures), 3, str))
    assert [[n for n, _ in b] for b in batches] == [[0, 1, 4], [2, 5, 6], [3], [7, 8]]
    assert all(len({p for _, p in b}) == 1 for b in batches)
    assert list(ev.equal_batches([], 3, str)) == []

def test_timings_are_added(mixed):
    timings = {"read": 100.0}
    ev.predict_dataset(lively_model(), mixed, limit=2, progress=False, input_size=64, timings=timings)
    assert set(timings) == {"read", "network", "grouping"} and timings["read"] > 100 and min(timings.values()) > 0

@pytest.mark.parametrize("options, says", [(dict(batch_size=0), "batch size 0"), (dict(precision="float8"), "no, bf16 or fp16"), (dict(decoder="quick"), "exact or fast")])
def test_impossible_settings_are_explained(mixed, options, says):
    with pytest.raises(UserError, match=says): ev.predict_dataset(lively_model(), mixed, progress=False, input_size=64, **options)

@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_maps(precision):
    model, image = lively_model(), RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    full, half = (ev.predict_maps(model, image, 64, precision=p)[0] for p in ("no", precision))
    assert half.dtype == torch.float32 and 0 < (full - half).abs().max() < 0.05 * full.abs().max()

class Flawless(torch.nn.Module):
    "Stands in for a network: puts out the maps of given joints [P, 17, 3] in pixels of the input, and everybody's number as the tag."
    def __init__(self, joints):
        super().__init__()
        self.joints, self.weight = joints, torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        coarse, fine = (draw_heatmaps(torch.tensor(self.joints / (s, s, 1)).float()[None], (x.shape[-2] // s, x.shape[-1] // s)) for s in (4, 2))
        xs = torch.arange(coarse.shape[-1])
        near = (xs[:, None] - torch.tensor(self.joints[..., 0]).mean(1) / 4).abs().argmin(1)
        return [torch.cat([coarse, (3.0 * near).expand_as(coarse)], 1), fine]

@pytest.mark.parametrize("side", [(128, 160), (100, 140)])
def test_both_decoders_find_the_place(side):
    "People far apart in perfect maps: found by both, the fast one at least as near to the truth, and at the same place on average."
    rng = np.random.default_rng(3)
    image = np.zeros((*side, 3), np.uint8)
    resize = ev.multi_scale_size(*side[::-1], 128)
    joints = np.concatenate([np.r_[np.c_[rng.uniform(x, x + 30, 17), rng.uniform(8, 118, 17), np.full(17, 2)]][None] for x in (10, 70, 120)])
    truth = ev.to_image_px(joints.astype(np.float32), resize)[..., :2]
    errors = {}
    for decoder in ("exact", "fast"):
        poses, scores = ev.predict_poses(Flawless(joints).eval(), image, 128, flip=False, decoder=decoder)
        assert len(poses) == 3
        errors[decoder] = (poses[np.argsort(poses[:, 0, 3]), :, :2] - truth) * resize.size[1] / side[0]
    assert all(np.abs(e).max() < 2 for e in errors.values()), errors
    assert np.abs(errors["fast"]).mean() < 1.05 * np.abs(errors["exact"]).mean()
    assert np.abs((errors["fast"] - errors["exact"]).mean((0, 1))).max() < 0.15

def test_maps_of_the_fast_decoder_are_the_finer_heads(mixed):
    model, image = lively_model(), RNG.integers(0, 255, (100, 130, 3), dtype=np.uint8)
    exact, tags, resize = ev.predict_maps(model, image, 64)
    fast, fast_tags, half = ev.predict_maps(model, image, 64, decoder="fast")
    assert (fast.shape, fast_tags.shape) == ((17, 32, 64), (17, 32, 64, 2)) and resize.size == (128, 64) and half.size == (64, 32)
    size = dict(size=resize.size[::-1], mode="bilinear", align_corners=False)
    assert torch.allclose(torch.nn.functional.interpolate(fast[None], **size)[0], exact, atol=1e-6)
    corner = np.array([[[0, 0, 1, 0], [64, 32, 1, 0]]], np.float32)
    np.testing.assert_allclose(ev.to_image_px(corner, half), ev.to_image_px(corner * (2, 2, 1, 1), resize), atol=1e-4)

def test_two_processes_equal_one(mixed, tmp_path):
    "Seven pictures on two processes: each on one of them, all of them on both, in the order of the data set."
    save_weights(lively_model(), tmp_path/"model.safetensors")
    script = f"""
import json, sys
import torch
from accelerate import PartialState
from hrnet_nbdev.coco_eval import evaluate, predict_dataset, predict_split
from hrnet_nbdev.data import CocoPoses
from hrnet_nbdev.higherhrnet import load_pose_model
torch.set_num_threads(1)
state, data = PartialState(cpu=True), CocoPoses({str(mixed.file.parents[1])!r}, "val", only_annotated=False)
model, options = load_pose_model({str(tmp_path/"model.safetensors")!r}), dict(input_size=64, progress=False)
alone = predict_dataset(model, data, **options)
assert state.num_processes == 2 and len({{r["image_id"] for r in alone}}) > 4
assert predict_split(model, data, **options) == alone
assert predict_split(model, data, 1, **options) == [r for r in alone if r["image_id"] == 10]      # nothing to do for the second
scores, results = evaluate(model, {str(mixed.file.parents[1])!r}, "val", **options)
assert results == alone and scores["AR"] >= 0
open({str(tmp_path)!r} + f"/equal_{{state.process_index}}", "w").close()      # two processes that print at once write into each other's lines
"""
    (tmp_path/"two.py").write_text(script)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path/"two.py"],
                          capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path/"equal_0").exists() and (tmp_path/"equal_1").exists()

def test_a_test_split_without_truth(tmp_path, model):
    "The server has the truth: results and a zip file for it, but no scores."
    root = tmp_path/"coco"
    write_split(root, [])
    (root/"images/val2017").rename(root/"images/test2017")
    info = json.loads((root/"annotations/person_keypoints_val2017.json").read_text())
    write_json(root/"annotations/image_info_test-dev2017.json", dict(images=info["images"][:3], categories=[dict(id=1, name="person")]))
    scores, results = ev.evaluate(lively_model(), root, "test-dev2017", progress=False, input_size=64)
    assert scores == {} and {r["image_id"] for r in results} == {10, 11, 12} and {r["category_id"] for r in results} == {1}
    path = ev.submission_zip(results, "test-dev2017", tmp_path/"out")
    assert path.name == "person_keypoints_test-dev2017_hrnet_results.zip"
    with zipfile.ZipFile(path) as z:
        assert z.namelist() == ["person_keypoints_test-dev2017_hrnet_results.json"]
        packed = json.loads(z.read(z.namelist()[0]))
    assert [set(r) for r in packed] == [{"image_id", "category_id", "keypoints", "score"}] * len(results)
    assert [r["keypoints"] for r in packed] == [r["keypoints"] for r in results]

def test_training_mode_is_refused(model):
    model.train()
    try:
        with pytest.raises(ValueError, match="eval"): ev.predict_maps(model, np.zeros((64, 64, 3), np.uint8), 64)
    finally: model.eval()

@pytest.mark.parametrize("scales", [(), (0.5, 2), (0, 1), (-1, 1), (1, 1.3)])
def test_impossible_scales_are_explained(model, scales):
    with pytest.raises(UserError, match="scale"): ev.predict_maps(model, np.zeros((64, 64, 3), np.uint8), 64, scales=scales)

def test_impossible_input_size_is_explained(model):
    with pytest.raises(UserError, match="input size"): ev.predict_maps(model, np.zeros((64, 64, 3), np.uint8), -5)

@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (97, 64)])
def test_any_picture_size_runs(model, shape):
    heatmaps, tags, resize = ev.predict_maps(model, np.zeros((*shape, 3), np.uint8), 64)
    assert heatmaps.shape[1:] == resize.size[::-1] and tags.shape == (*heatmaps.shape, 2)

def test_flip_is_its_own_inverse():
    maps = torch.rand(2, 17, 4, 6)
    assert torch.equal(ev.undo_flip(ev.undo_flip(maps, COCO_SCHEMA.flip), COCO_SCHEMA.flip), maps)

def test_a_mirrored_picture_gives_mirrored_maps(model):
    "With the flip test, prediction commutes with mirroring: heatmaps exactly, tags with their two dimensions exchanged."
    image = RNG.integers(0, 255, (64, 128, 3), dtype=np.uint8)
    heat, tags, _ = ev.predict_maps(model, image, 64)
    mirrored, mirrored_tags, _ = ev.predict_maps(model, np.ascontiguousarray(image[:, ::-1]), 64)
    assert torch.allclose(ev.undo_flip(mirrored, COCO_SCHEMA.flip), heat, atol=1e-6)
    back = ev.undo_flip(mirrored_tags.permute(3, 0, 1, 2), COCO_SCHEMA.flip)
    assert torch.allclose(back[0], tags[..., 1], atol=1e-6) and torch.allclose(back[1], tags[..., 0], atol=1e-6)

def test_there_and_back():
    for w, h in ((640, 427), (427, 640), (100, 33)):
        resize = ev.multi_scale_size(w, h, 512, 1, 0.5)
        points = RNG.uniform(0, 100, (3, 17, 4)).astype(np.float32)
        there = points.copy()
        matrix = ev.affine_to_resized(resize)
        there[..., :2] = points[..., :2] @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_allclose(ev.to_image_px(torch.from_numpy(there), resize), points, atol=1e-3)
