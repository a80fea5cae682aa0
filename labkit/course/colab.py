"""On Colab, install the libraries that a freshly downloaded course still needs.

Installed packages stay as they are. A library that is missing, or too old for the labs, goes into
labkit's folder, which is first on the path. This leaves Colab's torch and kernel unchanged, and it
works with a read-only installation.
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

FOLDER = str(Path(__file__).parents[2])
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-color"]


def bring_libraries() -> None:
    """Install missing libraries; LabError if pip fails, after which this can be run again."""
    # pip, and every process that a lab starts, must see the folder too
    paths = [FOLDER, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    try:
        if wanted := missing():
            print(f"Installing {', '.join(wanted)}. This takes a minute or two …", flush=True)
            _pip("--upgrade", "--no-deps", "--target", FOLDER, *wanted)
    except BaseException:
        sys.path[:] = [path for path in sys.path if path != FOLDER]
        _unload({"labkit"})  # so that running the first cell again starts over
        raise
    importlib.invalidate_caches()
    # modules already loaded that the folder has, too: Colab starts with pyarrow
    own = {path.name.partition(".")[0] for path in Path(FOLDER).iterdir()} & set(sys.modules)
    files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in own}
    _unload({name for name, file in files.items() if not file.startswith(FOLDER)})
    print("The course is installed. Packages that were installed before are unchanged.")


def missing() -> list[str]:
    """What pip would install: a list of `name==version`."""
    needs = [need for need in importlib.metadata.requires("lora-labs") if "extra ==" not in need]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "report.json"  # in a notebook pip would color what it prints
        _pip("--dry-run", "--report", str(path), *needs)
        report = json.loads(path.read_text("utf-8"))
    return ["{name}=={version}".format(**item["metadata"]) for item in report["install"]]


def _pip(*arguments):
    """Run pip; LabError with its last error line if it fails."""
    done = subprocess.run([*PIP, *arguments], capture_output=True, text=True)
    if done.returncode:
        output = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in output if line.startswith("ERROR")]
        reason = (errors or output or ["nothing"])[-1]
        raise LabError(f"✗ The libraries could not be installed. pip says: {reason}")


def _unload(packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def hide_old_torchao() -> None:
    """Hide a torchao older than 0.16: Colab has one that makes peft fail, and no lab uses it."""
    from packaging.version import Version

    try:
        old = Version(importlib.metadata.version("torchao")) < Version("0.16")
    except importlib.metadata.PackageNotFoundError:
        return
    if old:
        sys.modules["torchao"] = None  # as if it were not installed
