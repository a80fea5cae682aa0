"""Submissions that change while a batch is graded: each is a row, and the batch goes on."""

import os

import pytest
from attack import Book
from batch import grade_all

NAMES = "abcdefgh"


@pytest.fixture
def folder(tmp_path):
    """Right submissions, told apart by a comment."""
    place = tmp_path / "submissions"
    place.mkdir()
    for name in NAMES:
        book = Book()
        book.last(f"# {name}")
        (place / f"{name}.ipynb").write_text(book.text(), encoding="utf-8")
    return place


def _vanish(path):
    path.unlink()


def _become_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def _become_a_link(path):
    path.unlink()
    path.symlink_to("/etc/passwd")


def _become_a_folder(path):
    path.unlink()
    path.mkdir()


def test_what_changes_after_the_start_is_a_row_with_a_reason(folder, tmp_path):
    changes = iter((_vanish, _become_a_pipe, _become_a_link, _become_a_folder))
    names, changed = {f"{name}.ipynb" for name in NAMES}, set()

    def after_the_first(done, total, row):
        if not changed:  # the last ones: what stands next may be on its way already
            changed.update(sorted(names - {row.submission})[-4:])
            for name in changed:
                next(changes)(folder / name)

    rows = grade_all(folder, tmp_path / "out", jobs=1, progress=after_the_first)
    assert rows.keys() == names and len(changed) == 4
    for name, (row,) in rows.items():
        if name in changed:
            assert row["status"] != "graded" and row["reason"] and row["earned"] == 0
        else:
            assert (row["status"], row["earned"]) == ("graded", 22)
