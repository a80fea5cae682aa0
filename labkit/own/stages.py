"""Manage `FOLDER.partial`, where a training run works until FOLDER is complete.

It contains `key.txt`, the trainer's checkpoints, and finally `made`, which is renamed to FOLDER.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from labkit.errors import LabError
from labkit.files import whole

RESULT = "labkit.json"  # in FOLDER: key, settings, scores
SHIPPED = "ship.json"  # the same for `labkit ship`
WHAT = {RESULT: "an adapter", SHIPPED: "files"}


def finished(out: Path, key: str, note: str = RESULT) -> dict | None:
    """The result of an earlier run with this key, None if FOLDER is empty, or a LabError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        result = json.loads((out / note).read_text("utf-8"))
    except (OSError, ValueError):
        result = {}
    if result.get("key") != key:
        what = f"{WHAT[note]} from other data or settings" if result else "something else"
        raise LabError(f"{out} contains {what}: give another --out, or remove it")
    shutil.rmtree(partial(out), ignore_errors=True)  # killed between rename and tidying up
    return result


def partial(out: Path) -> Path:
    """The working folder for FOLDER."""
    out = out.resolve()
    return out.with_name(f"{out.name}.partial")


def begin(out: Path, key: str) -> Path:
    """Create or find this run's working folder; LabError if it contains other work."""
    work = partial(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{work} cannot be created: {error.strerror}") from None
    note = work / "key.txt"
    known = note.read_text("utf-8") if note.is_file() else ""
    if known and known != key:
        what = f"{work} contains unfinished work from other data or settings"
        raise LabError(f"{what}: give another --out, or remove that folder")
    if not known:
        with whole(note) as part:
            part.write_text(key, "utf-8")
    return work


def alone(work: Path) -> AbstractContextManager:
    """Lock the folder with an OS file lock; LabError if another process holds the lock."""
    try:
        return FileLock(work / "lock").acquire(timeout=0)
    except Timeout:
        what = f"{work}: another process is working there"
        raise LabError(f"{what}; wait for it, or stop it and run this again") from None


def say(line: str) -> None:
    """Print a line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def publish(work: Path, out: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary folder, rename that folder to FOLDER, and remove `work`."""
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    write(made)
    os.replace(made, out.resolve())
    shutil.rmtree(work, ignore_errors=True)
