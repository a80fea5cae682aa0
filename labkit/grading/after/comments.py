"""Feedback for each student as a zip for Canvas or Moodle, one file per submission.

Canvas (Upload Submissions, next to its download) recognizes a file by the numbers in its name, and
shows it under the name of the submitted file; so it is a notebook, with text only
(generate_comments_from_files, github.com/instructure/canvas-lms). Moodle (Upload multiple feedback
files in a zip) recognizes the folder that it made (mod/assign/feedback/file/importziplib.php).
"""

import io
import json
import re
import zipfile
from pathlib import Path

from labkit.grading.after import report
from labkit.grading.collect import CANVAS, MOODLE
from labkit.grading.row import Row

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$!&~-])")  # Markdown's special characters


def canvas(path: Path, rows: list[Row]) -> None:
    """Write the zip for Canvas; a student who submitted a zip gets a zip back."""
    files = {}
    for row in rows:
        *folders, file = row.submission.split("/")
        unpacked = next((folder for folder in folders if CANVAS.search(folder)), None)
        text = json.dumps(as_notebook(row), indent=1)
        name = f"{unpacked}.zip" if unpacked else file
        files[name] = _zipped(file, text) if unpacked else text
    _write(path, files)


def moodle(path: Path, rows: list[Row], out: Path) -> None:
    """Write the zip for Moodle from the feedback pages that grading left in `out`."""
    everyone = [row.submission for row in report.results_in(out)]
    pages = dict(zip(everyone, report.page_names(everyone), strict=True))
    files = {}
    for row in rows:
        folder = next(part for part in row.submission.split("/") if MOODLE.search(part))
        files[f"{folder}/feedback.html"] = (out / "feedback" / pages[row.submission]).read_bytes()
    _write(path, files)


def as_notebook(row: Row) -> dict:
    """The points and messages of a submission as a notebook with one text cell."""
    lines = [f"# {row.earned:g} of {row.possible:g} points"]
    for e in row.exercises:
        head = f"**{_plain(e.id)} {_plain(e.name)}**: {e.earned:g} of {e.points:g}, {e.status}"
        message = "  \n".join(map(_plain, e.message.splitlines()))  # two spaces break a line
        lines.append(f"{head}. {message}".rstrip())
    cell = {"cell_type": "markdown", "metadata": {}, "source": "\n\n".join(lines)}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]}


def _plain(text):
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _zipped(name, text):
    inner = io.BytesIO()
    _write(inner, {name: text})
    return inner.getvalue()


def _write(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
