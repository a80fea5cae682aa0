"""`labkit check`: run a saved notebook's cells here, then each check, as `lab.score()` does."""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from labkit.contract import STANDS
from labkit.course import run
from labkit.errors import LabError

START = re.compile(r"labkit\s*\.\s*start\(\s*[\"'](\d\d\w*)[\"']")
CLOSING = "from labkit.lab import closing\n\nclosing({stem!r})"


@dataclass
class Checked:
    """The result for a notebook; each exercise is a dict as `lab.score()` shows it."""

    notebook: str
    lab: str
    score: str  # as text
    exercises: list[dict]
    errors: list[str]  # of cells, except failed checks

    @property
    def passed(self) -> bool:
        """Whether no exercise has failed or is open; revealed exercises are allowed."""
        return bool(self.exercises) and all(e["status"] in STANDS for e in self.exercises)


def check(path: Path, seconds: float) -> Checked:
    """Run a notebook's cells except experiments, then all checks of its lab.

    Each cell may take `seconds`. Cells run as the calling user, without a sandbox. LabError for a
    file that is not a lab's notebook, or if the kernel dies.
    """
    book, code, stems = _read(path)
    if not stems:
        raise LabError(f'{path} belongs to no lab: its cell labkit.start("02_lora") is missing')
    book.cells = [*code, nbformat.v4.new_code_cell(CLOSING.format(stem=stems[0]))]
    how = {"allow_errors": True, "timeout": seconds, "interrupt_on_timeout": True}
    failure, _ = run.execute(book, path.absolute().parent, lambda index: None, **how)
    if failure:
        raise LabError(f"{path}: {failure}")
    outputs = [(i, out) for i, cell in enumerate(book.cells, 1) for out in cell.outputs]
    score = [out["data"] for _, out in outputs if run.SCORE in out.get("data", ())]
    errors = [
        f"code cell {i}: {out.ename}: {out.evalue}"
        for i, out in outputs
        if out.output_type == "error" and out.ename != "CheckFailed"
    ]
    if not score:
        raise LabError(f"{path}: it printed no score; {'; '.join(errors)}")
    shown = score[-1]
    return Checked(str(path), stems[0], shown["text/plain"], shown[run.SCORE]["exercises"], errors)


def _read(path):
    """`(notebook, its code cells except experiments, the labs it starts)`; LabError for others."""
    try:
        book = nbformat.read(path, as_version=4)
        cells = [cell for cell in book.cells if cell.cell_type == "code"]
        code = [c for c in cells if "experiment" not in c.metadata.get("tags", ())]
        stems = [found[1] for cell in cells if (found := START.search(cell.source))]
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError, KeyError, nbformat.ValidationError) as error:
        why = str(error).strip().partition("\n")[0]
        raise LabError(f"{path} is not a notebook: {why[:120]}") from None
    return book, code, stems


def lines(checked: Checked) -> list[str]:
    """The score as `lab.score()` shows it, the checks' messages, and failed cells."""
    messages = [f"{e['id']} {e['name']}: {e['message']}" for e in checked.exercises if e["message"]]
    head = f"{checked.notebook} ({checked.lab})"
    return [head, *checked.score.splitlines(), *messages, *(f"! {line}" for line in checked.errors)]
