"""Grade submissions: find them, have each judged in its sandbox, keep what is done, report."""

import hashlib
import json
import os
import secrets
from pathlib import Path

from labkit.errors import LabError
from labkit.grading import pool, sandbox
from labkit.grading.collect import collect, read_bytes
from labkit.grading.limits import Limits
from labkit.grading.submission import Unreadable

DONE = "graded"  # the folder, below the output, that holds one small file a submission


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

    Writes results.json, grades.csv and the pages into `out`, and grades nothing again that is
    there and unchanged: same notebook, seed and checks. Without `seed` the folder gets a random
    one. `progress(done, total, row)` is called after each. LabError for what can't be graded.
    """
    out = Path(out)
    if not unsafe and not sandbox.available():
        raise LabError(sandbox.MISSING)
    books = collect(paths, out)
    (out / DONE).mkdir(parents=True, exist_ok=True)
    seed = _seed(out, seed)
    version = _version(checks, limits, seed)
    results, todo = {}, []
    for name, path in books.items():
        key, data, row = _look(name, path, version, limits)
        saved = _load(out, key)
        if row or saved:
            results[name] = saved or (row, {})
        else:
            todo.append((key, name, data, seed))
    checks = checks and str(Path(checks).resolve())
    make = lambda cores: pool.JudgeProcess(limits, unsafe, checks, cores)  # noqa: E731
    try:
        for key, row, sources in pool.work(todo, jobs or _jobs(), make):
            _save(out, key, [row, sources])
            results[row["submission"]] = (row, sources)
            if progress:
                progress(len(results), len(books), row)
    finally:
        rows = [results[name][0] for name in books if name in results]
        _write(out / "results.json", rows)
        from labkit.grading import report

        report.write(out, rows, {name: results[name][1] for name in books if name in results})
    return rows


def _jobs():
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity else os.cpu_count() or 1)


def _look(name, path, version, limits):
    """`(key, how to read it again, None)`, or a row when it is unreadable."""
    try:
        data = read_bytes(path, limits.notebook_bytes)
    except Unreadable as reason:
        row = pool.crashed(name, str(reason)) | {"status": "unreadable"}
        return hashlib.sha256(name.encode()).hexdigest(), None, row
    digest = hashlib.sha256(b"\0".join([version, name.encode(), data])).hexdigest()
    return digest, lambda: read_bytes(path, limits.notebook_bytes), None


def _version(checks, limits, seed):
    """What a grade depends on besides the notebook: the course's own code, limits and seed."""
    here = Path(__file__).parent
    files = [
        p for d in ("checks", "probes", "grading") for p in sorted((here.parent / d).glob("*"))
    ]
    files += [Path(checks)] if checks else []
    digest = hashlib.sha256(f"{limits}{seed}".encode())
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest().encode()


def _seed(out, seed):
    """The seed given, else the one this folder has, else a new random one."""
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
    _write(out / DONE / f"{key}.json", data)


def _write(path, data):
    """Write JSON whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, path)
