"""The session in which a check judges objects of another process."""

import contextlib
import hashlib
import inspect
import json
import secrets
from collections.abc import Iterator, Sequence

from labkit.contract import NAMES, CheckFailed, NoAnswer, NotWritten, Session
from labkit.grading import wire
from labkit.grading.judge import private

HOWS = ("value", "missing", "failed", "undefined")
FAULTS = 8  # faults per reply, at most
PATIENCE = 60  # extra seconds for the supervisor to report a timeout


class Learner:
    """A placeholder for an object of the submission, with only a name."""

    def __init__(self, name):
        self.name = name


class Undefined(NoAnswer):
    """The submission does not define this name."""


class Gone(NoAnswer):
    """The answering process ended, or took too long; `how` is "timeout" or "error"."""

    def __init__(self, how, why):
        super().__init__(why)
        self.how = how


class Down(Exception):
    """The submission's supervisor is gone, so no more exercises can be judged."""


class Forged(Exception):
    """A reply that does not answer the question: it is broken or made up."""

    def __init__(self):
        super().__init__("forged or broken reply")


class RemoteSession(Session):
    """Sends each observation over `link` and checks the reply."""

    def __init__(self, link, seed, limits, deadline):
        """`deadline` is the end of the submission's time on the monotonic clock."""
        super().__init__(seed=seed)
        self.link, self.limits, self.deadline = link, limits, deadline
        self.asked = 0
        self.lending = []  # [names, source] of the course's own objects while lent
        self.then = None  # index of the cell whose names to restore
        self.ended = False  # whether the answering process has ended in this try
        self.spent = False  # whether the answering process must not serve again

    def call(self, f: object, data: Sequence) -> object:
        """As `Session.call`: the same results, and the same exceptions."""
        nonce, sources = secrets.token_hex(8), []
        self.asked += 1
        question = {"seed": self.their_seed(), "f": f, "data": list(data)}
        body = wire.pack(question, lambda thing: _reference(thing, sources))
        head = {"nonce": nonce, "sources": sources, "lent": self.lending, "then": self.then}
        head = json.dumps(head).encode()
        try:
            wire.send(self.link, b"A", head + b"\n" + body)
            how, what, faults = self._reply(nonce)
        except OSError:
            raise Down("the submission's processes ended") from None
        for text in faults:
            self.blame(CheckFailed(text))
        if how == "value":
            return what
        if how == "missing":
            raise NotWritten
        if type(what) is not str:
            raise Forged
        if how == "undefined":
            raise Undefined(what)
        raise CheckFailed(what)

    def begin(self, fresh: bool = False) -> None:
        """Begin an exercise, or a new try at it; `fresh` asks for an unused process."""
        try:
            wire.send(self.link, b"N", b"1" if fresh or self.spent else b"0")
        except OSError:
            raise Down("the submission's processes ended") from None
        self.asked, self.ended, self.spent = 0, False, False

    @contextlib.contextmanager
    def lent(self, sources: dict[str, str]) -> Iterator[dict]:
        """As `Session.lent`, in a separate process. Yields {}: objects are referred to by name."""
        self.begin(fresh=True)
        self.lending, self.spent = [[NAMES[id], source] for id, source in sources.items()], True
        try:
            yield {}
        finally:
            self.lending = []

    def their_seed(self) -> int:
        """A seed for the learner's random numbers that reveals nothing about ours."""
        text = f"{self.seed}:{self.exercise}:{self.asked}:theirs"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])

    def _reply(self, nonce):
        frame = wire.receive(self.link, self.limits.reply_bytes, self.deadline + PATIENCE)
        if frame is None:
            raise Down("the submission's processes ended")
        if frame[0] == b"X":
            raise Down(frame[1].decode())
        if frame[0] == b"G":
            report, self.ended = json.loads(frame[1]), True
            raise Gone("timeout" if report["how"] == "timeout" else "error", str(report["why"]))
        try:
            came, how, what, faults = wire.unpack(frame[1])
        except (wire.WireError, TypeError, ValueError):
            raise Forged from None
        texts = type(faults) is list and all(type(text) is str for text in faults)
        if came != nonce or how not in HOWS or not texts:
            raise Forged
        return how, what, faults[:FAULTS]


def _reference(thing, sources):
    """The name on the wire of an object that stays on the other side; None for data.

    `sources` collects the source of an instructor's own functions, which the other side lacks.
    """
    if isinstance(thing, Learner):
        return thing.name
    if not inspect.isfunction(thing):
        return None
    if thing.__module__ == private.NAME:
        sources.append(private.source_for(thing))
    return f"{thing.__module__}:{thing.__qualname__}"
