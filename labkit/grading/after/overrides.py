"""Points that an instructor sets by hand: overrides.csv in the folder of grades.

    submission,exercise,points,why
    doejane_12345_67890_02_lora.ipynb,2.7,2,another layout of A is right as well

These points replace the verdicts whenever reports are written, so they also apply to later grading
and exports. The judge's verdict is kept, and comes back when the line is removed.
"""

from dataclasses import replace
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.after import tables
from labkit.grading.row import Row

FILE = "overrides.csv"
COLUMNS = ("submission", "exercise", "points", "why")


def put_over(out: Path, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows with the points of overrides.csv, if it exists; a line on each invalid entry."""
    if not (out / FILE).exists():
        return rows, []
    try:
        head, *lines = tables.read(out / FILE).rows
        at = [[title.strip().lower() for title in head].index(name) for name in COLUMNS]
    except (LabError, OSError, ValueError):
        return rows, [f"LOOK: {FILE} is not used: its first line must be {','.join(COLUMNS)}"]
    found, invalid = {row.submission: row for row in rows}, []
    for line in lines:
        name, id, points, why = (line[i].strip() for i in at)
        try:
            found[name] = _given(found.get(name), name, id, points, why)
        except LabError as error:
            invalid.append(f"LOOK: {FILE}, {name!r}: {error}")
    done = len(lines) - len(invalid)
    return [found[row.submission] for row in rows], [f"points by hand, {FILE}: {done}", *invalid]


def _given(row, name, id, points, why):
    """The row with the points for one exercise; LabError for an invalid entry."""
    old, new = row and row.exercise(id), tables.number(points)
    if row is None:
        raise LabError("no submission has this name")
    if old is None:
        known = ", ".join(exercise.id for exercise in row.exercises)
        raise LabError(f"it has no exercise {id!r}: {known or row.outcome}")
    if new is None or not 0 <= new <= old.points:
        raise LabError(f"exercise {id}: {points!r} is not a number from 0 to {old.points:g}")
    new = int(new) if new == int(new) else new
    message = f"by hand: {why or 'no reason given'}"
    message += f"\n{old.message}" if old.message else ""
    status = "passed" if new == old.points else "failed"
    given = replace(old, earned=new, status=status, message=message)
    exercises = [given if e.id == id else e for e in row.exercises]
    return replace(row, exercises=exercises, earned=sum(e.earned for e in exercises))
