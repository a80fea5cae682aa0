"""A JupyterLab on a copy of the student notebooks, and a browser that opens them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from labkit import download
from labkit.training import models

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
TOKEN = "a-learner"
PATIENCE = 120_000  # milliseconds: a busy machine takes long to load torch
QUIET = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
}


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with JupyterLab's settings and a cache without trainings."""
    models.fetch()
    home = tmp_path_factory.mktemp("jupyter")
    (home / "cache").mkdir()
    (home / "cache" / "models").symlink_to(download.cache_dir() / "models")
    (home / "notebooks").mkdir()
    for name, values in QUIET.items():
        set_up(home, name, values)
    return home


def set_up(home, name, values):
    """Write JupyterLab's own settings file, which it reads when a page loads."""
    path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def address(home):
    """Where JupyterLab answers, as its own file says."""
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    own = {name: str(home / name.lower()) for name in (*folders, "JUPYTERLAB_WORKSPACES_DIR")}
    own["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    own["LABKIT_CACHE"] = str(home / "cache")  # a kept training would show no curve that moves
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={home / 'notebooks'}", f"--IdentityProvider.token={TOKEN}"]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    until = time.monotonic() + 120
    try:
        while not (told := list(home.glob("jupyter_runtime_dir/jpserver-*.json"))):
            late = process.poll() is not None or time.monotonic() > until
            assert not late, f"JupyterLab does not start:\n{(home / 'log').read_text()[-2000:]}"
            time.sleep(0.5)
        yield json.loads(told[0].read_text())["url"]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def notebook(browser, home, address, request):
    """`notebook(name, theme)` opens a notebook in a window of a laptop's size.

    Each test begins with the notebooks as they are given out.
    """
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    SHOTS.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(PATIENCE)

    def opened(name, theme):
        set_up(home, "apputils-extension/themes", {"theme": f"JupyterLab {theme}"})
        page.goto(f"{address}lab/tree/{name}?token={TOKEN}&reset")
        expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle")  # a kernel is there
        return Notebook(page)

    yield opened
    page.screenshot(path=SHOTS / f"end-of-{request.node.name}.png")  # what a failure looked like
    page.close()


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, page):
        self.page = page

    def cell(self, code):
        """The code cell whose source holds `code`."""
        source = self.page.locator(".jp-InputArea", has_text=code)
        return self.page.locator(".jp-CodeCell").filter(has=source).first

    def write(self, old, new):
        """Put `new` into the cell that holds `old`."""
        self.cell(old).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(new)

    def run(self, code, errors=0, go=None):
        """Run the cell that holds `code` to its end; its output. No library may chatter in it.

        `go` chooses and starts it; else the mouse and Control+Enter do.
        """
        cell = self.cell(code)
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text()
        if go:
            go(code)
        else:
            cell.locator(".cm-content").click()
            self.page.keyboard.press("ControlOrMeta+Enter")
        expect(prompt).not_to_have_text(before)
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"))
        expect(cell.locator("[data-mime-type$=stderr]")).to_have_count(errors)
        return cell.locator(".jp-Cell-outputArea")

    def frame(self, name, first, last):
        """Keep a picture of the page from one part of it to another."""
        box, end = first.bounding_box(), last.bounding_box()
        clip = {"x": box["x"], "y": box["y"], "width": box["width"]}
        clip["height"] = end["y"] + end["height"] + 8 - box["y"]
        self.page.screenshot(path=SHOTS / f"{name}.png", clip=clip)

    def shoot(self, name, part):
        """Keep a picture of the window, with `part` of the page in view."""
        part.scroll_into_view_if_needed()
        self.page.screenshot(path=SHOTS / f"{name}.png")
