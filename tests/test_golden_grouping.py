"""Grouping, stage by stage, against the numbers of the reference implementation (golden/grouping.npz)."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hrnet_nbdev import grouping as G

GOLDEN = np.load(Path(__file__).parent / 'golden' / 'grouping.npz')
CASES = sorted({name.rsplit('.', 1)[0] for name in GOLDEN.files})
FLAGS = {case: json.loads(str(GOLDEN[f'{case}.flags'])) for case in CASES}
# exactness is owed where the best assignment is unique; where SciPy breaks the ties as the reference does, it comes for free
EXACT = [case for case in CASES if FLAGS[case]['robust'] and (FLAGS[case]['assignment_unique'] or FLAGS[case]['scipy_same'])]
OPTIONS = {'TEST.IGNORE_TOO_MUCH': 'ignore_too_many', 'TEST.USE_DETECTION_VAL': 'use_score', 'TEST.NMS_KERNEL': 'nms_kernel',
           'TEST.TAG_THRESHOLD': 'tag_thr', 'TEST.DETECTION_THRESHOLD': 'det_thr', 'DATASET.MAX_NUM_PEOPLE': 'max_people'}


def scene(case, device='cpu'):
    "Heatmaps [K, H, W], tags [K, H, W, L], keyword arguments of `group`."
    name = case.split('#')[0]
    maps, tags = (torch.from_numpy(GOLDEN[f'{name}.{a}'][0].astype(np.float32)).to(device) for a in ('det', 'tag'))
    pairs = json.loads(str(GOLDEN[f'{case}.options']))
    kwargs = {OPTIONS[key]: value for key, value in zip(pairs[::2], pairs[1::2]) if key != 'TEST.NMS_PADDING'}
    return maps, tags, kwargs


def golden(case, name):
    want = GOLDEN[f'{case}.{name}']
    return want.reshape(0, *empty(case)) if want.size == 0 and not name.startswith('scores') else want


def empty(case):
    maps, tags, _ = scene(case)
    return len(maps), 3 + tags.shape[-1]


@pytest.mark.parametrize('case', CASES)
def test_top_k(case):
    maps, tags, kwargs = scene(case)
    tag_k, loc_k, val_k = G.top_k(maps, tags, kwargs.get('max_people', 30), 0, kwargs.get('nms_kernel', 5))
    want_tag, want_loc, want_val = (golden(case, f'{n}_k') for n in ('tag', 'loc', 'val'))
    assert val_k.shape == want_val.shape and loc_k.shape == want_loc.shape and tag_k.shape == want_tag.shape
    np.testing.assert_array_equal(val_k, np.maximum(want_val, 0))
    alone = val_k > 0
    if FLAGS[case]['topk_ties_above_threshold']:  # the order of equal values is free: compare where a value is alone
        alone &= (val_k[:, :, None] == val_k[:, None]).sum(2) == 1
    np.testing.assert_array_equal(loc_k[alone], want_loc[alone])
    np.testing.assert_array_equal(tag_k[alone], want_tag[alone])


@pytest.mark.parametrize('case', EXACT)
def test_match(case):
    maps, tags, kwargs = scene(case)
    nms = kwargs.pop('nms_kernel', 5)
    poses = G.match(*(golden(case, f'{n}_k') for n in ('tag', 'loc', 'val')), **kwargs)
    np.testing.assert_array_equal(poses, golden(case, 'match'))
    from_maps, _ = G.group(maps, tags, adjust=False, refine=False, nms_kernel=nms, **kwargs)
    np.testing.assert_array_equal(from_maps.numpy(), golden(case, 'match'))


def check_final(case, device):
    maps, tags, kwargs = scene(case, device)
    for adjust in (0, 1):
        for refine in (0, 1):
            if f'{case}.parse_adjust{adjust}_refine{refine}' not in GOLDEN: continue  # changed options: not every combination is stored
            poses, scores = G.group(maps, tags, adjust=bool(adjust), refine=bool(refine), **kwargs)
            np.testing.assert_array_equal(poses.cpu().numpy(), golden(case, f'parse_adjust{adjust}_refine{refine}'))
            np.testing.assert_allclose(scores.cpu().numpy(), golden(case, f'scores_adjust{adjust}'), rtol=1e-6)


@pytest.mark.parametrize('case', EXACT)
def test_final(case): check_final(case, 'cpu')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('case', EXACT)
def test_final_cuda(case): check_final(case, 'cuda')


@pytest.mark.parametrize('case', CASES)
def test_adjust_and_refine_from_the_references_matches(case):
    "The later stages do not depend on how ties were broken: fed with the reference's matches they give its people."
    maps, tags, _ = scene(case)
    poses = torch.from_numpy(golden(case, 'match'))
    for adjust in (0, 1):
        ours = G.adjust_joints(poses, maps) if adjust else poses
        filled = G.refine_poses(ours, maps, tags)
        for refine, result in enumerate((ours, filled)):
            name = f'parse_adjust{adjust}_refine{refine}'
            if f'{case}.{name}' in GOLDEN: np.testing.assert_array_equal(result.numpy(), golden(case, name))


def test_every_option_key_is_covered():
    seen = {key for case in CASES for key in json.loads(str(GOLDEN[f'{case}.options']))[::2]}
    assert seen - {'TEST.NMS_PADDING'} <= set(OPTIONS)
    assert len(EXACT) >= 15
