"""Start-up and memory on an annotation file as large as COCO's: `python benchmarks/annotations.py [FOLDER] [WORKERS]`

Writes (once) a made-up person_keypoints_train2017.json with COCO's 118,287 pictures and 262,465 annotations into FOLDER (default:
a temporary folder, removed at the end), all pictures being links to one. Then, each in a fresh process: pycocotools' own reading, and
`CocoPoses` without and with its cache; and the memory that each loader process keeps for itself once it has read the joints of its share,
less that of a process without a data set.
"""
import contextlib, io, json, multiprocessing, subprocess, sys, tempfile, time
from pathlib import Path
import cv2
import numpy as np
from pycocotools.coco import COCO
from hrnet_nbdev.data import CocoPoses

IMAGES, ANNOTATIONS, WITH_PEOPLE = 118_287, 262_465, 64_115


def outline(rng, radius):
    "A polygon as JSON text, with two decimals as in COCO; 30 corners make the file about as large as the real one."
    angle = np.sort(rng.uniform(0, 2 * np.pi, 30))
    xy = rng.uniform(150, 300, 2) + radius * rng.uniform(.3, 1, (30, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
    return json.dumps([xy.round(2).ravel().tolist()])


def crowd(rng):
    "A crowd's run lengths as JSON text, for a picture of 640 x 480."
    runs = rng.integers(3, 60, 400).tolist()
    return json.dumps(dict(counts=[*runs, 640 * 480 - sum(runs)], size=[480, 640]))


def write_annotations(file):
    "The file, from a few hundred drawn outlines and poses in random combination."
    rng = np.random.default_rng(0)
    # two in five have no key points, being small
    outlines, crowds = [outline(rng, 120 if k % 5 > 1 else 40) for k in range(500)], [crowd(rng) for _ in range(20)]
    poses = [np.column_stack([rng.integers(0, 480, (17, 2)), rng.integers(0, 3, 17)]) * (k % 5 > 1) for k in range(500)]
    poses = [(json.dumps(p.ravel().tolist()), int((p[:, 2] > 0).sum())) for p in poses]
    ids = rng.permutation(600_000)[:IMAGES].tolist()
    url = "http://images.example.org/train2017"
    images = ",".join(f'{{"license": 3,"file_name": "{i:012d}.jpg","coco_url": "{url}/{i:012d}.jpg","height": 480,"width": 640,"date_captured": '
                      f'"2013-11-14 11:18:45","flickr_url": "http://farm9.example.com/8186/8119368305_{i:010d}_z.jpg","id": {i}}}' for i in ids)
    owner = np.r_[np.arange(WITH_PEOPLE), rng.integers(0, WITH_PEOPLE, ANNOTATIONS - WITH_PEOPLE)]   # somebody in each
    none = json.dumps([0] * 51)
    def annotation(k):
        many = rng.random() < 0.01
        pose, n = (none, 0) if many else poses[k % 500]
        shape = crowds[k % 20] if many else outlines[k % 500]
        return (f'{{"segmentation": {shape},"num_keypoints": {n},"area": 28292.08625,"iscrowd": {int(many)},"keypoints": {pose},"image_id": '
                f'{ids[owner[k]]},"bbox": [267.03,104.32,229.19,320.0],"category_id": 1,"id": {k + 1}}}')
    names = ("nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
             "left_hip right_hip left_knee right_knee left_ankle right_ankle").split()
    category = json.dumps(dict(supercategory="person", id=1, name="person", keypoints=names, skeleton=[[6, 7]]))
    file.write_text(f'{{"info": {{}},"licenses": [],"images": [{images}],"annotations": [{",".join(map(annotation, range(ANNOTATIONS)))}],'
                    f'"categories": [{category}]}}')
    return [f"{i:012d}.jpg" for i in ids]


def write_folder(root):
    "A COCO folder with the large file."
    file, pictures = root/"annotations/person_keypoints_train2017.json", root/"images/train2017"
    if file.is_file(): return
    file.parent.mkdir(parents=True); pictures.mkdir(parents=True)
    cv2.imwrite(str(root/"one.jpg"), np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8))
    for name in write_annotations(file): (pictures/name).symlink_to(root/"one.jpg")
    print(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB, {IMAGES:,} pictures, {ANNOTATIONS:,} annotations")


class Dictionaries:
    "The way of most projects: the index of pycocotools in every process."
    def __init__(self, root):
        with contextlib.redirect_stdout(io.StringIO()): self.coco = COCO(root/"annotations/person_keypoints_train2017.json")
        self.ids = [i for i in self.coco.imgs if i in self.coco.imgToAnns]
    def __len__(self): return len(self.ids)
    def visit(self, i):
        return np.array([a["keypoints"] for a in self.coco.imgToAnns[self.ids[i]]], np.float32)


class Arrays(CocoPoses):
    def __init__(self, root): super().__init__(root, "train2017")
    def visit(self, i): return self.joints(i)


def megabytes(*fields):
    "Sum of some fields of the kernel's account of this process."
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(kb) / 1000 for name, kb, _ in lines if name.rstrip(":") in fields)


def worker(data, part, all_done, answers):
    "Visit every item of a share, then say how much memory this process has for itself."
    for i in part: data.visit(i)
    all_done.wait()      # what only one process has left is no longer shared
    answers.put(megabytes("Private_Clean", "Private_Dirty"))


def private_memory(method, data, workers):
    "Mean over the workers, in MB."
    context = multiprocessing.get_context(method)
    all_done, answers = context.Barrier(workers), context.Queue()
    parts = [range(k, len(data) if data else 0, workers) for k in range(workers)]
    for part in parts: context.Process(target=worker, args=(data, part, all_done, answers), daemon=True).start()
    return sum(answers.get() for _ in range(workers)) / workers


def start(kind, root, workers):
    "One start in this process, and what workers add to it."
    empty = {m: private_memory(m, None, workers) for m in ("fork", "spawn")}
    before, began = megabytes("Pss"), time.perf_counter()
    data = dict(dictionaries=Dictionaries, arrays=Arrays)[kind](root)
    seconds, own = time.perf_counter() - began, megabytes("Pss") - before
    more = {m: private_memory(m, data, workers) - empty[m] for m in empty}
    print(f"{kind:14s} {seconds:6.2f} s {own:8.0f} MB {more['fork']:8.0f} MB {more['spawn']:8.0f} MB")


def main(folder=None, workers=4):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary).absolute()
        write_folder(root)
        for cache in (root/"annotations").glob(".*.safetensors"): cache.unlink()
        print(f"{'':14s}    start   memory  and each of {workers} workers, forked and spawned", flush=True)
        for kind in ("dictionaries", "arrays", "arrays"):
            subprocess.run([sys.executable, __file__, kind, root, str(workers)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] in (["dictionaries"], ["arrays"]): start(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else: main(*sys.argv[1:2], *map(int, sys.argv[2:]))
