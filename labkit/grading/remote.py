"""The session in which a check judges objects that live in another process."""

import hashlib
import inspect
import json
import secrets

from labkit.grading import wire
from labkit.grading.contract import CheckFailed, NotWritten, Session


class Learner:
    """Stands for an object of the submission; it has a name and nothing else."""

    def __init__(self, name):
        self.name = name


class Undefined(Exception):
    """The submission does not define this name."""


class Gone(Exception):
    """The process that answers ended, or took too long; `how` is "timeout" or "error"."""

    def __init__(self, how, why, fresh=True):
        super().__init__(why)
        self.how, self.fresh = how, fresh


class Forged(Exception):
    """A reply is no answer to the question: broken, or made up."""


class RemoteSession(Session):
    """Sends each observation over `link` and checks what comes back."""

    def __init__(self, link, seed, limits):
        super().__init__(seed=seed)
        self.link, self.limits = link, limits
        self.asked = 0

    def call(self, f, data):
        """As `Session.call`: the same results, and the same exceptions."""
        nonce = secrets.token_hex(8)
        self.asked += 1
        question = {"seed": self._seed(), "f": f, "data": list(data)}
        wire.send(self.link, b"A", f"{nonce}\n".encode() + wire.pack(question, _name))
        how, what = self._reply(nonce)
        if how == "value":
            return what
        if how == "missing":
            raise NotWritten
        if type(what) is not str:
            raise Forged("forged or broken reply")
        if how == "undefined":
            raise Undefined(what)
        raise CheckFailed(what)

    def _seed(self):
        """A seed for the learner's random numbers that tells nothing about ours."""
        text = f"{self.seed}:{self.exercise}:{self.asked}:theirs"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])

    def _reply(self, nonce):
        frame = wire.receive(self.link, self.limits.reply_bytes)
        if frame is None:
            raise Gone("error", "the submission's process ended")
        if frame[0] == b"G":
            told = json.loads(frame[1])
            raise Gone(told["how"], told["why"], told["fresh"])
        try:
            reply = wire.unpack(frame[1])
            came, how, what = reply
        except (wire.WireError, TypeError, ValueError):
            raise Forged("forged or broken reply") from None
        if came != nonce or how not in ("value", "missing", "failed", "undefined"):
            raise Forged("forged or broken reply")
        return how, what


def _name(thing):
    """How an object that stays on the other side is named on the wire."""
    if isinstance(thing, Learner):
        return thing.name
    if inspect.isfunction(thing):
        return f"{thing.__module__}:{thing.__qualname__}"
    return None
