"""Real photographs: ../shared/coco_mini, 80 pictures of COCO. Skipped where the folder is absent."""
import shutil
from pathlib import Path
import pytest
import torch
from hrnet_nbdev.coco_eval import coco_scores, predict_dataset
from hrnet_nbdev.data import CocoPoses
from hrnet_nbdev.files import read_json, write_json
from hrnet_nbdev.higherhrnet import HigherHRNet, load_pose_model
from hrnet_nbdev.inference import PosePredictor, pose_files
from hrnet_nbdev.train_pose import train_pose
from hrnet_nbdev.weights import save_weights

MINI = Path(__file__).resolve().parents[2] / "shared/coco_mini"
pytestmark = pytest.mark.skipif(not MINI.is_dir(), reason="../shared/coco_mini is absent")

def subset(folder, count=8, most_people=3, least_joints=6):
    "A COCO folder of `count` pictures with few, well visible people; the same pictures as train2017 and val2017."
    content = read_json(MINI / "annotations/person_keypoints_train2017.json")
    people = lambda im: [a for a in content["annotations"] if a["image_id"] == im["id"]]
    good = lambda im: 1 <= len(people(im)) <= most_people and all(a["num_keypoints"] >= least_joints and not a["iscrowd"] for a in people(im))
    images = [im for im in content["images"] if good(im)][:count]
    assert len(images) == count
    part = content | dict(images=images, annotations=[a for im in images for a in people(im)])
    for split in ("train2017", "val2017"):
        (folder / "images" / split).mkdir(parents=True)
        write_json(folder / f"annotations/person_keypoints_{split}.json", part)
        for im in images: shutil.copy(MINI / "images/train2017" / im["file_name"], folder / "images" / split)
    return folder

@pytest.mark.slow
def test_eight_photographs_are_learnt_by_heart(tmp_path):
    "No flips or turns; the frame moves and breathes a little, because the test's frame (the whole picture) is not the training's (a square)."
    root = subset(tmp_path / "coco")
    augment = dict(rotation=0, scale=(1.0, 1.3), translation=60, flip=0)
    train_pose(root, tmp_path / "run", "tiny", size=288, width=24, batch_size=4, steps=1000, lr=2e-3 / 4, augment=augment, workers=1, cpu=True, ema=0.9,
               eval_every=1000, flip_test=False)
    data = CocoPoses(root, "val", only_annotated=False)
    results = predict_dataset(load_pose_model(tmp_path / "run/best.safetensors"), data, input_size=256, flip=False)
    scores = coco_scores(data.coco, results)
    print(scores)
    assert scores["AP"] >= 0.9

def test_pose_files_over_the_folder(tmp_path):
    "Every photograph passes through the tool, whatever its shape: an untrained model, a small input."
    torch.manual_seed(0)
    save_weights(HigherHRNet(width=8, modules=(1, 1, 1), blocks=1, stem=16, deconv_blocks=1), tmp_path / "w.safetensors", input_size=64)
    pictures = sorted((MINI / "images/train2017").iterdir())
    results, failed = pose_files(PosePredictor(tmp_path / "w.safetensors"), pictures, tmp_path / "out", progress=False)
    assert not failed and isinstance(results, list)
    assert len(list((tmp_path / "out").glob("*.jpg"))) == len(pictures) == 80
