"""Every layout of checkpoints, what is refused, and the command `hrnet_weights`."""
import io, json, os, pickle, random, subprocess, sys, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN
from safetensors.torch import load_file, save_file

from hrnet_nbdev import download as downloads, weights as w
from hrnet_nbdev.files import UserError
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.hrnet import ClassificationHRNet, HRNet

# names do not depend on the width: with 4 channels these have every name of the published models, and a hundredth of the bytes
SMALL_CLS, SMALL_POSE = dict(width=4, num_classes=7, stem=4, head=2), dict(width=4, num_joints=3, stem=4)
HEAD = ('incre_modules.', 'downsamp_modules.', 'final_layer.', 'classifier.')
BIASES = [f'downsamp_modules.{i}.0.bias' for i in range(3)] + ['final_layer.0.bias']


def mapping(name): return json.loads((GOLDEN / f'map_{name}.json').read_text())['map']


def randomize(model):
    "Give every entry, batch statistics too, a value of its own"
    g = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point(): value.copy_(torch.rand(value.shape, generator=g) + 0.1)
        else: value.fill_(5)
    return model


@pytest.fixture(scope='module')
def cls(): return randomize(ClassificationHRNet(**SMALL_CLS)).state_dict()


@pytest.fixture(scope='module')
def pose(): return randomize(HigherHRNet(**SMALL_POSE)).state_dict()


def same(model, want, tol=0.0):
    got = model.state_dict()
    assert got.keys() == want.keys()
    return all((got[n].double() - want[n].double()).abs().max() <= tol for n in want)


def save(path, obj, **kw):
    torch.save(obj, path, **kw)
    return path


def trainer(state, rng):
    "What thawro's trainer writes: weights, optimiser, and the states of three random generators"
    return dict(module=dict(model=state, optimizer=dict(state={}, param_groups=[dict(lr=1e-3, params=[0])])),
                random_state=dict(torch=torch.get_rng_state(), numpy=rng, random=random.getstate()), epoch=3)


def with_numpy1_names(path):
    "Rewrite a checkpoint's pickle as numpy 1 would have written it"
    with zipfile.ZipFile(path) as z: parts = {i.filename: z.read(i) for i in z.infolist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as z:
        for name, data in parts.items():
            if name.endswith('data.pkl'):
                assert b'cnumpy._core.multiarray\n' in data
                data = data.replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')
            z.writestr(name, data)
    return path


# ---- layouts ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, layout', [('cls__thawro', 'thawro'), ('higherhrnet__thawro', 'thawro'),
                                          ('higherhrnet__mmpose0', 'mmpose 0.x'), ('cls__timm', 'official')])
def test_rules_give_the_golden_maps(name, layout):
    names = mapping(name)
    back, found = w.official_names({other: official for official, other in names.items()})
    assert found == layout and len(back) == len(names)
    assert all(ours == official for ours, official in back.items())


def test_the_small_models_have_every_official_name(cls, pose):
    for state, file in ((cls, 'model_cls_w32_names.json'), (pose, 'model_higherhrnet_w32_names.json')):
        assert list(state) == [e[0] for e in json.loads((GOLDEN / file).read_text())['state']]


def module(state): return {f'module.{n}': v for n, v in state.items()}


def half(state): return {f'1.{n}': v.half() if v.ndim == 4 else v for n, v in state.items()}


POSE_LAYOUTS = {
    'official': lambda s: s,
    'half': half,
    'training': lambda s: dict(epoch=5, model='pose_higher_hrnet', state_dict=module(s), best_state_dict=s, perf=0.67,
                               optimizer=dict(state={}, param_groups=[])),
    'state_dict only': lambda s: dict(state_dict=module(s)),
    'training in half': lambda s: dict(state_dict=module(half(s))),
    'compiled': lambda s: {f'_orig_mod.{n}': v for n, v in s.items()},
    'mmpose': lambda s: dict(meta=dict(epoch=300, mmpose_version='0.6.0'),
                             state_dict={b: s[a] for a, b in mapping('higherhrnet__mmpose0').items()}),
    'thawro': lambda s: trainer({b: s[a] for a, b in mapping('higherhrnet__thawro').items()}, np.random.get_state()),
    'thawro, plain': lambda s: {b: s[a] for a, b in mapping('higherhrnet__thawro').items()},
    'thawro, distributed': lambda s: trainer(module({b: s[a] for a, b in mapping('higherhrnet__thawro').items()}), np.random.get_state()),
}
CLS_LAYOUTS = {
    'official': lambda s: s,
    'timm': lambda s: {b: s[a] for a, b in mapping('cls__timm').items()},
    'thawro': lambda s: trainer({b: s[a] for a, b in mapping('cls__thawro').items()}, np.random.get_state()),
    'thawro, dict of the generator': lambda s: trainer({b: s[a] for a, b in mapping('cls__thawro').items()},
                                                       np.random.get_state(legacy=False)),
    'thawro, plain': lambda s: {b: s[a] for a, b in mapping('cls__thawro').items()},
}


@pytest.fixture(scope='module')
def models(): return HigherHRNet(**SMALL_POSE), ClassificationHRNet(**SMALL_CLS)  # building them takes longer than loading


@pytest.mark.parametrize('layout, zipped', [(name, True) for name in POSE_LAYOUTS] + [('official', False), ('training', False), ('thawro', False)])
def test_pose_layouts(tmp_path, pose, models, layout, zipped):
    file = save(tmp_path / 'pose.pth', POSE_LAYOUTS[layout](pose), _use_new_zipfile_serialization=zipped)
    model = models[0]
    model.load_state_dict({n: torch.zeros_like(v) for n, v in pose.items()})
    report = w.load_weights(model, file)
    assert same(model, pose, 1e-3 if 'half' in layout else 0)
    assert len(report.loaded) == 1810 and not report.ignored and not report.fresh
    assert all(v.dtype in (torch.float32, torch.int64) for v in model.state_dict().values())
    assert report.source['config'] == model.config


@pytest.mark.parametrize('layout', CLS_LAYOUTS)
def test_classifier_layouts(tmp_path, cls, layout):
    file = save(tmp_path / 'cls.pth', CLS_LAYOUTS[layout](cls))
    model = ClassificationHRNet(**SMALL_CLS, weights=file)
    assert same(model, cls) and w.infer_config(w.load_state(file)[0]) == model.config


def test_thawro_under_the_names_of_numpy_1(tmp_path, cls):
    file = with_numpy1_names(save(tmp_path / 'hrnet_32.pt', CLS_LAYOUTS['thawro'](cls)))
    with pytest.raises(pickle.UnpicklingError): torch.load(file, weights_only=True)
    assert same(ClassificationHRNet(**SMALL_CLS, weights=file), cls)
    with pytest.raises(pickle.UnpicklingError): torch.load(file, weights_only=True)  # the permission is gone again


def test_safetensors_of_others_and_ours(tmp_path, cls, pose):
    save_file({n: v.contiguous() for n, v in cls.items()}, tmp_path / 'timm.safetensors')
    assert same(ClassificationHRNet(**SMALL_CLS, weights=tmp_path / 'timm.safetensors'), cls)
    assert w.read_metadata(tmp_path / 'timm.safetensors') == {}
    model = HigherHRNet(**SMALL_POSE)
    model.load_state_dict(pose)
    w.save_weights(model.to(memory_format=torch.channels_last), tmp_path / 'ours.safetensors', input_size=192, note='short')
    metadata = w.read_metadata(tmp_path / 'ours.safetensors')
    assert metadata['config'] == model.config and metadata['model'] == 'HigherHRNet'
    assert (metadata['input_size'], metadata['note']) == ('192', 'short')
    state, info = w.load_state(tmp_path / 'ours.safetensors')
    assert info['layout'] == 'ours' and info['config'] == model.config
    assert same(HigherHRNet(**info['config'], weights=tmp_path / 'ours.safetensors'), pose)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith('.')] == []


def test_missing_batch_counters_are_set_to_zero(tmp_path, pose):
    file = save(tmp_path / 'old.pth', {n: v for n, v in pose.items() if not n.endswith('num_batches_tracked')})
    model = HigherHRNet(**SMALL_POSE)
    report = w.load_weights(model, file)
    assert same(model, {n: v * 0 if n.endswith('num_batches_tracked') else v for n, v in pose.items()})
    assert 'set to 0' in str(report)


def test_biases_that_ssld_leaves_out(tmp_path, cls):
    file = save(tmp_path / 'ssld.pth', {n: v for n, v in cls.items() if n not in BIASES})
    assert len(torch.load(file)) == 1952
    model = ClassificationHRNet(**SMALL_CLS)
    w.load_weights(model, file)
    assert same(model, {n: v * 0 if n in BIASES else v for n, v in cls.items()})
    assert len(w.load_weights(HigherHRNet(**SMALL_POSE), file, quiet=True).loaded) == 1752
    save(file, {n: v for n, v in cls.items() if n not in BIASES[:3]})  # three of four is damage, not a variant
    with pytest.raises(UserError, match='3 missing in the file'): w.load_weights(model, file)
    with pytest.raises(UserError, match='no complete ClassificationHRNet'): w.load_weights(HigherHRNet(**SMALL_POSE), file)


# ---- the one partial case -----------------------------------------------------------------------------------------------

def check_partial(model, before, state, report, ignored):
    golden = json.loads((GOLDEN / 'map_cls_into_higherhrnet.json').read_text())
    assert len(report.loaded) == golden['n_common'] == 1752
    assert [len(names) for names in report.ignored.values()] == ignored
    assert len(report.fresh) == golden['n_higher_only'] == 58
    assert all(n.startswith(('final_layers.', 'deconv_layers.')) for n in report.fresh)
    after = model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in report.fresh)
    assert all(torch.equal(after[n], state[n]) for n in report.loaded if n in state)


def test_classifier_into_pose_model(tmp_path, cls, capsys):
    model, file = HigherHRNet(**SMALL_POSE), save(tmp_path / 'cls.pth', cls)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    report = w.load_weights(model, file)
    check_partial(model, before, cls, report, [78, 126])
    golden = json.loads((GOLDEN / 'map_cls_into_higherhrnet.json').read_text())
    assert golden['n_cls_only'] == 78 + 126
    table = capsys.readouterr().out
    for number in ('1752', '78', '126', '58'): assert number in table
    assert len(table.splitlines()) == 5


@pytest.mark.parametrize('drop', ['nothing', 'counters', 'coarse fusion'])
def test_the_usual_pose_initialisations(tmp_path, cls, drop):
    state = {f'head.{n}' if n.startswith(HEAD) else n: v for n, v in cls.items()}
    if drop == 'counters': state = {n: v for n, v in state.items() if 'num_batches' not in n}
    if drop == 'coarse fusion': state = {n: v for n, v in state.items() if not n.startswith(tuple(f'stage4.2.fuse_layers.{i}' for i in (1, 2, 3)))}
    file, model = save(tmp_path / 'hrnet_w32-36af842e.pth', state), HigherHRNet(**SMALL_POSE)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    check_partial(model, before, state, w.load_weights(model, file, quiet=True), [126] if 'fusion' in drop else [78, 126])
    with pytest.raises(UserError, match='HRNet'): w.load_weights(ClassificationHRNet(**SMALL_CLS), file)
    assert not w.load_weights(HRNet(width=4, stem=4, all_outputs='fusion' not in drop), file, quiet=True).fresh


def spoil(state, name, value=None):
    state = dict(state)
    if value is None: del state[name]
    else: state[name] = value
    return state


@pytest.mark.parametrize('fault', [
    lambda s: spoil(s, 'stage3.2.branches.1.0.conv1.weight'), lambda s: spoil(s, 'incre_modules.2.0.conv2.weight'),
    lambda s: spoil(s, 'stage4.2.fuse_layers.3.0.1.1.bias'), lambda s: spoil(s, 'stranger.weight', torch.zeros(2)),
    lambda s: spoil(s, 'stage4.2.branches.0.3.bn2.bias', torch.zeros(5)), lambda s: spoil(s, 'classifier.bias', torch.zeros(9)),
    lambda s: spoil(s, 'final_layers.0.weight', torch.zeros(6, 4, 1, 1))])
def test_a_classifier_with_one_fault_is_refused(tmp_path, cls, models, fault):
    file = save(tmp_path / 'cls.pth', fault(cls))
    for model in models:
        before = {n: v.clone() for n, v in model.state_dict().items()}
        with pytest.raises(UserError, match='cls.pth'): w.load_weights(model, file)
        assert same(model, before)


def test_models_of_another_size_or_kind(tmp_path, cls, pose):
    files = save(tmp_path / 'cls.pth', cls), save(tmp_path / 'pose.pth', pose)
    with pytest.raises(UserError, match=r'build it with num_joints=3'): w.load_weights(HigherHRNet(4, 5, stem=4), files[1])
    with pytest.raises(UserError, match=r'build it with width=4'): w.load_weights(HigherHRNet(6, 3, stem=4), files[1])
    with pytest.raises(UserError, match=r'build it with num_classes=7'): w.load_weights(ClassificationHRNet(4, 8, stem=4, head=2), files[0])
    with pytest.raises(UserError, match='build it with width=4'): w.load_weights(HigherHRNet(6, 3, stem=4), files[0])
    with pytest.raises(UserError, match='holds HigherHRNet.* give a file of a ClassificationHRNet'): w.load_weights(ClassificationHRNet(**SMALL_CLS), files[1])
    with pytest.raises(UserError): w.load_weights(HigherHRNet(4, 3, (1, 3, 3), stem=4), files[0])
    with pytest.raises(UserError): w.load_weights(torch.nn.Linear(2, 2), files[0])


def test_configurations_are_inferred(tmp_path):
    for kind, config in ((HigherHRNet, dict(width=6, num_joints=5, modules=[1, 2, 1], blocks=2, stem=8, deconv_blocks=3)),
                         (HigherHRNet, dict(width=4, num_joints=14, modules=[2, 1, 12], blocks=1, stem=4, deconv_blocks=0)),
                         (ClassificationHRNet, dict(width=5, num_classes=3, modules=[1, 1, 2], blocks=3, stem=6, head=1)),
                         (HRNet, dict(width=5, modules=[1, 1, 2], blocks=1, stem=6, all_outputs=False)),
                         (HRNet, dict(width=5, modules=[1, 1, 1], blocks=1, stem=6, all_outputs=True))):
        with torch.device('meta'): state = kind(**config).state_dict()
        assert (w.model_name(state), w.infer_config(state)) == (kind.__name__, config)


# ---- safety -------------------------------------------------------------------------------------------------------------

class Payload:
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


def touch(path): Path(path).touch()


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('where', [lambda p, s: {**s, 'x': p}, lambda p, s: dict(state_dict=s, optimizer=p), lambda p, s: p])
@pytest.mark.parametrize('call', [lambda p: Payload(os.system, f'touch {p}'), lambda p: Payload(eval, f'open({str(p)!r}, "w")'),
                                  lambda p: Payload(subprocess.call, ['touch', str(p)]), lambda p: Payload(touch, str(p)),
                                  lambda p: Payload(np.savetxt, str(p), [1.0])])
def test_a_malicious_pickle_never_runs(tmp_path, call, where, zipped):
    marker = tmp_path / 'payload ran'.replace(' ', '_')
    state = {n: torch.zeros(2) for n in ('conv1.weight', 'bn1.weight')}
    file = save(tmp_path / 'evil.pth', where(call(marker), state), _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match='evil.pth wants to run .* refused, nothing of it was run'): w.load_state(file)
    for action in (lambda: w.load_weights(torch.nn.Linear(2, 2), file), lambda: w.inspect_weights(file),
                   lambda: w.convert_weights(file, tmp_path / 'out.safetensors')):
        with pytest.raises(UserError, match='refused'): action()
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), 'the payload was not dangerous in the first place'


def test_a_payload_that_hides_behind_numpys_names(tmp_path):
    # the allowed names lead to a stand-in: whatever is done with them, numpy is not called
    class Fake:
        def __reduce__(self): return np.ndarray, ((2 ** 40,), 'f8')
    file = save(tmp_path / 'huge.pth', dict(rng=Fake(), state_dict={'a': torch.zeros(1)}))
    with pytest.raises(UserError, match='not those of an HRNet'): w.load_state(file)  # and eight terabytes were not asked for
    assert isinstance(w.read_pickle(file)['rng'], w.Forgotten)
    for name in ('numpy.load', 'numpy.core.multiarray.frombuffer', 'numpy.random._pickle.__randomstate_ctor'):
        data = b'\x80\x02c' + name.rpartition('.')[0].encode() + b'\n' + name.rpartition('.')[2].encode() + b'\n)R.'
        buffer = io.BytesIO()
        torch.save({}, buffer)
        with zipfile.ZipFile(buffer) as z: parts = {i.filename: z.read(i) for i in z.infolist()}
        with zipfile.ZipFile(tmp_path / 'call.pth', 'w', zipfile.ZIP_STORED) as z:
            for part, old in parts.items(): z.writestr(part, data if part.endswith('data.pkl') else old)
        with pytest.raises(UserError, match=f'wants to run {name}'): w.load_state(tmp_path / 'call.pth')


def test_whole_pickled_models_are_refused(tmp_path):
    file = save(tmp_path / 'model.pth', torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r'wants to run torch\.nn\.modules\.linear\.Linear'): w.load_state(file)


# ---- damage and strangers -----------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp('files'), ClassificationHRNet(4, 3, (1, 1, 1), 1, 4, 1)
    w.save_weights(model, folder / 'a.safetensors')
    save(folder / 'a.pth', model.state_dict())
    save(folder / 'a.pt', model.state_dict(), _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth', 'a.pt'])
def test_files_that_are_cut_off(tmp_path, files, name):
    data = (files / name).read_bytes()
    for keep in (0, 1, 7, 8, 9, 100, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 1):
        (tmp_path / name).write_bytes(data[:keep])
        with pytest.raises(UserError, match=name) as e: w.load_state(tmp_path / name)
        assert '\n' not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth', 'a.pt'])
def test_files_with_wrong_bytes(tmp_path, files, name):
    # every fault is a UserError or harmless (a number that is another number): nothing else may come out
    data, rng, refused = (files / name).read_bytes(), random.Random(0), 0
    for trial in range(30):
        spoilt = bytearray(data)
        for _ in range(rng.choice((1, 20))):
            # headers and pickles at the ends are where it hurts
            at = rng.choice((rng.randrange(len(data)), rng.randrange(400), len(data) - 1 - rng.randrange(400)))
            spoilt[at] = rng.randrange(256)
        (tmp_path / name).write_bytes(spoilt)
        try: w.load_weights(ClassificationHRNet(4, 3, (1, 1, 1), 1, 4, 1), tmp_path / name, quiet=True)
        except UserError as e: refused += name in str(e) and '\n' not in str(e)
    assert refused >= 8


@pytest.mark.parametrize('content, message', [
    (b'', 'damaged'), (b'<!DOCTYPE html><html>Not found</html>', 'is a web page'), (b'\n <html>', 'is a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'git lfs pull'), (b'hello world', 'no PyTorch checkpoint'),
    (random.Random(1).randbytes(3000), "a.pth"), (b'PK\x03\x04' + bytes(100), 'damaged')])
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message if name == 'a.pth' or 'web' in message or 'lfs' in message else 'damaged'):
            w.load_state(tmp_path / name)


@pytest.mark.parametrize('content, message', [
    ({'conv1.weight': torch.zeros(2), 'fc.weight': torch.zeros(2)}, 'not those of an HRNet'),
    ([torch.zeros(2)], 'holds a list'), (torch.zeros(3), 'holds a Tensor'), (7, 'holds a int'), ({}, 'a dict of nothing'),
    ({0: torch.zeros(2)}, 'a dict of 0'), ({'epoch': 3, 'lr': 0.1}, 'a dict of epoch, lr'),
    ({'state_dict': {}}, 'a dict of nothing'), ({'state_dict': {'conv1.weight': np.zeros(2)}}, 'holds a dict of conv1.weight'),
    ({'model': {'backbone.body.conv1.weight': torch.zeros(2)}}, 'not those of an HRNet')])
def test_foreign_checkpoints(tmp_path, content, message):
    with pytest.raises(UserError, match=message): w.load_state(save(tmp_path / 'x.pth', content))


def test_an_hrnet_without_its_middle(tmp_path, cls):
    few = ('conv1.weight', 'transition1.0.0.weight', 'stage2.0.branches.0.0.conv1.weight', 'stage4.0.branches.3.0.conv1.weight', 'classifier.weight')
    file = save(tmp_path / 'x.pth', {n: cls[n] for n in few})
    with pytest.raises(UserError, match='not complete: .incre_modules'): w.load_state(file)
    save(file, {n: torch.tensor(0.0) for n in few})
    with pytest.raises(UserError, match='not complete'): w.load_state(file)


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='neither a file nor a known name'): w.load_state('no_such.pth')
    with pytest.raises(UserError, match='is missing'): w.read_metadata('no_such.safetensors')
    with pytest.raises(UserError, match='folder without model.safetensors'): w.load_state(tmp_path)
    with pytest.raises(UserError, match='must be fetched by hand'): HigherHRNet(weights='thawro_higherhrnet_w32')
    Path('pretrained').mkdir()
    w.save_weights(randomize(HRNet(4, (1, 1, 1), 1, 4)), 'pretrained/tiny_one.safetensors')
    assert w.load_state('tiny_one')[1]['model'] == 'HRNet'
    assert w.load_weights(HRNet(4, (1, 1, 1), 1, 4), 'tiny_one').loaded


def test_metadata_of_another_version(tmp_path):
    model = HRNet(4, (1, 1, 1), 1, 4)
    model.config['wings'] = 2
    w.save_weights(model, tmp_path / 'later.safetensors')
    with pytest.raises(UserError, match='another version'): w.inspect_weights(tmp_path / 'later.safetensors')
    save_file({'a': torch.zeros(1)}, tmp_path / 'odd.safetensors', metadata=dict(config='{not json'))
    with pytest.raises(UserError, match='odd.safetensors'): w.read_metadata(tmp_path / 'odd.safetensors')
    save_file({n: v.contiguous() for n, v in HRNet(4, (1, 1, 1), 1, 4).state_dict().items()}, tmp_path / 'odd.safetensors', metadata=dict(model='HRNet'))
    assert w.load_state(tmp_path / 'odd.safetensors')[1]['model'] == 'HRNet'  # a name without a config: shapes decide


# ---- Hugging Face Hub ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind, config', [(HigherHRNet, dict(SMALL_POSE, modules=(1, 1, 1), blocks=1)),
                                          (ClassificationHRNet, dict(SMALL_CLS, modules=(1, 1, 1), blocks=1))])
def test_hub_folder(tmp_path, kind, config):
    model = randomize(kind(**config))
    model.save_pretrained(tmp_path / 'repo')
    again = kind.from_pretrained(tmp_path / 'repo')
    assert not again.training and again.config == model.config and same(again, model.state_dict())
    assert json.loads((tmp_path / 'repo' / 'config.json').read_text()) == model.config
    assert w.read_metadata(tmp_path / 'repo' / 'model.safetensors')['model'] == kind.__name__
    assert same(kind(**config, weights=tmp_path / 'repo'), model.state_dict())
    # what was built with `weights=` can be shared with people who lack that file
    kind(**config, weights=tmp_path / 'repo').save_pretrained(tmp_path / 'second')
    (tmp_path / 'repo' / 'model.safetensors').unlink()
    assert same(kind.from_pretrained(tmp_path / 'second'), model.state_dict())


def test_hub_is_strict(tmp_path):
    model = HRNet(4, (1, 1, 1), 1, 4)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / 'model.safetensors')
    save_file(spoil(state, 'conv1.weight'), tmp_path / 'model.safetensors')
    with pytest.raises(RuntimeError, match='conv1.weight'): HRNet.from_pretrained(tmp_path)


def test_push_to_hub_sends_the_same_folder(tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, **kw): pass
        def create_repo(self, repo_id, **kw): return type('Repo', (), dict(repo_id=repo_id))
        def upload_folder(self, folder_path, **kw):
            sent.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()})
            return 'done'

    monkeypatch.setattr('huggingface_hub.hub_mixin.HfApi', Api)
    model = HigherHRNet(**dict(SMALL_POSE, modules=(1, 1, 1), blocks=1))
    assert model.push_to_hub('somebody/weights') == 'done'
    assert {'config.json', 'model.safetensors', 'README.md'} <= sent.keys()
    assert json.loads(sent['config.json']) == model.config and b'hrnet_nbdev' in sent['README.md']


# ---- command ------------------------------------------------------------------------------------------------------------

def test_inspect_says_what_is_in_a_file(tmp_path, cls, pose):
    text = w.inspect_weights(save(tmp_path / 'pose.pth', POSE_LAYOUTS['training in half'](pose)))
    for part in ('["state_dict"]', 'prefix module.1.', 'width=4', 'num_joints=3', '1810 tensors', 'float16', 'all of it fits'):
        assert part in text
    text = w.inspect_weights(save(tmp_path / 'cls.pth', cls))
    for part in ('ClassificationHRNet', 'num_classes=7', '1956 tensors', '-> HigherHRNet', '1752', '78', '126', '58'): assert part in text
    text = w.inspect_weights(save(tmp_path / 'init.pth', {f'head.{n}' if n.startswith(HEAD) else n: v for n, v in cls.items()}))
    assert '126 tensors of head.* are ignored' in text


def test_inspect_shows_an_incomplete_file(tmp_path, pose):
    text = w.inspect_weights(save(tmp_path / 'pose.pth', spoil(pose, 'stage4.1.branches.2.0.bn1.weight')))
    assert 'width=4' in text and 'refused: ' in text and 'stage4.1.branches.2.0.bn1.weight' in text


def test_a_pose_head_of_another_layout_is_not_taken_for_a_classification_head(tmp_path, pose):
    # a backbone with a strange `head.`: taking it for a pose initialisation would leave the head random without a word
    state = {f'head.{n}' if n.startswith(('final_layers', 'deconv')) else f'backbone.{n}': v for n, v in pose.items()}
    with pytest.raises(UserError, match='unknown to the model'): w.load_weights(HigherHRNet(**SMALL_POSE), save(tmp_path / 'x.pth', state))


def test_convert_there_and_back(tmp_path, pose):
    first = save(tmp_path / 'thawro.pt', POSE_LAYOUTS['thawro'](pose))
    ours = w.convert_weights(first, tmp_path / 'ours.safetensors')
    assert w.read_metadata(ours)['source'] == 'thawro.pt'
    plain = torch.load(w.convert_weights(ours, tmp_path / 'official.pth'), weights_only=True)
    assert list(plain) == list(pose) and all(torch.equal(plain[n], pose[n]) for n in pose)
    again = w.convert_weights(tmp_path / 'official.pth', tmp_path / 'again.safetensors')
    assert same(HigherHRNet(**SMALL_POSE, weights=again), pose)
    with pytest.raises(UserError, match='the input itself'): w.convert_weights(ours, ours)
    with pytest.raises(UserError, match='must end with'): w.convert_weights(ours, tmp_path / 'x.onnx')


def test_the_notes_of_our_files_survive(tmp_path):
    w.save_weights(HRNet(4, (1, 1, 1), 1, 4), tmp_path / 'a.safetensors', input_size=192)
    w.convert_weights(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors')
    assert w.read_metadata(tmp_path / 'b.safetensors')['input_size'] == '192'
    assert "input_size='192'" in w.inspect_weights(tmp_path / 'b.safetensors')


def run(*args, **kw):
    return subprocess.run([sys.executable, '-m', 'hrnet_nbdev.weights', *map(str, args)], capture_output=True, text=True, **kw)


def test_command(tmp_path):
    marker = tmp_path / 'ran'
    save(tmp_path / 'evil.pth', dict(state_dict=Payload(os.system, f'touch {marker}')))
    done = run('inspect', tmp_path / 'evil.pth')
    assert done.returncode == 1 and 'Traceback' not in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith('error: ') and not marker.exists()


def test_command_functions(tmp_path, cls, capsys, monkeypatch):
    file = save(tmp_path / 'cls.pth', cls)
    w.hrnet_weights('convert', str(file), str(tmp_path / 'ours.safetensors'))
    assert 'wrote' in capsys.readouterr().out
    w.hrnet_weights('inspect', str(tmp_path / 'ours.safetensors'))
    assert 'ClassificationHRNet(width=4' in capsys.readouterr().out
    (tmp_path / 'hrnet_32.pt').touch()
    w.hrnet_weights('list', folder=str(tmp_path))
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 1 + len(downloads.SOURCES) and 'AP 67.1' in table
    assert [line for line in table.splitlines() if line.endswith('here')][0].startswith('thawro_hrnet_w32')
    for args in (('inspect',), ('convert', str(file)), ('download',), ('download', 'no_such_name')):
        with pytest.raises(SystemExit) as e: w.hrnet_weights(*args)
        assert e.value.code == 1 and capsys.readouterr().err.startswith('error: ')
