"""Colab: a notebook where the course was just fetched, and the libraries that it still needs.

What is installed stays as it is. A library that is missing, or too old for the labs, comes into
the folder that holds labkit, which stands first on the path. So Colab keeps its own torch, its
kernel keeps what it runs on, and a read-only installation will do.
"""

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from labkit.errors import LabError

FOLDER = str(Path(__file__).parents[1])
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-color"]


def bring_libraries():
    """Bring what the labs need and is not here. LabError when pip cannot; then try again."""
    # pip, and every process that a lab starts, must see the folder too
    paths = [FOLDER, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    try:
        if wanted := missing():
            print(f"Bringing {', '.join(wanted)}. A minute or two …", flush=True)
            _pip("--upgrade", "--no-deps", "--target", FOLDER, *wanted)
            importlib.invalidate_caches()
    except BaseException:
        _forget_labkit()
        raise
    print("The course is here. What was installed before is as it was.")


def missing():
    """What pip would add to what is installed: a list of `name==version`."""
    needs = [need for need in importlib.metadata.requires("lora-labs") if "extra ==" not in need]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "report.json"  # in a notebook pip would colour what it prints
        _pip("--dry-run", "--report", str(path), *needs)
        report = json.loads(path.read_text("utf-8"))
    return ["{name}=={version}".format(**item["metadata"]) for item in report["install"]]


def _pip(*arguments):
    """Run pip; LabError with the last thing that it says when it fails."""
    done = subprocess.run([*PIP, *arguments], capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")]
        reason = (errors or said or ["nothing"])[-1]
        raise LabError(f"✗ The libraries could not be brought. pip says: {reason}")


def _forget_labkit():
    """Undo the import, so that the first cell of the notebook begins anew when it is run again."""
    sys.path[:] = [path for path in sys.path if path != FOLDER]
    for name in [name for name in sys.modules if name.partition(".")[0] == "labkit"]:
        del sys.modules[name]


def hide_old_torchao():
    """Hide a torchao older than 0.16: Colab has one, peft stops beside it, and no lab uses it."""
    from packaging.version import Version

    try:
        old = Version(importlib.metadata.version("torchao")) < Version("0.16")
    except importlib.metadata.PackageNotFoundError:
        return
    if old:
        sys.modules["torchao"] = None  # as if it were not installed
