"""One call of the grader, as an instructor makes it."""

import os

from labkit.grading.grade import grade
from labkit.grading.limits import Limits

SEED = 915_374_021
LIMITS = Limits(cell_seconds=3, exercise_seconds=4, total_seconds=20)


def grade_all(folder, out, jobs=2, progress=None):
    """Grade the notebooks in `folder`; {submission: [its rows]}, of which there should be one."""
    rows = {}
    for row in grade([folder], out, jobs=jobs, seed=SEED, limits=LIMITS, progress=progress):
        rows.setdefault(row.submission, []).append(row.data())
    return rows


def shown(path):
    """A path as reports name it: a letter that can't be printed is U+FFFD."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
