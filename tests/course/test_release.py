"""What students and Gradescope get: nothing that gives an answer away, and all that is needed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from command import call
from points import points

from labkit import contract
from labkit.checks import engine, lab01, lab02, quiz
from labkit.course import masters, notebooks, release
from labkit.errors import LabError
from labkit.grading.judge import private

ROOT = Path(__file__).parents[2]
PROJECT = masters.project(ROOT)
STEMS = [path.stem for path in masters.masters(ROOT)]
BLOCK = re.compile(r" *# BEGIN SOLUTION\n(.*?) *# END SOLUTION\n", re.DOTALL)
TEXT = {".py", ".ipynb", ".md", ".toml", ".j2", ".txt", ".yml", ".csv", ".js", ".sh", ""}


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "students"
    release.release(ROOT, out)
    return out


def secret_blocks():
    """(lab, lines) of each solution block, without lines that stand outside of any block too."""
    for master in masters.masters(ROOT):
        text = master.read_text("utf-8")
        public = BLOCK.sub("", text)
        for block in BLOCK.findall(text):
            lines = [line.strip() for line in block.splitlines()]
            yield master.stem, [line for line in lines if len(line) > 12 and line not in public]


def lines_of(path):
    """What a student reads in a file, each line stripped."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return "\n".join(line.strip() for line in text.splitlines())


def test_students_get_this_and_nothing_else(students):
    top = {path.name for path in students.iterdir()}
    assert top == {
        *("README.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt"),
        *("environment.yml", ".gitignore", "labkit", "notebooks", "docs"),
    }
    files = [path for path in students.rglob("*") if path.is_file()]
    assert not [path for path in files if "__pycache__" in path.parts or path.suffix == ".pyc"]
    ours = {p.relative_to(ROOT) for p in (ROOT / "labkit").rglob("*.py") if p.is_file()}
    assert ours <= {path.relative_to(students) for path in files}
    assert {p.suffix for p in files} <= TEXT | {".b64", ".css", ".html", ".jsonl", ".json", ".svg"}


def test_its_links_lead_somewhere_and_its_readme_names_every_lab(students):
    for page in (students / "README.md", *(students / "docs").glob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
    links = re.findall(r"\]\((notebooks/.*?)\)", (students / "README.md").read_text("utf-8"))
    assert links == [f"notebooks/{stem}.ipynb" for stem in STEMS]


def test_no_solution_line_reaches_a_student(students):
    files = [p for p in students.rglob("*") if p.is_file() and p.suffix in TEXT]
    texts = {str(path.relative_to(students)): lines_of(path) for path in files}
    blocks = list(secret_blocks())
    assert sum(len(lines) for _, lines in blocks) > 100
    for lab, block in blocks:
        own = texts[f"notebooks/{lab}.ipynb"]
        assert [line for line in block if line in own] == []
        # elsewhere two lines may be what anyone writes (arguments of a library), not three in a row
        runs = ["\n".join(run) for run in zip(block, block[1:], block[2:], strict=False)]
        assert [(name, run) for run in runs for name, text in texts.items() if run in text] == []


def test_notebooks_are_the_same_bytes_unless_published_elsewhere(students, tmp_path):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert (students / "notebooks" / path.name).read_bytes() == path.read_bytes()
    release.release(ROOT, tmp_path / "mine", repository="https://github.com/me/mine")
    for file in ("notebooks/02_lora.ipynb", "docs/own-data.md"):
        text = (tmp_path / "mine" / file).read_text("utf-8")
        assert "https://github.com/me/mine" in text, "not where the solutions are"
        assert PROJECT["urls"]["Repository"] not in text


def test_the_wheel_of_a_release_wants_no_solutions(students):
    before = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    after = tomllib.loads((students / "pyproject.toml").read_text("utf-8"))
    wheel = before["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel.pop("force-include") == {"solutions": "labkit/_solutions"}
    assert after == before
    assert (students / after["project"]["readme"]).is_file()


LENT = """
import inspect, labkit, sys, torch, traceback
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell('import labkit; lab, check = labkit.start("02_lora")').raise_error()
names = shell.user_ns
print("FROM", labkit.__file__)
names["check"].quiz(lambda: {"q1": "b", "q2": "c", "q3": "a"})
names["lab"].reveal("2.4")
names["lab"].reveal("2.2")
inject, layer = names["inject"], names["LoRALinear"]
names["check"].injects(inject)
for thing in (inject, layer, layer.forward):
    try: print("SOURCE", inspect.getsource(thing))
    except (OSError, TypeError): pass
try: layer(torch.nn.Linear(4, 3), 2, 8)(torch.ones(1, 5))
except RuntimeError: print(traceback.format_exc())
shell.run_cell("inject??")
names["LoRALinear"] = type("LoRALinear", (layer,), {})  # the learner's own
model = torch.nn.Sequential(torch.nn.Linear(2, 2))
assert inject(model, ["0"], 2, 4) == 1 and type(model[0]) is names["LoRALinear"]
for stem in sys.argv[1:]:
    lab, check = labkit.start(stem)
    for exercise in lab.exercises:
        if exercise["name"] == "quiz": continue
        lab.reveal(exercise["id"])
        assert lab.experiment("Runs", 0, needs=[exercise["id"]])
"""


def test_labs_work_from_a_release_which_lends_what_it_does_not_show(students):
    env = os.environ | {"PYTHONPATH": str(students), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LENT, *STEMS]
    done = subprocess.run(command, cwd=students, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert f"FROM {students / 'labkit/__init__.py'}" in told and "✓ 2.8 quiz" in told
    assert "◐ 2.2 is lent" in told and "◐ 2.4 is lent" in told
    assert "<lent 2.2>" in told, "an error names the place"
    assert not [line for line in ("SOURCE", "get_submodule", "self.base(x)") if line in told]


def test_quiz_keys_are_packed_and_are_the_same(students, monkeypatch):
    checks = students / "labkit/checks"
    assert not list(checks.rglob("*.toml"))
    keys = {stem[:2]: quiz.read_key(stem[:2]) for stem in STEMS}
    monkeypatch.setattr(quiz, "__file__", str(checks / "quiz.py"))
    assert {number: quiz.read_key(number) for number in keys} == keys and all(keys.values())
    for path in checks.rglob("*.b64"):
        assert "answer" not in path.read_text() and "right" not in path.read_text()


def test_the_makefile_keeps_the_target_that_students_need(students):
    text = (students / "Makefile").read_text("utf-8")
    assert re.findall(r"(?m)^([a-z]+):", text) == ["setup", "lab"]
    assert not re.search("nbval|pytest", text, re.IGNORECASE)
    if shutil.which("make"):
        args = ["make", "--dry-run", "--always-make", "-C", str(students), "lab"]
        plan = subprocess.run(args, capture_output=True, text=True, check=True).stdout
        assert "pip install" in plan and "jupyter-lab --notebook-dir=notebooks" in plan


def code_of(guide, language="python"):
    text = (ROOT / "docs" / f"{guide}.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_checks_in_the_guide_are_checks(tmp_path):
    blocks = [block for block in code_of("instructor") if "@exercise" in block]
    path = tmp_path / "mine.py"
    path.write_text("\n\n".join(blocks), "utf-8")
    assert [check.exercise["id"] for check in private.load(path)] == ["2.90", "2.8", "2.91"]


def test_the_exercise_in_the_guide_is_one(monkeypatch, accepts, rejects):
    text, checks, tests = code_of("maintainer")
    (rows,) = code_of("maintainer", "toml")
    guide = vars(lab01) | {"check": lab01}
    exec(checks, guide)
    monkeypatch.setattr(lab01, "norm", guide["norm"], raising=False)
    monkeypatch.setattr(engine, "read", lambda path: tomllib.loads(rows))
    lists = {"RIGHT": [], "WRONG": []}
    exec(tests, guide, lists)
    for case in lists["RIGHT"]:
        accepts(*case)
    for check, answer, words in lists["WRONG"]:
        assert words in rejects(check, answer)
    lab, quiz = (ROOT / "labs/01_svd.py").read_text("utf-8"), "# %% [markdown]\n# ### Exercise 1.7"
    assert lab.count(quiz) == 1
    master = notebooks.cut(lab.replace(quiz, f"{text}\n\n{quiz}"), solved=True)
    solved = notebooks.to_notebook(master, "01_svd", PROJECT)
    cells = ["".join(cell["source"]) for cell in json.loads(solved)["cells"]]
    (source,) = [cell for cell in cells if "def update_norm" in cell]
    accepts(lab01.norm, contract.defined_by(source)["update_norm"])
    contract.session.reference = lambda id: source
    for piece, ways in engine.mistakes("1.8").items():
        for new, message in ways.items():
            names = contract.defined_by(source.replace(piece, new))
            assert message in rejects(lab01.norm, names["update_norm"])


def test_a_pyproject_that_would_still_want_the_solutions_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "SOLUTIONS", re.compile("of another form"))
    with pytest.raises(LabError, match="would still need the solutions"):
        release.release(ROOT, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "is not empty"), (["--checks", "pyproject.toml"], "not for a students' copy")],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, options, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/grades.csv").write_text("keep")
    monkeypatch.chdir(ROOT)
    assert call("release", "--out", tmp_path / "full", *options) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1
    assert (tmp_path / "full/grades.csv").read_text() == "keep"


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    out = tmp_path_factory.mktemp("zips") / "gradescope"
    checks = out.with_name("mine.py")
    checks.write_text("PRIVATE = 1\n", "utf-8")
    assert release.autograders(ROOT, out, checks) == sorted(p.name for p in out.iterdir())
    return out


@pytest.fixture
def home(zips, tmp_path):
    """A folder as Gradescope makes it of lab 2's zip."""
    home = tmp_path / "autograder"
    for name in ("source", "submission", "results"):
        (home / name).mkdir(parents=True)
    with zipfile.ZipFile(zips / "02_lora.zip") as archive:
        for info in archive.infolist():
            path = Path(archive.extract(info, home / "source"))
            path.chmod(info.external_attr >> 16 & 0o777)
    (home / "source/private_checks.py").unlink()
    shutil.copy(home / "source/run_autograder", home)
    return home


def called(home, program, **variables):
    """What a program there prints; its Python is this one, of whose checkout the zip was made."""
    env = os.environ | {"PYTHON": sys.executable, "AUTOGRADER": str(home)} | variables
    done = subprocess.run([home / program], env=env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def graded(home, **variables):
    """What the autograder writes about what was handed in."""
    called(home, "run_autograder", **variables)
    return json.loads((home / "results/results.json").read_text("utf-8"))


def stub(path, lines="exit 0"):
    """A program that notes how it was called, and does nothing else but lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{path.name} $*" >> "$CALLS"\n{lines}\n')
    path.chmod(0o755)


def test_every_lab_has_its_autograder_and_no_answer_in_it(zips):
    for path in zips.iterdir():
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            run = archive.read("run_autograder").decode()
        assert {"setup.sh", "run_autograder", "pyproject.toml", "constraints.txt"} <= names
        assert {"README.md", "labkit/cli/__init__.py", "private_checks.py"} <= names
        assert not [n for n in names if n.endswith(".ipynb") or n.startswith(("labs", "tests"))]
        assert f" {path.stem} " in run and "LAB" not in run


def test_setup_asks_for_everything_that_the_autograder_needs(home, tmp_path):
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    for path in (programs / "apt-get", programs / "python3", tmp_path / "uv"):
        stub(path)
    stub(home / "uv/bin/pip", f'cp {tmp_path / "uv"} "$AUTOGRADER/uv/bin/uv"')
    stub(home / "venv/bin/labkit")
    called(home, "source/setup.sh", PATH=f"{programs}:{os.environ['PATH']}", CALLS=str(calls))
    told = calls.read_text().splitlines()
    source = home / "source"
    assert any(re.match(r"apt-get install .*\bbubblewrap\b", call) for call in told)
    assert f"uv pip install --quiet {source}[grading] -c {source}/constraints.txt" in told
    assert told[-1] == "labkit --version"


def test_the_autograder_grades_a_submission_for_real_where_no_sandbox_starts(home, tmp_path):
    """As in most of Gradescope's containers; with a sandbox the next test has a verdict."""
    shutil.copy(ROOT / "solutions/02_lora.ipynb", home / "submission")
    stub(tmp_path / "bwrap", "exit 1")
    result = graded(home, PATH=f"{tmp_path}:{os.environ['PATH']}", CALLS=os.devnull)
    assert result["output"] == f"02_lora: {points()} of {points()} points"
    ids = {check.exercise["id"] for check in contract.checks_of(lab02)}
    assert {test["number"] for test in result["tests"]} == ids
    assert all(test["status"] == "passed" for test in result["tests"])
    assert result["score"] == sum(test["max_score"] for test in result["tests"]) == points()


@pytest.mark.parametrize(
    ("name", "said"),
    [("notes.txt", "there is no notebook"), ("02_lora.ipynb", "unreadable: not a notebook")],
)
def test_results_are_written_whatever_was_handed_in(home, name, said):
    (home / "submission" / name).write_text("{")
    result = graded(home)
    assert result["score"] == 0 and said in result["output"]


def test_private_checks_are_passed_on(home):
    (home / "source/private_checks.py").write_text("1 / 0\n")
    told = called(home, "run_autograder", PYTHON="echo").split()
    assert told[-3:] == ["02_lora", "--checks", "source/private_checks.py"]
