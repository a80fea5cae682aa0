"""No gate to fall through: what an experiment uses is there when the exercises it names are.

The solved notebooks are read, not run. For each experiment take the learner who has passed what its
`needs` name and nothing else. Each name that it uses, and each that the functions use that it
mentions, must then have the value that it has when all is solved. So a value may come from a plain
cell, or from an experiment whose own needs are among these. An exercise's function counts as used
wherever it is mentioned: a stub has the name and fails when it is called.
"""

import ast
import builtins
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from labkit.contract import checks_of
from labkit.names import MAGIC

ROOT = Path(__file__).parents[2]
STEMS = sorted(path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py"))
SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
BUILTIN = {*dir(builtins), "get_ipython"}


@dataclass
class Block:
    """Statements that run together: a plain cell's, or those behind one `if lab.experiment(…)`."""

    title: str
    needs: frozenset  # of exercises; "a GPU" too where it waits for one
    body: list

    def __post_init__(self):
        self.events = list(_events(self.body))


def _events(node):
    """("load" | "store" | "del", name) in the order of evaluation; ("def", the node) too."""
    if isinstance(node, list):
        for one in node:
            yield from _events(one)
    elif isinstance(node, SCOPES):
        yield from _events(node.decorator_list + getattr(node, "bases", []))
        yield "def", node
    elif isinstance(
        node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ):
        yield from (("load", name) for name in sorted(_free(node)))
    elif isinstance(node, ast.Name):
        yield {ast.Load: "load", ast.Store: "store", ast.Del: "del"}[type(node.ctx)], node.id
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield "store", alias.asname or alias.name.partition(".")[0]
    elif isinstance(node, ast.ExceptHandler):
        yield from [("store", node.name)] * bool(node.name)
        yield from _events(node.body)
    elif isinstance(node, ast.AST):
        first = ("value", "iter", "context_expr", "test")  # evaluated before what stands left of it
        fields = sorted(ast.iter_fields(node), key=lambda field: field[0] not in first)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield "load", node.target.id
        for _, value in fields:
            yield from _events(value)


def _free(node):
    """Names that a function, class or comprehension takes from outside of itself."""
    inner, bound, used = list(ast.walk(node))[1:], set(), set()
    for one in inner:
        if isinstance(one, ast.arg):
            bound.add(one.arg)
        elif isinstance(one, SCOPES | ast.ExceptHandler):
            bound.add(one.name)
        elif isinstance(one, ast.Name):
            (used if isinstance(one.ctx, ast.Load) else bound).add(one.id)
        elif isinstance(one, ast.Import | ast.ImportFrom):
            bound |= {a.asname or a.name.partition(".")[0] for a in one.names}
    return used - bound


def _asked(statement):
    """The call of lab.experiment or lab.gpu that an `if` statement begins with; else None."""
    call = statement.test if isinstance(statement, ast.If) else None
    if isinstance(call, ast.Call) and ast.unparse(call.func) in ("lab.experiment", "lab.gpu"):
        return call
    return None


def blocks_of(cell):
    """The Blocks of a cell."""
    plain = []
    for statement in ast.parse(MAGIC.sub(r"\1pass", cell)).body:
        if call := _asked(statement):
            yield Block(_title(plain), frozenset(), plain)
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            needs = set(ast.literal_eval(given["needs"])) if "needs" in given else set()
            needs |= {"a GPU"} if call.func.attr == "gpu" else set()
            yield Block(ast.literal_eval(call.args[0]), frozenset(needs), statement.body)
            plain = statement.orelse
        else:
            plain.append(statement)
    yield Block(_title(plain), frozenset(), plain)


def _title(body):
    return f"the cell that begins `{ast.unparse(body[0]).partition(chr(10))[0]}`" if body else ""


def problems(cells, exercises):
    """What is wrong in a notebook's code cells, a list of lines; `exercises` maps names to ids."""
    found, values, functions = [], {}, {}  # values: name -> (needs, where) of its last binding
    for cell in cells:
        if cell.lstrip().startswith("check."):
            if len(ast.parse(cell).body) > 1:
                found.append(f"`{cell}`: a check that fails stops its cell, and more stands in it")
            continue
        for block in blocks_of(cell):
            own = set()
            for kind, what in block.events:
                name = what.name if kind == "def" else what
                if kind == "load" and name not in own:
                    found += _missing(name, block, values, functions, exercises, {name})
                elif kind == "load":
                    found += _deferred(name, block, values, functions, exercises, {name})
                elif kind == "del":
                    own.discard(name)
                    values[name] = (frozenset({f"a name that {block.title} deletes"}), block.title)
                else:
                    own.add(name)
                    functions[name] = sorted(_free(what)) if kind == "def" else []
                    if kind == "store" and name in exercises:
                        found.append(f"{block.title} overwrites {name}, an exercise")
            values |= {name: (block.needs, block.title) for name in own}
    return list(dict.fromkeys(found))


def _missing(name, block, values, functions, exercises, seen):
    """What is wrong with a use of `name`, which the block itself has not made."""
    if name in BUILTIN:
        return []
    if name in exercises:
        wanted = {exercises[name]}
    elif name in values:
        wanted = values[name][0]
    else:
        return [f"{block.title}: nothing before it defines {name}"]
    if lacking := sorted(wanted - block.needs):
        return [f"{block.title}: uses {name}, which waits for {', '.join(lacking)}"]
    return _deferred(name, block, values, functions, exercises, seen)


def _deferred(name, block, values, functions, exercises, seen):
    """The same for what the function `name` uses when it is called."""
    found, made = [], {what for kind, what in block.events if kind == "store"}
    made |= {what.name for kind, what in block.events if kind == "def"}
    for inner in functions.get(name, []):
        if inner not in seen:
            seen.add(inner)
            look = _deferred if inner in made else _missing
            found += look(inner, block, values, functions, exercises, seen)
    return found


def read(stem):
    """`(cells, {name: id})` of a solved lab."""
    checks = checks_of(importlib.import_module(f"labkit.checks.lab{stem[:2]}"))
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
    assert len(cells) > 30 and len(exercises) > 5
    assert problems(cells, exercises) == []


@pytest.mark.parametrize("stem", STEMS)
def test_the_cell_of_an_exercise_holds_nothing_else(stem):
    cells, exercises = read(stem)
    for cell in cells:
        body = ast.parse(MAGIC.sub(r"\1pass", cell)).body
        names = {getattr(node, "name", ast.unparse(node)) for node in body}
        assert not names & exercises.keys() or names <= exercises.keys(), cell


HEAD = ["import labkit", "lab, check = labkit.start('07_x')", "def mine(x):\n    return x"]


def behind(title, needs, *lines):
    """The cell of an experiment."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"if lab.experiment({title!r}, 1, needs={needs}):\n{body}"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["y = x"], "nothing before it defines x"),
        (["y = mine(1)"], "`y = mine(1)`: uses mine, which waits for 7.1"),
        ([behind("A", [], "y = mine(1)")], "A: uses mine, which waits for 7.1"),
        (
            ["def f():\n    return mine(1)", behind("A", [], "y = [z for z in map(f, [])]")],
            "A: uses mine",
        ),
        ([behind("A", ["7.1"], "x = 1"), behind("B", ["7.2"], "print(x)")], "B: uses x, which"),
        ([behind("A", ["7.1"], "x = 1"), "print(x)"], "`print(x)`: uses x, which waits for 7.1"),
        (
            [behind("A", ["7.1"], "x = 1"), "def f():\n    return x", behind("B", [], "y = f()")],
            "B: uses x, which waits for 7.1",
        ),
        (
            ["x = 0", behind("A", ["7.1"], "x = 1"), behind("B", [], "print(x)")],
            "B: uses x, which waits for 7.1",  # it would be another x
        ),
        ([behind("A", ["7.1"], "x = x + 1")], "A: nothing before it defines x"),
        ([behind("A", [], "y = lambda: mine")], "A: uses mine"),
        (["if lab.gpu('A', 'b'):\n    x = 1", "print(x)"], "which waits for a GPU"),
        (["x = 1", behind("A", ["7.1"], "del x"), behind("B", ["7.1"], "x")], "that A deletes"),
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
        [behind("A", ["7.1"], "x = 1"), behind("B", ["7.1", "7.2"], "x += 1")],
        ["%matplotlib inline\nx = 1", behind("A", [], "z = [x for y in [x] if y]")],
        [behind("A", [], "for x in [1]:", "    print(x)", "print(f'{x}')")],
        [behind("A", [], "try:", "    x = 1", "except OSError as e:", "    print(e)", "x")],
        ["check.works(mine)"],
    ],
)
def test_what_stands_open_is_no_gate(cells):
    assert problems([*HEAD, *cells], {"mine": "7.1", "other": "7.2"}) == []
