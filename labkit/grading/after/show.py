"""What `labkit grade` shows: progress with rate and time left, and a table at the end."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from labkit.contract import BROKEN, ODD
from labkit.grading.after.summary import by_lab
from labkit.grading.collect import FEW, listed
from labkit.grading.row import Row


@contextlib.contextmanager
def progress(console: Console, now: list[Row]) -> Iterator[Callable]:
    """A function for `grade(progress=…)` that moves a bar and collects the rows in `now`.

    Without a terminal, as under `nohup`, it prints a line for each tenth of the class.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rate = TextColumn("{task.fields[rate]}")
    with Progress(*columns, rate, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("warming up", total=None, rate="")

        def report(done, total, row):
            now.append(row)
            speed = bar.tasks[0].speed
            shown = f"{1 / speed:.2f} s each" if speed else ""
            bar.update(task, description="grading", completed=done, total=total, rate=shown)
            tenth = done * 10 // total > (done - 1) * 10 // total
            if tenth and total > FEW and not console.is_terminal:
                console.print(f"{done} of {total} {shown}".rstrip(), highlight=False)

        yield report


def summary(
    rows: list[Row], out: Path, console: Console, notes: Sequence[str] = (), now: list[Row] = ()
) -> None:
    """Print the points, failures, warnings, and where the pages are.

    `now` are the rows of this call, listed if there are few; `notes` are more lines.
    """
    states = Counter(row.status for row in rows)
    counts = ", ".join(f"{n} {status}" for status, n in states.most_common())
    lines = [f"{len(rows)} submissions: {counts}"]
    if len(rows) > FEW:
        labs = [lab for lab in by_lab(rows) if lab["median"] is not None]
        lines += [
            f"  {g['lab']}: median {g['median']:.0f}%, {g['full']} with all points" for g in labs
        ]
    graded = [row for row in (rows if len(rows) <= FEW else now) if row.status == "graded"]
    if len(graded) <= FEW:
        lines += [f"  {row.submission}: {row.earned} of {row.possible} points" for row in graded]
    apart = (row for row in rows if row.status != "graded")
    lines += [f"  {row.submission}: {row.status}, {row.reason}" for row in apart]
    if late := [row.submission for row in rows if row.late]:
        lines.append(f"  late: {listed(late)}")
    exercises = (exercise for row in rows for exercise in row.exercises)
    odd = Counter((e.id, e.message) for e in exercises if e.message.startswith((BROKEN, ODD)))
    lines += [f"  LOOK, {n} times in {id}: {message}" for (id, message), n in odd.items()]
    lines += [f"  {line}" for line in notes]
    for line in [*lines, f"pages: {out / 'index.html'}"]:
        console.print(line, markup=False, soft_wrap=True)
