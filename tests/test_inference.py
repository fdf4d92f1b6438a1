"""Poses in pictures: any picture in, what display mode hides, people out, and whole folders."""
import csv, json, sys
from pathlib import Path
import cv2
import numpy as np
import pytest
import torch
from golden_weights import load_golden
from PIL import Image
from hrnet_nbdev import inference as inf
from hrnet_nbdev.coco_eval import multi_scale_size, predict_maps, predict_poses
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

# ---- odd pictures: each is read as a viewer would show it, or refused in one sentence

def scene(): return np.ascontiguousarray(np.kron(picture(11, 12, 15), np.ones((8, 8, 1), np.uint8)))       # 96 x 120, blocks that survive JPEG

def grey(): return np.asarray(Image.fromarray(scene()).convert("L"))

def see_through(rgb):
    "Opaque but for the left columns, where pink is stored, and half of it in a strip."
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    rgba[:, :40], rgba[:, 40:48, 3] = (255, 0, 255, 0), 128
    return rgba

def white_paper():
    wanted = scene().astype(float)
    wanted[:, :40], wanted[:, 40:48] = 255, 255 * 127 / 255 + wanted[:, 40:48] * 128 / 255
    return wanted

def save(array, **how): return lambda path: Image.fromarray(array).save(path, **how)

ODD = {                                                          # name: (writer, what should be seen, tolerance of the mean)
    "grey.jpg": (save(grey()), grey()[..., None], 2), "grey.png": (save(grey()), grey()[..., None], 0),
    "sixteen.png": (save(grey().astype(np.uint16) * 257), grey()[..., None], 0),
    "colour16.tif": (lambda p: p.write_bytes(cv2.imencode(".tif", scene()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()), scene(), 0),
    "cmyk.jpg": (lambda p: Image.fromarray(scene()).convert("CMYK").save(p), scene(), 4),
    "transparent.png": (save(see_through(scene())), white_paper(), 1),
    "transparent.webp": (save(see_through(scene()), lossless=True), white_paper(), 1),
    "grey_transparent.png": (lambda p: Image.fromarray(grey()).convert("LA").save(p), grey()[..., None], 0),
    "palette.png": (lambda p: Image.fromarray(grey()).convert("P").save(p), grey()[..., None], 1),
    "hole.gif": (lambda p: Image.fromarray(np.zeros((96, 120), np.uint8), "P").save(p, transparency=0), np.full(3, 255), 0),
    "animation.gif": (lambda p: Image.fromarray(grey()).save(p, save_all=True, append_images=[Image.fromarray(255 - grey())] * 2), grey()[..., None], 1),
    "animation.webp": (save(scene(), save_all=True, append_images=[Image.fromarray(255 - scene())], lossless=True), scene(), 0),
    "bilevel.png": (lambda p: Image.fromarray(grey() > 127).save(p), np.where(grey() > 127, 255, 0)[..., None], 0),
    "wrong_name.jpg": (lambda p: Image.fromarray(scene()).save(p, format="PNG"), scene(), 0),
    "Grüße [1] 'x'.png": (save(scene()), scene(), 0),
}

@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_seen_as_a_viewer_shows_them(name, predictor, tmp_path):
    write, wanted, tolerance = ODD[name]
    write(tmp_path/name)
    seen = inf.as_picture(tmp_path/name)
    assert seen.dtype == np.uint8 and seen.shape == (96, 120, 3)
    assert np.abs(seen - wanted.astype(float)).mean() <= tolerance
    with Image.open(tmp_path/name) as opened: theirs = inf.as_picture(opened)           # others hand us PIL images
    assert np.abs(theirs - wanted.astype(float)).mean() <= max(tolerance, 1)
    results, failed = inf.pose_files(predictor, [tmp_path/name], tmp_path/"out", inf.VIEWS, progress=False)
    assert not failed and {r["file_name"] for r in results} <= {name} and len(list((tmp_path/"out").glob("*.jpg"))) == 4

@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_note(orientation, tmp_path):
    note = Image.Exif()
    note[0x0112] = orientation
    for name in ("p.jpg", "p.png"):
        Image.fromarray(scene()).save(tmp_path/name, exif=note, **dict(quality=95, subsampling=0) if name == "p.jpg" else {})
        turned = inf.as_picture(tmp_path/name)
        with Image.open(tmp_path/name) as opened: theirs = inf.as_picture(opened)
        assert turned.shape == theirs.shape and turned.shape[:2] == ((96, 120) if orientation < 5 else (120, 96))
        assert np.abs(turned - theirs.astype(float)).mean() < 1
        assert inf.as_picture(tmp_path/name, exif=False).shape == (96, 120, 3)

def jpeg(rgb): return cv2.imencode(".jpg", rgb)[1].tobytes()

BAD = {"empty.jpg": b"", "letter.jpg": b"Dear reader, " * 50, "head.jpg": jpeg(scene())[:100], "half.png": cv2.imencode(".png", scene())[1].tobytes()[:2000],
       "float.tif": cv2.imencode(".tif", scene().astype(np.float32) / 255)[1].tobytes(), "page.png": b"<html>404</html>"}

@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_named_and_the_rest_is_done(name, predictor, tmp_path):
    (tmp_path/name).write_bytes(BAD[name])
    with pytest.raises(UserError, match=f"{name} cannot be read") as said: predictor(tmp_path/name)
    assert "\n" not in str(said.value)
    write_image(tmp_path/"good.png", picture(5))
    _, failed = inf.pose_files(predictor, [tmp_path/name, tmp_path/"good.png"], tmp_path/"out", progress=False)
    assert len(failed) == 1 and name in failed[0] and (tmp_path/"out/good.jpg").is_file()

def test_a_folder_or_nothing_is_no_picture(predictor, tmp_path):
    for path in (tmp_path, tmp_path/"gone.jpg"):
        with pytest.raises(UserError, match="is missing"): predictor(path)

def test_pil_images_of_many_bits():
    deep = (grey().astype(np.uint16) * 257)
    for image in (Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))):
        np.testing.assert_array_equal(inf.as_picture(image)[..., 0], grey())
    with pytest.raises(ValueError, match="mode F"): inf.as_picture(Image.fromarray(grey().astype(np.float32)))

@pytest.mark.parametrize("w, h", [(1, 1), (1, 90), (90, 1), (3000, 1), (1, 3000), (2600, 130)])
def test_thin_pictures_have_a_bounded_network_input(w, h, predictor, tmp_path):
    image = picture(6, h, w)
    wide, high = predictor.input_size(image)
    assert wide * high <= 64 * 64 * (inf.MAX_ASPECT + 1)
    found = predictor(image)
    assert (found.keypoints[..., 0] < 2 * max(w, h)).all()
    write_image(tmp_path/"thin.png", image)
    _, failed = inf.pose_files(predictor, [tmp_path/"thin.png"], tmp_path/"out", inf.VIEWS, progress=False)
    assert not failed and read_image(tmp_path/"out/thin.jpg").shape == image.shape

def test_black_margins_move_nobody():
    "A person in a ribbon is found where it is, as in the same picture with the margin drawn by hand."
    model = inf.PosePredictor(tiny_model(), size=64, score_thr=0, joint_thr=0)
    ribbon = picture(8, 20, 400)
    by_hand = np.zeros((40, 400, 3), np.uint8)
    by_hand[:20] = ribbon
    assert len(model(ribbon)) and model(ribbon) == model(by_hand)

def test_a_huge_picture_in_all_views(predictor, tmp_path):
    "30 megapixels: skeletons in full size, views that fit a screen, everything in its place."
    image = cv2.resize(picture(9), (6400, 4800), interpolation=cv2.INTER_NEAREST)
    maps = predictor.maps(image)
    views = inf.draw_views(image, predictor.from_maps(*maps), maps)
    assert views["skeleton"].shape == image.shape
    assert views["heatmaps"].shape == views["tags"].shape == (1536, 2048, 3)
    h, w = maps[0].shape[-2:]
    spot = torch.zeros(17, h, w)
    spot[3, h // 4, w // 3] = 1
    seen = inf.draw_views(np.zeros_like(image), predictor.from_maps(*maps), (spot, *maps[1:]), ["heatmaps"])["heatmaps"].astype(float).sum(-1)
    x, y = [(np.indices(seen.shape)[i] * seen).sum() / seen.sum() for i in (1, 0)]
    wanted = inf.to_image_px(np.float32([[[w // 3, h // 4, 1]]]), maps[2])[0, 0, :2] * 2048 / 6400
    assert np.abs(np.array([x, y]) - wanted).max() < 2048 / w

# ---- batches, scales, precision, devices

def test_batches_give_the_same_people_in_the_order_of_the_list(checkpoint):
    pictures = [picture(i, *size) for i, size in enumerate([(70, 90), (90, 70), (70, 90), (64, 64), (70, 90), (90, 70)])]
    alone = inf.PosePredictor(checkpoint)(pictures)
    for batch_size in (2, 3, 10):
        for a, b in zip(alone, inf.PosePredictor(checkpoint, batch_size=batch_size)(pictures)):
            assert len(a) == len(b)
            np.testing.assert_allclose(a.keypoints, b.keypoints, atol=1e-3)
    same = inf.PosePredictor(checkpoint, batch_size=2)(np.stack([pictures[0], pictures[0], pictures[2]]))
    assert [len(p) for p in same] == [len(alone[0]), len(alone[0]), len(alone[2])]

def test_a_batch_is_one_pass_of_the_network(checkpoint):
    predictor, passes = inf.PosePredictor(checkpoint, batch_size=3), []
    predictor.model.register_forward_pre_hook(lambda _, inputs: passes.append(tuple(inputs[0].shape)))
    predictor([picture(1), picture(2, 90, 70), picture(3), picture(4), picture(5)])
    assert [p[0] for p in passes] == [3, 1, 1]

def test_pictures_are_taken_one_at_a_time(checkpoint):
    "Ten thousand pictures must not be in memory at once."
    taken, predictor = [], inf.PosePredictor(checkpoint, batch_size=2)
    def source():
        for n in range(6):
            taken.append(n)
            yield n, picture(n)
    for number, _, _ in predictor.stream(source()): assert len(taken) <= number + 2

def test_scales_are_those_of_the_evaluation(checkpoint):
    predictor = inf.PosePredictor(checkpoint, scales=(0.5, 1, 2), flip=True, display=False)
    heatmaps, tags, _ = predict_maps(predictor.model, picture(3), 64, True, scales=(0.5, 1, 2))
    ours = predictor.maps(picture(3))
    torch.testing.assert_close(ours[0], heatmaps)
    torch.testing.assert_close(ours[1], tags)
    with pytest.raises(UserError, match="scales"): inf.PosePredictor(checkpoint, scales=(0.5, 2))

def test_metric_mode_is_the_evaluation(checkpoint):
    poses, scores = predict_poses(inf.load_pose_model(checkpoint).eval(), picture(5), 64, flip=True)
    found = inf.PosePredictor(checkpoint, flip=True, display=False)(picture(5))
    best = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(found.keypoints, poses[best][..., :3], atol=1e-3)
    np.testing.assert_allclose(found.scores, scores[best], atol=1e-5)

def test_precision(checkpoint):
    plain = inf.PosePredictor(checkpoint).maps(picture(5))[0]
    error = {p: (inf.PosePredictor(checkpoint, precision=p).maps(picture(5))[0] - plain).abs().max() / plain.abs().max() for p in ("no", "fp16", "bf16")}
    assert error["no"] == 0 < error["fp16"] < error["bf16"] < 0.1
    assert inf.PosePredictor(checkpoint).precision == "no"                   # on a CPU
    with pytest.raises(UserError, match="precision"): inf.PosePredictor(checkpoint, precision="double")

def test_settings_that_will_not_do(checkpoint):
    with pytest.raises(UserError, match="batch size 0"): inf.PosePredictor(checkpoint, batch_size=0)
    with pytest.raises(UserError, match="'abacus'"): inf.PosePredictor(checkpoint, device="abacus")
    with pytest.raises(UserError, match="input size -3"): inf.PosePredictor(checkpoint, size=-3)
    with pytest.raises(UserError, match="gone.pth"): inf.PosePredictor("gone.pth")

def test_the_best_device_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert inf.pick_device() == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert inf.pick_device() == "cpu"

def test_an_onnx_file_takes_the_networks_place(checkpoint, tmp_path):
    from hrnet_nbdev.export import export_onnx
    export_onnx(checkpoint, tmp_path/"toy.onnx")
    ours, theirs = inf.PosePredictor(checkpoint, flip=True), inf.PosePredictor(tmp_path/"toy.onnx", flip=True)
    assert (theirs.size, theirs.schema) == (ours.size, ours.schema)
    torch.testing.assert_close(theirs.maps(picture(3))[0], ours.maps(picture(3))[0], atol=1e-3, rtol=1e-3)

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

def test_display_keeps_ids():
    found = people(one(), one(300), one(600), scores=[0.9, 0.01, 0.5])
    found.ids = np.array([5, 6, 7])
    assert inf.for_display(found).ids.tolist() == [5, 7]

# ---- people out

def tracked():
    found = people(one(), one(300, 0.5))
    found.keypoints[1, 4] = 0
    found.ids = np.array([7, 3])
    return found

def test_indexing():
    found = tracked()
    for some in (found[1], found[[1]], found[1:], found[found.scores < 0.75], found[-1], found[np.array([1])]):
        assert some == found[1] and some.ids.tolist() == [3] and len(some) == 1
    assert found[[1, 0]].ids.tolist() == [3, 7] and found[[1, 0]][[1, 0]] == found
    with pytest.raises(IndexError): found[2]

def test_equality():
    assert tracked() == tracked() and tracked() != tracked()[:1] and tracked() != "tracked"
    for change in (lambda p: p.keypoints[0, 0].__setitem__(0, 1), lambda p: p.scores.__setitem__(0, 9), lambda p: setattr(p, "ids", None),
                   lambda p: setattr(p, "ids", np.array([7, 4]))):
        other = tracked()
        change(other)
        assert other != tracked()
    assert tracked()[[]] == tracked()[[]]

def test_dataframe():
    import pandas
    table = tracked().to_dataframe()
    assert list(table) == ["person", "id", "person_score", "joint", "x", "y", "score", "tag"] and len(table) == 34
    ear = table[(table.id == 3) & (table.joint == "right_ear")].iloc[0]
    assert np.isnan([ear.x, ear.y, ear.tag]).all() and ear.score == 0
    nose = table[(table.person == 0) & (table.joint == "nose")].iloc[0]
    assert [nose.x, nose.y] == pytest.approx(one()[0, :2].tolist(), rel=1e-6)
    assert table.pivot(index="id", columns="joint", values="x").shape == (2, 17)
    assert "id" not in people(one()).to_dataframe() and isinstance(table, pandas.DataFrame)
    nobody = people(one())[[]].to_dataframe()
    assert len(nobody) == 0 and list(nobody) == ["person", "person_score", "joint", "x", "y", "score", "tag"]

def test_supervision(tmp_path):
    import supervision as sv
    found = tracked()
    theirs = found.to_supervision()
    np.testing.assert_array_equal(theirs.xy, found.keypoints[..., :2])
    np.testing.assert_array_equal(theirs.keypoint_confidence, found.keypoints[..., 2])
    assert theirs.data["tracker_id"].tolist() == [7, 3] and theirs.visible.sum() == 33
    assert theirs[theirs.detection_confidence > 0.75].data["tracker_id"].tolist() == [7]      # their filters keep ours together
    boxes = theirs.as_detections().xyxy
    np.testing.assert_allclose(boxes[0], np.r_[found.boxes[0, :2], found.boxes[0, :2] + found.boxes[0, 2:]], atol=1e-3)
    assert (sv.VertexAnnotator().annotate(picture(1), theirs) != picture(1)).any()
    assert len(found[[]].to_supervision()) == 0

@pytest.mark.parametrize("package, way", [("pandas", "to_dataframe"), ("supervision", "to_supervision")])
def test_packages_that_are_not_there(package, way, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"): getattr(people(one()), way)()

def test_drawing_takes_what_the_predictor_takes(tmp_path):
    image, found = picture(3), tracked()
    write_image(tmp_path/"p.png", image)
    for source in (tmp_path/"p.png", str(tmp_path/"p.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(found.draw(source), found.draw(image))
    found.ids = None
    assert (found.draw(image) != tracked().draw(image)).any()                # ids are written, and choose the colours

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

def test_folder(folder, checkpoint, tmp_path):
    "All that can be read is written, the rest is named; JSON and CSV say the same."
    pictures, _ = find_pictures([folder])
    predictor = inf.PosePredictor(checkpoint, score_thr=0, batch_size=2)
    results, failed = inf.pose_files(predictor, pictures, tmp_path/"out", ["skeleton", "tags"], progress=False, limbs="sides")
    assert [f.split(" cannot")[0] for f in failed] == [str(folder/"damaged.jpg")]
    assert {p.name for p in (tmp_path/"out").iterdir()} == {"a.jpg", "a.tags.jpg", "b.jpg", "b.tags.jpg", "results.json", "results.csv"}
    assert read_image(tmp_path/"out/a.jpg").shape == read_image(folder/"a.jpg").shape
    assert results == json.loads((tmp_path/"out/results.json").read_text()) and {r["file_name"] for r in results} == {"a.jpg", "b.png"}
    with open(tmp_path/"out/results.csv", newline="", encoding="utf-8") as file: rows = list(csv.DictReader(file))
    assert [(row["file"], row["score"]) for row in rows] == [(str(folder/r["file_name"]), f"{r['score']:.4f}") for r in results]
    for row, r in zip(rows, results):
        for k, name in enumerate(predictor.schema.names):
            x, y, score = r["keypoints"][3 * k:3 * k + 3]
            assert [row[f"{name}_{c}"] for c in ("x", "y", "score")] == ([f"{x:.2f}", f"{y:.2f}", f"{score:.4f}"] if score else [""] * 3)

def test_results_are_in_the_order_of_the_pictures_whatever_the_batches(checkpoint, tmp_path):
    names = [f"{n}.png" for n in range(5)]
    for n, name in enumerate(names): write_image(tmp_path/name, picture(n, *((70, 90) if n % 2 else (90, 70))))
    alone, together = (inf.pose_files(inf.PosePredictor(checkpoint, score_thr=0, batch_size=b), [tmp_path/n for n in names], tmp_path/str(b), progress=False)[0]
                       for b in (1, 3))
    assert [r["file_name"] for r in together] == [r["file_name"] for r in alone] == sorted(r["file_name"] for r in alone)

def test_an_interrupted_folder_keeps_what_is_done(checkpoint, tmp_path, monkeypatch):
    for n in range(4): write_image(tmp_path/f"{n}.png", picture(n))
    predictor, real = inf.PosePredictor(checkpoint, score_thr=0), inf.PosePredictor.batch_maps
    def impatient(self, images):
        if (images[0] == picture(2)).all(): raise KeyboardInterrupt
        return real(self, images)
    monkeypatch.setattr(inf.PosePredictor, "batch_maps", impatient)
    with pytest.raises(KeyboardInterrupt): inf.pose_files(predictor, sorted(tmp_path.glob("*.png")), tmp_path/"out", progress=False)
    assert {r["file_name"] for r in json.loads((tmp_path/"out/results.json").read_text())} == {"0.png", "1.png"}
    assert {p.name for p in (tmp_path/"out").iterdir()} == {"0.jpg", "1.jpg", "results.json", "results.csv"}

def test_unknown_views_are_refused_before_anything_is_written(predictor, tmp_path):
    with pytest.raises(UserError, match="'bones'"): inf.pose_files(predictor, [tmp_path/"a.png"], tmp_path/"out", ["bones"])
    assert not (tmp_path/"out").exists()

def test_real_pictures(checkpoint, tmp_path):
    pictures = Path(__file__).parents[2]/"shared/coco_mini/images/train2017"
    if not pictures.is_dir(): pytest.skip("needs ../shared/coco_mini")
    found, _ = find_pictures([pictures])
    results, failed = inf.pose_files(inf.PosePredictor(checkpoint, exif=False), found, tmp_path/"out", progress=False)
    assert not failed and len(list((tmp_path/"out").glob("*.jpg"))) == len(found) == 80
    assert {r["image_id"] for r in results} <= {int(p.stem) for p in found}
