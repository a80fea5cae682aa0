"""The trusted process: runs the checks, asks the submission's process, and makes the verdict."""

import base64
import contextlib
import importlib
import io
import json
import marshal
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from labkit.grading import contract, sandbox, submission, wire
from labkit.grading.contract import CheckFailed
from labkit.grading.limits import Limits
from labkit.grading.remote import Forged, Gone, Learner, RemoteSession, Undefined

STEMS = ("01_svd", "02_lora", "03_peft", "04_qlora", "05_rank", "06_merging")
SHIPPED = ("labkit.errors", "labkit.grading.plain", "labkit.grading.contract")
SHIPPED += ("labkit.grading.wire", "labkit.grading.answer")
LINE = 600  # characters of a message


class Judge:
    """Grades submissions one after another, with one warm process."""

    def __init__(self, limits=None, unsafe=False, checks=None):
        import torch

        torch.set_num_threads(1)
        self.limits, self.unsafe = limits or Limits(), unsafe
        self.zygote = None
        self.exercises = {}

    # --- the warm process

    def start(self):
        """Start the warm process and wait until it is warm."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.zygote = subprocess.Popen(
                sandbox.command(theirs.fileno(), self.unsafe),
                env=sandbox.environment(self.unsafe),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.control = ours
        ours.sendall(json.dumps(asdict(self.limits)).encode())
        answer = ours.recv(4096)
        if not answer:
            raise contract.LabError("the sandbox does not start")
        self.nested = json.loads(answer)["nested"]

    def stop(self):
        """End the warm process."""
        if self.zygote:
            self.control.close()
            self.zygote.kill()
            self.zygote.wait()
            self.zygote = None

    @contextlib.contextmanager
    def _link(self):
        """A socket to a new submission's supervisor; afterwards all its processes are gone."""
        if self.zygote is None or self.zygote.poll() is not None:
            self.start()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self.control, [b"s"], [theirs.fileno()])
            ours.settimeout(self.limits.total_seconds + self.limits.exercise_seconds + 60)
            try:
                yield ours
            finally:
                ours.close()
                self._ended()

    def _ended(self):
        self.control.settimeout(10)
        try:
            if self.nested or self.unsafe:
                try:
                    done = self.control.recv(1)
                except TimeoutError:
                    self.control.send(b"k")
                    done = self.control.recv(1)
                if done == b".":
                    return
        except OSError:
            pass
        finally:
            self.control.settimeout(None)
        self.stop()

    # --- grading

    def grade(self, name, data, seed):
        """`(row, sources)`: the row of results.json, and the cell of each exercise."""
        begun = time.monotonic()
        row = {"submission": name, "lab": None, "earned": 0, "possible": 0}
        try:
            work = submission.read(data)
            stem = self._lab(work)
        except submission.Unreadable as reason:
            row |= {"seconds": 0.0, "status": "unreadable", "reason": str(reason), "exercises": []}
            return row, {}
        checks = self._checks(stem)
        records = self._records(work, stem, checks, seed)
        row |= {
            "lab": stem,
            "earned": sum(record["earned"] for record in records),
            "possible": sum(record["points"] for record in records),
            "seconds": round(time.monotonic() - begun, 3),
            "status": "graded",
            "exercises": records,
        }
        return row, self._sources(work, checks)

    def _lab(self, work):
        known = [stem for stem in STEMS if stem in work.started]
        if len(known) == 1:
            return known[0]
        names = work.names() - {"quiz"}
        found = {
            s: sum(c.exercise["name"] in names for c in self._checks(s)) for s in known or STEMS
        }
        best = max(found, key=found.get)
        if not found[best]:
            raise submission.Unreadable("no lab of this course: it defines none of the exercises")
        return best

    def _checks(self, stem):
        if stem not in self.exercises:
            module = importlib.import_module(f"labkit.checks.lab{stem[:2]}")
            found = [f for f in vars(module).values() if getattr(f, "exercise", None)]
            self.exercises[stem] = sorted(found, key=lambda f: f.exercise["id"])
        return self.exercises[stem]

    def _sources(self, work, checks):
        sources = {}
        for check in checks:
            cells = {work.cell_of(name) for name in check.exercise["names"]} - {None}
            sources[check.exercise["id"]] = "\n\n".join(work.cells[i] for i in sorted(cells))
        return sources

    def _records(self, work, stem, checks, seed):
        names = {name for check in checks for name in check.exercise["names"]}
        run = [
            source if i not in work.experiments or names & work.defines[i] else ""
            for i, source in enumerate(work.cells)
        ]
        with self._link() as link:
            wire.send(link, b"C", json.dumps(run).encode())
            frame = wire.receive(link, self.limits.reply_bytes)
            went = {index: (how, why) for index, how, why in json.loads(frame[1])}
            wire.send(link, b"B", bundle(stem))
            session = RemoteSession(link, seed, self.limits)
            return [self._judged(check, session, work, went) for check in checks]

    def _judged(self, check, session, work, went):
        """The record of one exercise, as in results.json."""
        about = check.exercise
        record = {"id": about["id"], "name": about["name"], "points": about["points"], "earned": 0}
        if about["id"] in work.revealed():
            return record | {"status": "revealed", "message": "the solution was revealed"}
        fresh = False
        while True:
            wire.send(session.link, b"N", b"1" if fresh else b"0")
            status, earned, message, again = self._verdict(check, session, work, went)
            if not again or fresh:
                break
            fresh = True
        return record | {"status": status, "earned": earned, "message": line(message)}

    def _verdict(self, check, session, work, went):
        """`(status, earned, message, whether a fresh process may do better)`."""
        about = check.exercise
        session.exercise = about["id"]
        session.asked = 0
        session.records.clear()
        contract.session = session
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                check(*(Learner(name) for name in about["names"]))
        except CheckFailed:
            record = session.records[about["id"]]
            return "failed", record["earned"], record["message"], True
        except Undefined as name:
            return (*_undefined(str(name), work, went), False)
        except Gone as gone:
            return gone.how, 0, str(gone), not gone.fresh
        except Forged as forged:
            return "error", 0, str(forged), True
        except Exception as error:
            told = f"the answer has a form that the check cannot read ({type(error).__name__})"
            return "failed", 0, told, True
        record = session.records[about["id"]]
        return record["status"], record["earned"], record["message"], False


def _undefined(name, work, went):
    """`(status, earned, message)` of an exercise whose object is not there."""
    cell = work.cell_of(name)
    if cell is None:
        return "missing", 0, f"{name} is not defined"
    how, why = went.get(cell, ("", ""))
    if how == "raised":
        return "missing", 0, f"{name} is not defined: its cell raised {why}"
    if how:
        return how, 0, f"{name} is not defined: {why} (its cell)"
    return "missing", 0, f"{name} is not defined"


def line(message):
    """One line of printable text, cut to a length that a table can take."""
    text = "".join(c if c.isprintable() else " " for c in str(message))
    return " ".join(text.encode("utf-8", "replace").decode().split())[:LINE]


_bundles = {}


def bundle(stem):
    """The code that is shipped into a submission's process: contract, wire and probes, compiled."""
    if stem not in _bundles:
        importlib.import_module(f"labkit.probes.lab{stem[:2]}")
        probes = [n for n in sys.modules if n.startswith("labkit.probes.lab")]
        names = [*SHIPPED, *sorted(probes, key=lambda n: n.endswith(stem[:2]))]
        _bundles[stem] = json.dumps([[name, _compiled(name)] for name in names]).encode()
    return _bundles[stem]


def _compiled(name):
    source = Path(importlib.import_module(name).__file__).read_text(encoding="utf-8")
    code = compile(source, f"<{name}>", "exec")
    return base64.b64encode(marshal.dumps(code)).decode()


def seed_of(seed):
    """The seed that was asked for, else a random one."""
    return secrets.randbits(48) if seed is None else seed


def main():
    """Serve a controller on descriptor argv[1]: a notebook comes, a row goes."""
    link = socket.socket(fileno=int(sys.argv[1]))
    setup = json.loads(wire.receive(link, 1 << 20)[1])
    judge = Judge(Limits(**setup["limits"]), setup["unsafe"], setup["checks"])
    try:
        judge.start()
        wire.send(link, b"H", json.dumps({"nested": judge.nested}).encode())
        while frame := wire.receive(link, judge.limits.notebook_bytes + (1 << 20)):
            head, _, data = frame[1].partition(b"\n")
            asked = json.loads(head)
            row, sources = judge.grade(asked["name"], data, asked["seed"])
            wire.send(link, b"R", json.dumps([row, sources]).encode())
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    finally:
        judge.stop()


if __name__ == "__main__":
    main()
