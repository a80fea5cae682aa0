"""The trusted process: runs the checks, asks the submission's process, and gives the verdict."""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pkgutil import iter_modules

import labkit.checks
from labkit import contract, reference
from labkit.errors import LabError
from labkit.grading import wire
from labkit.grading.judge import private, submission
from labkit.grading.judge.case import Case, object_names
from labkit.grading.limits import LONGEST_SOURCE, Limits
from labkit.grading.row import Row
from labkit.grading.warm import WarmProcess


class Judge:
    """Grades submissions one after another, with one warm process."""

    def __init__(self, limits: Limits, unsafe: bool = False, checks: str | None = None):
        self.limits = limits
        self.warm = WarmProcess(self.limits, "bare" if unsafe else "nested")
        self.path, self.own, self.known = checks, [], {}

    def start(self) -> None:
        """Start the warm process and load the checks. LabError if something is missing."""
        self.warm.begin()
        import torch

        torch.set_num_threads(1)
        try:
            self.own = private.load(self.path) if self.path else []
            self.warm.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the warm process."""
        self.warm.end()

    def grade(
        self, name: str, data: bytes, seed: int, seconds: float | None = None
    ) -> tuple[Row, dict[str, str]]:
        """`(row, cells by exercise)` of a notebook; a second try has `seconds` left."""
        begun = time.monotonic()
        try:
            work = submission.read(data)
            stem = self._lab(work)
        except submission.Unreadable as reason:
            return Row(name, "unreadable", str(reason)), {}
        checks = self.checks(stem)
        deadline = time.monotonic() + (seconds or self.limits.submission_seconds)
        exercises, state = Case(self, work, stem, checks, seed, deadline).judged()
        row = Row(name, **state, lab=stem, exercises=exercises)
        row.earned = sum(exercise.earned for exercise in row.exercises)
        row.possible = sum(exercise.points for exercise in row.exercises)
        row.seconds = round(time.monotonic() - begun, 3)
        return row, _sources(work, checks, reference.course_cells(stem))

    def _lab(self, work):
        """The stem of the submission's lab; Unreadable if it belongs to no lab."""
        names, known = work.names() - {"quiz"}, stems()
        started = [known[number] for number in sorted(work.started & known.keys())]
        tried = started or known.values()
        fits = {stem: len(names & set(object_names(self.checks(stem)))) for stem in tried}
        best = max(fits, key=fits.get)
        if not fits[best] and not started:
            raise submission.Unreadable("not a lab of this course: it defines no exercise")
        return best

    def checks(self, stem: str) -> list[Callable]:
        """The checks of a lab, by exercise id; an instructor's own replace the course's."""
        if stem not in self.known:
            found = reference.checks(stem)
            found += [f for f in self.own if private.of_lab(f, stem)]
            by_id = {f.exercise["id"]: f for f in found}
            self.known[stem] = [by_id[id] for id in sorted(by_id, key=contract.natural)]
        return self.known[stem]


@cache
def stems() -> dict[str, str]:
    """{"02": "02_lora"} of the labs that have checks. One without a notebook here is "02".

    Only the lab's number in a submission is used: the rest is untrusted text.
    """
    found = (re.fullmatch(r"lab(\d\d)", part.name) for part in iter_modules(labkit.checks.__path__))
    numbers = sorted(match[1] for match in found if match)
    package = Path(labkit.checks.__file__).parents[1]
    folders = [package / "_solutions", package / "_lent"]
    folders += [package.parent / name for name in ("solutions", "notebooks", "labs")]
    files = (file for folder in folders for file in folder.glob("[0-9][0-9]_*.*"))
    names = {file.stem[:2]: file.stem for file in files}
    return {number: names.get(number, number) for number in numbers}


def _sources(work, checks, course):
    """{exercise id: the cells that define its own objects}, in their last version.

    An object belongs to the exercise whose check names it first, else to the first that uses it.
    The key "" has all other cells, except experiments and the course's own.
    """
    owner = {check.exercise["names"][0]: check for check in reversed(checks)}
    for check in checks:
        for name in check.exercise["names"]:
            owner.setdefault(name, check)
    sources, theirs = {}, {cell.strip() for cell in course}
    rest = set(range(len(work.cells))) - work.experiments
    for check in checks:
        names = [n for n in check.exercise["names"] if owner[n] is check]
        cells = {work.cell_of(name) for name in names or check.exercise["names"][:1]} - {None}
        text = "\n\n".join(work.cells[i] for i in sorted(cells))
        sources[check.exercise["id"]] = text[: LONGEST_SOURCE + 1]
        rest -= cells
    others = [work.cells[i] for i in sorted(rest) if work.cells[i].strip() not in theirs]
    return sources | {"": "\n\n".join(others)[:LONGEST_SOURCE]}


def _send(link, kind, body):
    """Send to the controller; exit if it is gone."""
    try:
        wire.send(link, kind, body.encode())
    except BrokenPipeError:
        raise SystemExit(1) from None


def main() -> None:
    """Serve a controller on descriptor argv[1].

    Frames from the controller: S, the set-up; G, a notebook to grade. Frames to the controller: H,
    ready; R, a row; X, an error.
    """
    link = socket.socket(fileno=int(sys.argv[1]))
    setup = json.loads(wire.receive(link, 1 << 20)[1])
    if setup["cores"]:
        os.sched_setaffinity(0, setup["cores"])
    judge = Judge(Limits(**setup["limits"]), setup["unsafe"], setup["checks"])
    try:
        judge.start()
        _send(link, b"H", "")
        while frame := wire.receive(link, judge.limits.notebook_bytes + (1 << 20)):
            head, _, data = frame[1].partition(b"\n")
            order = json.loads(head)
            row, sources = judge.grade(order["name"], data, order["seed"], order["seconds"])
            _send(link, b"R", json.dumps([row.data(), sources]))
    except LabError as error:
        _send(link, b"X", str(error))
    except KeyboardInterrupt:
        pass
    finally:
        judge.stop()


if __name__ == "__main__":
    main()
