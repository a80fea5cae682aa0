"""Submissions that change while a batch is graded: each is a row, and the batch goes on."""

import os

from attack import Book
from batch import grade_all

CHANGES = [  # of what stands no longer there
    lambda path: None,
    os.mkfifo,
    lambda path: path.symlink_to("/etc/passwd"),
    os.mkdir,
]


def test_what_changes_after_the_start_is_a_row_with_a_reason(tmp_path):
    folder, names, changed = tmp_path / "submissions", set(), set()
    folder.mkdir()
    for letter in "abcdefgh":
        book = Book()
        book.last(f"# {letter}")
        names.add(f"{letter}.ipynb")
        (folder / f"{letter}.ipynb").write_text(book.text(), encoding="utf-8")

    def after_the_first(done, total, row):
        if not changed:  # the last ones: what stands next may be on its way already
            changed.update(sorted(names - {row.submission})[-4:])
            for name, change in zip(changed, CHANGES, strict=True):
                (folder / name).unlink()
                change(folder / name)

    rows = grade_all(folder, tmp_path / "out", jobs=1, progress=after_the_first)
    assert rows.keys() == names and len(changed) == 4
    for name, (row,) in rows.items():
        if name in changed:
            assert row["status"] != "graded" and row["reason"] and row["earned"] == 0
        else:
            assert (row["status"], row["earned"]) == ("graded", 22)
