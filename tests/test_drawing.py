"""Pictures of poses: what a colour, an opacity and a number promise."""
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hrnet_nbdev import drawing as d
from hrnet_nbdev.data import COCO_SCHEMA as S

RNG = np.random.default_rng(0)
PAPER = np.full((200, 300, 3), 128, np.uint8)

def standing(x=150., y=20., height=160., score=1.0):
    "A person who faces us: left joints on our right."
    across = dict(eye=.04, ear=.08, shoulder=.15, elbow=.2, wrist=.22, hip=.1, knee=.1, ankle=.1, nose=0)
    down = dict(nose=.05, eye=.03, ear=.04, shoulder=.2, elbow=.38, wrist=.52, hip=.52, knee=.76, ankle=1)
    part = [n.split("_")[-1] for n in S.names]
    side = [1 if n.startswith("left") else -1 for n in S.names]
    return np.array([[x + s * across[p] * height, y + down[p] * height, score] for p, s in zip(part, side)])

def pixels(picture, color): return (picture == color).all(-1)

def changed(picture, ground=PAPER): return (picture != ground).any(-1)

def alone(pose, *names):
    "The same person with only these joints."
    return pose * np.isin(S.names, names)[:, None]

# ---- sides

def test_left_and_right_limbs_have_their_own_colours():
    pose = standing()
    seen = {side: pixels(d.draw_poses(PAPER, [pose], limbs="sides"), color) for side, color in d.SIDE_COLORS.items()}
    assert all(s.any() for s in seen.values())
    left, right = (np.nonzero(seen[side])[1] for side in (-1, 1))
    assert left.min() > 150 > right.max()                             # the left of the body is on our right, and nothing is mixed up
    mirrored = pose[list(S.flip)]
    swapped = d.draw_poses(PAPER, [mirrored], limbs="sides")
    assert (np.nonzero(pixels(swapped, d.SIDE_COLORS[-1]))[1] < 150).all()

def test_every_limb_knows_its_side():
    side = dict(zip(S.limbs, d.limb_sides(S)))
    joint = S.names.index
    limb = lambda a, b: next(s for (i, j), s in side.items() if {i, j} == {joint(a), joint(b)})
    assert limb("left_shoulder", "left_elbow") == limb("nose", "left_eye") == -1
    assert limb("right_shoulder", "right_elbow") == limb("right_hip", "right_knee") == 1
    assert limb("left_shoulder", "right_shoulder") == limb("left_hip", "right_hip") == 0

def test_in_the_persons_colour_the_left_side_is_darker():
    picture = d.draw_poses(PAPER, [standing()], colors=[(200, 100, 40)])
    assert (np.nonzero(pixels(picture, (124, 62, 24)))[1] > 150).all() and pixels(picture, (124, 62, 24)).sum() > 50

def test_the_colours_of_the_sides_differ_for_colour_blind_people():
    "Brenner's and Vienot's simulations reduce red and green to one axis: blue against the sum of red and green must still tell."
    left, right = (np.array(d.SIDE_COLORS[s], float) for s in (-1, 1))
    assert abs((left[2] - left[:2].mean()) - (right[2] - right[:2].mean())) > 120

# ---- opacity

@pytest.mark.parametrize("limbs", ["person", "sides"])
def test_opacity_grows_with_the_score(limbs):
    strength = [np.abs(d.draw_poses(PAPER, [standing(score=s)], limbs=limbs, opacity=True).astype(int) - PAPER).sum()
                for s in (0, 0.05, 0.2, 0.4, 0.6, 0.8, 1)]
    assert strength[0] == 0 and (np.diff(strength) > 0).all()

def test_full_opacity_is_the_plain_drawing():
    plain, opaque = (d.draw_poses(PAPER, [standing()], opacity=o).astype(int) for o in (False, True))
    assert np.abs(plain - opaque).max() <= 8                            # the outermost, faintest pixels of the rim
    above = d.draw_poses(PAPER, [standing(score=7)], opacity=True)      # heatmaps overshoot: a score above 1 is 1
    assert np.abs(above.astype(int) - plain).max() <= 8

def test_a_limb_is_as_faint_as_its_fainter_end():
    limb = alone(standing(), "left_knee", "left_ankle")
    limb[S.names.index("left_ankle"), 2] = 0.2
    middle = limb[[S.names.index(n) for n in ("left_knee", "left_ankle")], :2].mean(0).astype(int)[::-1]
    faint, full = (d.draw_poses(PAPER, [limb], opacity=o, limbs="sides")[tuple(middle)].astype(int) for o in (True, False))
    np.testing.assert_allclose(faint - 128, 0.2 * (full - 128), atol=1.5)

# ---- what is not there

def test_score_zero_is_not_drawn():
    assert not changed(d.draw_poses(PAPER, [standing(score=0)], ids=[3])).any()
    one = d.draw_poses(PAPER, [alone(standing(), "left_wrist")])
    far = np.hypot(*(np.argwhere(changed(one)) - standing()[S.names.index("left_wrist"), 1::-1]).T)
    assert 0 < far.max() < 6                                            # one dot, no limb, nothing at (0, 0)

@pytest.mark.parametrize("odd", [np.nan, np.inf, -1e9, 1e12])
def test_impossible_places_are_left_out(odd):
    pose = standing()
    pose[9, 0] = odd
    without = standing()
    without[9] = 0
    np.testing.assert_array_equal(d.draw_poses(PAPER, [pose]), d.draw_poses(PAPER, [without]))

def test_a_person_outside_the_picture_changes_nothing_and_one_at_the_edge_is_cut():
    for away in (standing(x=-900), standing(x=5000), standing(y=-900), standing(y=2000)):
        assert not changed(d.draw_poses(PAPER, [away], opacity=True)).any()
    assert 0 < changed(d.draw_poses(PAPER, [standing(x=0)])).sum() < changed(d.draw_poses(PAPER, [standing()])).sum()

def test_a_joint_far_away_does_not_make_a_giant():
    pose = standing()
    pose[9, 0] = 9e5
    assert changed(d.draw_poses(PAPER, [pose])).mean() < 0.4

def test_threshold():
    pose = standing(score=0.5)
    assert not changed(d.draw_poses(PAPER, [pose], thr=0.5)).any() and changed(d.draw_poses(PAPER, [pose], thr=0.49)).any()

def test_nobody_and_wrong_shapes():
    for none in ([], np.zeros((0, 17, 3))): np.testing.assert_array_equal(d.draw_poses(PAPER, none), PAPER)
    for bad in (np.zeros((17, 3)), np.zeros((1, 17, 2))):
        with pytest.raises(ValueError, match="P, K"): d.draw_poses(PAPER, bad)
    with pytest.raises(ValueError, match="sides"): d.draw_poses(PAPER, [standing()], limbs="both")

# ---- colours and numbers of people

def test_colours_of_people_are_stable():
    many = d.person_colors(50)
    assert [d.person_color(i) for i in range(50)] == many == d.person_colors(90)[:50] and len(set(many)) == 50
    near = [np.abs(np.subtract(a, b)).max() for a, b in zip(many, many[1:])]
    assert min(near) > 80                                               # neighbours in the list are far apart

def test_an_id_keeps_its_colour_whoever_else_is_there():
    a, b = standing(60), standing(220)
    both = d.draw_poses(PAPER, [a, b], ids=[4, 11])
    turned = d.draw_poses(PAPER, [b, a], ids=[11, 4])
    np.testing.assert_array_equal(both, turned)
    single = d.draw_poses(PAPER, [b], ids=np.array([11]))
    np.testing.assert_array_equal(both[:, 150:], single[:, 150:])
    assert pixels(single, d.person_color(11)).sum() > 100

@pytest.mark.parametrize("x, y", [(150, 60), (150, -20), (2, 60), (298, 60), (2, -30)])
def test_the_number_is_written_inside_the_picture(x, y):
    plain, numbered = (d.draw_poses(PAPER, [standing(x, y, 120)], colors=[(9, 200, 9)], ids=i) for i in (None, [123]))
    label = np.argwhere(changed(numbered, plain))
    assert len(label) > 150 and label.min() >= 0                        # all of it: the label is not cut off by the edge
    low, high = label.min(0), label.max(0)
    assert (high - low > (8, 20)).all()

# ---- sizes, inputs

@pytest.mark.parametrize("height", [30, 60, 240, 1500])
def test_sizes_follow_the_person(height):
    ground = np.full((int(height * 1.2), height, 3), 128, np.uint8)
    share = changed(d.draw_poses(ground, [standing(height / 2, height * .1, height)]), ground).mean()
    assert 0.05 < share < 0.55
    assert d.person_radius(standing(height=height)) == pytest.approx(max(height * .97 / 45, 1.4), rel=0.02)

def test_everything_works_on_one_pixel_and_on_any_memory_layout():
    dot = d.draw_poses(np.zeros((1, 1, 3), np.uint8), [standing()], ids=[1])
    assert dot.shape == (1, 1, 3)
    turned = np.asfortranarray(PAPER)
    np.testing.assert_array_equal(d.draw_poses(turned[:, ::-1], [standing()]), d.draw_poses(PAPER, [standing()]))

def test_inputs_are_not_changed():
    image, poses = RNG.integers(0, 255, (90, 120, 3), dtype=np.uint8), np.array([standing(60, 10, 70)])
    heat, tags = RNG.random((17, 20, 30)).astype(np.float32), RNG.random((17, 20, 30)).astype(np.float32)
    kept = [a.copy() for a in (image, poses, heat, tags)]
    d.draw_poses(image, poses, limbs="sides", opacity=True, ids=[1], hollow=True)
    d.overlay_heatmaps(image, heat); d.tag_image(tags, heat, (90, 120)); d.triptych(image, poses, heat, tags)
    for a, b in zip((image, poses, heat, tags), kept): np.testing.assert_array_equal(a, b)

# ---- maps, triptych, diagram

def test_heatmaps_glow_where_they_are_high():
    heat = np.zeros((2, 50, 75), np.float32)
    heat[1, 25, 60] = 1
    glow = d.overlay_heatmaps(PAPER, heat).astype(int)
    warmth = glow[..., 0] - glow[..., 2]
    assert np.hypot(*np.subtract(np.unravel_index(warmth.argmax(), warmth.shape), (101.5, 241.5))) < 3 and warmth[20, 20] == 0

def test_triptych_is_its_parts():
    heat, tags = RNG.random((17, 50, 75)), RNG.random((17, 50, 75))
    pose, how = [standing()], dict(ids=[5], limbs="sides", opacity=True)
    three = d.triptych(PAPER, pose, heat, tags, gap=4, **how)
    assert three.shape == (200, 3 * 300 + 8, 3) and three.dtype == np.uint8
    np.testing.assert_array_equal(three[:, :300], d.draw_poses(PAPER, pose, **how))
    np.testing.assert_array_equal(three[:, 304:604], d.tag_image(tags, heat, (200, 300)))
    np.testing.assert_array_equal(three[:, 608:], d.overlay_heatmaps(PAPER, heat))
    assert d.triptych(PAPER[:100], pose, heat, tags, gap=4).shape == (308, 300, 3)         # a panorama is stacked

def test_tag_scatter_has_a_dot_for_each_joint_in_the_persons_colour():
    tags, joints, people = [1., 1.1, 3., 0.5], [0, 1, 0, 1], [7, 7, 2, -1]
    fig = d.tag_scatter(tags, joints, people, ["nose", "left_eye"])
    dots = {c.get_label(): c for c in fig.axes[0].collections}
    assert set(dots) == {"person 7", "person 2", "nobody"}
    np.testing.assert_allclose(dots["person 7"].get_offsets(), [[1, 0], [1.1, 1]])
    np.testing.assert_allclose(dots["person 2"].get_facecolor()[0, :3], np.array(d.person_color(2)) / 255, atol=1e-6)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["nose", "left eye"]
    assert not d.tag_scatter([], [], [], ["nose"]).axes[0].collections
    plt.close("all")
