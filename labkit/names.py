"""Names in a cell's source: which ones the cell binds and uses, and which cells define them."""

import ast
import re
import symtable
from collections.abc import Callable, Iterable, Iterator

# magics, shell lines and questions like `sum?`, with continuation lines
MAGIC = re.compile(r"^([ \t]*)(?:[%!?](?:.*\\\n)*.*|[\w.]+\?{1,2}[ ]*)$", re.MULTILINE)
ASSIGNED = re.compile(r"^([ \t]*\w[\w, ]*=[ ]*)[%!](?:.*\\\n)*.*$", re.MULTILINE)  # files = !ls
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # errors of Python's parser
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
OWN_NAMES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def parsed(source: str) -> tuple[str, ast.Module] | None:
    """`(text, tree)` of a cell, with magics and shell lines blanked; None if not Python.

    These regular expressions take linear time; IPython's transformer reads a cell once per magic.
    """
    if source.lstrip().startswith("%%"):
        source = source.lstrip().partition("\n")[2]
    blanked = ASSIGNED.sub(r"\1None", MAGIC.sub(r"\1pass", source))
    for text in dict.fromkeys((source, blanked)):
        try:
            return text, ast.parse(text)
        except UNREADABLE:
            continue
    return None


def statements(cell: str) -> list[ast.stmt]:
    """The statements in a cell; [] if the cell is not Python."""
    found = parsed(cell)
    return found[1].body if found else []


def bound(body: Iterable[ast.stmt]) -> set[str]:
    """Names that statements bind outside their functions and classes."""
    names, waiting = set(), list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, IMPORTS):
            names |= {(part.asname or part.name).partition(".")[0] for part in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, OWN_NAMES):
            waiting += ast.iter_child_nodes(node)
    return names


def symbols(text: str, most: float = float("inf")) -> Iterator[symtable.Symbol]:
    """Yield the global names in source code, at its top level and in its functions.

    ValueError if there are more than `most` pairs of a name and a function, because symtable would
    visit each pair.
    """
    tables, pairs = [symtable.symtable(text, "cell", "exec")], 0
    for table in tables:  # grows during the loop
        tables += table.get_children()
        pairs += len(table.get_children()) * len(table.get_identifiers())
        if pairs > most:
            raise ValueError("too many names times functions")
        yield from (s for s in table.get_symbols() if table is tables[0] or s.is_global())


def reached(names: Iterable[str], makers: dict[str, Iterable], used: Callable) -> set:
    """The makers of `names`, the makers of the names these use (`used(maker)`), and so on."""
    found, seen, waiting = set(), set(), list(names)
    while waiting:
        name = waiting.pop()
        fresh = set(makers.get(name, ())) - found if name not in seen else set()
        seen.add(name)
        found |= fresh
        for maker in fresh:
            waiting += used(maker)
    return found
