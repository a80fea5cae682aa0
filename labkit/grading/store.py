"""What a folder of grades keeps: one small file a submission, which all its reports are made of.

Several graders may work on one folder at a time. Each file is written whole under a name of its own
and moved into place; what is read, merged and written again is so under a lock.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from labkit.grading.after import summary

FOLDER = "graded"  # below the folder of the grades
PACKAGE = Path(__file__).parents[1]
SEEDS = 2**63  # what torch takes
LIBRARIES = {"bitsandbytes", "numpy", "pandas", "peft", "torch", "transformers"}
NO_GRADE = {"__pycache__", "templates"}  # folders of the package that no grade depends on


def depends_on(checks, limits, seed):
    """A digest of what grades depend on besides the notebook: code, libraries, limits, seed."""
    digest = hashlib.sha256(f"{limits} {seed} {sys.version} {_libraries()}".encode())
    solutions = sorted((PACKAGE.parent / "solutions").glob("*.ipynb"))
    files = {str(file.relative_to(PACKAGE.parent)): file for file in [*_package(), *solutions]}
    for name, file in (files | ({"own": Path(checks)} if checks else {})).items():
        data = file.read_bytes()
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.digest()


def _package():
    for root, folders, files in os.walk(PACKAGE):
        folders[:] = sorted(set(folders) - NO_GRADE)
        yield from (Path(root) / name for name in sorted(files) if not name.startswith("."))


def _libraries():
    """The libraries that the course asks for, with the versions that are installed."""
    names = set(LIBRARIES)
    with contextlib.suppress(PackageNotFoundError):
        asked = (line for line in requires("lora-labs") or () if "extra ==" not in line)
        names |= {re.match(r"[\w.-]+", line)[0] for line in asked}
    found = []
    for name in sorted(names):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


@contextlib.contextmanager
def locked(out):
    """Nobody else reads and writes the reports of the folder meanwhile."""
    import fcntl  # not on Windows, where nothing is graded

    with open(out / FOLDER / "lock", "w") as file:
        with contextlib.suppress(OSError):  # a disk that knows no locks serves one grader
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def seed_of(out, seed=None):
    """The seed given, else the one that this folder has, else a new random one; it is kept."""
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


def entries(out):
    """`{submission: entry}` of all that was graded into the folder; what is malformed is left out.

    An entry has the `key` that its grade depends on ("" if the next call has to grade it again),
    the `path` and the `digest` of the notebook, its `row` and its `sources`.
    """
    found = {}
    for file in sorted((out / FOLDER).glob("*.json"), key=_written):
        if entry := _entry(file):
            found[entry["row"]["submission"]] = entry
    return found


def _written(file):
    try:
        return file.stat().st_mtime_ns
    except OSError:  # another grader has replaced it
        return 0


def _entry(file):
    try:
        entry = json.loads(file.read_text("utf-8"))
        if isinstance(entry, list):  # as an earlier version left it
            row, sources = entry
            entry = {"key": "", "path": "", "digest": "", "row": row, "sources": sources}
        row, sources, texts = entry["row"], entry["sources"], ("key", "path", "digest")
        sound = summary.sound(row) and all(isinstance(entry[name], str) for name in texts)
        cells = isinstance(sources, dict) and all(isinstance(c, str) for c in sources.values())
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return entry if sound and cells else None


def save(out, entry):
    """Keep the entry of a submission, in place of the one before."""
    put(_file(out, entry["row"]["submission"]), json.dumps(entry).encode())


def forget(out, submission):
    """Remove what is kept of a submission."""
    _file(out, submission).unlink(missing_ok=True)


def _file(out, submission):
    name = hashlib.sha256(submission.encode("utf-8", "surrogatepass")).hexdigest()
    return out / FOLDER / f"{name}.json"


def put(path, data):
    """Write a file whole or not at all, also where two do at a time; an OSError names it."""
    part = path.with_name(f".{path.name[:60]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
