"""Execute the solved labs with live progress; leave a page a lab, an index and a summary."""

import difflib
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from labkit.course import masters, pages
from labkit.course.kernel import execute
from labkit.course.progress import Bar, bars
from labkit.errors import LabError

SCORE = "application/vnd.labkit.score+json"
HEADLINE = "application/vnd.labkit.headline+json"


class UnknownLab(LabError, ValueError):
    """No lab has this name; the one line gives the nearest names."""


@dataclass
class LabResult:
    """What became of one lab: status is `ok`, `failed` (error says why) or `stopped` (Ctrl-C)."""

    lab: str
    title: str
    status: str = "stopped"
    seconds: float = 0.0
    passed: int = 0
    exercises: int = 0
    headline: str = ""
    peak_bytes: int | None = None  # of the kernel; None where the system does not say
    error: str = ""


def find_labs(names: list[str], root: Path) -> list[str]:
    """The stems for names such as `2`, `02` or `02_lora` (all of them for none)."""
    stems = [master.stem for master in masters.masters(root)]
    if not stems:
        raise UnknownLab(f"there is no lab in {root / 'labs'}")
    found = set()
    for name in names:
        stem = Path(name).stem
        hits = {s for s in stems if s == stem or (stem.isdecimal() and int(s[:2]) == int(stem))}
        if not hits:
            near = difflib.get_close_matches(stem, stems, cutoff=0.4) or stems
            raise UnknownLab(f"no lab is called {name!r}; there is {', '.join(near)}")
        found |= hits
    return sorted(found) or stems


def run(names: list[str], root: Path, out: Path, console: Console) -> list[LabResult]:
    """Execute the solved labs in order, a failing one too, and write pages and summary into out.

    Raises UnknownLab; KeyboardInterrupt passes through once what is done is written.
    """
    books = {stem: _solved(root, stem) for stem in find_labs(names, root)}
    out.mkdir(parents=True, exist_ok=True)
    results = []
    with bars(console) as progress:
        shown = {stem: Bar(progress, stem, book.cells) for stem, book in books.items()}
        for stem, book in books.items():
            results.append(LabResult(stem, shown[stem].headings[0]))
            try:
                _run_lab(book, root / "solutions", results[-1], shown[stem])
            finally:
                pages.write(out, root, list(books), book, results)
    print_summary(results, console)
    return results


def _solved(root: Path, stem: str) -> nbformat.NotebookNode:
    path = root / "solutions" / f"{stem}.ipynb"
    if not path.is_file():
        raise UnknownLab(f"solutions/{path.name} is not built yet: run 'labkit build'")
    try:
        return nbformat.read(path, as_version=4)
    except ValueError as error:
        raise UnknownLab(f"solutions/{path.name} is no notebook: {error}") from None


def _run_lab(book: nbformat.NotebookNode, folder: Path, result: LabResult, bar: Bar) -> None:
    """Execute book in place and fill in result, whatever happens."""
    start = time.perf_counter()
    try:
        failure, result.peak_bytes = execute(book, folder, bar.at)
        result.status = "failed" if failure else "ok"
        result.error = failure and f"in '{bar.heading}': {failure}"
    finally:
        result.seconds = round(time.perf_counter() - start, 1)
        _read_outputs(book, result)
        bar.end(result.status)


def _read_outputs(book: nbformat.NotebookNode, result: LabResult) -> None:
    """Fill in what the lab published: its exercises, its headline, and what did not pass."""
    published = {}
    for cell in book.cells:
        for output in cell.get("outputs", []):
            published |= output.get("data", {})
    exercises = published.get(SCORE, {}).get("exercises", [])
    not_passed = [f"{e['id']} {e['name']}" for e in exercises if e["status"] != "passed"]
    result.headline = published.get(HEADLINE, {}).get("headline", "")
    result.exercises = len(exercises)
    result.passed = len(exercises) - len(not_passed)
    if result.status == "ok" and (not_passed or not exercises):
        result.status = "failed"
        result.error = f"not passed: {', '.join(not_passed)}" if exercises else "shows no score"


def print_summary(results: list[LabResult], console: Console) -> None:
    """Print the table that the index page shows, and below it what went wrong."""
    table = Table("lab", "seconds", "passed", "peak GB", "status", "headline", box=None)
    for r in results:
        peak = f"{r.peak_bytes / 1e9:.1f}" if r.peak_bytes else "-"
        status = Text(r.status, "green" if r.status == "ok" else "red")
        passed = f"{r.passed}/{r.exercises}" if r.exercises else "-"
        table.add_row(r.lab, f"{r.seconds:.0f}", passed, peak, status, escape(r.headline))
    console.print(table)
    for r in results:
        if r.error:
            console.print(f"{r.lab}: {r.error}", markup=False, highlight=False, soft_wrap=True)
