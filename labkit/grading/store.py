"""The stored grades of a folder, one small file per submission, from which reports are made.

Several graders may work on one folder at a time. Each file is written under a temporary name and
moved into place; reports are read and written under a lock.
"""

import contextlib
import hashlib
import json
import re
import secrets
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from labkit import fingerprint
from labkit.files import whole
from labkit.grading.limits import Limits
from labkit.grading.row import Row, made

FOLDER = "graded"  # in the folder of the grades
SEEDS = 2**63  # torch's range
LIBRARIES = {"bitsandbytes", "numpy", "pandas", "peft", "torch", "transformers"}


@dataclass
class Entry:
    """The stored entry of a submission."""

    key: str  # what its grade depends on; "" if the next call has to grade it again
    path: str  # of the notebook
    digest: str  # of its bytes
    row: Row
    sources: dict  # the learner's cell of each exercise, by id


def depends_on(checks: Path | None, limits: Limits, seed: int) -> str:
    """A hash of everything that grades depend on besides the notebook."""
    libraries = set(LIBRARIES)
    with contextlib.suppress(PackageNotFoundError):
        required = (line for line in requires("lora-labs") or () if "extra ==" not in line)
        libraries |= {re.match(r"[\w.-]+", line)[0] for line in required}
    own = [Path(checks).resolve()] if checks else []
    settings = {"limits": asdict(limits), "seed": seed, "python": sys.version}
    return fingerprint.of([".", "../solutions", *own], libraries, settings)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """A lock on the reports of the folder."""
    import fcntl  # not on Windows, where nothing is graded

    with open(out / FOLDER / "lock", "w") as file:
        with contextlib.suppress(OSError):  # a disk without locks has one grader
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def seed_of(out: Path, seed: int | None) -> int:
    """The given seed, else the folder's, else a new random seed; the seed is stored."""
    file = out / FOLDER / "seed"
    with locked(out):
        if seed is None:
            with contextlib.suppress(OSError, ValueError):
                found = int(file.read_text("utf-8"))
                if 0 <= found < SEEDS:
                    return found
            seed = secrets.randbits(48)
        put(file, str(seed).encode())
    return seed


@contextlib.contextmanager
def judging_anew(out: Path, exercise: str | None) -> Iterator[None]:
    """Mark the exercise in `half_done` until the block succeeds."""
    anew = {exercise} if exercise else set()
    _mark(out, lambda ids: ids | anew)
    yield
    _mark(out, lambda ids: ids - anew)


def half_done(out: Path) -> list[str]:
    """Exercises whose regrading was interrupted, so that some verdicts are new and some old."""
    with contextlib.suppress(OSError):
        return (out / FOLDER / "anew").read_text("utf-8").splitlines()
    return []


def _mark(out, change):
    with locked(out):
        before = set(half_done(out))
        if (ids := change(before)) != before:
            put(out / FOLDER / "anew", "\n".join(sorted(ids)).encode())


def entries(out: Path) -> dict[str, Entry]:
    """The stored entries of the folder, by submission, oldest first, without malformed ones."""
    found = [pair for file in (out / FOLDER).glob("*.json") if (pair := _entry(file))]
    found.sort(key=lambda pair: pair[0])
    return {entry.row.submission: entry for _, entry in found}


def _entry(file):
    """`(time written, entry)`; None if malformed, or deleted in the meantime."""
    try:
        written, data = file.stat().st_mtime_ns, json.loads(file.read_text("utf-8"))
        entry = made(Entry, data | {"row": Row.of(data["row"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = all(isinstance(cell, str) for cell in entry.sources.values())
    return (written, entry) if whole else None


def save(out: Path, entry: Entry) -> None:
    """Store the entry of a submission, replacing any earlier entry."""
    data = vars(entry) | {"row": entry.row.data()}
    put(_file(out, entry.row.submission), json.dumps(data).encode())


def forget(out: Path, submission: str) -> None:
    """Remove the entry of a submission."""
    _file(out, submission).unlink(missing_ok=True)


def _file(out, submission):
    name = hashlib.sha256(submission.encode("utf-8", "surrogatepass")).hexdigest()
    return out / FOLDER / f"{name}.json"


def put(path: Path, data: bytes) -> None:
    """Write a file atomically, even with several writers; an OSError names the file."""
    try:
        with whole(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
