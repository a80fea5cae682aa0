"""Which files are submissions, what they are called, and what is told of those left out."""

import csv
import os
import socket

import pytest
from rich.console import Console
from submissions import Fake, notebook

from labkit.grading import grade as grading
from labkit.grading.after import show
from labkit.grading.limits import Limits
from labkit.grading.row import Row


def test_what_is_no_submission_is_told_but_for_litter(batch, capsys):
    names = ("a/02.IPYNB", ".b.ipynb", ".old/c.ipynb", "__MACOSX/._a.ipynb", "__MACOSX/a.ipynb")
    names += ("._a.ipynb", ".ipynb_checkpoints/a-checkpoint.ipynb", ".DS_Store")
    (batch.folder / "more").symlink_to(batch.folder / "a")
    files = {name: notebook("x = 1") for name in names} | {"b.zip": b"PK", "c/d.py": b""}
    rows = batch(files, notes=(left := []))
    assert [row["submission"] for row in rows] == ["a/02.IPYNB"]
    assert left == [
        "skipped, not an .ipynb file: b.zip, d.py",
        "LOOK: skipped, a link to a folder: more",
        "skipped, hidden (2): .b.ipynb, .old",
    ]
    show.summary([Row.of(row) for row in rows], batch.out, Console(width=200), left)
    assert left[0] in capsys.readouterr().out


def test_one_file_is_one_row_however_it_is_given_and_two_of_a_name_are_two(batch):
    names = ["ada/x.ipynb", "bob/x.ipynb"]
    batch({name: notebook(f"x = {name!r}") for name in names})
    ada, bob = (batch.folder / name for name in names)
    for paths in ([batch.folder], [ada.parent, bob], [ada, ada]):
        assert [row["submission"] for row in batch(paths=paths)] == names
    assert len(Fake.asked) == 2
    rows = batch(paths=[batch.folder.parent])
    assert [row["submission"] for row in rows] == [f"in/{name}" for name in names]
    pages = sorted(page.name[:8] for page in (batch.out / "feedback").iterdir())
    assert len(Fake.asked) == 4 and pages == ["in-ada-x", "in-bob-x"]


def test_one_student_of_moodle_is_called_as_in_the_whole_class(batch):
    names = [f"{who}_assignsubmission_file_/x.ipynb" for who in ("Ada L_501", "Bob M_502")]
    files = {name: notebook(f"x = {name!r}") for name in names}
    batch(files, paths=[batch.folder / names[0]])
    rows = batch(paths=[(batch.folder / names[1]).parent])
    assert [row["submission"] for row in rows] == names
    assert batch() == rows and len(Fake.asked) == 2


def test_a_link_to_a_folder_is_followed_where_it_is_given(batch):
    batch({"a.ipynb": notebook("x = 1"), "sub/b.ipynb": notebook("x = 2")})
    link = batch.folder.parent / "link"
    link.symlink_to(batch.folder)
    rows = grading.grade([link], batch.out.with_name("other"))
    told = [(row.submission, row.status) for row in rows]
    assert told == [("a.ipynb", "graded"), ("sub/b.ipynb", "graded")]


def test_a_folder_that_cannot_be_read_is_told(batch, monkeypatch):
    batch({"a.ipynb": notebook("x = 1"), "sub/b.ipynb": notebook("x = 2")})
    scan = os.scandir

    def closed(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    batch(notes=(notes := []))
    *_, line = notes
    assert line.startswith("LOOK: ") and "not readable" in line and "sub" in line


@pytest.mark.parametrize(
    "name, late",
    [
        ("doejane_LATE_12345_67890_02_lora.ipynb", True),
        ("x/anon_LATE_4fZq1_67890_02_lora.ipynb", True),
        ("doejane_LATE_12345_67890_lab2/nb/02_lora.ipynb", True),  # a zip, unpacked
        ("doejane_12345_67890_02_lora.ipynb", False),
        ("doejane_12345_67890_is_it_LATE_1_2_.ipynb", False),  # the tail is the learner's
        ("LATE.ipynb", False),
    ],
)
def test_what_canvas_calls_late_is_told(batch, name, late, capsys):
    (row,) = batch({name: notebook("x = 1")})
    assert row.get("late", False) == late
    (line,) = csv.DictReader((batch.out / "grades.csv").open(encoding="utf-8", newline=""))
    assert line["late"] == ("late" if late else "")
    assert ("late</b>" in (batch.out / "index.html").read_text("utf-8")) == late
    show.summary([Row.of(row)], batch.out, Console(width=200))
    assert (f"late: {name}" in capsys.readouterr().out) == late


def test_what_is_no_plain_file_is_a_row_with_a_reason(batch, tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(notebook("x = 1"))
    (batch.folder / "link.ipynb").symlink_to(secret)
    (batch.folder / "folder.ipynb").mkdir()
    os.mkfifo(batch.folder / "pipe.ipynb")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(batch.folder / "socket.ipynb"))
        rows = batch({"big.ipynb": bytes(3000)}, limits=Limits(notebook_bytes=2000))
    assert {row["status"] for row in rows} == {"unreadable"} and len(rows) == 5
    assert all(row["reason"] and row["exercises"] == [] for row in rows)
    assert Fake.asked == []


CHANGES = {  # what stands where a notebook stood, when its turn comes
    "another notebook": lambda path: path.write_bytes(notebook("x = 3")),
    "nothing": lambda path: None,
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_changes_meanwhile_is_not_taken_for_another(what, batch, monkeypatch):
    files = {"a.ipynb": notebook("x = 1"), "b.ipynb": notebook("x = 2")}
    grade = Fake.grade

    def change(self, name, data, seed):
        (batch.folder / "b.ipynb").unlink()
        CHANGES[what](batch.folder / "b.ipynb")
        return grade(self, name, data, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Fake, "grade", change)
        first, second = batch(files, jobs=1)
    assert (first["status"], second["status"]) == ("graded", "unreadable") and second["reason"]
    now = "graded" if what == "another notebook" else "unreadable"
    assert [row["status"] for row in batch()] == ["graded", now]
