"""Whether an answer is a learner's own, or the course's solution word for word."""

import ast

from labkit import reference

DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def is_own(stem, name, cell):
    """Whether the source `cell` defines `name` otherwise than the solution of lab `stem` does.

    Comments, docstrings and spaces do not count. False where one of the two cannot be read.
    """
    solved = [_code(name, source) for source in reference.solved_cells(stem) or ()]
    mine, wanted = _code(name, cell), next(filter(None, reversed(solved)), None)
    return bool(mine and wanted and mine != wanted)


def _code(name, source):
    """The last definition of `name` in a source as text without docstrings; "" without one."""
    try:
        body = ast.parse(reference.MAGIC.sub(r"\1pass", source)).body
        found = [node for node in body if isinstance(node, DEFINITIONS) and node.name == name]
        for node in ast.walk(found[-1]) if found else ():
            if isinstance(node, DEFINITIONS) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        return ast.unparse(found[-1]) if found else ""
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
