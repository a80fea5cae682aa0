"""The code that the judge ships into a submission's process."""

import importlib
import inspect
import json
import marshal
import sys
import types

import pytest

from labkit.grading import wire
from labkit.grading.inside import runner
from labkit.grading.judge.shipped import shipped

PROBES = """
from labkit.contract import CheckFailed, kept

def keeps(f):
    return kept(f, [1, 2])

def fails(f):
    raise CheckFailed("no layer in it")
"""


@pytest.fixture
def modules(monkeypatch):
    """What was shipped for lab 3, executed; what tests imported before is back afterwards."""
    parts = dict(marshal.loads(shipped("03_peft")))
    for name in parts:
        package, _, last = name.rpartition(".")
        here = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, here)
        if package not in parts:
            monkeypatch.setattr(importlib.import_module(package), last, here)
    return runner.load(shipped("03_peft"))


def test_what_is_shipped_uses_nothing_that_a_cell_could_reach(modules):
    for module in modules.values():
        for thing in map(inspect.unwrap, vars(module).values()):
            home = getattr(thing, "__module__", None) or ""
            assert home in modules or not home.startswith("labkit."), thing
            if isinstance(thing, types.ModuleType) and thing.__name__ in modules:
                assert thing is modules[thing.__name__]
            elif home in modules and hasattr(thing, "__name__"):
                assert inspect.unwrap(vars(modules[home])[thing.__name__]) is thing


def _ask(modules, probe, f):
    names = {f: "mine", _ask: f"labkit_private_checks:{probe}"}
    body = wire.pack({"seed": 1, "f": _ask, "data": [f]}, names.get)
    head = {"nonce": "1", "sources": [PROBES], "lent": [], "then": None}
    answered = modules["labkit.grading.inside.answer"].answered
    reply = answered(json.dumps(head).encode() + b"\n" + body, dict(modules), {"mine": f}, {})
    return wire.unpack(reply)[1:]


def test_a_probe_is_heard_as_in_a_notebook(modules):
    """What it finds changed is a fault, and what it says is not said to be an error."""
    how, what, (told,) = _ask(modules, "keeps", lambda numbers: numbers.append(3))
    assert (how, what) == ("value", None) and "changes its input `numbers` in place" in told
    assert _ask(modules, "fails", len) == ["failed", "no layer in it", []]
