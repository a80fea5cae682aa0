"""Grades the honest notebooks, all in one call, each as often as LABKIT_HONEST says (once)."""

import contextlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from honest import NOTEBOOKS, TIMES

from labkit.grading import sandbox
from labkit.grading.grade import grade

GROUPS = "setups programs magics states noises answers scratches labs"
for group in GROUPS.split():
    importlib.import_module(f"books_{group}")

LOAD = 6  # of the machine, where they are graded more than once
BUSY = max(0, LOAD - round(os.getloadavg()[0])) if TIMES > 1 else 0  # processes that never rest


@pytest.fixture(scope="session")
def graded(request, tmp_path_factory):
    """{name of a notebook: its rows}, one for each time that it was graded."""
    if not sandbox.available():
        pytest.skip("notebooks are graded in a sandbox only: bubblewrap is missing")
    params = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {c.params["notebook"].name for c in params if c and "notebook" in c.params}
    folder = tmp_path_factory.mktemp("honest")
    for time in range(TIMES):
        for notebook in NOTEBOOKS:
            if notebook.name in chosen:
                path = folder / "submissions" / f"{time:03}" / f"{notebook.name}.ipynb"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(notebook.data())
    found = {}
    with _busy(BUSY):
        for row in grade([folder / "submissions"], folder / "out", jobs=2, seed=915_374_021):
            found.setdefault(Path(row.submission).stem, []).append(row.data())
    return found


@contextlib.contextmanager
def _busy(n):
    """Keep `n` processes beside the test that never rest."""
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in beside:
            process.kill()
            process.wait()


def pytest_generate_tests(metafunc):
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", NOTEBOOKS, ids=[n.name for n in NOTEBOOKS])
