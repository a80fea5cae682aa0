"""`accelerate launch -m labkit.train`: two processes give the loss, and the adapter, of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from small_llama import small_llama

from labkit import train
from labkit.errors import LabError
from labkit.own import run
from labkit.own.settings import Asked
from labkit.training import arguments, hardware, models

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random Llama of two layers in fp32 and the tokenizer of the labs."""
    folder = tmp_path_factory.mktemp("tiny")
    small_llama().save_pretrained(folder)
    models.tokenizer(hardware.SMALLEST)[0].save_pretrained(folder)
    return str(folder)


# of one start, which takes longer than both trainings
BOTH = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try: runpy.run_module("labkit.train", run_name="__main__")
    except SystemExit as ended: assert not ended.code, ended.code
"""


def launched(folder, calls):
    """What `labkit.train` prints in two processes, called with each of these arguments."""
    (folder / "both.py").write_text(BOTH)
    env = os.environ | {"LABKIT_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # --cpu would start one process, whatever their number; --multi_gpu starts both, and without a
    # card each of them finds the CPU
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "both.py", json.dumps(calls)]
    command = [sys.executable, *launch]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def read(path):
    return json.loads(path.read_text("utf-8"))


def expect_same(losses, adapters):
    """Both runs saw the same rows in the same order, in fp32: only the last digits may differ."""
    (one, two), (alone, shared) = losses, adapters
    assert one[-1] < one[0] - 0.1, "nothing was learned or compared"
    assert two == pytest.approx(one, abs=1e-5)
    alone, shared = (load_file(Path(f) / "adapter_model.safetensors") for f in (alone, shared))
    for name, tensor in alone.items():
        assert (shared[name] - tensor).norm() < 1e-3 * tensor.norm(), name


@pytest.mark.thorough
def test_two_processes_give_the_adapters_of_one_on_a_task_and_on_a_file(
    model, tmp_path, monkeypatch
):
    asked = [f"what is {n} and {n * n}?" for n in range(40)]
    rows = [{"question": q, "answer": ("odd", "even")[n % 2]} for n, q in enumerate(asked)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    how = ["--model", model, "--steps", "4", "--learning-rate", "0.01", "--dtype", "float32"]
    task = [*how, "--batch", "8", "--rows", "64", "--out", "two.json"]
    told = launched(tmp_path, [task, ["mine.jsonl", *how, "--out", "two"]])
    assert told.count("most frequent answer") == 1, "one process tells the scores"

    how = {"model": model, "steps": 4, "learning_rate": 0.01, "dtype": "float32"}
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "alone"))
    train.train(**how, batch=8, rows=64, out=tmp_path / "one.json")
    one, two = read(tmp_path / "one.json"), read(tmp_path / "two.json")
    assert (one["processes"], one["rows_a_process"]) == (1, 8)
    assert (two["processes"], two["rows_a_process"]) == (2, 4)
    expect_same((one["losses"], two["losses"]), (one["adapter"], two["adapter"]))

    one, two = tmp_path / "one", tmp_path / "two"
    run.train(Asked(tmp_path / "mine.jsonl", one, **how))
    expect_same([read(folder / "labkit.json")["losses"] for folder in (one, two)], (one, two))
    assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}
    assert not list(tmp_path.glob("*.partial"))


def test_a_batch_is_shared_by_processes_and_accumulated_where_it_does_not_fit(model, monkeypatch):
    def asked(batch):
        return SimpleNamespace(method="lora", learning_rate=1e-3, seed=0, batch=batch)

    assert arguments.arguments("no peak is known", asked(16), 2, 1).per_device_train_batch_size == 1
    monkeypatch.setattr(hardware, "micro_batch", lambda *asked: 2)
    args = arguments.arguments(model, asked(16), 2, 1)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    with pytest.raises(LabError, match="a batch of 9 rows can't be split evenly over 2 processes"):
        arguments.arguments(model, asked(9), 2, 1)
