"""Canvas's and Moodle's own tables, with one column of grades filled in.

Canvas: downloads are called `lastfirst[_LATE]_USER_ATTACHMENT_file` (lib/content_zipper.rb), the
gradebook has Student, ID, ..., Section, then one column per assignment, in points, and a row
"Points Possible" (lib/gradebook_importer.rb, both in github.com/instructure/canvas-lms). Moodle:
downloads are in `Full Name_NUMBER_assignsubmission_file_/`; `worksheets` has the columns of its
offline grading worksheet.
"""

import html
import json
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.after import gradescope, report, tables, worksheets
from labkit.grading.collect import CANVAS, MOODLE, listed
from labkit.grading.row import Exercise, Row


@dataclass
class Export(tables.Table):
    """A filled table, its submissions, and lines that need attention."""

    filled: list[Row]
    problems: list[str]
    remarks: list[str]


def to_gradescope(out: Path) -> Path:
    """Write one file per submission for Gradescope into a folder of `out`; return the folder."""
    folder = out / "gradescope"
    rows = report.results_in(out)
    folder.mkdir(exist_ok=True)
    for row, page in zip(rows, report.page_names([r.submission for r in rows]), strict=True):
        text = json.dumps(gradescope.as_gradescope(row), indent=1)
        (folder / page).with_suffix(".json").write_text(text, "utf-8")
    return folder


def pick(rows: list[Row], lab: str | None = None) -> tuple[str, list[Row], list[str]]:
    """The lab to export ("2", "02" or "02_lora"), its rows, and lines on the others.

    Without `lab` it is the lab of more than half of the rows. LabError if that is ambiguous.
    """
    often = Counter(row.lab for row in rows if row.lab)
    same = {name: (name, name.partition("_")[0], tables.number_of(name)) for name in often}
    usual = [name for name, n in often.items() if 2 * n > often.total()]
    found = usual if lab is None else [name for name in often if lab in same[name]]
    if len(found) != 1:
        labs = ", ".join(sorted(often))
        raise LabError(f"choose --lab from the labs that were graded: {labs}")
    lost = [f"no lab: {row.submission}: {row.reason}" for row in rows if not row.lab]
    if lab is None:
        for other in sorted(often.keys() - found):
            names = [row.submission for row in rows if row.lab == other]
            lost.append(f"left out, {other} and not {found[0]}: {listed(names)}")
    for row in rows:
        named = {name for name in often if name in row.submission.rpartition("/")[2]}
        if named and row.lab and row.lab not in named:
            lost.append(f"{row.submission} is {row.lab}, whatever its name says")
    return found[0], [row for row in rows if row.lab == found[0]], lost


def canvas(
    results: list[Row], gradebook: Path, lab: str | None = None, column: str | None = None
) -> Export:
    """The gradebook that Canvas exported, with this lab's points, to be imported again.

    Other assignments are left out, so nothing else changes. LabError if it is another table.
    """
    lab, rows, problems = pick(results, lab)
    table = tables.read(gradebook)
    head, *lines = table.rows
    if not {"ID", "Section"} <= set(head):
        raise LabError(f"{gradebook} is not a Canvas gradebook: it lacks the column ID or Section")
    id_at, first = head.index("ID"), head.index("Section") + 1
    possible = next((line for line in lines if "Points Possible" in line[0]), [""] * len(head))
    open_ones = [i for i in range(first, len(head)) if "read only" not in possible[i]]
    at = tables.column(head, open_ones, column, lab)
    roster = {line[id_at].strip(): line for line in lines if line[id_at].strip()}
    names = {id: _letters("".join(line[:id_at])) for id, line in roster.items()}
    chosen, more = _match(rows, lambda name: _canvas_id(name, names), ("Moodle", MOODLE))
    for id, row in chosen.items():
        more += tables.put(roster[id], at, tables.points(row, possible[at]), row.submission)
    table.rows = [[*line[:first], line[at]] for line in table.rows]
    remarks = [*tables.scale(rows, possible[at]), f"column: {head[at]}"]
    return _export(table, roster, chosen, problems + more, remarks)


def _canvas_id(name: str, names: dict[str, str]) -> str | None:
    """The student's number in a file's name, or in the folder's of an unpacked zip.

    Learners choose the names in a zip, so the outermost part with a number decides.
    """
    return next((id for part in name.split("/") if (id := _id_in(part, names))), None)


def _id_in(part: str, names: dict[str, str]) -> str | None:
    """The student's number in a name; learners choose parts of it, so the roster decides."""
    places = [(m.start(), m[1]) for m in CANVAS.finditer(part) if m[1] in names]
    whose = [(id, _letters(part[:start].removesuffix("_LATE"))) for start, id in places]
    named = {id for id, letters in whose if names[id] == letters}
    likely = named or {id for _, id in places}  # a group's files have the group's name
    return likely.pop() if len(likely) == 1 else None


def _letters(text: str) -> str:
    """A name as its sorted letters: "Doe, Jane", "Jane Doe" and "doejane" are equal."""
    composed = unicodedata.normalize("NFC", text.lower())  # a Mac unzips é as e and an accent
    return "".join(sorted(re.sub(r"\W", "", composed)))


def moodle(
    results: list[Row], worksheet: Path, lab: str | None = None, column: str | None = None
) -> Export:
    """The grading worksheet of a Moodle assignment with grades and feedback filled in."""
    lab, rows, problems = pick(results, lab)
    table = tables.read(worksheet)
    head, *lines = table.rows
    numbers = {m[1]: line for line in lines if (m := re.search(r"\D(\d+)$", line[0].strip()))}
    if not numbers or len(head) < 3:
        raise LabError(f"{worksheet} is not a Moodle grading worksheet: no 'Participant 123'")
    at, most, words, free = worksheets.columns(head, list(numbers.values()), column, worksheet)
    chosen, more = _match(rows, lambda name: _moodle_id(name, numbers), ("Canvas", CANVAS))
    for number, row in chosen.items():
        line = numbers[number]
        points = tables.points(row, "" if most is None else line[most])
        more += tables.put(line, at, points, row.submission)
        if words is not None and not line[words].strip():  # Moodle's comments are HTML
            parts = [f"{row.earned:g} of {row.possible:g} points", *map(_verdict, row.exercises)]
            lines = "\n".join(parts).splitlines()
            line[words] = "<br>".join(html.escape(text.strip()) for text in lines)
        if free is not None and line[free].strip().lower() in worksheets.NO:
            more.append(f"Moodle refuses to change the grade of {row.submission}")
    remarks = [f"column: {head[at]}"]
    remarks += tables.scale(rows, "" if most is None else next(iter(numbers.values()))[most])
    if most is None:
        more.append("found no column for the maximum grade, so points are not scaled")
    if words is None:
        more.append("found no column for comments, so verdicts are left out")
    return _export(table, numbers, chosen, problems + more, remarks)


def _verdict(e: Exercise) -> str:
    return f"{e.id} {e.name}: {e.earned:g} of {e.points:g}, {e.status}. {e.message}"


def _export(table, roster, chosen, problems, remarks) -> Export:
    remarks.append(f"without a submission: {len(roster) - len(chosen)}")
    if late := [row.submission for row in chosen.values() if row.late]:
        remarks.append(f"late, but points are deducted only by hand: {listed(late)}")
    return Export(**vars(table), filled=list(chosen.values()), problems=problems, remarks=remarks)


def _moodle_id(name: str, numbers: dict) -> str | None:
    found = MOODLE.search(name)
    return found[1] if found and found[1] in numbers else None


def _match(rows, find, other) -> tuple[dict[str, Row], list[str]]:
    """The best submission of each student, and a line on each one that needs attention.

    `other` is the other system and its pattern of names; its files share one line.
    """
    found, problems, others = defaultdict(list), [], []
    for row in rows:
        id = find(row.submission)
        if id is None:
            theirs = other[1].search(row.submission)
            others += [row.submission] if theirs else []
            problems += [] if theirs else [f"not matched: {row.submission}"]
            continue
        found[id].append(row)
        if row.status != "graded":
            problems.append(f"{row.submission} is {row.outcome}; it gets {row.earned:g} points")
    if others:
        problems.append(f"not matched, named by {other[0]} ({len(others)}): {listed(others)}")
    best = {id: max(rows, key=lambda row: row.earned) for id, rows in found.items()}
    for several in found.values():
        if len(several) > 1:
            names = ", ".join(row.submission for row in several)
            problems.append(f"{len(several)} from one student, the best counts: {names}")
    return best, problems
