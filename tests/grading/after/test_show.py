"""What the command prints after grading."""

from pathlib import Path

from rich.console import Console

from labkit.grading.after import show
from labkit.grading.row import Row


def test_a_large_class_is_told_by_lab(capsys):
    rows = [Row(f"{i}", "graded", lab="02_lora", earned=12, possible=24) for i in range(13)]
    rows[0].earned = 24
    show.summary(rows, Path("out"), Console(width=200))
    assert "02_lora: median 50%, 1 with all" in capsys.readouterr().out
