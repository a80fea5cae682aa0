"""A lab in a notebook: header, experiments, reveal, score, resume, and live pictures."""

import base64
import json
import zlib
from types import SimpleNamespace

import pytest
import torch
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from points import points

import labkit
from labkit import contract, live, plots
from labkit.checks import lab01
from labkit.checks import lab02 as check
from labkit.errors import LabError
from labkit.reference import reference


def lora_forward(x, W, A, B, alpha):
    return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T


def stub(*_):
    raise NotImplementedError


@pytest.fixture
def shown(monkeypatch):
    seen = []

    def display(thing, **_):
        seen.append(thing)
        return SimpleNamespace(update=lambda thing, **_: seen.append(thing))

    monkeypatch.setattr("labkit.lab.display", display)
    monkeypatch.setattr("labkit.live.display", display)
    return seen


@pytest.fixture
def shell():
    """The notebook's shell, which `get_ipython` finds once it is there."""
    return InteractiveShell.instance()


@pytest.fixture
def lab():
    return labkit.start("02_lora")[0]


def test_the_header_says_lab_machine_precision_and_model(capsys, monkeypatch):
    lab, _ = labkit.start("02_lora")
    told = capsys.readouterr().out
    assert "Lab 2" in told and "seed 0" in told and "SmolLM2-135M-Instruct" in told
    lab.device, lab.dtype = "cuda", torch.float16
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    assert "Tesla T4 · float16, weights float32" in lab.header()


def test_an_experiment_waits_for_open_exercises(lab, capsys):
    assert lab.experiment("Training", 60, needs=["2.1"]) is False
    told = capsys.readouterr().out
    assert "2.1 (lora_forward)" in told and 'lab.reveal("2.1")' in told
    check.matches_dense(lora_forward)
    assert lab.experiment("Training", 60, needs=["2.1"]) is True


def test_a_cell_for_a_gpu_is_one_line_without_one(lab, capsys, monkeypatch):
    lab.device = "cpu"
    assert not lab.gpu("Paging", "13.84 GB.")
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and told.endswith("13.84 GB.\n")
    assert not lab.gpu("Paging", "13.84 GB.", needs=["2.1"])
    assert "waits for 2.1" in capsys.readouterr().out
    lab.device = "cuda"
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    assert lab.gpu("Paging", "13.84 GB.")
    assert "13.84" not in capsys.readouterr().out


def test_a_check_before_its_cell_is_one_line(shell, monkeypatch, capsys):
    names = {"inject": lora_forward}
    monkeypatch.setattr(shell, "user_ns", names)
    labkit.start("02_lora")
    assert names["inject"] is lora_forward, "what was there stays"
    capsys.readouterr()
    check.matches_dense(names["lora_forward"])
    told = capsys.readouterr().out
    assert told.startswith("○ 2.1") and "has not been run yet" in told and told.count("\n") == 1
    with pytest.raises(NameError, match="'lora_forward' is not defined"):
        names["lora_forward"]()


@pytest.fixture
def clock(monkeypatch):
    """The time, a list of one number; no experiment has told how fast this machine is."""
    clock = [100.0]
    monkeypatch.setattr("labkit.live.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("labkit.live._pace", 1.0)
    return clock


def test_an_experiment_counts_down_and_says_what_it_took(lab, shell, shown, clock):
    waits = []
    for took in (60, 8, 5):
        assert lab.experiment("A < B", 20)
        waits.append(shown[-1])
        clock[0] += took
        shell.events.trigger("post_run_cell", ExecutionResult(None))
        assert f"took {took} s" in shown[-1]["text/plain"]
        shell.events.trigger("post_run_cell", ExecutionResult(None))  # of a cell without one
        assert len(shown) == 2 * len(waits)
    assert "A &lt; B" in waits[0]["text/html"] and "labkit-20 20s" in waits[0]["text/html"]
    told = [wait["text/plain"] for wait in waits]
    assert "about 20 s" in told[0]
    assert "about 60 s here" in told[1]  # this machine takes three times as long
    assert "about 20 s" in told[2]


def test_one_countdown_stands_at_a_time_and_none_at_zero(lab, shell, shown, clock):
    assert lab.experiment("Training", 20)
    assert "--labkit-left: 20" in shown[-1]["text/html"]
    assert "--labkit-left: 0" not in shown[-1]["text/html"]
    curve = live.Curve("steps", 1000)  # which counts down by what it measures
    assert "labkit-left" not in shown[-2]["text/html"]
    for _ in range(999):
        clock[0] += 0.01
        curve.add(1.0)
    assert curve.losses == [1.0] * 999
    clock[0] += 3
    for i, item in enumerate(live.progress("ab", "more")):
        assert item == "ab"[i]
        clock[0] += 0.1
    lines = [thing.data for thing in shown if hasattr(thing, "data")]
    assert any(" s left" in line for line in lines) and "about 0 s" not in "".join(lines)
    assert "2/2" in lines[-1]
    assert sum("about 20 s" in str(thing) for thing in shown) == 2, "it is told once to stop"
    shell.events.trigger("post_run_cell", ExecutionResult(None))


def test_reveal_runs_the_solution_and_earns_nothing(lab, shell, shown):
    shell.run_cell("import math\nimport torch")
    lab.reveal("2.6")  # its check takes LoRALinear, too, which comes first in the notebook
    text = shown.pop().data
    assert "def merge_" in text and "class LoRALinear" not in text
    lab.reveal("2.1")
    assert "def lora_forward" in shown[0].data
    check.matches_dense(shell.user_ns["lora_forward"])
    lab.score()
    row = shown[-1]["application/vnd.labkit.score+json"]["exercises"][0]
    assert (row["id"], row["status"], row["earned"]) == ("2.1", "revealed", 0)
    assert lab.experiment("Training", 1, needs=["2.1"])


def test_what_has_passed_is_shown_and_stays_the_learners(lab, shell, shown, capsys):
    shell.user_ns["lora_forward"] = lora_forward
    check.matches_dense(lora_forward)
    lab.reveal("2.1")
    assert "def lora_forward" in shown[0].data and shell.user_ns["lora_forward"] is lora_forward
    assert "is revealed" not in capsys.readouterr().out  # which grading would take for it
    assert contract.session.records["2.1"]["earned"] == 2


@pytest.fixture
def release(lab, shell, monkeypatch, tmp_path):
    """A lab where there are no solutions to show; one is lent."""
    cells = ["import math", "def lora_forward(x, W, A, B, alpha):\n    return x"]
    text = base64.encodebytes(zlib.compress(json.dumps(cells).encode()))
    (tmp_path / "labkit/_lent").mkdir(parents=True)
    (tmp_path / "labkit/_lent/02_lora.b64").write_bytes(text)
    monkeypatch.setattr("labkit.reference.__file__", str(tmp_path / "labkit/reference.py"))
    return lab


def test_what_is_lent_earns_nothing_and_ones_own_does(release, shell, capsys):
    release.reveal("2.1")
    check.matches_dense(shell.user_ns["lora_forward"])  # is not even asked
    told = capsys.readouterr().out
    assert "◐ 2.1 is lent" in told and "✓" not in told and "✗" not in told
    assert contract.session.records["2.1"]["status"] == "lent"
    assert release.experiment("Runs", 1, needs=["2.1"])
    check.matches_dense(stub)
    assert not release.experiment("Waits", 1, needs=["2.1"])
    release.reveal("2.1")
    check.matches_dense(lora_forward)
    record = contract.session.records["2.1"]
    assert (record["status"], record["earned"]) == ("passed", 2)
    labkit.start("02_lora")
    assert contract.session.loans == {} == contract.session.records


@pytest.mark.parametrize(
    ("id", "said"), [("2.2", "no solutions"), ("2.8", "quiz"), ("9.9", r"no exercise '9\.9'.*2\.1")]
)
def test_what_cannot_be_revealed_is_said(release, id, said):
    with pytest.raises(LabError, match=said):
        release.reveal(id)


def test_an_answer_is_judged_beside_the_courses_own_of_what_is_open(shell, monkeypatch, capsys):
    monkeypatch.setattr(shell, "user_ns", {})
    labkit.start("02_lora")
    exec(reference("02_lora", "2.4"), shell.user_ns)
    shell.user_ns["LoRALinear"] = contract.NotRun("LoRALinear")
    check.injects(shell.user_ns["inject"])
    assert "✓ 2.4 inject" in capsys.readouterr().out
    assert isinstance(shell.user_ns["LoRALinear"], contract.NotRun)


def test_what_waits_to_be_written_or_is_lent_is_named(capsys):
    def lora_params(d_out, d_in, r):
        return r * (d_out + d_in)

    def lent(d_out, d_in):
        return (d_out * d_in - 1) // (d_out + d_in)

    lab01.parameters(lora_params, stub)
    assert capsys.readouterr().out.startswith("○ 1.3 break_even_rank: ")
    lab01.parameters(stub, stub)
    assert capsys.readouterr().out.startswith("○ 1.3 lora_params, break_even_rank: ")
    contract.session.loans["1.3"] = [lent]
    lab01.parameters(lora_params, lent)
    assert "(break_even_rank is the course's" in capsys.readouterr().out


def test_curves_keep_each_quantity_and_end_in_one_picture_or_are_lines(shown, monkeypatch, capsys):
    curves = live.Curves("training", 2, "nats", ["reward", "kl"])
    for reward, kl in ((0.1, 0.0), (0.3, 0.02)):
        curves.add(reward=reward, kl=torch.tensor(kl), share=0.5)  # not named: not drawn
    assert curves.values["reward"] == [0.1, 0.3]
    assert curves.values["kl"] == pytest.approx([0.0, 0.02])
    (figure,) = [thing for thing in shown if hasattr(thing, "savefig")]
    assert [text.get_text() for text in figure.axes[0].texts] == ["reward", "kl"]
    assert figure.axes[0].get_yscale() == "linear"  # kl begins at 0
    monkeypatch.setattr(live, "display", lambda *_, **__: None)  # there is no notebook
    live.Curves("training", 2).add(reward=0.25)
    assert "training 1/2 · reward 0.25" in capsys.readouterr().out


def test_curves_leave_out_what_was_not_measured_and_show_a_diverged_loss(monkeypatch, capsys):
    monkeypatch.setattr(live, "display", lambda *_, **__: None)
    curves = live.Curves("training", 2)
    curves.add(loss=float("nan"), held_out=None)
    assert capsys.readouterr().out == "training 1/2 · loss nan\n"
    figure = plots.growing({"loss": [4.0, 0.1, 0.05], "held out": [None, 0.3, None]}, 3, "", "")
    loss, held_out = figure.axes[0].lines
    assert list(loss.get_xdata()) == [1, 2, 3] and list(held_out.get_xdata()) == [2]
    assert figure.axes[0].get_yscale() == "log"
    assert plots.growing({"loss": [float("nan")] * 2}, 2, "", "").axes[0].lines


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


def test_a_name_that_is_not_there_leads_to_the_experiment_that_makes_it(started, capsys):
    waits = 'if lab.experiment("A photo", 1, needs=["2.1"]):\n    photo, (n, _) = 1, (2, 3)\n'
    again = 'lab, check = labkit.start("02_lora")'  # a second time, as learners do
    started(again, "%%time\n1 +", waits, "print(photo)", "print(n)")
    told = capsys.readouterr().out
    for name in ("photo", "n"):
        assert f"name '{name}' is not defined" in told
        assert told.count(f"◇ {name} is defined by the experiment “A photo”") == 1
    started("print(curve)")
    assert "If a cell above defines curve" in capsys.readouterr().out
    started("1 / 0\n", "def f():\n    print(x)\n    x = 1\nf()")
    assert "◇" not in capsys.readouterr().out


HELPED = """
def update(x, A, B):
    return x @ A.T @ B.T
"""
ANSWER = """
def lora_forward(x, W, A, B, alpha):
    return x @ W.T + alpha / len(A) * update(x, A, B) * math.cos(0)
"""
CHECK = "check.matches_dense(lora_forward)"


def test_resume_brings_back_what_had_passed_and_checks_it(started, capsys, tmp_path):
    first = "def lora_forward(x, W, A, B, alpha):\n    return 1.0"
    started("import math", first, HELPED, ANSWER, CHECK, 'lab.reveal("2.3")')
    capsys.readouterr()
    started("lab.resume()", "lab.score()", "assert update")
    told = capsys.readouterr().out
    assert "✓ 2.1 lora_forward" in told and "◐ 2.3 is revealed" in told
    assert "Error" not in told and f"2 of {points()} points" in told
    # what is in the file is run and not believed
    (path,) = (tmp_path / "sessions").iterdir()
    kept = json.loads(path.read_text())
    kept["2.1"]["cells"] = [first]
    path.write_text(json.dumps(kept | {"2.2": {"status": "passed", "cells": []}}))
    started("lab.resume()", "lab.score()")
    told = capsys.readouterr().out
    assert "✗ 2.1 lora_forward" in told and f"0 of {points()} points" in told
    assert "2.2 LoRALinear: its cell has not been run yet" in told


def test_nothing_is_kept_of_a_run_without_a_learner(started, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("JPY_SESSION_NAME")
    started("import math", HELPED, ANSWER, CHECK)
    assert not (tmp_path / "sessions").exists()
    started("lab.resume()")
    assert "no saved progress for this notebook" in capsys.readouterr().out
