"""The commands as a user meets them: --help, and one clear sentence for each mistake."""
import contextlib, importlib, io, json, os, shutil, subprocess, sys
import numpy as np
import pytest
from fastcore.script import anno_parser
from hrnet_nbdev.files import underscored, write_image, write_json
from hrnet_nbdev.hrnet import ClassificationHRNet
from hrnet_nbdev.synthetic import write_coco, write_imagenet
from hrnet_nbdev.weights import save_weights

MODULES = dict(hrnet_demo="demo", hrnet_synthetic="synthetic", hrnet_prepare_imagenet="prepare_imagenet", hrnet_prepare_coco="prepare_coco",
               hrnet_pretrain="imagenet", hrnet_eval_imagenet="eval_imagenet", hrnet_classify="classify", hrnet_train_pose="train_pose",
               hrnet_eval_coco="report", hrnet_pose="pose_video", hrnet_walk="walking", hrnet_export="export",
               hrnet_weights="weights")

def run(command, *args):
    "Run a command in this process, through its own command line; return (exit status, what it wrote to stderr and stdout)."
    f = getattr(importlib.import_module(f"hrnet_nbdev.{MODULES[command]}"), command)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            parsed = vars(anno_parser(f).parse_args([underscored(str(a)) for a in args]))
            f(**{k: v for k, v in parsed.items() if k not in ("pdb", "xtra")})
            status = 0
        except SystemExit as e: status = e.code or 0
    return status, err.getvalue(), out.getvalue()

def refuse(said, command, *args):
    "The command fails with one sentence that contains `said`."
    status, err, _ = run(command, *args)
    assert status not in (0, None) and "Traceback" not in err, err
    last = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(last) == 1 and said in last[0], err

@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return (write_coco(root / "coco", train=12, val=4, size=96, seed=7, workers=1),
            write_imagenet(root / "imagenet", train=2, val=1, size=48, seed=7, workers=1))

@pytest.mark.parametrize("command", MODULES)
def test_help(command):
    status, _, out = run(command, "--help")
    assert status == 0 and "usage:" in out and len(out.splitlines()) > 8

def test_a_real_process_takes_dashes_and_exits_with_one(tmp_path):
    r = subprocess.run([sys.executable, "-m", "hrnet_nbdev.imagenet", str(tmp_path), "--batch-size", "-3", "--preset", "tiny"], capture_output=True,
                       text=True, env=dict(os.environ, NO_ALBUMENTATIONS_UPDATE="1"))
    assert r.returncode == 1 and r.stderr.strip().splitlines()[-1] == "error: --batch-size must be positive, not -3"

def test_training_commands_refuse_bad_input(sets, tmp_path):
    coco, imagenet = sets
    pose = lambda said, *a: refuse(said, "hrnet_train_pose", *a, "--out", tmp_path / "p", "--cpu", "--workers", 0)
    pose("is not a folder", tmp_path / "nowhere")
    pose("preset 'huge' is unknown", coco, "--preset", "huge")
    pose("--batch-size must be positive, not -3", coco, "--preset", "tiny", "--batch_size", -3)
    pose("multiple of 32", coco, "--preset", "tiny", "--size", 100)
    pose("gone.safetensors", coco, "--preset", "tiny", "--weights", tmp_path / "gone.safetensors")
    classify = lambda said, *a: refuse(said, "hrnet_pretrain", *a, "--out", tmp_path / "c", "--cpu", "--workers", 0)
    classify("train is missing", tmp_path)
    classify("fewer than one batch", imagenet, "--preset", "tiny", "--batch_size", 64)

def test_half_extracted_and_wrong_annotations(sets, tmp_path):
    shutil.copytree(sets[0], tmp_path / "coco")
    first = sorted((tmp_path / "coco/images/train2017").iterdir())[0]
    first.unlink()
    refuse(first.name, "hrnet_train_pose", tmp_path / "coco", "--preset", "tiny", "--cpu", "--out", tmp_path / "run")
    file = tmp_path / "coco/annotations/person_keypoints_val2017.json"
    content = json.loads(file.read_text())
    write_json(file, dict(images=content["images"], annotations=[dict(id=1, image_id=1, caption="a cat")]))
    refuse("holds no key points", "hrnet_train_pose", tmp_path / "coco", "--preset", "tiny", "--cpu", "--out", tmp_path / "run")
    file.write_text('{"images": [')
    refuse("person_keypoints_val2017.json", "hrnet_train_pose", tmp_path / "coco", "--preset", "tiny", "--cpu", "--out", tmp_path / "run")

def test_unreadable_picture_in_a_loader_process(sets, tmp_path):
    "The sentence survives the way out of a worker process."
    shutil.copytree(sets[1], tmp_path / "imagenet")
    for path in (tmp_path / "imagenet/train").rglob("*.JPEG"): path.write_text("not a picture")
    refuse("cannot be read as a picture", "hrnet_pretrain", tmp_path / "imagenet", "--preset", "tiny", "--size", 32, "--batch_size", 8, "--steps", 2,
           "--cpu", "--workers", 1, "--out", tmp_path / "run")

def test_checkpoint_of_another_shape(sets, tmp_path):
    save_weights(ClassificationHRNet(width=8, num_classes=5, modules=(1, 1, 1), blocks=1, stem=16, head=4), tmp_path / "other.safetensors")
    refuse("other.safetensors", "hrnet_train_pose", sets[0], "--preset", "tiny", "--cpu", "--weights", tmp_path / "other.safetensors", "--out", tmp_path / "r")
    refuse("other.safetensors", "hrnet_eval_coco", "--weights", tmp_path / "other.safetensors", "--root", sets[0])

def test_folder_of_mixed_files(tmp_path):
    "hrnet_pose names what it cannot read, and does the rest."
    from hrnet_nbdev.higherhrnet import HigherHRNet
    save_weights(HigherHRNet(width=8, modules=(1, 1, 1), blocks=1, stem=16, deconv_blocks=1), tmp_path / "w.safetensors", input_size=64)
    pictures = tmp_path / "pictures"
    write_image(pictures / "good.jpg", np.full((60, 80, 3), 128, np.uint8))
    (pictures / "notes.txt").write_text("hello"); (pictures / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    status, err, _ = run("hrnet_pose", pictures, "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "out")
    assert status != 0 and "torn.jpg" in err and "Traceback" not in err
    assert any("good" in p.name for p in (tmp_path / "out").rglob("*"))
