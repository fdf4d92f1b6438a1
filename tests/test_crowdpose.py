"""Fourteen key points instead of seventeen: read, trained on, evaluated and drawn without being told."""
import json
import numpy as np
import pytest
import torch
from hrnet_nbdev.annotations import CROWDPOSE, read_schema
from hrnet_nbdev.coco_eval import coco_scores, predict_poses
from hrnet_nbdev.data import COCO_SCHEMA, CocoPoses, TrainTransform, draw_heatmaps
from hrnet_nbdev.drawing import draw_poses
from hrnet_nbdev.grouping import COCO_ORDER, group
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.inference import PosePredictor
from hrnet_nbdev.synthetic import write_coco
from hrnet_nbdev.train_pose import train_pose
from hrnet_nbdev.weights import save_weights

SIGMAS = np.array([.79, .79, .72, .72, .62, .62, 1.07, 1.07, .87, .87, .89, .89, .79, .79]) / 10
TINY = dict(width=8, modules=(1, 1, 1), blocks=1, stem=16, deconv_blocks=1)

def as_crowdpose(person):
    "COCO's joints [17, 3] as CrowdPose's [14, 3]: neck between the shoulders, the top of the head above the eyes."
    middle = lambda a, b: np.r_[(person[a, :2] + person[b, :2]) / 2, min(person[a, 2], person[b, 2])]
    eyes, neck = middle(1, 2), middle(5, 6)
    head = np.r_[neck[:2] + 1.4 * (eyes[:2] - neck[:2]), min(eyes[2], neck[2])]
    joints = np.vstack([person[5:], head, neck])
    return joints * (joints[:, 2:] > 0)

def rewrite(file):
    "An annotation file as CrowdPose's authors write theirs: boxes only, no crowds, and COCO's skeleton."
    content = json.loads(file.read_text())
    people = [dict(a, keypoints=as_crowdpose(np.reshape(a["keypoints"], (17, 3))).ravel().tolist()) for a in content["annotations"] if not a["iscrowd"]]
    content["annotations"] = [dict({k: a[k] for k in ("keypoints", "iscrowd", "image_id", "bbox", "category_id", "id")},
                                   num_keypoints=sum(v > 0 for v in a["keypoints"][2::3])) for a in people]
    content["categories"] = [CROWDPOSE | dict(skeleton=[[a + 1, b + 1] for a, b in COCO_SCHEMA.limbs])]
    file.write_text(json.dumps(content))

@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_coco(tmp_path_factory.mktemp("crowdpose")/"coco", train=8, val=6, size=96, people=(1, 3), workers=1)
    for file in (root/"annotations").glob("*.json"): rewrite(file)
    return root

@pytest.fixture(scope="module")
def val(root): return CocoPoses(root, "val", only_annotated=False)

def test_schema(val):
    assert val.schema == read_schema(CROWDPOSE) and val.schema.num_joints == 14
    np.testing.assert_allclose(val.schema.sigmas, SIGMAS)
    assert val.schema.flip == (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13)
    assert val.schema.order == (0, 1, 6, 7, 12, 13, 2, 3, 4, 5, 8, 9, 10, 11) and COCO_SCHEMA.order == tuple(COCO_ORDER)

def test_items(val):
    raw = val.raw(0)
    assert raw["joints"].shape[1:] == (14, 3) and raw["mask"].shape == raw["image"].shape[:2]
    item = TrainTransform(96, val.schema)(raw)
    assert draw_heatmaps(item["joints"][0][None], 24).shape == (1, 14, 24, 24)

def truth(data):
    "The true joints as results."
    return [dict(image_id=a["image_id"], category_id=1, score=1., bbox=a["bbox"],
                 keypoints=np.c_[np.reshape(a["keypoints"], (-1, 3))[:, :2], np.ones(14)].ravel().tolist())
            for a in data.coco.anns.values() if a["num_keypoints"]]

def test_truth_scores_one(val):
    assert all(a["area"] == pytest.approx(0.53 * a["bbox"][2] * a["bbox"][3]) for a in val.coco.anns.values())
    scores = coco_scores(val.coco, truth(val), val.schema.sigmas)
    assert scores["AP"] == pytest.approx(1) and scores["AR"] == pytest.approx(1)
    moved = [r | dict(keypoints=(np.reshape(r["keypoints"], (-1, 3)) + [4, 4, 0]).ravel().tolist()) for r in truth(val)]
    assert coco_scores(val.coco, moved, SIGMAS / 4)["AP"] < coco_scores(val.coco, moved, SIGMAS)["AP"] < 1

@pytest.mark.parametrize("K", [1, 5, 14, 20])
def test_any_number_of_joints_is_grouped(K):
    rng = torch.Generator().manual_seed(0)
    joints = torch.cat([torch.rand(3, K, 2, generator=rng) * 20 + torch.arange(3)[:, None, None] * 34 + 4, torch.full((3, K, 1), 2.)], 2)
    tags = torch.zeros(K, 112, 112, 1)
    for n, person in enumerate(joints):
        for k, (x, y, _) in enumerate(person.long().tolist()): tags[k, y - 2:y + 3, x - 2:x + 3] = 5. * n
    poses, scores = group(draw_heatmaps(joints[None], 112)[0], tags, adjust=False)
    assert poses.shape == (3, K, 4) and torch.as_tensor(scores).min() == 1
    found = torch.as_tensor(poses)[..., :2][torch.as_tensor(poses)[:, 0, 3].argsort()]
    assert (found - joints[..., :2].trunc()).abs().max() == 0

def test_trained_evaluated_and_drawn(root, val, tmp_path):
    scores = train_pose(root, tmp_path/"run", preset="tiny", size=96, steps=3, batch_size=2, workers=0, cpu=True, precision="no", progress=False,
                        eval_limit=2)
    assert 0 <= scores["AP"] <= 1
    predictor = PosePredictor(tmp_path/"run"/"best.safetensors", display=False)
    assert predictor.schema == val.schema and predictor.size == 96
    assert predictor(val.image_path(0)).keypoints.shape[1:] == (14, 3)

def test_checkpoint_carries_schema(val, tmp_path):
    model = HigherHRNet(num_joints=14, **TINY)
    save_weights(model, tmp_path/"named.safetensors", input_size=96, category=json.dumps(val.schema.category))
    save_weights(model, tmp_path/"nameless.safetensors")
    named, nameless = (PosePredictor(tmp_path/f"{n}.safetensors", device="cpu") for n in ("named", "nameless"))
    assert named.schema == val.schema and nameless.schema.num_joints == 14 and nameless.schema.limbs == ()
    poses, scores = predict_poses(named.model, val.raw(0)["image"], 96, schema=named.schema)
    assert poses.shape[1:] == (14, 5) and len(scores) == len(poses)
    image, joints = val.raw(0)["image"], val.joints(0)
    assert (draw_poses(image, joints, named.schema) != draw_poses(image, joints, nameless.schema)).any()     # limbs against dots
