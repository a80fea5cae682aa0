"""No gate to fall through: what an experiment uses is there when the exercises it names are.

The solved notebooks are read, not run. For each experiment take the learner who has passed what its
`needs` name and nothing else. Each name that it uses, and each that the functions use that it
mentions, must then have the value that it has when all is solved. So a value may come from a plain
cell, or from an experiment whose own needs are among these. An exercise's function counts as used
wherever it is mentioned: a stub has the name and fails when it is called.
"""

import ast
import builtins
import copy
import json
from typing import NamedTuple

import pytest
from answers import ROOT, STEMS

from labkit import reference
from labkit.names import DEFINITIONS, bound, statements, symbols

BUILTIN = {*dir(builtins), "get_ipython"}


class Block(NamedTuple):
    """Statements that run together: a plain cell's, or those behind one `if lab.experiment(…)`."""

    title: str
    needs: frozenset  # of exercises; "a GPU" too where it waits for one
    body: list


def blocks_of(cell):
    """The Blocks of a cell."""
    plain = []
    for statement in statements(cell):
        call = statement.test if isinstance(statement, ast.If) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("lab.experiment", "lab.gpu"):
            yield _plain(plain)
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            needs = set(ast.literal_eval(given["needs"])) if "needs" in given else set()
            needs |= {"a GPU"} if call.func.attr == "gpu" else set()
            yield Block(ast.literal_eval(call.args[0]), frozenset(needs), statement.body)
            plain = statement.orelse
        else:
            plain.append(statement)
    yield _plain(plain)


def _plain(body):
    first = ast.unparse(body[0]).partition("\n")[0] if body else ""
    return Block(f"the cell that begins `{first}`", frozenset(), body)


def _steps(body):
    """The statements in the order in which they run: the head of a loop, then what is in it."""
    for node in body:
        head = copy.copy(node)
        inner = [] if isinstance(node, DEFINITIONS) else getattr(node, "body", [])
        if inner:
            head.body, head.orelse = [ast.Pass()], []
        yield head
        yield from _steps([*inner, *(getattr(node, "orelse", []) if inner else [])])


def _used(node):
    """The names that a statement takes from outside of its own functions."""
    used = {s.get_name() for s in symbols(ast.unparse(node)) if s.is_referenced()}
    caught = {part.name for part in ast.walk(node) if isinstance(part, ast.ExceptHandler)}
    changed = isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    return used - caught | ({node.target.id} if changed else set())


def problems(cells, exercises):
    """What is wrong in a notebook's code cells, a list of lines; `exercises` maps names to ids."""
    found, values, functions = [], {}, {}  # values: name -> needs of its last binding
    for cell in cells:
        if cell.lstrip().startswith("check."):
            if len(statements(cell)) > 1:
                found.append(f"`{cell}`: a check that fails stops its cell, and more stands in it")
            continue
        for block in blocks_of(cell):
            own = set()
            for node in _steps(block.body):
                if isinstance(node, DEFINITIONS):
                    functions[node.name] = _used(node)
                else:
                    for name in sorted(_used(node)):
                        found += _faults(name, block, own, values, functions, exercises)
                    functions |= dict.fromkeys(bound([node]), ())
                    taken = bound([node]) & exercises.keys()
                    found += [f"{block.title} overwrites {name}, an exercise" for name in taken]
                own |= bound([node])
            values |= dict.fromkeys(own, block.needs)
    return list(dict.fromkeys(found))


def _faults(name, block, own, values, functions, exercises):
    """What is wrong with a use of `name`, and of what a function of this name uses."""
    found, seen, waiting = [], set(BUILTIN), [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        needs = {exercises[name]} if name in exercises else values.get(name)
        if name not in own and needs is None:
            found.append(f"{block.title}: nothing before it defines {name}")
        elif name not in own and needs - block.needs:
            lacking = ", ".join(sorted(needs - block.needs))
            found.append(f"{block.title}: uses {name}, which waits for {lacking}")
        else:
            waiting += functions.get(name, ())
    return found


def read(stem):
    """`(cells, {name: id})` of a solved lab."""
    checks = reference.checks(stem)
    exercises = {}
    for check in checks:
        for name in check.exercise["names"]:
            exercises.setdefault(name, check.exercise["id"])
    book = json.loads((ROOT / "solutions" / f"{stem}.ipynb").read_text("utf-8"))
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    return cells, exercises


@pytest.mark.parametrize("stem", STEMS)
def test_no_experiment_falls_through_an_open_exercise(stem):
    cells, exercises = read(stem)
    assert len(cells) > len(exercises) > 0, "the notebook was not read"
    assert problems(cells, exercises) == []


@pytest.mark.parametrize("stem", STEMS)
def test_the_cell_of_an_exercise_holds_nothing_else(stem):
    cells, exercises = read(stem)
    for cell in cells:
        names = {getattr(node, "name", ast.unparse(node)) for node in statements(cell)}
        assert not names & exercises.keys() or names <= exercises.keys(), cell


HEAD = ["import labkit", "lab, check = labkit.start('07_x')", "def mine(x):\n    return x"]


def behind(title, needs, *lines):
    """The cell of an experiment."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"if lab.experiment({title!r}, 1, needs={needs}):\n{body}"


X = behind("A", ["7.1"], "x = 1")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["y = mine(1)"], "`y = mine(1)`: uses mine, which waits for 7.1"),
        ([behind("A", [], "y = lambda: mine")], "A: uses mine"),
        (
            ["def f():\n    return mine(1)", behind("A", [], "y = [z for z in map(f, [])]")],
            "A: uses",
        ),
        ([X, behind("B", ["7.2"], "print(x)")], "B: uses x, which waits for 7.1"),
        ([X, behind("B", [], "for y in [1]:", "    x += y")], "B: uses x, which waits for 7.1"),
        ([X, "def f():\n    return x", behind("B", [], "y = f()")], "B: uses x, which waits"),
        (
            ["x = 0", X, behind("B", [], "print(x)")],
            "B: uses x, which waits",
        ),  # it would be another
        ([behind("A", ["7.1"], "x = x + 1")], "A: nothing before it defines x"),
        (["if lab.gpu('A', 'b'):\n    x = 1", "print(x)"], "which waits for a GPU"),
        (["check.works(mine)\nx = 1"], "more stands in it"),
        ([behind("A", ["7.1"], "mine = 1")], "A overwrites mine"),
    ],
)
def test_a_gate_is_found(cells, said):
    (told,) = problems([*HEAD, *cells], {"mine": "7.1", "other": "7.2"})
    assert said in told


@pytest.mark.parametrize(
    "cells",
    [
        ["def f():\n    return x + mine(1)", behind("A", ["7.1"], "x = 1", "y = f()")],
        [X, behind("B", ["7.1", "7.2"], "x += 1")],
        ["%matplotlib inline\nx = 1", behind("A", [], "z = [x for y in [x] if y]")],
        [behind("A", [], "for x in [1]:", "    y = x", "    print(f'{x + y}')")],
        [behind("A", [], "try:", "    x = 1", "except OSError as e:", "    print(e)", "x")],
        ["check.works(mine)"],
    ],
)
def test_what_stands_open_is_no_gate(cells):
    assert problems([*HEAD, *cells], {"mine": "7.1", "other": "7.2"}) == []
