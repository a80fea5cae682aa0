"""Grade submissions: find them, have each judged in its sandbox, keep what is done, report."""

import hashlib
import json
import os
import secrets
import sys
from contextlib import closing
from pathlib import Path

import psutil

from labkit.errors import LabError
from labkit.grading import cluster, pool, report, sandbox
from labkit.grading.collect import collect, read_bytes
from labkit.grading.limits import Limits
from labkit.grading.submission import Unreadable

DONE = "graded"  # the folder, below the output, that holds one small file a submission
CODE = ("checks/*.*", "probes/*.py")  # what a grade depends on, with the parts of the grader below
CODE += tuple(
    f"grading/{name}.py" for name in ("contract", "plain", "answer", "judge", "submission")
)


def grade(
    paths,
    out,
    *,
    jobs=None,
    seed=None,
    checks=None,
    unsafe=False,
    limits=Limits(),  # noqa: B008
    progress=None,
    workers=None,
    scheduler=None,
):
    """Grade the notebooks in `paths`, files or folders; the rows of results.json, by name.

    Writes results.json, grades.csv and the pages into `out`. What was graded there before is not
    graded again if notebook, seed, checks and limits are the same; without `seed` the folder keeps
    a random one. `progress(done, total, row)` is called after each. `checks` is the file of an
    instructor's own. `workers` or `scheduler` have Dask do the work. LabError for bad input; when
    it is interrupted, what is done is written all the same.
    """
    if sys.platform != "linux":
        raise LabError("grading needs Linux: on Windows use WSL, on a Mac a Linux container")
    out = Path(out)
    if not unsafe and not scheduler and not sandbox.available():
        raise LabError(sandbox.MISSING)
    books = collect(paths, out)
    (out / DONE).mkdir(parents=True, exist_ok=True)
    seed = _seed(out, seed)
    version = _version(checks, limits, seed)
    results, todo = {}, []
    for name, path in books.items():
        digest, row = _look(name, path, limits)
        key = hashlib.sha256(version + digest + name.encode()).hexdigest()
        saved = (row, {}) if row else _load(out, key)
        if saved:
            results[name] = saved
        else:
            todo.append((key, name, _reader(path, digest, limits), seed))
    setup = (limits, unsafe, checks and str(Path(checks).resolve()))
    try:
        with closing(_work(todo, setup, jobs, workers, scheduler)) as done:
            for key, row, sources in done:
                if row["exercises"]:  # else a second call tries again
                    _save(out, key, [row, sources])
                results[row["submission"]] = (row, sources)
                if progress:
                    progress(len(results), len(books), row)
    finally:
        names = [name for name in books if name in results]
        rows = [results[name][0] for name in names]
        report.write(out, rows, {name: results[name][1] for name in names})
    return rows


def _work(todo, setup, jobs, workers, scheduler):
    """Yield `(key, row, sources)` as submissions are done, here or on a cluster."""
    if not todo:
        return
    if workers or scheduler:
        with cluster.client(workers, scheduler) as client:
            yield from cluster.work(todo, client, setup)
    else:
        yield from pool.work(todo, jobs or _jobs(), lambda cores: pool.JudgeProcess(*setup, cores))


def _jobs():
    """One a core, where each has a GiB of memory."""
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available >> 30))


def _look(name, path, limits):
    """`(digest, None)`, or `(b"", row)` for a file that can't be read."""
    try:
        return hashlib.sha256(read_bytes(path, limits.notebook_bytes)).digest(), None
    except Unreadable as reason:
        return b"", pool.unreadable(name, str(reason))


def _reader(path, digest, limits):
    """A function that reads the notebook when its turn comes; None if it is another one by then."""

    def read():
        try:
            data = read_bytes(path, limits.notebook_bytes)
        except Unreadable:
            return None
        return data if hashlib.sha256(data).digest() == digest else None

    return read


def _version(checks, limits, seed):
    """What a grade depends on besides the notebook: the course's code, the limits and the seed."""
    here = Path(__file__).parents[1]
    files = [file for pattern in CODE for file in sorted(here.glob(pattern))]
    digest = hashlib.sha256(f"{limits} {seed}".encode())
    for file in [*files, *([Path(checks)] if checks else [])]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.digest()


def _seed(out, seed):
    """The seed given, else the one that this folder has, else a new random one."""
    file = out / DONE / "seed"
    if seed is None and file.exists():
        return int(file.read_text())
    seed = secrets.randbits(48) if seed is None else seed
    file.write_text(str(seed))
    return seed


def _load(out, key):
    try:
        return tuple(json.loads((out / DONE / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _save(out, key, data):
    """Write one result whole or not at all."""
    partial = out / DONE / f"{key}.partial"
    partial.write_text(json.dumps(data), encoding="utf-8")
    os.replace(partial, partial.with_suffix(".json"))
