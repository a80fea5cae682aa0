"""What `labkit grade` shows: progress with rate and time left, and a table at the end."""

import contextlib
from collections import Counter

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from labkit.contract import BROKEN, ODD
from labkit.grading import sandbox
from labkit.grading.after.summary import by_lab, whole
from labkit.grading.collect import FEW, listed


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


def summary(rows, out, console, notes=(), now=()):
    """The points, what could not be graded, what has to be looked at, and where the pages are.

    `now` are the rows of this call, which are listed when they are few; `notes` are more lines.
    """
    states = Counter(row["status"] for row in rows)
    told = ", ".join(f"{n} {status}" for status, n in states.most_common())
    lines = [f"{len(rows)} submissions: {told}"]
    if len(rows) > FEW:
        labs = [lab for lab in by_lab(map(whole, rows)) if lab["median"] is not None]
        lines += [f"  {g['lab']}: median {g['median']:.0f}%, {g['full']} with all" for g in labs]
    graded = [row for row in (rows if len(rows) <= FEW else now) if row["status"] == "graded"]
    if len(graded) <= FEW:
        lines += [f"  {r['submission']}: {r['earned']} of {r['possible']} points" for r in graded]
    for row in rows:
        if row["status"] != "graded":
            lines.append(f"  {row['submission']}: {row['status']}, {row.get('reason', '')}")
    if late := [row["submission"] for row in rows if row.get("late")]:
        lines.append(f"  late: {listed(late)}")
    exercises = (exercise for row in rows for exercise in row["exercises"])
    odd = (e for e in exercises if e["message"].startswith((BROKEN, ODD)))
    broken = Counter((e["id"], e["message"]) for e in odd)
    lines += [f"  LOOK, {n} times in {id}: {message}" for (id, message), n in broken.items()]
    lines += [f"  {line}" for line in notes]
    lines.append(f"pages: {out / 'index.html'}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
