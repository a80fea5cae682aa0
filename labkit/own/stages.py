"""The folder beside FOLDER where a training stands until it is done: nothing half-made is taken.

`FOLDER.partial` has `key.txt`, the trainer's checkpoints, and in the end `made`, which becomes
FOLDER by one rename.
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
SHIPPED = "ship.json"  # the same of what `labkit ship` has made
WHAT = {RESULT: "an adapter", SHIPPED: "files"}


def finished(out: Path, key: str, note: str = RESULT) -> dict | None:
    """What an earlier run of the same key left in FOLDER; LabError for anything else there.

    `note` is the file in FOLDER that says the key.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        result = json.loads((out / note).read_text("utf-8"))
    except (OSError, ValueError):
        result = {}
    if result.get("key") != key:
        what = f"{WHAT[note]} of other data or settings" if result else "something else"
        raise LabError(f"{out} holds {what}: name another --out, or take it away")
    shutil.rmtree(partial(out), ignore_errors=True)  # killed between rename and tidying up
    return result


def partial(out: Path) -> Path:
    """Where the training for FOLDER stands until it is done."""
    out = out.resolve()
    return out.with_name(f"{out.name}.partial")


def begin(out: Path, key: str) -> Path:
    """The folder of this training, made or found; LabError where another one stands in it."""
    work = partial(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{work} cannot be made: {error.strerror}") from None
    note = work / "key.txt"
    known = note.read_text("utf-8") if note.is_file() else ""
    if known and known != key:
        told = f"{work} holds unfinished work of other data or settings"
        raise LabError(f"{told}: name another --out, or take that folder away")
    if not known:
        with whole(note) as part:
            part.write_text(key, "utf-8")
    return work


def alone(work: Path) -> AbstractContextManager:
    """Nobody else works in that folder meanwhile; LabError where somebody does.

    The lock is the system's: it goes with its process, however that ends.
    """
    try:
        return FileLock(work / "lock").acquire(timeout=0)
    except Timeout:
        told = f"{work}: another call is at work there"
        raise LabError(f"{told}; wait for it, or end it and call again") from None


def say(line: str) -> None:
    """Tell how far it is, on stderr."""
    print(line, file=sys.stderr, flush=True)


def publish(work: Path, out: Path, write: Callable[[Path], None]) -> None:
    """`write(folder)` into a folder aside, which then becomes FOLDER whole; `work` is removed."""
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    write(made)
    os.replace(made, out.resolve())
    shutil.rmtree(work, ignore_errors=True)
