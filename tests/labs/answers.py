"""What the files of the labs list: the one place that knows the shape of `RIGHT`, `WRONG`, `STUBS`.

RIGHT = [(check, *objects)]         pass
WRONG = [(check, *objects, words)]  hear these words, or one of a tuple of them
STUBS = [(check, *objects)]         are not written yet
GIVEN = [(check, words)]            of a hunt: what its cell holds at first hears these words
SEEDS = {"RIGHT": range(4)}         where a list is judged with more inputs than those of seed 0
"""

import importlib
from pathlib import Path
from typing import NamedTuple

LABS = sorted(path.stem[-2:] for path in Path(__file__).parent.glob("test_lab[0-9][0-9].py"))
STATUS = {"RIGHT": "passed", "STUBS": "missing", "WRONG": "failed"}


class Case(NamedTuple):
    """Objects for a check, and what it has to make of them."""

    status: str
    check: object
    objects: list
    words: tuple[str, ...]

    def __str__(self):
        said = self.words[0] if self.status == "failed" else _name(self.objects[0])
        return f"{self.check.exercise['id']} {said}"


def cases(number: str, kind: str) -> list[Case]:
    """The cases of one list of a lab."""
    made = []
    for check, *objects in getattr(_module(number), kind):
        words = objects.pop() if kind == "WRONG" else ""
        words = words if isinstance(words, tuple) else (words,)
        assert kind != "WRONG" or all(words), f"{check.exercise['id']}: no words"
        made.append(Case(STATUS[kind], check, objects, words))
    return made


def given(number: str) -> dict:
    """`{name of a hunt's check: (id, words)}` of a lab, whose student finds wrong code."""
    listed = getattr(_module(number), "GIVEN", [])
    return {check.__name__: (check.exercise["id"], words) for check, words in listed}


def seeds(number: str, kind: str) -> range:
    """The seeds at which a list of a lab is judged."""
    return getattr(_module(number), "SEEDS", {}).get(kind, range(1))


def _module(number):
    return importlib.import_module(f"test_lab{number}")


def _name(answer):
    return getattr(answer, "__name__", "?").replace("<lambda>", "lambda")
