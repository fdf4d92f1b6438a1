"""ONNX files: the same numbers as torch at any size, the same people, and a sentence for whatever cannot be."""
import json, subprocess, sys
import numpy as np
import onnx
import pytest
import torch
from golden_weights import load_golden
from test_cli import refuse, run
from hrnet_nbdev import export
from hrnet_nbdev.coco_eval import aggregate_heads, predict_dataset
from hrnet_nbdev.data import COCO_SCHEMA, CocoPoses, normalize
from hrnet_nbdev.export import OnnxPose, candidates, export_onnx, largest_difference, open_session, write_graph
from hrnet_nbdev.files import UserError, file_hash, read_image
from hrnet_nbdev.grouping import adjust_joints, group, match, parabola_offset, top_k
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.hrnet import ClassificationHRNet, HRNet
from hrnet_nbdev.inference import PosePredictor, shipped_weights
from hrnet_nbdev.scale_aware import ScaleAwareHigherHRNet
from hrnet_nbdev.synthetic import write_coco
from hrnet_nbdev.weights import save_weights

SMALL = dict(modules=(1, 1, 1), blocks=1, stem=16)

def pose_model(width=8, joints=17): return load_golden(HigherHRNet(width, joints, deconv_blocks=1, **SMALL))

@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("onnx")

@pytest.fixture(scope="module")
def checkpoint(folder):
    save_weights(pose_model(), folder / "toy.safetensors", input_size=64, udp=True, category=json.dumps(COCO_SCHEMA.category))
    return folder / "toy.safetensors"

@pytest.fixture(scope="module")
def files(folder, checkpoint):
    "The same model with maps and with candidates."
    for name, count in (("maps", 0), ("top", 12)): export_onnx(checkpoint, folder / f"{name}.onnx", count)
    return folder / "maps.onnx", folder / "top.onnx"

# ---- numbers

def test_maps_equal_torch_at_other_sizes_and_batches(files):
    pose, model = OnnxPose(files[0], threads=1), pose_model()
    for shape in ((1, 3, 32, 32), (1, 3, 128, 192), (2, 3, 256, 160), (5, 3, 64, 32)):
        images = torch.randn(shape)
        with torch.no_grad(): want = model(images)
        assert max(float(w.abs().max()) for w in want) > 0.1                # of such numbers 1e-4 is little
        for got, same, w in zip(pose(images), pose(images.numpy()), want):
            assert torch.is_tensor(got) and isinstance(same, np.ndarray) and got.shape == same.shape == w.shape
            np.testing.assert_array_equal(got, same)
            assert float((got - w).abs().max()) < 1e-4

@pytest.mark.parametrize("model,count", [
    (lambda: pose_model(16, 5), 0), (lambda: pose_model(16, 5), 3), (lambda: load_golden(ClassificationHRNet(8, num_classes=7, head=8, **SMALL)), 0),
    (lambda: ScaleAwareHigherHRNet(8, 3, deconv_blocks=1, **SMALL).train(), 0)], ids=["other width and joints", "candidates", "classifier", "scale-aware, in training"])
def test_all_kinds_of_models(model, count, tmp_path):
    model = model()
    training, before = model.training, {k: v.clone() for k, v in model.state_dict().items()}
    assert export_onnx(model, tmp_path / "m.onnx", count) < 1e-5
    assert model.training == training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

@pytest.mark.parametrize("opset", [13, 20])
def test_other_versions_of_the_operators(opset, tmp_path):
    assert export_onnx(pose_model(joints=2), tmp_path / "m.onnx", 5, opset) < 1e-5
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == opset

def test_normalize_is_that_of_the_data(files):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(OnnxPose(files[0]).normalize(images), normalize(torch.from_numpy(images).permute(0, 3, 1, 2)), atol=1e-6)

# ---- candidates

class Peaks(torch.nn.Module):
    "Pictures as heatmaps, and something else as tags."
    def forward(self, images): return candidates(images, images.flip(1) * 3 - 1, 20)

@pytest.mark.parametrize("levels", [0, 9], ids=["noise", "full of ties"])
def test_the_graph_finds_what_top_k_finds(levels, tmp_path):
    write_graph(Peaks(), tmp_path / "peaks.onnx", ["tag_k", "loc_k", "val_k"], 17)
    session, random = open_session(tmp_path / "peaks.onnx", threads=1), np.random.default_rng(1)
    for shape in ((2, 3, 64, 96), (1, 3, 33, 47), (3, 3, 8, 200)):
        heat = random.normal(size=shape).astype(np.float32)
        if levels: heat = np.round(heat * levels / 4) / levels
        tag_k, loc_k, val_k = session.run(None, {"images": heat})
        heatmaps, tags = torch.from_numpy(heat), torch.from_numpy(heat).flip(1) * 3 - 1
        for got, want in zip((tag_k, np.floor(loc_k), val_k), top_k(heatmaps, tags[..., None], 20, det_thr=0, nms_kernel=3)):
            np.testing.assert_array_equal(got, want)
        # the places within the pixels are the fast decoder's
        whole = torch.from_numpy(np.concatenate([np.floor(loc_k), val_k[..., None]], -1)).transpose(1, 2).flatten(0, 1)      # [B * M, K, 3]
        image = torch.arange(shape[0]).repeat_interleave(20)
        np.testing.assert_allclose(loc_k.swapaxes(1, 2).reshape(-1, 3, 2), adjust_joints(whole, heatmaps, image, parabola_offset)[..., :2], atol=1e-3)

def test_few_peaks_leave_zeros():
    heat = torch.full((1, 1, 16, 16), -1.0)
    heat[0, 0, 3, 4] = 0.5
    tag_k, loc_k, val_k = candidates(heat, torch.ones_like(heat), 4)
    assert val_k.flatten().tolist() == [0.5, 0, 0, 0] and tag_k.flatten().tolist() == [1, 0, 0, 0]
    assert loc_k[0, 0].tolist() == [[4.5, 3.5], [0, 0], [0, 0], [0, 0]]

def test_people_from_candidates(files):
    "`match` makes of the file's candidates the people that `group` finds in torch's maps."
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    people = match(*(found[0] for found in OnnxPose(files[1]).candidates(images.numpy())), max_people=12)
    with torch.no_grad(): heat, tags = aggregate_heads(pose_model()(images), udp=True)
    want, _ = group(heat[0], tags[0, ..., None], max_people=12, nms_kernel=3, place=parabola_offset, refine=False)
    assert len(people) == len(want) > 0
    np.testing.assert_allclose(people, want, atol=1e-3)

# ---- what the file says, and that it is whole

def test_notes(files, checkpoint):
    pose, top = map(OnnxPose, files)
    assert (pose.top_k, top.top_k, pose.config["num_joints"]) == (0, 12, 17)
    for key, value in dict(input_size="64", udp="True", checkpoint="toy.safetensors", sha256=file_hash(checkpoint), model="HigherHRNet").items(): assert pose.said[key] == value
    assert json.loads(pose.said["category"])["keypoints"] == list(COCO_SCHEMA.names) and set(json.loads(pose.said["versions"])) == {"hrnet_nbdev", "torch", "onnx"}
    for file in files: assert str(checkpoint.parent).encode() not in file.read_bytes() and b"/hrnet_nbdev/" not in file.read_bytes()

def test_a_wrong_graph_is_not_kept(tmp_path, monkeypatch):
    other = pose_model(joints=3)
    other.final_layers[1].bias.data[2] += 0.001
    honest = export.write_graph
    monkeypatch.setattr(export, "write_graph", lambda module, *rest: honest(other, *rest))
    file = tmp_path / "m.onnx"
    file.write_bytes(b"an older file")
    with pytest.raises(UserError, match="m.onnx is not written: onnxruntime and torch differ by 1.0e-03"): export_onnx(pose_model(joints=3), file)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and file.read_bytes() == b"an older file"

def test_wrong_candidates_are_noticed(tmp_path):
    "The window of the suppression is 5 in place of 3: the maps agree, the candidates do not."
    module = export.with_candidates(pose_model(joints=3), 30, False)
    write_graph(module, tmp_path / "m.onnx", export.WITH_TOP_K, 17)
    assert largest_difference(tmp_path / "m.onnx", module, export.WITH_TOP_K) < 1e-5
    graph = onnx.load(tmp_path / "m.onnx")
    pool = next(n for n in graph.graph.node if n.op_type == "MaxPool")
    for attribute in pool.attribute:
        if attribute.name in ("kernel_shape", "pads"): attribute.ints[:] = [n // 3 * 5 or 2 for n in attribute.ints]
    onnx.save(graph, tmp_path / "m.onnx")
    assert largest_difference(tmp_path / "m.onnx", module, export.WITH_TOP_K) == np.inf

def test_not_a_number(tmp_path):
    broken = pose_model(joints=3)
    broken.final_layers[1].bias.data[0] = torch.nan
    with pytest.raises(UserError, match="differ by nan"): export_onnx(broken, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())

# ---- in the network's place

@pytest.fixture(scope="module")
def scenes(tmp_path_factory): return CocoPoses(write_coco(tmp_path_factory.mktemp("scenes") / "coco", train=0, val=6, size=128, seed=5, workers=1), "val", only_annotated=False)

@pytest.fixture(scope="module")
def shipped(folder):
    export_onnx(shipped_weights(), folder / "tiny.onnx")
    return folder / "tiny.onnx"

@pytest.mark.parametrize("options", [dict(), dict(flip=True, display=False), dict(decoder="fast", flip=True)], ids=str)
def test_the_same_people(options, scenes, shipped):
    pictures = [read_image(scenes.image_path(i)) for i in range(len(scenes))]
    network, file = PosePredictor(**options, device="cpu"), PosePredictor(shipped, **options)
    assert file.size == network.size == 128
    found = list(zip(network(pictures), file(pictures)))
    assert sum(len(a) for a, _ in found) > 5
    for a, b in found:
        assert len(a) == len(b)
        np.testing.assert_allclose(a.keypoints[..., :2], b.keypoints[..., :2], atol=0.01)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)

def test_notes_reach_the_predictor(files):
    predictor = PosePredictor(files[0])
    assert (predictor.size, predictor.udp, predictor.schema.names) == (64, True, COCO_SCHEMA.names)

def test_evaluation_of_a_file(scenes, shipped):
    options = dict(input_size=128, flip=False, progress=False, precision="bf16")       # the file computes in its own precision
    pose = OnnxPose(shipped, threads=1)
    results = predict_dataset(pose, scenes, **options)
    assert results == predict_dataset(pose, scenes, **options | dict(precision="no")) and len(results) > 5
    with pytest.raises(ValueError, match="cannot be trained"): pose.train()

# ---- without torch, without onnxruntime

def test_the_file_runs_where_there_is_no_torch(files):
    script = """if True:
        import sys
        sys.modules["torch"] = sys.modules["onnx"] = None
        import numpy as np
        from hrnet_nbdev.export import OnnxPose
        assert "onnxruntime" not in sys.modules and "matplotlib" not in sys.modules
        for file, run in zip(sys.argv[1:], ("__call__", "candidates")):
            pose = OnnxPose(file, threads=1)
            print([m.shape for m in getattr(pose, run)(pose.normalize(np.zeros((1, 64, 96, 3), np.uint8)))])
        """
    done = subprocess.run([sys.executable, "-c", script, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[(1, 34, 16, 24), (1, 17, 32, 48)]", "[(1, 17, 12, 1), (1, 17, 12, 2), (1, 17, 12)]"]

def test_onnxruntime_is_missing(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"): OnnxPose(files[0])

# ---- mistakes

def test_wrong_files_for_the_runner(folder, files, tmp_path):
    cases = {"gone.onnx is missing": tmp_path / "gone.onnx"}
    (tmp_path / "text.onnx").write_text("a shopping list"); cases["text.onnx is damaged or no ONNX file"] = tmp_path / "text.onnx"
    (tmp_path / "torn.onnx").write_bytes(files[0].read_bytes()[:5000]); cases["torn.onnx is damaged"] = tmp_path / "torn.onnx"
    (tmp_path / "empty.onnx").touch(); cases["empty.onnx is "] = tmp_path / "empty.onnx"
    export_onnx(ClassificationHRNet(8, num_classes=3, head=8, **SMALL), tmp_path / "classes.onnx")
    cases["holds a ClassificationHRNet, not a pose model"] = tmp_path / "classes.onnx"
    write_graph(torch.nn.Conv2d(3, 2, 1), tmp_path / "other.onnx", ["y"], 17)
    cases["other.onnx is somebody else's ONNX file .from images to y."] = tmp_path / "other.onnx"
    for said, file in cases.items():
        with pytest.raises(UserError, match=said) as e: OnnxPose(file)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="has no WarpDrive: choose among .*CPUExecutionProvider"): OnnxPose(files[0], ["WarpDrive"])

@pytest.mark.parametrize("shape", [(1, 3, 100, 64), (1, 3, 64, 100), (3, 64, 64), (1, 1, 64, 64), (1, 3, 0, 64)])
def test_wrong_pictures_for_the_runner(shape, files):
    with pytest.raises(UserError, match=r"multiples of 32, not \["): OnnxPose(files[0])(np.zeros(shape, np.float32))

def test_maps_are_not_candidates(files):
    images = np.zeros((1, 3, 32, 32), np.float32)
    with pytest.raises(UserError, match="maps.onnx gives maps and no candidates"): OnnxPose(files[0]).candidates(images)
    with pytest.raises(UserError, match="top.onnx gives 12 candidates a joint"): OnnxPose(files[1])(images)

def test_other_networks_are_not_exported(tmp_path):
    for model in (torch.nn.Conv2d(3, 3, 1), HRNet(8, **SMALL)):
        with pytest.raises(UserError, match=f"a {type(model).__name__} is not what is exported"): export_onnx(model, tmp_path / "m.onnx")

# ---- the command

def test_command(checkpoint, tmp_path):
    copy = tmp_path / "best.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    status, err, out = run("hrnet_export", copy, "--input-size", 96)
    assert status == 0 and not err and "largest difference from torch" in out, err
    assert OnnxPose(tmp_path / "best.onnx").said["input_size"] == "96"
    assert run("hrnet_export", copy, "--top-k", 3)[0] == 0 and OnnxPose(tmp_path / "best.top3.onnx").top_k == 3

def test_an_onnx_file_is_no_checkpoint(files, tmp_path):
    "It is not called damaged by the commands that want one."
    refuse("maps.onnx is an ONNX file", "hrnet_weights", "inspect", files[0])
    refuse("maps.onnx is an ONNX file", "hrnet_export", files[0], "--out", tmp_path / "again.onnx")

def test_command_refuses(checkpoint, tmp_path):
    save_weights(ClassificationHRNet(8, num_classes=3, head=8, **SMALL), tmp_path / "classes.safetensors")
    (tmp_path / "text.pth").write_text("a shopping list")
    refuse("gone.pth", "hrnet_export", tmp_path / "gone.pth")
    refuse("text.pth is damaged", "hrnet_export", tmp_path / "text.pth")
    refuse("must end with .onnx", "hrnet_export", checkpoint, "--out", tmp_path / "m.pb")
    refuse("--top-k is about the peaks of heatmaps", "hrnet_export", tmp_path / "classes.safetensors", "--top-k", 30)
    refuse("--top-k 300 will not do", "hrnet_export", checkpoint, "--top-k", 300)
    refuse("--top-k -1 will not do", "hrnet_export", checkpoint, "--top-k", -1)
    refuse("--opset 99 will not do", "hrnet_export", checkpoint, "--opset", 99)
    refuse("--input-size -5 will not do", "hrnet_export", checkpoint, "--input-size", -5)
    assert not list(tmp_path.glob("*.onnx"))
