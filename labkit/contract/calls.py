"""A session: how a check reaches a learner's objects, here, and what is known of them."""

import contextlib
import inspect
import linecache
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from labkit.contract.hints import hint
from labkit.contract.kept import changes, picture, settings
from labkit.contract.plain import copied, plain
from labkit.errors import LabError

AND = "\n"  # between the faults of one answer
OTHER = 1 << 40  # so that a learner's manual_seed(0) is seen
STANDS = ("passed", "revealed", "lent")  # of an exercise whose objects are there
NAMES = {}  # exercise id -> the learner's objects that it is about
NOTED = []  # what `kept` found changed, for the call that is under way


class CheckFailed(LabError):
    """The answer is wrong; `earned` are the points that it gets all the same.

    `message` is one fault, or a list of them: a line each. `bare` says that it only shows numbers:
    one that names a mistake comes first. `about` are the objects that were observed last, one of
    which "it" may refer to.
    """

    def __init__(self, message, earned=0, bare=False):
        faults = message if isinstance(message, list) else [message]
        super().__init__(AND.join(" ".join(str(fault).split()) for fault in faults))
        self.earned, self.bare, self.about = earned, bare, ()

    def _render_traceback_(self):
        """The faults, one per line."""
        return str(self).split(AND)


class NotWritten(Exception):
    """The learner's stub is still there."""


class NoAnswer(Exception):
    """The learner's process has not answered: the object is not there, or its call ended it."""


@dataclass
class Session:
    """Where the learner's code lives and which seed the inputs come from: here, and 0."""

    seed: int = 0
    exercise: str = ""  # the id of the one that is being checked
    names: list = field(default_factory=list)  # the parameters of its check
    records: dict = field(default_factory=dict)  # exercise id -> dict as in results.json
    loans: dict = field(default_factory=dict)  # exercise id -> the course's objects, as lent last
    letters: dict = field(default_factory=dict)  # id of a quiz -> {question: its first letter}
    faults: list = field(default_factory=list)  # CheckFailed, of the check that runs
    observed: tuple = ()  # the objects of the observation that was made last
    reference: object = None  # exercise id -> source of the course's own object, or None
    namespace: dict = field(default_factory=dict)  # where the learner's code looks names up

    def clear(self) -> None:
        """Forget what was judged and lent, and where solutions come from.

        The first letters of a quiz stay: a lab that is started again does not make them new.
        """
        self.records.clear()
        self.loans.clear()
        self.reference, self.namespace = None, {}

    def note(self, exercise: dict, status: str, earned: int = 0, message: str = "") -> None:
        """Record how an exercise went."""
        record = {key: exercise[key] for key in ("id", "name", "points")}
        record |= {"earned": earned, "status": status, "message": message}
        self.records[exercise["id"]] = record

    def blame(self, failure: CheckFailed) -> None:
        """Collect a fault of what was observed last."""
        failure.about = self.observed
        self.faults.append(failure)

    def call(self, f: Callable, data: Sequence) -> object:
        """`f(*data)` as plain data; raises NotWritten, or CheckFailed when `f` raises.

        What `f` leaves changed, of its inputs or of torch's settings, goes into `faults`.
        """
        faults, given = [], copied(data)
        NOTED.clear()
        before = picture(list(data))
        with settings(self.seed + OTHER, faults):
            try:
                result = f(*given)
            except NotImplementedError as error:
                if error.args:  # torch raises it too, with a message
                    raise CheckFailed(_explained(error)) from None
                raise NotWritten from None
            except CheckFailed:
                raise
            except Exception as error:
                raise CheckFailed(_explained(error)) from None
        faults += _changed(f, before, given)
        for text in faults + NOTED:
            self.blame(CheckFailed(text))
        try:
            return plain(result)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise CheckFailed(error) from None

    def stand_ins(self, id: str) -> dict[str, str]:
        """`{id: source of the course's own objects}` of the exercises before `id` that are open.

        What `id` itself is about is not lent: an instructor's check may ask for the same, too.
        """
        lab, _, number = id.partition(".")
        found, mine = {}, set(NAMES.get(id, ()))
        for other in NAMES if self.reference else ():
            its_lab, _, its_number = other.partition(".")
            standing = self.records.get(other, {}).get("status") in STANDS
            before = its_lab == lab and number.isdecimal() and its_number.isdecimal()
            before = before and int(its_number) < int(number) and not mine & set(NAMES[other])
            if before and not standing:
                found[other] = self.reference(other)
        return {other: source for other, source in found.items() if source}

    @contextlib.contextmanager
    def lent(self, sources: dict[str, str]) -> Iterator[dict]:
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


def kept(f: Callable, *args: object) -> object:
    """`f(*args)`, for probes that make inputs themselves; it is a fault if one is left changed.

    Of a model count its training mode, what trains, the active adapter, hooks and weights.
    It is told of `f` by its name, which may be in a `functools.partial`.
    """
    before = [picture(arg) for arg in args]
    result = f(*args)
    name = getattr(getattr(f, "func", f), "__name__", "<")
    told = "it" if name.startswith("<") else name  # a lambda's is "<lambda>"
    NOTED.extend(told + line.removeprefix("it") for line in _changed(f, before, args))
    return result


def defined_by(source: str) -> dict:
    """The names that the course's own `source` defines; a traceback shows no line of it."""
    space = {"__name__": "lent"}
    exec(compile(source, "<the course's own>", "exec"), space)
    return space


def _changed(f, before, after):
    """What `f` did to its arguments, a line each, with the names of its parameters if it tells."""
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []
    names += [f"number {i + 1}" for i in range(len(names), len(after))]
    triples = zip(before, after, names, strict=False)
    return [line for triple in triples for line in changes(*triple)]


def _explained(error):
    """One line on an exception in the learner's code: which, where, and the line itself."""
    what = f"{type(error).__name__}: {error}".rstrip(".: \n")  # more follows
    what += hint(what)
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
