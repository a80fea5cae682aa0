"""Grades that are kept: what is graded again, by whom, and what a spoilt folder loses."""

import errno
import fcntl
import json
import shutil
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
from submissions import QUICK, Fake, notebook

from labkit import fingerprint
from labkit.cli.grading import export
from labkit.errors import LabError
from labkit.grading import grade as grading
from labkit.grading import store, workers
from labkit.grading.row import Exercise, Row

ROOT = Path(__file__).parents[2]


def books(*names):
    """`{file: notebook}`, each notebook another one."""
    return {f"{name}.ipynb": notebook(f"x = {name!r}") for name in names}


def asked(start=0):
    """The submissions that judges were asked for, from the one with that number on."""
    return [name for name, _, _ in Fake.asked[start:]]


def test_nothing_that_is_unchanged_is_graded_again(batch, tmp_path):
    first = batch(books(0, 1, 2, 3), progress=(progress := Mock()))
    assert [call.args[:2] for call in progress.call_args_list] == [(n, 4) for n in range(1, 5)]
    assert batch() == first and len(Fake.asked) == 4
    batch({"2.ipynb": notebook("x = 9")})
    assert asked(4) == ["2.ipynb"]
    batch(seed=77)
    assert len(Fake.asked) == 9
    own = tmp_path / "own.py"
    for n, text, options in ((13, "1", {"limits": QUICK}), (17, "1", {}), (21, "2", {})):
        own.write_text(text)
        batch(checks=own, **options)
        batch(checks=own, **options)
        assert len(Fake.asked) == n, "checks and limits count, and are kept"


def test_a_seed_is_random_and_kept(batch, tmp_path):
    batch(books("a"))
    batch(books("b"))
    (first, second) = (seed for _, _, seed in Fake.asked)
    assert first == second > 1000
    grading.grade([batch.folder], tmp_path / "other")
    assert Fake.asked[-1][2] != first


def test_one_exercise_is_judged_anew_of_all_and_the_others_stand(batch, monkeypatch):
    batch(books(0, 1, 2))
    two = Exercise("2.2", "g", 3, 3, "passed")

    class Mended(Fake):
        """Judges 2.1 otherwise than before, and 2.2, which nobody asked for, too."""

        def grade(self, name, data, seed):
            row, sources = super().grade(name, data, seed)
            row.exercises[0].earned, row.exercises[0].status = 2, "passed"
            row.exercises.append(Exercise("2.2", "g", 3, 0, "failed"))
            return row, sources

    for entry in store.entries(batch.out).values():  # as if 2.2 had been judged, too
        entry.row.exercises.append(two)
        store.save(batch.out, entry)
    monkeypatch.setattr(workers, "JudgeProcess", Mended)
    batch({"1.ipynb": notebook("x = 77")})  # one that is new is graded whole
    rows = batch(exercise="2.1")
    found = {r["submission"]: [(e["id"], e["earned"]) for e in r["exercises"]] for r in rows}
    assert found["0.ipynb"] == found["2.ipynb"] == [("2.1", 2), ("2.2", 3)]
    assert found["1.ipynb"] == [("2.1", 2), ("2.2", 0)]
    assert [row["earned"] for row in rows] == [5, 2, 5]
    before = len(Fake.asked)
    assert batch() == rows and len(Fake.asked) == before  # and that stands
    with pytest.raises(LabError, match=r"--exercise 2\.9"):
        batch(exercise="2.9")


def test_an_exercise_judged_anew_in_part_is_told_until_it_is_done(batch, capsys):
    batch(books(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fake, "grade", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            batch(exercise="2.1")
    batch(notes=(notes := []))
    assert len(notes) == 1 and "--exercise 2.1 was stopped" in notes[0]
    assert export(batch.out, gradescope=True) == 1
    assert "--exercise 2.1 was stopped" in capsys.readouterr().out
    batch(exercise="2.1", notes=(notes := []))
    assert not notes
    assert export(batch.out, gradescope=True) == 0


def test_rows_of_another_lab_stand_when_an_exercise_is_judged_anew(batch, tmp_path):
    """With an instructor's file of checks of lab 2, a class of lab 3 was graded again."""
    batch(books(0, 1, 2))
    entry = store.entries(batch.out)["1.ipynb"]
    entry.row.exercises[0].id = "3.1"
    store.save(batch.out, entry)
    own = tmp_path / "own.py"
    own.write_text("1")
    batch(exercise="2.1", checks=own)
    assert sorted(asked(3)) == ["0.ipynb", "2.ipynb"]  # two judges, in either order
    batch(checks=own)
    assert len(Fake.asked) == 5


def test_ctrl_c_leaves_what_is_done(batch):
    with pytest.raises(KeyboardInterrupt):
        batch(books(0, 1, 2) | {"3.ipynb": notebook("INTERRUPT")} | books(4, 5), jobs=1)
    rows = json.loads((batch.out / "results.json").read_text())
    assert [row["submission"] for row in rows] == ["0.ipynb", "1.ipynb", "2.ipynb"]
    assert (batch.out / "grades.csv").exists()
    batch(books(3), jobs=1)
    assert asked(4) == ["3.ipynb", "4.ipynb", "5.ipynb"]


@pytest.mark.parametrize("status", ["crashed", "timeout"])
def test_what_the_machine_may_have_spoilt_is_graded_again_by_the_next_call(batch, status):
    batch(books("a"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fake, "grade", lambda self, name, *_: (Row(name, status, "it is"), {}))
        batch(exercise="2.1")  # the old verdicts and cells stay until then
        assert "<code>" in (batch.out / "feedback/a.html").read_text()
        (row,) = batch()
        assert (row["status"], row["reason"]) == (status, "it is")
    (row,) = batch()
    assert row["status"] == "graded" and "reason" not in row
    batch()
    assert len(Fake.asked) == 2


def test_a_folder_of_grades_only_grows(batch, tmp_path):
    first = batch(books("a", "b", "c"))
    late = tmp_path / "late" / "zoe.ipynb"
    late.parent.mkdir()
    late.write_bytes(notebook("x = 'z'"))
    rows = batch(paths=[late], notes=(notes := []))
    assert rows[:3] == first and rows[3]["submission"] == "zoe.ipynb"
    assert notes == ["rows from earlier calls: 3"]
    assert json.loads((batch.out / "results.json").read_text()) == rows
    assert len((batch.out / "grades.csv").read_text().splitlines()) == 5
    pages = {path.name: path.read_text() for path in (batch.out / "feedback").iterdir()}
    assert pages.keys() == {"a.html", "b.html", "c.html", "zoe.html"}
    assert all("<code>" in page for page in pages.values())  # cells are still shown
    (batch.folder / "a.ipynb").unlink()
    assert batch(notes=notes) == rows and len(Fake.asked) == 4
    assert any("the file is gone" in note and "a.ipynb" in note for note in notes)


def test_the_same_name_is_graded_anew_and_another_file_of_that_name_is_told(batch, tmp_path):
    batch({"ada/x.ipynb": notebook("x = 1")})
    again, notes = tmp_path / "again" / "ada" / "x.ipynb", []
    again.parent.mkdir(parents=True)
    for source, told in (("x = 1", False), ("x = 2", True)):
        again.write_bytes(notebook(source))
        (row,) = batch(paths=[tmp_path / "again"], notes=notes)
        assert row["submission"] == "ada/x.ipynb"
        assert any("LOOK: graded in place of another file" in note for note in notes) == told


@pytest.mark.parametrize(
    "again, chosen",
    [
        (["doe_1_2_a.ipynb"], ["doe_1_2_a.ipynb"]),
        (["DOE"], ["doe_1_2_a.ipynb", "doe_1_3_b.ipynb"]),
        (["*_b.*"], ["doe_1_3_b.ipynb"]),
        (["roe", "_3_"], ["doe_1_3_b.ipynb", "roe_2_4_a.ipynb"]),
    ],
)
def test_again_grades_one_student_afresh(batch, again, chosen):
    batch(books("doe_1_2_a", "doe_1_3_b", "roe_2_4_a"))
    rows = batch(again=again)
    assert sorted(asked(3)) == chosen and len(rows) == 3
    with pytest.raises(LabError, match="--again nobody"):
        batch(again=["nobody"])


def test_graders_of_one_folder_lose_and_double_nothing(batch, tmp_path):
    wrong, shared = [], tmp_path / "shared.ipynb"
    shared.write_bytes(notebook("x = 1"))

    def one(name):
        folder = tmp_path / name
        folder.mkdir()
        for file, data in books(*(f"{name}{i}" for i in range(20))).items():
            (folder / file).write_bytes(data)
        try:
            grading.grade([folder, shared], batch.out, jobs=2)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=one, args=[name]) for name in "pqr"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    names = [row["submission"] for row in json.loads((batch.out / "results.json").read_text())]
    wanted = books("shared", *(f"{name}{i}" for name in "pqr" for i in range(20)))
    assert sorted(names) == sorted(wanted)
    assert len({seed for _, _, seed in Fake.asked}) == 1, "the folder has one seed"
    assert len(list((batch.out / "feedback").iterdir())) == 61
    assert not list(batch.out.rglob("*.part"))


def test_a_disk_without_locks_serves_one_grader(batch, monkeypatch):
    refuses = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(fcntl, "flock", refuses)
    assert len(batch(books("a"))) == 1


BROKEN_FILES = ["", "9" * 30, "-1", "x", "null", "[]", "[1]", "{}", '{"row": 1}', "[[], {}]"]
BROKEN_FILES += ["[" * 100_000, "\xff"]


@pytest.mark.parametrize("text", BROKEN_FILES, ids=range(len(BROKEN_FILES)))
def test_what_is_malformed_in_the_folder_is_made_anew(batch, text):
    first = batch(books("a", "b"))
    broken = next((batch.out / "graded").glob("*.json"))
    for file in (broken, batch.out / "graded" / "seed", batch.out / "results.json"):
        file.write_bytes(text.encode("latin-1"))
    assert batch() == first
    assert json.loads((batch.out / "results.json").read_text()) == first


def test_a_full_disk_is_named(batch, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*seed'"):
        grading.grade([ROOT / "notebooks"], batch.out)


def test_all_of_the_course_and_its_libraries_decide_whether_a_grade_stands(monkeypatch, tmp_path):
    package = tmp_path / "labkit"
    shutil.copytree(ROOT / "labkit", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "solutions").mkdir()
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    found = [store.depends_on(None, QUICK, 1)]
    assert store.depends_on(None, QUICK, 1) == found[0]
    parts = ["grading/inside/runner.py", "memory/budget.py", "contract/kept.py", "lab.py"]
    parts += ["checks/lab02.toml", "tasks/tickets.jsonl", "../solutions/02_lora.ipynb"]
    for part in parts:
        with (package / part).open("a") as file:
            file.write("\n")
        found.append(store.depends_on(None, QUICK, 1))
    for versions in ({"peft": "0"}, {}):
        monkeypatch.setattr(fingerprint, "version", lambda name, v=versions: v.get(name, "1"))
        found.append(store.depends_on(None, QUICK, 1))
    assert len(set(found)) == len(found) == len(parts) + 3
    (package / "templates/grading_base.html.j2").write_text("a page is no grade")
    assert store.depends_on(None, QUICK, 1) == found[-1]
