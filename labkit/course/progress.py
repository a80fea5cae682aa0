"""Live progress of a run: one bar per lab on a terminal, one line per heading elsewhere."""

import ast
import re

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)


def bars(console: Console) -> Progress:
    """The display of the bars; off if the console is not a terminal."""
    return Progress(
        TextColumn("{task.fields[lab]}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


class Bar:
    """The progress of one lab: which cell, under which heading."""

    def __init__(self, progress: Progress, lab: str, cells: list):
        self.progress, self.lab = progress, lab
        self.headings = nearest_headings(cells, lab)
        self.seconds = [experiment_seconds(cell.source) for cell in cells]
        self.heading = ""
        self.task = progress.add_task("", start=False, total=len(cells), lab=lab)

    def at(self, index: int) -> None:
        """Show that cell number `index` is running now."""
        self.progress.start_task(self.task)
        if self.progress.disable and self.headings[index] != self.heading:
            self._say(f"cell {index + 1} of {len(self.seconds)}  {self.headings[index]}")
        self.heading = self.headings[index]
        self.progress.update(self.task, completed=index, description=self.heading)

    def end(self, status: str) -> None:
        """Show how the lab ended."""
        self.progress.stop_task(self.task)
        done = {"completed": len(self.seconds)} if status == "ok" else {}
        self.progress.update(self.task, description=status, **done)
        if self.progress.disable:
            self._say(status)

    def _say(self, text: str) -> None:
        self.progress.console.print(f"{self.lab}  {text}", markup=False, highlight=False)


def nearest_headings(cells: list, first: str) -> list[str]:
    """For each cell, the last markdown heading at or above it, or else `first`."""
    headings, latest = [], first
    for cell in cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"^```.*?^```", "", cell.source, flags=re.MULTILINE | re.DOTALL)
            latest = (re.findall(r"^#+ +(.+)", prose, re.MULTILINE) or [latest])[-1]
        headings.append(latest)
    return headings


def experiment_seconds(source: str) -> float:
    """The seconds that `lab.experiment(title, seconds)` in a cell announces, else 0."""
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        call = next(node for node in calls if ast.unparse(node.func) == "lab.experiment")
        named = [key.value for key in call.keywords if key.arg == "seconds"]
        return float(ast.literal_eval((named or call.args[1:])[0]))
    except (SyntaxError, StopIteration, IndexError, ValueError, TypeError):
        return 0.0  # no such call, or not a plain number
