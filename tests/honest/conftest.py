"""Grades the honest notebooks, all in one call, each as often as LABKIT_HONEST says (once)."""

import importlib
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

# Side by side: graded more than once, they are each other's load.
JOBS = 7 if TIMES > 1 else 2


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
    for row in grade([folder / "submissions"], folder / "out", jobs=JOBS, seed=915_374_021):
        found.setdefault(Path(row.submission).stem, []).append(row.data())
    return found


def pytest_generate_tests(metafunc):
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", NOTEBOOKS, ids=[n.name for n in NOTEBOOKS])
