"""A session: how a check reaches a learner's objects, and what is recorded about them."""

import contextlib
import inspect
import linecache
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from labkit.contract.hints import hint
from labkit.contract.kept import changes, picture, settings
from labkit.errors import LabError

AND = "\n"  # between the faults of one answer
OTHER = 1 << 40  # so that a learner's manual_seed(0) is noticed
STANDS = ("passed", "revealed", "lent")  # statuses of exercises with usable objects
NAMES = {}  # exercise id -> the learner's objects that it is about
WORDS = {"Tensor": "a tensor", "Parameter": "a tensor", "ndarray": "a NumPy array"}
NOTED = []  # changes found by `kept` in the current call


class CheckFailed(LabError):
    """The answer is wrong; `earned` is the number of points that it still gets.

    `message` is one fault, or a list of faults, one per line. A `bare` fault only shows numbers, so
    faults that name a mistake come first. `about` lists the last observed objects, called "it".
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
    """No answer from the learner's process: the object is missing, or a call ended the process."""


@dataclass
class Session:
    """Where the learner's code runs and which seed the inputs use: this process, and 0."""

    seed: int = 0
    exercise: str = ""  # the id being checked
    objects: dict = field(default_factory=dict)  # what its check receives, by name
    records: dict = field(default_factory=dict)  # exercise id -> dict as in results.json
    loans: dict = field(default_factory=dict)  # exercise id -> the course's objects lent last
    letters: dict = field(default_factory=dict)  # id of a quiz -> {question: its first letter}
    faults: list = field(default_factory=list)  # CheckFailed, of the running check
    observed: tuple = ()  # the objects observed last
    reference: object = None  # exercise id -> source of the course's own object, or None
    namespace: dict = field(default_factory=dict)  # where the learner's code looks names up

    def clear(self) -> None:
        """Forget verdicts, loans and solutions, but not a quiz's first letters."""
        self.records.clear()
        self.loans.clear()
        self.reference, self.namespace = None, {}

    def note(self, exercise: dict, status: str, earned: int = 0, message: str = "") -> None:
        """Record the result of an exercise."""
        record = {key: exercise[key] for key in ("id", "name", "points")}
        record |= {"earned": earned, "status": status, "message": message}
        self.records[exercise["id"]] = record

    def blame(self, failure: CheckFailed) -> None:
        """Record a fault of the objects observed last."""
        failure.about = self.observed
        self.faults.append(failure)

    def call(self, f: Callable, data: Sequence) -> object:
        """`f(*data)` as plain data; raises NotWritten, or CheckFailed if `f` raises.

        Changes by `f` to its inputs or to torch's settings are added to `faults`.
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
        """`{id: source of the course's own objects}` for the open exercises before `id`.

        Objects that `id` itself is about are not lent: an instructor's check may share them.
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
        """Replace the learner's objects by the course's, `{id: source}`; yield `{name: object}`."""
        theirs = {}
        for id, source in sources.items():
            own = defined_by(source)
            theirs |= {name: own[name] for name in NAMES[id] if name in own}
        checked = map(inspect.unwrap, self.objects.values())  # they may be from another module
        spaces = [self.namespace, *(getattr(one, "__globals__", {}) for one in checked)]
        before = [{name: space[name] for name in theirs if name in space} for space in spaces]
        for space in spaces:
            space.update(theirs)
        try:
            yield theirs
        finally:
            for space, own in zip(spaces, before, strict=True):
                for name in theirs:
                    space.pop(name, None)
                space.update(own)


def kept(f: Callable, *args: object) -> object:
    """Return `f(*args)` for probes that make their own inputs; changed inputs are faults.

    For a model this includes its training mode, trainable parameters, active adapter, hooks and
    weights. The fault names `f`, even inside a `functools.partial`.
    """
    before = [picture(arg) for arg in args]
    result = f(*args)
    name = getattr(getattr(f, "func", f), "__name__", "<")
    subject = "it" if name.startswith("<") else name  # a lambda's is "<lambda>"
    NOTED.extend(subject + line.removeprefix("it") for line in _changed(f, before, args))
    return result


def defined_by(source: str) -> dict:
    """The names that the course's own `source` defines; tracebacks don't show its lines."""
    space = {"__name__": "lent"}
    exec(compile(source, "<the course's own>", "exec"), space)
    return space


def _changed(f, before, after):
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []
    names += [f"number {i + 1}" for i in range(len(names), len(after))]
    triples = zip(before, after, names, strict=False)
    return [line for triple in triples for line in changes(*triple)]


def _explained(error):
    """One line about an exception in the learner's code: its type, message and line in the cell."""
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


def plain(value: object) -> object:
    """`value` with every tensor detached, on the CPU and copied; TypeError for other data.

    Plain data is None, bool, int, float, str, tensors, and lists, tuples (as lists) and dicts of
    these. NumPy scalars become Python numbers; a pandas DataFrame becomes a dict of lists.
    """
    import torch

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if type(value).__module__ == "numpy" and hasattr(value, "ndim"):
        if not value.ndim:
            return value.item()
        native = value.dtype.newbyteorder("=")  # torch needs native byte order and positive strides
        return torch.from_numpy(value.astype(native, order="C", copy=True))
    if type(value).__name__ == "DataFrame":
        return {str(name): column.tolist() for name, column in value.items()}
    raise TypeError(f"it returned {kind(value)}, which a check cannot read")


def kind(value: object) -> str | None:
    """A value's type as a noun, such as "an SFTTrainer"; None for None."""
    name = type(value).__name__
    if value is None or name in WORDS:
        return WORDS.get(name)
    return f"an {name}" if name[0].lower() in "aeiou" or name.startswith("SFT") else f"a {name}"


def copied(data: object) -> object:
    """A copy of `data`, with tensors in nested lists, tuples and dicts cloned (same grad flag)."""
    import torch

    if isinstance(data, torch.Tensor):
        return data.detach().clone().requires_grad_(data.requires_grad)
    if type(data) in (list, tuple):
        return type(data)(copied(item) for item in data)
    if type(data) is dict:
        return {key: copied(item) for key, item in data.items()}
    return data
