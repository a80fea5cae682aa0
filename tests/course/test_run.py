"""A run of labs: its kernels, its progress, its summary, and what Ctrl-C leaves."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from command import call
from rich.console import Console

from labkit.course.notebooks import build
from labkit.course.run import find_labs, run, side_by_side
from labkit.errors import LabError

ROOT = Path(__file__).parents[2]
HEAD = """\
# %% [markdown]
# # Lab {number} · {title}

# %%
import sys
from IPython.display import display
"""
SCORE = """
# %% [markdown]
# ## The score

# %%
exercises = [
    {{"id": "1", "name": "first", "points": 1, "earned": 1, "status": "passed"}},
    {{"id": "2", "name": "second", "points": 1, "earned": 1, "status": "{status}"}},
]
score = {{"lab": "x", "exercises": exercises}}
display({{"application/vnd.labkit.score+json": score, "text/plain": "2 points"}}, raw=True)
headline = {{"headline": "exact match <0> to 1"}}
display({{"application/vnd.labkit.headline+json": headline, "text/plain": "-"}}, raw=True)
print("noise of a bar", file=sys.stderr)
open("beside.txt", "w").close()
print(sys.executable)

# %%
from ipywidgets import IntSlider, interact
interact(lambda r: print("drawn", "at", r), r=IntSlider(10))
"""
RAISES = """
# %% [markdown]
# ## Merging

# %%
raise ValueError("of this\\nand more")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A course of three labs (passes, raises, does not pass), executed once: (its folder, the
    results by lab, what was printed)."""
    course = tmp_path_factory.mktemp("course")
    for name in ("labs", "docs"):
        (course / name).mkdir()
    shutil.copy(ROOT / "pyproject.toml", course)
    (course / "docs/start.md").write_text("# Start\n\nA guide.\n", "utf-8")
    bodies = {"01_good": SCORE.format(status="passed"), "02_raises": RAISES}
    bodies["03_short"] = SCORE.format(status="missing")
    for number, (stem, body) in enumerate(bodies.items(), 1):
        text = HEAD.format(number=number, title=stem) + body
        (course / f"labs/{stem}.py").write_text(text, "utf-8")
    build(course)
    console = Console(record=True, width=120)
    results = run([], course, course / "out", console)
    return course, {result.lab: result for result in results}, console.export_text()


def test_a_lab_that_passes_has_its_numbers(ran):
    good = ran[1]["01_good"]
    assert (good.status, good.error) == ("ok", "")
    assert (good.passed, good.exercises, good.headline) == (2, 2, "exact match <0> to 1")
    assert 0 < good.seconds < 60
    if sys.platform == "linux":
        assert 10e6 < good.peak_bytes < 1e9


def test_a_lab_that_raises_or_does_not_pass_is_named_and_the_next_one_runs(ran):
    _, results, printed = ran
    raises, short = results["02_raises"], results["03_short"]
    assert (raises.status, raises.error) == ("failed", "in 'Merging': ValueError: of this")
    assert "02_raises: in 'Merging': ValueError: of this" in printed
    assert (short.status, short.error) == ("failed", "not passed: 2 second")
    assert (short.passed, short.exercises) == (1, 2)


def test_the_kernel_is_this_python_and_what_it_showed_is_kept(ran):
    """No answer of a slider goes back to the kernel, whose reply could get lost beside it."""
    course, results, _ = ran
    shown = {}
    for stem in results:
        book = nbformat.read(course / f"out/executed/{stem}.ipynb", as_version=4)
        shown[stem] = [output for cell in book.cells for output in cell.get("outputs", [])]
    texts = [output.get("text", "").strip() for output in shown["01_good"]]
    assert sys.executable in texts and "drawn at 10" in texts
    assert shown["02_raises"][-1].ename == "ValueError"
    for stem in results:
        assert (course / f"out/{stem}.html").is_file()
    assert build(course, check=True) == []
    assert list(course.rglob("beside.txt")) == [], "what labs write beside them goes"


def test_book_and_summary_say_the_same(ran):
    course, results, printed = ran
    summary = json.loads((course / "out/summary.json").read_text("utf-8"))
    assert summary == [vars(result) for result in results.values()]
    pages = [(course / f"out/{name}.html").read_text("utf-8") for name in ("labs", "index")]
    assert all("exact match &lt;0&gt; to 1" in page for page in pages)
    assert all(row["lab"] in printed for row in summary) and "WARNING" not in printed


def test_exit_code_and_json_of_the_command(ran, monkeypatch, capsys):
    course, results, _ = ran
    monkeypatch.chdir(course / "labs")  # the course is found from inside
    monkeypatch.setattr("labkit.course.run.run", lambda stems, *_: [results[s] for s in stems])
    codes = []
    for name in ("02_raises", "1"):
        capsys.readouterr()
        codes.append(call("run", name, "--json"))
    (row,) = json.loads(capsys.readouterr().out)
    assert (codes, row) == ([1, 0], vars(results["01_good"]))


WAITS = """\
# %% [markdown]
# # Lab {number} · Waits

# %%
import os, pathlib, time
pathlib.Path("{folder}/{number}").write_text(f"{{os.getpid()}} {{os.environ['OMP_NUM_THREADS']}}")
time.sleep(600)
lab.experiment("Waits", {number})
"""


def test_two_labs_at_a_time_the_longest_first_and_ctrl_c_ends_both(tmp_path, monkeypatch):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "labs").mkdir()
    for number in (1, 2, 3):
        text = WAITS.format(number=number, folder=tmp_path)
        (tmp_path / f"labs/0{number}_waits.py").write_text(text, "utf-8")
    build(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("labkit.course.run.side_by_side", lambda labs: (2, 3))
    notes = [tmp_path / str(number) for number in (2, 3)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it

    def interrupt():
        for _ in range(2000):
            if all(note.exists() and note.read_text() for note in notes):
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run([], tmp_path, tmp_path / "out", Console(quiet=True))
    finally:
        signal.signal(signal.SIGINT, before)
    for note in notes:
        process, threads = note.read_text().split()
        assert threads == "3"
        assert not psutil.pid_exists(int(process))
    summary = json.loads((tmp_path / "out/summary.json").read_text("utf-8"))
    stopped = [(row["lab"], row["status"], row["error"]) for row in summary]
    assert stopped == [("02_waits", "stopped", ""), ("03_waits", "stopped", "")]
    assert (tmp_path / "out/02_waits.html").exists(), "what is done is in the book"


@pytest.mark.parametrize(
    ("cores", "gb", "labs", "wanted"),
    [(8, 13, 3, (2, 4)), (8, 13, 1, (1, 8)), (1, 13, 3, (1, 1)), (2, 8, 3, (1, 2))],
)
def test_labs_run_side_by_side_where_cores_and_memory_are_there(
    cores, gb, labs, wanted, monkeypatch
):
    memory = psutil.virtual_memory()._replace(available=gb * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert side_by_side(labs) == wanted


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["2"], ["02_raises"]),
        (["03", "1"], ["01_good", "03_short"]),
        (["solutions/02_raises.ipynb", "2"], ["02_raises"]),
        ([], ["01_good", "02_raises", "03_short"]),
    ],
)
def test_lab_names(ran, names, wanted):
    assert find_labs(names, ran[0]) == wanted


@pytest.mark.parametrize(("name", "near"), [("02_rases", "02_raises"), ("9", "01_good, 02_raises")])
def test_an_unknown_lab_gets_the_nearest_names(ran, name, near):
    with pytest.raises(LabError, match=f"no lab is called '{name}'.*{near}"):
        find_labs([name], ran[0])
