"""Whether an answer is a learner's own, or the course's solution word for word."""

import ast

from labkit import reference
from labkit.names import DEFINITIONS, UNREADABLE, statements


def is_own(stem: str, name: str, cell: str) -> bool:
    """Whether the source `cell` defines `name` differently from the solution of lab `stem`.

    Comments, docstrings and spaces do not count. False if either can't be read.
    """
    solved = [_code(name, source) for source in reference.solved_cells(stem) or ()]
    mine, wanted = _code(name, cell), next(filter(None, reversed(solved)), None)
    return bool(mine and wanted and mine != wanted)


def _code(name, source):
    """The last definition of `name` in a source, without docstrings; "" without one."""
    found = [n for n in statements(source) if isinstance(n, DEFINITIONS) and n.name == name]
    if not found:
        return ""
    try:
        for node in ast.walk(found[-1]):
            if isinstance(node, DEFINITIONS) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        return ast.unparse(found[-1])
    except UNREADABLE:  # nested too deeply
        return ""
