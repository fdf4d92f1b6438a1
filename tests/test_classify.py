"""Classifying pictures and evaluating on class folders: odd files, odd checkpoints, several processes, the commands."""
import csv, json, os, shutil, subprocess, sys
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_cli import refuse, run
from hrnet_nbdev import classify, eval_imagenet
from hrnet_nbdev.classify import Guesses, Pictures, draw_guesses, load_classifier, names_for, predict_classes, spread
from hrnet_nbdev.eval_imagenet import class_table, confused_pairs, confusion, draw_confusion, published
from hrnet_nbdev.files import UserError
from hrnet_nbdev.hrnet import ClassificationHRNet
from hrnet_nbdev.imagenet import ImageNet, eval_transform, evaluate_classifier
from hrnet_nbdev.synthetic import write_imagenet
from hrnet_nbdev.weights import save_weights

TINY = dict(width=8, modules=(1, 1, 1), blocks=1, stem=16, head=4)

def tiny(classes=10, seed=0):
    torch.manual_seed(seed)
    model = ClassificationHRNet(num_classes=classes, **TINY)
    for m in model.modules():        # statistics as after a training: the untouched ones of a fresh network make all answers alike
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, 0.2); m.running_var.uniform_(0.5, 1.5)
    return model.eval()

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "An ImageNet folder of 70 + 30 pictures, and a checkpoint that knows its classes."
    folder = tmp_path_factory.mktemp("classify")
    root = write_imagenet(folder / "imagenet", train=1, val=3, size=48, seed=9, workers=1)
    save_weights(tiny(), folder / "tiny.safetensors", input_size=32, classes=",".join(ImageNet(root, "val").wnids))
    return folder

@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "One picture in every kind of file that users have, all of the same content."
    folder = tmp_path_factory.mktemp("odd")
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pil, turned = Image.fromarray(np.stack([np.tile(ramp, (48, 1))] * 3, -1)), Image.Exif()
    turned[0x0112] = 6
    for mode, name in (("RGB", "rgb.png"), ("RGB", "rgb.jpg"), ("L", "grey.png"), ("L", "grey.jpg"), ("CMYK", "cmyk.jpg"), ("RGBA", "alpha.png"), ("LA", "greyalpha.png"),
                       ("P", "palette.png"), ("1", "bits.png"), ("RGB", "bitmap.bmp"), ("RGB", "scan.tiff"), ("CMYK", "cmyk.tif"), ("RGB", "web.webp")):
        pil.convert(mode).save(folder / name)
    Image.fromarray(np.tile(ramp.astype(np.uint16) * 257, (48, 1))).save(folder / "deep.png")
    pil.rotate(90, expand=True).save(folder / "phone.jpg", exif=turned)          # lies on its side; EXIF sets it upright
    return folder

def test_all_kinds_of_pictures_look_the_same(pictures):
    files = sorted(pictures.iterdir())
    data = Pictures(files, eval_transform(32))
    want = data[files.index(pictures / "rgb.png")]["image"].float()
    for path, item in zip(files, data):
        assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.uint8, path
        allowed = 80 if path.name == "bits.png" else 8                            # dithered black and white
        assert (item["image"].float() - want).abs().mean() < allowed, path

def test_torn_files_are_named_not_guessed_at(pictures, tmp_path):
    whole = (pictures / "rgb.jpg").read_bytes()
    for name, content in (("torn.jpg", whole[:len(whole) // 2]), ("empty.png", b""), ("text.bmp", b"hello"), ("page.jpg", b"<html>")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be read as a picture"): Pictures([tmp_path / name], eval_transform(32)).read(0)
    with pytest.raises(UserError, match="gone.jpg is missing"): Pictures([tmp_path / "gone.jpg"], eval_transform(32)).read(0)

@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 12))
def test_every_picture_once_in_order(n, batch_size, k):
    data = [dict(image=torch.full((3, 32, 32), 8 * i, dtype=torch.uint8), label=i % 3) for i in range(n)]
    found = predict_classes(tiny(7), data, 32, batch_size=batch_size, k=k)
    assert found.index.tolist() == list(range(n)) and found.labels.tolist() == [i % 3 for i in range(n)]
    assert found.classes.shape == (n, min(k, 7)) and (np.diff(found.probabilities) <= 0).all()
    assert all(len(set(row)) == len(row) for row in found.classes.tolist())

def test_a_training_folder_reads_the_same_kinds(place, tmp_path):
    "16 bits a channel, in a class folder: as `hrnet_classify` reads it, not as numbers up to 65535."
    for split in ("train", "val"):
        (tmp_path / split / "n00000001").mkdir(parents=True)
        assert cv2.imwrite(str(tmp_path / split / "n00000001" / "deep.png"), (np.arange(64 * 64 * 3).reshape(64, 64, 3) * 5).astype(np.uint16))
    item = ImageNet(tmp_path, "val", eval_transform(32))[0]["image"]
    assert item.dtype == torch.uint8 and item.shape == (3, 32, 32)
    assert torch.equal(item, Pictures([tmp_path / "val/n00000001/deep.png"], eval_transform(32))[0]["image"])

def test_agrees_with_the_evaluation_of_training(place):
    model, data = tiny(), ImageNet(place / "imagenet", "val", eval_transform(32))
    found = predict_classes(model, data, 32, batch_size=7)
    assert evaluate_classifier(model, data) == pytest.approx(dict(top1=found.accuracy(1), top5=found.accuracy(5)), abs=1e-6)

def test_workers_and_half_precision_change_little(place):
    data = ImageNet(place / "imagenet", "val", eval_transform(32))
    one, two, half = (predict_classes(tiny(), data, 32, batch_size=8, **o) for o in ({}, dict(workers=2), dict(precision="bf16")))
    assert np.array_equal(one.classes, two.classes) and np.array_equal(one.probabilities, two.probabilities)
    assert np.abs(one.probabilities - half.probabilities).max() < 0.05

def test_limit_of_unreadable_pictures(place, tmp_path):
    shutil.copytree(place / "imagenet", tmp_path / "imagenet")
    bad = sorted((tmp_path / "imagenet/val").rglob("*.JPEG"))[4:9:4]
    for path in bad: path.write_bytes(b"")
    data = ImageNet(tmp_path / "imagenet", "val", eval_transform(32))
    for allowed in (0, 1):
        with pytest.raises(UserError, match=bad[allowed].name): predict_classes(tiny(), data, 32, batch_size=4, max_bad=allowed)
    found = predict_classes(tiny(), data, 32, batch_size=4, max_bad=2, workers=1)
    assert len(found) == 28 and [p.name in m for p, m in zip(bad, found.unreadable)] == [True, True]
    assert set(range(30)) - set(found.index.tolist()) == {4, 8}

def official(model): return {n: v for n, v in model.state_dict().items()}
LAYOUTS = dict(official=official, trainer=lambda m: dict(state_dict={f"module.{n}": v for n, v in official(m).items()}, epoch=3),
               half=lambda m: {n: v.half() if v.is_floating_point() else v for n, v in official(m).items()},
               ssld=lambda m: {n: v for n, v in official(m).items() if not (n.endswith(".0.bias") and n.startswith(("downsamp", "final_layer")))})

@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_others(layout, tmp_path):
    model = tiny(12)
    if layout == "ssld":
        for part in (*model.downsamp_modules, model.final_layer): torch.nn.init.zeros_(part[0].bias)
    torch.save(LAYOUTS[layout](model), tmp_path / "w.pth")
    found, info = load_classifier(tmp_path / "w.pth")
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(found(x), model(x), rtol=1e-2 if layout == "half" else 1e-6, atol=1e-2 if layout == "half" else 1e-6)
    assert names_for(info, "nowhere")[11] == "class 11"

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_confusion_is_the_loop(pairs):
    labels, first = np.array(pairs).T
    naive = np.zeros((5, 5), int)
    for t, g in pairs: naive[t, g] += 1
    matrix = confusion(labels, first, 5)
    assert np.array_equal(matrix, naive)
    found = confused_pairs(matrix, 25)
    assert sum(n for *_, n in found) == sum(t != g for t, g in pairs) and all(t != g and naive[t, g] == n for t, g, n in found)
    assert [n for *_, n in found] == sorted((n for *_, n in found), reverse=True)
    table = class_table(Guesses(np.arange(len(pairs)), labels, first[:, None], np.ones((len(pairs), 1)), [], 1.0), list("abcde"), list("ABCDE"))
    assert sum(r["pictures"] for r in table) == len(pairs)
    assert sum(r["pictures"] * r["top1"] for r in table if r["pictures"]) == pytest.approx(sum(t == g for t, g in pairs))

def test_published_figures_only_beside_their_networks():
    assert published(ClassificationHRNet(18).config) == dict(top1=0.768, top5=0.934)
    assert not published(dict(ClassificationHRNet(18).config, num_classes=100)) and not published(tiny().config)

def test_pictures_can_be_drawn_for_any_names():
    image = np.zeros((30, 500, 3), np.uint8)
    assert draw_guesses(image, ["Fußgängerübergang, der sehr lange heißt und noch länger", "犬"], [1.0, 0.0], "nothing", height=120).shape[0] == 120
    assert draw_guesses(image.transpose(1, 0, 2), ["a"], [0.5]).shape[0] == 240
    assert draw_confusion(np.zeros((2, 2), int), ["a", "b"]).dtype == np.uint8      # no picture at all: nothing is divided by zero
    assert spread(10, 10).tolist() == list(range(10)) and len(set(spread(1000, 7))) == 7

def evaluate(place, *more): return ("hrnet_eval_imagenet", "--weights", place / "tiny.safetensors", "--root", place / "imagenet", "--cpu", "--workers", 0, *more)

def test_eval_command(place, tmp_path):
    status, err, said = run(*evaluate(place, "--out", tmp_path, "--batch-size", 7))
    assert status == 0, err
    result, rows = json.loads((tmp_path / "result.json").read_text()), list(csv.DictReader(open(tmp_path / "classes.csv")))
    assert (result["pictures"], result["settings"]["size"], len(result["checkpoint"]["sha256"]), result["published"]) == (30, 32, 64, {})
    assert f"top-1 {result['top1']:7.2%}" in said and len(rows) == 10
    assert np.mean([float(r["top1"]) for r in rows]) == pytest.approx(result["top1"])
    assert Image.open(tmp_path / "confusion.jpg").size > (400, 400) and (tmp_path / "pairs.jpg").exists()
    status, _, _ = run(*evaluate(place, "--out", tmp_path / "some", "--size", 64, "--limit", 10, "--crop", 1))
    result = json.loads((tmp_path / "some/result.json").read_text())
    assert status == 0 and (result["pictures"], result["settings"]["size"]) == (10, 64) and "short side to 64 px" in result["protocol"]

def test_eval_command_refuses(place, tmp_path):
    no = lambda said, *more: refuse(said, *evaluate(place, *more))
    no("nowhere/val is missing", "--root", "nowhere")
    no("test is missing", "--split", "test")
    no("multiple of 32", "--size", 100)
    no("--crop must be above 0", "--crop", 0)
    no("--batch-size must be at least 1", "--batch-size", 0)
    no("--limit -2", "--limit", -2)
    no("precision 'half' is unknown", "--precision", "half")
    no("neither a file nor a known name", "--weights", tmp_path / "gone.pth")
    save_weights(tiny(3), tmp_path / "three.safetensors")
    no("three.safetensors knows 3 classes", "--weights", tmp_path / "three.safetensors")
    save_weights(tiny(), tmp_path / "other.safetensors", classes=",".join("abcdefghij"))
    no("trained on other classes", "--weights", tmp_path / "other.safetensors")
    no("holds a pose model", "--weights", os.path.join(os.path.dirname(__file__), "../pretrained/tiny_pose.safetensors"))
    shutil.copytree(place / "imagenet", tmp_path / "imagenet")
    next((tmp_path / "imagenet/val").rglob("*.JPEG")).write_text("no picture")
    no("cannot be read as a picture", "--root", tmp_path / "imagenet")
    status, _, said = run(*evaluate(place, "--root", tmp_path / "imagenet", "--max-bad", 1, "--out", tmp_path / "out"))
    assert status == 0 and "left out:" in said and len(json.loads((tmp_path / "out/result.json").read_text())["unreadable"]) == 1

def test_two_processes_count_like_one(place, tmp_path):
    "30 pictures over two processes in batches of 4: nothing twice, nothing lost."
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29733", "-m", "hrnet_nbdev.eval_imagenet"]
    args = [str(a) for a in evaluate(place, "--batch-size", 4, "--out", tmp_path / "two")[1:]]
    done = subprocess.run(torchrun + args, capture_output=True, text=True, timeout=200, env=dict(os.environ, OMP_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1"))
    assert done.returncode == 0 and done.stdout.count("top-1") == 1, done.stderr
    assert run(*evaluate(place, "--out", tmp_path / "one"))[0] == 0
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert (one["top1"], one["top5"], one["pictures"]) == (two["top1"], two["top5"], two["pictures"]) and two["processes"] == 2
    assert (tmp_path / "one/classes.csv").read_text() == (tmp_path / "two/classes.csv").read_text()

def guess(place, *more): return ("hrnet_classify", "--weights", place / "tiny.safetensors", "--root", place / "imagenet", "--cpu", *more)

def test_classify_command(place, pictures, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(pictures, mixed)
    (mixed / "notes.txt").write_text("hello"); (mixed / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    status, err, said = run(*guess(place, mixed, pictures / "rgb.png", "--out", tmp_path / "out", "--draw", 3))
    assert status == 1 and "torn.jpg cannot be read" in err and "Traceback" not in err and "notes.txt" in said
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert len(found["pictures"]) == 16 and len(found["unreadable"]) == 1 and len(found["sha256"]) == 64
    for r in found["pictures"]:
        ps = [g["probability"] for g in r["guesses"]]
        assert len(ps) == 5 and ps == sorted(ps, reverse=True) and sum(ps) <= 1 + 1e-6 and r["truth"] == ""
    assert {g["name"] for r in found["pictures"] for g in r["guesses"]} <= set(ImageNet(place / "imagenet", "val").names)
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3

def test_classify_a_split_and_a_pattern(place, pictures, tmp_path):
    status, _, said = run(*guess(place, "--split", "val", "--limit", 6, "--top", 2, "--out", tmp_path / "split"))
    found = json.loads((tmp_path / "split/results.json").read_text())["pictures"]
    assert status == 0 and "of 6 pictures, top-1" in said and len({r["truth"] for r in found}) > 3 and len(found[0]["guesses"]) == 2
    assert run(*guess(place, pictures / "grey.*", "--out", tmp_path / "grey"))[0] == 0
    assert sorted(p.name for p in (tmp_path / "grey").glob("*.jpg")) == ["grey-2.jpg", "grey.jpg"]

def test_classify_command_refuses(place, pictures, tmp_path):
    no = lambda said, *more: refuse(said, *guess(place, *more))
    no("give pictures, folders or patterns")
    no("give pictures, folders or patterns", pictures, "--split", "val")
    no("foto: no picture there", "foto")
    no("holds the pictures themselves", pictures, "--out", pictures)
    no("--top and --batch-size must be at least 1", pictures, "--top", 0)
    no("multiple of 32", pictures, "--size", 33)
    no("neither a file nor a known name", pictures, "--weights", "gone")
    (tmp_path / "imagenet").mkdir(); (tmp_path / "imagenet/wordnet_labels.yaml").write_text("a: b: c")
    no("wordnet_labels.yaml is not a list", pictures, "--root", tmp_path / "imagenet")

def test_names():
    stranger = lambda n, **m: dict(config=dict(num_classes=n), metadata=m)
    assert names_for(stranger(1000), "nowhere")[207] == "golden retriever" and names_for(stranger(2), "nowhere") == ["class 0", "class 1"]
    assert names_for(stranger(2, classes="n1,n2"), "nowhere") == ["n1", "n2"]
    assert names_for(stranger(3, classes="n1,n2"), "nowhere")[0] == "class 0"       # notes that do not fit the network are not believed
    assert classify.checkpoint_wnids(stranger(1)) == [] and eval_imagenet.PUBLISHED.keys() == {18, 32, 48}
