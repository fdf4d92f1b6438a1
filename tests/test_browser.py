"""A real browser opens the notebooks in JupyterLab and uses the explorer as a hand would. Screenshots: runs/browser/.

Without Chromium these tests are skipped, unless HRNET_BROWSER is set, as .ci/run does: then that is a failure.
"""
import json, os, secrets, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from playwright.sync_api import TimeoutError, sync_playwright
from hrnet_nbdev.explorer import Explorer, list_pictures
from hrnet_nbdev.inference import PosePredictor

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT/"runs"/"browser"
NOTEBOOKS = sorted(p.name for p in (ROOT/"nbs").glob("*.ipynb"))
PATIENCE = 180  # seconds for anything that waits for the browser, the server or a kernel: the machine may be slow and shared
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage"]
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},  # cells out of sight stay in the page, where tests can see them
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}}
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'
PROMPTS = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"  # [ ]: not run, [*]: running, [1]: done

def find_chromium():
    "Path of Chromium or Chrome; skips the test when there is none, unless HRNET_BROWSER asks for one."
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found and not os.environ.get("HRNET_BROWSER"): pytest.skip("no Chromium here: apt-get install chromium")
    assert found, "HRNET_BROWSER is set, but no Chromium is installed"
    return found

def copy_book(to):
    "The notebooks and what they use, where they may write: the tree itself stays as it is."
    to.mkdir()
    for path in ROOT.iterdir():
        if path.name.startswith(".") or path.name == "runs": continue
        if path.name in ("data", "pretrained", "docs", "benchmarks", "tests"): (to/path.name).symlink_to(path)  # data sets that are there already are not drawn again
        elif path.is_dir(): shutil.copytree(path, to/path.name, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
        else: shutil.copy(path, to/path.name)
    return to/"nbs"

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with settings of its own: function from the name of a notebook to its address."
    find_chromium()
    home, port, token = tmp_path_factory.mktemp("lab"), free_port(), secrets.token_hex(16)
    for name, settings in SETTINGS.items():
        file = home/"settings"/"@jupyterlab"/f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    folders = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="runtime", JUPYTERLAB_SETTINGS_DIR="settings",
                   JUPYTERLAB_WORKSPACES_DIR="workspaces", IPYTHONDIR="ipython")
    env = os.environ | {k: str(home/v) for k, v in folders.items()}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={copy_book(home/'book')}"]
    with open(home/"server.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", *options], env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"

    def ask(path, method="GET"):
        "What the server's interface answers."
        request = urllib.request.Request(f"{address}/api/{path}", method=method, headers={"Authorization": f"token {token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer: return json.loads(answer.read() or "null")
    try:
        wait_for_server(server, ask, home/"server.log")
        opened = lambda notebook: f"{address}/lab/tree/{notebook}?reset&token={token}"
        opened.log, opened.book, opened.ask = home/"server.log", home/"book", ask
        yield opened
    finally:
        server.terminate()  # ends its kernels too
        try: server.wait(60)
        except subprocess.TimeoutExpired: server.kill()

def wait_for_server(server, ask, log):
    "Until the server answers."
    until = time.monotonic() + PATIENCE
    while True:
        assert server.poll() is None and time.monotonic() < until, f"JupyterLab did not start:\n{log.read_text()}"
        try: return ask("status")
        except OSError: time.sleep(0.2)

@pytest.fixture(scope="module")
def browser(tmp_path_factory, lab):
    "Chromium without a window, with a profile of its own."
    with sync_playwright() as p:
        context = p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp("profile")), executable_path=find_chromium(), headless=True, args=FLAGS,
                                                       viewport=dict(width=1400, height=1300), timeout=PATIENCE * 1000)
        context.set_default_timeout(PATIENCE * 1000)
        yield context
        context.close()

@pytest.fixture
def page(browser, lab, request):
    "A page; when its test fails, a screenshot and the server's log are kept."
    page, name = browser.new_page(), request.node.name.replace("/", "_")
    SHOTS.mkdir(parents=True, exist_ok=True)
    failed = request.session.testsfailed
    yield page
    if request.session.testsfailed > failed:
        page.screenshot(path=SHOTS/f"failed_{name}.png")
        shutil.copy(lab.log, SHOTS/f"failed_{name}.log")
    page.close()
    for kernel in lab.ask("kernels"): lab.ask(f"kernels/{kernel['id']}", "DELETE")  # or those of forty notebooks would stay in memory

def start_all(page, address):
    "Open a notebook and run all its cells from the menu."
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function("() => /\\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText)")
    for attempt in range(5):  # a kernel that was idle a moment ago may still be connecting, and then the menu does nothing
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try: page.wait_for_function(f"() => {PROMPTS}.some(t => /[\\d*]/.test(t))", timeout=PATIENCE * 200)
        except TimeoutError: continue
        break

def run_all(page, address):
    "The same, until the kernel has done the last cell; there must be no output of an error."
    start_all(page, address)
    page.wait_for_function(f"() => document.querySelector('{ERROR}') || {PROMPTS}.every(t => /\\d/.test(t))", timeout=5 * PATIENCE * 1000)
    errors = page.locator(ERROR).all_inner_texts()
    assert not errors, "\n".join(errors)

def changed(page, selector, attribute, old):
    "Wait until an element's attribute differs from `old`; returns the new one."
    page.wait_for_function(f"([s, a, old]) => document.querySelector(s)[a] !== old", arg=[selector, attribute, old])
    return page.eval_on_selector(selector, f"e => e.{attribute}")

def wait_text(page, selector, text):
    "Wait until an element shows a text."
    page.wait_for_function("([s, t]) => document.querySelector(s).innerText.includes(t)", arg=[selector, text])

def test_explorer_in_a_browser(page, lab):
    "Slider, click and stepper: the picture and the table follow."
    run_all(page, lab("07_explore.ipynb"))
    widget, image = page.locator(".hrnet-explorer").first, page.locator(".explore-image").first
    widget.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.explore-image').naturalWidth > 100")
    source = lambda: image.evaluate("e => e.src")
    wait_text(page, ".explore-table", "people found")
    widget.screenshot(path=SHOTS/"explorer.png")
    start = source()

    # no peak is higher than the slider's end: nobody is left
    handle = page.locator(".explore-det-thr .noUi-handle").first
    handle.focus(); handle.press("End")
    wait_text(page, ".explore-table", "0 people found")
    empty = changed(page, ".explore-image", "src", start)
    page.get_by_role("button", name="Reset").first.click()
    wait_text(page, ".explore-table", "people found")
    changed(page, ".explore-image", "src", empty)

    # a click on a joint names it, and shows its costs: an elbow, whose place the same explorer knows here
    explorer = Explorer(PosePredictor(), list_pictures(lab.book/"data"/"synthetic"/"explore"))
    x, y = explorer.poses.keypoints[0, 8, :2] * explorer.factor
    explorer.click(x, y)
    before = source()
    ratio = image.evaluate("e => e.getBoundingClientRect().width / e.naturalWidth")
    image.click(position=dict(x=float(x * ratio), y=float(y * ratio)))
    wait_text(page, ".explore-table", f"You clicked the {explorer.title(explorer.clicked[0])}")
    changed(page, ".explore-image", "src", before)
    page.mouse.move(0, 0)
    widget.screenshot(path=SHOTS/"explorer_clicked.png")

    # the stepper names each joint in turn, forwards and backwards
    forth, back = (page.locator(f".explore-{name}").first for name in ("forth", "back"))
    for k in (1, 2, 3):
        forth.click()
        wait_text(page, ".explore-where", f"{k} of {len(explorer.order)}: {explorer.title(explorer.order[k - 1])}")
    third = source()
    widget.screenshot(path=SHOTS/"explorer_step.png")
    back.click()
    wait_text(page, ".explore-where", f"2 of {len(explorer.order)}: {explorer.title(explorer.order[1])}")
    changed(page, ".explore-image", "src", third)

@pytest.mark.slow
def test_dashboard_moves_while_the_kernel_is_busy(page, lab):
    "A cell waits for a training to end; the dashboard above it shows steps and the time left meanwhile, and the end."
    start_all(page, lab("07a_watch.ipynb"))
    page.wait_for_selector(".watch-text", timeout=5 * PATIENCE * 1000)
    page.wait_for_function("() => /step [1-9].* images.s .* left/.test(document.querySelector('.watch-text').innerText)", timeout=5 * PATIENCE * 1000)
    wait_text(page, ".watch-text", "finished")
    page.locator(".hrnet-watch").screenshot(path=SHOTS/"watch.png")

@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_in_a_browser(page, lab, notebook):
    "Every notebook runs in the browser, without the output of an error."
    run_all(page, lab(notebook))
    page.screenshot(path=SHOTS/f"{notebook.removesuffix('.ipynb')}.png")
