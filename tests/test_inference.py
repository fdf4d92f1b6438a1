"""Poses in pictures: the predictor's inputs, what display mode hides, and the command."""
from pathlib import Path
import numpy as np
import pytest
import torch
from golden_weights import load_golden
from PIL import Image
from hrnet_nbdev import inference as inf
from hrnet_nbdev.coco_eval import multi_scale_size
from hrnet_nbdev.data import draw_heatmaps
from hrnet_nbdev.files import UserError, find_pictures, number_pictures, read_image, write_image
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.weights import save_weights

def picture(seed, h=70, w=90): return np.random.default_rng(seed).integers(0, 255, (h, w, 3), dtype=np.uint8)

def tiny_model():
    "Golden weights: random, but their heatmaps reach the threshold, so that there is something to group."
    return load_golden(HigherHRNet(width=8, modules=(1, 1, 1), blocks=1, stem=16, deconv_blocks=1))

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")/"toy.safetensors"
    save_weights(tiny_model(), path, input_size=64)
    return str(path)

@pytest.fixture(scope="module")
def predictor(checkpoint): return inf.PosePredictor(checkpoint)

@pytest.fixture
def folder(tmp_path):
    "Two good pictures, a damaged one, a text file and a folder."
    root = tmp_path/"photos"
    write_image(root/"a.jpg", picture(1))
    write_image(root/"b.png", picture(2, 64, 64))
    (root/"damaged.jpg").write_bytes(b"\xff\xd8 cut off")
    (root/"notes.txt").write_text("no picture")
    (root/"more").mkdir()
    return root

def people(*poses, scores=None):
    keypoints = np.array(poses, np.float32)
    scores = np.arange(len(poses), 0, -1, dtype=np.float32) / 2 if scores is None else np.float32(scores)
    return inf.Poses(keypoints, scores, np.zeros((*keypoints.shape[:2], 1), np.float32))

def one(x=0, score=1.0, seed=0):
    joints = np.random.default_rng(seed).uniform(0, 100, (17, 2)) + (x, 0)
    return np.c_[joints, np.full(17, score)]

# ---- input

def test_size_comes_from_the_checkpoint(checkpoint, predictor):
    assert predictor.size == 64
    assert inf.PosePredictor(checkpoint, size=96).size == 96
    assert inf.PosePredictor(tiny_model()).size == 512

def test_all_kinds_of_input_give_the_same_poses(predictor, tmp_path):
    image = picture(3)
    write_image(tmp_path/"p.png", image)
    found = predictor([image, tmp_path/"p.png", str(tmp_path/"p.png"), Image.fromarray(image)])
    assert len(found) == 4 and all(isinstance(f, inf.Poses) for f in found)
    for f in found: np.testing.assert_array_equal(f.keypoints, found[0].keypoints)
    grey = picture(4)[..., 0]
    np.testing.assert_array_equal(predictor(grey).keypoints, predictor(Image.fromarray(grey)).keypoints)
    assert predictor([]) == []

def test_exif_orientation(predictor, tmp_path):
    note = Image.Exif()
    note[0x0112] = 6
    Image.fromarray(picture(3)).save(tmp_path/"phone.png", exif=note)
    upright = np.ascontiguousarray(np.rot90(picture(3), -1))
    np.testing.assert_array_equal(inf.as_picture(tmp_path/"phone.png"), upright)
    np.testing.assert_array_equal(inf.as_picture(Image.open(tmp_path/"phone.png")), upright)
    np.testing.assert_array_equal(inf.as_picture(tmp_path/"phone.png", exif=False), picture(3))
    np.testing.assert_array_equal(predictor(tmp_path/"phone.png").keypoints, predictor(upright).keypoints)

@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)])
def test_other_arrays_are_refused(predictor, bad):
    with pytest.raises(ValueError, match="uint8"): predictor(bad)

def test_shapes_and_types(checkpoint):
    found = inf.PosePredictor(checkpoint, flip=True, display=False)(picture(5))
    P = len(found)
    assert P and found.keypoints.shape == (P, 17, 3) and found.scores.shape == (P,) and found.tags.shape == (P, 17, 2)
    assert found.boxes.shape == (P, 4) and (np.diff(found.scores) <= 0).all()
    assert found.draw(picture(5)).shape == (70, 90, 3)
    assert len(found[found.scores > found.scores[0]]) == 0 and len(found[0]) == 1

def test_nobody(checkpoint):
    found = inf.PosePredictor(checkpoint, det_thr=1e6)(picture(5))
    assert len(found) == 0 and found.keypoints.shape == (0, 17, 3) and found.boxes.shape == (0, 4)
    assert found.to_coco(1) == [] and (found.draw(picture(5)) == picture(5)).all()

def test_a_perfect_map_comes_back_in_pixels_of_the_picture(predictor):
    resize = multi_scale_size(200, 100, 128)
    joints = one(seed=3) * (0.9, 0.9, 2)
    w, h = resize.size
    scale = 128 / 100
    on_map = torch.tensor(np.c_[joints[:, :2] * scale, joints[:, 2]]).float()[None, None]
    found = predictor.from_maps(draw_heatmaps(on_map, (h, w))[0], torch.zeros(17, h, w, 1), resize)
    assert len(found) == 1
    assert np.abs(found.keypoints[0, :, :2] - joints[:, :2]).max() < 1

# ---- display mode

def test_duplicates_are_dropped_and_the_better_stays():
    twice = people(one(), one(2), one(300), scores=[0.4, 0.9, 0.5])
    kept = inf.drop_duplicates(twice)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.5])

def test_two_halves_of_a_person_are_no_duplicates():
    upper, lower = one(), one()
    upper[8:], lower[:8] = 0, 0
    assert len(inf.drop_duplicates(people(upper, lower))) == 2

def test_display_hides_joints_and_people():
    pose = one()
    pose[3, 2] = 0.05
    found = people(pose, one(300, score=0.01), one(600), scores=[0.9, 0.8, 0.02])
    shown = inf.for_display(found)
    assert len(shown) == 1 and not shown.keypoints[0, 3].any() and found.keypoints[0, 3, 2] == np.float32(0.05)

def test_metric_mode_fills_and_display_mode_hides(checkpoint):
    image = picture(5)
    metric = inf.PosePredictor(checkpoint, display=False)(image)
    display = inf.PosePredictor(checkpoint, score_thr=0, joint_thr=0)(image)
    assert (metric.keypoints[..., 2] > 0).sum() > (display.keypoints[..., 2] > 0).sum()

# ---- finding files

def test_shipped_weights_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="enormous_pose.safetensors"): inf.shipped_weights("enormous")
    (tmp_path/"pretrained").mkdir()
    (tmp_path/"pretrained/enormous_pose.safetensors").touch()
    assert inf.shipped_weights("enormous").is_file()

def test_find_pictures(folder):
    found, others = find_pictures([folder])
    assert [p.name for p in found] == ["a.jpg", "b.png", "damaged.jpg"] and [p.name for p in others] == ["notes.txt"]
    assert [p.name for p in find_pictures([folder/"*.jpg"])[0]] == ["a.jpg", "damaged.jpg"]
    assert len(find_pictures([folder, folder/"a.jpg"])[0]) == 3
    for nothing in (folder/"*.bmp", folder/"none.jpg", folder/"more"):
        with pytest.raises(UserError, match=nothing.name.replace("*", r"\*")): find_pictures([nothing])

def test_a_name_with_brackets_is_a_name(tmp_path):
    write_image(tmp_path/"x[1].png", picture(1))
    assert len(find_pictures([tmp_path/"x[1].png"])[0]) == 1

def test_numbers_and_names(tmp_path):
    coco = [tmp_path/"000000000139.jpg", tmp_path/"000000000285.jpg"]
    assert list(number_pictures(coco)[0].values()) == [139, 285]
    mixed = [tmp_path/"a/x.jpg", tmp_path/"b/x.jpg", tmp_path/"a/x.png", tmp_path/"7.jpg"]
    ids, names = number_pictures(mixed)
    assert list(ids.values()) == [1, 2, 3, 4] and len(set(names.values())) == 4

# ---- folders

def test_real_pictures(checkpoint, tmp_path):
    pictures = Path(__file__).parents[2]/"shared/coco_mini/images/train2017"
    if not pictures.is_dir(): pytest.skip("needs ../shared/coco_mini")
    found, _ = find_pictures([pictures])
    results, failed = inf.pose_files(inf.PosePredictor(checkpoint, exif=False), found, tmp_path/"out", progress=False)
    assert not failed and len(list((tmp_path/"out").glob("*.jpg"))) == len(found) == 80
    assert {r["image_id"] for r in results} <= {int(p.stem) for p in found}
