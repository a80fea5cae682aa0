"""`accelerate launch -m labkit.train`: two processes give the loss, and the adapter, of one."""

import json
import os
import socket
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


def launched(folder, what):
    """Run `labkit.train` with the arguments `what` in two processes; what they printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # --cpu would start one process, whatever their number; --multi_gpu starts both, and without a
    # card each of them finds the CPU
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--main_process_port", str(port)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    env = os.environ | {"LABKIT_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, "-m", "labkit.train", *what]
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
def test_two_processes_give_the_loss_and_the_adapter_of_one(model, tmp_path, monkeypatch):
    asked = {"steps": 4, "batch": 8, "rows": 64, "learning_rate": 0.01, "dtype": "float32"}
    asked |= {"model": model}
    what = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    launched(tmp_path, [*what, "--out=two.json"])
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "alone"))
    train.train(**asked, out=tmp_path / "one.json")
    one, two = read(tmp_path / "one.json"), read(tmp_path / "two.json")
    assert (one["processes"], one["rows_a_process"]) == (1, 8)
    assert (two["processes"], two["rows_a_process"]) == (2, 4)
    expect_same((one["losses"], two["losses"]), (one["adapter"], two["adapter"]))


@pytest.mark.thorough
def test_a_file_s_adapter_from_two_processes_is_that_of_one(model, tmp_path):
    asked = [f"what is {n} and {n * n}?" for n in range(40)]
    rows = [{"question": q, "answer": ("odd", "even")[n % 2]} for n, q in enumerate(asked)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    what = ["mine.jsonl", "--model", model, "--steps", "4", "--learning-rate", "0.01"]
    told = launched(tmp_path, [*what, "--dtype", "float32", "--out", "two"])
    assert told.count("most frequent answer") == 1, "one process tells the scores"
    given = {"file": tmp_path / "mine.jsonl", "out": tmp_path / "one", "model": model}
    run.train(Asked(**given, steps=4, learning_rate=0.01, dtype="float32"))
    folders = [tmp_path / name for name in ("one", "two")]
    expect_same([read(folder / "labkit.json")["losses"] for folder in folders], folders)
    assert {f.name for f in folders[0].iterdir()} == {f.name for f in folders[1].iterdir()}
    assert not list(tmp_path.glob("*.partial"))


def test_a_batch_is_shared_by_processes_and_accumulated_where_it_does_not_fit(model, monkeypatch):
    def asked(batch):
        return SimpleNamespace(method="lora", learning_rate=1e-3, seed=0, batch=batch)

    monkeypatch.setattr(hardware, "micro_batch", lambda *asked: 2)
    args = arguments.arguments(model, asked(16), 2, 1)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    with pytest.raises(LabError, match="a batch of 9 rows is not to be shared by 2 processes"):
        arguments.arguments(model, asked(9), 2, 1)
