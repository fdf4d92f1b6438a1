"""HRNet and its classifier against the golden figures, the papers' counts and timm."""
import json, re, subprocess, sys, zlib

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, golden_entry, golden_input, load_golden
from hypothesis import given, settings, strategies as st

from hrnet_nbdev.hrnet import BasicBlock, Bottleneck, ClassificationHRNet, HRNet, count_macs, count_parameters

GI = 2 ** 30  # the papers' G


def ghost(kind, **config):
    with torch.device('meta'): return kind(**config)


def read(name): return json.loads((GOLDEN / name).read_text())


@pytest.mark.parametrize('file', sorted(p.name for p in GOLDEN.glob('weight_check_*.json')))
def test_the_rule_that_draws_weights(file):
    check = read(file)
    for name, want in check['entries'].items():
        value = golden_entry(name, want['shape'], check['salt'])
        assert str(value.dtype) == want['dtype'] and list(value.shape) == want['shape']
        np.testing.assert_allclose(value.ravel()[:4], np.ravel(want['first'])[:4], rtol=1e-6)
        np.testing.assert_allclose(value.astype(np.float64).sum(), want['sum'], rtol=1e-6, atol=1e-6)
        assert zlib.crc32(np.ascontiguousarray(value).tobytes()) == want['crc32'], name


def width_of(path): return int(re.search(r'_w(\d+)', path.name)[1])


@pytest.mark.parametrize('path', sorted(GOLDEN.glob('model_cls_w*_names.json')), ids=lambda p: p.stem)
def test_names_shapes_and_order_are_the_official_ones(path):
    golden, model = json.loads(path.read_text()), ghost(ClassificationHRNet, width=width_of(path))
    parameters = dict(model.named_parameters())
    assert [[n, list(v.shape), 'p' if n in parameters else 'b'] for n, v in model.state_dict().items()] == golden['state']
    assert len(model.state_dict()) == golden['n_entries'] and len(parameters) == golden['n_param_tensors']
    assert count_parameters(model) == golden['n_params']
    assert width_of(path) != 32 or golden['n_params'] == 41_232_680
    buffers = list(model.buffers())
    assert (len(buffers), sum(b.numel() for b in buffers)) == (golden['n_buffers'], golden['n_buffer_elements'])


def test_backbone_of_the_pose_model_has_its_part_of_the_names():
    golden = [e for e in read('model_higherhrnet_w32_names.json')['state'] if not e[0].startswith(('final_layers', 'deconv_layers'))]
    backbone = ghost(HRNet, all_outputs=False)
    assert [[n, list(v.shape)] for n, v in backbone.state_dict().items()] == [e[:2] for e in golden]


@pytest.mark.parametrize('width', [18, 48])
def test_names_do_not_depend_on_the_width(width):
    names = [e[0] for e in read('model_cls_w32_names.json')['state']]
    assert list(ghost(ClassificationHRNet, width=width).state_dict()) == names


@pytest.mark.parametrize('path', sorted(GOLDEN.glob('model_cls_w*.npz')), ids=lambda p: p.stem)
def test_logits_equal_the_reference(path):
    z = np.load(path)
    model = load_golden(ClassificationHRNet(width_of(path)), str(z['salt']))
    with torch.inference_mode(): logits = model(torch.from_numpy(golden_input(z['input_seed'], z['input_shape']))).numpy()
    np.testing.assert_allclose(logits, z['logits'], rtol=1e-5, atol=10 * float(z['f64_maxdiff'][0]))
    stats = logits.astype(np.float64)
    np.testing.assert_allclose([stats.mean(), stats.std(), abs(stats).max()], z['logits.stats'], rtol=1e-5)


@pytest.mark.parametrize('width, million, gmacs', [(18, 21.3, 3.99), (32, 41.2, 8.31), (48, 77.5, 16.1)])
def test_parameters_and_macs_of_the_papers(width, million, gmacs):
    model = ghost(ClassificationHRNet, width=width)
    assert round(count_parameters(model) / 1e6, 1) == million
    assert float(f'{count_macs(model) / GI:.3g}') == gmacs


def test_counting_leaves_the_model_alone():
    model = ClassificationHRNet(8, 10, (1, 1, 1), 1, 8, 2).train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    per_image = count_macs(model, (1, 3, 64, 64))
    assert count_macs(model, (3, 3, 64, 64)) == 3 * per_image
    assert model.training and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert count_macs(torch.nn.Conv2d(3, 5, 3, padding=1), (1, 3, 8, 8)) == 8 * 8 * 5 * 3 * 9


@pytest.mark.parametrize('width', [18, 32, pytest.param(48, marks=pytest.mark.slow)])
def test_timm_agrees(width):
    timm = pytest.importorskip('timm')
    torch.manual_seed(width)
    ours, theirs = ClassificationHRNet(width).eval(), timm.create_model(f'hrnet_w{width}', pretrained=False).eval()
    for m in ours.modules():  # running statistics as training would leave them, so that they are compared, too
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, 0.1), m.running_var.uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.inference_mode(): a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@settings(max_examples=12, deadline=None)
@given(st.integers(4, 12), st.tuples(*[st.integers(1, 2)] * 3), st.integers(1, 2), st.sampled_from([4, 8]),
       st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_shapes_for_any_size(width, modules, blocks, stem, h, w, every):
    x = torch.randn(2, 3, 32 * h, 32 * w)
    model = HRNet(width, modules, blocks, stem, every).eval()
    with torch.inference_mode(): maps = model(x)
    want = [(2, width * 2 ** i, 32 * h // 2 ** (i + 2), 32 * w // 2 ** (i + 2)) for i in range(4 if every else 1)]
    assert [tuple(m.shape) for m in maps] == want
    assert all(torch.isfinite(m).all() and (m >= 0).all() for m in maps)
    assert model.config == dict(width=width, modules=list(modules), blocks=blocks, stem=stem, all_outputs=every)
    assert HRNet(**json.loads(json.dumps(model.config))).state_dict().keys() == model.state_dict().keys()


def test_a_dropped_fusion_row_changes_nothing_else():
    # the pose model leaves out the last rows of the last grid: its finest map must be that of the whole backbone
    torch.manual_seed(0)
    whole, cut = HRNet(8, (1, 1, 2), 1, 8).eval(), HRNet(8, (1, 1, 2), 1, 8, all_outputs=False).eval()
    cut.load_state_dict({n: v for n, v in whole.state_dict().items() if n in cut.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(): assert torch.equal(whole(x)[0], cut(x)[0])


def test_a_training_step_reaches_every_parameter():
    torch.manual_seed(0)
    model = ClassificationHRNet(8, 10, (1, 1, 1), 1, 8, 2)
    loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(int(v) == 1 for n, v in model.state_dict().items() if n.endswith('num_batches_tracked'))


@pytest.mark.parametrize('size', [(100, 96), (96, 100), (16, 16)])
def test_a_size_that_is_no_multiple_of_32(size):
    with pytest.raises(ValueError, match='multiples of 32'): HRNet(4, (1, 1, 1), 1, 4)(torch.zeros(1, 3, *size))


def test_blocks_keep_the_size_and_the_bottleneck_widens():
    x = torch.randn(2, 16, 8, 8)
    assert BasicBlock(16)(x).shape == x.shape
    assert Bottleneck(16, 8)(x).shape == (2, 32, 8, 8)
    assert isinstance(Bottleneck(16, 4).downsample, torch.nn.Identity)


def test_memory_formats_and_half_precision():
    torch.manual_seed(0)
    model = ClassificationHRNet(8, 10, (1, 1, 1), 1, 8, 2).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        want = model(x)
        got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()


@pytest.mark.parametrize('module, light', [('hrnet', True), ('weights', False)])
def test_imports_stay_light(module, light):
    heavy = ['albumentations', 'pycocotools', 'matplotlib', 'ipywidgets', 'IPython', 'nbdev', 'scipy', 'accelerate'] + ['cv2'] * light
    code = f'import sys, hrnet_nbdev.{module}; print([m for m in {heavy} if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
