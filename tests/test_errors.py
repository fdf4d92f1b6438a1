"""Error analysis: planted errors are found, exactly those, and mending them undoes them."""
import contextlib, io
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hrnet_nbdev import errors as er
from hrnet_nbdev.annotations import read_schema
from hrnet_nbdev.coco_eval import coco_scores, oks, poses_to_coco
from hrnet_nbdev.data import COCO_SCHEMA
from pycocotools.coco import COCO

SIGMAS, SIDE = np.array(COCO_SCHEMA.sigmas), 120.0
AREA = SIDE * SIDE * 0.6

def layout(schema):
    "Joints on a grid that is wide enough for no joint to be near another, whatever its tolerance."
    n = int(np.ceil(np.sqrt(schema.num_joints)))
    return np.stack([np.arange(schema.num_joints) % n, np.arange(schema.num_joints) // n], 1) * SIDE

def truth(schema=COCO_SCHEMA, pictures=4, people=3, unlabelled=()):
    "A pycocotools COCO: `people` in each of the `pictures`, far apart; joints `unlabelled` have v = 0."
    gt, annotations = COCO(), []
    for i in range(pictures):
        for p in range(people):
            joints = np.c_[layout(schema) + [p * 3000, i * 7], np.full(schema.num_joints, 2)]
            joints[list(unlabelled)] = 0
            annotations.append(dict(id=1 + len(annotations), image_id=100 + i, category_id=1, iscrowd=0, keypoints=joints.ravel().tolist(), area=AREA,
                                    num_keypoints=int((joints[:, 2] > 0).sum()), bbox=[p * 3000, 0, 5 * SIDE, 5 * SIDE]))
    category = dict(id=1, name="person", keypoints=list(schema.names), skeleton=[[a + 1, b + 1] for a, b in schema.limbs], sigmas=list(schema.sigmas))
    gt.dataset = dict(images=[dict(id=100 + i, width=9000, height=900, file_name=f"{i}.jpg") for i in range(pictures)],
                      annotations=annotations, categories=[category])
    with contextlib.redirect_stdout(io.StringIO()): gt.createIndex()
    return gt

def perfect(gt):
    "The annotations as results, the sure ones first."
    return [poses_to_coco(np.reshape(a["keypoints"], (1, -1, 3)), [1 - 0.001 * n], a["image_id"])[0] for n, a in enumerate(gt.anns.values())]

def move(results, r, joint, to):
    "Put a joint of result `r` elsewhere."
    pose = np.reshape(results[r]["keypoints"], (-1, 3)).copy()
    pose[joint, :2] = to
    results[r] = results[r] | dict(keypoints=pose.ravel().tolist())

def shifted(result, dy): # the whole pose, downwards
    return result | dict(keypoints=(np.reshape(result["keypoints"], (-1, 3)) + [0, dy, 0]).ravel().tolist())

def place(results, r, joint): return np.reshape(results[r]["keypoints"], (-1, 3))[joint, :2].copy()

def flaws(gt, results, schema=COCO_SCHEMA, **options):
    return {k: n for k, n in er.diagnose(gt, results, schema, **options).counts().items() if n and k != "good"}

def distance(similarity, joint, sigmas=SIGMAS): # that has this similarity
    return float(np.sqrt(-2 * np.log(similarity) * AREA * (2 * sigmas[joint]) ** 2))

def names(*wanted): return [COCO_SCHEMA.names.index(n) for n in wanted]

def test_truth_has_no_flaws():
    gt = truth()
    assert flaws(gt, perfect(gt)) == {}
    d = er.diagnose(gt, perfect(gt), COCO_SCHEMA)
    assert d.counts()["good"] == 4 * 3 * 17 and all(p.oks == pytest.approx(1) for p in d.pairs)

@pytest.mark.parametrize("similarity, kind", [(0.99, None), (0.851, None), (0.849, "jitter"), (0.501, "jitter"), (0.499, "miss"), (0.01, "miss")])
def test_thresholds(similarity, kind):
    gt, (k,) = truth(), names("left_wrist")
    results = perfect(gt)
    move(results, 5, k, place(results, 5, k) + [distance(similarity, k), 0])
    assert flaws(gt, results) == ({kind: 1} if kind else {})

@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from(range(17)), st.sampled_from(er.JOINT_KINDS[1:])), unique_by=lambda t: t[:2], max_size=14))
def test_planted_joint_errors_are_found(plan):
    "Any plan of at most four errors a person: kinds, joints and people come out as planted."
    gt = truth()
    clean, flip, done = perfect(gt), COCO_SCHEMA.flip, []
    results = list(clean)
    for r, k, kind in plan:
        if sum(d[0] == r for d in done) == 4 or kind == "inversion" and flip[k] == k: continue
        to = {"jitter": place(clean, r, k) + [0, distance(0.7, k)], "inversion": place(clean, r, flip[k]), "miss": place(clean, r, k) + [0, -1500.0],
              "swap": place(clean, (r // 3) * 3 + (r + 1) % 3, flip[k] if k % 2 else k)}[kind]
        move(results, r, k, to)
        done.append((r, k, kind))
    d = er.diagnose(gt, results, COCO_SCHEMA)
    found = {(p.result, k, er.JOINT_KINDS[n]) for p in d.pairs for k, n in enumerate(p.kinds) if n > 0}
    assert found == set(done) and not (d.duplicates or d.false_positives or d.missed)
    table = er.joint_counts(d, 17)
    assert table[:, 1:].sum() == len(done) and table.sum() == 4 * 3 * 17

def test_people_missed_doubled_and_invented():
    gt = truth()
    results = perfect(gt)
    twice = [results[1] | dict(score=0.2), results[7] | dict(score=0.3)]
    ghost = shifted(results[4], 60000) | dict(score=0.9)
    results = [r for n, r in enumerate(results) if n not in (0, 5, 11)] + twice + [ghost]
    d = er.diagnose(gt, results, COCO_SCHEMA)
    assert flaws(gt, results) == {"missed person": 3, "duplicate": 2, "false positive": 1}
    assert d.missed == [1, 6, 12] and d.duplicates == [9, 10] and d.false_positives == [11]

def test_joints_without_truth_are_not_judged():
    k = names("left_ear", "right_ear")
    gt = truth(unlabelled=k)
    results = perfect(gt)
    move(results, 0, k[0], (5000, 5000))
    assert flaws(gt, results) == {} and er.diagnose(gt, results, COCO_SCHEMA).pairs[0].kinds[k].tolist() == [-1, -1]

def test_the_nearer_of_inversion_and_swap_names_it():
    schema, area = COCO_SCHEMA, np.array([AREA, AREA])
    left, right = names("left_wrist", "right_wrist")
    me = np.c_[layout(schema), np.full(17, 2.0)]
    other = me.copy()
    other[:, :2] += 2000
    other[left, :2] = me[right, :2] + [4, 0]             # somebody else's left wrist beside my right one
    for x, kind in ((0.5, "inversion"), (3.5, "swap")):
        pose = me.copy()
        pose[left, :2] = me[right, :2] + [x, 0]
        assert er.JOINT_KINDS[er.joint_kinds(pose, np.stack([me, other]), area, 0, schema)[left]] == kind

def test_crowds_and_empty_pictures():
    "A result on a crowd is free; one in a picture without anybody is a false positive, unless only pictures with people count."
    gt = truth(pictures=2, people=1)
    gt.dataset["images"].append(dict(id=102, width=9000, height=900, file_name="2.jpg"))
    gt.dataset["annotations"].append(dict(id=50, image_id=100, category_id=1, iscrowd=1, keypoints=[0] * 51, num_keypoints=0, area=4e6, bbox=[3000, 0, 2000, 2000],
                                          segmentation=dict(size=[900, 9000], counts=[900 * 9000])))
    gt.createIndex()
    on_crowd = poses_to_coco((layout(COCO_SCHEMA) + [3500, 300]).reshape(1, 17, 2).repeat(2, 2)[..., [0, 2, 1]], [0.5], 100)[0]
    assert flaws(gt, perfect(truth(pictures=2, people=1)) + [on_crowd]) == {}
    results = perfect(truth(pictures=2, people=1)) + [on_crowd | dict(image_id=102)]
    assert flaws(gt, results) == {"false positive": 1} and flaws(gt, results, people_only=True) == {}
    assert flaws(gt, results, image_ids=[100, 101]) == {}

def test_nobody_found_and_nobody_there():
    gt = truth()
    assert flaws(gt, []) == {"missed person": 12}
    d = er.diagnose(gt, [], COCO_SCHEMA)
    assert er.joint_counts(d, 17).sum() == 0
    assert coco_scores(gt, er.mend(gt, [], d, ["missed person"]))["AP"] == pytest.approx(1)
    assert flaws(truth(people=0), perfect(gt)[:2]) == {"false positive": 2}

def spoilt(gt):
    "Results with all kinds of errors."
    results, rng = perfect(gt), np.random.default_rng(0)
    for r in range(len(results)):
        for k in rng.choice(17, 6, replace=False): move(results, r, k, place(results, r, k) + rng.normal(0, 12, 2))
    k, l = names("left_hip", "right_hip")
    move(results, 2, k, place(perfect(gt), 2, l))
    move(results, 3, k, place(perfect(gt), 4, k))
    return results[:-2] + [results[0] | dict(score=0.1), shifted(results[1], 60000) | dict(score=2.0)]

def test_mending_undoes_the_errors():
    gt = truth()
    results = spoilt(gt)
    d = er.diagnose(gt, results, COCO_SCHEMA)
    assert all(n for n in d.counts().values())
    for kind in er.JOINT_KINDS[1:] + er.PERSON_KINDS:
        after = er.diagnose(gt, er.mend(gt, results, d, [kind]), COCO_SCHEMA).counts()
        assert after[kind] == 0 and all(after[k] <= n for k, n in d.counts().items() if k not in ("good", "duplicate"))
    everything = er.mend(gt, results, d, er.JOINT_KINDS + er.PERSON_KINDS)
    assert coco_scores(gt, everything)["AP"] == pytest.approx(1) and len(everything) == 12
    assert er.mend(gt, results, d, []) == results                # nothing mended, nothing changed

def test_gains():
    gt = truth()
    results = spoilt(gt)
    gains = er.mending_gains(gt, results, COCO_SCHEMA, er.diagnose(gt, results, COCO_SCHEMA))
    steps = [gains["AP"], *gains["together"].values()]
    assert gains["AP"] == pytest.approx(coco_scores(gt, results)["AP"])
    assert steps == sorted(steps) and gains["together"]["missed person"] > 0.9
    assert set(gains["parts"]) == set("nose eye ear shoulder elbow wrist hip knee ankle".split())
    faster = er.mending_gains(gt, results, COCO_SCHEMA, er.diagnose(gt, results, COCO_SCHEMA), library="faster-coco-eval")
    assert faster["alone"] == pytest.approx(gains["alone"], abs=1e-9)

def test_another_schema():
    schema = read_schema(dict(name="fish", keypoints=["left fin", "right fin", "mouth", "Tail-right", "Tail-left"], skeleton=[[1, 3]], sigmas=[.05] * 5))
    gt = truth(schema)
    results = perfect(gt)
    move(results, 0, 0, place(results, 0, 1))
    move(results, 1, 4, place(results, 1, 3))
    move(results, 2, 2, place(results, 2, 2) + distance(0.6, 2, [.05] * 5) / 2 ** .5)
    assert flaws(gt, results, schema) == {"inversion": 2, "jitter": 1}
    assert list(er.body_parts(schema).values()) == [[0, 1], [2], [3, 4]]

def test_key_similarity_is_the_summand_of_oks():
    rng = np.random.default_rng(1)
    joints = np.c_[rng.uniform(0, 100, (17, 2)), rng.integers(0, 3, 17)]
    pose = joints[:, :2] + rng.normal(0, 5, (17, 2))
    ks = er.key_similarity(pose, joints, 3000.0, SIGMAS)
    assert ks[joints[:, 2] > 0].mean() == pytest.approx(oks(pose, joints, 3000.0, SIGMAS)) and (ks[joints[:, 2] == 0] == 0).all()

def test_only_the_twenty_surest_count():
    "As for the evaluator; mended results hold nobody whom it has not seen."
    gt = truth(pictures=1, people=1)
    ghosts = [shifted(perfect(gt)[0], 9000 * n) | dict(score=2.0 + n) for n in range(1, 24)]
    assert flaws(gt, perfect(gt) + ghosts) == {"false positive": 20, "missed person": 1}
    d = er.diagnose(gt, perfect(gt) + ghosts, COCO_SCHEMA)
    assert coco_scores(gt, er.mend(gt, perfect(gt) + ghosts, d, er.PERSON_KINDS))["AP"] == pytest.approx(1)

def test_pictures_and_figures():
    gt = truth(pictures=4)
    results = spoilt(gt)
    d = er.diagnose(gt, results, COCO_SCHEMA)
    read = lambda i: np.full((900, 9000, 3), 100, np.uint8)
    for kind in er.JOINT_KINDS + er.PERSON_KINDS:
        views = er.example_pictures(read, gt, results, d, kind, COCO_SCHEMA, n=2, side=100)
        assert views and all(v.shape == (100, 100, 3) and v.std() > 0 for v in views)
    nothing = er.diagnose(gt, [], COCO_SCHEMA)
    assert er.example_pictures(read, gt, [], nothing, "swap", COCO_SCHEMA) == []
    for fig in (er.joint_figure(d, COCO_SCHEMA), er.joint_figure(nothing, COCO_SCHEMA),
                er.gains_figure(er.mending_gains(gt, results, COCO_SCHEMA, d))): fig.canvas.draw()
