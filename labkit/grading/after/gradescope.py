"""A submission's results for Gradescope, and the program that its autograder runs.

The format: https://gradescope-autograders.readthedocs.io/en/latest/specs/ (fields of results.json,
visibility, and the rule that results.json must always be written).
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from labkit.grading.after.report import LONGEST_MESSAGE, results_in
from labkit.grading.row import Row


def as_gradescope(row: Row) -> dict:
    """A row of results.json in Gradescope's format: one test per exercise."""
    tests = [
        {
            "number": e.id,
            "name": e.name,
            "score": e.earned,
            "max_score": e.points,
            "status": "passed" if e.status == "passed" else "failed",
            "output": e.message[:LONGEST_MESSAGE] or e.status,
            "output_format": "text",
            "visibility": "visible",
        }
        for e in row.exercises
    ]
    graded = f"{row.lab}: {row.earned:g} of {row.possible:g} points"
    return {
        "score": row.earned,
        "output": graded if row.status == "graded" else row.outcome,
        "output_format": "text",
        "tests": tests,
        "execution_time": row.seconds,
        "stdout_visibility": "hidden",
    }


def choose(rows: list[Row], lab: str) -> Row:
    """The best row for an assignment's lab; without notebooks here, its `lab` is a number."""
    of_lab = [row for row in rows if row.lab.partition("_")[0] == lab[:2]]
    if of_lab:
        return replace(max(of_lab, key=lambda row: row.earned), lab=lab)
    if len(rows) == 1 and not rows[0].lab:
        return rows[0]
    listed = ", ".join(f"{row.submission} ({row.lab or row.reason})" for row in rows)
    return Row("", "unreadable", f"no notebook of {lab} was submitted; found {listed or 'nothing'}")


def graded(command: list[str]) -> subprocess.CompletedProcess:
    """Run `command`, again with --unsafe if no sandbox starts: the container is a wall, too."""
    how = {"capture_output": True, "text": True, "errors": "replace"}
    done = subprocess.run(command, **how)
    if done.returncode and "sandbox" in _last_line(done):
        done = subprocess.run([*command, "--unsafe"], **how)
    return done


def _last_line(done):
    return (done.stderr.strip() or "no output").splitlines()[-1]


def main(submission: str, results: str, lab: str, *options: str) -> None:
    """Grade the folder `submission` as `lab` ("02_lora"), and write the file `results`.

    The file is also written if grading itself fails. `options` are passed to `labkit grade`.
    """
    with TemporaryDirectory() as out:
        command = [sys.executable, "-c", "from labkit.cli import main; main()", "grade"]
        command += [submission, "--out", out, *options]
        done = graded(command)
        print(done.stdout, done.stderr)  # Gradescope shows it to instructors only
        if done.returncode and "no notebook" in _last_line(done):
            row = Row("", "unreadable", "there is no notebook: submit the .ipynb file")
        elif done.returncode:
            reason = f"the grader stopped ({_last_line(done)}): tell your instructor"
            row = Row("", "crashed", reason)
        else:
            row = choose(results_in(Path(out)), lab)
    Path(results).parent.mkdir(parents=True, exist_ok=True)
    Path(results).write_text(json.dumps(as_gradescope(row), indent=1), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
