"""The evaluation as a tool: scores, results files, bad input, and the command."""
import json, subprocess, sys
from copy import deepcopy
import cv2
import numpy as np
import pytest
import torch
from hrnet_nbdev import coco_eval as ev
from hrnet_nbdev.data import COCO_SCHEMA, CocoPoses
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

# ---- command

def test_command(data, checkpoint, tmp_path):
    "Once as a user runs it; the other cases call the function."
    root, out = data.file.parents[1], tmp_path/"out"
    done = subprocess.run([sys.executable, "-m", "hrnet_nbdev.coco_eval", "--weights", checkpoint, "--root", root, "--split", "val",
                           "--input_size", "64", "--no-flip", "--scales", "0.5,1", "--no-refine", "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AP75" in done.stdout
    written = json.loads((out/"scores.json").read_text())
    assert written["protocol"]["scales"] == [0.5, 1] and written["protocol"]["flip"] is False
    ev.hrnet_eval_coco(results=str(out/"results.json"), root=str(root), split="val", out=str(tmp_path/"again"))
    assert json.loads((tmp_path/"again/scores.json").read_text())["scores"] == written["scores"]

def test_command_scores_a_file(data, tmp_path, capsys):
    write_json(tmp_path/"perfect.json", perfect(data.coco))
    ev.hrnet_eval_coco(results=str(tmp_path/"perfect.json"), root=str(data.file.parents[1]))
    assert "100.0" in capsys.readouterr().out

def fails(capsys, **options):
    "The one sentence that a wrong call prints."
    with pytest.raises(SystemExit) as stop: ev.hrnet_eval_coco(**options)
    err = capsys.readouterr().err
    # a progress bar may stand before it
    assert stop.value.code == 1 and err.splitlines()[-1].startswith("error: ") and err.count("error:") == 1 and "Traceback" not in err
    return err

def test_command_explains_bad_input(data, checkpoint, tmp_path, capsys):
    root = str(data.file.parents[1])
    assert "either --weights" in fails(capsys, root=root)
    assert "either --weights" in fails(capsys, root=root, weights=str(checkpoint), results="r.json")
    assert "missing" in fails(capsys, root=root, results=str(tmp_path/"none.json"))
    assert "nowhere" in fails(capsys, root=str(tmp_path/"nowhere"), results="r.json")
    assert "nothing.pth" in fails(capsys, root=root, weights=str(tmp_path/"nothing.pth"))
    assert "--scales" in fails(capsys, root=root, weights=str(checkpoint), scales="1,two")
    assert "--limit" in fails(capsys, root=root, weights=str(checkpoint), limit=-1)
    cut = tmp_path/"cut.json"
    cut.write_text('[{"image_id": 10,')
    assert "cut.json" in fails(capsys, root=root, results=str(cut))
    (data.folder/"000000000011.jpg").write_bytes(b"no picture")
    assert "000000000011.jpg" in fails(capsys, root=root, weights=str(checkpoint), input_size=64)
    (data.folder/"000000000013.jpg").unlink()
    assert "000000000013.jpg" in fails(capsys, root=root, weights=str(checkpoint), input_size=64)

def test_command_refuses_a_model_of_other_joints(tmp_path, checkpoint, capsys):
    data = write_split(tmp_path/"four", [person(10, 1, 5, 5, K=4, visible=4)], names=["a", "b", "c", "d"])
    assert "17 joints" in fails(capsys, root=str(data.file.parents[1]), weights=str(checkpoint), input_size=64)
