"""A submission as it arrives: untrusted bytes that may or may not be a notebook."""

import ast
import builtins
import json
import re
from dataclasses import dataclass, field

from labkit.grading.judge import needs
from labkit.names import DEFINITIONS, bound, parsed

START = re.compile(r"labkit\s*\.\s*start\(\s*[\"'](\d\d)_")
DEFINITION = re.compile(r"(?m)^(?:async +)?(?:def|class) +(\w+)|^(\w+) *(?::[^=\n]*)?=(?!=)")
REVEALED = re.compile(r"^◐ ([\w.]{1,20}) is (revealed|lent)\b", re.MULTILINE)  # by `lab.reveal`
RUNS = re.compile(r"\s*%%(?:time|timeit|capture|prun)\b.*\n?")  # their cells run here
CELLS = 20_000
PARSED = 200_000  # characters in one cell that are parsed, and twice as many in all
CODE = 8_000_000  # characters of code in all; the course's own notebooks have 12,000 to 23,000


class Unreadable(Exception):
    """The file is not a notebook that can be graded; the message says why."""


@dataclass
class Submission:
    """The code cells of a notebook in their order."""

    cells: list  # sources
    experiments: set = field(default_factory=set)  # indices of cells tagged as experiments
    started: set = field(default_factory=set)  # numbers of labs that it starts, such as "02"
    silent: set = field(default_factory=set)  # indices of cells that may or may not have run
    shown: set = field(default_factory=set)  # ids of solutions shown in outputs
    lent: set = field(default_factory=set)  # ids lent unseen, according to outputs
    elsewhere: set = field(default_factory=set)  # names that other cells define

    def __post_init__(self):
        left, self.defines = 2 * PARSED, []
        self.asked = {}  # id -> the cell that asks for its solution, if outputs don't show more
        self._needs = []  # `needs.of_cell` of each cell; None if not Python
        for i, source in enumerate(self.cells):
            short = len(source) <= min(left, PARSED)
            left -= len(source) if short else 0
            code = parsed(source) if short else None
            self._needs.append(needs.of_cell(*code) if code else None)
            if code is None:  # no Python, or too long to be parsed
                found = DEFINITION.findall(source)
                self.defines.append({name for pair in found for name in pair if name})
                continue
            body = code[1].body
            self.defines.append(bound(body))
            if i in self.silent and (RUNS.match(source) or not source.lstrip().startswith("%%")):
                why = f"code cell {i + 1} reveals the solution; if it showed none, remove the call"
                for id in _calls(body):
                    self.asked.setdefault(id, why)

    def cell_of(self, name: str) -> int | None:
        """Index of the last cell that defines `name`, or None."""
        return max((i for i, names in enumerate(self.defines) if name in names), default=None)

    def needed(self, names: set[str]) -> set[int]:
        """Indices of the cells on which `names` may depend."""
        return needs.cells_for(names, self._needs)

    def names(self) -> set[str]:
        """All names that its cells define."""
        return set().union(*self.defines) if self.defines else set()

    def taken_below(self, index: int) -> set[str]:
        """Names, including built-ins, that exist at cell `index` and that later cells rebind."""
        before = set().union(dir(builtins), *self.defines[: index + 1])
        later = range(index + 1, len(self.cells))
        return before & set().union(*(self.defines[i] for i in later if i not in self.experiments))


def read(data: bytes) -> Submission:
    """The submission in the bytes of a notebook file; Unreadable with the reason."""
    if not data:
        raise Unreadable("the file is empty")
    try:
        book = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Unreadable("the file is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        why = str(error).partition("\n")[0][:80]
        raise Unreadable(f"not a notebook: it is not valid JSON ({why})") from None
    if not isinstance(book, dict):
        raise Unreadable("not a notebook: JSON without cells")
    if "worksheets" in book or book.get("nbformat") in (1, 2, 3):
        fix = "open it in Jupyter and save it again"
        raise Unreadable(f"an old notebook (nbformat below 4): {fix}")
    cells = book.get("cells")
    if not isinstance(cells, list):
        raise Unreadable("not a notebook: JSON without a list of cells")
    if len(cells) > CELLS:
        raise Unreadable(f"{len(cells):,} cells; the limit is {CELLS:,}")
    return _submission(cells)


def _submission(cells):
    cells = [cell for cell in cells if isinstance(cell, dict)]
    code = [cell for cell in cells if cell.get("cell_type") == "code"]
    other = [cell for cell in cells if cell.get("cell_type") != "code"]
    texts = [_text(cell.get("source"))[:PARSED] for cell in other]
    sources = [_text(cell.get("source")) for cell in code]
    if not any(source.strip() for source in sources):
        raise Unreadable("the notebook has no code")
    if (size := sum(map(len, sources))) > CODE:
        raise Unreadable(f"{size:,} characters of code; the limit is {CODE:,}")
    printed = (text for cell in code for text in _printed(cell))
    revealed = [found for text in printed for found in REVEALED.findall(text)]
    return Submission(
        sources,
        experiments={i for i, cell in enumerate(code) if "experiment" in _tags(cell)},
        started=set().union(*(START.findall(source) for source in sources)),
        silent=_silent(code),
        shown={id for id, how in revealed if how == "revealed"},
        lent={id for id, how in revealed if how == "lent"},
        elsewhere={n for text in texts for pair in DEFINITION.findall(text) for n in pair},
    )


def _tags(cell):
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return tags if isinstance(tags, list) else []


def _silent(code):
    """Indices of cells without outputs that may have run, by execution counts."""
    counted = any(isinstance(cell.get("execution_count"), int) for cell in code)
    empty = [i for i, cell in enumerate(code) if not cell.get("outputs")]
    return {i for i in empty if not counted or code[i].get("execution_count") is not None}


def _printed(cell):
    outputs = cell.get("outputs")
    for output in outputs if isinstance(outputs, list) else ():
        if isinstance(output, dict):
            data = output.get("data")
            plain = data.get("text/plain") if isinstance(data, dict) else None
            yield from (_text(found) for found in (output.get("text"), plain) if found)


def _text(found):
    if isinstance(found, list):
        found = "".join(line for line in found if isinstance(line, str))
    return found if isinstance(found, str) else ""


def _calls(body):
    """Yield the ids in calls of `lab.reveal("…")` that run with the cell, not in functions."""
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (*DEFINITIONS, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
            waiting += node.body if node.test.value else node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr == "reveal":
            values = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "id")]
            yield from (v.value for v in values if isinstance(getattr(v, "value", None), str))
