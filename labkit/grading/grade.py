"""Grade submissions: find them, have each judged in its sandbox, keep what is done, report."""

import hashlib
import os
import re
import sys
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import psutil

from labkit.errors import LabError
from labkit.grading import cluster, pool, sandbox, store
from labkit.grading.after import report
from labkit.grading.collect import collect, listed, read_bytes
from labkit.grading.judge.submission import Unreadable
from labkit.grading.limits import Limits

LATE = re.compile(r"(_LATE)?_[^_]+_\d+_")  # in a name that Canvas made: who, and the attachment
UNFINISHED = ("crashed", "timeout")  # a row of these is told, and graded again by the next call


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
    again=(),
    notes=None,
):
    """Grade the notebooks in `paths`, files or folders; all rows of results.json, by name.

    Writes results.json, grades.csv and the pages into `out`; what was graded into it before stays
    there. It is not graded again if notebook, seed, checks, limits, course and libraries are the
    same, unless `again` has its name, a part of it, or a pattern. Without `seed` the folder keeps a
    random one. `progress(done, total, row)` is called after each; `notes`, a list, gets lines to
    show. `checks` is the file of an instructor's own. `workers` or `scheduler` have Dask do the
    work. LabError for bad input; when it is interrupted, what is done is written all the same.
    """
    out = Path(out)
    _expect_a_sandbox(unsafe, scheduler)
    found = collect(paths, out)
    (out / store.FOLDER).mkdir(parents=True, exist_ok=True)
    seed = store.seed_of(out, seed)
    before = store.entries(out)
    found, renamed = _as_before(found, before)
    version = store.depends_on(checks, limits, seed)
    books = [_look(name, path, version, limits) for name, path in found.items()]
    again = _chosen(again, found)
    todo = [book for book in books if book.name in again or not _stands(book, before)]
    setup = (limits, unsafe, checks and str(Path(checks).resolve()))
    try:
        begin = len(books) - len(todo) + 1
        with closing(_rows(todo, seed, setup, jobs, workers, scheduler)) as graded:
            for done, (book, row, sources) in enumerate(graded, begin):
                store.save(out, _entry(book, row, sources))
                if progress:
                    progress(done, len(books), row)
    finally:
        rows = _report(out, renamed)
    if notes is not None:
        notes += _notes(todo, found, before, renamed)
    return rows


def _expect_a_sandbox(unsafe, scheduler):
    if sys.platform != "linux":
        raise LabError("grading needs Linux: on Windows use WSL, on a Mac a Linux container")
    if not unsafe and not scheduler and not sandbox.available():
        raise LabError(sandbox.MISSING)


@dataclass
class Book:
    """A notebook to grade, as it was when the call began."""

    name: str
    path: Path  # absolute
    key: str  # what its grade depends on
    digest: str  # of its bytes; "" when they cannot be read
    reason: str  # why not
    most: int  # bytes that are read

    def read(self):
        """Its bytes; None if the file is another one by now."""
        try:
            data = read_bytes(self.path, self.most)
        except Unreadable:
            return None
        return data if hashlib.sha256(data).hexdigest() == self.digest else None


def _look(name, path, version, limits):
    """The `Book` in a file."""
    try:
        digest, reason = hashlib.sha256(read_bytes(path, limits.notebook_bytes)).hexdigest(), ""
    except Unreadable as error:
        digest, reason = "", str(error)
    told = f"{digest} {name}".encode("utf-8", "surrogatepass")
    key = hashlib.sha256(version + told).hexdigest()
    return Book(name, _absolute(path), key, digest, reason, limits.notebook_bytes)


def _absolute(path):
    """The path from the root on; links to folders are resolved, the file itself is not."""
    return Path(os.path.realpath(path.parent)) / path.name


def _as_before(found, before):
    """`(found, renamed)`: a file that was graded under a longer name keeps that one.

    `renamed` has the names under which files of `found` were graded before and are no longer.
    """
    names, renamed = {}, set()
    graded = {entry["path"]: name for name, entry in before.items() if entry["path"]}
    for name, path in found.items():
        old = graded.get(str(_absolute(path)), name)
        if len(old) > len(name) and old not in found:
            name = old
        elif old != name and old not in found:
            renamed.add(old)
        names[name] = path
    return dict(sorted(names.items())), renamed


def _chosen(again, names):
    """The names that one of `again` is, is a part of, or fits; LabError for one that fits none."""
    chosen = set()
    for asked in again:
        same = {name for name in names if name == asked}
        part = {name for name in names if asked.lower() in name.lower()}
        fits = {name for name in names if fnmatchcase(name.lower(), asked.lower())}
        if not (asked and (same or part or fits)):
            raise LabError(f"--again {asked}: no submission here has that in its name")
        chosen |= same or part | fits
    return chosen


def _stands(book, before):
    return book.digest and before.get(book.name, {}).get("key") == book.key


def _rows(todo, seed, setup, jobs, workers, scheduler):
    """Yield `(book, row, sources)` as submissions are done, here or on a cluster."""
    for book in todo:
        if not book.digest:
            yield book, pool.unreadable(book.name, book.reason), {}
    books = {book.key: book for book in todo if book.digest}
    asked = [(book.key, book.name, book.read, seed) for book in books.values()]
    if not asked:
        return
    if workers or scheduler:
        with cluster.client(workers, scheduler) as client:
            for key, row, sources in cluster.work(asked, client, setup):
                yield books[key], row, sources
        return
    work = pool.work(asked, jobs or _jobs(), lambda cores: pool.JudgeProcess(*setup, cores))
    with closing(work):
        for key, row, sources in work:
            yield books[key], row, sources


def _jobs():
    """One a core, where each has a GiB of memory."""
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available >> 30))


def _entry(book, row, sources):
    """What is kept of a submission; a row that is not the last word has no key."""
    late = LATE.search(row["submission"].rpartition("/")[2])
    row |= {"late": True} if late and late[1] else {}
    last = row["status"] not in UNFINISHED and row.get("reason") != pool.GONE
    entry = {"key": book.key if last else "", "path": str(book.path), "digest": book.digest}
    return entry | {"row": row, "sources": sources}


def _report(out, renamed):
    """Write the reports of all that was ever graded into the folder; the rows."""
    with store.locked(out):
        for name in renamed:
            store.forget(out, name)
        entries = store.entries(out)
        found = {row["submission"]: row for row in report.rows_in(out)}
        found |= {name: entry["row"] for name, entry in entries.items()}
        rows = [found[name] for name in sorted(found.keys() - renamed)]
        report.write(out, rows, {name: entry["sources"] for name, entry in entries.items()})
    return rows


def _notes(todo, found, before, renamed):
    """Lines on what became of the rows that stood in the folder before."""
    others = {name: e["path"] for name, e in before.items() if name not in found.keys() | renamed}
    gone = [name for name, path in others.items() if path and not os.path.lexists(path)]
    lines = [f"rows of earlier calls: {len(others)}"] if others else []
    if gone:
        lines.append(f"LOOK: the file is no longer there, the row stays: {listed(gone)}")
    replaced = [book.name for book in todo if _replaces(book, before.get(book.name))]
    if replaced:
        told = "in place of another file of this name, which is still there"
        lines.append(f"LOOK: graded {told}: {listed(replaced)}")
    return lines


def _replaces(book, old):
    """Whether a row was of another file, with other bytes, that is still there."""
    other = old and old["path"] not in ("", str(book.path)) and old["digest"] != book.digest
    return other and os.path.lexists(old["path"])
