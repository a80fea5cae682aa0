"""The contract between a check and the code it judges.

A check is written once. It reaches a learner's object by `observe` alone: in a notebook that calls
the object here; a grader puts another `Session` in place, which asks the process that holds the
learner's code. Both ways the check sees plain data only, and decides itself.

What a check finds wrong within `part` is collected, so that a learner hears all of it at once. An
answer that fails while earlier exercises are open is judged once more with the course's own objects
in their place. Inputs and torch's settings have to be as before: `observe` looks, for every check.
"""

import contextlib
import functools
import hashlib
import inspect
import linecache
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from labkit.contract.kept import changes, picture, settings
from labkit.contract.plain import copied, plain
from labkit.errors import LabError

AND = " | "  # between the faults of one answer
MOST = 4  # faults that are told at once
OTHER = 1 << 40  # so that a learner's manual_seed(0) is seen


class CheckFailed(LabError):
    """The answer is wrong; `earned` holds the points that stand all the same.

    `bare` says that the message only tells numbers apart: one that names a mistake comes first.
    """

    def __init__(self, message, earned=0, bare=False):
        super().__init__(" ".join(str(message).split()))
        self.earned, self.bare = earned, bare

    def _render_traceback_(self):
        """The faults one below the other."""
        return str(self).split(AND)


class NotWritten(Exception):
    """The learner's stub is still there."""


class NoAnswer(Exception):
    """The learner's process has not answered: the object is not there, or its call ended it."""


class NotRun:
    """Stands for an exercise's function or class in a notebook until its cell is run."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *_, **__):
        """NameError: what the name would have been without this."""
        raise NameError(f"name {self.name!r} is not defined: run its cell first")


@dataclass
class Session:
    """Where the learner's code lives and which seed the inputs come from: here, and 0."""

    seed: int = 0
    exercise: str = ""  # the id of the one that is being checked
    records: dict = field(default_factory=dict)  # exercise id -> dict as in results.json
    loans: dict = field(default_factory=dict)  # exercise id -> the course's objects, as lent last
    letters: dict = field(default_factory=dict)  # id of a quiz -> {question: its first letter}
    faults: list = field(default_factory=list)  # CheckFailed, of the check that runs
    reference: object = None  # exercise id -> source of the course's own object, or None
    namespace: dict = field(default_factory=dict)  # where the learner's code looks names up

    def clear(self):
        """Forget what was judged and lent, and where solutions come from.

        The first letters of a quiz stay: a lab that is started again does not make them new.
        """
        self.records.clear()
        self.loans.clear()
        self.reference, self.namespace = None, {}

    def call(self, f, data):
        """`f(*data)` as plain data; raises NotWritten, or CheckFailed when `f` raises.

        What `f` leaves changed, of its inputs or of torch's settings, goes into `faults`.
        """
        told, given = [], copied(data)
        NOTED.clear()
        before = picture(list(data))
        with settings(self.seed + OTHER, told):
            try:
                result = f(*given)
            except NotImplementedError as error:
                if error.args:  # torch raises it too, with a message
                    raise CheckFailed(_told(error)) from None
                raise NotWritten from None
            except CheckFailed:
                raise
            except Exception as error:
                raise CheckFailed(_told(error)) from None
        for name, was, now in zip(_parameters(f, len(given)), before, given, strict=True):
            told += changes(was, now, name)
        self.faults += [CheckFailed(text) for text in told + NOTED]
        try:
            return plain(result)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise CheckFailed(error) from None

    @contextlib.contextmanager
    def lent(self, sources):
        """Have the course's own objects in the place of the learner's; `sources` is `{id: source}`.

        Yields `{name: object}`.
        """
        theirs = {}
        for id, source in sources.items():
            own = defined_by(source)
            theirs |= {name: own[name] for name in NAMES[id] if name in own}
        before = {name: self.namespace[name] for name in theirs if name in self.namespace}
        self.namespace.update(theirs)
        try:
            yield theirs
        finally:
            for name in theirs:
                self.namespace.pop(name, None)
            self.namespace.update(before)


def defined_by(source):
    """The names that the course's own `source` defines; a traceback shows no line of it."""
    space = {"__name__": "lent"}
    exec(compile(source, "<the course's own>", "exec"), space)
    return space


def _parameters(f, n):
    """Names of a function's first `n` parameters, as far as it tells."""
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []
    return (names + [f"number {i + 1}" for i in range(len(names), n)])[:n]


HINTS = {
    "shapes cannot be multiplied": "; is a transpose (.T) missing or one too many?",
    "size of tensor a": "; do the two have the shapes you think?",
    "is ambiguous": "; `if`, `and`, `or`, `max` ask for one truth value, and these are many",
    "shape of the mask": "; a uint8 index is taken for a mask: convert it, .long()",
    "leaf Variable that requires grad": "; change it under torch.no_grad()",
    "non-leaf Tensor": "; change it in place, under torch.no_grad()",
    "as parameter 'weight'": "; change it in place, under torch.no_grad()",
    "unhashable type: 'list'": "; is a list inside another one?",
    "object is not callable": "; is it still a function, begun by def?",
    "has no attribute 'append'": "; collect dicts in a list, and make one table of it at the end",
    "unexpected keyword argument": "; do the parameters have the names that the text says?",
    "is not defined": "; was the cell that defines it run?",
}
WITHHELD = "The solutions are not part of this copy of the course, so nothing is revealed"
NO_LETTERS = "A quiz is not lent: write a letter for each question, and the check explains it"
LENT = "is lent: it runs, its source stays hidden, and it earns no points"
BROKEN = "the check itself is broken"  # begins what grading says then, to the instructor
ODD = "the answer has a form that the check cannot read"  # or so it seems: the same goes for it
session = Session()


def observe(f, *data):
    """What `f(*data)` returns, as plain data: numbers, text, lists, dicts and CPU tensors.

    `f` and any item of `data` may be the learner's own objects or functions of `labkit.probes`.
    Inputs are copied, so code that changes them in place changes nothing here.
    """
    return session.call(f, data)


def generator():
    """A `torch.Generator` that depends on the session's seed and the exercise alone."""
    import torch

    digest = hashlib.sha256(f"{session.seed}:{session.exercise}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6]))


def expect(condition, message, earned=0, hint=""):
    """Raise CheckFailed with `message` unless `condition` holds; "; " and a `hint` follow it."""
    if not condition:
        raise CheckFailed(f"{message}; {hint}" if hint else message, earned)


@contextlib.contextmanager
def part():
    """A part of a check: where it fails the check goes on, and tells it with all others."""
    try:
        yield
    except CheckFailed as failure:
        session.faults.append(failure)


def sound():
    """Whether the check that runs has found nothing wrong so far."""
    return not session.faults


NOTED = []  # what `kept` found changed, for the call that is under way


def kept(f, *args):
    """`f(*args)`, for probes that make inputs themselves; it is a fault if one is left changed.

    Of a model count its training mode, what trains, the active adapter, hooks and weights.
    """
    before = [picture(arg) for arg in args]
    result = f(*args)
    names = _parameters(f, len(args))
    for name, *pair in zip(names, before, args, strict=True):
        NOTED.extend(changes(*pair, name))
    return result


NAMES = {}  # exercise id -> the learner's objects that it is about


def exercise(id, points, after=None):
    """Mark a function as the check of exercise `id`; its parameters name the learner's objects.

    `after` is the id of an exercise whose objects are among them. The check passes by returning:
    text to show beside the verdict, else its docstring is shown.
    """

    def decorate(check):
        names = list(inspect.signature(check).parameters)
        NAMES[id] = [name for name in names if name not in NAMES.get(after, ())]

        @functools.wraps(check)
        def judged(*objects):
            session.exercise = id
            if len(objects) != len(names):
                listed = ", ".join(names)
                raise CheckFailed(f"This check is called as check.{check.__name__}({listed})")
            objects = dict(zip(names, objects, strict=True))
            if absent := _not_run(id, objects):
                print(f"○ {id} {absent}: its cell has not been run yet")
                return
            if told := _borrowed(id, objects):
                print(f"◐ {id} {LENT}: {told}")
                return
            record = {"id": id, "name": names[0], "points": points, "earned": 0}
            verdict = _judge(check, objects, record)
            _say(record, _stubs(id, objects) if verdict.status == "missing" else names, verdict)

        judged.exercise = {"id": id, "name": names[0], "names": names, "points": points}
        return judged

    return decorate


def _not_run(id, objects):
    """The first name of an exercise whose cell was not run; others' only if nothing stands in."""
    lent = {name for other in _stand_ins(id) for name in NAMES[other]}
    absent = [name for name, o in objects.items() if isinstance(o, NotRun) and name not in lent]
    return absent[0] if absent else None


def _borrowed(id, objects):
    """Which of the objects were lent for exercise `id`, as words; "" where none was."""
    loans = session.loans.get(id, ())
    theirs = [name for name, one in objects.items() if any(one is lent for lent in loans)]
    return f"{_listed(theirs)} {_is(theirs)} the course's, not yours" if theirs else ""


def _stubs(id, objects):
    """Names of an exercise's own objects that are not written yet; all, if none looks like it."""
    own = [name for name in objects if name in NAMES[id]]
    return [name for name in own if _is_stub(objects[name])] or own


def _is_stub(thing):
    """Whether a function, or a method of a class, is as the notebook had it."""
    parts = vars(thing).values() if isinstance(thing, type) else [thing]
    codes = [getattr(part, "__code__", None) for part in parts]
    return any("NotImplementedError" in getattr(code, "co_names", ()) for code in codes)


def _stand_ins(id):
    """`{id: source of the course's own objects}` of the exercises before `id` that are open.

    What `id` itself is about is not lent: an instructor's check may ask for `lora_forward`, too.
    """
    lab, _, number = id.partition(".")
    found, mine = {}, set(NAMES.get(id, ()))
    for other in NAMES if session.reference else ():
        its_lab, _, its_number = other.partition(".")
        standing = session.records.get(other, {}).get("status") in ("passed", "revealed", "lent")
        before = its_lab == lab and number.isdecimal() and its_number.isdecimal()
        before = before and int(its_number) < int(number) and not mine & set(NAMES[other])
        if before and not standing:
            found[other] = session.reference(other)
    return {other: source for other, source in found.items() if source}


class Verdict(NamedTuple):
    """How one exercise went; `message` is kept, `note` is what the check says of a pass."""

    status: str
    earned: int
    message: str = ""
    note: str = ""


def _judge(check, objects, record):
    """The Verdict on the learner's objects, else with the course's own for what is open before.

    Of the two the first stands where the second says nothing else.
    """
    sources = {}
    try:
        own = _verdict(check, objects, record["points"])
    except NoAnswer:
        sources = _stand_ins(record["id"])
        if not sources:
            raise
        own = None
    if own and own.status == "passed":
        return own
    sources = sources or _stand_ins(record["id"])
    if not sources:
        return own
    with session.lent(sources) as theirs:
        given = {name: theirs.get(name, mine) for name, mine in objects.items()}
        lent = _verdict(check, given, record["points"])
    if own and (lent.status, lent.message) == (own.status, own.message):
        return own
    told = f"judged with the course's own {_listed(list(sources))}, which {_is(sources)} open"
    return lent._replace(message=f"{lent.message} ({told})" if lent.message else told)


def _listed(several):
    """ "2.1", "2.1 and 2.2", "2.1, 2.2 and 2.3"."""
    *most, last = several
    return f"{', '.join(most)} and {last}" if most else last


def _is(several):
    return "are" if len(several) > 1 else "is"


def _verdict(check, objects, points):
    """The Verdict of one run of a check."""
    session.faults = faults = []
    try:
        note = check(*objects.values())
    except NotWritten:
        if not faults:
            return Verdict("missing", 0)
    except CheckFailed as failure:
        faults.append(failure)
    if faults:
        return Verdict("failed", max(fault.earned for fault in faults), _joined(faults))
    return Verdict("passed", points, "", note or inspect.getdoc(check))


def _joined(faults):
    """All faults in one line: those that name a mistake first, each mistake once."""
    if len(faults) == 1:  # such as a quiz, whose answers are all told
        return str(faults[0])
    said = {}
    for fault in sorted(faults, key=lambda fault: fault.bare):
        for text in str(fault).split(AND):
            said.setdefault(text.rpartition(": ")[2], text)
    return AND.join(list(said.values())[:MOST])


def _say(record, names, verdict):
    """Keep the verdict and print it; a failure is raised."""
    id, listed, (status, earned, told, note) = record["id"], ", ".join(names), verdict
    beside = f" ({told})" if told else ""
    if status == "missing":
        if session.records.get(id, {}).get("status") == "lent":  # and now the stub is back
            del session.records[id]
        session.records.setdefault(id, record | {"status": status, "message": told})
        print(f"○ {id} {listed}: not written yet{beside}")
        return
    _record(record, status, earned, told)
    if status == "failed":
        raise CheckFailed(f"✗ {id} {names[0]}: {told}")
    if session.records[id]["status"] == "revealed":
        beside += " (it was revealed, and earns no points)"
    print(f"✓ {id} {listed}: {note}{beside}")


def natural(id: str) -> list:
    """Return a key that sorts "2.10" behind "2.9"."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.findall(r"\d+|\D+", id)]


def checks_of(module):
    """The checks in a module of `labkit.checks`, in its order; LabError for an id that two have."""
    checks = [f for f in vars(module).values() if getattr(f, "exercise", None)]
    ids = [check.exercise["id"] for check in checks]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise LabError(f"{module.__name__}: two checks are of exercise {twice[0]}")
    return checks


def _record(record, status, earned, message):
    """Keep the verdict, unless the solution was revealed: that stays as it is."""
    before = session.records.get(record["id"], {})
    if before.get("status") != "revealed":
        new = {"status": status, "earned": earned, "message": message}
        session.records[record["id"]] = record | new


def _told(error):
    """One line on an exception in the learner's code: which, where, and the line itself."""
    what = f"{type(error).__name__}: {error}".strip(": ")
    what += next((hint for sign, hint in HINTS.items() if sign in what), "")
    trace, place = error.__traceback__, None
    while trace:
        name = trace.tb_frame.f_code.co_filename
        if "ipykernel" in name or "ipython-input" in name or name.startswith("<cell"):
            place = (name, trace.tb_lineno)
        trace = trace.tb_next
    if place is None:
        return f"it raised {what}"
    line = linecache.getline(*place).strip()
    return f"it raised {what} (line {place[1]} of the cell: `{line}`)"
