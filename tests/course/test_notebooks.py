"""The builder: what is cut, what is refused, and that the committed notebooks are current."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from labkit.contract import checks_of
from labkit.course.notebooks import BuildError, build, cut

ROOT = Path(__file__).parents[2]
MASTERS = sorted((ROOT / "labs").glob("[0-9][0-9]_*.py"))
BLOCK = re.compile(r" *# BEGIN SOLUTION\n(.*?) *# END SOLUTION\n", re.DOTALL)
MASTER = '''\
# ---
# jupyter:
#   jupytext:
#     format_name: percent
# ---

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
    "name, before, after, said",
    [
        ("07_tiny", "x = 1", "x = (1", "labs/07_tiny.py, line 14: '\\(' was never closed"),
        ("07_tiny", "x = 1", 'labkit.start("07_tinny")', "line 14: .* '07_tiny', .* '07_tinny'"),
        (
            "07_tiny",
            "# What it is about.",
            "# (6 for the exercises)\n# ●○○ · 5 min · 2 points\n# ●○○ · 2 min · 1 point",
            "line 10: the exercises take 7 minutes, not 6",
        ),
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


def test_notebook_files_hold_no_noise_and_the_same_bytes_each_time(course):
    build(course)
    path = course / "notebooks/07_tiny.ipynb"
    text = path.read_text("utf-8")
    book = json.loads(text)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 4)
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert text.endswith("}\n") and not text.endswith("\n\n")
    folded = {"cellView": "form", "jupyter": {"source_hidden": True}}
    metadata = [{}, folded, {}, {"tags": ["experiment"]}]
    assert [cell["metadata"] for cell in book["cells"]] == metadata
    for cell in book["cells"]:
        assert "id" not in cell
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    nbformat.validate(nbformat.reads(text, as_version=nbformat.NO_CONVERT))
    path.unlink()
    assert build(course) == ["notebooks/07_tiny.ipynb"]
    assert path.read_text("utf-8") == text
    assert build(course) == []


def test_check_names_a_hand_edit_and_leaves_it(course):
    build(course)
    path = course / "solutions/07_tiny.ipynb"
    path.write_text(path.read_text("utf-8").replace("x = 1", "x = 2"), "utf-8")
    assert build(course, check=True) == ["solutions/07_tiny.ipynb"]
    assert "x = 2" in path.read_text("utf-8")


def test_a_fork_changes_one_line(course):
    project = course / "pyproject.toml"
    text = re.sub(
        r'Repository = ".*"', 'Repository = "https://github.com/me/mine"', project.read_text()
    )
    project.write_text(re.sub(r'^version = ".*"', 'version = "9.8.7"', text, flags=re.MULTILINE))
    build(course)
    title, bootstrap, *_ = cells(course / "notebooks/07_tiny.ipynb")
    first, _, second, *_ = title.source.split("\n")
    assert first == "# Lab 7 · Tiny"
    assert "/github/me/mine/blob/v9.8.7/notebooks/07_tiny.ipynb" in second
    assert "git+https://github.com/me/mine@v9.8.7" in bootstrap.source


def test_bootstrap_does_nothing_where_labkit_is_installed(course, monkeypatch, capsys):
    build(course)
    source = cells(course / "notebooks/07_tiny.ipynb")[1].source
    calls, path = [], list(sys.path)
    monkeypatch.setattr(
        subprocess, "run", lambda args: calls.append(args) or subprocess.CompletedProcess(args, 1)
    )
    exec(source, {})
    assert (calls, sys.path, capsys.readouterr().out) == ([], path, "")
    exec(source.replace('"labkit"', '"labkit_that_is_not_there"'), {})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = f"git+{project['urls']['Repository']}@v{project['version']}"
    assert [call[-1] for call in calls] == [wanted]
    told = capsys.readouterr().out
    assert told.startswith("✗") and told.count("\n") == 1


HEAD = "# %% [markdown]\n# # T\n\n# %%\ndef f():\n"  # the body begins in line 6
SOLVED = "    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n"
GIVEN = "    # BEGIN GIVEN\n    # for x in range(3):\n    #     return x\n    # END GIVEN\n"


TIMED = "# %% [markdown]\n# # Lab 7 · Tiny\n#\n# {{ time }}\n"
TASK = "\n# %% [markdown]\n# ### Exercise 7.1 · `f`\n#\n# ●○○ · 5 min · 2 points\n"


def prose(n, heading="Much"):
    """A markdown cell of n words and a heading."""
    return f"\n# %% [markdown]\n# ## {heading}\n#\n# {'word ' * n}\n"


def test_a_lab_states_the_time_that_its_parts_take(course):
    hint = "#\n# <details><summary>Hint</summary>\n" + "# word\n" * 500 + "# </details>\n"
    parts = [prose(600), TASK, hint, prose(500), TASK, "\n# %%\nlab.experiment('a', 100)\n"]
    (course / "labs/07_tiny.py").write_text(TIMED + "".join(parts), "utf-8")
    build(course)
    for folder in ("notebooks", "solutions"):
        stated = cells(course / f"{folder}/07_tiny.ipynb")[0].source.splitlines()[-1]
        assert [int(n) for n in re.findall(r"\d+", stated)] == [6 + 10 + 2, 6, 10, 2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((prose(650) + TASK) * 7, "4,6\\d\\d words, .* 4,000"),
        ("\n# %%\nx = 1\n" * 80, "82 cells, .* 75"),
        (TASK.replace("5 min", "91 min"), "92 minutes, .* 90"),
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


@pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
def test_links_of_a_lab_lead_somewhere(master):
    for cell in cells(ROOT / f"notebooks/{master.stem}.ipynb"):
        links = re.findall(r"\]\(([^)#\s]+)", cell.source) if cell.cell_type == "markdown" else []
        for link in links:
            assert link.startswith("https://") or (ROOT / "notebooks" / link).exists(), link


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    # BEGIN SOLUTION\n    pass\n", "line 6: BEGIN SOLUTION without END"),
        ("    pass\n    # END SOLUTION\n", "line 7: END SOLUTION without BEGIN"),
        (
            "    # BEGIN SOLUTION\n    # BEGIN SOLUTION\n    pass\n    # END SOLUTION\n",
            "line 7: BEGIN SOLUTION inside the block of line 6",
        ),
        (
            "    # BEGIN SOLUTION\n    pass\n    # END SOLUTION\n    # END SOLUTION\n",
            "line 9: END SOLUTION without BEGIN",
        ),
        (
            "    # BEGIN SOLUTION\n    pass\n\n# %%\n    # END SOLUTION\n",
            "line 6: the solution block runs into the cell of line 9",
        ),
        (
            "    # BEGIN SOLUTION\n    pass\n# END SOLUTION\n",
            "line 8: END SOLUTION is not indented",
        ),
        ("    # BEGIN SOLUTION\n    # only words\n    # END SOLUTION\n", "line 6: .* no code"),
        ("    #BEGIN SOLUTION\n    pass\n    # END SOLUTION\n", "line 6: a mark is"),
        ("    # begin solution\n    pass\n    # end solution\n", "line 6: a mark is"),
        ("    # BEGIN SOLUTION 2.1\n    pass\n    # END SOLUTION\n", "line 6: a mark is"),
        (f"{SOLVED}    # BEGIN GIVEN\n    # return 2\n", "line 9: BEGIN GIVEN without END GIVEN"),
        (f"{SOLVED}    # END GIVEN\n", "line 9: END GIVEN without BEGIN GIVEN"),
        ("    # BEGIN GIVEN\n    # pass\n    # END GIVEN\n", "line 6: BEGIN GIVEN stands right"),
        (f"{SOLVED}\n{GIVEN}", "line 10: BEGIN GIVEN stands right below END SOLUTION"),
        (f"{SOLVED}{GIVEN}{GIVEN}", "line 13: BEGIN GIVEN stands right below END SOLUTION"),
        (f"{SOLVED}# BEGIN GIVEN\n# pass\n# END GIVEN\n", "line 9: .* as far to the right"),
        (
            "    # BEGIN SOLUTION\n    # BEGIN GIVEN\n    # END GIVEN\n    # END SOLUTION\n",
            "line 7: BEGIN GIVEN inside the block of line 6",
        ),
        (
            f"{SOLVED}    # BEGIN GIVEN\n    # pass\n    # END SOLUTION\n",
            "line 11: END SOLUTION without BEGIN SOLUTION",
        ),
        (
            f"{SOLVED}    # BEGIN GIVEN\n    # return 2\n# END GIVEN\n",
            "line 11: END GIVEN is not indented as line 9",
        ),
        (f"{SOLVED}    # BEGIN GIVEN\n    return 2\n    # END GIVEN\n", "line 10: given code is"),
        (f"{SOLVED}    # BEGIN GIVEN\n    #return 2\n    # END GIVEN\n", "line 10: given code is"),
        (f"{SOLVED}    # BEGIN GIVEN\n    #\n    # END GIVEN\n", "line 9: .* no code"),
        (f"{SOLVED}    # BEGIN GIVEN\n\n# %%\n", "line 9: the given block runs into the cell"),
        (f"{SOLVED}    # begin given\n", "line 9: a mark is '# BEGIN GIVEN'"),
    ],
)
def test_wrong_marks_are_named_with_their_line_and_nothing_is_written(course, body, message):
    (course / "labs/07_tiny.py").write_text(HEAD + body, "utf-8")
    with pytest.raises(BuildError, match=rf"^labs/07_tiny\.py, {message}") as caught:
        build(course)
    assert "\n" not in str(caught.value)
    assert not (course / "notebooks").exists()


def test_a_master_without_a_title_is_an_error(course):
    (course / "labs/07_tiny.py").write_text("# %%\nx = 1\n", "utf-8")
    with pytest.raises(BuildError, match=r"line 1: .*title"):
        build(course)


def test_generated_notebooks_are_current():
    assert build(ROOT, check=True) == []
    stems = {path.stem for path in (ROOT / "solutions").glob("*.ipynb")}
    assert stems == {path.stem for path in MASTERS}


@pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
def test_no_solution_line_reaches_the_student(master):
    text = master.read_text("utf-8")
    public = BLOCK.sub("", text)  # what a line outside of any block says is no secret
    student = "\n".join(cell.source for cell in cells(ROOT / f"notebooks/{master.stem}.ipynb"))
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("BEGIN SOLUTION") > 0
    secret = {line.strip() for block in blocks for line in block.splitlines()}
    secret = {line for line in secret if len(line) > 12 and line not in public}
    assert secret
    assert [line for line in secret if line in student] == []


@pytest.mark.parametrize("folder", ["notebooks", "solutions"])
@pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
def test_every_cell_is_python(master, folder):
    for cell in cells(ROOT / folder / f"{master.stem}.ipynb"):
        if cell.cell_type == "code":
            ast.parse(TransformerManager().transform_cell(cell.source))


def test_student_stub_raises_where_the_solution_was():
    scope = {}
    exec(cut("def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n"), scope)
    with pytest.raises(NotImplementedError):
        scope["f"]()


def test_given_code_stands_in_the_place_of_the_stub():
    text = f"def f():\n{SOLVED}{GIVEN}\n\ndef g():\n{SOLVED}"
    given = "def f():\n    for x in range(3):\n        return x\n"
    assert cut(text).startswith(f"{given}\n\ndef g():\n    # TODO: about 1 line\n")
    assert cut(text, solved=True) == "def f():\n    return 1\n\n\ndef g():\n    return 1\n"


@pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
def test_token_ids_follow_the_model_to_its_device(master):
    """A tokenizer makes tensors on the CPU; on a GPU the model does not lie there."""
    for line in master.read_text("utf-8").splitlines():
        if 'return_tensors="pt"' in line:
            assert ".to(" in line.split("return_tensors")[1], line


HEADER = r"About (\d+) minutes if .*? \((\d+) for the exercises\), up to (\d+) if"
ROW = r"\| (\d) · .*? \| (\d+) to (\d+) min \| (\d+) min \|"


def test_the_guide_has_the_minutes_that_labs_state_by_hand():
    stated = {}
    for master in MASTERS:
        text = master.read_text("utf-8").replace("\n#", "")
        if "{{ time }}" not in text:  # the guide leaves those to the labs
            low, exercises, high = map(int, re.search(HEADER, text).groups())
            stated[int(master.stem[:2])] = (low, high, exercises)
    rows = re.findall(ROW, (ROOT / "docs/learner.md").read_text("utf-8"))
    assert {lab: tuple(rest) for lab, *rest in (map(int, row) for row in rows)} == stated


EXERCISE = re.compile(r"# ### Exercise (\S+) · ?(.*)\n#\n# [●○]+ · \d+ min · (\d+) points?\n")


@pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
def test_points_and_names_of_the_text_are_the_checks(master):
    checks = checks_of(importlib.import_module(f"labkit.checks.lab{master.stem[:2]}"))
    exercises = {check.exercise["id"]: check.exercise for check in checks}
    told = {id: rest for id, *rest in EXERCISE.findall(master.read_text("utf-8"))}
    assert told.keys() == exercises.keys()
    for id, (title, points) in told.items():
        names = re.findall(r"`(\w+)`", title) or [title.lower()]
        assert names == exercises[id]["names"][: len(names)]  # what follows is from before
        assert int(points) == exercises[id]["points"], id
