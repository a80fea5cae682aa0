"""The command: its help, its exit codes, and bad input as one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import call

from labkit import cli, tasks
from labkit.course import doctor, masters, run
from labkit.training import hardware, models

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "datasets", "pandas", "matplotlib", "nbclient", "nbconvert"}
HEAVY |= {"IPython"}
# a model's configuration
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 300}
SMALL |= {"model_type": "llama", "num_attention_heads": 4, "architectures": ["LlamaForCausalLM"]}
COMMANDS = ["doctor", "fetch", "build", "run", "memory", "claims", "data", "train", "ship"]
COMMANDS += ["check", "grade", "export", "release"]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """The master of a course of one small lab; we stand in its folder."""
    (tmp_path / "labs").mkdir()
    text = "# %% [markdown]\n# # Lab 1 · Tiny\n\n# %%\nx = 1\n"
    (tmp_path / "labs/01_tiny.py").write_text(text, "utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "labs/01_tiny.py"


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.json").write_text(json.dumps(SMALL))
    return str(tmp_path / "small")


@pytest.mark.parametrize("program", ["import labkit", "from labkit.cli import main; main(['-h'])"])
def test_nothing_heavy_is_imported_before_it_is_needed(program):
    code = f"import sys\ntry: exec({program!r})\nexcept SystemExit: pass\n"
    code += f"sys.exit(sorted({HEAVY} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert call(command, "--help") == 0
    assert f"Example: labkit {command}" in capsys.readouterr().out


def test_help_lists_the_commands_and_is_what_no_argument_gives(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert call() == 0
    assert capsys.readouterr().out == text
    assert call("--version") == 0
    assert re.fullmatch(r"labkit \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["build", "--chek"], "--chek"),
        (["run", "--out", "pyproject.toml"], "is a file"),
        (["claims", "B7"], "no claim 'B7', only A1 to A"),
        (["memory"], "name a model: smollm2-135m, "),
        (["memory", "smollm2-135m", "--fit", "much"], "can't read the size 'much'"),
        (["memory", "m" * 300], "File name too long"),
        (["memory", "small", "--seq", "8", "--plot", "p.xyz"], "Format 'xyz' is not"),
        (["memory", "small", "--seq", "8", "--plot", "no/p.png"], "No such file"),
        (["data", "mine.jsonl"], "no file mine.jsonl"),
        (["train", "mine.csv"], "name the adapter's folder"),
        (["train", "--task", "hmoe"], "no task 'hmoe': choose from home"),
        (["ship", "mine"], "mine is not an adapter folder"),
        (["export", "pyproject.toml", "--gradescope"], "Not a directory"),
        (["release", "--out", "pyproject.toml/out"], "out of date with labs/"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(course, small, capsys, args, said):
    assert call(*args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("labkit: ") and said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "data", "command", "said"),
    [
        ("labs/01_tiny.py", b"\xff", "build", "labs/01_tiny.py, line 1: not UTF-8"),
        ("solutions/01_tiny.ipynb", b"\xff", "run", "solutions/01_tiny.ipynb is not a notebook"),
        ("solutions/01_tiny.ipynb", b'{"nbformat": 4}', "run", "is not a notebook"),
        ("pyproject.toml", b"\xff", "build", "pyproject.toml has no valid project"),
    ],
)
def test_a_broken_file_of_the_course_is_one_line(course, capsys, file, data, command, said):
    call("build")
    capsys.readouterr()
    Path(file).write_bytes(data)
    assert call(command) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err


def test_without_the_extra_for_notebooks_or_a_course_the_line_names_it(course, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    assert call("build") == 2
    assert capsys.readouterr().err.endswith("jupytext is missing: pip install -e '.[jupyter]'\n")
    monkeypatch.setattr(masters, "__file__", str(course.parents[1] / "labkit/course/masters.py"))
    Path("pyproject.toml").unlink()
    assert call("build") == 2
    assert "no course here" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def broken(name):
        raise AssertionError("a fault")

    monkeypatch.setattr(models, "fetch", broken)
    with pytest.raises(AssertionError, match="a fault"):
        cli.main(["fetch"])


def test_build_and_its_check_and_running_what_is_older_than_its_master(course, monkeypatch, capsys):
    monkeypatch.setattr(run, "run", lambda *_: [])
    assert call("build", "--check") == 1
    assert "notebooks/01_tiny.ipynb" in capsys.readouterr().out
    assert not Path("notebooks").exists()
    assert call("build") == call("build", "--check") == call("run") == 0
    assert "unbuilt changes" not in capsys.readouterr().out
    course.write_text(course.read_text("utf-8").replace("x = 1", "x = 2"), "utf-8")
    call("run")
    assert "labs/ has unbuilt changes" in capsys.readouterr().out


def test_fetch_says_where_and_how_long(monkeypatch, capsys):
    monkeypatch.setattr(models, "fetch", lambda name: Path("/cache") / name)
    monkeypatch.setattr(tasks, "load", lambda name, split: range({"train": 3, "test": 2}[split]))
    assert call("fetch", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    told = [row["result"] for row in rows]
    assert told == [str(Path("/cache/smollm2-135m")), "3 examples", "2 examples"]
    assert all(row["seconds"] >= 0 for row in rows)


def test_doctor_examines_everything(monkeypatch, capsys):
    assert call("doctor", "--json") in (0, 1)
    findings = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    wanted = "python, torch, gpu, precision, cores, memory, disk, model, sandbox, kernel"
    assert ", ".join(findings) == wanted
    assert findings["torch"]["verdict"] == "ok"
    assert all(row["verdict"] == "ok" or row["fix"] for row in findings.values())
    monkeypatch.setenv("COLUMNS", "100")
    call("doctor")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["python", "ok"] for line in lines)


def test_doctor_goes_on_when_something_is_broken(monkeypatch, tmp_path, capsys):
    def broken(*_):
        raise ImportError("libtorch is gone\nand more")

    monkeypatch.setattr(hardware, "device", broken)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)
    assert call("doctor", "--json") == 1
    findings = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    verdicts = {what: findings[what]["verdict"] for what in ("gpu", "model", "sandbox")}
    assert verdicts == {"gpu": "bad", "model": "warn", "sandbox": "warn"}
    assert findings["gpu"]["value"] == "ImportError: libtorch is gone"
    assert findings["disk"]["value"].endswith("GiB free")
    assert not (tmp_path / "not").exists()


def test_data_says_what_is_wrong_and_exits_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [f'{{"question": "What is {n} + 1?", "answer": "It is {n + 1}."}}' for n in range(30)]
    Path("mine.jsonl").write_text("\n".join(lines), "utf-8")
    assert call("data", "mine.jsonl") == 0
    told = capsys.readouterr().out
    assert "30 rows" in told and "Nothing in this file would go wrong in training." in told
    lines[6] = '{"question": "What is this?", "answer": ""}'
    lines += ['{"question": "what is  3 + 1?", "answer": "It is 4."}']
    Path("mine.jsonl").write_text("\n".join(lines), "utf-8")
    assert call("data", "mine.jsonl") == 1
    told = capsys.readouterr().out
    assert ": line 7" in told and ": line 31" in told
    assert call("data", "mine.jsonl", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    levels = [(f["id"], f["level"], f["lines"]) for f in found["findings"]]
    assert levels == [("empty_answer", "wrong", [7]), ("duplicate", "look", [31])]
    assert found["wrong"] and found["rows"] == 31


def test_memory_as_data_with_what_fits(small, capsys):
    args = ["--method", "qlora", "--rank", "2", "--fit", "20MB", "--json"]
    assert call("memory", small, *args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["rank"] == 2
    assert found["simulated"]["static"] == found["closed_form"]["static"]
    assert sum(found["simulated"]["by_category"].values()) == found["simulated"]["peak"]
    assert found["fit"]["limit"] == 20_000_000
    assert found["fit"]["fits"] == (found["simulated"]["peak"] <= 20_000_000)
    assert list(found["fit"]["largest_batch"]) == ["512", "1024", "2048", "4096", "8192"]


def test_memory_side_by_side_with_a_picture(small, tmp_path, capsys):
    picture = tmp_path / "memory.png"
    assert call("memory", small, "--plot", str(picture), "--fit", "16GB") == 0
    text = capsys.readouterr().out
    for word in ("simulated", "closed form", "L T x [3 f x bytes", "fits", "largest batch"):
        assert word in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    assert call("memory", str(tmp_path), "--method", "full") == 0
    assert "no closed form for 'gpt2'" in " ".join(capsys.readouterr().out.split())
