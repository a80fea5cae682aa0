"""The trusted process: runs the checks, asks the submission's process, and makes the verdict."""

import contextlib
import difflib
import functools
import importlib
import inspect
import io
import json
import os
import re
import socket
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from pkgutil import iter_modules

import labkit.checks
from labkit import contract
from labkit.contract import BROKEN, ODD, CheckFailed
from labkit.errors import LabError
from labkit.grading import wire
from labkit.grading.judge import own, private, submission
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
from labkit.grading.limits import LONGEST_SOURCE, TIME_UP, Limits
from labkit.grading.row import Exercise, Row
from labkit.grading.warm import WarmProcess
from labkit.reference import reference

# what learners' data cannot bring about: an exception of these kinds is the check's own mistake
OWN_MISTAKES = (ImportError, NameError, OSError, SyntaxError)
MESSAGE = 600  # characters of a message
LENT = "the course lent this one"
UNDEFINED = re.compile(r"\bname '(\w+)' is not defined")
NAMES = 1000  # of a submission, among which one is sought that is nearly right


class Judge:
    """Grades submissions one after another, with one warm process."""

    def __init__(self, limits=None, unsafe=False, checks=None):
        self.limits = limits or Limits()
        self.warm = WarmProcess(self.limits, "bare" if unsafe else "nested")
        self.path, self.own, self.known = checks, [], {}

    def start(self):
        """Get ready; the warm process warms up meanwhile. LabError when something is missing."""
        self.warm.begin()
        import torch

        torch.set_num_threads(1)
        try:
            self.own = private.load(self.path) if self.path else []
            self.warm.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """End the warm process."""
        self.warm.end()

    def grade(self, name, data, seed, seconds=None):
        """`(row, sources)`: the row of results.json, and the learner's cell of each exercise.

        `seconds` are what a second try has left of the submission's time.
        """
        begun = time.monotonic()
        try:
            work = submission.read(data)
            stem = self._lab(work)
        except submission.Unreadable as reason:
            return Row(name, "unreadable", str(reason)), {}
        checks = self.checks(stem)
        over = time.monotonic() + (seconds or self.limits.submission_seconds)
        records, state = Case(self, work, stem, checks, seed, over).judged()
        row = Row(name, **state, lab=stem, exercises=[Exercise(**record) for record in records])
        row.earned = sum(exercise.earned for exercise in row.exercises)
        row.possible = sum(exercise.points for exercise in row.exercises)
        row.seconds = round(time.monotonic() - begun, 3)
        return row, _sources(work, checks)

    def _lab(self, work):
        """The stem of the lab that a submission is of; Unreadable when it is of none."""
        names, known = work.names() - {"quiz"}, stems()
        started = [known[number] for number in sorted(work.started & known.keys())]
        tried = started or known.values()
        fits = {stem: len(names & set(_names(self.checks(stem)))) for stem in tried}
        best = max(fits, key=fits.get)
        if not fits[best] and not started:
            raise submission.Unreadable("no lab of this course: it defines none of the exercises")
        return best

    def checks(self, stem):
        """The checks of a lab, by the id of their exercise; an instructor's own come on top."""
        if stem not in self.known:
            module = importlib.import_module(f"labkit.checks.lab{stem[:2]}")
            found = contract.checks_of(module)
            found += [f for f in self.own if private.of_lab(f, stem)]
            by_id = {f.exercise["id"]: f for f in found}
            self.known[stem] = [by_id[id] for id in sorted(by_id, key=contract.natural)]
        return self.known[stem]


@cache
def stems():
    """{"02": "02_lora"} of the labs that have checks. One without a notebook here is "02".

    What a submission calls its lab is text of a stranger's: its number alone is used.
    """
    found = (re.fullmatch(r"lab(\d\d)", part.name) for part in iter_modules(labkit.checks.__path__))
    numbers = sorted(match[1] for match in found if match)
    package = Path(labkit.checks.__file__).parents[1]
    folders = [package / "_solutions", package / "_lent"]
    folders += [package.parent / name for name in ("solutions", "notebooks", "labs")]
    files = (file for folder in folders for file in folder.glob("[0-9][0-9]_*.*"))
    names = {file.stem[:2]: file.stem for file in files}
    return {number: names.get(number, number) for number in numbers}


_reference = cache(reference)


def _names(checks):
    return [name for check in checks for name in check.exercise["names"]]


def _sources(work, checks):
    """{exercise id: the cells that define its own objects}, as they came last.

    An object is of the exercise whose check names it first, else of the first that uses it.
    """
    owner = {check.exercise["names"][0]: check for check in reversed(checks)}
    for check in checks:
        for name in check.exercise["names"]:
            owner.setdefault(name, check)
    sources = {}
    for check in checks:
        names = [n for n in check.exercise["names"] if owner[n] is check]
        cells = {work.cell_of(name) for name in names or check.exercise["names"][:1]} - {None}
        text = "\n\n".join(work.cells[i] for i in sorted(cells))
        sources[check.exercise["id"]] = text[: LONGEST_SOURCE + 1]
    return sources


class Case:
    """One submission before the judge."""

    def __init__(self, judge, work, stem, checks, seed, over):
        self.judge, self.work, self.stem, self.checks = judge, work, stem, checks
        self.limits, self.seed = judge.limits, seed
        self.over = over  # the end of its time on the monotonic clock
        self.went = {}  # index of a cell -> (how, why) it went wrong
        self.used = False  # whether the process that answers has served an exercise

    def judged(self):
        """`(records, {"status": …})`: the exercises as in results.json, and how all went."""
        records, down = [], None
        revealed = self._revealed()
        with self.judge.warm.submission() as link:
            self.session = RemoteSession(link, self.seed, self.limits, self.over)
            self.session.reference = functools.partial(_reference, self.stem)
            try:
                self._run_cells(link)
            except (Down, OSError, wire.WireError, ValueError, TypeError) as error:
                down = line(error) or "the submission's processes ended"
            for check in self.checks:
                record = {key: check.exercise[key] for key in ("id", "name", "points")}
                if check.exercise["id"] in revealed:
                    told = ("revealed", 0, revealed[check.exercise["id"]])
                elif down:
                    told = ("error", 0, down)
                elif time.monotonic() > self.over:
                    told = ("timeout", 0, TIME_UP)
                else:
                    try:
                        told = self._as_then(check, self._exercise(check))
                    except Down as error:
                        down, told = str(error), ("error", 0, str(error))
                status, earned, message = told
                if status == "missing" and check.exercise["id"] in self.work.lent:
                    message = f"{LENT}, and no answer of one's own is here"
                message = line(message)
                records.append(record | {"earned": earned, "status": status, "message": message})
        if down:
            return records, {"status": "crashed", "reason": down}
        if any((record["status"], record["message"]) == ("timeout", TIME_UP) for record in records):
            return records, {"status": "timeout", "reason": self._time_up()}
        troubles = self._troubles()
        return records, {"status": "graded"} | ({"reason": line(troubles)} if troubles else {})

    def _time_up(self):
        told = f"it took more than {self.limits.submission_seconds:g} s in all, graded until then"
        return line("; ".join(filter(None, [told, self._troubles()])))

    def _revealed(self):
        """`{id: how that is known}` of exercises that earn nothing, for their solutions were seen.

        Without the outputs nobody knows whether a call showed the solution, or lent it unseen: then
        an answer counts that is not the solution itself.
        """
        found = dict(self.work.asked)
        for check in self.checks:
            id, name = check.exercise["id"], check.exercise["names"][0]
            cell = self.work.cell_of(name) if id in found else None
            if cell is not None and own.is_own(self.stem, name, self.work.cells[cell][:PARSED]):
                del found[id]
        return found | dict.fromkeys(self.work.shown, "the solution was revealed")

    def _run_cells(self, link):
        """Have the cells run, but for experiments, and ship what the exercises need."""
        names = set(_names(self.checks))
        cells = [
            source if i not in self.work.experiments or names & self.work.defines[i] else ""
            for i, source in enumerate(self.work.cells)
        ]
        task = {"cells": cells, "needed": sorted(self.work.needed(names))}
        task["seconds"] = max(1, self.over - time.monotonic())
        wire.send(link, b"C", json.dumps(task).encode())
        frame = wire.receive(link, self.limits.reply_bytes, self.over + PATIENCE)
        if frame is None or frame[0] != b"D":
            raise Down(frame[1].decode() if frame else "")
        self.went = {int(index): (str(how), str(why)) for index, how, why in json.loads(frame[1])}
        wire.send(link, b"B", shipped(self.stem))

    def _exercise(self, check):
        """`(status, earned, message)`. What does not pass is tried again in a fresh process.

        What ended its process is tried again even where that was a fresh one: a busy machine may
        have ended it.
        """
        fresh, tries = not self.used, 0
        while True:
            self.session.begin(fresh)
            status, earned, message, ended = self._verdict(check)
            self.used = not ended and (self.used or self.session.asked > 0)
            tries += 1
            in_fresh = fresh or self.session.spent
            if status in ("passed", "missing") or (in_fresh and (status != "error" or tries > 1)):
                return status, earned, message
            fresh = True

    def _as_then(self, check, told):
        """`told`; for an exercise that failed how it goes with names as its own cell left them.

        In a notebook its check ran there. A later cell may have taken a name that it uses for
        something else (`sum = 0`), which is no fault of its answer.
        """
        cells = [self.work.cell_of(name) for name in check.exercise["names"]]
        if told[0] != "failed" or None in cells:
            return told
        taken = self.work.taken_below(max(cells)) - set(check.exercise["names"])
        if not taken:
            return told
        self.session.then = max(cells)
        self.session.begin(fresh=True)
        try:
            status, earned, _, _ = self._verdict(check)
        finally:
            self.session.then, self.session.spent = None, True
        if status != "passed":
            return told
        names = ", ".join(sorted(taken)[:5])
        return status, earned, f"right where it stands; cells below use its names anew: {names}"

    def _verdict(self, check):
        """`(status, earned, message, whether the process that answers has ended)`."""
        id, names = check.exercise["id"], check.exercise["names"]
        records, before = self.session.records, contract.session
        records.pop(id, None)
        contract.session = self.session
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                check(*map(Learner, names))
        except CheckFailed:
            pass
        except Undefined as name:
            if str(name) not in names:
                return "error", 0, str(Forged()), False
            return *self._undefined(str(name)), False
        except Gone as gone:
            return gone.how, 0, str(gone), True
        except Forged as forged:
            return "error", 0, str(forged), False
        except Down:
            raise
        except OWN_MISTAKES as error:
            return "error", 0, f"{BROKEN}: {_where(error, check)}: {error}", False
        except Exception as error:  # a check that trips over data of a form that nobody foresaw
            return "failed", 0, f"{ODD} ({_where(error, check)})", False
        finally:
            contract.session = before
        record = records[id]
        record["message"] = record["message"][: 4 * MESSAGE]
        if record["status"] == "missing":  # the stub; did what came after it go wrong?
            told = [record["message"], *(self._of_cell(name)[1] for name in names)]
            record["message"] = next(filter(None, told), "")
        record["message"] += self._cause(record["message"])
        return record["status"], record["earned"], record["message"], False

    def _undefined(self, name):
        """`(status, earned, message)` of an exercise whose object is not there."""
        told = f"{name} is not defined"
        status, why = self._of_cell(name)
        if why:
            return status, 0, f"{told}: {why}"
        if name in self.work.elsewhere:
            return "missing", 0, f"{told}: it stands in a cell that is not of the kind Code"
        others = sorted(self.work.names() - set(_names(self.checks)))[:NAMES]
        if near := difflib.get_close_matches(name, others, 1, 0.75):
            return "missing", 0, f"{told}; there is {near[0]}"
        return "missing", 0, told

    def _of_cell(self, name):
        """`(status, what went wrong)` of the cell that defines `name`; both empty if all went."""
        how, why = self.went.get(self.work.cell_of(name), ("", ""))
        if how == "raised":
            return "missing", f"its cell raised {why}{self._cause(why)}"
        return how, f"its cell {why.removeprefix('it ')}" if why.startswith("it ") else why

    def _cause(self, message):
        """Why the name that `message` says is not defined is not there, in brackets; or ""."""
        for name in UNDEFINED.findall(message):
            cell = self.work.cell_of(name)
            if cell in self.went:
                how, why = self.went[cell]
                told = f"raised {why}" if how == "raised" else why.removeprefix("it ")
                return f" ({name} should come from code cell {cell + 1}, which {told})"
            if cell in self.work.experiments:
                return f" ({name} comes from code cell {cell + 1}, an experiment: none is run here)"
        return ""

    def _troubles(self):
        """The cells that hung, or that took their process with them, as one text."""
        ended = [(i, why) for i, (how, why) in sorted(self.went.items()) if how != "raised"]
        return "; ".join(f"code cell {i + 1}: {why}" for i, why in ended[:5])


def _where(error, check):
    """An exception's kind, and the last file and line of a check that it came through."""
    own = inspect.unwrap(check).__code__.co_filename
    frames = traceback.extract_tb(error.__traceback__)
    at = [f for f in frames if f.filename == own or "checks" in Path(f.filename).parts][-1]
    return f"{type(error).__name__} in {Path(at.filename).name}, line {at.lineno}"


def line(message):
    """One line of printable text, cut to a length that a table can take."""
    text = "".join(c if c.isprintable() else " " for c in str(message)[: 4 * MESSAGE])
    return " ".join(text.encode("utf-8", "replace").decode().split())[:MESSAGE]


def _tell(link, kind, body):
    """Send to the controller; where that is gone, there is no more to do."""
    try:
        wire.send(link, kind, body.encode())
    except BrokenPipeError:
        raise SystemExit(1) from None


def main():
    """Serve a controller on descriptor argv[1]: a notebook comes, a row goes."""
    link = socket.socket(fileno=int(sys.argv[1]))
    setup = json.loads(wire.receive(link, 1 << 20)[1])
    if setup["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setup["cores"])
    judge = Judge(Limits(**setup["limits"]), setup["unsafe"], setup["checks"])
    try:
        judge.start()
        _tell(link, b"H", json.dumps({"nested": judge.warm.nested}))
        while frame := wire.receive(link, judge.limits.notebook_bytes + (1 << 20)):
            head, _, data = frame[1].partition(b"\n")
            asked = json.loads(head)
            row, sources = judge.grade(asked["name"], data, asked["seed"], asked["seconds"])
            _tell(link, b"R", json.dumps([row.data(), sources]))
    except LabError as error:
        _tell(link, b"X", str(error))
    except KeyboardInterrupt:
        pass
    finally:
        judge.stop()


if __name__ == "__main__":
    main()
