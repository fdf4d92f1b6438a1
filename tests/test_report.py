"""The evaluation card and its command: facts, pages, results files, test splits, several processes, bad input."""
import json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path
import numpy as np
import pytest
import torch
from hrnet_nbdev import report
from hrnet_nbdev.coco_eval import coco_scores
from hrnet_nbdev.data import CocoPoses
from hrnet_nbdev.errors import diagnose
from hrnet_nbdev.files import file_hash, read_json, write_json
from hrnet_nbdev.hrnet import ClassificationHRNet
from hrnet_nbdev.weights import save_weights
from test_coco_eval import checkpoint, data, model, perfect, person, write_split
from test_inference import tiny_model

@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    "A checkpoint that finds somebody (random weights, but peaks above the threshold)."
    path = tmp_path_factory.mktemp("weights")/"finder.safetensors"
    save_weights(tiny_model(), path, input_size=64)
    return path

@pytest.fixture
def root(data): return data.file.parents[1]

def command(root, out, **options):
    "Run the command on a folder; return the card."
    report.hrnet_eval_coco(root=str(root), out=str(out), **options)
    return read_json(Path(out)/"card.json")

def check_page(path):
    "One file that needs nothing else, whose pictures have words, whose tags are closed."
    page = path.read_text()
    assert page.startswith("<!doctype html>") and not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<img ") == len(re.findall(r'<img alt="[^"]{10,}"', page)) and "None" not in re.sub(r'"data:[^"]*"', "", page)
    for tag in ("table", "tr", "td", "th", "div", "figure", "figcaption", "h2", "h3", "p", "svg"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
    return page

def test_command_as_a_user_runs_it(root, finder, tmp_path):
    done = subprocess.run([sys.executable, "-m", "hrnet_nbdev.report", "--weights", finder, "--root", root, "--split", "val", "--input-size", "64",
                           "--no-flip", "--scales", "0.5,1", "--no-refine", "--batch-size", "2", "--decoder", "fast"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AP75" in done.stdout and "images/s" in done.stdout and "card.html" in done.stdout
    out = tmp_path/"runs/eval/finder"
    assert sorted(p.name for p in out.iterdir()) == ["card.html", "card.json", "results.json"]     # and nothing half-written
    card = read_json(out/"card.json")
    assert card["settings"] == dict(input_size=64, flip=False, scales=[0.5, 1], refine=False, adjust=True, decoder="fast", batch_size=2, precision="no", udp=False)
    assert card["source"]["sha256"] == file_hash(finder) and card["published"] == {}
    assert card["images"] == dict(count=4, sha256=report.ids_hash([10, 11, 12, 13]), ids=[10, 11, 12, 13])
    assert set(card["speed"]["seconds"]) == {"read", "network", "grouping"} and card["speed"]["images"] == 4
    assert "ms an image: read" in check_page(out/"card.html")
    again = command(root, tmp_path/"again", results=str(out/"results.json"), split="val")
    for part in ("scores", "people_only_scores", "errors", "by_size", "by_crowd", "picture_oks", "images"): assert again[part] == card[part]

def test_the_checkpoint_says_how_it_was_trained(root, finder, tmp_path):
    card = command(root, tmp_path/"plain", weights=str(finder), card=False)
    assert card["settings"]["input_size"] == 64 and not card["settings"]["udp"]
    save_weights(tiny_model(), tmp_path/"unbiased.safetensors", input_size=64, udp=True)
    assert command(root, tmp_path/"udp", weights=str(tmp_path/"unbiased.safetensors"), card=False)["settings"]["udp"]
    assert (tmp_path/"udp/results.json").read_bytes() != (tmp_path/"plain/results.json").read_bytes()

def test_truth_as_results_is_perfect(root, data, tmp_path, capsys):
    write_json(tmp_path/"perfect.json", perfect(data.coco))
    card = command(root, tmp_path/"out", results=str(tmp_path/"perfect.json"))
    assert "100.0" in capsys.readouterr().out
    assert card["scores"]["AP"] == pytest.approx(1) and card["people"] == 3 and card["results"] == 3
    assert card["errors"]["counts"] == {k: 51 * (k == "good") for k in card["errors"]["counts"]}
    assert card["picture_oks"] == {"10": pytest.approx(1), "11": pytest.approx(1)}
    assert [(r["people"], r["pictures"]) for r in card["by_crowd"]] == [("0", 2), ("1", 1), ("2", 1)]
    page = check_page(tmp_path/"out/card.html")
    assert "AP 100.0" in page and "published, all" not in page and not (tmp_path/"out/results.json").exists()

def test_protocols_stand_beside_each_other(root, data, tmp_path, capsys):
    "An invented person where nobody is costs in the official protocol only, and the card says which is which."
    results = perfect(data.coco)
    write_json(tmp_path/"r.json", results + [results[0] | dict(image_id=13, score=2.0)])
    both = command(root, tmp_path/"both", results=str(tmp_path/"r.json"))
    assert both["scores"]["AP"] < 1 and both["people_only_scores"]["AP"] == pytest.approx(1)
    assert both["errors"]["counts"]["false positive"] == 1 and both["protocol"]["name"] == "all pictures"
    only = command(root, tmp_path/"only", results=str(tmp_path/"r.json"), people_only=True, limit=3)
    assert only["scores"] == both["people_only_scores"] and only["errors"]["counts"]["false positive"] == 0
    assert only["protocol"]["name"] == "only pictures with annotated people, first 3" and only["images"]["ids"] == [10, 11]
    assert "not the official protocol" in check_page(tmp_path/"only/card.html")
    assert "only pictures with annotated people" in capsys.readouterr().out

def test_short_card(root, data, tmp_path):
    write_json(tmp_path/"r.json", perfect(data.coco))
    card = command(root, tmp_path/"out", results=str(tmp_path/"r.json"), card=False, library="faster-coco-eval")
    assert [p.name for p in (tmp_path/"out").iterdir()] == ["card.json"] and "errors" not in card
    assert card["scores"]["AP"] == pytest.approx(1) and "faster-coco-eval" in card["versions"]

def test_nobody_found_is_said(root, tmp_path, capsys):
    write_json(tmp_path/"empty.json", [])
    card = command(root, tmp_path/"out", results=str(tmp_path/"empty.json"))
    assert "nobody was found in any picture" in capsys.readouterr().out
    assert card["scores"]["AP"] == 0 and card["errors"]["counts"]["missed person"] == 3
    check_page(tmp_path/"out/card.html")

def test_nobody_annotated(tmp_path):
    "Scores do not exist there, and say so; whatever was found is false."
    data = write_split(tmp_path/"coco", [person(10, 1, 5, 5, visible=0)])
    write_json(tmp_path/"r.json", [perfect(write_split(tmp_path/"other", [person(11, 1, 5, 5)]).coco)[0]])
    card = command(data.file.parents[1], tmp_path/"out", results=str(tmp_path/"r.json"))
    assert card["scores"]["AP"] == -1 and card["errors"]["counts"]["false positive"] == 1 and card["by_size"] == []
    check_page(tmp_path/"out/card.html")
    assert command(data.file.parents[1], tmp_path/"only", results=str(tmp_path/"r.json"), people_only=True)["images"]["count"] == 0
    check_page(tmp_path/"only/card.html")

def test_other_joints(tmp_path):
    data = write_split(tmp_path/"coco", [person(10, 1, 5, 5, K=3, visible=3)], names=["tip", "left_end", "right_end"], sigmas=[.1, .1, .1])
    result = dict(image_id=10, category_id=1, score=1.0, keypoints=data.coco.anns[1]["keypoints"])
    swapped = np.reshape(result["keypoints"], (3, 3))[[0, 2, 1]].ravel().tolist()
    write_json(tmp_path/"r.json", [result | dict(keypoints=swapped)])
    card = command(data.file.parents[1], tmp_path/"out", results=str(tmp_path/"r.json"))
    assert set(card["errors"]["joints"]) == {"tip", "left_end", "right_end"} and card["errors"]["counts"]["inversion"] == 2

def test_scores_by_size_cover_coco_bins(data):
    "Medium and large, put together from the finer bins' people; a lone person's bin has its AP."
    results = perfect(data.coco)
    rows = report.scores_by_size(data.coco, results, data.schema, data.ids)
    assert [(r["size"], r["people"]) for r in rows] == [("32 to 64 px", 2), ("96 to 160 px", 1)] and all(r["AP"] == pytest.approx(1) for r in rows)
    results = [r for r in results if r["image_id"] == 10]
    assert [r["AP"] for r in report.scores_by_size(data.coco, results, data.schema, data.ids)] == [pytest.approx(1), 0]

def test_picture_oks_counts_missed_people(data):
    results = perfect(data.coco)[1:]
    assert report.picture_oks(data.coco, diagnose(data.coco, results, data.schema)) == {10: pytest.approx(.5), 11: pytest.approx(1)}

@pytest.mark.parametrize("changes, size, flip, scales, ap", [
    ({}, 512, True, (1,), .671), ({}, 640, True, (1,), .685), (dict(width=48), 640, True, [1], .699), ({}, 512, True, (0.5, 1, 2), .699),
    ({}, 512, False, (1,), None), ({}, 512, True, (1, 2), None), (dict(width=16), 512, True, (1,), None), (dict(blocks=1), 512, True, (1,), None),
    (dict(num_joints=14), 512, True, (1,), None), (dict(width=48), 512, True, (1,), None)])
def test_published_scores_of_the_same_model_only(changes, size, flip, scales, ap):
    config = dict(width=32, num_joints=17, modules=[1, 4, 3], blocks=4, stem=64, deconv_blocks=4) | changes
    assert report.published_scores(config, size, flip, scales).get("AP") == ap

def test_published_row_is_shown(root, data, tmp_path):
    facts = report.card_facts(data, perfect(data.coco), dict(source=dict(results="r.json"), settings={}, published=dict(AP=.671)))
    assert "published, all pictures of val2017</td><td>67.1</td><td>-" in report._score_html(facts)

def test_ids_hash():
    assert report.ids_hash([3, 1, 2]) == report.ids_hash([1, 2, 3]) != report.ids_hash([1, 2]) and report.ids_hash([12]) != report.ids_hash([1, 2])

def test_a_test_split_gives_results_for_the_server(root, finder, tmp_path, capsys):
    "No truth: no scores and no card, but the zip file."
    shutil.copytree(root/"images/val2017", root/"images/test2017")
    info = read_json(root/"annotations/person_keypoints_val2017.json")
    write_json(root/"annotations/image_info_test-dev2017.json", dict(images=info["images"], categories=[dict(id=1, name="person")]))
    report.hrnet_eval_coco(weights=str(finder), root=str(root), split="test-dev2017", input_size=64, out=str(tmp_path/"out"))
    said = capsys.readouterr().out
    assert "comes without truth" in said and "AP75" not in said
    packed, = (tmp_path/"out").glob("*.zip")
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == sorted([packed.name, "results.json"])
    content = json.loads(zipfile.ZipFile(packed).read(f"{packed.stem}.json"))
    assert len(content) == len(read_json(tmp_path/"out/results.json")) > 0

def test_two_processes_write_one_card(root, finder, tmp_path):
    "Each picture once, the same results as alone, one process speaks."
    arguments = ["-m", "hrnet_nbdev.report", "--weights", finder, "--root", root, "--input-size", "64", "--device", "cpu", "--no-card"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments, "--out", tmp_path/"two"],
                          capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("AP75") == 1
    report.hrnet_eval_coco(weights=str(finder), root=str(root), input_size=64, device="cpu", card=False, out=str(tmp_path/"one"))
    two, one = (read_json(tmp_path/n/"card.json") for n in ("two", "one"))
    assert two["speed"]["processes"] == 2 and two["speed"]["images"] == 2 and two["scores"] == one["scores"]
    assert (tmp_path/"two/results.json").read_bytes() == (tmp_path/"one/results.json").read_bytes()

# ---- bad input

def fails(capsys, **options):
    "The one sentence that a wrong call prints."
    with pytest.raises(SystemExit) as stop: report.hrnet_eval_coco(**options)
    err = capsys.readouterr().err
    # a progress bar may stand before it
    assert stop.value.code == 1 and err.splitlines()[-1].startswith("error: ") and err.count("error:") == 1 and "Traceback" not in err
    return err

def test_bad_input_is_explained(root, data, checkpoint, tmp_path, capsys):
    base, run = dict(root=str(root), out=str(tmp_path/"out")), dict(root=str(root), weights=str(checkpoint), input_size=64, out=str(tmp_path/"out"))
    assert "either --weights" in fails(capsys, **base)
    assert "either --weights" in fails(capsys, **base, weights=str(checkpoint), results="r.json")
    assert "none.json is missing" in fails(capsys, **base, results=str(tmp_path/"none.json"))
    assert "nowhere" in fails(capsys, root=str(tmp_path/"nowhere"), results="r.json")
    assert "train" in fails(capsys, **base, split="train", results="r.json")
    assert "nothing.pth" in fails(capsys, **base, weights=str(tmp_path/"nothing.pth"))
    for option, value in dict(scales="1,two", limit=-1, device="tpu").items(): assert f"--{option} {value}" in fails(capsys, **run | {option: value})
    for option, value in dict(decoder="slow", precision="int8", batch_size=0, input_size=-5).items():
        assert str(value) in fails(capsys, **run | {option: value})
    write_json(tmp_path/"r.json", perfect(data.coco))
    assert "library" in fails(capsys, **base, results=str(tmp_path/"r.json"), library="numpy")
    write_json(tmp_path/"r.json", [perfect(data.coco)[0] | dict(image_id=77)])
    assert "r.json has 1 image_ids that the annotations do not know, 77" in fails(capsys, **base, results=str(tmp_path/"r.json"))
    (tmp_path/"cut.json").write_text('[{"image_id": 10,')
    assert "cut.json" in fails(capsys, **base, results=str(tmp_path/"cut.json"))
    assert list((tmp_path/"out").iterdir()) == []                # no half of a card is left
    assert "out" in fails(capsys, **run | dict(out=str(tmp_path/"r.json"/"out")))

def test_damaged_and_missing_pictures_are_named(root, data, checkpoint, tmp_path, capsys):
    run = dict(root=str(root), weights=str(checkpoint), input_size=64, out=str(tmp_path/"out"))
    (data.folder/"000000000011.jpg").write_bytes(b"no picture")
    assert "000000000011.jpg" in fails(capsys, **run)
    (data.folder/"000000000013.jpg").unlink()
    assert "000000000013.jpg" in fails(capsys, **run)

def test_checkpoints_of_another_kind(root, checkpoint, tmp_path, capsys):
    save_weights(ClassificationHRNet(width=8, num_classes=5, modules=(1, 1, 1), blocks=1, stem=16, head=4), tmp_path/"cls.safetensors")
    assert "not a pose model" in fails(capsys, root=str(root), weights=str(tmp_path/"cls.safetensors"))
    torch.save(dict(a=torch.zeros(1)), tmp_path/"strange.pth")
    assert "strange.pth" in fails(capsys, root=str(root), weights=str(tmp_path/"strange.pth"))
    four = write_split(tmp_path/"four", [person(10, 1, 5, 5, K=4, visible=4)], names=["a", "b", "c", "d"])
    assert "17 joints" in fails(capsys, root=str(four.file.parents[1]), weights=str(checkpoint), input_size=64)
