"""Decide, record and show the verdict of a check."""

import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

from labkit.contract.calls import AND, NAMES, CheckFailed, NoAnswer, NotWritten, Session

MOST = 3  # faults shown at once
LENT = "is lent: the solution runs, its source stays hidden, and it earns no points"


class NotRun:
    """A placeholder for an exercise's function or class until its cell is run."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *_, **__):
        """Raise NameError, as if there were no placeholder."""
        raise NameError(f"name {self.name!r} is not defined: run its cell first")


class Verdict(NamedTuple):
    """The result of an exercise; `note` is shown if it passes, `head` is the object at fault."""

    status: str
    earned: int
    message: str = ""
    note: str = ""
    head: str = ""


def conclude(session: Session, check: Callable, exercise: dict, objects: dict) -> None:
    """Judge the learner's objects, record and print the verdict; raise CheckFailed on failure."""
    id, names = exercise["id"], exercise["names"]
    if absent := _not_run(session, id, objects):
        print(f"○ {id} {absent}: its cell has not been run yet")
    elif borrowed := _borrowed(session, id, objects):
        print(f"◐ {id} {LENT} ({borrowed})")
    else:
        verdict = _judge(session, check, objects, exercise)
        open_names = _stubs(id, objects) if verdict.status == "missing" else names
        _say(session, exercise, open_names, verdict)


def _not_run(session, id, objects):
    """The first object whose cell was not run, unless the course's own object can replace it."""
    lent = {name for other in session.stand_ins(id) for name in NAMES[other]}
    absent = [name for name, o in objects.items() if isinstance(o, NotRun) and name not in lent]
    return absent[0] if absent else None


def _borrowed(session, id, objects):
    """The names of objects that were lent for exercise `id`, in words; "" if there are none."""
    loans = session.loans.get(id, ())
    theirs = [name for name, one in objects.items() if any(one is lent for lent in loans)]
    verb = "are" if len(theirs) > 1 else "is"
    return f"{_listed(theirs)} {verb} the course's, not yours" if theirs else ""


def _stubs(id, objects):
    """Names of an exercise's own objects that are still stubs; all names if none is a stub."""
    own = [name for name in objects if name in NAMES[id]]
    return [name for name in own if _is_stub(objects[name])] or own


def _is_stub(thing):
    parts = vars(thing).values() if isinstance(thing, type) else [thing]
    codes = [getattr(part, "__code__", None) for part in parts]
    return any("NotImplementedError" in getattr(code, "co_names", ()) for code in codes)


def _judge(session, check, objects, exercise):
    """The Verdict on the learner's objects, if need be with the course's for open exercises."""
    own, sources = None, {}
    try:
        own = _verdict(session, check, objects, exercise["points"])
    except NoAnswer:
        sources = session.stand_ins(exercise["id"])
        if not sources:
            raise
    if own and own.status == "passed":
        return own
    sources = sources or session.stand_ins(exercise["id"])
    if not sources:
        return own
    with session.lent(sources) as theirs:
        given = {name: theirs.get(name, mine) for name, mine in objects.items()}
        lent = _verdict(session, check, given, exercise["points"])
    if own and (lent.status, lent.message) == (own.status, own.message):
        return own
    used = _used(session, sources, objects)
    if own and lent[:2] == own[:2] == ("failed", own.earned) and not used:
        return own
    listed = _listed(used or list(sources))
    note = f"tested with the course's code for {listed}, which you haven't solved yet"
    return lent._replace(message=f"{lent.message} ({note})" if lent.message else note)


def _used(session, sources, objects):
    """The ids in `sources` that the check or the course's own answer uses; all if it has none."""
    words = re.findall(r"\w+", session.reference(session.exercise) or "")
    used = {*words, *objects}
    return [id for id in sources if not words or used.intersection(NAMES[id])]


def _listed(several):
    """ "2.1", "2.1 and 2.2", "2.1, 2.2 and 2.3"."""
    *most, last = several
    return f"{', '.join(most)} and {last}" if most else last


def _verdict(session, check, objects, points):
    session.faults, session.objects = (faults := []), objects
    try:
        note = check(*objects.values())
    except NotWritten:
        if not faults:
            return Verdict("missing", 0)
    except CheckFailed as failure:
        session.blame(failure)
    if faults:
        own = {name: o for name, o in objects.items() if name in NAMES[session.exercise]}
        message = _joined(faults, own)
        head = _head(message, min(faults, key=lambda fault: fault.bare), own)
        if message.startswith(f"{head} "):
            message = f"it{message.removeprefix(head)}"
        return Verdict("failed", max(fault.earned for fault in faults), message, head=head)
    return Verdict("passed", points, "", note or inspect.getdoc(check))


def _joined(faults, own):
    """The faults, one per line: first those that name a mistake, and each mistake only once."""
    if len(faults) == 1:  # such as a quiz, which explains every answer
        return _named(faults[0], str(faults[0]), own)
    lines = {}
    for fault in sorted(faults, key=lambda fault: fault.bare):
        for text in str(fault).split(AND):
            lines.setdefault(text.rpartition(": ")[2], _named(fault, text, own))
    return AND.join(list(lines.values())[:MOST])


def _named(fault, text, own):
    """The text of a fault; if there are several objects, the name replaces "it"."""
    about = _about(fault, own)
    it = text.startswith("it ") and len(own) > 1 and len(about) == 1
    return f"{about[0]}{text[2:]}" if it else text


def _about(fault, own):
    return [name for name, one in own.items() if any(one is other for other in fault.about)]


def _head(message, fault, own):
    """The first name in the first fault, or else the observed objects, or else all objects."""
    words = re.findall(r"\w+", message.partition(AND)[0])
    named = [word for word in words if word in own][:1]
    return ", ".join(named or _about(fault, own) or own)


def _say(session, exercise, names, verdict):
    """Record the verdict and print or raise it. A revealed exercise stays revealed."""
    id, listed, (status, earned, message, note, head) = exercise["id"], ", ".join(names), verdict
    before = session.records.get(id, {}).get("status")
    detail = f" ({message})" if message else ""
    if before in (None, "lent") or (status != "missing" and before != "revealed"):
        session.note(exercise, status, earned, message)
    if status == "missing":
        print(f"○ {id} {listed}: not written yet{detail}")
        return
    if status == "failed":
        raise CheckFailed(f"✗ {id} {head}: {message}".split(AND))
    if before == "revealed":
        detail += " (it was revealed, so it earns no points)"
    print(f"✓ {id} {listed}: {note}{detail}")
