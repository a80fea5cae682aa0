"""The source code of the course's own solutions, which replace open exercises."""

import ast
import base64
import builtins
import importlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

from labkit import contract
from labkit.names import DEFINITIONS, IMPORTS, parsed, reached, statements, symbols


def reference(stem: str, id: str) -> str | None:
    """Self-contained source code of the solved objects in exercise `id` of lab `stem`.

    It includes the imports and functions that the objects use. None for a quiz, for an unknown id,
    or without solutions.
    """
    names = names_of(stem, id)
    cells = solved_cells(stem) or []
    if not names or set(names) - set().union(*map(defined, cells)):
        return None
    return "\n\n\n".join(needed(cells, names)) + "\n"


def checks(stem: str) -> list[Callable]:
    """The checks of a lab, in order."""
    return contract.checks_of(importlib.import_module(f"labkit.checks.lab{stem[:2]}"))


def names_of(stem: str, id: str) -> list[str]:
    """The names that the check of exercise `id` needs; [] for a quiz or an unknown id."""
    exercises = (check.exercise for check in checks(stem))
    names = next((exercise["names"] for exercise in exercises if exercise["id"] == id), [])
    return [] if names == ["quiz"] else names


def solved_book(stem: str) -> Path | None:
    """The solved notebook in a clone or a wheel; None in a copy without solutions."""
    here = Path(__file__).parent
    paths = (here.parent / "solutions" / f"{stem}.ipynb", here / "_solutions" / f"{stem}.ipynb")
    return next((path for path in paths if path.is_file()), None)


def solved_cells(stem: str) -> list[str] | None:
    """The lab's code cells with solutions and imports, maybe `packed`; None if there are none."""
    if book := solved_book(stem):
        return code_cells(book)
    lent = Path(__file__).parent / "_lent" / f"{stem}.b64"
    if not lent.is_file():
        return None
    return json.loads(zlib.decompress(base64.b64decode(lent.read_bytes())))


def course_cells(stem: str) -> list[str]:
    """All code cells of a lab's student notebook and of its solution, if those files exist."""
    given, solved = Path(__file__).parents[1] / "notebooks" / f"{stem}.ipynb", solved_book(stem)
    books = [book for book in (given, solved) if book and book.is_file()]
    cells = [cell for book in books for cell in code_cells(book, experiments=True)]
    return cells + ([] if solved else solved_cells(stem) or [])


def packed(solved: Path, student: Path) -> bytes:
    """A release's copy of a solved notebook: exercises and code they use, without text or quiz."""
    cells = code_cells(solved)
    pairs = zip(cells, code_cells(student), strict=True)
    names = set().union(*(defined(mine) for mine, theirs in pairs if mine != theirs)) - {"quiz"}
    text = json.dumps(needed(cells, sorted(names)))
    return base64.encodebytes(zlib.compress(text.encode(), 9))


def code_cells(book: Path, experiments: bool = False) -> list[str]:
    """The sources of a notebook's code cells, with or without experiments."""
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    if not experiments:
        cells = [cell for cell in cells if "experiment" not in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in cells]


def needed(cells: list[str], names: list[str]) -> list[str]:
    """The imports and cells that define `names` and everything they use, in order."""
    homes = {name: [i] for i, cell in reversed(list(enumerate(cells))) for name in defined(cell)}
    chosen = sorted(reached(names, homes, lambda i: _used(cells[i])))
    wanted = set(names).union(*(_used(cells[i]) for i in chosen)) - homes.keys()
    head = [line for name, line in _imported(cells).items() if name in wanted]
    return (["\n".join(head)] if head else []) + [cells[i] for i in chosen]


def imports(cells: list[str], cell: str) -> list[str]:
    """The statements in `cells` that import the names that `cell` uses."""
    used = _used(cell)
    return [line for name, line in _imported(cells).items() if name in used]


def defined(cell: str) -> set[str]:
    """The functions and classes that a cell defines."""
    return {node.name for node in statements(cell) if isinstance(node, DEFINITIONS)}


def _imported(cells: list[str]) -> dict[str, str]:
    """{name: the last statement that imports it} at the top level of the cells."""
    found = {}
    for node in (node for cell in cells for node in statements(cell)):
        for alias in node.names if isinstance(node, IMPORTS) else ():
            name = alias.asname or alias.name.partition(".")[0]
            one = {"module": node.module, "level": 0} if isinstance(node, ast.ImportFrom) else {}
            found[name] = ast.unparse(type(node)(names=[alias], **one))
    return found


def _used(cell: str) -> set[str]:
    """The global names that a cell uses, except built-ins."""
    text = (parsed(cell) or ("",))[0]
    return {symbol.get_name() for symbol in symbols(text)} - set(dir(builtins))
