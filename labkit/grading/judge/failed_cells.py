"""Cells that failed, and what exercises report about them."""

import difflib
import re

from labkit.contract import Verdict

UNDEFINED = re.compile(r"\bname '(\w+)' is not defined")
NAMES = 1000  # of a submission, searched for a misspelled one


class FailedCells:
    """The supervisor's failed cells, `[index, how, why]` each; `names` are those of the checks."""

    def __init__(self, work, names, messages):
        self.work, self.names = work, names
        self.cells = {int(index): (str(how), str(why)) for index, how, why in messages}

    def undefined(self, name: str) -> Verdict:
        """The Verdict of an exercise whose object is missing."""
        message = f"{name} is not defined"
        status, why = self.of_cell(name)
        if why:
            return Verdict(status, 0, f"{message}: {why}")
        if name in self.work.elsewhere:
            message += ": it is in a cell that is not a code cell"
        else:
            others = sorted(self.work.names() - self.names)[:NAMES]
            near = difflib.get_close_matches(name, others, 1, 0.75)
            message += f"; did you mean {near[0]}?" if near else ""
        return Verdict("missing", 0, message)

    def of_cell(self, name: str) -> tuple[str, str]:
        """`(status, what went wrong)` of the cell that defines `name`; both empty if it ran."""
        how, why = self.cells.get(self.work.cell_of(name), ("", ""))
        if how == "raised":
            return "missing", f"its cell raised {why}{self.cause(why)}"
        return how, f"its cell {why.removeprefix('it ')}" if why.startswith("it ") else why

    def cause(self, message: str) -> str:
        """Why the name that `message` reports as undefined is missing, in brackets; or ""."""
        for name in UNDEFINED.findall(message):
            cell = self.work.cell_of(name)
            if cell in self.cells:
                how, why = self.cells[cell]
                reason = f"raised {why}" if how == "raised" else why.removeprefix("it ")
                return f" ({name} should come from code cell {cell + 1}, which {reason})"
            if cell in self.work.experiments:
                return f" ({name} comes from code cell {cell + 1}, an experiment, not run here)"
        return ""

    def troubles(self) -> str:
        """The cells that hung, or that ended their process, as one text."""
        ended = [(i, why) for i, (how, why) in sorted(self.cells.items()) if how != "raised"]
        return "; ".join(f"code cell {i + 1}: {why}" for i, why in ended[:5])
