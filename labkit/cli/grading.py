"""The commands `grade`, `check` and `export`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.shared import Json, console_for, one_line, print_json
from labkit.errors import LabError

Seed = Annotated[
    int | None,
    typer.Option(min=0, max=2**63 - 1, help="Seed of the checks' inputs; default: random."),
]
Checks = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A .py file with your own checks.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Number of Dask workers on this machine.")]
Again = Annotated[
    list[str] | None, typer.Option(help="Grade again: a name, part of a name, or a pattern with *.")
]


@one_line(OSError)
def grade(
    paths: Annotated[list[Path], typer.Argument(help="Notebooks, or folders of them.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for grades and pages.")],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Submissions graded at once; default: one per core.")
    ] = None,
    seed: Seed = None,
    checks: Checks = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Run without a sandbox.")] = False,
    workers: Workers = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, tcp://…:8786.")
    ] = None,
    again: Again = None,
    exercise: Annotated[
        str | None, typer.Option(help="Regrade only this exercise, in all submissions.")
    ] = None,
    similar: Annotated[
        bool, typer.Option("--similar", help="List pairs of submissions with similar code.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Grade submissions, each in its own sandbox; later calls skip unchanged ones."""
    from labkit.grading import sandbox
    from labkit.grading.after import show
    from labkit.grading.grade import grade as grade_all

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` writes the pages, too
    console, now, notes = console_for(as_json), [], []
    if unsafe:
        console.print(sandbox.UNSAFE, style="bold white on red", highlight=False, soft_wrap=True)
    how = {"jobs": jobs, "workers": workers, "scheduler": scheduler, "unsafe": unsafe}
    how |= {"seed": seed, "checks": checks, "exercise": exercise, "similar": similar}
    with show.progress(console, now) as report:
        rows = grade_all(paths, out, again=again or (), progress=report, notes=notes, **how)
    if as_json:
        print_json([row.data() for row in rows])
    show.summary(rows, out, console, notes, now)


def check(
    notebooks: Annotated[list[Path], typer.Argument(help="Saved notebooks of the course.")],
    seconds: Annotated[float, typer.Option(min=1, help="Time limit per cell.")] = 120,
    as_json: Json = False,
) -> int:
    """Run notebooks here and print what lab.score() would; exit 1 unless every exercise passes."""
    from labkit.course import check as checks

    console = console_for(as_json)
    found = []
    for path in notebooks:
        found.append(done := checks.check(path, seconds))
        for line in checks.lines(done):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json([vars(done) for done in found])
    return int(not all(done.passed for done in found))


@one_line(OSError)
def export(
    out: Annotated[Path, typer.Argument(help="The folder that 'labkit grade --out' wrote.")],
    canvas: Annotated[Path | None, typer.Option(help="The gradebook that Canvas exported.")] = None,
    moodle: Annotated[Path | None, typer.Option(help="Moodle's grading worksheet.")] = None,
    gradescope: Annotated[
        bool, typer.Option(help="Write one results file per submission.")
    ] = False,
    lab: Annotated[
        str | None, typer.Option(help="2, 02 or 02_lora, if several labs were graded.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Title of the column to fill.")] = None,
) -> int:
    """Copy the grades into another system's gradebook; exit 1 if a line needs attention."""
    from labkit.grading.after import comments, exports, report
    from labkit.grading.grade import mixed

    if (canvas is not None) + (moodle is not None) + gradescope != 1:
        raise LabError("use one of --canvas GRADEBOOK.csv, --moodle WORKSHEET.csv, --gradescope")
    if gradescope:
        print(f"written: {exports.to_gradescope(out)}", *(halves := mixed(out)), sep="\n")
        return int(bool(halves))
    name, fill = ("canvas", exports.canvas) if canvas else ("moodle", exports.moodle)
    done = fill(report.results_in(out), canvas or moodle, lab, column)
    if lab and done.filled:  # one file per lab
        name = f"{name}-{done.filled[0].lab}"
    table, notes = out / f"{name}.csv", out / f"{name}-comments.zip"
    table.write_bytes(done.data())
    comments.canvas(notes, done.filled) if canvas else comments.moodle(notes, done.filled, out)
    print(f"written: {table}; students with points: {len(done.filled)}")
    print(f"written: {notes}, feedback for each student")
    look = [*(f"LOOK: {problem}" for problem in done.problems), *mixed(out)]
    for line in [*done.remarks, *look]:
        print(line)
    return int(bool(look))
