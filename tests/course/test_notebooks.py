"""The builder: what is cut, what is refused, and that the committed notebooks are current."""

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from labkit import reference
from labkit.course.notebooks import BuildError, build, cut

ROOT = Path(__file__).parents[2]
MASTERS = sorted((ROOT / "labs").glob("[0-9][0-9]_*.py"))
MASTER = '''\
# %% [markdown]
# # Lab 7 · Tiny
#
# What it is about.

# %%
%matplotlib inline
x = 1

# %% tags=["experiment"] slideshow={"slide_type": "slide"}
class Twice:
    def once(self, value):
        """Return value."""
        # BEGIN SOLUTION
        # why this works
        doubled = value + value

        return doubled / 2
        # END SOLUTION

    def zero(self):
        # BEGIN SOLUTION
        return 0
        # END SOLUTION
'''


@pytest.fixture
def course(tmp_path):
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs/07_tiny.py").write_text(MASTER, "utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def cells(path):
    return nbformat.read(path, as_version=4).cells


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("07_tiny", "x = 1", "x = (1", "labs/07_tiny.py, line 8: '\\(' was never closed"),
        ("07_tiny", "x = 1", 'labkit.start("07_tinny")', "line 8: .* '07_tiny', .* '07_tinny'"),
        ("07_tiny", "# # Lab 7", "# Lab 7", "line 1: .*title"),
        ("7_tiny", "", "", "labs/7_tiny.py, line 1: .* two digits"),
        ("07-tiny", "", "", "labs/07-tiny.py, line 1: .* two digits"),
    ],
)
def test_what_would_be_noticed_late_is_said_when_building(course, name, before, after, said):
    (course / "labs/07_tiny.py").unlink()
    (course / f"labs/{name}.py").write_text(MASTER.replace(before, after, 1), "utf-8")
    with pytest.raises(BuildError, match=said):
        build(course)
    assert not (course / "notebooks").exists()


def test_student_notebook_has_counted_stubs_and_the_solved_one_the_code(course):
    assert build(course) == ["notebooks/07_tiny.ipynb", "solutions/07_tiny.ipynb"]
    student = cells(course / "notebooks/07_tiny.ipynb")
    solved = cells(course / "solutions/07_tiny.ipynb")
    assert student[3].source == (
        "class Twice:\n"
        "    def once(self, value):\n"
        '        """Return value."""\n'
        "        # TODO: about 2 lines\n"
        "        raise NotImplementedError\n"
        "\n"
        "    def zero(self):\n"
        "        # TODO: about 1 line\n"
        "        raise NotImplementedError"
    )
    assert "doubled = value + value" in solved[3].source
    assert "SOLUTION" not in solved[3].source
    assert student[1].source == solved[1].source
    assert student[2].source == solved[2].source == "%matplotlib inline\nx = 1"


def test_notebook_files_hold_no_noise_and_the_same_bytes_each_time_and_check_writes_none(course):
    build(course)
    path = course / "notebooks/07_tiny.ipynb"
    text = path.read_text("utf-8")
    book = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    folded = {"cellView": "form", "jupyter": {"source_hidden": True}}
    metadata = [{}, folded, {}, {"tags": ["experiment"]}]
    assert [cell.metadata for cell in book.cells] == metadata
    for cell in book.cells:
        assert "id" not in cell
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    path.unlink()
    assert build(course) == ["notebooks/07_tiny.ipynb"]
    assert path.read_text("utf-8") == text
    path.write_text(text.replace("x = 1", "x = 2"), "utf-8")  # by hand
    assert build(course, check=True) == ["notebooks/07_tiny.ipynb"]
    assert "x = 2" in path.read_text("utf-8")
    assert build(course) == ["notebooks/07_tiny.ipynb"]
    assert build(course) == []


def test_a_fork_changes_one_line(course):
    text = (course / "pyproject.toml").read_text("utf-8")
    for key, value in (("Repository", "https://github.com/me/mine"), ("version", "9.8.7")):
        text = re.sub(f'(?m)^{key} = ".*"', f'{key} = "{value}"', text)
    (course / "pyproject.toml").write_text(text, "utf-8")
    build(course)
    title, bootstrap, *_ = cells(course / "notebooks/07_tiny.ipynb")
    first, _, second, *_ = title.source.split("\n")
    assert first == "# Lab 7 · Tiny"
    assert "/github/me/mine/blob/v9.8.7/notebooks/07_tiny.ipynb" in second
    assert "git+https://github.com/me/mine@v9.8.7" in bootstrap.source


def test_the_set_up_cell_does_nothing_where_labkit_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *args: pytest.fail("it fetches"))
    exec(cells(ROOT / "notebooks/01_svd.ipynb")[1].source, {})
    assert capsys.readouterr().out == ""


SOLVED = ["# BEGIN SOLUTION", "return 1", "# END SOLUTION"]
GIVEN = ["# BEGIN GIVEN", "# for x in range(3):", "#     return x", "# END GIVEN"]


def function(body):
    """A master of a function whose body begins in line 6; a new cell stands at the left."""
    head = "# %% [markdown]\n# # T\n\n# %%\ndef f():\n"
    return head + "".join(f"    {line}\n" if line != "# %%" else "# %%\n" for line in body)


TIMED = "# %% [markdown]\n# # Lab 7 · Tiny\n#\n# {{ time }}\n"
TASK = "\n# %% [markdown]\n# ### Exercise 7.1 · `f`\n#\n# ●○○ · 5 min · 2 points\n"


def prose(n, heading="Much"):
    return f"\n# %% [markdown]\n# ## {heading}\n#\n# {'word ' * n}\n"


def test_a_lab_states_the_time_that_its_parts_take(course):
    hint = "#\n# <details><summary>Hint</summary>\n" + "# word\n" * 500 + "# </details>\n"
    parts = [prose(600), TASK, hint, prose(500), TASK, "\n# %%\nlab.experiment('a', seconds=100)\n"]
    (course / "labs/07_tiny.py").write_text(TIMED + "".join(parts), "utf-8")
    for path in build(course):
        stated = cells(course / path)[0].source.splitlines()[-1]
        assert [int(n) for n in re.findall(r"\d+", stated)] == [6 + 10 + 2, 6, 10, 2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((prose(650) + TASK) * 7, "4,6\\d\\d words, .* 4,000"),
        ("\n# %%\nx = 1\n" * 80, "82 cells, .* 75"),
        (TASK.replace("5 min", "91 min"), "92 minutes .* 91 for exercises, .* 90"),
        (prose(800, "The idea") + TASK, "8\\d\\d words .*'Lab 7 · Tiny'.* 700"),
        (TASK + prose(400, "The idea") + prose(400), "8\\d\\d words .*'The idea'.* 700"),
    ],
    ids=["words", "cells", "minutes", "first stretch", "later stretch"],
)
def test_a_lab_over_a_limit_is_not_built(course, parts, message):
    (course / "labs/07_tiny.py").write_text(TIMED + parts, "utf-8")
    with pytest.raises(BuildError, match=rf"^labs/07_tiny\.py, line 1: {message}$"):
        build(course)
    by_hand = TIMED.replace("{{ time }}", "Long.")
    (course / "labs/07_tiny.py").write_text(by_hand + parts, "utf-8")
    assert build(course) == ["notebooks/07_tiny.ipynb", "solutions/07_tiny.ipynb"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (["# BEGIN SOLUTION", "pass"], "line 6: BEGIN SOLUTION without END"),
        (["pass", "# END SOLUTION"], "line 7: END SOLUTION without BEGIN"),
        (["# BEGIN SOLUTION"] * 2, "line 7: BEGIN SOLUTION inside the block of line 6"),
        (["# BEGIN SOLUTION", "pass", "# %%"], "line 6: the solution block runs into the cell"),
        (["# BEGIN SOLUTION", "  # END SOLUTION"], "line 7: END SOLUTION is not indented"),
        (["# BEGIN SOLUTION", "# only words", "# END SOLUTION"], "line 6: .* no code"),
        (["#BEGIN SOLUTION"], "line 6: a mark must be"),
        (["# begin solution 2.1"], "line 6: a mark must be"),
        ([*SOLVED, "# BEGIN GIVEN", "# return 2"], "line 9: BEGIN GIVEN without END GIVEN"),
        ([*SOLVED, "# END GIVEN"], "line 9: END GIVEN without BEGIN GIVEN"),
        (["# BEGIN GIVEN"], "line 6: BEGIN GIVEN must be right below END SOLUTION"),
        ([*SOLVED, "", *GIVEN], "line 10: BEGIN GIVEN must be right below END SOLUTION"),
        ([*SOLVED, *GIVEN, *GIVEN], "line 13: BEGIN GIVEN must be right below END SOLUTION"),
        ([*SOLVED, "  # BEGIN GIVEN"], "line 9: .* with the same indent"),
        ([*SOLVED, GIVEN[0], "# END SOLUTION"], "line 10: END SOLUTION without BEGIN SOLUTION"),
        ([*SOLVED, GIVEN[0], "return 2", GIVEN[-1]], "line 10: each line of given code"),
        ([*SOLVED, GIVEN[0], "#", GIVEN[-1]], "line 9: .* no code"),
    ],
)
def test_wrong_marks_are_named_with_their_line_and_nothing_is_written(course, body, message):
    (course / "labs/07_tiny.py").write_text(function(body), "utf-8")
    with pytest.raises(BuildError, match=rf"^labs/07_tiny\.py, {message}[^\n]*$"):
        build(course)
    assert not (course / "notebooks").exists()


def test_generated_notebooks_are_current():
    assert build(ROOT, check=True) == []
    stems = {path.stem for path in (ROOT / "solutions").glob("*.ipynb")}
    assert stems == {path.stem for path in MASTERS}


def test_given_code_stands_in_the_place_of_the_stub():
    text = function([*SOLVED, *GIVEN])
    assert cut(text).endswith("def f():\n    for x in range(3):\n        return x\n")
    assert cut(text, solved=True).endswith("def f():\n    return 1\n")


EXERCISE = re.compile(r"# ### Exercise (\S+) · ?(.*)\n#\n# [●○]+ · \d+ min · (\d+) points?\n")


@pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
def test_points_and_names_of_the_text_are_the_checks(master):
    exercises = {c.exercise["id"]: c.exercise for c in reference.checks(master.stem)}
    told = {id: rest for id, *rest in EXERCISE.findall(master.read_text("utf-8"))}
    assert told.keys() == exercises.keys()
    for id, (title, points) in told.items():
        names = re.findall(r"`(\w+)`", title) or [title.lower()]
        assert names == exercises[id]["names"][: len(names)]  # what follows is from before
        assert int(points) == exercises[id]["points"], id
