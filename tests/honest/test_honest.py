"""Right answers, in notebooks as people make them: full marks, whatever stands around them."""

import pytest
from honest import NOTEBOOKS, TIMES

pytestmark = pytest.mark.thorough


def test_full_marks(notebook, graded):
    """Every exercise passed, as often as it was graded."""
    rows = graded[notebook.name]
    lost = [
        {e["id"]: (e["status"], e["message"]) for e in row["exercises"] if e["status"] != "passed"}
        | ({"reason": row["reason"]} if row["status"] != "graded" else {})
        for row in rows
        if row["status"] != "graded" or row["earned"] != row["possible"]
    ]
    assert not lost, (notebook.why, lost)
    assert len(rows) == TIMES and all(row["lab"] == notebook.lab for row in rows)
    assert all(row["possible"] for row in rows)


def test_corpus():
    """Enough of them, each with a name of its own, of every lab."""
    names = [notebook.name for notebook in NOTEBOOKS]
    assert len(names) == len(set(names)) >= 60
    assert len({notebook.lab for notebook in NOTEBOOKS}) == 9
