"""Archives of ImageNet's and COCO's shape, small: killed, cut off, damaged, hostile, incomplete; and a server of the same kinds."""
import errno, json, os, random, shutil, signal, stat, subprocess, sys, threading, time, zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from hrnet_nbdev import archives, prepare_coco as pc, prepare_imagenet as pi
from hrnet_nbdev.archives import Archive, only_one, unpack
from hrnet_nbdev.data import CocoPoses
from hrnet_nbdev.files import UserError
from hrnet_nbdev.imagenet import ImageNet
from hrnet_nbdev.synthetic import write_coco, write_imagenet

QUIET = dict(any_count=True, progress=False)
IMAGES = "ILSVRC/Data/CLS-LOC"


def files(root):
    "Everything in a folder that a user sees: path to (bytes, inode, time of writing)."
    return {str(p.relative_to(root)): (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns)
            for p in Path(root).rglob("*") if p.is_file() and not p.name.startswith(".")}

def contents(root): return {name: state[0] for name, state in files(root).items()}

def command(module, *args):
    "The command as a process of its own."
    return subprocess.Popen([sys.executable, "-m", f"hrnet_nbdev.{module}", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def finish(process):
    "(exit status, what it wrote last on stderr or else on stdout)"
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, (err if process.returncode else out).strip().splitlines()[-1]

def kill_when(process, ready):
    "SIGKILL the process as soon as `ready()`; it must not have ended by itself."
    until = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < until: time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

def zipped(path, entries, **kw):
    with zipfile.ZipFile(path, "w", **kw) as z:
        for name, content in entries.items(): z.writestr(name, content)
    return path

def flip_a_bit(path, content):
    "Spoil `path` in the middle of an entry that holds `content`."
    whole = bytearray(path.read_bytes())
    whole[whole.index(content) + len(content) // 2] ^= 1
    path.write_bytes(whole)


# ---------------------------------------------------------------- ImageNet

def kaggle(drawn):
    "The entries of an archive like Kaggle's: name to bytes."
    val = [p for k in range(2) for w in sorted((drawn / "val").iterdir(), reverse=True) for p in [sorted(w.iterdir())[k]]]
    train = sorted((drawn / "train").rglob("*.JPEG"))
    labels = yaml.safe_load((drawn / "wordnet_labels.yaml").read_text())
    return {"LOC_synset_mapping.txt": "".join(f"{c['wnid']} {c['name']}, also {c['name']}\n" for c in labels),
            "LOC_val_solution.csv": "ImageId,PredictionString\n" + "".join(f"ILSVRC2012_val_{i:08d},{p.parent.name} 1 2 3 4 \n" for i, p in enumerate(val)),
            "LOC_sample_submission.csv": "ImageId,PredictionString\n", "ILSVRC/Annotations/CLS-LOC/val/x.xml": "<xml/>",
            "ILSVRC/ImageSets/CLS-LOC/train_cls.txt": "".join(f"{p.parent.name}/{p.stem} {i}\n" for i, p in enumerate(train)),
            **{f"{IMAGES}/train/{p.parent.name}/{p.name}": p.read_bytes() for p in train},
            **{f"{IMAGES}/val/ILSVRC2012_val_{i:08d}.JPEG": p.read_bytes() for i, p in enumerate(val)},
            f"{IMAGES}/test/ILSVRC2012_test_00000001.JPEG": b"no truth"}

@pytest.fixture(scope="module")
def drawn(tmp_path_factory): return write_imagenet(tmp_path_factory.mktemp("drawn"), train=3, val=2, size=32, seed=3, workers=1)

@pytest.fixture
def entries(drawn): return kaggle(drawn)

@pytest.fixture
def source(tmp_path, entries): return zipped(tmp_path / "kaggle.zip", entries)

def refused(said, call, *untouched):
    "The call ends with a sentence that contains `said`, and leaves nothing in the folders."
    with pytest.raises(UserError) as e: call()
    assert said in str(e.value) and "\n" not in str(e.value), str(e.value)
    for folder in untouched: assert not Path(folder).exists() or files(folder) == {}


def test_imagenet_is_sorted_and_read(tmp_path, source, drawn, capsys):
    pi.hrnet_prepare_imagenet(str(tmp_path / "ImageNet"), str(source), any_count=True)
    assert "30 training and 20 validation pictures (ILSVRC 2012 has 1,281,167 and 50,000)" in capsys.readouterr().out
    for split in ("train", "val"):
        data, truth = ImageNet(tmp_path / "ImageNet", split), ImageNet(drawn, split)
        assert data.names == truth.names and data.wnids == truth.wnids and len(data) == len(truth)
        sort = lambda d: sorted((Path(p).read_bytes(), label) for p, label in d.folder.samples)
        assert sort(data) == sort(truth)
    labels = yaml.safe_load((tmp_path / "ImageNet/wordnet_labels.yaml").read_text())
    assert [c["index"] for c in labels] == list(range(10)) and labels[0]["train"] == 3
    assert sorted(p.name for p in (tmp_path / "ImageNet").iterdir() if p.name[0] != ".") == ["train", "val", "wordnet_labels.yaml"]
    assert source.exists()


def test_the_published_numbers_are_demanded(tmp_path, source, monkeypatch):
    refused("has 30 train pictures, ILSVRC 2012 has 1,281,167", lambda: pi.prepare_imagenet(tmp_path / "out", source), tmp_path / "out")
    monkeypatch.setattr(pi, "PUBLISHED", dict(train=30, val=21))
    refused("has 20 val pictures, ILSVRC 2012 has 21", lambda: pi.prepare_imagenet(tmp_path / "out", source), tmp_path / "out")
    monkeypatch.setattr(pi, "PUBLISHED", dict(train=30, val=20))
    assert pi.prepare_imagenet(tmp_path / "out", source, progress=False) == dict(train=30, val=20)


def test_killed_and_started_again(tmp_path, entries):
    "A real process, killed three times in the middle: it ends as if nothing had been, and no finished file is written twice."
    rng, wnids = random.Random(0), [f"n9000000{i}" for i in range(8)]
    big = {"LOC_synset_mapping.txt": "".join(f"{w} thing{w}\n" for w in wnids),
           "LOC_val_solution.csv": "ImageId,PredictionString\n" + "".join(f"v{i},{w} 1\n" for i, w in enumerate(wnids * 20))}
    big |= {f"{IMAGES}/train/{w}/{w}_{i}.JPEG": rng.randbytes(rng.randrange(2000, 20_000)) for w in wnids for i in range(400)}
    big |= {f"{IMAGES}/val/v{i}.JPEG": rng.randbytes(3000) for i in range(160)}
    archive, out = zipped(tmp_path / "big.zip", big, compression=zipfile.ZIP_DEFLATED), tmp_path / "out"
    args, seen = ("prepare_imagenet", "--source", archive, "--out", out, "--any_count"), {}
    for number, folder in ((1, "n90000000"), (100, "n90000002"), (200, "n90000005")):
        here = out / "train" / folder
        kill_when(command(*args), lambda: here.is_dir() and len(os.listdir(here)) >= number)
        now = {name: state for name, state in files(out).items() if not name.startswith(".unpacking")}
        assert seen.items() <= now.items() and len(now) > len(seen), "finished files were touched, or nothing was done"
        seen = now
    assert "wordnet_labels.yaml" not in seen and len(seen) < 3360
    for name, (content, *_) in seen.items(): assert content == big[f"{IMAGES}/{name}" if name.startswith("train") else f"{IMAGES}/val/{Path(name).name}"]
    status, said = finish(command(*args))
    assert status == 0 and said.startswith(f"{out} is complete: 3,200 training and 160 validation pictures")
    after = files(out)
    assert seen.items() <= after.items() and not (out / ".unpacking").exists()
    pi.prepare_imagenet(tmp_path / "at_once", archive, **QUIET)
    assert contents(tmp_path / "at_once") == contents(out)


@pytest.mark.parametrize("name, kind", [("../../evil.JPEG", 0), ("/evil.JPEG", 0), ("a/../../evil", 0), ("C:/evil", 0), (f"{IMAGES}/train", stat.S_IFLNK)])
def test_entries_that_lead_out(tmp_path, entries, name, kind):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as z:
        for n, content in entries.items(): z.writestr(n, content)
        z.writestr(info, "/etc")
    before = set(tmp_path.iterdir())
    refused("is not to be trusted", lambda: pi.prepare_imagenet(tmp_path / "out", tmp_path / "evil.zip", **QUIET))
    assert set(tmp_path.iterdir()) == before


def test_lists_that_lead_out(tmp_path, entries):
    "Class ids become folders, so a list must not smuggle one in; nor may a link in the prepared folder lead away."
    text = entries["LOC_synset_mapping.txt"]
    evil = entries | {"LOC_synset_mapping.txt": text.replace("n90000001", "../evil")}
    refused("should have lines such as", lambda: pi.prepare_imagenet(tmp_path / "out", zipped(tmp_path / "evil.zip", evil), **QUIET), tmp_path / "out")
    evil = entries | {"LOC_val_solution.csv": entries["LOC_val_solution.csv"].replace("n90000001", "../../evil")}
    refused("disagree about the classes ../../evil", lambda: pi.prepare_imagenet(tmp_path / "out", zipped(tmp_path / "evil.zip", evil), **QUIET), tmp_path / "out")
    (tmp_path / "link").mkdir(); (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link/val").symlink_to(tmp_path / "elsewhere")
    refused("leads out of", lambda: pi.prepare_imagenet(tmp_path / "link", zipped(tmp_path / "good.zip", entries), **QUIET), tmp_path / "elsewhere")


def test_cut_off_and_damaged(tmp_path, source, entries):
    whole = source.read_bytes()
    source.write_bytes(whole[:len(whole) * 2 // 3])
    refused("is cut off, or no zip archive: remove it and fetch it again", lambda: pi.prepare_imagenet(tmp_path / "out", source, **QUIET), tmp_path / "out")
    source.write_bytes(whole)
    bad = f"{IMAGES}/train/n90000004/n90000004_1.JPEG"
    flip_a_bit(source, entries[bad])
    with pytest.raises(UserError, match=f"damaged at {bad}: remove it, fetch it again"): pi.prepare_imagenet(tmp_path / "out", source, remove_archive=True, **QUIET)
    assert source.exists() and len(files(tmp_path / "out")) == 49      # all others, and no labels
    kept = files(tmp_path / "out")
    source.write_bytes(whole)
    pi.prepare_imagenet(tmp_path / "out", source, **QUIET)
    assert kept.items() <= files(tmp_path / "out").items() and len(files(tmp_path / "out")) == 51


@pytest.mark.parametrize("change, said", [
    (lambda e: e.pop("LOC_val_solution.csv"), "lacks LOC_val_solution.csv"),
    (lambda e: e.pop("LOC_synset_mapping.txt"), "lacks LOC_synset_mapping.txt"),
    (lambda e: e.update({"LOC_val_solution.csv": "ImageId,PredictionString\n"}), "should have lines such as 'ILSVRC2012_val"),
    (lambda e: e.update({"LOC_synset_mapping.txt": b"\xff\xfe\x00"}), "should have lines such as 'n01440764 tench'"),
    (lambda e: e.pop(f"{IMAGES}/val/ILSVRC2012_val_00000003.JPEG"), "lacks 1 pictures that its own lists name: ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000003.JPEG"),
    (lambda e: [e.pop(f"{IMAGES}/train/n90000002/n90000002_{i}.JPEG") for i in range(3)], "lacks 3 pictures that its own lists name"),
    (lambda e: e.update({f"{IMAGES}/val/ILSVRC2012_val_00000099.JPEG": b"?"}), "does not list ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000099.JPEG"),
    (lambda e: e.update({f"{IMAGES}/train/n12345678/a.JPEG": b"?"}), "disagree about the classes n12345678")])
@pytest.mark.parametrize("folder", [False, True])
def test_what_is_missing_is_named(tmp_path, entries, change, said, folder):
    change(entries)
    path = zipped(tmp_path / "kaggle.zip", entries)
    if folder:
        with zipfile.ZipFile(path) as z: z.extractall(tmp_path / "folder")
        path = tmp_path / "folder"
    refused(said, lambda: pi.prepare_imagenet(tmp_path / "out", path, **QUIET), tmp_path / "out")


def test_wrong_paths(tmp_path, source, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for args, said in ((dict(), "data/imagenet-object-localization-challenge.zip is missing: download it from Kaggle"),
                       (dict(source="nowhere"), "nowhere is missing"), (dict(source=__file__), "test_prepare.py is cut off, or no zip archive"),
                       (dict(source=str(tmp_path)), "lacks LOC_synset_mapping.txt"), (dict(source=str(source), threads=0), "--threads must be positive, not 0")):
        with pytest.raises(SystemExit) as e: pi.hrnet_prepare_imagenet(**args)
        assert e.value.code == 1 and said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def test_no_room(tmp_path, source, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50 * 4096 - 1))      # 50 pictures of one block each
    refused("GB free: make room", lambda: pi.prepare_imagenet(tmp_path / "out", source, **QUIET), tmp_path / "out")
    assert not (tmp_path / "out/train").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50 * 4096))
    pi.prepare_imagenet(tmp_path / "out", source, **QUIET)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    pi.prepare_imagenet(tmp_path / "out", source, **QUIET)      # nothing left to do needs no room


def fill_disk(monkeypatch, after):
    "From the `after`-th file on, the disk is full."
    copy, count = shutil.copyfileobj, iter(range(10**6))
    def full(source, target, length=0):
        if next(count) < after: return copy(source, target, length)
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(archives.shutil, "copyfileobj", full)


def test_the_disk_fills_up(tmp_path, source, monkeypatch):
    with monkeypatch.context() as m:
        fill_disk(m, 20)
        with pytest.raises(UserError, match="is full: make room and run the same command again"): pi.prepare_imagenet(tmp_path / "out", source, **QUIET)
    kept = files(tmp_path / "out")
    assert len(kept) == 20 and not (tmp_path / "out/.unpacking").exists()
    pi.prepare_imagenet(tmp_path / "out", source, **QUIET)
    assert kept.items() <= files(tmp_path / "out").items()


def test_the_archive_goes_last(tmp_path, source):
    (tmp_path / "out/train/n90000001").mkdir(parents=True)
    (tmp_path / "out/train/n90000001/holiday.JPEG").write_bytes(b"not ImageNet's")
    with pytest.raises(UserError, match=r"train/n90000001 \(4 pictures instead of 3\)"): pi.prepare_imagenet(tmp_path / "out", source, remove_archive=True, **QUIET)
    assert source.exists() and (tmp_path / "out/train/n90000001/holiday.JPEG").exists()
    (tmp_path / "out/train/n90000001/holiday.JPEG").unlink()
    assert pi.prepare_imagenet(tmp_path / "out", source, remove_archive=True, **QUIET) == dict(train=30, val=20)
    assert not source.exists()
    assert pi.prepare_imagenet(tmp_path / "out", source) == dict(train=30, val=20)      # without the archive it still counts
    shutil.rmtree(tmp_path / "out/val/n90000002")
    with pytest.raises(UserError, match=r"val/n90000002 \(0 pictures instead of 2\)"): pi.prepare_imagenet(tmp_path / "out", source)
    (tmp_path / "out/wordnet_labels.yaml").write_text("- {index: 0, wnid: n90000001, name: rings}")
    with pytest.raises(UserError, match="does not say how many pictures"): pi.prepare_imagenet(tmp_path / "out", source)


@pytest.mark.parametrize("links", [True, False])
def test_a_folder_unpacked_already(tmp_path, source, monkeypatch, links):
    "Linked on the same disk, copied where that is not possible; never deleted, and continued like an archive."
    with zipfile.ZipFile(source) as z: z.extractall(tmp_path / "folder")
    pi.prepare_imagenet(tmp_path / "zip", source, **QUIET)
    before = files(tmp_path / "folder")
    if not links: monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError(errno.EXDEV, "Invalid cross-device link")))
    with monkeypatch.context() as m:
        replace, count = os.replace, iter(range(1000))
        m.setattr(os, "replace", lambda a, b: replace(a, b) if next(count) < 25 else (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): pi.prepare_imagenet(tmp_path / "out", tmp_path / "folder", **QUIET)
    pi.prepare_imagenet(tmp_path / "out", tmp_path / "folder", remove_archive=True, **QUIET)
    assert contents(tmp_path / "out") == contents(tmp_path / "zip")
    assert files(tmp_path / "folder") == before
    one = "train/n90000001/n90000001_1.JPEG"
    assert (tmp_path / "out" / one).samefile(tmp_path / "folder" / IMAGES / one) == links


def test_one_at_a_time(tmp_path, source):
    with only_one(tmp_path / "out"):
        status, said = finish(command("prepare_imagenet", "--source", source, "--out", tmp_path / "out", "--any-count"))
    assert status == 1 and "another process is preparing" in said
    assert pi.prepare_imagenet(tmp_path / "out", source, **QUIET)


def test_unknown_methods_and_passwords_count_as_damage(tmp_path, source, entries):
    "An entry that says it is encrypted: bit 0 of the flags in both its headers."
    name = f"{IMAGES}/val/ILSVRC2012_val_00000001.JPEG".encode()
    whole = bytearray(source.read_bytes())
    first, last = whole.index(name), whole.rindex(name)
    whole[first - 30 + 6] |= 1; whole[last - 46 + 8] |= 1
    source.write_bytes(whole)
    with pytest.raises(UserError, match="damaged at .*val_00000001.JPEG"): pi.prepare_imagenet(tmp_path / "out", source, **QUIET)


# ---------------------------------------------------------------- COCO

def coco_archives(drawn, www):
    "COCO's archives below `www`, as on its server."
    (www / "zips").mkdir(parents=True); (www / "annotations").mkdir()
    lists = {f"annotations/{kind}_{split}2017.json": (drawn / f"annotations/person_keypoints_{split}2017.json").read_bytes()
             for kind in ("captions", "instances", "person_keypoints") for split in ("train", "val")}
    zipped(www / "annotations/annotations_trainval2017.zip", lists, compression=zipfile.ZIP_DEFLATED)
    for split, more in (("train2017", 200_000), ("val2017", 0)):      # something that is no picture makes the download last
        zipped(www / f"zips/{split}.zip", {f"{split}/{p.name}": p.read_bytes() for p in sorted((drawn / "images" / split).iterdir())}
               | {f"{split}/notes.txt": random.Random(2).randbytes(more)})
    pictures = sorted((drawn / "images/val2017").iterdir())
    info = dict(images=[dict(id=i, file_name=p.name, height=1, width=1) for i, p in enumerate(pictures)], categories=[])
    zipped(www / "annotations/image_info_test2017.zip", {f"annotations/image_info_{t}2017.json": json.dumps(info) for t in ("test", "test-dev")})
    zipped(www / "zips/test2017.zip", {f"test2017/{p.name}": p.read_bytes() for p in pictures})
    return www


class Server(BaseHTTPRequestHandler):
    "Serves `www`; how, each archive's entry in `how` says: break (20,000 bytes a connection), slow, 404, 500, wrong, truncated."
    www, how, ranges, heads, log = None, {}, True, True, []

    def do_HEAD(self): self.answer(True)
    def do_GET(self): self.answer(False)

    def answer(self, head):
        path, start = self.www / self.path[1:], int((self.headers["Range"] or "bytes=0-")[6:-1]) if self.ranges else 0
        kind = self.how.get(path.stem)
        if head and not self.heads: return self.send_error(501)
        if not head: self.log.append((path.stem, start))
        if kind in ("404", "500") or not path.is_file(): return self.send_error(int(kind or "404"))
        body = b"<html>welcome to our network</html>" * 9 if kind == "wrong" else path.read_bytes()
        if kind == "truncated": body = body[:len(body) // 2]
        if start and start >= len(body): return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        try:
            for at in range(start, 0 if head else min(len(body), start + 20_000) if kind == "break" else len(body), 5000):
                self.wfile.write(body[at:at + 5000])
                if kind == "slow": time.sleep(.05)
        except ConnectionError: pass     # the client was killed

    def log_message(self, *args): pass


@pytest.fixture(scope="module")
def people(tmp_path_factory): return write_coco(tmp_path_factory.mktemp("people"), train=24, val=8, size=64, seed=5, workers=1)

@pytest.fixture
def www(people, tmp_path): return coco_archives(people, tmp_path / "www")

@pytest.fixture
def host(www, monkeypatch):
    for name, value in dict(www=www, how={}, ranges=True, heads=True, log=[]).items(): monkeypatch.setattr(Server, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()

def prepare(root, host, splits=("train2017", "val2017"), **kw): return pc.prepare_coco(root, splits, url=host, wait=0, **{**QUIET, **kw})

def pictures(root): return {name: c for name, c in contents(root).items() if name.startswith("images")}


def test_coco_comes_and_is_read(tmp_path, host, people, capsys):
    pc.hrnet_prepare_coco(str(tmp_path / "COCO"), url=host, any_count=True)
    assert "24 pictures in train2017, 8 pictures in val2017" in capsys.readouterr().out
    for split in ("train", "val"):
        ours, truth = (CocoPoses(r, split) for r in (tmp_path / "COCO", people))
        assert ours.ids == truth.ids and all((ours[i]["image"] == truth[i]["image"]).all() for i in range(len(truth)))
    assert len(list((tmp_path / "COCO/annotations").iterdir())) == 6
    log, before = sorted(Server.log), files(tmp_path / "COCO")
    assert log == [("annotations_trainval2017", 0), ("train2017", 0), ("val2017", 0)]
    assert prepare(tmp_path / "COCO", "http://127.0.0.1:9") == dict(train2017=24, val2017=8)     # the server is not asked again
    assert files(tmp_path / "COCO") == before


def test_test2017_on_request(tmp_path, host):
    assert prepare(tmp_path / "COCO", host, ["test2017"]) == dict(test2017=8)
    assert sorted(p.name for p in (tmp_path / "COCO/annotations").iterdir()) == ["image_info_test-dev2017.json", "image_info_test2017.json"]
    assert len(list((tmp_path / "COCO/images/test2017").iterdir())) == 8


def test_the_line_breaks(tmp_path, host, www):
    Server.how = dict(train2017="break")
    prepare(tmp_path / "COCO", host)
    size = (www / "zips/train2017.zip").stat().st_size
    assert [s for name, s in Server.log if name == "train2017"] == list(range(0, size, 20_000)) and size > 40_000


def test_killed_while_downloading(tmp_path, host, www, people):
    Server.how = dict(train2017="slow")
    out, args = tmp_path / "COCO", ("prepare_coco", "--out", tmp_path / "COCO", "--url", host, "--any-count")
    part = out / "archives/train2017.zip.part"
    kill_when(command(*args), lambda: (out / "archives/val2017.zip").exists() and part.exists() and part.stat().st_size > 20_000)
    size, Server.how = part.stat().st_size, {}
    Server.log.clear()
    status, said = finish(command(*args))
    assert status == 0 and "24 pictures in train2017" in said
    assert Server.log == [("train2017", size)]      # what had arrived was not fetched twice
    assert pictures(out) == pictures(people)


def test_killed_while_unpacking(tmp_path, people):
    "From archives on disk; the pictures get company so that there is time to kill."
    rng, source = random.Random(1), tmp_path / "source"
    names = {f"{i:012d}.jpg": rng.randbytes(9000) for i in range(3000)}
    images = dict(images=[dict(id=i, file_name=n, height=1, width=1) for i, n in enumerate(names)], annotations=[], categories=[])
    source.mkdir()
    zipped(source / "annotations_trainval2017.zip", {f"annotations/{k}_{s}2017.json": json.dumps(images) for k in ("captions", "instances", "person_keypoints") for s in ("train", "val")})
    zipped(source / "val2017.zip", {f"val2017/{n}": content for n, content in names.items()}, compression=zipfile.ZIP_DEFLATED)
    out = tmp_path / "COCO"
    args, target = ("prepare_coco", "--out", out, "--source", source, "--splits", "val", "--any-count", "--remove-archives"), out / "images/val2017"
    kill_when(command(*args), lambda: target.is_dir() and len(os.listdir(target)) > 300)
    seen = {name: state for name, state in files(out).items() if not name.startswith(".unpacking")}
    assert 300 < len(seen) < 3000 and (source / "val2017.zip").exists()
    assert all(state[0] == names[Path(n).name] for n, state in seen.items() if n.startswith("images"))
    assert finish(command(*args))[0] == 0
    assert seen.items() <= files(out).items() and {Path(n).name: c for n, c in pictures(out).items()} == names
    assert not list(source.glob("*.zip"))


def test_a_server_without_ranges_or_lengths(tmp_path, host):
    Server.ranges = Server.heads = False
    (tmp_path / "COCO/archives").mkdir(parents=True)
    (tmp_path / "COCO/archives/val2017.zip.part").write_bytes(b"something else")
    assert prepare(tmp_path / "COCO", host) == dict(train2017=24, val2017=8)


@pytest.mark.parametrize("kind, said", [("404", "val2017.zip cannot be fetched: .*404"), ("500", "val2017.zip cannot be fetched: the server answers 500"),
                                        ("wrong", "it is cut off, or no zip archive"), ("truncated", "it is cut off, or no zip archive")])
def test_a_server_that_has_something_else(tmp_path, host, kind, said):
    Server.how = dict(val2017=kind)
    with pytest.raises(UserError, match=said): prepare(tmp_path / "COCO", host, ["val2017"], tries=2)
    assert not list((tmp_path / "COCO/archives").glob("val2017*")) and not (tmp_path / "COCO/images").exists()
    Server.how = {}
    assert prepare(tmp_path / "COCO", host, ["val2017"]) == dict(val2017=8)


def test_one_failure_stops_the_others_and_loses_nothing(tmp_path, host):
    Server.how = dict(train2017="slow", val2017="404")
    began = time.monotonic()
    with pytest.raises(UserError, match="val2017.zip cannot be fetched"): prepare(tmp_path / "COCO", host)
    assert time.monotonic() - began < 20
    part = tmp_path / "COCO/archives/train2017.zip.part"
    assert not part.with_suffix("").exists()
    kept, Server.how = part.stat().st_size if part.exists() else 0, {}
    Server.log.clear()
    prepare(tmp_path / "COCO", host)
    assert ("train2017", kept) in Server.log


def test_damage_within_an_archive(tmp_path, host, www, people):
    "On the line it is found before anything is unpacked; in an archive that lay there, too."
    name = sorted((people / "images/val2017").iterdir())[4]
    flip_a_bit(www / "zips/val2017.zip", name.read_bytes())
    with pytest.raises(UserError, match=f"it is damaged at val2017/{name.name}, nothing was kept"): prepare(tmp_path / "COCO", host, ["val2017"])
    (tmp_path / "COCO/archives").mkdir(parents=True, exist_ok=True)
    shutil.copy(www / "zips/val2017.zip", tmp_path / "COCO/archives")
    with pytest.raises(UserError, match="nothing was unpacked"): prepare(tmp_path / "COCO", host, ["val2017"])
    assert pictures(tmp_path / "COCO") == {}


@pytest.mark.parametrize("name", ["../../evil.jpg", "/evil.jpg", "val2017/../../../evil.jpg"])
def test_coco_entries_that_lead_out(tmp_path, host, www, name):
    with zipfile.ZipFile(www / "zips/val2017.zip", "a") as z: z.writestr(name, b"evil")
    with pytest.raises(UserError, match="is not to be trusted"): prepare(tmp_path / "COCO", host, ["val2017"])
    assert not list(tmp_path.rglob("evil*"))


def test_every_listed_picture_must_be_there(tmp_path, host, www, people):
    left = sorted((people / "images/val2017").iterdir())
    zipped(www / "zips/val2017.zip", {f"val2017/{p.name}": p.read_bytes() for p in left[:-2]} | {"__MACOSX/val2017/._x.jpg": b"", "readme.txt": b""})
    with pytest.raises(UserError, match=f"lacks 2 of 8 pictures: {left[-2].name}, {left[-1].name}"): prepare(tmp_path / "COCO", host, ["val2017"], remove_archives=True)
    assert (tmp_path / "COCO/archives/val2017.zip").exists()
    assert not list((tmp_path / "COCO").rglob("*readme*")) + list((tmp_path / "COCO").rglob("*MACOSX*"))


def test_annotations_without_pictures(tmp_path, people):
    shutil.copytree(people, tmp_path / "COCO")
    file = tmp_path / "COCO/annotations/person_keypoints_val2017.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | dict(annotations=[dict(image_id=77)])))
    refused("annotates pictures that it does not list: 77", lambda: pc.check_coco(tmp_path / "COCO", "val2017", any_count=True))
    file.write_text("[1]")
    refused("is not COCO's annotation file", lambda: pc.check_coco(tmp_path / "COCO", "val2017", any_count=True))


def test_coco_published_numbers(tmp_path, host, monkeypatch):
    with pytest.raises(UserError, match="lists 8 pictures, COCO has 5,000"): prepare(tmp_path / "COCO", host, ["val2017"], any_count=False)
    monkeypatch.setattr(pc, "PUBLISHED", dict(train2017=24, val2017=8))
    assert prepare(tmp_path / "COCO", host, any_count=False, remove_archives=True) == dict(train2017=24, val2017=8)
    assert not list((tmp_path / "COCO").rglob("*.zip"))


def test_coco_without_room(tmp_path, host, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
        refused("GB free: make room", lambda: prepare(tmp_path / "COCO", host), tmp_path / "COCO")
    assert Server.log == []
    with monkeypatch.context() as m:
        fill_disk(m, 12)
        with pytest.raises(UserError, match="is full: make room"): prepare(tmp_path / "COCO", host)
    assert len(list((tmp_path / "COCO/annotations").iterdir())) + len(pictures(tmp_path / "COCO")) == 12
    assert prepare(tmp_path / "COCO", host)


def test_a_full_disk_while_downloading(tmp_path, host, monkeypatch):
    class Full:
        def __init__(self, f): self.f = f
        def __enter__(self): return self
        def __exit__(self, *a): self.f.close()
        def write(self, piece): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr("hrnet_nbdev.download.open", lambda *a: Full(open(*a)), raising=False)
        with pytest.raises(UserError, match="archives is full: make room and run the same command again"): prepare(tmp_path / "COCO", host)
    assert prepare(tmp_path / "COCO", host)


@pytest.mark.parametrize("layout", ["zips", "folders", "prepared"])
def test_on_disk_already(tmp_path, www, people, layout):
    source, counts = tmp_path / "source", dict(train2017=24, val2017=8)
    if layout == "prepared": source = people
    else:
        source.mkdir()
        counts["test2017"] = 8
        for p in www.glob("*/*.zip"):
            if layout == "zips": shutil.copy(p, source)
            else:
                with zipfile.ZipFile(p) as z: z.extractall(source)
    before = files(source)
    assert pc.prepare_coco(tmp_path / "COCO", list(counts), source, **QUIET) == counts
    assert pictures(people).items() <= pictures(tmp_path / "COCO").items() and files(source) == before
    pc.prepare_coco(tmp_path / "COCO", list(counts), source, remove_archives=True, **QUIET)
    assert files(source) == {n: s for n, s in before.items() if not n.endswith(".zip")}


def test_in_place(tmp_path, people):
    "A folder that is prepared already may be given as its own source."
    shutil.copytree(people, tmp_path / "COCO")
    before = files(tmp_path / "COCO")
    assert pc.prepare_coco(tmp_path / "COCO", source=tmp_path / "COCO", **QUIET) == dict(train2017=24, val2017=8)
    assert files(tmp_path / "COCO") == before


def test_coco_mistakes(tmp_path, host, www, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pc, "download", partial(pc.download, tries=1))
    (tmp_path / "some").mkdir()
    shutil.copy(www / "zips/val2017.zip", tmp_path / "some/train2017.zip")
    shutil.copy(www / "annotations/annotations_trainval2017.zip", tmp_path / "some")
    for args, said in ((dict(source="nowhere"), "nowhere is not a folder"), (dict(splits="trian"), "the splits are train2017, val2017, test2017, not trian2017"),
                       (dict(url="ftp://x"), "--url must begin with http://"), (dict(threads=0), "--threads must be positive"),
                       (dict(source="some", splits="val"), "some holds neither val2017.zip nor a folder val2017 or images/val2017"),
                       (dict(source="some", splits="train"), "train2017.zip holds nothing of train2017: it is another archive"),
                       (dict(url="http://127.0.0.1:9", splits="val"), "cannot be fetched: no connection")):
        with pytest.raises(SystemExit) as e: pc.hrnet_prepare_coco(**args)
        err = capsys.readouterr().err.splitlines()
        assert e.value.code == 1 and said in err[-1] and err[-1].startswith("error: "), err


# ---------------------------------------------------------------- archives

def test_unpack_does_not_write_through_links(tmp_path):
    "A finished file that is another name of the user's own is replaced, never written into."
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    (tmp_path / "out").mkdir()
    os.link(mine, tmp_path / "out/a.txt")
    unpack(Archive(zipped(tmp_path / "a.zip", {"a.txt": b"from the archive"})), {"a.txt": "a.txt"}, tmp_path / "out", progress=False)
    assert mine.read_text() == "precious" and (tmp_path / "out/a.txt").read_text() == "from the archive"


def test_short_names_are_unique():
    words = {"n1": "crane", "n2": "crane", "n3": "maillot", "n4": "maillot, tank suit", "n5": "Cardigan, Cardigan Welsh corgi", "n6": "cardigan", "n7": "hen"}
    names = pi.short_names(words)
    assert names == {"n1": "crane (n1)", "n2": "crane (n2)", "n3": "maillot", "n4": "maillot, tank suit", "n5": "Cardigan, Cardigan Welsh corgi", "n6": "cardigan", "n7": "hen"}
