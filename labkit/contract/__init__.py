"""The contract between a check and the code it judges.

A check reaches a learner's object only through `observe`. In a notebook, `observe` calls the
object; in grading, another `Session` asks the process that runs the learner's code. Either way the
check sees plain data and makes the decision.

Faults within `part` are collected, so a learner sees all of them. An answer that fails while
earlier exercises are open is judged again with the course's own objects for those exercises.
`observe` also requires that inputs and torch's settings stay unchanged.
"""

import contextlib
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from labkit.contract.calls import (
    NAMES,
    STANDS,
    CheckFailed,
    NoAnswer,
    NotWritten,
    Session,
    defined_by,
    kept,
    kind,
)
from labkit.contract.verdict import LENT, NotRun, Verdict, conclude
from labkit.errors import LabError

if TYPE_CHECKING:
    import torch

__all__ = [
    "BROKEN", "LENT", "NAMES", "NO_LETTERS", "ODD", "STANDS", "WITHHELD", "CheckFailed", "NoAnswer",
    "NotRun", "NotWritten", "Session", "Verdict", "checks_of", "defined_by", "exercise",
    "expect", "generator", "kept", "kind", "natural", "observe", "part", "session", "sound",
]  # fmt: skip

WITHHELD = "This copy of the course contains no solutions, so there is nothing to reveal"
NO_LETTERS = "A quiz can't be revealed: pick a letter per question, and the check explains each one"
BROKEN = "the check itself is broken"  # how grading's message to the instructor begins
ODD = "the answer has a form that the check cannot read"  # probably; also shown to the instructor
session = Session()


def observe(f: Callable, *data: object) -> object:
    """The result of `f(*data)` as plain data: numbers, text, lists, dicts and CPU tensors.

    `f` and any item of `data` may be the learner's own objects or functions from a lab's probes.
    Inputs are copied, so in-place changes don't reach them.
    """
    session.observed = (f, *data)
    return session.call(f, data)


def generator() -> "torch.Generator":
    """A `torch.Generator` that depends only on the session's seed and the exercise."""
    import torch

    digest = hashlib.sha256(f"{session.seed}:{session.exercise}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6]))


def expect(condition: object, message: str, earned: int = 0) -> None:
    """Raise CheckFailed with `message` unless `condition` is true."""
    if not condition:
        raise CheckFailed(message, earned)


@contextlib.contextmanager
def part() -> Iterator[None]:
    """A part of a check: if it fails, the check continues and reports all faults together."""
    try:
        yield
    except CheckFailed as failure:
        session.blame(failure)


def sound() -> bool:
    """Whether the running check has found no fault so far."""
    return not session.faults


def exercise(id: str, points: int, after: str | None = None) -> Callable:
    """Mark a function as the check of exercise `id`; its parameters name the learner's objects.

    `after` is the id of an exercise whose objects are among them. A check passes if it returns:
    the returned text, or else the docstring, is shown with the verdict.
    """

    def decorate(check):
        names = list(inspect.signature(check).parameters)
        NAMES[id] = [name for name in names if name not in NAMES.get(after, ())]

        @functools.wraps(check)
        def judged(*objects):
            session.exercise = id
            if len(objects) != len(names):
                listed = ", ".join(names)
                raise CheckFailed(f"Call this check as check.{check.__name__}({listed})")
            conclude(session, check, judged.exercise, dict(zip(names, objects, strict=True)))

        judged.exercise = {"id": id, "name": names[0], "names": names, "points": points}
        return judged

    return decorate


def natural(id: str) -> list:
    """A key that sorts "2.10" after "2.9"."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.findall(r"\d+|\D+", id)]


def checks_of(module: ModuleType) -> list[Callable]:
    """The checks in a module of `labkit.checks`, in order; LabError for a duplicate id."""
    checks = [f for f in vars(module).values() if getattr(f, "exercise", None)]
    ids = [check.exercise["id"] for check in checks]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise LabError(f"{module.__name__}: two checks are for exercise {twice[0]}")
    return checks
