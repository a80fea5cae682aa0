"""An instructor's own checks: a Python file with functions marked `@exercise`.

They run in the judge like the course's checks. A function given to `observe` has to run next to the
learner's code, so it is sent there with everything that it uses, but not the rest of the file.
"""

import ast
import importlib.util
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

from labkit import contract
from labkit.errors import LabError
from labkit.names import bound, reached

NAME = "labkit_private_checks"


def load(path: str) -> list[Callable]:
    """The checks in the file; LabError if it can't be imported or has none."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise LabError(f"{path} can't be imported: {type(error).__name__}: {error}") from None
    mine = [check for check in contract.checks_of(module) if check.__module__ == NAME]
    if not mine:
        raise LabError(f"{path} has no check: mark a function with @exercise(id, points=…)")
    for check in mine:
        number = _lab_of(check)
        if number is not None and not importlib.util.find_spec(f"labkit.checks.lab{number:02}"):
            why = f"{check.exercise['id']} belongs to lab {number}, which does not exist"
            raise LabError(f"{path}: {why}")
    return mine


def _lab_of(check):
    """The lab's number in an id such as "2.10"; None without one."""
    number = check.exercise["id"].partition(".")[0]
    return int(number) if number.isdecimal() else None


def of_lab(check: Callable, stem: str) -> bool:
    """Whether a private check belongs to a lab: "2.10" to lab 2, an id without a number to all."""
    return _lab_of(check) in (None, int(stem[:2]))


@cache
def source_for(f: Callable) -> str:
    """The source of function `f` of the file, and of everything it uses there."""
    tree = ast.parse(Path(inspect.unwrap(f).__code__.co_filename).read_text(encoding="utf-8"))
    makers = defaultdict(list)
    for node in tree.body:
        for name in bound([node]):
            makers[name].append(node)
    needed = reached([f.__name__], makers, _named)
    return "\n".join(ast.unparse(node) for node in tree.body if node in needed)


def _named(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
