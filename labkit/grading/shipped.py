"""The code that the judge ships into a submission's process, compiled once."""

import marshal
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PARTS = (
    "errors",
    "grading.plain",
    "grading.kept",
    "grading.contract",
    "grading.wire",
    "grading.answer",
)
PROBES = re.compile(r"^from labkit\.probes(?:\.(lab\d\d))? import (lab\d\d)?", re.MULTILINE)


@cache
def shipped(stem):
    """The contract, the wire and a lab's probes as `runner.load` takes them, in bytes."""
    probes = _with_imports(f"lab{stem[:2]}") if find_spec(f"labkit.probes.lab{stem[:2]}") else []
    names = [f"labkit.{part}" for part in PARTS] + [f"labkit.probes.{name}" for name in probes]
    return marshal.dumps([(name, _compiled(name)) for name in names])


def _with_imports(name):
    """A lab's probes and those that they import, these first."""
    found = [a or b for a, b in PROBES.findall(_source(f"labkit.probes.{name}"))]
    before = [part for other in found for part in _with_imports(other)]
    return list(dict.fromkeys([*before, name]))


def _compiled(name):
    return compile(_source(name), f"<{name}>", "exec")


def _source(name):
    return Path(find_spec(name).origin).read_text(encoding="utf-8")
