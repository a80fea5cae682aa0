"""The command: bad input, no sandbox, Ctrl-C."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
from command import call
from submissions import FLOPS, LITTLE_JUDGE, NAMED, needs_sandbox, notebook

from labkit.errors import LabError
from labkit.grading import grade as grading
from labkit.grading import sandbox


@pytest.mark.parametrize(
    "argv, word",
    [
        (["nowhere", "--out", "o"], "no such file"),
        (["empty", "--out", "o"], "no notebook"),
        (["empty"], "--out"),
        (["empty", "--out", "o", "--jobs", "0"], "jobs"),
        (["empty", "--out", "o", "--seed", "9" * 30], "seed"),
        (["empty", "--out", "o", "--checks", "nowhere.py"], "nowhere.py"),
    ],
)
def test_bad_input_is_one_line(argv, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sandbox, "available", lambda: "/usr/bin/bwrap")
    assert call("grade", *argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line


def test_without_a_sandbox_unsafe_has_to_be_said(batch, monkeypatch, capsys):
    batch({"a.ipynb": notebook("x = 1")})
    monkeypatch.setattr(sandbox, "available", lambda: None)
    argv = ["grade", batch.folder, "--out", batch.out]
    assert call(*argv) == 2 and "bubblewrap" in capsys.readouterr().err
    assert call(*argv, "--unsafe", "--json") == 0
    told = capsys.readouterr()
    assert "NO SANDBOX" in told.err
    assert json.loads(told.out)[0]["submission"] == "a.ipynb"


@needs_sandbox
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_end_every_process_at_once(sign, tmp_path):
    """The real command, interrupted while a submission hangs."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.ipynb").write_bytes(notebook(NAMED, FLOPS))
    (folder / "b.ipynb").write_bytes(notebook(NAMED, FLOPS, "while True: pass"))
    # a shell's background job ignores SIGINT, and so would what these tests start from there
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"from labkit.grading import workers; workers.JUDGE = {LITTLE_JUDGE!r}\n"
    code += "from labkit import cli; cli.main()"
    argv = ["grade", str(folder), "--out", str(tmp_path / "out"), "--jobs", "1"]
    run = subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.DEVNULL)
    results = tmp_path / "out" / "graded"
    end = time.monotonic() + 240
    while not list(results.glob("*.json")) and time.monotonic() < end:
        time.sleep(0.2)
    run.send_signal(sign)
    assert run.wait(30) == 130
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert row["submission"] == "a.ipynb" and row["earned"] == 2
    commands = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    assert not [command for command in commands if str(tmp_path) in " ".join(command or ())]


def test_other_systems_are_told_where_grading_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(grading.sys, "platform", "darwin")
    with pytest.raises(LabError, match="grading needs Linux"):
        grading.grade([tmp_path], tmp_path / "out")
