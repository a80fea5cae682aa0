"""What the command prints while it grades, and after it."""

import io
from pathlib import Path

from rich.console import Console

from labkit.grading.after import show
from labkit.grading.row import Row


def test_a_large_class_is_told_by_lab(capsys):
    rows = [Row(f"{i}", "graded", lab="02_lora", earned=12, possible=24) for i in range(13)]
    rows[0].earned = 24
    show.summary(rows, Path("out"), Console(width=200))
    assert "02_lora: median 50%, 1 with all" in capsys.readouterr().out


def test_a_log_file_tells_how_far_grading_is():
    log = io.StringIO()
    with show.progress(Console(file=log, width=200), []) as told:
        for done in range(1, 41):
            told(done, 40, Row(f"{done}", "graded"))
        middle = log.getvalue()
    lines = [line.split(" ", 3)[:3] for line in middle.splitlines()]
    assert lines == [[str(n), "of", "40"] for n in range(4, 41, 4)]
