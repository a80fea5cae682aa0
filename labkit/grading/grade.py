"""Grade submissions: find them, judge each in its sandbox, store the results, write reports."""

import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from labkit.errors import LabError
from labkit.grading import sandbox, store, workers
from labkit.grading.after import overrides, report
from labkit.grading.collect import Notebook, absolute, collect, left_out, listed
from labkit.grading.limits import Limits
from labkit.grading.row import Row

LATE = re.compile(r"(_LATE)?_[^_]+_\d+_")  # in a name from Canvas: student and attachment
UNFINISHED = ("crashed", "timeout")  # graded again by the next call


@dataclass(frozen=True)
class How:
    """How submissions are graded, and on which machines."""

    seed: int | None = None  # of the checks' inputs; default a random one per folder
    checks: str | Path | None = None  # an instructor's own file
    limits: Limits = field(default_factory=Limits)
    unsafe: bool = False  # without a sandbox
    jobs: int | None = None  # at once; default one per core
    workers: int | None = None  # of Dask, on this machine
    scheduler: str | None = None  # of Dask, its address


def grade(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    again: Iterable[str] = (),
    exercise: str | None = None,
    similar: bool = False,
    progress: Callable[[int, int, Row], None] | None = None,
    notes: list[str] | None = None,
    **how,
) -> list[Row]:
    """Grade the notebooks in `paths`, files or folders, as `How` says; return all rows, by name.

    Writes results.json, grades.csv and the pages into `out`; earlier grades stay there. A notebook
    is not graded again if it and the seed, checks, limits, course and libraries are unchanged,
    unless `again` has its name, part of the name, or a matching pattern. `exercise` is the id of
    one to judge again in all submissions; others keep their verdicts. With `similar` a page lists
    submissions with similar code. `progress(done, total, row)` is called after each one; lines to
    show are appended to `notes`. LabError for bad input. An interrupt leaves finished grades.
    """
    how, out, paths = How(**how), Path(out), list(paths)
    _possible(how)
    found = collect(paths, out)
    (out / store.FOLDER).mkdir(parents=True, exist_ok=True)
    seed, before = store.seed_of(out, how.seed), store.entries(out)
    found, renamed = _as_before(found, before)
    version, most = store.depends_on(how.checks, how.limits, seed), how.limits.notebook_bytes
    books = [Notebook.at(name, path, most, version) for name, path in found.items()]
    todo = _todo(books, before, _chosen(again, found), exercise)
    try:
        with store.judging_anew(out, exercise), closing(_rows(todo, seed, how)) as graded:
            for done, (book, row, sources) in enumerate(graded, len(books) - len(todo) + 1):
                entry = _with(before.get(book.name), _entry(book, row, sources), exercise)
                store.save(out, entry)
                if progress:
                    progress(done, len(books), entry.row)
        if exercise:
            _stand(out, set(books) - set(todo), before)
    finally:
        rows, sources, lines = _report(out, renamed)
    lines += _notes(todo, found, before, renamed) + left_out(paths, out)
    lines += [_similar(out, rows, sources)] if similar else []
    if notes is not None:
        notes += lines
    return rows


def _possible(how):
    if sys.platform != "linux":
        raise LabError("grading needs Linux: on Windows use WSL, on a Mac a Linux container")
    if not how.unsafe and not how.scheduler and not sandbox.available():
        raise LabError(sandbox.MISSING)


def _as_before(found, before):
    """`(found, renamed)`: files under longer names from earlier grading; names they gave up."""
    names, renamed = {}, set()
    graded = {entry.path: name for name, entry in before.items() if entry.path}
    for name, path in found.items():
        old = graded.get(str(absolute(path)), name)
        if len(old) > len(name) and old not in found:
            name = old
        elif old != name and old not in found:
            renamed.add(old)
        names[name] = path
    return dict(sorted(names.items())), renamed


def _chosen(again, names):
    """The names that an item of `again` equals, occurs in, or matches; LabError if it fits none."""
    chosen = set()
    for pattern in again:
        same = {name for name in names if name == pattern}
        part = {name for name in names if pattern.lower() in name.lower()}
        fits = {name for name in names if fnmatchcase(name.lower(), pattern.lower())}
        if not (pattern and (same or part or fits)):
            raise LabError(f"--again {pattern}: no submission's name contains that")
        chosen |= same or part | fits
    return chosen


def _todo(books, before, again, exercise):
    """The notebooks to grade; LabError if none has the exercise with the id `exercise`."""
    if exercise:
        todo = [b for b in books if (e := before.get(b.name)) and e.row.exercise(exercise)]
        if not todo:
            raise LabError(f"--exercise {exercise}: no submission here has that exercise")
        return todo
    done = {entry.key for entry in before.values()}  # keys depend on names
    return [book for book in books if book.name in again or not book.digest or book.key not in done]


def _rows(todo, seed, how):
    """Yield `(notebook, row, sources)` as submissions are done, here or by Dask."""
    for book in todo:
        if not book.digest:
            yield book, Row(book.name, "unreadable", book.reason), {}
    readable = [book for book in todo if book.digest]
    setup = (how.limits, how.unsafe, how.checks and str(Path(how.checks).resolve()))
    if readable and (how.workers or how.scheduler):
        with workers.client(how.workers, how.scheduler) as client:
            yield from workers.on_cluster(readable, setup, seed, client)
    elif readable:
        yield from workers.here(readable, setup, seed, how.jobs)


def _with(old, new, id):
    """The old entry with one exercise from `new`; `new` without an id or for another file."""
    fresh = new.row.exercise(id)
    if not id or old.digest != new.digest:
        return new
    if new.row.status != "graded" or fresh is None:
        return replace(old, key=new.key)  # "" after a crash: the next call grades it
    exercises = [fresh if e.id == id else e for e in old.row.exercises]
    row = replace(old.row, exercises=exercises, earned=sum(e.earned for e in exercises))
    return replace(new, row=row)


def _stand(out, books, before):
    """Mark rows without the exercise that was judged again as up to date, too."""
    for book in books:
        old = before.get(book.name)
        if old and old.key and old.digest == book.digest:
            store.save(out, replace(old, key=book.key))


def _entry(book, row, sources):
    """The stored entry of a submission; without a key if it has to be graded again."""
    made = filter(None, map(LATE.search, row.submission.split("/")))
    late = next(made, None)  # the file's name, or that of the folder of an unpacked zip
    row.late = bool(late and late[1])
    last = row.status not in UNFINISHED and row.reason != workers.GONE
    return store.Entry(book.key if last else "", str(book.path), book.digest, row, sources)


def _report(out, renamed):
    """Write the reports on all submissions; return rows, `{name: sources}`, lines to look at."""
    with store.locked(out):
        for name in renamed:
            store.forget(out, name)
        entries = store.entries(out)
        rows, lines = overrides.put_over(out, [entries[name].row for name in sorted(entries)])
        sources = {name: entry.sources for name, entry in entries.items()}
        report.write(out, rows, sources)
    return rows, sources, lines + mixed(out)


def mixed(out: Path) -> list[str]:
    """One line for each exercise that has some new and some old verdicts."""
    why = "was stopped: some of its verdicts are new and others old; run it again"
    return [f"LOOK: --exercise {id} {why}" for id in store.half_done(out)]


def _similar(out, rows, sources):
    from labkit.grading.after import similar

    n = len(similar.write(out, rows, sources))
    return f"{'LOOK: ' if n else ''}similar pairs: {n}, {out / 'similar.html'}"


def _notes(todo, found, before, renamed):
    others = {name: e.path for name, e in before.items() if name not in found.keys() | renamed}
    gone = [name for name, path in others.items() if path and not os.path.lexists(path)]
    lines = [f"rows from earlier calls: {len(others)}"] if others else []
    if gone:
        lines.append(f"LOOK: the file is gone, but its row stays: {listed(gone)}")
    pairs = [(book, before[book.name]) for book in todo if book.name in before]
    others = [(book, old) for book, old in pairs if old.path not in ("", str(book.path))]
    replaced = [b.name for b, old in others if old.digest != b.digest and os.path.lexists(old.path)]
    if replaced:
        why = "in place of another file with this name, which still exists"
        lines.append(f"LOOK: graded {why}: {listed(replaced)}")
    return lines
