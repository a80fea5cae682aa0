"""The contract between a check and the code it judges.

A check is written once. It reaches a learner's object by `observe` alone: in a notebook that calls
the object here; a grader puts another `Session` in place, which asks the process that holds the
learner's code. Both ways the check sees plain data only, and decides itself.
"""

import functools
import hashlib
import inspect
import linecache
from dataclasses import dataclass, field

from labkit.errors import LabError
from labkit.grading.plain import copied, plain


class CheckFailed(LabError):
    """The answer is wrong; `earned` holds the points that stand all the same."""

    def __init__(self, message, earned=0):
        super().__init__(" ".join(str(message).split()))
        self.earned = earned


class NotWritten(Exception):
    """The learner's stub is still there."""


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
    lent: dict = field(default_factory=dict)  # exercise id -> the course's objects, as lent last

    def clear(self):
        """Forget all that was judged and lent."""
        self.records.clear()
        self.lent.clear()

    def call(self, f, data):
        """`f(*data)` as plain data; raises NotWritten, or CheckFailed when `f` raises."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            try:
                result = f(*copied(data))
            except NotImplementedError as error:
                if error.args:  # torch raises it too, with a message
                    raise CheckFailed(_told(error)) from None
                raise NotWritten from None
            except Exception as error:
                raise CheckFailed(_told(error)) from None
        try:
            return plain(result)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise CheckFailed(error) from None


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
    "is not defined": "; was the cell that defines it run?",
}
WITHHELD = "The solutions are not part of this copy of the course, so nothing is revealed"
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


def expect(condition, message, earned=0):
    """Raise CheckFailed with `message` unless `condition` holds."""
    if not condition:
        raise CheckFailed(message, earned)


def exercise(id, points, after=None):
    """Mark a function as the check of exercise `id`; its parameters name the learner's objects.

    `after` is the id of an exercise whose object this one uses: if that one fails, so may this.
    The check passes by returning: text to show beside the verdict, else its docstring is shown.
    """

    def decorate(check):
        names = list(inspect.signature(check).parameters)
        listed = ", ".join(names)

        @functools.wraps(check)
        def judged(*objects):
            record = {"id": id, "name": names[0], "points": points, "earned": 0}
            session.exercise = id
            if len(objects) != len(names):
                raise CheckFailed(f"This check is called as check.{check.__name__}({listed})")
            if absent := [o.name for o in objects if isinstance(o, NotRun)]:
                print(f"○ {id} {absent[0]}: its cell has not been run yet")
                return
            if any(own is one for own in objects for one in session.lent.get(id, ())):
                print(f"◐ {id} {LENT}: this is the course's, not yours")
                return
            try:
                note = check(*objects)
            except NotWritten:
                if session.records.get(id, {}).get("status") == "lent":  # and now the stub is back
                    del session.records[id]
                session.records.setdefault(id, record | {"status": "missing", "message": ""})
                print(f"○ {id} {listed}: not written yet")
            except CheckFailed as failure:
                if session.records.get(after, {}).get("status") == "failed":
                    failure.args = (f"{failure} (mend {after} first: it fails, and is used here)",)
                _record(record, "failed", failure.earned, str(failure))
                failure.args = (f"✗ {id} {names[0]}: {failure}",)
                raise failure from None
            else:
                _record(record, "passed", points, "")
                print(f"✓ {id} {listed}: {note or inspect.getdoc(check)}")

        judged.exercise = {"id": id, "name": names[0], "names": names, "points": points}
        return judged

    return decorate


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
