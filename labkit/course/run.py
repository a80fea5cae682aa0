"""Execute the solved labs with live progress; write a book of them and a summary."""

import difflib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from labkit.course import doctor, masters
from labkit.course.kernel import LabResult, execute
from labkit.course.progress import Bar, bars
from labkit.errors import LabError

SCORE = "application/vnd.labkit.score+json"
HEADLINE = "application/vnd.labkit.headline+json"


def find_labs(names: list[str], root: Path) -> list[str]:
    """The stems for names such as `2`, `02` or `02_lora`; all stems if there are no names."""
    stems = [master.stem for master in masters.masters(root)]
    if not stems:
        raise LabError(f"there is no lab in {root / 'labs'}")
    found = set()
    for name in names:
        stem = Path(name).stem
        hits = {s for s in stems if s == stem or (stem.isdecimal() and int(s[:2]) == int(stem))}
        if not hits:
            near = difflib.get_close_matches(stem, stems, cutoff=0.4) or stems
            raise LabError(f"no lab is called {name!r}; try {', '.join(near)}")
        found |= hits
    return sorted(found) or stems


def side_by_side(labs: int) -> tuple[int, int]:
    """How many of these labs to run at a time, and how many threads each gets.

    Two labs with half the cores each finish sooner than one after the other, since much of a step
    on a small model runs on one core. On a GPU, or with little memory, labs run one at a time.
    """
    from labkit.training import hardware

    cores = doctor.n_cores()
    room = psutil.virtual_memory().available >= 2 * doctor.LAB_BYTES
    n = min(labs, 2) if cores > 1 and room and hardware.device() == "cpu" else 1
    return n, cores // n


def run(names: list[str], root: Path, out: Path, console: Console) -> list[LabResult]:
    """Execute the solved labs, even if one fails, and write their book into out.

    LabError for an unknown or unbuilt lab; KeyboardInterrupt is raised again after finished labs
    are written.
    """
    from labkit.course import book as the_book  # imports Sphinx, which `labkit check` doesn't need

    books = {stem: _solved(root, stem) for stem in find_labs(names, root)}
    (out / "executed").mkdir(parents=True, exist_ok=True)
    begun = {}
    try:
        with bars(console) as progress:
            shown = {stem: Bar(progress, stem, book.cells) for stem, book in books.items()}

            def run_lab(stem: str, **options) -> None:
                begun[stem] = LabResult(stem, shown[stem].headings[0])
                try:
                    _run_one(books[stem], begun[stem], shown[stem], out, **options)
                finally:
                    nbformat.write(books[stem], out / "executed" / f"{stem}.ipynb")

            _run_all(begun, {stem: sum(bar.seconds) for stem, bar in shown.items()}, run_lab)
    finally:
        if results := [begun[stem] for stem in books if stem in begun]:
            console.print(f"building the book in {out} …", markup=False, soft_wrap=True)
            ran = {stem: books[stem] for stem in begun}
            console.print(the_book.write(out, root, ran, results), markup=False, end="")
    print_summary(results, console)
    return results


def _run_all(
    results: dict[str, LabResult], seconds: dict[str, float], run_lab: Callable[..., None]
) -> None:
    """Run the labs, several at a time, longest first; on Ctrl-C kill them and start no other."""
    at_once, threads = side_by_side(len(seconds))
    stems = sorted(seconds, key=seconds.get, reverse=True) if at_once > 1 else list(seconds)
    env, kernels = {"OMP_NUM_THREADS": str(threads)} | os.environ, []
    with ThreadPoolExecutor(at_once) as pool:
        jobs = {s: pool.submit(run_lab, s, env=env, started=kernels.append) for s in stems}
        try:
            for job in jobs.values():
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            cut = {stem: job for stem, job in jobs.items() if job.running()}
            while wait(cut.values(), timeout=1).not_done:  # a kernel may be about to start
                for kernel in kernels:
                    with suppress(psutil.NoSuchProcess):
                        psutil.Process(kernel).kill()
            for stem in cut:
                results[stem].status, results[stem].error = "stopped", ""
            raise


def _run_one(
    book: nbformat.NotebookNode, result: LabResult, bar: Bar, out: Path, **options
) -> None:
    """Execute one lab in a temporary folder; record the outcome in `result`."""
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=out, ignore_cleanup_errors=True) as folder:
            place = Path(folder).absolute()
            failure, result.peak_bytes = execute(book, place, bar.at, **options)
        result.status = "failed" if failure else "ok"
        result.error = failure and f"in '{bar.heading}': {failure}"
    finally:
        result.seconds = round(time.perf_counter() - start, 1)
        _read_outputs(book, result)
        bar.end(result.status)


def _solved(root: Path, stem: str) -> nbformat.NotebookNode:
    path = root / "solutions" / f"{stem}.ipynb"
    if not path.is_file():
        raise LabError(f"solutions/{path.name} is not built yet: run 'labkit build'")
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise LabError(f"solutions/{path.name} is not a notebook: {error}") from None


def _read_outputs(book: nbformat.NotebookNode, result: LabResult) -> None:
    """Fill in the results that the lab published, and the exercises that did not pass."""
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
        result.error = f"not passed: {', '.join(not_passed)}" if exercises else "it shows no score"


def print_summary(results: list[LabResult], console: Console) -> None:
    """Print the table of the book's first page, and the errors below it."""
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
