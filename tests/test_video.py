"""Video files of every kind and state, the stages that overlap, and the command on all of them."""
import csv, errno, json, os, signal, subprocess, sys, threading, time
from contextlib import closing
from fractions import Fraction
from pathlib import Path
import av
import cv2
import numpy as np
import pytest
from test_cli import refuse, run
from test_inference import checkpoint
from hrnet_nbdev import pose_video as pv, video
from hrnet_nbdev.files import UserError, write_image
from hrnet_nbdev.inference import PosePredictor, shipped_weights
from hrnet_nbdev.poses import Poses
from hrnet_nbdev.synthetic import draw_scene
from hrnet_nbdev.tracking import track_scores, true_poses
from hrnet_nbdev.video import VideoReader, VideoWriter, upright

def frames(n, w=96, h=64):
    "A red square wanders over a smooth picture."
    y, x = np.mgrid[:h, :w]
    for i in range(n):
        image = np.stack([x * 200 // w, y * 200 // h, np.full((h, w), 128)], -1).astype(np.uint8)
        image[h // 4:h // 2, 2 * i % (w - 12):2 * i % (w - 12) + 12] = 250, 30, 30
        yield image

def write(path, images, fps=25, **options):
    with VideoWriter(path, fps, **options) as out:
        for image in images: out.write(image)
    return path

def read(path, **options):
    with VideoReader(path, **options) as reader: return [(reader.time, image) for image in reader], reader

def encode(path, images, codec="libx264", pix_fmt="yuv420p", times=None, sound=None, video=True, turn=None):
    "A video as another program may write it."
    images = list(images)
    with av.open(str(path), "w") as out:
        if video:
            stream = out.add_stream(codec, rate=25)
            (stream.height, stream.width), stream.pix_fmt = images[0].shape[:2], pix_fmt
            if turn is not None: stream.set_display_rotation(turn)
        if sound:
            track = out.add_stream(sound, rate=44100, layout="mono")
            wave = (8000 * np.sin(np.arange(44100 * len(images) // 25) * 0.06)).astype(np.int16)
            piece = av.AudioFrame.from_ndarray(wave[None], "s16", "mono")
            piece.sample_rate, piece.pts = 44100, 0
            packets = [*track.encode(piece), *track.encode(None)]
        for n, image in enumerate(images if video else ()):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            if times: stream.codec_context.time_base = frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * times[n]) if times else n
            out.mux(stream.encode(frame))
        if video: out.mux(stream.encode(None))
        if sound: out.mux(packets)
    return path

def psnr(a, b): return 10 * np.log10(255 ** 2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9))

@pytest.fixture(scope="module")
def predictor(checkpoint): return PosePredictor(checkpoint, score_thr=0, decoder="fast")

# ---- reading and writing

@pytest.mark.parametrize("fps", [25, 12.5, Fraction(30000, 1001), Fraction(24000, 1001), 1, 240])
def test_round_trip(tmp_path, fps):
    images = list(frames(20))
    found, reader = read(write(tmp_path / "a.mp4", images, fps))
    assert reader.fps == Fraction(fps).limit_denominator(1001) and reader.size == (96, 64) and reader.frames == 20 and not reader.has_sound and not reader.bad
    np.testing.assert_allclose([t for t, _ in found], np.arange(20) / float(fps), atol=1e-5)
    assert min(psnr(a, b) for (_, a), b in zip(found, images, strict=True)) > 30
    assert abs(found[0][1].mean((0, 1)) - images[0].mean((0, 1))).max() < 3             # the wrong matrix would be 20 off

@pytest.mark.parametrize("ending", ["mkv", "mov"])
def test_other_containers(tmp_path, ending):
    found, reader = read(write(tmp_path / f"a.{ending}", frames(10)))
    assert len(found) == 10 and reader.fps == 25

def test_index_comes_first(tmp_path):
    data = write(tmp_path / "a.mp4", frames(5)).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")

def test_odd_sizes_are_padded_with_the_edge(tmp_path):
    image = next(frames(1, 61, 45))
    (_, found), = read(write(tmp_path / "a.mp4", [image], crf=1))[0]
    assert found.shape == (46, 62, 3) and psnr(found[:45, :61], image) > 30
    assert np.abs(found[45, :60].astype(int) - image[44, :60]).mean() < 6

@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_rotated_phone_videos_come_out_upright(tmp_path, turn):
    image = next(frames(1))
    stored = np.ascontiguousarray(np.rot90(image, -turn // 90))
    found, reader = read(encode(tmp_path / "a.mp4", [stored] * 3, turn=turn))
    assert reader.size == (96, 64) and psnr(found[0][1], image) > 25

def test_upright_mirrors_too():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    matrix = lambda a, b, c, d: [a, b, 0, c, d, 0, 0, 0, 1]
    np.testing.assert_array_equal(upright(image, matrix(1, 0, 0, 1)), image)
    np.testing.assert_array_equal(upright(image, matrix(-1, 0, 0, 1)), image[:, ::-1])
    np.testing.assert_array_equal(upright(image, matrix(0, 1, 1, 0)), image.transpose(1, 0, 2))
    np.testing.assert_array_equal(upright(image, matrix(0, 1, -1, 0)), np.rot90(image, -1))

def test_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0, 0.04, 0.08, 0.5, 0.54, 1.7, 1.74]
    source = encode(tmp_path / "a.mkv", frames(7), times=times)
    with VideoReader(source) as reader, VideoWriter(tmp_path / "b.mp4", reader.fps) as out:
        for image in reader: out.write(image, reader.time)
    np.testing.assert_allclose([t for t, _ in read(tmp_path / "b.mp4")[0]], times, atol=2e-3)

@pytest.mark.parametrize("codec, pix_fmt", [("libx264", "gray"), ("libx264", "yuv420p10le"), ("libx264", "yuv444p"), ("ffv1", "bgra"), ("ffv1", "gray16le"),
                                            ("mjpeg", "yuvj420p")])
def test_pixel_formats(tmp_path, codec, pix_fmt):
    image = next(frames(1))
    found = read(encode(tmp_path / "a.mkv", [image] * 3, codec, pix_fmt))[0]
    grey = np.repeat((image @ (0.299, 0.587, 0.114))[..., None], 3, -1)
    assert all(f.dtype == np.uint8 and psnr(f, grey if "gray" in pix_fmt else image) > 25 for _, f in found) and len(found) == 3

def test_every_nth_frame(tmp_path):
    images = list(frames(10))
    found, reader = read(write(tmp_path / "a.mp4", images), every=3)
    assert [round(t, 4) for t, _ in found] == [0, 0.12, 0.24, 0.36] and reader.frames == 4 and reader.fps == Fraction(25, 3)
    assert psnr(found[1][1], images[3]) > 30

# ---- damage

def noisy(n): return (np.roll(noise, 3 * i, 1) for noise in [np.random.default_rng(0).integers(0, 90, (96, 128, 3), dtype=np.uint8)] for i in range(n))

@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_broken_bytes_in_the_middle(tmp_path, ending):
    data = bytearray(write(tmp_path / f"a.{ending}", noisy(60)).read_bytes())
    for at in np.random.default_rng(1).integers(len(data) // 3, 2 * len(data) // 3, 20): data[at] ^= 255
    (tmp_path / f"a.{ending}").write_bytes(data)
    found, reader = read(tmp_path / f"a.{ending}")
    assert 20 < len(found) < 60 and reader.bad >= 1 and found[-1][0] == pytest.approx(59 / 25)
    assert (np.diff([t for t, _ in found]) > 0).all()

def test_cut_off(tmp_path):
    data = write(tmp_path / "a.mp4", noisy(60)).read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[:len(data) // 2])              # the index is there, the end is not
    assert 5 < len(read(tmp_path / "half.mp4")[0]) < 55
    assert "promises 60 frames, but ends after 30" in str(pv.VideoResult([], frames=30, expected=60, busy={"read": 1.0}))
    encode(tmp_path / "late.mp4", noisy(30))
    (tmp_path / "no_index.mp4").write_bytes((tmp_path / "late.mp4").read_bytes()[:9000])
    with pytest.raises(UserError, match="no_index.mp4 cannot be read as a video.*copy it again"): VideoReader(tmp_path / "no_index.mp4")

def test_what_is_no_video_is_one_sentence(tmp_path):
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello\n" * 99)
    (tmp_path / "text.txt").write_text("hello\n" * 99)
    encode(tmp_path / "song.mp4", frames(25), sound="aac", video=False)
    for name, said in {"zero.mp4": "is empty", "text.mp4": "cannot be read as a video", "text.txt": "", "song.mp4": "no moving pictures", "gone.mp4": "is missing"}.items():
        with pytest.raises(UserError, match=f"{name}.*{said}"): VideoReader(tmp_path / name)
    with pytest.raises(UserError, match="camera 91 does not answer"): VideoReader(91)

def test_a_title_in_an_old_alphabet(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "Strasse"
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width = 64, 96
        for image in frames(3): out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"Strasse", b"Stra\xdfe!"))
    assert len(read(path)[0]) == 3

def test_camera(monkeypatch):
    "There is none here: what stands for it delivers five frames, blue first as OpenCV does."
    class Camera:
        left = 5
        def __init__(self, number): self.released = False
        def isOpened(self): return True
        def get(self, what): return 30.0
        def release(self): self.released = True
        def read(self):
            self.left -= 1
            return self.left >= 0, np.full((48, 64, 3), (255, 0, 0), np.uint8)
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    found, reader = read(0)
    assert len(found) == 5 and reader.fps == 30 and reader.frames is None and (found[0][1] == (0, 0, 255)).all()
    assert reader._container.released

# ---- sound

def sound(path): # codec, seconds, packets
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        packets = [bytes(p) for p in file.demux(stream) if p.size]
    with av.open(str(path)) as file: samples = sum(f.samples for f in file.decode(audio=0))
    return stream.codec_context.name, samples / stream.rate, packets

@pytest.mark.parametrize("codec, ending, told", [("aac", "mp4", "copied"), ("libmp3lame", "avi", "copied"), ("pcm_s16le", "avi", "encoded anew"),
                                                 ("flac", "mkv", "encoded anew")])
def test_sound_goes_along(tmp_path, codec, ending, told):
    source = encode(tmp_path / f"a.{ending}", frames(50), codec="mpeg4", sound=codec)
    with VideoReader(source) as reader, VideoWriter(tmp_path / "b.mp4", reader.fps, sound_from=source) as out:
        for image in reader: out.write(image, reader.time)
    name, seconds, packets = sound(tmp_path / "b.mp4")
    assert reader.has_sound and out.sound == told and seconds == pytest.approx(2, abs=0.1)
    if told == "copied": assert packets == sound(source)[2][:len(packets)]
    else: assert name == "aac"

def test_sound_ends_with_the_pictures(tmp_path):
    source = encode(tmp_path / "a.mp4", frames(100), sound="aac")
    write(tmp_path / "b.mp4", frames(25), sound_from=source)
    assert sound(tmp_path / "b.mp4")[1] == pytest.approx(1, abs=0.1)

def test_damaged_sound_does_not_stop_the_pictures(tmp_path):
    source = encode(tmp_path / "a.mkv", noisy(50), sound="flac")
    data = bytearray(source.read_bytes())
    for at in range(2000, len(data), 3001): data[at] ^= 255
    source.write_bytes(data)
    write(tmp_path / "b.mp4", frames(50), sound_from=source)
    assert len(read(tmp_path / "b.mp4")[0]) == 50

# ---- writing under difficulties

def test_an_exception_leaves_a_playable_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with VideoWriter(tmp_path / "a.mp4", 25) as out:
            for n, image in enumerate(frames(20)): out.write(image, 1 / (10 - n))
    assert len(read(tmp_path / "a.mp4")[0]) == 10 and len(list(tmp_path.iterdir())) == 1

def test_no_frames_no_file(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 25): pass
    assert not list(tmp_path.iterdir())

def test_what_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="a.gif: videos are written as"): VideoWriter(tmp_path / "a.gif", 25)
    with VideoWriter(tmp_path / "a.mp4", 25, (96, 64)) as out:
        with pytest.raises(ValueError, match="64, 96"): out.write(np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "file").touch()
    with pytest.raises(OSError): write(tmp_path / "file/a.mp4", frames(3))

def test_full_disk(tmp_path, monkeypatch):
    class Disk:
        "A PyAV container on a disk with little room."
        def __init__(self, file): self.file, self.count = file, 0
        def __getattr__(self, name): return getattr(self.file, name)
        def mux(self, packets):
            self.count += 1
            if self.count > 3: raise av.error.OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.mp4")
            self.file.mux(packets)
    opened = av.open
    monkeypatch.setattr(video.av, "open", lambda *a, **k: Disk(opened(*a, **k)) if "w" in a else opened(*a, **k))
    with pytest.raises(UserError, match="is full: make room"): write(tmp_path / "a.mp4", frames(20))
    assert not list(tmp_path.iterdir())

# ---- stages

def test_stages_work_at_the_same_time_and_in_order():
    "Two stages that must meet each time: one after the other, they would wait for ever."
    meet = threading.Barrier(2, timeout=20)
    def stage(item):
        meet.wait()
        return item
    pipeline = pv.Pipeline(range(6), {"a": lambda i: stage(i) if i else i, "b": lambda i: stage(i) if i < 5 else i})
    assert list(pipeline) == list(range(6)) and set(pipeline.busy) == {"read", "a", "b"}

def test_queues_are_bounded():
    read, gate = [], threading.Event()
    items = (read.append(i) or i for i in range(1000))
    pipeline = pv.Pipeline(items, {"a": lambda i: gate.wait(20) and i}, depth=2)
    results = iter(pipeline)
    threading.Timer(0.3, gate.set).start()
    assert next(results) == 0 and len(read) <= 8
    assert list(results) == list(range(1, 1000))

@pytest.mark.parametrize("bad", ["read", "a", "b"])
def test_an_error_in_any_stage_reaches_the_caller(bad):
    def items():
        for i in range(100):
            if bad == "read" and i == 10: raise UserError("read fails")
            yield i
    def stage(name):
        def work(i):
            if bad == name and i == 10: raise UserError(f"{name} fails")
            return i
        return work
    got, before = [], threading.active_count()
    with pytest.raises(UserError, match=f"{bad} fails"): got.extend(pv.Pipeline(items(), {"a": stage("a"), "b": stage("b")}))
    assert got == list(range(10)) and threading.active_count() == before

def test_a_caller_that_fails_leaves_no_threads():
    before, pipeline = threading.active_count(), pv.Pipeline(range(10**6), {"a": lambda i: i})
    with pytest.raises(ZeroDivisionError), closing(iter(pipeline)) as results:
        for i in results: 1 / (5 - i)
    assert threading.active_count() == before

def test_a_camera_does_not_wait():
    slow = pv.Pipeline(iter(range(300)), {"a": lambda i: time.sleep(0.01) or i}, depth=1, live=True)
    got = list(slow)
    assert len(got) < 300 and got == sorted(set(got))

# ---- people in a video

def scenes(n, size=96): return [draw_scene((11, i), size)[0][:64, :64] for i in range(n)]

def test_same_poses_as_picture_by_picture(predictor, checkpoint, tmp_path):
    source = write(tmp_path / "walk.mp4", scenes(6), crf=5)
    result = pv.pose_video(predictor, source, tmp_path / "out", track=False, progress=False)
    found = json.loads((tmp_path / "out/walk.json").read_text())
    assert result.frames == 6 and result.people == sum(len(f["people"]) for f in found["frames"]) > 0
    for record, (at, image) in zip(found["frames"], read(source)[0], strict=True):
        poses = predictor(image)
        assert record["time"] == pytest.approx(at, abs=1e-4) and len(record["people"]) == len(poses)
        for person, pose in zip(record["people"], poses.keypoints): np.testing.assert_allclose(np.reshape(person["keypoints"], (17, 3)), pose, atol=2e-3)
    batched = pv.pose_video(PosePredictor(checkpoint, score_thr=0, decoder="fast", batch_size=4), source, tmp_path / "b", track=False, progress=False)
    again = json.loads((tmp_path / "b/walk.json").read_text())
    assert batched.people == result.people
    for a, b in zip(found["frames"], again["frames"], strict=True):
        np.testing.assert_allclose([p["keypoints"] for p in a["people"]], [p["keypoints"] for p in b["people"]], atol=0.01)

def test_files_and_ids(predictor, tmp_path):
    still = scenes(1)[0]
    source = write(tmp_path / "still.mp4", [still] * 8, crf=5)
    result = pv.pose_video(predictor, source, tmp_path / "out", views=("skeleton", "heatmaps", "tags"), smooth=True, progress=False)
    assert {p.name for p in result.files} == {p.name for p in (tmp_path / "out").iterdir()} == {"still.mp4", "still.json", "still.csv"}
    drawn, reader = read(tmp_path / "out/still.mp4")
    assert len(drawn) == 8 and reader.size == (3 * 64, 64)
    lines = (tmp_path / "out/still.json").read_text().splitlines()
    assert [json.loads(line.rstrip(","))["frame"] for line in lines[1:-1]] == list(range(8))
    people = [p for f in json.loads("\n".join(lines))["frames"] for p in f["people"]]
    assert people and {p["id"] for p in people} == result.ids and len(people) == result.people
    with open(tmp_path / "out/still.csv", newline="") as file: table = list(csv.DictReader(file))
    assert len(table) == len(people) and int(table[0]["person"]) == people[0]["id"] and table[-1]["frame"] == "7"
    assert "network" in str(result) and "the stage that limits" in str(result)

def test_an_error_while_drawing_keeps_the_frames_before(predictor, tmp_path, monkeypatch):
    source, draw, count = write(tmp_path / "a.mp4", scenes(8)), pv.draw_views, iter(range(99))
    def failing(*a): return draw(*a) if next(count) < 4 else 1 / 0
    monkeypatch.setattr(pv, "draw_views", failing)
    with pytest.raises(ZeroDivisionError): pv.pose_video(predictor, source, tmp_path / "out", progress=False)
    assert len(read(tmp_path / "out/a.mp4")[0]) == 4
    assert len(json.loads((tmp_path / "out/a.json").read_text())["frames"]) == 4

def test_a_closed_window_ends_the_video(predictor, tmp_path):
    source, seen = write(tmp_path / "a.mp4", scenes(3) * 20), []
    result = pv.pose_video(predictor, source, tmp_path / "out", show=lambda picture: seen.append(picture) or len(seen) < 3, progress=False)
    assert result.stopped == "window closed" and 3 <= result.frames < 40 and len(read(tmp_path / "out/a.mp4")[0]) == result.frames

def test_sigterm(predictor, tmp_path):
    source, seen = write(tmp_path / "a.mp4", scenes(3) * 20), []
    def show(picture):
        seen.append(picture)
        if len(seen) == 3: os.kill(os.getpid(), signal.SIGTERM)
        return True
    result = pv.pose_video(predictor, source, tmp_path / "out", show=show, progress=False)
    assert result.stopped == "interrupted" and 3 <= result.frames < 40 and len(read(tmp_path / "out/a.mp4")[0]) == result.frames
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

def test_interrupted(tmp_path, checkpoint):
    "A real process, stopped in the middle: whole files with the frames so far, one sentence, status 130."
    source = encode(tmp_path / "long.mp4", scenes(3) * 500, codec="mpeg4", sound="aac")
    process = subprocess.Popen([sys.executable, "-m", "hrnet_nbdev.pose_video", source, "--weights", checkpoint, "--out", tmp_path / "out"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(p.stat().st_size > 20_000 for p in (tmp_path / "out").glob(".long.*.json")): time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().splitlines()[-1] == "error: interrupted" and "Traceback" not in err, err
    found = json.loads((tmp_path / "out/long.json").read_text())["frames"]
    assert 10 < len(found) < 1500 and f"{len(found)} frames" in out
    assert len(read(tmp_path / "out/long.mp4")[0]) == len(found) and sound(tmp_path / "out/long.mp4")[1] == pytest.approx(len(found) / 25, abs=0.2)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"long.mp4", "long.json", "long.csv"}

# ---- the command

@pytest.fixture
def album(tmp_path):
    root = tmp_path / "album"
    write_image(root / "a.jpg", scenes(1)[0])
    write(root / "a.mp4", scenes(3))
    write(root / "more" / "a.mp4", scenes(2))
    write(root / "more" / "results.mkv", scenes(2))
    (root / "notes.txt").write_text("no picture")
    return root

def test_mixed_sources(album, checkpoint, tmp_path):
    status, err, out = run("hrnet_pose", album, album / "more" / "*.m*", album / "a.jpg", "--weights", checkpoint, "--out", tmp_path / "out", "--max-frames", 2)
    assert status == 0, err
    names = {"a.jpg", "results.json", "results.csv", *(f"{n}.{e}" for n in ("a", "a-2", "results-2") for e in ("mp4", "json", "csv"))}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names and "notes.txt" in out
    assert [len(read(tmp_path / f"out/{n}.mp4")[0]) for n in ("a", "a-2", "results-2")] == [2, 2, 2]
    assert out.count("the stage that limits") == 3 and "in 1 picture:" in out

def test_sources_that_will_not_do(album, checkpoint, tmp_path):
    no = lambda said, *a: refuse(said, "hrnet_pose", *a, "--weights", checkpoint, "--out", tmp_path / "out")
    (album / "zero.mp4").touch()
    (album / "bad.mp4").write_text("no video")
    no("zero.mp4 is empty", album / "zero.mp4")
    no("bad.mp4 cannot be read as a video", album / "bad.mp4")
    no("nowhere: no picture or video there", album / "nowhere")
    no("camera 91 does not answer", 91)
    no("view 'bones' is unknown", album / "a.mp4", "--views", "skeleton,bones")
    no("--scales 'big' will not do", album / "a.mp4", "--scales", "big")
    no("--scales '0,1' will not do", album / "a.mp4", "--scales", "0,1")
    no("--every must be at least 1", album / "a.mp4", "--every", 0)
    no("--max-frames must be at least 0", album / "a.mp4", "--max-frames", -1)
    no("--det-thr must be at least 0", album / "a.mp4", "--det-thr", -1)
    refuse("holds the sources themselves", "hrnet_pose", album / "a.mp4", "--weights", checkpoint, "--out", album)
    assert len(read(album / "a.mp4")[0]) == 3                               # and is still the old one

def test_one_bad_video_does_not_stop_the_rest(album, checkpoint, tmp_path):
    (album / "aa.mp4").touch()
    status, err, out = run("hrnet_pose", album, "--weights", checkpoint, "--out", tmp_path / "out")
    assert status == 1 and "aa.mp4 is empty" in err and len(read(tmp_path / "out/a.mp4")[0]) == 3

def test_show_without_a_display(album, checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    refuse("--show", "hrnet_pose", album / "a.mp4", "--weights", checkpoint, "--out", tmp_path / "out", "--show")

@pytest.mark.slow
def test_the_walk_of_the_readme(tmp_path, monkeypatch):
    "The two commands as they stand there: everybody has one number from the first frame to the last, through two crossings."
    weights = shipped_weights()                      # found from the repository's folder
    monkeypatch.chdir(tmp_path)
    assert run("hrnet_walk", "walk.mp4", "--seed", 4)[0] == 0
    assert run("hrnet_pose", "walk.mp4", "--weights", weights, "--det-thr", 0.2, "--out", "poses")[0] == 0
    truth, frames = json.loads(Path("walk.json").read_text()), json.loads(Path("poses/walk.json").read_text())["frames"]
    true = [true_poses([a for a in truth["annotations"] if a["image_id"] == im["id"]]) for im in truth["images"]]
    keypoints = [np.array([p["keypoints"] for p in f["people"]], np.float32).reshape(-1, 17, 3) for f in frames]
    found = [Poses(k, np.ones(len(k)), np.zeros((len(k), 17, 1)), ids=np.array([p["id"] for p in f["people"]], int)) for k, f in zip(keypoints, frames)]
    scores = track_scores(found, true, 0.35)
    assert (scores["switches"], scores["ids"]) == (0, 6) and scores["IDF1"] > 0.9, scores
