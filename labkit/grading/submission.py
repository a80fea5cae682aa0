"""A submission as it arrives: untrusted bytes that may or may not be a notebook."""

import ast
import json
import re
from dataclasses import dataclass, field

from labkit.grading.contract import WITHHELD

START = re.compile(r"labkit\s*\.\s*start\(\s*[\"'](\d\d_\w+)[\"']")
DEFINITION = re.compile(
    r"^(?:async +)?(?:def|class) +(\w+)|^(\w+) *(?::[^=\n]*)?=(?!=)", re.MULTILINE
)
REVEAL = re.compile(r"\.\s*reveal\(\s*(?:id\s*=\s*)?[\"'](.+?)[\"']")
OWN_NAMES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
CELLS = 20_000
PARSED = 200_000  # characters in one cell that are parsed, and twice as many in all
CODE = 8_000_000  # characters of code in all; the course's own notebooks have 12,000 to 23,000


class Unreadable(Exception):
    """This is no notebook that can be graded; the message is the reason."""


@dataclass
class Submission:
    """The code cells of a notebook in their order."""

    cells: list  # sources
    experiments: set = field(default_factory=set)  # indices of cells tagged as experiments
    started: set = field(default_factory=set)  # stems of labs that it starts
    in_vain: set = field(default_factory=set)  # indices of cells whose `reveal` had nothing to show
    elsewhere: set = field(default_factory=set)  # names that cells which are not code define

    def __post_init__(self):
        left, self.defines, self._reveals = 2 * PARSED, [], set()
        for i, source in enumerate(self.cells):
            short = len(source) <= min(left, PARSED)
            left -= len(source) if short else 0
            tree = _tree(source) if short else None
            if tree:
                self.defines.append(_defined(tree))
                shown = _revealed(tree)
            else:  # no Python, or too long to be parsed
                found = DEFINITION.findall(source)
                self.defines.append({name for pair in found for name in pair if name})
                shown = set(REVEAL.findall(source))
            self._reveals |= shown if i not in self.in_vain else set()

    def cell_of(self, name):
        """Index of the last cell that defines `name`, or None."""
        return max((i for i, names in enumerate(self.defines) if name in names), default=None)

    def names(self):
        """All names that its cells define."""
        return set().union(*self.defines) if self.defines else set()

    def revealed(self):
        """The ids of exercises whose solutions it has been shown."""
        return self._reveals


def read(data):
    """The submission in the bytes of a notebook file; Unreadable with the reason."""
    if not data:
        raise Unreadable("the file is empty")
    try:
        book = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Unreadable("the file is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not a notebook: no valid JSON ({_brief(error)})") from None
    if not isinstance(book, dict):
        raise Unreadable("not a notebook: JSON without cells")
    if "worksheets" in book or book.get("nbformat") in (1, 2, 3):
        raise Unreadable(
            "an old notebook (nbformat below 4): open it in Jupyter and save it once more"
        )
    cells = book.get("cells")
    if not isinstance(cells, list):
        raise Unreadable("not a notebook: JSON without a list of cells")
    if len(cells) > CELLS:
        raise Unreadable(f"{len(cells):,} cells, at most {CELLS:,} are read")
    return _submission(cells)


def _submission(cells):
    sources, experiments, started, in_vain, elsewhere = [], set(), set(), set(), set()
    for cell in cells:
        if not isinstance(cell, dict):
            continue
        source = _source(cell)
        if cell.get("cell_type") != "code":
            elsewhere |= {name for pair in DEFINITION.findall(source[:PARSED]) for name in pair}
            continue
        started |= set(START.findall(source))
        metadata = cell.get("metadata")
        tags = metadata.get("tags") if isinstance(metadata, dict) else None
        if isinstance(tags, list) and "experiment" in tags:
            experiments.add(len(sources))
        if WITHHELD in str(cell.get("outputs"))[:PARSED]:
            in_vain.add(len(sources))
        sources.append(source)
    if not any(source.strip() for source in sources):
        raise Unreadable("the notebook has no code")
    if (size := sum(map(len, sources))) > CODE:
        raise Unreadable(f"{size:,} characters of code, at most {CODE:,} are run")
    return Submission(sources, experiments, started, in_vain, elsewhere)


def _source(cell):
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def _brief(error):
    return str(error).partition("\n")[0][:80]


def _tree(source):
    """The parsed cell, magics and shell lines blanked; None when it is no Python."""
    if source.lstrip().startswith("%%"):
        source = source.lstrip().partition("\n")[2]
    lines = ["pass" if line.startswith(("%", "!", "?")) else line for line in source.split("\n")]
    try:
        return ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defined(tree):
    """Names that the cell binds outside of its functions and classes."""
    names, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(part.asname or part.name).partition(".")[0] for part in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, OWN_NAMES):
            waiting += ast.iter_child_nodes(node)
    return names


def _revealed(tree):
    """Ids in calls of `lab.reveal("…")`, wherever they stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            values = [*node.args, *(k.value for k in node.keywords)]
            texts = [v.value for v in values if isinstance(v, ast.Constant)]
            if node.func.attr == "reveal" and texts:
                found.add(str(texts[0]))
    return found
