"""Are the notebooks in step with the package, and clean? With --execute: run all of them in place first; --strip: take widgets out.

Works on a copy of the repository, so that a failing check changes nothing.
"""
import json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"
ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

def differing(copy, folder, pattern):
    "Files that differ between the repository and the copy, or exist in only one of them."
    names = {p.relative_to(base) for base in (ROOT, copy) for p in (base / folder).glob(pattern)}
    read = lambda p: p.read_bytes() if p.exists() else None
    return sorted(str(n) for n in names if read(ROOT / n) != read(copy / n))

def without_widgets(text):
    "A notebook's text without widget views and their state, which nbdev_clean keeps and no reader can use."
    notebook = json.loads(text)
    views = [o for c in notebook["cells"] for o in c.get("outputs", []) if WIDGET in o.get("data", {})]
    if not views and "widgets" not in notebook["metadata"]: return text
    notebook["metadata"].pop("widgets", None)
    for c in notebook["cells"]:
        if "outputs" in c: c["outputs"] = [o for o in c["outputs"] if o not in views]
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

def strip():
    "Take the widgets out of all notebooks."
    for path in (ROOT / "nbs").glob("*.ipynb"):
        text = path.read_text()
        if without_widgets(text) != text: path.write_text(without_widgets(text))

def check():
    "Export and clean in a copy; return what changed by that, as sentences."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / ROOT.name
        copy.mkdir()
        for name in ("nbs", "settings.ini", "setup.py", "pyproject.toml", "README.md"):
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
        # the package starts empty: a module whose notebook was renamed away will be missing in the copy
        (copy / "hrnet_nbdev").mkdir()
        shutil.copy(ROOT / "hrnet_nbdev/__init__.py", copy / "hrnet_nbdev/__init__.py")
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(copy)}
        run = lambda *a: subprocess.run([str(BIN / a[0]), *a[1:]], cwd=copy, env=env, check=True)
        run("nbdev_export"); run("nbdev_clean", "--fname", "nbs")
        wrong = [f"{n} is not what its notebook exports: run nbdev_export" for n in differing(copy, "hrnet_nbdev", "*.py")]
        wrong += [f"{n} is not clean: run nbdev_clean" for n in differing(copy, "nbs", "*.ipynb")]
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        text = path.read_text()
        failed = [o for c in json.loads(text)["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
        if failed: wrong.append(f"nbs/{path.name} holds the output of an error: execute it again")
        if text != without_widgets(text): wrong.append(f"nbs/{path.name} holds the state of widgets: run {Path(__file__).name} --strip")
    return wrong

def execute():
    "Run all notebooks in place, one after the other (later ones use what earlier ones write), then clean them."
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        print(path.name, flush=True)
        subprocess.run([str(BIN / "jupyter"), "nbconvert", "--log-level", "ERROR", "--to", "notebook", "--execute", "--inplace",
                        "--ExecutePreprocessor.timeout=900", str(path)], cwd=path.parent, check=True)
    strip()
    subprocess.run([str(BIN / "nbdev_export")], cwd=ROOT, check=True)
    subprocess.run([str(BIN / "nbdev_clean"), "--fname", "nbs"], cwd=ROOT, check=True)

if __name__ == "__main__":
    if "--execute" in sys.argv: execute()
    if "--strip" in sys.argv: strip()
    problems = check()
    print("\n".join(problems) or "notebooks: in step with the package, clean")
    sys.exit(bool(problems))
