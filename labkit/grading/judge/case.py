"""One submission before the judge: run its cells, check its exercises, give verdicts."""

import contextlib
import functools
import inspect
import io
import json
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

from labkit import contract
from labkit.contract import BROKEN, ODD, CheckFailed, Verdict
from labkit.contract.calls import AND
from labkit.grading import wire
from labkit.grading.judge import own
from labkit.grading.judge.failed_cells import FailedCells
from labkit.grading.judge.remote import (
    PATIENCE,
    Down,
    Forged,
    Gone,
    Learner,
    RemoteSession,
    Undefined,
)
from labkit.grading.judge.shipped import shipped
from labkit.grading.judge.submission import PARSED
from labkit.grading.limits import TIME_UP
from labkit.grading.row import Exercise
from labkit.reference import reference

# learners' data cannot cause these: they are the check's own mistakes
OWN_MISTAKES = (ImportError, NameError, OSError, SyntaxError)
MESSAGE = 600  # characters of a message

_reference = cache(reference)


class Case:
    """One submission before the judge."""

    def __init__(self, judge, work, stem, checks, seed, deadline):
        self.judge, self.work, self.stem, self.checks = judge, work, stem, checks
        self.limits, self.seed = judge.limits, seed
        self.deadline = deadline  # end of its time on the monotonic clock
        self.names = set(object_names(checks))
        self.failed = FailedCells(work, self.names, ())
        self.down = ""  # why no more exercises can be judged
        self.used = False  # whether the answering process has served an exercise

    def judged(self) -> tuple[list[Exercise], dict]:
        """`(exercises, {"status": …})`: the results of the exercises and of the submission."""
        revealed = self._revealed()
        with self.judge.warm.submission() as link:
            self.session = RemoteSession(link, self.seed, self.limits, self.deadline)
            self.session.reference = functools.partial(_reference, self.stem)
            try:
                self._run_cells(link)
            except (Down, OSError, wire.WireError, ValueError, TypeError) as error:
                self.down = line(error) or "the submission's processes ended"
            exercises = [self._outcome(check, revealed) for check in self.checks]
        return exercises, self._state(exercises)

    def _outcome(self, check, revealed):
        """The result of one exercise; `revealed` says which exercises earn nothing, and why."""
        id, name, points = (check.exercise[key] for key in ("id", "name", "points"))
        if id in revealed:
            return Exercise(id, name, points, 0, "revealed", line(revealed[id]))
        status, earned, message = self._judge(check)[:3]
        if status == "missing" and id in self.work.lent:
            message = "the course lent this solution, and there is no answer of your own"
        return Exercise(id, name, points, earned, status, line(message))

    def _judge(self, check):
        if not self.down and time.monotonic() > self.deadline:
            return Verdict("timeout", 0, TIME_UP)
        if not self.down:
            try:
                return self._as_then(check, self._exercise(check))
            except Down as error:
                self.down = str(error)
        return Verdict("error", 0, self.down)

    def _state(self, exercises):
        """The status of the whole submission, with a reason if something went wrong."""
        if self.down:
            return {"status": "crashed", "reason": self.down}
        troubles = self.failed.troubles()
        if any((e.status, e.message) == ("timeout", TIME_UP) for e in exercises):
            seconds = self.limits.submission_seconds
            why = f"it took more than {seconds:g} s in all; what was done by then is graded"
            return {"status": "timeout", "reason": line("; ".join(filter(None, [why, troubles])))}
        return {"status": "graded"} | ({"reason": line(troubles)} if troubles else {})

    def _revealed(self):
        """`{id: evidence}` of exercises that earn nothing because their solutions were shown.

        Without outputs a call may have shown the solution or lent it unseen: then any answer except
        the solution itself counts.
        """
        found = dict(self.work.asked)
        for check in self.checks:
            id, name = check.exercise["id"], check.exercise["names"][0]
            cell = self.work.cell_of(name) if id in found else None
            if cell is not None and own.is_own(self.stem, name, self.work.cells[cell][:PARSED]):
                del found[id]
        return found | dict.fromkeys(self.work.shown, "the solution was revealed")

    def _run_cells(self, link):
        """Run the cells except experiments, and ship what the exercises need."""
        cells = [
            source if i not in self.work.experiments or self.names & self.work.defines[i] else ""
            for i, source in enumerate(self.work.cells)
        ]
        task = {"cells": cells, "needed": sorted(self.work.needed(self.names))}
        task["seconds"] = max(1, self.deadline - time.monotonic())
        wire.send(link, b"C", json.dumps(task).encode())
        frame = wire.receive(link, self.limits.reply_bytes, self.deadline + PATIENCE)
        if frame is None or frame[0] != b"D":
            raise Down(frame[1].decode() if frame else "")
        self.failed = FailedCells(self.work, self.names, json.loads(frame[1]))
        wire.send(link, b"B", shipped(self.stem))

    def _exercise(self, check):
        """The Verdict of an exercise; a failure, or a process that ended, is tried again."""
        fresh, tries = not self.used, 0
        while True:
            self.session.begin(fresh)
            verdict = self._verdict(check)
            self.used = not self.session.ended and (self.used or self.session.asked > 0)
            tries += 1
            in_fresh = fresh or self.session.spent
            final = in_fresh and (verdict.status != "error" or tries > 1)
            if verdict.status in ("passed", "missing") or final:
                return verdict
            fresh = True

    def _as_then(self, check, verdict):
        """`verdict`, or after a failure, one with names as the exercise's own cell left them.

        In a notebook the check ran at that point. A later cell may have reused a name (`sum = 0`),
        which is not the answer's fault.
        """
        cells = [self.work.cell_of(name) for name in check.exercise["names"]]
        if verdict.status != "failed" or None in cells:
            return verdict
        taken = self.work.taken_below(max(cells)) - set(check.exercise["names"])
        if not taken:
            return verdict
        self.session.then = max(cells)
        self.session.begin(fresh=True)
        try:
            then = self._verdict(check)
        finally:
            self.session.then, self.session.spent = None, True
        if then.status != "passed":
            return verdict
        why = "right at its own cell, but cells below reuse its names: "
        return then._replace(message=why + ", ".join(sorted(taken)[:5]))

    def _verdict(self, check):
        try:
            record = self._tried(check)
        except Undefined as name:
            if str(name) not in check.exercise["names"]:
                return Verdict("error", 0, str(Forged()))
            return self.failed.undefined(str(name))
        except Gone as gone:
            return Verdict(gone.how, 0, str(gone))
        except Forged as forged:
            return Verdict("error", 0, str(forged))
        except Down:
            raise
        except OWN_MISTAKES as error:
            return Verdict("error", 0, f"{BROKEN}: {_where(error, check)}: {error}")
        except Exception as error:  # a check that fails on unforeseen data
            return Verdict("failed", 0, f"{ODD} ({_where(error, check)})")
        message = record["message"][: 4 * MESSAGE]
        if message.startswith((BROKEN, ODD)):  # raised by the answer itself
            message = f"it says: {message}"
        if record["status"] == "missing":  # the stub; did a later cell fail?
            reasons = [message, *(self.failed.of_cell(name)[1] for name in check.exercise["names"])]
            message = next(filter(None, reasons), "")
        return Verdict(record["status"], record["earned"], message + self.failed.cause(message))

    def _tried(self, check):
        id, before = check.exercise["id"], contract.session
        self.session.records.pop(id, None)
        contract.session = self.session
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(CheckFailed):
                check(*map(Learner, check.exercise["names"]))
        finally:
            contract.session = before
        return self.session.records[id]


def object_names(checks: list[Callable]) -> list[str]:
    """The names of the objects that `checks` are about."""
    return [name for check in checks for name in check.exercise["names"]]


def _where(error, check):
    """An exception's kind, and the last file and line of a check in its traceback."""
    own = inspect.unwrap(check).__code__.co_filename
    frames = traceback.extract_tb(error.__traceback__)
    at = [f for f in frames if f.filename == own or "checks" in Path(f.filename).parts][-1]
    return f"{type(error).__name__} in {Path(at.filename).name}, line {at.lineno}"


def line(message: object) -> str:
    """Printable text, cut to a length that fits a table; each fault keeps its line."""
    text = "".join(c if c.isprintable() or c == AND else " " for c in str(message)[: 4 * MESSAGE])
    return AND.join(" ".join(fault.split()) for fault in text.split(AND))[:MESSAGE]
