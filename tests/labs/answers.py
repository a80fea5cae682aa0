"""What the files of the labs list: the one place that knows the shape of `RIGHT` and `WRONG`.

RIGHT = [(check, *objects)]         pass
WRONG = [(check, *objects, words)]  hear these words
GIVEN = [(check, words)]            of a hunt: what its cell holds at first hears these words
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from labkit import contract, reference

ROOT = Path(__file__).parents[2]
STEMS = sorted(path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py"))


class Case(NamedTuple):
    """Objects for a check, and what it has to make of them."""

    check: object
    objects: list
    status: str
    words: str = ""

    def __str__(self):
        names = (getattr(answer, "__name__", "partial") for answer in self.objects)
        return f"{self.check.exercise['id']} {self.words or ', '.join(names)}"


def right(stem: str) -> list[Case]:
    """The right answers of a lab."""
    return [Case(check, objects, "passed") for check, *objects in _module(stem).RIGHT]


def wrong(stem: str) -> list[Case]:
    """The wrong answers of a lab."""
    listed = _module(stem).WRONG
    return [Case(check, objects, "failed", words) for check, *objects, words in listed]


def half_written(stem: str) -> Iterator[Case]:
    """The exercises of several functions, each without one of them."""
    for check in reference.checks(stem):
        id, names = check.exercise["id"], check.exercise["names"]
        if len(contract.NAMES[id]) > 1:
            mine = solved(stem, id)
            for open_one in contract.NAMES[id]:
                objects = [stub if name == open_one else getattr(mine, name) for name in names]
                yield Case(check, objects, "missing")


def solved(stem: str, *ids: str) -> SimpleNamespace:
    """The functions and classes of exercises as the course solves them."""
    space = {}
    for id in ids:
        space |= contract.defined_by(reference.reference(stem, id))
    return SimpleNamespace(**space)


def stub(*_, **__):
    raise NotImplementedError


def given(stem: str) -> dict:
    """`{name of a hunt's check: (id, words)}` of a lab, whose student finds wrong code."""
    listed = getattr(_module(stem), "GIVEN", [])
    return {check.__name__: (check.exercise["id"], words) for check, words in listed}


def _module(stem):
    return importlib.import_module(f"test_lab{stem[:2]}")
