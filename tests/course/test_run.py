"""A run of labs: its kernels, its progress, its summary, and what Ctrl-C leaves."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from html import unescape
from pathlib import Path

import nbformat
import psutil
import pytest
from rich.console import Console

from labkit import cli
from labkit.course.notebooks import build
from labkit.course.progress import Left, bars, experiment_seconds, nearest_headings
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
    """A course of three labs (passes, raises, does not pass), executed once."""
    course = tmp_path_factory.mktemp("course")
    (course / "labs").mkdir()
    shutil.copy(ROOT / "pyproject.toml", course)
    bodies = {"01_good": SCORE.format(status="passed"), "02_raises": RAISES}
    bodies["03_short"] = SCORE.format(status="missing")
    (course / "docs").mkdir()
    (course / "docs/start.md").write_text("# Start\n\nA guide.\n", "utf-8")
    for number, (stem, body) in enumerate(bodies.items(), 1):
        text = HEAD.format(number=number, title=stem) + body
        (course / f"labs/{stem}.py").write_text(text, "utf-8")
    build(course)
    console = Console(record=True, width=120)
    results = run([], course, course / "out", console)
    return course, {result.lab: result for result in results}, console.export_text()


def test_a_lab_that_passes_has_its_numbers(ran):
    _, results, _ = ran
    good = results["01_good"]
    assert (good.status, good.error) == ("ok", "")
    assert (good.passed, good.exercises, good.headline) == (2, 2, "exact match <0> to 1")
    assert 0 < good.seconds < 60
    if sys.platform == "linux":
        assert 10e6 < good.peak_bytes < 1e9


def test_a_lab_that_raises_is_named_and_the_next_one_runs(ran):
    _, results, printed = ran
    assert results["02_raises"].status == "failed"
    assert results["02_raises"].error == "in 'Merging': ValueError: of this"
    assert "02_raises: in 'Merging': ValueError: of this" in printed
    assert results["03_short"].exercises == 2


def test_an_exercise_that_did_not_pass_fails_the_lab(ran):
    _, results, _ = ran
    assert results["03_short"].status == "failed"
    assert results["03_short"].error == "not passed: 2 second"
    assert results["03_short"].passed == 1


def text_of(path):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", path.read_text("utf-8"))).split())


def test_the_kernel_is_this_python_and_noise_stays_out_of_the_page(ran):
    course, *_ = ran
    page = text_of(course / "out/01_good.html")
    assert sys.executable in page
    assert 'print("noise of a bar"' in page.replace(" ( ", "(").replace("( ", "(").replace(
        " (", "("
    )
    assert page.count("noise of a bar") == 1  # in the cell that writes it
    assert page.startswith("Lab 1 · 01_good — LoRA Labs")


def test_what_a_slider_draws_is_in_the_cell(ran):
    """No answer goes back to the kernel, whose reply could get lost beside it."""
    course, *_ = ran
    assert "drawn at 10" in text_of(course / "out/01_good.html")
    cells = nbformat.read(course / "out/executed/01_good.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text == "drawn at 10\n"


def test_the_failing_page_shows_the_traceback(ran):
    course, *_ = ran
    assert "Traceback" in text_of(course / "out/02_raises.html")


def test_book_and_summary_say_the_same(ran):
    course, results, printed = ran
    table, first = (text_of(course / f"out/{name}.html") for name in ("labs", "index"))
    summary = json.loads((course / "out/summary.json").read_text("utf-8"))
    assert [row["lab"] for row in summary] == list(results)
    for row in summary:
        assert row == vars(results[row["lab"]])
        assert row["title"] in table and row["title"] in first
        assert row["lab"] in printed
    assert "exact match <0> to 1" in table and "exact match <0> to 1" in first
    assert "of this" in table
    assert "WARNING" not in printed


def test_executed_notebooks_are_kept(ran):
    course, results, _ = ran
    for stem in results:
        cells = nbformat.read(course / f"out/executed/{stem}.ipynb", 4).cells
        assert any(cell.get("outputs") for cell in cells)


def test_solved_notebooks_stay_unexecuted_and_what_labs_write_beside_them_goes(ran):
    course, *_ = ran
    assert build(course, check=True) == []
    assert list(course.rglob("beside.txt")) == []


def test_exit_code_and_json_of_the_command(ran, monkeypatch, capfd):
    course, *_ = ran
    monkeypatch.chdir(course / "labs")  # the course is found from inside
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "1", "--out", str(course / "again"), "--json"])
    assert caught.value.code == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["lab"], row["status"]) == ("01_good", "ok")
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "02_raises", "--out", str(course / "again")])
    assert caught.value.code == 1


def test_ctrl_c_leaves_what_is_done(ran, monkeypatch):
    course, *_ = ran

    def interrupted(book, folder, at_cell, **_):
        at_cell(0)
        raise KeyboardInterrupt

    monkeypatch.setattr("labkit.course.run.execute", interrupted)
    monkeypatch.chdir(course)
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "1", "--out", "stopped"])
    assert caught.value.code == 130
    (row,) = json.loads((course / "stopped/summary.json").read_text("utf-8"))
    assert row["status"] == "stopped"
    assert (course / "stopped/01_good.html").exists()


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
        while not all(note.exists() and note.read_text() for note in notes):
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


def test_labs_side_by_side_where_cores_and_memory_are_there(monkeypatch):
    memory = psutil.virtual_memory()._replace(available=13 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert side_by_side(3) == (2, 4)
    assert side_by_side(1) == (1, 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert side_by_side(3) == (1, 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory._replace(available=2**33))
    assert side_by_side(3) == (1, 2)


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


def test_headings_and_announced_seconds():
    cell = nbformat.v4.new_markdown_cell
    cells = [cell("words"), cell("# One\n\n## Two"), nbformat.v4.new_code_cell("# no heading")]
    assert nearest_headings(cells, "00_x") == ["00_x", "Two", "Two"]
    assert experiment_seconds('if lab.experiment("a (b, 3)", 40, needs=(f,)):\n    pass') == 40
    assert experiment_seconds('if lab.experiment("a", seconds=1.5):\n    pass') == 1.5
    assert experiment_seconds("%matplotlib inline\nlab.experiment('a', 3)") == 0
    assert experiment_seconds("x = 1") == 0


@pytest.mark.parametrize(("seconds", "shown"), [(90, "~80 s left"), (5, "")])
def test_time_left_counts_down_to_nothing(monkeypatch, seconds, shown):
    monkeypatch.setattr("labkit.course.progress.time.monotonic", lambda: 110.0)
    with bars(Console(quiet=True)) as progress:
        number = progress.add_task("", seconds=seconds, since=100.0)
        assert Left().render(progress.tasks[number]).plain == shown
