"""The course's commands: doctor, fetch, build, run, claims, release."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.shared import Json, console_for, one_line, print_json
from labkit.errors import LabError


def doctor(as_json: Json = False) -> int:
    """Check what this machine can run, and say how to fix what it can't."""
    from labkit.course import doctor

    findings = doctor.examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        doctor.show(findings, console_for(False))
    return int(any(finding.verdict == "bad" for finding in findings))


@one_line(OSError)
def fetch(as_json: Json = False) -> None:
    """Download the model and the data now instead of on first use."""
    from labkit import tasks
    from labkit.course.doctor import MODEL
    from labkit.training import models

    console, rows = console_for(as_json), []
    jobs = {f"model {MODEL}": lambda: str(models.fetch(MODEL))}
    for split in ("train", "test"):
        jobs[f"task home, {split}"] = lambda s=split: f"{len(tasks.load('home', s))} examples"
    for name, job in jobs.items():
        start = time.perf_counter()
        row = {"what": name, "result": job(), "seconds": round(time.perf_counter() - start, 1)}
        rows.append(row)
        console.print(f"{name}: {row['result']}, {row['seconds']} s", markup=False, soft_wrap=True)
    if as_json:
        print_json(rows)


@one_line(OSError)
def build(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a notebook is out of date.")
    ] = False,
) -> int:
    """Build notebooks/ and solutions/ from labs/, then lint them with ruff."""
    from labkit.course import masters, notebooks

    changed = notebooks.build(masters.root(), check)
    faults = notebooks.lint(masters.root())
    for line in faults:
        print(line)
    for name in changed:
        print(f"{'differs from its source in labs/' if check else 'written'}: {name}")
    if not changed:
        print("all notebooks are up to date")
    elif check:
        print("run 'labkit build' and commit the result")
    return int(bool(faults) or (check and bool(changed)))


@one_line(OSError)
def run(
    labs: Annotated[
        list[str] | None, typer.Argument(help="2, 02 or 02_lora; default: all.")
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the book.")] = Path(
        "build"
    ),
    as_json: Json = False,
) -> int:
    """Execute solved labs with live progress; write a book with their figures and a summary."""
    from labkit.course import masters, notebooks
    from labkit.course import run as labs_run

    console, root = console_for(as_json), masters.root()
    stems = labs_run.find_labs(labs or [], root)
    if notebooks.build(root, check=True):
        console.print("labs/ has unbuilt changes; this runs the old notebooks. See 'labkit build'")
    try:
        results = labs_run.run(stems, root, out, console)
    except KeyboardInterrupt:
        console.print(f"stopped; finished labs are in {out / 'index.html'}", soft_wrap=True)
        raise
    if as_json:
        print_json([asdict(result) for result in results])
    console.print(f"the book: {out / 'index.html'}", markup=False, soft_wrap=True)
    return int(any(result.status != "ok" for result in results))


def claims(
    ids: Annotated[list[str] | None, typer.Argument(help="A1, A2, …; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """List common claims about LoRA, whether each is right, and the lab cell that measures it."""
    from labkit.course import claims

    found = claims.load(ids or [])
    if as_json:
        print_json([asdict(claim) for claim in found])
    else:
        claims.show(found, console_for(False))


@one_line(OSError)
def release(
    out: Annotated[Path, typer.Option(file_okay=False, help="A new folder for the copy.")],
    gradescope: Annotated[
        bool,
        typer.Option("--gradescope", help="Make Gradescope autograders instead, one zip per lab."),
    ] = False,
    checks: Annotated[
        Path | None,
        typer.Option(exists=True, help="A file of private checks for the autograders."),
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="Where you will publish the copy; Colab installs from there.")
    ] = None,
) -> None:
    """Make a copy for students: the course without solutions, masters or tests."""
    from labkit.course import masters
    from labkit.course import release as made

    if checks and not gradescope:
        raise LabError("--checks needs --gradescope: private checks are not for a students' copy")
    if gradescope:
        files = made.autograders(masters.root(), out, checks)
    else:
        files = made.release(masters.root(), out, repository)
    print(f"written: {len(files)} files in {out}")
