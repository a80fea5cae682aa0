"""Make a class of notebooks of one lab, each a different mixture of the answers in tests/labs.

    python benchmarks/classroom.py 02_lora --n 500 --copies 10 --out build/class

Each exercise of a submission has a right answer (written differently than in the course) or a wrong
answer, or is left open. A copy is another submission with different names and comments, and with
methods and statements in a different order.
"""

import argparse
import ast
import functools
import importlib
import json
import random
import sys
import types
from pathlib import Path

from labkit import reference
from labkit.names import DEFINITIONS

ROOT = Path(__file__).parents[1]
WORDS = ("as before", "see the hint above", "shapes are right here", "why so", "not in place")


@functools.cache
def answers(stem, kind="RIGHT"):
    """`{exercise id: [source]}`: the answers of a list that stand alone as functions or classes."""
    sys.path.insert(0, str(ROOT / "tests" / "labs"))
    module = importlib.import_module(f"test_lab{stem[:2]}")
    text = Path(module.__file__).read_text("utf-8")
    cells = [ast.unparse(node) for node in ast.parse(text).body]  # with its decorators
    found = {}
    for check, *objects in getattr(module, kind):
        names = check.exercise["names"]
        objects = objects[: len(names)]
        own = [getattr(one, "__name__", "") for one in objects]
        plain = all(isinstance(one, (types.FunctionType, type)) for one in objects)
        if plain and all(getattr(module, n, None) is o for n, o in zip(own, objects, strict=True)):
            source = "\n\n\n".join(reference.needed(cells, own))
            named = _named(source, dict(zip(own, names, strict=True)))
            found.setdefault(check.exercise["id"], []).append(named)
    return found


def _named(source, names):
    """A source whose objects are called as the exercise wants them."""
    tree = ast.parse(source)
    taken = set(names.values()) - names.keys()
    _Renamed({name: f"{name}Base" for name in taken} | names).visit(tree)
    return ast.unparse(tree)


def independents(stem, rng, n, **shares):
    """`n` submissions of which no two have more than two thirds of their answers word for word.

    Students who do not know of each other write no such thing, and lists are short.
    """
    chosen = []
    while len(chosen) < n:
        new = independent(stem, rng, **shares)
        same = (sum(old.get(id) == text for id, text in new.items()) for old in chosen)
        if all(3 * k <= 2 * len(new) for k in same):
            chosen.append(new)
    return chosen


def independent(stem, rng, right=1.0, wrong=0.0):
    """`{exercise id: source}` of a submission; a share of its answers is right, and one wrong."""
    lists = {kind: answers(stem, kind) for kind in ("RIGHT", "WRONG")}
    chosen = {}
    for id, sources in lists["RIGHT"].items():
        at = rng.random()
        if at < right:
            chosen[id] = rng.choice(sources)
        elif at < right + wrong and lists["WRONG"].get(id):
            chosen[id] = rng.choice(lists["WRONG"][id])
    return chosen


def copied(cells, rng, share=1.0):
    """A copy that is to look like another one, of a share of the answers."""
    ids = rng.sample(sorted(cells), round(share * len(cells)))
    return {id: disguised(cells[id], rng) for id in ids}


def disguised(source, rng):
    """The source with other names inside, another order and other comments."""
    tree = ast.parse(source)
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        bound = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and _stored(n)}
        words = rng.sample(range(1000), len(bound))
        names = {
            name: f"{rng.choice('abcdehknqtuvz')}{n}"
            for name, n in zip(sorted(bound), words, strict=True)
        }
        _Renamed(names).visit(function)
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS):
            _reordered(node, rng)
    lines = []
    for line in ast.unparse(tree).splitlines():
        if rng.random() < 0.3 and line.strip():
            lines.append(" " * (len(line) - len(line.lstrip())) + f"# {rng.choice(WORDS)}")
        lines.append(line)
    return "\n".join(lines)


def _stored(name):
    return isinstance(name.ctx, ast.Store)


def _reordered(node, rng):
    """Another docstring, methods in another order, and statements that need not wait swapped."""
    if ast.get_docstring(node) is not None:
        node.body = [ast.Expr(ast.Constant(rng.choice(WORDS))), *node.body[1:]]
    if isinstance(node, ast.ClassDef) and all(isinstance(n, DEFINITIONS) for n in node.body[1:]):
        head, *rest = node.body
        node.body = [head, *rng.sample(rest, len(rest))]
    for i in range(len(node.body) - 1):
        one, two = node.body[i : i + 2]
        if isinstance(one, ast.Assign) and isinstance(two, ast.Assign) and _apart(one, two):
            node.body[i : i + 2] = [two, one]


def _apart(one, two):
    """Whether neither of two assignments uses what the other makes."""
    used = [{n.id for n in ast.walk(s) if isinstance(n, ast.Name)} for s in (one, two)]
    made = [
        {n.id for n in ast.walk(s) if isinstance(n, ast.Name) and _stored(n)} for s in (one, two)
    ]
    simple = all(isinstance(t, ast.Name) for s in (one, two) for t in s.targets)
    return simple and not (used[0] & made[1] or used[1] & made[0])


class _Renamed(ast.NodeTransformer):
    """Other names for variables, functions and classes."""

    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.name = self.names.get(node.name, node.name)
        return node

    visit_ClassDef = visit_FunctionDef


def notebook(stem, cells):
    """The bytes of the student's notebook with these answers in the places of the stubs."""
    book = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    defines = [reference.defined("".join(cell["source"])) for cell in code]  # before any is filled
    for id, source in cells.items():
        own = [*reference.names_of(stem, id), "quiz"][0]  # the others may be of an exercise before
        code[next(i for i, defined in enumerate(defines) if own in defined)]["source"] = source
    return json.dumps(book).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lab", help="such as 02_lora")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--copies", type=int, default=0, help="of them, copies of others")
    parser.add_argument("--out", type=Path, required=True, help="a new folder of notebooks")
    options = parser.parse_args()
    rng = random.Random(0)
    options.out.mkdir(parents=True)
    own = [
        independent(options.lab, rng, right=rng.betavariate(6, 2), wrong=0.2)
        for _ in range(options.n - options.copies)
    ]
    rng_copies = [copied(own[i], rng) for i in rng.sample(range(len(own)), options.copies)]
    for i, cells in enumerate(own + rng_copies):
        # as Canvas names a download: who, late or not, the student's and the file's number
        late = "LATE_" * (rng.random() < 0.05)
        name = f"student{i:03}_{late}{1000 + i}_{50_000 + i}_{options.lab}.ipynb"
        (options.out / name).write_bytes(notebook(options.lab, cells))


if __name__ == "__main__":
    main()
