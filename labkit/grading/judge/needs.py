"""The cells that an exercise may depend on: those that define it, what they use, and so on."""

import ast
from dataclasses import dataclass, field

from labkit.names import UNREADABLE, reached, symbols

MOST = 1_000_000  # names times functions of a cell


@dataclass
class Needs:
    """Global names of a cell: those that the cell binds or changes, imports, calls, and uses."""

    made: set
    imported: set = field(default_factory=set)
    called: set = field(default_factory=set)  # `x` in the line `x.add(1)`
    used: set = field(default_factory=set)


def cells_for(names: set[str], cells: list[Needs | None]) -> set[int]:
    """Indices of the cells that define or change `names`, or what such cells use, and so on.

    `cells` are the results of `of_cell`. Cells with None are always included.
    """
    unknown, known = {i for i, needs in enumerate(cells) if needs is None}, set()
    makers = {}  # name: indices of the cells that define or change it
    for i, needs in enumerate(cells):
        if needs:  # only the first import of a name, and no calls on modules
            new = needs.imported - known
            known |= new
            for name in needs.made | new | (needs.called - known):
                makers.setdefault(name, []).append(i)
    return unknown | reached(names, makers, lambda i: cells[i].used)


def of_cell(source: str, tree: ast.Module) -> Needs | None:
    """The Needs of a cell; None if unknown."""
    needs = Needs(_changed(tree), called=_called(tree))
    try:
        for symbol in symbols(source, MOST):
            name = symbol.get_name()
            if symbol.is_imported():
                needs.imported.add(name)
            elif symbol.is_assigned():
                needs.made.add(name)
            if symbol.is_referenced():
                needs.used.add(name)
    except UNREADABLE:
        return None
    return needs


def _changed(tree):
    """The names whose objects a cell changes: `x` in `x.y = 1` and in `x[0] = 1`."""
    places = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Subscript)]
    return {_root(place) for place in places if isinstance(place.ctx, ast.Store)} - {None}


def _called(tree):
    """The names whose methods lines of a cell call: `x` in `x.add(1)` and in `x.y.add(1)`."""
    lines = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    calls = [line.func for line in lines if isinstance(line, ast.Call)]
    return {_root(call) for call in calls if isinstance(call, ast.Attribute)} - {None}


def _root(place):
    """The name at the start of an expression like `x.y[0]`; None without one."""
    while isinstance(place, ast.Attribute | ast.Subscript):
        place = place.value
    return place.id if isinstance(place, ast.Name) else None
