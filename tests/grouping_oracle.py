"""Grouping in plain loops, pixel by pixel where need be: slow, easy to check, the oracle of `hrnet_nbdev.grouping`."""
import numpy as np
from scipy.optimize import linear_sum_assignment

COCO_ORDER = [0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16]


def clean(heatmaps):
    "Float32 copy in which NaN and infinity are -inf."
    heatmaps = np.asarray(heatmaps).astype(np.float32)
    return np.where(np.isfinite(heatmaps), heatmaps, np.float32(-np.inf))


def peaks(heatmap, tags, max_people, det_thr, nms_kernel):
    "Rows (x, y, value, tags) of one joint, best first."
    r, rows = nms_kernel // 2, []
    for y, x in zip(*np.nonzero(heatmap > det_thr)):
        window = heatmap[max(y - r, 0):y + r + 1, max(x - r, 0):x + r + 1]
        row = [x, y, heatmap[y, x], *tags[y, x]]
        if heatmap[y, x] == window.max() and np.isfinite(row).all(): rows.append(row)
    rows.sort(key=lambda row: -row[2])  # stable: ties keep the row-major order
    return np.array(rows[:max_people], np.float64).reshape(-1, 3 + tags.shape[-1])


def match(candidates, det_thr=0.1, tag_thr=1.0, max_people=30, use_score=True, ignore_too_many=False, joint_order=None):
    "Lists of peaks per joint -> people [P, K, 3 + L]."
    K, dims = len(candidates), candidates[0].shape[1]
    people = []  # one dictionary of joints per person
    for k in joint_order or (COCO_ORDER if K == 17 else range(K)):
        joints = [j for j in candidates[k] if j[2] > det_thr]
        known = people[:max_people]
        if not joints or (ignore_too_many and len(known) == max_people): continue
        columns = {}
        if known:
            means = [np.mean([j[3:] for j in p.values()], 0) for p in known]
            distance = np.array([[np.sqrt(((j[3:] - m) ** 2).sum()) for m in means] for j in joints])
            cost = distance
            if use_score: cost = np.array([[np.round(d) * 100 - j[2] for d in row] for j, row in zip(joints, distance)])
            columns = dict(zip(*linear_sum_assignment(cost)))
        for i, joint in enumerate(joints):
            if i in columns and distance[i][columns[i]] < tag_thr: known[columns[i]][k] = joint
            else: people.append({k: joint})
    poses = np.zeros((len(people), K, dims), np.float32)
    for p, joints in enumerate(people):
        for k, joint in joints.items(): poses[p, k] = joint
    return poses


def quarter(heatmap, y, x):
    "Sub-pixel place (x, y)."
    h, w = heatmap.shape
    dx = 0.25 if heatmap[y, min(x + 1, w - 1)] > heatmap[y, max(x - 1, 0)] else -0.25
    dy = 0.25 if heatmap[min(y + 1, h - 1), x] > heatmap[max(y - 1, 0), x] else -0.25
    return x + 0.5 + dx, y + 0.5 + dy


def parabola(heatmap, y, x):
    "Sub-pixel place (x, y): the tops of two parabolas, in float32 as everything here."
    h, w = heatmap.shape
    value = lambda row, col: max(heatmap[min(max(row, 0), h - 1), min(max(col, 0), w - 1)], np.float32(0))

    def top(before, after):
        bend = np.float32(4) * value(y, x) - np.float32(2) * (before + after)
        return np.clip((after - before) / max(bend, np.float32(1e-6)), np.float32(-.49), np.float32(.49))
    return np.float32(x + .5) + top(value(y, x - 1), value(y, x + 1)), np.float32(y + .5) + top(value(y - 1, x), value(y + 1, x))


def adjust(poses, heatmaps, place=quarter):
    poses = poses.copy()
    for person in poses:
        for k, joint in enumerate(person):
            if joint[2] > 0: joint[:2] = place(heatmaps[k], int(joint[1]), int(joint[0]))
    return poses


def refine(poses, heatmaps, tags, place=quarter):
    "Looks at every pixel of the map for every missing joint of every person."
    poses = poses.copy()
    for person in poses:
        mine = [tags[k, int(j[1]), int(j[0])] for k, j in enumerate(person) if j[2] > 0]
        if not mine: continue
        mean = np.mean(np.array(mine, np.float64), 0).astype(np.float32)
        for k, joint in enumerate(person):
            if joint[2] != 0: continue
            total = 0
            for d in range(tags.shape[-1]): total = total + (tags[k, :, :, d] - mean[d]) ** 2
            fit = heatmaps[k] - np.round(np.sqrt(total))
            fit[np.isnan(fit)] = -np.inf
            y, x = np.unravel_index(fit.argmax(), fit.shape)
            if heatmaps[k, y, x] > 0 and np.isfinite(fit[y, x]): joint[:3] = *place(heatmaps[k], y, x), heatmaps[k, y, x]
    return poses


def group(heatmaps, tags, det_thr=0.1, tag_thr=1.0, max_people=30, adjust_=True, refine_=True, nms_kernel=5, place=quarter,
          **options):
    "(poses, scores) of one image, NumPy arrays in and out."
    with np.errstate(invalid='ignore', over='ignore'):
        heatmaps, tags = clean(heatmaps), np.asarray(tags).astype(np.float32)
        poses = match([peaks(h, t, max_people, det_thr, nms_kernel) for h, t in zip(heatmaps, tags)], det_thr, tag_thr, max_people, **options)
        if adjust_: poses = adjust(poses, heatmaps, place)
        scores = poses[:, :, 2].astype(np.float64).mean(1).astype(np.float32) if len(poses) else np.zeros(0, np.float32)
        if refine_: poses = refine(poses, heatmaps, tags, place)
    return poses, scores
