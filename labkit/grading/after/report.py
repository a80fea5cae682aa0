"""Grading's output: results.json, grades.csv, a class page, and a feedback page per submission.

Names, messages and sources come from learners, and some are hostile. Templates escape all of them,
each page forbids foreign scripts (Content-Security-Policy), and file names are chosen here.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from labkit.contract import natural
from labkit.errors import LabError
from labkit.files import TEMPLATES, template
from labkit.grading import store
from labkit.grading.after import summary
from labkit.grading.limits import LONGEST_SOURCE
from labkit.grading.row import Row

LONGEST_MESSAGE = 2_000  # characters shown on a page
MARKS = {
    "passed": "✓",
    "revealed": "◐",
    "failed": "✗",
    "missing": "○",
    "error": "!",
    "timeout": "∞",
}


def write(out: Path, rows: list[Row], sources: dict[str, dict[str, str]]) -> None:
    """Write results.json, two tables, index.html and feedback/*.html into the folder `out`.

    sources[submission][exercise id] is the learner's cell.
    """
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    data = [row.data() for row in rows]
    put(out / "results.json", json.dumps(data, indent=1, ensure_ascii=False))
    put(out / "grades.csv", grades(rows))
    put(out / "items.csv", items(rows))
    pages = page_names([row.submission for row in rows])
    for old in {page.name for page in (out / "feedback").glob("*.html")} - set(pages):
        (out / "feedback" / old).unlink()  # its submission is gone
    for row, page in zip(rows, pages, strict=True):
        put(out / "feedback" / page, feedback_page(row, sources.get(row.submission, {})))
    put(out / "index.html", class_page(rows, pages))


def results_in(out: Path) -> list[Row]:
    """The rows of the results.json that grading left in `out`; LabError if there is none."""
    path, again = out / "results.json", f"labkit grade SUBMISSIONS --out {out}"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise LabError(f"{path} isn't there: run {again}") from None
    except (ValueError, RecursionError) as error:
        raise LabError(f"{path} is not JSON ({error}); recreate it: {again}") from None
    try:
        return [Row.of(data) for data in (found if isinstance(found, list) else [found])]
    except ValueError:
        raise LabError(f"{path} does not come from grading; recreate it: {again}") from None


def page_names(submissions: list[str]) -> list[str]:
    """One safe, distinct file name per submission, in the same order.

    A plain name stays ("ada.ipynb" -> "ada.html"). Others are cut to safe characters, with a digest
    of the whole name added, so they are the same in every run.
    """
    stems = [name.removesuffix(".ipynb") for name in submissions]
    safe = [re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:60].strip(".-") for stem in stems]
    often = Counter(name.lower() for name in safe)
    pages: dict[str, None] = {}
    for submission, stem, name in zip(submissions, stems, safe, strict=True):
        if name != stem or often[name.lower()] > 1:
            data = submission.encode("utf-8", "surrogatepass")
            name = f"{name or 'submission'}-{hashlib.sha256(data).hexdigest()[:10]}"
        page, n = name.lower(), 1
        while f"{page}.html" in pages:
            n += 1
            page = f"{name.lower()}-{n}"
        pages[f"{page}.html"] = None
    return list(pages)


def grades(rows: list[Row]) -> str:
    """The table as CSV: one row per submission, one column per exercise with the points earned."""
    import pandas as pd

    ids = sorted({e.id for row in rows for e in row.exercises}, key=natural)
    known = ["submission", "lab", "earned", "possible", "percent", "status", "reason", "late"]
    cells = [
        {name: _cell(getattr(row, name)) for name in known[:-1]}
        | {"late": "late" if row.late else ""}
        | {e.id: e.earned for e in row.exercises}
        for row in rows
    ]
    return pd.DataFrame(cells, columns=known + ids, dtype=object).to_csv(index=False)


def items(rows: list[Row]) -> str:
    """The exercises as CSV: pass rate, mean, correlation with the rest, first message.

    The message is the most frequent one; it names the mistake if a check recognizes it.
    """
    import pandas as pd

    top = ["times", "message"]
    known = ["id", "name", "points", "n", "passed", "missing", "share", "rest"]
    cells = [
        {"lab": group["lab"]}
        | {key: _cell(_short(e[key])) for key in known}
        | {key: _cell(v) for found in e["messages"][:1] for key, v in zip(top, found, strict=True)}
        for group in summary.by_lab(rows)
        for e in group["exercises"]
    ]
    return pd.DataFrame(cells, columns=["lab", *known, *top], dtype=object).to_csv(index=False)


def _short(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def _cell(value: object) -> object:
    """A value for a spreadsheet: text becomes one line, and never runs as a formula."""
    if not isinstance(value, str):
        return value
    line = re.sub(r";\s*(?=[=+@-])", "; '", " ".join(value.split()))  # if ; separates columns
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def class_page(rows: list[Row], pages: list[str]) -> str:
    """The class page: statistics, frequent mistakes, and who passed which exercise."""
    script = (TEMPLATES / "grading_sort.js").read_text("utf-8")
    return template("grading_class.html.j2").render(
        groups=summary.by_lab(rows),
        states=Counter(row.status for row in rows),
        pages={row.submission: page for row, page in zip(rows, pages, strict=True)},
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        marks=MARKS,
    )


def feedback_page(row: Row, sources: dict[str, str]) -> str:
    """The page of one submission: each exercise's points and message, and the learner's cell."""
    exercises = []
    for exercise in row.exercises:
        source = sources.get(exercise.id, "")
        shown = {
            "message": exercise.message[:LONGEST_MESSAGE],
            "source": source[:LONGEST_SOURCE],
            "cut": len(source) > LONGEST_SOURCE,
        }
        exercises.append(vars(exercise) | shown)
    return template("grading_feedback.html.j2").render(row=row, exercises=exercises, marks=MARKS)


def put(path: Path, text: str) -> None:
    """Write the file atomically; bytes in file names that are not UTF-8 become \\udcXX."""
    store.put(path, text.encode("utf-8", "backslashreplace"))
