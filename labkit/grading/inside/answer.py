"""Answers the judge inside a submission's process: calls objects, and returns plain data.

The judge ships this module, the contract and the probes after the submission's cells have run, so
cells cannot change them. This module is not trusted, so the judge checks every reply. Changes that
cells or answers make to Python and torch do have an effect here.

Shipped modules are imported by `from labkit.a import b`, which looks only at `sys.modules`: `from
labkit import a` asks the package, which a cell may have changed.
"""

import builtins
import json
import types

from labkit.contract import CheckFailed, NotWritten, Session, defined_by
from labkit.grading.wire import pack, unpack

PRIVATE = "labkit_private_checks"  # the module of an instructor's own checks
LENT = {}  # source -> what it defines


def answered(body: bytes, modules: dict, namespace: dict, states: dict) -> bytes:
    """The reply to one question: its nonce, the outcome, a value or message; see `runner.serve`."""

    def resolve(name):
        module, _, attribute = name.rpartition(":")
        if module:
            return getattr(modules[module], attribute)
        if name not in namespace:
            absent.append(name)
        return namespace.get(name)

    head, _, body = body.partition(b"\n")
    head, absent = json.loads(head), []
    nonce = head["nonce"]
    try:
        for source in head["sources"]:  # for an instructor's own check
            own = modules.setdefault(PRIVATE, types.ModuleType(PRIVATE))
            exec(compile(source, f"<{PRIVATE}>", "exec"), own.__dict__)
        if head["then"] in states:
            _as_then(states[head["then"]], namespace)
        for names, source in head["lent"]:
            _lend(names, source, namespace)
        ask = unpack(body, resolve)
        if absent:
            return pack([nonce, "undefined", absent[0], []])
        return pack([nonce, *_called(ask)])
    except Exception as error:  # plain() or pack() on an object that is not data
        why = f"it returned something that a check cannot read ({type(error).__name__})"
        return pack([nonce, "failed", why, []])


def _called(ask):
    session = Session(seed=ask["seed"])
    try:
        how, what = "value", session.call(ask["f"], ask["data"])
    except NotWritten:
        how, what = "missing", ""
    except CheckFailed as failure:
        how, what = "failed", str(failure)
    return how, what, [str(fault) for fault in session.faults]


def _as_then(state, namespace):
    """Restore names to `state`; later ones stay, unless they hide a built-in."""
    for name in vars(builtins).keys() & namespace.keys() - state.keys():
        del namespace[name]
    namespace.update(state)


def _lend(names, source, namespace):
    """Replace the submission's objects by the course's own for the life of this process."""
    if source not in LENT:
        LENT[source] = defined_by(source)
    namespace.update({name: LENT[source][name] for name in names if name in LENT[source]})
