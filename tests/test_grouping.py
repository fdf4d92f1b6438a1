"""The fast grouping against plain loops (`grouping_oracle`) on random scenes, and what it promises about awkward input."""
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy.optimize import linear_sum_assignment

import grouping_oracle as oracle
from hrnet_nbdev import grouping as G

RELAXED = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
GOLDEN = Path(__file__).parent / 'golden' / 'grouping.npz'


def random_scene(seed, K=4, height=21, width=26, L=1, people=3, step=None, background='noise', spacing=1.5):
    """Heatmaps [K, H, W], tags [K, H, W, L]. `step`: heatmaps and tags are rounded to multiples of it, so that ties are everywhere;
    background 'zero', 'negative', 'noise' or 'bright' is what the heatmaps hold between the hills."""
    rng = np.random.default_rng(seed)
    low, high = {'zero': (0, 0), 'negative': (-.05, 0), 'noise': (-.02, .02), 'bright': (.02, .15)}[background]
    heat, tags = rng.uniform(low, high, (K, height, width)), rng.normal(0, 2, (K, height, width, L))
    if rng.random() < .5: tags[:] = tags.mean((0, 1, 2))  # background tags all alike
    ys, xs = np.arange(height)[:, None], np.arange(width)
    for p, k in itertools.product(range(people), range(K)):
        if rng.random() < .3: continue
        square = (xs - rng.uniform(0, width)) ** 2 + (ys - rng.uniform(0, height)) ** 2
        hill = rng.uniform(.05, 1) * np.exp(-square / 4)
        tags[k][(square < 16) & (hill > heat[k])] = spacing * p + rng.normal(0, .1, L)
        heat[k] = np.maximum(heat[k], hill)
    if step: heat, tags = (np.round(a / step) * step for a in (heat, tags))
    return heat.astype(np.float32), tags.astype(np.float32)


def check(heat, tags, **options):
    "Ours equals the loops', bit for bit, and neither input was changed."
    kept = [np.array(a, copy=True) for a in (heat, tags)]
    flags = {f'{n}_': options.pop(n) for n in ('adjust', 'refine') if n in options}
    place = {G.quarter_offset: oracle.quarter, G.parabola_offset: oracle.parabola}[options.get('place', G.quarter_offset)]
    want, want_scores = oracle.group(heat, tags, **flags, **options | dict(place=place))
    poses, scores = G.group(torch.as_tensor(heat), torch.as_tensor(tags), **{n[:-1]: v for n, v in flags.items()}, **options)
    np.testing.assert_array_equal(poses.numpy(), want)
    np.testing.assert_allclose(scores.numpy(), want_scores, rtol=1e-6)
    assert poses.dtype == scores.dtype == torch.float32 and poses.shape == (len(scores), len(heat), 3 + tags.shape[-1])
    for a, b in zip((heat, tags), kept): np.testing.assert_array_equal(np.asarray(a), b)
    return poses


scenes = st.builds(random_scene, st.integers(0, 10 ** 6), K=st.sampled_from([1, 3, 5]), height=st.integers(1, 40), width=st.integers(1, 40),
                   L=st.integers(1, 4), people=st.integers(0, 6), step=st.sampled_from([None, 1 / 4, 1 / 16]),
                   background=st.sampled_from(['zero', 'negative', 'noise', 'bright']), spacing=st.sampled_from([0, .5, 1, 1.5]))


@settings(RELAXED, max_examples=150)
@given(scenes, st.booleans(), st.booleans())
def test_equals_the_loops(scene, adjust, refine):
    check(*scene, adjust=adjust, refine=refine)


@RELAXED
@given(scenes, st.fixed_dictionaries(dict(det_thr=st.sampled_from([0, .05, .3]), tag_thr=st.sampled_from([.3, 1, 5]),
       max_people=st.sampled_from([1, 2, 5]), nms_kernel=st.sampled_from([1, 3, 5, 7]), use_score=st.booleans(), ignore_too_many=st.booleans(),
       place=st.sampled_from([G.quarter_offset, G.parabola_offset]))))
def test_equals_the_loops_with_any_option(scene, options):
    check(*scene, **options)


@RELAXED
@given(scenes, st.integers(0, 10 ** 6), st.sampled_from([np.nan, np.inf, -np.inf]), st.floats(0, .6),
       st.sampled_from([G.quarter_offset, G.parabola_offset]))
def test_equals_the_loops_with_numbers_that_are_none(scene, seed, value, share, place):
    heat, tags = scene
    rng = np.random.default_rng(seed)
    heat[rng.random(heat.shape) < share * rng.random()] = value
    tags[rng.random(tags.shape) < share * rng.random()] = value
    poses = check(heat, tags, place=place)
    assert torch.isfinite(poses).all()


@RELAXED
@given(scenes)
def test_half_precision_gives_what_the_same_numbers_give_in_float32(scene):
    heat, tags = (torch.from_numpy(a).half() for a in scene)
    half, full = G.group(heat, tags), G.group(heat.float(), tags.float())
    assert all(torch.equal(a, b) for a, b in zip(half, full)) and half[0].dtype == torch.float32
    brain = G.group(heat.bfloat16(), tags.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(brain, G.group(heat.bfloat16().float(), tags.bfloat16().float())))


@RELAXED
@given(scenes)
def test_layout_in_memory_does_not_matter(scene):
    heat, tags = (torch.from_numpy(a) for a in scene)
    want = G.group(heat, tags)
    turned = heat.transpose(1, 2).contiguous().transpose(1, 2), tags.movedim(-1, 0).contiguous().movedim(0, -1)
    sliced = torch.stack([heat, heat], -1)[..., 0], torch.cat([tags, tags], -1)[..., :tags.shape[-1]]
    for other in (turned, sliced): assert all(torch.equal(a, b) for a, b in zip(G.group(*other), want))
    shared = tags[:1].expand(len(heat), -1, -1, -1)  # one tag map for all joints, not copied
    assert all(torch.equal(a, b) for a, b in zip(G.group(heat, shared), G.group(heat, shared.contiguous())))


@RELAXED
@given(st.integers(0, 10 ** 6), st.integers(1, 4))
def test_a_batch_is_its_images(seed, count):
    rng = np.random.default_rng(seed)
    images = [random_scene(seed + i, people=int(rng.integers(0, 5)), L=2) for i in range(count)]
    heat, tags = (torch.from_numpy(np.stack(a)) for a in zip(*images))
    for (poses, scores), h, t in zip(G.group_batch(heat, tags), heat, tags):
        alone = G.group(h, t)
        assert torch.equal(poses, alone[0]) and torch.equal(scores, alone[1])


@pytest.mark.parametrize('L', [1, 2])
@pytest.mark.parametrize('background', ['zero', 'noise'])
def test_a_hundred_people(L, background):
    heat, tags = random_scene(5, K=17, height=131, width=150, L=L, people=100, background=background, spacing=.7)
    poses = check(heat, tags)
    assert len(poses) > 30  # the setting caps peaks and the people matched against, not the people


@pytest.mark.parametrize('heat_value', [0, .05, .5])
@pytest.mark.parametrize('tag_value', [0, 1.3])
def test_constant_maps(heat_value, tag_value):
    "Everything ties with everything: the first pixel in row-major order wins."
    heat, tags = np.full((3, 20, 20), heat_value, np.float32), np.full((3, 20, 20, 1), tag_value, np.float32)
    heat[0, 9, 9] = .9
    check(heat, tags)


def test_distance_of_exactly_one_half_and_one():
    "Rounding is to the even level, and `tag_thr` itself is too far."
    heat, tags = np.zeros((3, 16, 16), np.float32), np.zeros((3, 16, 16, 1), np.float32)
    for k, tag in enumerate((2.0, 3.0, 2.5)):
        heat[k, 8, 8], tags[k, 8, 8] = .9, tag
    assert len(check(heat, tags)) == 2
    assert len(check(heat, tags, tag_thr=1.01)) == 1


@pytest.mark.parametrize('shape', [(17, 64, 48), (1, 8, 8), (3, 1, 1), (5, 9, 7)])
def test_nobody(shape):
    for value in (0., .1, np.nan, -np.inf):  # 0.1 is not above the threshold
        poses, scores = G.group(torch.full(shape, value), torch.zeros(*shape, 2))
        assert poses.shape == (0, shape[0], 5) and scores.shape == (0,)
    poses, scores = G.group(np.zeros(shape, np.float32), np.zeros((*shape, 2), np.float32))
    assert isinstance(poses, np.ndarray) and poses.shape == (0, shape[0], 5) and isinstance(scores, np.ndarray)
    assert G.group_batch(torch.zeros(0, *shape), torch.zeros(0, *shape, 1)) == []


def test_equal_tags_keep_both_people():
    heat, tags = np.zeros((2, 24, 40), np.float32), np.ones((2, 24, 40, 1), np.float32)
    heat[0, 10, [8, 30]] = .9, .8
    heat[1, 15, [8, 30]] = .7, .6
    poses = check(heat, tags, refine=False)
    assert len(poses) == 2 and (poses[..., 2] > 0).all()


@RELAXED
@given(scenes, st.sampled_from([None, 0., 1.3]), st.sampled_from([1, 5, 30]))
def test_every_peak_ends_up_in_one_person(scene, tag, max_people):
    "Nobody is lost, whatever the tags: not even if they coincide exactly."
    heat, tags = (torch.from_numpy(a) for a in scene)
    if tag is not None: tags = torch.full_like(tags, tag)
    _, loc, val = G.top_k(heat, tags, max_people)
    poses, _ = G.group(heat, tags, max_people=max_people, adjust=False, refine=False)
    for k in range(len(heat)):
        on = poses[:, k, 2] > 0
        assert sorted(poses[on, k, :2].int().tolist()) == sorted(loc[k][val[k] > 0].tolist())


@RELAXED
@given(scenes)
def test_reading_all_tag_maps_at_once_changes_nothing(scene):
    tags, maps = torch.from_numpy(scene[1])[None], torch.arange(len(scene[1])).flip(0)
    assert torch.equal(G.tag_ranges(tags, maps, at_once=True), G.tag_ranges(tags, maps))


def test_only_peaks_leave_the_device(monkeypatch):
    "A few numbers for each peak are copied to the processor, never a map."
    copied, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: copied.append(self.numel()) or cpu(self))
    heat, tags = (torch.from_numpy(a) for a in random_scene(7, K=17, height=128, width=128, L=2, people=12, background='zero'))
    G.group(heat, tags)
    assert copied and sum(copied) < heat.numel() / 100


def test_collide_scene_of_the_reference_keeps_both_people():
    golden = np.load(GOLDEN)
    heat, tags = (golden[f'collide.{a}'][0].astype(np.float32) for a in ('det', 'tag'))
    assert len(golden['collide.match']) == 1  # the reference merged them
    poses = check(heat, tags)
    assert len(poses) == 2 and (poses[..., 2] > 0).all()


@RELAXED
@given(st.integers(0, 10 ** 6), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_assignment_costs_the_least_of_all(seed, rows, cols, coarse):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 8, (rows, cols)) / 4 if coarse else rng.uniform(0, 4, (rows, cols))
    scores = rng.integers(1, 5, rows) / 4 if coarse else rng.uniform(0, 1, rows)
    person = G.assign(distances, scores)
    took = person >= 0
    assert took.sum() == min(rows, cols) and len(set(person[took])) == took.sum()
    cost = np.round(distances) * 100 - scores[:, None]
    if rows <= cols: every = (zip(range(rows), c) for c in itertools.permutations(range(cols), rows))
    else: every = (zip(r, range(cols)) for r in itertools.permutations(range(rows), cols))
    best = min(sum(cost[p] for p in pairs) for pairs in every)
    assert np.isclose(sum(cost[r, c] for r, c in enumerate(person) if c >= 0), best)


@pytest.mark.parametrize('rows, cols', [(1, 1), (3, 3), (2, 5), (30, 30), (7, 30)])
def test_tie_rule(rows, cols):
    "All costs equal: the surest candidate goes to the oldest person, and so on."
    assert G.assign(np.full((rows, cols), .3), np.full(rows, .9)).tolist() == list(range(rows))
    assert G.assign(np.full((rows, cols), .3), np.linspace(.9, .2, rows)).tolist() == list(range(rows))


def test_golden_scenes_with_ties_cost_what_the_reference_pays():
    """Where the best assignment is not unique our people may differ from the reference's, but not in price: up to the first joint that
    differs all is equal, and there both assignments have the least possible cost."""
    golden = np.load(GOLDEN)
    ties = [name[:-6] for name in golden.files if name.endswith('.flags') and not json.loads(str(golden[name]))['assignment_unique']]
    # `plateau` holds equal peaks with equal tags: the reference merges them into one person, ours stay two (see `collide` above)
    cases = [case for case in ties if json.loads(str(golden[f'{case}.options'])) == [] and case != 'plateau']
    assert len(cases) >= 5
    for case in cases:
        tag_k, loc_k, val_k = (golden[f'{case}.{n}_k'] for n in ('tag', 'loc', 'val'))
        both = golden[f'{case}.match'], G.match(tag_k, loc_k, val_k)
        for n, k in enumerate(G.COCO_ORDER):
            before, after = ([keep_only(people, G.COCO_ORDER[:m]) for people in both] for m in (n, n + 1))
            if not np.array_equal(*after): break
        else: continue  # equal all the same
        people = before[0][:30]
        means = np.stack([p[p[:, 2] > 0, 3:].astype(np.float64).mean(0) for p in people])
        on = val_k[k] > .1
        cost = np.round(np.linalg.norm(tag_k[k, on][:, None] - means, axis=2)) * 100 - val_k[k, on][:, None].astype(np.float64)
        for now in after:
            taken = {(x, y): p for p, (x, y) in enumerate(now[:len(people), k, :2].tolist()) if now[p, k, 2] > 0}
            person = [taken.get(tuple(xy), -1) for xy in loc_k[k, on].tolist()]
            np.testing.assert_allclose(least_cost(cost, person), least_cost(cost, [-1] * len(cost)), atol=1e-4, err_msg=case)


def least_cost(cost, person):
    "Cost of the best assignment in which the rows with `person` >= 0 have that column; the others are free."
    rows, cols = [r for r, p in enumerate(person) if p < 0], [c for c in range(cost.shape[1]) if c not in person]
    rest = cost[np.ix_(rows, cols)]
    return sum(cost[r, p] for r, p in enumerate(person) if p >= 0) + (rest[linear_sum_assignment(rest)].sum() if rest.size else 0)


def keep_only(people, joints):
    "The people as they were after the first few joints."
    people = people.copy()
    people[:, [k for k in range(people.shape[1]) if k not in joints]] = 0
    return people[(people[..., 2] > 0).any(1)]


@RELAXED
@given(st.integers(0, 10 ** 6), st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 3, 5, 9]), st.sampled_from([None, .25]))
def test_peaks_equal_those_of_the_loops(seed, height, width, nms_kernel, step):
    heat, tags = random_scene(seed, height=height, width=width, step=step, background='bright')
    n, y, x, value = G.find_peaks(torch.from_numpy(heat), .1, nms_kernel)
    got = list(zip(n.tolist(), y.tolist(), x.tolist()))
    assert got == sorted(got) and torch.equal(value, torch.from_numpy(heat)[n, y, x])
    want = {(k, int(r[1]), int(r[0])) for k in range(len(heat)) for r in oracle.peaks(heat[k], tags[k], 10 ** 6, .1, nms_kernel)}
    assert set(got) == want and len(got) == len(want)


@RELAXED
@given(st.integers(0, 10 ** 6), st.integers(1, 40), st.integers(1, 40))
def test_adjusting_moves_by_a_quarter_and_to_the_middle(seed, height, width):
    heat, tags = random_scene(seed, height=height, width=width)
    plain, moved = (G.group(torch.from_numpy(heat), torch.from_numpy(tags), adjust=a, refine=False)[0] for a in (False, True))
    found = plain[..., 2] > 0
    assert set((moved - plain)[found][:, :2].flatten().tolist()) <= {.25, .75}
    assert torch.equal(moved[~found], plain[~found])


@RELAXED
@given(st.floats(.02, .98), st.floats(.02, .98), st.floats(1.5, 4))
def test_the_parabola_finds_the_top_of_a_hill(x, y, sigma):
    xs = torch.arange(21) + .5
    hill = torch.exp(-((xs - 10 - x) ** 2 + (xs[:, None] - 10 - y) ** 2) / (2 * sigma ** 2))[None]
    place = G.parabola_offset(hill, *(torch.tensor([i]) for i in (0, 10, 10)))
    assert (place[0] - torch.tensor([10 + x, 10 + y])).abs().max() < .05
    assert (G.parabola_offset(torch.full((1, 3, 3), -torch.inf), *(torch.tensor([i]) for i in (0, 1, 1))) == 1.5).all()


def test_refining_fills_and_never_changes_what_was_found():
    heat, tags = (torch.from_numpy(a) for a in random_scene(3, K=17, people=4, L=2, height=64, width=64))
    for adjust in (False, True):
        before, after = (G.group(heat, tags, adjust=adjust, refine=r)[0] for r in (False, True))
        found = before[..., 2] > 0
        assert torch.equal(before[found], after[found]) and (after[~found][:, 3:] == 0).all()
        assert (after[..., 2] > 0).sum() > found.sum()


@pytest.mark.parametrize('heat, tags, options, message', [
    ((3, 8, 8), (3, 8, 9, 1), {}, 'one more dimension'), ((3, 8, 8), (3, 8, 8), {}, 'one more dimension'),
    ((3, 8, 8), (3, 8, 8, 1), dict(det_thr=-.1), 'det_thr'), ((3, 8, 8), (3, 8, 8, 1), dict(nms_kernel=2), 'nms_kernel')])
def test_mistakes_are_named(heat, tags, options, message):
    with pytest.raises(ValueError, match=message): G.group(torch.zeros(heat), torch.zeros(tags), **options)


def test_a_scene_of_the_evaluations_size_equals_the_loops():
    "Full size, so that many tiles, chunks and threads take part; peaks and refinement of a few maps only, the loops being slow."
    heat, tags = random_scene(11, K=3, height=512, width=704, L=2, people=12)
    check(heat, tags)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('background', ['zero', 'noise'])
def test_cuda_gives_the_same_numbers(background):
    heat, tags = (torch.from_numpy(a) for a in random_scene(7, K=17, height=120, width=136, L=2, people=12, background=background))
    here, there = G.group(heat, tags), G.group(heat.cuda(), tags.cuda())
    assert all(b.is_cuda and torch.equal(a, b.cpu()) for a, b in zip(here, there))
