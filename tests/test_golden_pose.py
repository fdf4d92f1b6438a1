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
    with torch.device('meta'): w32, w48 = HigherHRNet(32), HigherHRNet(48)
    assert list(w32.state_dict()) == list(w48.state_dict())
    assert round(count_parameters(w48) / 1e6, 1) == 63.8


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


def loop_tag_loss(tags, indices, push_type):
    "The formulas of the notebook, one person and one pair at a time, in float64"
    push, pull = [], []
    for maps, people in zip(tags.double(), indices.tolist()):
        own = [[maps.flatten()[i] for i, flag in person if flag > 0] for person in people]
        own = [torch.stack(values) for values in own if values]
        mean, n = [v.mean() for v in own], len(own)
        pull.append(sum([v.var(correction=0) for v in own], torch.zeros(())) / max(n, 1))
        near = (lambda d: (-d * d).exp()) if push_type == 'exp' else (lambda d: (1 - d.abs()).clamp(min=0))
        push.append(sum([near(mean[a] - mean[b]) for a in range(n) for b in range(a)], torch.zeros(())) / max(n * (n - 1), 1))
    return torch.stack(push), torch.stack(pull)


@pytest.mark.parametrize('push_type', ['exp', 'max'])
@pytest.mark.parametrize('people, channels', [(1, 17), (3, 17), (45, 17), (6, 1)])
def test_tag_loss_equals_loops(push_type, people, channels):
    "Any number of people, more than the reference's 30 too, and one tag map shared by all joints"
    g = torch.Generator().manual_seed(people)
    tags = torch.randn(3, channels, 8, 9, generator=g).requires_grad_()
    indices = torch.stack([torch.randint(channels * 72, (3, people, 17), generator=g),
                           torch.randint(2, (3, people, 17), generator=g)], -1)
    indices[0, people // 2, :, 1] = 0                                # a person without joints among others
    got, want = tag_loss(tags, indices, push_type), loop_tag_loss(tags, indices, push_type)
    for a, b in zip(got, want): torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-7)
    ours, loops = (torch.autograd.grad(sum(t).sum(), tags)[0] for t in (got, want))
    torch.testing.assert_close(ours, loops, rtol=1e-4, atol=1e-7)


def test_padding_changes_nothing():
    z, outputs, heatmaps, masks, indices, _, _ = loss_case('b')
    tags, more = outputs[0][:, 17:], torch.cat([indices[0], torch.zeros(3, 20, 17, 2, dtype=torch.int32)], 1)
    for a, b in zip(tag_loss(tags, indices[0]), tag_loss(tags, more.flip(1))): torch.testing.assert_close(a, b)


@pytest.mark.parametrize('people', [0, 1, 30])
def test_nobody_in_the_batch(people):
    "No person, and not even a slot for one: zeros, finite gradients"
    output = torch.randn(2, 34, 8, 8, requires_grad=True)
    terms = pose_loss([output], [torch.zeros(2, 17, 8, 8)], [torch.ones(2, 8, 8).bool()], [torch.zeros(2, people, 17, 2).long()])
    assert (terms[0]['push'] == 0).all() and (terms[0]['pull'] == 0).all()
    total_loss(terms).backward()
    assert torch.isfinite(output.grad).all() and (output.grad[:, 17:] == 0).all() and (output.grad[:, :17] != 0).any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_outputs(dtype):
    "Equal to the float32 loss of the same rounded numbers, also inside autocast; large errors do not overflow"
    z, outputs, *targets, push_type, _ = loss_case('a')
    half = [o.detach().to(dtype).requires_grad_() for o in outputs]
    want = pose_loss([o.float() for o in half], *targets)
    with torch.autocast('cpu', dtype=dtype): got = pose_loss(half, *targets)
    for a, b in zip(want, got):
        for name in a:
            assert b[name].dtype == torch.float32
            torch.testing.assert_close(a[name], b[name])
    total_loss(got).backward()
    assert all(torch.isfinite(o.grad).all() for o in half)
    big = torch.full((1, 17, 8, 8), 300., dtype=dtype)
    assert heatmap_loss(big, torch.zeros(1, 17, 8, 8), torch.ones(1, 8, 8).bool()).item() == 300.**2


def test_no_value_is_looked_at():
    "Tensors on the meta device have none, so whatever runs there never waits for a GPU"
    shapes = [(2, 34, 8, 8), (2, 17, 16, 16)]
    outputs = [torch.empty(s, device='meta', requires_grad=True) for s in shapes]
    heatmaps = [torch.empty(2, 17, *s[2:], device='meta') for s in shapes]
    masks = [torch.empty(2, *s[2:], device='meta', dtype=torch.bool) for s in shapes]
    total_loss(pose_loss(outputs, heatmaps, masks, [torch.empty(2, 5, 17, 2, device='meta').long(), None])).backward()
    assert outputs[0].grad.shape == shapes[0]


def test_terms_follow_what_is_given():
    "Tags at both scales, at none, or alone; lists of unequal length are refused"
    outputs = [torch.randn(2, 34, 8, 8), torch.randn(2, 34, 16, 16)]
    heatmaps, masks = [torch.rand(2, 17, s, s) for s in (8, 16)], [torch.ones(2, s, s).bool() for s in (8, 16)]
    indices = torch.ones(2, 3, 17, 2).long()
    names = lambda *a: [set(scale) for scale in pose_loss(*a)]
    every = {'heatmap', 'push', 'pull'}
    assert names(outputs, heatmaps, masks, [indices, indices]) == [every, every]
    assert names(outputs, heatmaps, masks, [None, None]) == [{'heatmap'}, {'heatmap'}]
    assert names([outputs[0][:, :17]], heatmaps[:1], masks[:1], [indices]) == [{'heatmap'}]
    alone = pose_loss([outputs[0][:, 17:]], [None], masks[:1], [indices])
    beside = pose_loss(outputs[:1], heatmaps[:1], masks[:1], [indices])
    assert set(alone[0]) == {'push', 'pull'} and torch.equal(alone[0]['pull'], beside[0]['pull'])
    with pytest.raises(ValueError): pose_loss(outputs, heatmaps, masks, [indices])
    with pytest.raises(ValueError, match="'exp' or 'max'"): tag_loss(outputs[0], indices, 'square')


def test_any_size_and_schema():
    "Sides that are multiples of 32, other joints, other sizes; anything else is refused with a sentence"
    model = HigherHRNet(width=16, num_joints=14, modules=(1, 1, 1), blocks=1, stem=16, deconv_blocks=2).eval()
    assert model.config == dict(width=16, num_joints=14, modules=[1, 1, 1], blocks=1, stem=16, deconv_blocks=2)
    with torch.inference_mode(): outputs = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(o.shape) for o in outputs] == [(1, 28, 16, 24), (1, 14, 32, 48)]
    assert list(HigherHRNet(**model.config).state_dict()) == list(model.state_dict())
    with pytest.raises(ValueError, match='multiples of 32'): model(torch.zeros(1, 3, 100, 96))
