"""A lab in a notebook: header, experiments, reveal, score, and live pictures."""

import base64
import json
import subprocess
import sys
import zlib

import pytest
import torch
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

import labkit
from labkit import contract, live
from labkit.errors import LabError
from labkit.reference import reference


def lora_forward(x, W, A, B, alpha):
    """A right answer to exercise 2.1."""
    return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T


@pytest.fixture
def shown(monkeypatch):
    """What the lab displays, as a list."""
    seen = []

    class Handle:
        def update(self, thing, **options):
            seen.append(thing)

    def display(thing=None, **options):
        seen.append(thing)
        return Handle()

    monkeypatch.setattr("labkit.lab.display", display)
    monkeypatch.setattr("labkit.live.display", display)
    return seen


@pytest.fixture
def lab():
    return labkit.start("02_lora")


def test_import_is_light():
    heavy = "('torch', 'IPython', 'datasets')"
    code = f"import sys, labkit; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_header_says_machine_precision_and_model(capsys):
    labkit.start("02_lora")
    told = capsys.readouterr().out
    assert "Lab 2" in told and "seed 0" in told and "SmolLM2-135M-Instruct" in told


def test_an_experiment_waits_for_open_exercises(lab, capsys):
    lab, check = lab
    assert lab.experiment("Training", 60, needs=["2.1"]) is False
    told = capsys.readouterr().out
    assert "2.1 (lora_forward)" in told and 'lab.reveal("2.1")' in told
    check.matches_dense(lora_forward)
    assert lab.experiment("Training", 60, needs=["2.1"]) is True
    assert "about 60 s" in capsys.readouterr().out


def test_a_cell_for_a_gpu_is_one_line_without_one(lab, capsys, monkeypatch):
    lab, _ = lab
    lab.device = "cpu"
    assert not lab.gpu("Paging", "litgpt measured 13.84 GB on an A100.")
    line = "◇ Paging: there is no GPU here. litgpt measured 13.84 GB on an A100.\n"
    assert capsys.readouterr().out == line
    assert not lab.gpu("Paging", "13.84 GB.", needs=["2.1"])
    assert "waits for 2.1" in capsys.readouterr().out
    lab.device = "cuda"
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    assert lab.gpu("Paging", "13.84 GB.")
    assert capsys.readouterr().out == "◆ Paging · on Tesla T4\n"


def test_the_header_says_what_a_t4_computes_in(lab, monkeypatch):
    lab, _ = lab
    lab.device, lab.dtype = "cuda", torch.float16
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    assert " · Tesla T4 · float16, weights float32 · seed 0 · " in lab.header()


def test_a_check_before_its_cell_is_one_line(monkeypatch, capsys):
    shell = InteractiveShell.instance()
    names = {"inject": lora_forward}  # what is there already stays
    monkeypatch.setattr(shell, "user_ns", names)
    monkeypatch.setattr("labkit.lab.get_ipython", lambda: shell)
    _, check = labkit.start("02_lora")
    capsys.readouterr()
    assert names["inject"] is lora_forward
    check.matches_dense(names["lora_forward"])
    assert capsys.readouterr().out == "○ 2.1 lora_forward: its cell has not been run yet\n"
    with pytest.raises(NameError, match="'lora_forward' is not defined"):
        names["lora_forward"]()
    check.matches_dense(lora_forward)
    assert "✓ 2.1" in capsys.readouterr().out


@pytest.fixture
def timed(monkeypatch):
    """A shell whose cells end when a test says so, and the clock, a list of one number."""
    shell, clock = InteractiveShell.instance(), [100.0]
    monkeypatch.setattr("labkit.live.get_ipython", lambda: shell)
    monkeypatch.setattr("labkit.live.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("labkit.live._pace", 1.0)
    return shell, clock


def test_an_experiment_counts_down_and_says_what_it_took(lab, shown, timed):
    lab, (shell, clock) = lab[0], timed
    result = ExecutionResult(None)
    waits = []
    for took in (60, 8, 5):
        assert lab.experiment("A < B", 20)
        waits.append(shown[-1])
        clock[0] += took
        shell.events.trigger("post_run_cell", result)
        assert shown[-1]["text/plain"] == f"◆ A < B · took {took} s"
        shell.events.trigger("post_run_cell", result)  # of the next cell, which is no experiment
        assert len(shown) == 2 * len(waits)
    assert waits[0]["text/plain"] == "◆ A < B · about 20 s on two CPU cores"
    assert "A &lt; B" in waits[0]["text/html"] and "labkit-20 20s" in waits[0]["text/html"]
    assert waits[1]["text/plain"] == "◆ A < B · about 60 s here"  # this machine takes three times
    assert waits[2]["text/plain"] == "◆ A < B · about 20 s on two CPU cores"


def test_one_countdown_stands_at_a_time_and_none_at_zero(lab, shown, timed):
    lab, (shell, clock) = lab[0], timed
    assert lab.experiment("Training", 20)
    assert "--labkit-left: 20" in shown[-1]["text/html"]
    assert "--labkit-left: 0" not in shown[-1]["text/html"]
    curve = live.Curve("steps", 1000)  # which counts down by what it measures
    assert shown[-2]["text/html"] == "◆ Training · about 20 s on two CPU cores"
    for _ in range(999):
        clock[0] += 0.01
        curve.add(1.0)
    clock[0] += 3
    for _ in live.progress(range(2), "more"):  # the announcement is told once that it may stop
        clock[0] += 0.1
    lines = [thing.data for thing in shown if hasattr(thing, "data")]
    assert any(" s left" in line for line in lines) and "about 0 s" not in "".join(lines)
    assert sum("about 20 s" in str(thing) for thing in shown) == 2
    shell.events.trigger("post_run_cell", ExecutionResult(None))


def test_reveal_runs_the_solution_and_earns_nothing(lab, shown, monkeypatch, capsys):
    lab, check = lab
    shell = InteractiveShell.instance()
    monkeypatch.setattr("labkit.lab.get_ipython", lambda: shell)
    shell.run_cell("import math")
    lab.reveal("2.1")
    assert "def lora_forward" in shown[0].data
    check.matches_dense(shell.user_ns["lora_forward"])
    assert "(it was revealed, and earns no points)" in capsys.readouterr().out
    lab.score()
    record = shown[-1]["application/vnd.labkit.score+json"]
    (row,) = [row for row in record["exercises"] if row["id"] == "2.1"]
    assert (row["status"], row["earned"]) == ("revealed", 0)
    assert lab.experiment("Training", 1, needs=["2.1"])


def test_what_has_passed_is_shown_and_stays_the_learners(lab, shown, monkeypatch, capsys):
    lab, check = lab
    shell = InteractiveShell.instance()
    monkeypatch.setattr("labkit.lab.get_ipython", lambda: shell)

    def lora_forward(x, W, A, B, alpha):
        return x @ W.T + alpha / len(A) * x @ A.T @ B.T

    shell.user_ns["lora_forward"] = lora_forward
    check.matches_dense(lora_forward)
    lab.reveal("2.1")
    assert "def lora_forward" in shown[0].data and shell.user_ns["lora_forward"] is lora_forward
    told = capsys.readouterr().out
    assert "yours stays" in told and "is revealed" not in told  # which grading would take for it
    assert contract.session.records["2.1"]["earned"] == 2


def test_reveal_shows_the_cell_of_its_own_exercise(lab, shown, monkeypatch):
    lab, _ = lab
    shell = InteractiveShell.instance()
    monkeypatch.setattr("labkit.lab.get_ipython", lambda: shell)
    shell.run_cell("import torch")
    lab.reveal("2.6")  # its check takes LoRALinear, too, which comes first in the notebook
    assert "def merge_" in shown[0].data and "class LoRALinear" not in shown[0].data


def test_reveal_reads_over_magics(lab, shown, monkeypatch, tmp_path):
    lab, _ = lab
    shell = InteractiveShell.instance()
    monkeypatch.setattr("labkit.lab.get_ipython", lambda: shell)
    cells = [
        "%matplotlib inline\nimport math",
        "!pip list\nfiles = !ls",
        "def lora_forward(): pass",
    ]
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in cells]
    book = tmp_path / "solutions/02_lora.ipynb"
    book.parent.mkdir()
    book.write_text(json.dumps({"cells": cells}), "utf-8")
    monkeypatch.setattr("labkit.reference.__file__", str(tmp_path / "labkit/reference.py"))
    lab.reveal("2.1")
    assert shown[0].data == "def lora_forward(): pass"


@pytest.fixture
def release(lab, monkeypatch, tmp_path):
    """`(lab, check, names)` where there are no solutions to show; two are lent."""
    cells = ["import math", "def lora_forward(x, W, A, B, alpha):\n    return x"]
    text = base64.encodebytes(zlib.compress(json.dumps(cells).encode()))
    (tmp_path / "labkit/_lent").mkdir(parents=True)
    (tmp_path / "labkit/_lent/02_lora.b64").write_bytes(text)
    monkeypatch.setattr("labkit.reference.__file__", str(tmp_path / "labkit/reference.py"))
    shell = InteractiveShell.instance()
    monkeypatch.setattr("labkit.lab.get_ipython", lambda: shell)
    return *lab, shell.user_ns


def test_what_is_lent_earns_nothing_and_ones_own_does(release, capsys):
    lab, check, names = release
    lab.reveal("2.1")
    check.matches_dense(names["lora_forward"])  # is not even asked
    told = capsys.readouterr().out
    assert "◐ 2.1 is lent" in told and "✓" not in told and "✗" not in told
    assert contract.session.records["2.1"]["status"] == "lent"
    assert lab.experiment("Runs", 1, needs=["2.1"])
    check.matches_dense(lora_forward)
    record = contract.session.records["2.1"]
    assert (record["status"], record["earned"]) == ("passed", 2)


def test_a_stub_that_is_back_closes_the_experiment_again(release):
    lab, check, _ = release

    def stub(x, W, A, B, alpha):
        raise NotImplementedError

    lab.reveal("2.1")
    check.matches_dense(stub)
    assert not lab.experiment("Waits", 1, needs=["2.1"])
    lab.reveal("2.1")
    assert lab.experiment("Runs", 1, needs=["2.1"])
    labkit.start("02_lora")
    assert contract.session.loans == {} == contract.session.records


def test_what_is_not_there_is_not_lent(release):
    with pytest.raises(LabError, match="not part of this copy"):
        release[0].reveal("2.2")


def test_an_answer_is_judged_beside_the_courses_own_of_what_is_open(monkeypatch, capsys):
    shell = InteractiveShell.instance()
    monkeypatch.setattr(shell, "user_ns", {})
    monkeypatch.setattr("labkit.lab.get_ipython", lambda: shell)
    _, check = labkit.start("02_lora")
    exec(reference("02_lora", "2.4"), shell.user_ns)
    shell.user_ns["LoRALinear"] = contract.NotRun("LoRALinear")
    check.injects(shell.user_ns["inject"])
    assert "✓ 2.4 inject" in capsys.readouterr().out
    assert isinstance(shell.user_ns["LoRALinear"], contract.NotRun)


def test_reveal_of_an_unknown_exercise_lists_the_known(lab):
    with pytest.raises(LabError, match=r"no exercise '9\.9'.*2\.1"):
        lab[0].reveal("9.9")


def test_the_score_counts_points(lab, shown):
    lab, check = lab
    check.matches_dense(lora_forward)
    lab.score()
    record = shown[-1]["application/vnd.labkit.score+json"]
    assert record["lab"] == "02_lora"
    assert [row["id"] for row in record["exercises"]] == [f"2.{i}" for i in range(1, 9)]
    assert sum(row["earned"] for row in record["exercises"]) == 2
    assert "2 of 22 points" in shown[-1]["text/plain"]


def test_starting_again_forgets_the_last_score(lab):
    _, check = lab
    check.matches_dense(lora_forward)
    again, _ = labkit.start("02_lora")
    assert not again.experiment("Training", 1, needs=["2.1"])


def test_progress_yields_everything_and_ends_at_the_total(shown):
    assert list(live.progress(range(3), "work")) == [0, 1, 2]
    assert "3/3" in shown[-1].data


def test_a_curve_keeps_losses_and_ends_in_a_picture(shown):
    curve = live.Curve("training", 3)
    for loss in (3.0, 2.0, 1.0):
        curve.add(loss)
    assert curve.losses == [3.0, 2.0, 1.0]
    assert len(curve.seconds) == 3
    assert any(type(thing).__name__ == "Figure" for thing in shown)
    assert any("3/3" in getattr(thing, "data", "") for thing in shown)


def test_curves_keep_each_quantity_and_end_in_one_picture(shown):
    curves = live.Curves("training", 2, {"kl": "KL, nats"})
    for reward, kl in ((0.1, 0.0), (0.3, 0.02)):
        curves.add(reward=reward, kl=torch.tensor(kl))
    assert curves.values["reward"] == [0.1, 0.3]
    assert curves.values["kl"] == pytest.approx([0.0, 0.02])
    figures = [thing for thing in shown if type(thing).__name__ == "Figure"]
    assert [ax.get_ylabel() for ax in figures[-1].axes] == ["reward", "KL, nats"]


def test_curves_are_lines_where_there_is_no_notebook(monkeypatch, capsys):
    monkeypatch.setattr(live, "display", lambda *_, **__: None)
    live.Curves("training", 2).add(reward=0.25)
    assert "training 1/2 · reward 0.25" in capsys.readouterr().out


def test_a_quiz_is_not_lent_and_says_so(release):
    with pytest.raises(LabError, match="A quiz is not lent: write a letter"):
        release[0].reveal("2.8")


def test_what_waits_to_be_written_is_named(capsys):
    _, check = labkit.start("01_svd")

    def stub(*_):
        raise NotImplementedError

    def lora_params(d_out, d_in, r):
        return r * (d_out + d_in)

    capsys.readouterr()
    check.parameters(lora_params, stub)
    assert capsys.readouterr().out == "○ 1.3 break_even_rank: not written yet\n"
    check.parameters(stub, stub)
    assert capsys.readouterr().out == "○ 1.3 lora_params, break_even_rank: not written yet\n"


def test_of_two_that_are_lent_the_one_that_still_is_is_named(capsys):
    _, check = labkit.start("01_svd")

    def lent(d_out, d_in):
        return (d_out * d_in - 1) // (d_out + d_in)

    contract.session.loans["1.3"] = [lent]
    capsys.readouterr()
    check.parameters(lambda d_out, d_in, r: r * (d_out + d_in), lent)
    assert ": break_even_rank is the course's, not yours" in capsys.readouterr().out


WAITED = 'if lab.experiment("A photograph", 1, needs=["1.1"]):\n    photo, (n, _) = 1, (2, 3)\n'


@pytest.fixture
def notebook():
    """A shell of its own, whose `lab` lets no experiment run."""
    kept = InteractiveShell._instance
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_cell("import labkit\nlab, check = labkit.start('01_svd')", store_history=True)
    labkit.start("01_svd")  # a second time, as learners do
    yield shell
    InteractiveShell.clear_instance()
    InteractiveShell._instance = kept


def test_a_name_that_an_experiment_makes_leads_to_its_cell(notebook, capsys):
    notebook.run_cell("%%time\n1 +", store_history=True)  # no Python
    notebook.run_cell(WAITED, store_history=True)
    capsys.readouterr()
    for name in ("photo", "n"):
        notebook.run_cell(f"print({name})", store_history=True)
        told = capsys.readouterr().out
        line = f"◇ {name} is made by the experiment “A photograph”, which has not run to its end"
        assert told.count(line) == 1 and "NameError" in told


def test_a_name_that_nothing_made_so_far_leads_upwards(notebook, capsys):
    notebook.run_cell("print(curve)", store_history=True)
    assert "If a cell above makes curve, run that one first" in capsys.readouterr().out
    notebook.run_cell("1 / 0\n", store_history=True)
    notebook.run_cell("def f():\n    print(x)\n    x = 1\nf()", store_history=True)  # no such case
    assert "◇" not in capsys.readouterr().out


@pytest.fixture
def started(monkeypatch, tmp_path):
    """`started(*cells)` runs them in a shell that has just started, as JupyterLab's of a file."""
    before = InteractiveShell._instance
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/ada/02_lora.ipynb")

    def run(*cells):
        contract.session.letters.clear()
        InteractiveShell.clear_instance()
        shell = InteractiveShell.instance()
        for cell in ('import labkit\nlab, check = labkit.start("02_lora")', *cells):
            shell.run_cell(cell, store_history=True)

    yield run
    InteractiveShell.clear_instance()
    InteractiveShell._instance = before


HELPED = """
def update(x, A, B):
    return x @ A.T @ B.T
"""
ANSWER = """
def lora_forward(x, W, A, B, alpha):
    return x @ W.T + alpha / len(A) * update(x, A, B) * math.cos(0)
"""


def test_resume_brings_back_what_had_passed_and_checks_it(started, capsys, tmp_path):
    first = "def lora_forward(x, W, A, B, alpha):\n    return 1.0"
    started(
        "import math",
        first,
        HELPED,
        ANSWER,
        "check.matches_dense(lora_forward)",
        'lab.reveal("2.3")',
    )
    capsys.readouterr()
    started("lab.resume()", "lab.score()", "assert update")
    told = capsys.readouterr().out
    assert "✓ 2.1 lora_forward" in told and "◐ 2.3 is revealed" in told
    assert "Error" not in told and "2 of 22 points" in told
    # what is in the file is run and not believed
    (path,) = (tmp_path / "sessions").iterdir()
    kept = json.loads(path.read_text())
    kept["2.1"]["cells"] = [first]
    path.write_text(json.dumps(kept | {"2.2": {"status": "passed", "cells": []}}))
    started("lab.resume()", "lab.score()")
    told = capsys.readouterr().out
    assert "✗ 2.1 lora_forward" in told and "(it had passed)" in told and "0 of 22 points" in told
    assert "2.2 LoRALinear: its cell has not been run yet" in told


def test_nothing_is_kept_of_a_run_without_a_learner(started, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("JPY_SESSION_NAME")
    started("import math", HELPED, ANSWER, "check.matches_dense(lora_forward)")
    assert not (tmp_path / "sessions").exists()
    started("lab.resume()")
    assert "nothing is kept of this notebook" in capsys.readouterr().out
