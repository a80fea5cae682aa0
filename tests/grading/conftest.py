"""A judge with its warm process, and a batch whose judges are not real."""

import pytest
from submissions import KIND, QUICK, Fake, notebook

from labkit.grading import grade as grading
from labkit.grading import sandbox, workers
from labkit.grading.judge import judge as judging


def pytest_itemcollected(item):
    """One worker runs all tests of the one judge: it takes longer to start than most of them."""
    if "judge" in item.fixturenames:
        item.add_marker(pytest.mark.xdist_group("a judge"))


@pytest.fixture(scope="session")
def judge():
    """A judge with its warm process, for all tests of a run."""
    judge = judging.Judge(QUICK, unsafe=KIND == "bare")
    judge.start()
    yield judge
    judge.stop()


@pytest.fixture
def graded(judge):
    """`graded(*cells)`, or of a file's bytes: `(row, {exercise id: its record})`."""

    def run(*cells, data=None, seed=5, tags=()):
        row = judge.grade("a.ipynb", data or notebook(*cells, tags=tags), seed)[0].data()
        return row, {record["id"]: record for record in row["exercises"]}

    return run


@pytest.fixture
def batch(monkeypatch, tmp_path):
    """`batch(files, **options)` -> rows; Fake judges. Files go into a folder, bytes by name."""
    monkeypatch.setattr(workers, "JudgeProcess", Fake)
    monkeypatch.setattr(sandbox, "available", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr(Fake, "asked", [])
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def run(files=(), paths=None, **options):
        for name, data in dict(files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return [row.data() for row in grading.grade(paths or [folder], out, **options)]

    run.folder, run.out = folder, out
    return run
