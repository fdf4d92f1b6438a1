"HigherHRNet and its loss against the reference implementation's numbers (tests/golden/README.md)"
import json

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, golden_input, load_golden

from hrnet_nbdev.higherhrnet import HigherHRNet, heatmap_loss, pose_loss, tag_loss, total_loss
from hrnet_nbdev.hrnet import count_macs, count_parameters

CASES = sorted({key.split('.')[0] for key in np.load(GOLDEN / 'loss.npz').files})


def golden(name): return np.load(GOLDEN / f'{name}.npz')


def dense(z, key, dtype=np.float32):
    "A sparse array of the golden files: differences of increasing flat indices, and values"
    flat = np.zeros(np.prod(z[f'{key}.shape']), dtype)
    flat[np.cumsum(z[f'{key}.idx'])] = z[f'{key}.val']
    return torch.from_numpy(flat.reshape(z[f'{key}.shape']))


def bits(z, key, shape):
    "A mask stored as bits"
    return torch.from_numpy(np.unpackbits(z[key])[:np.prod(shape)].reshape(shape).astype(bool))


def check_maps(z, outputs, atol):
    "Outputs of both scales: shapes, statistics of everything, and the stored samples"
    assert len(outputs) == 2
    for s, out in enumerate(outputs):
        key, out, step = f'stage{s}', out.detach().double(), int(z[f'stage{s}.stride'])
        assert tuple(out.shape) == tuple(z[f'{key}.shape'])
        np.testing.assert_allclose(out[:, :, ::step, ::step], z[f'{key}.sub'], atol=atol, rtol=1e-4)
        np.testing.assert_allclose([out.mean(), out.std(correction=0), out.abs().max()], z[f'{key}.stats'], atol=atol, rtol=1e-4)
        np.testing.assert_allclose(out.mean((2, 3)), z[f'{key}.chmean'], atol=atol, rtol=1e-4)
        np.testing.assert_allclose(out.std((2, 3), correction=0), z[f'{key}.chstd'], atol=atol, rtol=1e-4)


@pytest.fixture(scope='module')
def w32(): return load_golden(HigherHRNet())


# the model

def test_names_shapes_and_counts(w32):
    names = json.loads((GOLDEN / 'model_higherhrnet_w32_names.json').read_text())
    parameters = dict(w32.named_parameters())
    ours = [[k, list(v.shape), 'p' if k in parameters else 'b'] for k, v in w32.state_dict().items()]
    assert ours == names['state']                                   # the order too
    assert count_parameters(w32) == names['n_params'] == 28_645_331
    assert len(parameters) == names['n_param_tensors'] and len(ours) == names['n_entries'] == 1810
    assert sum(b.numel() for b in w32.buffers()) == names['n_buffer_elements']


def test_names_do_not_depend_on_the_width():
    w32, w48 = (HigherHRNet(width).state_dict() for width in (32, 48))
    assert list(w32) == list(w48)
    assert sum(p.numel() for p in HigherHRNet(48).parameters()) == pytest.approx(63.8e6, rel=2e-3)


@pytest.mark.parametrize('width, size, paper', [(32, 512, 47.9), (32, 640, 74.8), (48, 640, 154.3)])
def test_macs_of_the_paper(width, size, paper):
    with torch.device('meta'): model = HigherHRNet(width)
    up = model.deconv_layers[0][0][0].weight.numel() * (size // 4) ** 2
    # the paper counts "weights times output pixels", which is four times the work of a transposed convolution of stride 2
    assert round((count_macs(model, (1, 3, size, size)) + 3 * up) / 1e9, 1) == paper


def test_eval_outputs(w32):
    z = golden('model_higherhrnet_w32')
    with torch.inference_mode(): outputs = w32.eval()(torch.from_numpy(golden_input(z['input_seed'], z['input_shape'])))
    check_maps(z, outputs, atol=5e-5)


def test_train_outputs_gradients_and_running_statistics(w32):
    z = golden('model_higherhrnet_w32_train')
    load_golden(w32).train()
    outputs = w32(torch.from_numpy(golden_input(z['input_seed'], z['input_shape'])))
    check_maps(z, outputs, atol=5e-5)
    loss = sum(o.square().mean() for o in outputs)
    assert loss.item() == pytest.approx(float(z['loss_f64']), rel=1e-5)
    loss.backward()
    grads = {name: p.grad for name, p in w32.named_parameters()}
    for name, norm in zip(z['grad_names'], z['grad_norm_f64']):
        assert grads[str(name)].double().norm().item() == pytest.approx(norm, rel=1e-3), name
    state, seen = w32.state_dict(), 0
    for key in z.files:
        kind, _, name = key.partition(':')
        if kind == 'grad':
            np.testing.assert_allclose(grads[name], z[key], rtol=2e-3, atol=2e-3 * np.abs(z[key]).max())
        elif kind == 'buf': np.testing.assert_allclose(state[name], z[key], rtol=1e-4, atol=1e-6)
        seen += kind in ('grad', 'buf')
    assert seen == 12
    w32.zero_grad()
    load_golden(w32)


# the loss

def loss_case(case):
    "Outputs (leaves), heatmaps, masks, tag indices and the options of one stored case"
    z = golden('loss')
    outputs, heatmaps, masks, indices = [], [], [], []
    for s in range(2):
        o = golden_input(z[f'{case}.out{s}.seed'], z[f'{case}.out{s}.shape']) * np.float32(0.25)
        if o.shape[1] > 17: o[:, 17:] *= np.float32(4 * z[f'{case}.tag_scale'])
        np.testing.assert_allclose([o.mean(dtype=np.float64), o.std(dtype=np.float64), np.abs(o).max()], z[f'{case}.out{s}.stats'], rtol=1e-6)
        outputs.append(torch.from_numpy(o).requires_grad_())
        heatmaps.append(dense(z, f'{case}.heatmaps{s}'))
        masks.append(bits(z, f'{case}.mask{s}', (len(o), *o.shape[2:])))
        indices.append(torch.from_numpy(z[f'{case}.joints{s}']))
    options = json.loads(str(z[f'{case}.options']))
    options = dict(zip(options[::2], options[1::2]))
    return z, outputs, heatmaps, masks, indices, options.pop('LOSS.AE_LOSS_TYPE', 'exp'), options


@pytest.mark.parametrize('case', CASES)
def test_loss_terms_and_gradients(case):
    z, outputs, heatmaps, masks, indices, push_type, others = loss_case(case)
    assert not others, f'options this test does not know: {others}'
    terms = pose_loss(outputs, heatmaps, masks, indices, push_type)
    for s, scale in enumerate(terms):
        for name, factor in ('heatmap', 1.0), ('push', 1e-3), ('pull', 1e-3):
            stored = z[f'{case}.{name}{s}']
            assert (name in scale) == (stored.size > 0)
            if stored.size: np.testing.assert_allclose(scale[name].detach() * factor, stored, rtol=1e-5, atol=1e-10)
    total = total_loss(terms)
    assert total.item() == pytest.approx(float(z[f'{case}.total']), rel=1e-6)
    total.backward()
    for s, out in enumerate(outputs):
        grad, step = out.grad, int(z[f'{case}.grad{s}.stride'])
        np.testing.assert_allclose(grad[:, :17, ::step, ::step], z[f'{case}.grad{s}.hm.sub'], rtol=1e-5, atol=1e-12)
        norms = torch.stack([g.double().flatten(1).norm(dim=1) for g in (grad[:, :17], grad[:, 17:])], dim=1)
        np.testing.assert_allclose(norms, z[f'{case}.grad{s}.norm'], rtol=1e-5, atol=1e-12)
        if grad.shape[1] > 17:
            stored = torch.zeros(grad[:, 17:].numel())
            stored[torch.from_numpy(z[f'{case}.grad{s}.tag.idx']).long()] = torch.from_numpy(z[f'{case}.grad{s}.tag.val'])
            np.testing.assert_allclose(grad[:, 17:].flatten(), stored, rtol=1e-4, atol=1e-9)
