"""What `labkit grade` shows: progress with rate and time left, and a table at the end."""

import contextlib
from collections import Counter

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from labkit.grading import sandbox


@contextlib.contextmanager
def progress(console):
    """A function for `grade(progress=…)` that moves a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rate = TextColumn("{task.fields[rate]}")
    with Progress(*columns, rate, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("warming up", total=None, rate="")

        def told(done, total, row):
            speed = bar.tasks[0].speed
            shown = f"{1 / speed:.2f} s each" if speed else ""
            bar.update(task, description="grading", completed=done, total=total, rate=shown)

        yield told


def loud(console):
    """Say that submissions run without a sandbox."""
    console.print(Text(sandbox.UNSAFE, "bold white on red"), soft_wrap=True)


def summary(rows, out, console):
    """A line a status and where the pages are; what could not be graded is named."""
    states = Counter(row["status"] for row in rows)
    told = ", ".join(f"{n} {status}" for status, n in states.most_common())
    console.print(f"{len(rows)} submissions: {told}", markup=False, soft_wrap=True)
    for row in rows:
        if row["status"] != "graded":
            line = f"  {row['submission']}: {row['status']}, {row.get('reason', '')}"
            console.print(line, markup=False, soft_wrap=True)
    console.print(f"pages: {out / 'index.html'}", markup=False, soft_wrap=True)
