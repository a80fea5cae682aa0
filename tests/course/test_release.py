"""What students and Gradescope get: nothing that gives an answer away, and all that is needed."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest

from labkit import cli, contract
from labkit.checks import engine, quiz
from labkit.course import masters, notebooks, release
from labkit.errors import LabError
from labkit.grading.judge import private

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r" *# BEGIN SOLUTION\n(.*?) *# END SOLUTION\n", re.DOTALL)
TEXT = {".py", ".ipynb", ".md", ".toml", ".j2", ".txt", ".yml", ".csv", ".js", ".sh", ""}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the course with what a release is made of, built; nobody changes it."""
    root = tmp_path_factory.mktemp("built") / "course"
    for name in ("labs", "labkit"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("pyproject.toml", "Makefile", *release.AS_IT_IS):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "docs", root / "docs")
    notebooks.build(root)
    return root


@pytest.fixture
def course(built, tmp_path):
    """A course to change."""
    return shutil.copytree(built, tmp_path / "course")


@pytest.fixture(scope="module")
def students(built, tmp_path_factory):
    """The folder that students get."""
    out = tmp_path_factory.mktemp("release") / "students"
    release.release(built, out)
    return out


def secret_blocks():
    """(lab, lines) of each solution block, without lines that stand outside of any block too."""
    for master in sorted((ROOT / "labs").glob("[0-9][0-9]_*.py")):
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


def test_links_of_a_release_lead_somewhere(students):
    for page in (students / "README.md", *(students / "docs").glob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


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


def test_notebooks_are_the_same_bytes_unless_published_elsewhere(students, built, tmp_path):
    for path in sorted((built / "notebooks").glob("*.ipynb")):
        assert (students / "notebooks" / path.name).read_bytes() == path.read_bytes()
    release.release(built, tmp_path / "mine", repository="https://github.com/me/mine")
    text = (tmp_path / "mine/notebooks/02_lora.ipynb").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "git+https://github.com/me/mine@v" in text
    assert project["urls"]["Repository"] not in text
    guide = (tmp_path / "mine/docs/own-data.md").read_text("utf-8")
    assert "git clone https://github.com/me/mine" in guide, "not where the solutions are"
    assert project["urls"]["Repository"] not in guide


def test_the_wheel_of_a_release_wants_no_solutions(students):
    before = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    after = tomllib.loads((students / "pyproject.toml").read_text("utf-8"))
    wheel = before["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel.pop("force-include") == {"solutions": "labkit/_solutions"}
    assert after == before
    assert (students / after["project"]["readme"]).is_file()


def run_in(folder, code, *options):
    """Run Python with labkit from `folder`, in it, and return what it printed."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LAB = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell('import labkit; lab, check = labkit.start("02_lora")').raise_error()
names, records = shell.user_ns, labkit.contract.session.records
lab, check = names["lab"], names["check"]
right = lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * (x @ A.T) @ B.T
"""


def test_a_lab_works_from_a_release(students):
    code = "import labkit\nprint(labkit.__file__)" + LAB
    code += "check.matches_dense(right)\n"
    code += 'check.quiz(lambda: {"q1": "b", "q2": "c", "q3": "a"})\n'
    told = run_in(students, code).splitlines()
    assert Path(told[0]) == students / "labkit" / "__init__.py"
    assert any(line.startswith("✓ 2.1 lora_forward") for line in told)
    assert any(line.startswith("✓ 2.8 quiz") for line in told)


def test_a_release_lends_what_it_does_not_show(students):
    code = """
import inspect, labkit, traceback
LABlab.experiment("Waits", 1, needs=["2.2", "2.4"])
lab.reveal("2.4")  # uses the learner's LoRALinear, as the solution does when it is revealed
import torch
from torch import nn
lent = names["inject"]
class LoRALinear(nn.Linear):
    def __init__(self, base, r, alpha): super().__init__(1, 1)
names["LoRALinear"] = LoRALinear
model = nn.Sequential(nn.Linear(2, 2))
assert lent(model, ["0"], 2, 4) == 1 and type(model[0]) is LoRALinear
lab.reveal("2.2")
assert lab.experiment("Runs", 1, needs=["2.2", "2.4"])
layer = names["LoRALinear"](nn.Linear(4, 3), 2, 8)
assert layer(torch.ones(1, 4)).shape == (1, 3)
for thing in (lent, names["LoRALinear"], names["LoRALinear"].forward):
    try: print("SOURCE", inspect.getsource(thing))
    except (OSError, TypeError): pass
try: layer(torch.ones(1, 5))
except RuntimeError: trace = traceback.format_exc()
assert "<lent 2.2>" in trace and "self.base(x)" not in trace
shell.run_cell("inject??")
check.injects(lent)
lab.reveal("2.1")
check.matches_dense(names["lora_forward"])
print([records[id]["status"] + str(records[id]["earned"]) for id in ("2.2", "2.4", "2.1")])
check.matches_dense(right)
lab.reveal("2.1")
print(records["2.1"]["status"], records["2.1"]["earned"])
try: lab.reveal("2.8")
except labkit.errors.LabError as error: print("SAID", error)
"""
    told = run_in(students, code.replace("LAB", LAB))
    lines = told.splitlines()
    lent = "is lent: it runs, its source stays hidden, and it earns no points"
    assert 'waits for 2.2 (LoRALinear), 2.4 (inject). Stuck? lab.reveal("2.2")' in told
    assert f"◐ 2.2 {lent}. Write your own any time: it then counts." in lines
    assert f"◐ 2.4 {lent}: inject is the course's, not yours" in lines
    assert lines[-1] == f"SAID {contract.NO_LETTERS}"
    assert "SOURCE" not in told and "get_submodule" not in told
    assert "['lent0', 'lent0', 'lent0']" in lines
    assert "✓ 2.1 has passed already: yours stays." in lines and "passed 2" in lines


def test_every_exercise_but_quizzes_is_lent(students):
    stems = [path.stem for path in masters.masters(ROOT)]
    assert {path.stem for path in (students / "labkit/_lent").iterdir()} == set(stems)
    code = """
import labkit
from labkit import reference
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance()
for stem in STEMS:
    lab, check = labkit.start(stem)
    for exercise in lab.exercises:
        if exercise["name"] != "quiz":
            lab.reveal(exercise["id"])
            assert lab.experiment("Runs", 0, needs=[exercise["id"]])
    assert reference.reference(stem, lab.exercises[-1]["id"]) is None
print("all")
"""
    assert run_in(students, code.replace("STEMS", repr(stems))).splitlines()[-1] == "all"


def test_quiz_keys_are_packed_and_are_the_same(students, monkeypatch):
    checks = students / "labkit/checks"
    assert not list(checks.rglob("*.toml"))
    keys = {path.stem[:2]: quiz.read_key(path.stem[:2]) for path in masters.masters(ROOT)}
    monkeypatch.setattr(quiz, "__file__", str(checks / "quiz.py"))
    assert {number: quiz.read_key(number) for number in keys} == keys and all(keys.values())
    for path in checks.rglob("*.b64"):
        assert "answer" not in path.read_text() and "right" not in path.read_text()


def test_the_makefile_keeps_the_target_that_students_need(students):
    text = (students / "Makefile").read_text("utf-8")
    assert re.findall(r"(?m)^([a-z]+):", text) == ["setup", "lab"]
    assert ".PHONY: setup lab\n" in text
    assert not re.search("nbval|pytest|labkit run", text, re.IGNORECASE)
    if shutil.which("make"):
        args = ["make", "--dry-run", "--always-make", "-C", str(students), "lab"]
        plan = subprocess.run(args, capture_output=True, text=True, check=True).stdout
        assert "pip install" in plan and "jupyter-lab --notebook-dir=notebooks" in plan


def test_the_readme_names_every_lab(students):
    links = re.findall(r"\]\((notebooks/.*?)\)", (students / "README.md").read_text("utf-8"))
    assert links == [f"notebooks/{path.stem}.ipynb" for path in masters.masters(ROOT)]
    assert all((students / link).is_file() for link in links)


def call(*args):
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["release", *map(str, args)])
    return caught.value.code or 0


def test_the_checks_in_the_guide_are_checks(tmp_path):
    blocks = [block for block in code_of("instructor") if "@exercise" in block]
    path = tmp_path / "mine.py"
    path.write_text("\n\n".join(blocks), "utf-8")
    assert [check.exercise["id"] for check in private.load(path)] == ["2.9", "2.8", "2.10"]


def test_the_lab_in_the_guide_is_a_lab(capsys, monkeypatch, accepts, rejects, not_written):
    master, checks, tests = code_of("maintainer")
    (rows,) = code_of("maintainer", "toml")
    module = types.ModuleType("labkit.checks.lab10")
    exec(checks, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("labkit.checks.lab10", module, raising=False)
    monkeypatch.setattr(engine, "read", lambda path: tomllib.loads(rows))
    answers = {}
    exec(tests, answers)
    for case in answers["STUBS"]:
        not_written(*case)
    for case in answers["RIGHT"]:
        accepts(*case)
    for check, answer, words in answers["WRONG"]:
        assert words in rejects(check, answer)
    capsys.readouterr()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for solved, verdict in ((False, "○ 10.1"), (True, "✓ 10.1")):
        text = notebooks.to_notebook(notebooks.cut(master, solved), "10", project)
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
        assert any('labkit.start("10_norms")' in cell for cell in cells)
        source, names = next(cell for cell in cells if "def update_norm" in cell), {}
        exec(source, names)
        with contextlib.suppress(LabError):
            module.norm(names["update_norm"])
        assert verdict in capsys.readouterr().out
    contract.session.reference = lambda id: source
    for piece, ways in engine.mistakes("10.1").items():
        for new, message in ways.items():
            names = contract.defined_by(source.replace(piece, new))
            assert message in rejects(module.norm, names["update_norm"])


def code_of(guide, language="python"):
    """The code blocks of a guide in a language."""
    text = (ROOT / "docs" / f"{guide}.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("options", [[], ["--gradescope"]])
def test_half_built_is_refused_in_one_line(course, tmp_path, monkeypatch, capsys, options):
    master = course / "labs/02_lora.py"
    master.write_text(master.read_text("utf-8") + "\n# %% [markdown]\n# More.\n", "utf-8")
    monkeypatch.chdir(course)
    assert call("--out", tmp_path / "out", *options) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "notebooks/02_lora.ipynb" in told.err
    assert "run 'labkit build' first" in told.err and not (tmp_path / "out").exists()


def test_a_changed_pyproject_is_refused(course, tmp_path):
    project = course / "pyproject.toml"
    text = project.read_text("utf-8").replace("wheel.force-include]", "wheel.force_include]")
    project.write_text(text, "utf-8")
    with pytest.raises(LabError, match="would still want the solutions"):
        release.release(course, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "is not empty"), (["--checks", "pyproject.toml"], "--checks are private")],
)
def test_bad_input_is_one_line(built, tmp_path, monkeypatch, capsys, options, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/grades.csv").write_text("keep")
    monkeypatch.chdir(built)
    assert call("--out", tmp_path / "full", *options) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1
    assert (tmp_path / "full/grades.csv").read_text() == "keep"


@pytest.fixture(scope="module")
def zips(built, tmp_path_factory):
    """The folder of autograders, with private checks inside."""
    out = tmp_path_factory.mktemp("zips") / "gradescope"
    checks = out.with_name("mine.py")
    checks.write_text("PRIVATE = 1\n", "utf-8")
    assert release.autograders(built, out, checks) == sorted(p.name for p in out.iterdir())
    return out


@pytest.fixture
def harness(zips, tmp_path):
    """What Gradescope does with lab 2's zip, under a folder of ours: (home, environment)."""
    home = tmp_path / "autograder"
    for name in ("source", "submission", "results"):
        (home / name).mkdir(parents=True)
    with zipfile.ZipFile(zips / "02_lora.zip") as archive:
        for info in archive.infolist():
            path = Path(archive.extract(info, home / "source"))
            path.chmod(info.external_attr >> 16 & 0o777)
    (home / "source/private_checks.py").unlink()
    shutil.copy(home / "source/run_autograder", home)
    installed = {"PYTHON": sys.executable}  # this checkout, which the zip was made of
    return home, os.environ | installed | {"AUTOGRADER": str(home)}


def stub(folder, name, lines="exit 0"):
    """A program in folder that notes how it was called, and does nothing else but lines."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\n{lines}\n')
    path.chmod(0o755)
    return path


def test_every_lab_has_its_autograder_and_no_answer_in_it(zips):
    for path in zips.iterdir():
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            run = archive.read("run_autograder").decode()
        assert {"setup.sh", "run_autograder", "pyproject.toml", "constraints.txt"} <= names
        assert {"README.md", "labkit/cli/__init__.py", "private_checks.py"} <= names
        assert not [n for n in names if n.endswith(".ipynb") or n.startswith(("labs", "tests"))]
        assert f" {path.stem} " in run and "LAB" not in run


def test_setup_asks_for_everything_that_the_autograder_needs(harness, tmp_path):
    home, env = harness
    programs = tmp_path / "programs"
    stub(programs, "apt-get")
    stub(home / "uv/bin", "pip", f'cp {stub(tmp_path, "uv")} "$AUTOGRADER/uv/bin/uv"')
    stub(programs, "python3")  # instead of making an environment
    stub(home / "venv/bin", "labkit")
    env |= {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    done = subprocess.run([str(home / "source/setup.sh")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    source = home / "source"
    assert any(re.match(r"apt-get install .*\bbubblewrap\b", call) for call in calls)
    assert f"python3 -m venv {home}/uv" in calls
    assert f"uv pip install --quiet {source}[grading] -c {source}/constraints.txt" in calls
    assert calls[-1] == "labkit --version"


@pytest.mark.parametrize("wall", [True, False])
def test_the_autograder_grades_a_submission_for_real(harness, tmp_path, wall):
    home, env = harness
    shutil.copy(ROOT / "solutions/02_lora.ipynb", home / "submission")
    if not wall:
        stub(tmp_path / "programs", "bwrap", "exit 1")
        env |= {"PATH": f"{tmp_path / 'programs'}:{env['PATH']}", "CALLS": os.devnull}
    run = [str(home / "run_autograder")]
    done = subprocess.run(run, env=env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((home / "results/results.json").read_text("utf-8"))
    assert result["output"] == "02_lora: 22 of 22 points", done.stdout
    assert [test["number"] for test in result["tests"]] == [f"2.{i}" for i in range(1, 9)]
    assert all(test["status"] == "passed" for test in result["tests"])
    assert result["score"] == sum(test["max_score"] for test in result["tests"]) == 22


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there is no notebook: hand in the .ipynb file"),
        ({"notes.txt": "hello"}, "there is no notebook: hand in the .ipynb file"),
        ({"02_lora.ipynb": "{"}, "unreadable: not a notebook"),
    ],
)
def test_results_are_written_whatever_was_handed_in(harness, files, said):
    home, env = harness
    for name, text in files.items():
        (home / "submission" / name).write_text(text)
    run = [str(home / "run_autograder")]
    done = subprocess.run(run, env=env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((home / "results/results.json").read_text("utf-8"))
    assert result["score"] == 0 and said in result["output"]


def test_private_checks_are_passed_on(harness):
    home, env = harness
    (home / "source/private_checks.py").write_text("1 / 0\n")
    run = ["bash", "-x", str(home / "run_autograder")]
    done = subprocess.run(run, env=env | {"PYTHON": "echo"}, capture_output=True, text=True)
    assert done.stdout.split()[-3:] == ["02_lora", "--checks", "source/private_checks.py"]
