"""`accelerate launch -m labkit.train`: two processes give the loss, and the adapter, of one."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from small_llama import small_llama

from labkit import train
from labkit.own import run
from labkit.own.settings import Asked
from labkit.training import hardware, models

ROOT = Path(__file__).parents[1]
ASKED = partial(SimpleNamespace, method="lora", learning_rate=1e-3, seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random Llama of two layers in fp32 and the tokenizer of the labs."""
    folder = tmp_path_factory.mktemp("tiny")
    small_llama().save_pretrained(folder)
    models.tokenizer(hardware.SMALLEST)[0].save_pretrained(folder)
    return folder


def trained(out):
    """The figures that a training left in `out`, and the adapter's tensors."""
    figures = json.loads((out / "figures.json").read_text("utf-8"))
    return figures, load_file(Path(figures["adapter"]) / "adapter_model.safetensors")


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
    env = os.environ | {
        "LABKIT_CACHE": str(folder),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, *launch, "-m", "labkit.train", *what]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.thorough
def test_two_processes_give_the_loss_and_the_adapter_of_one(model, tmp_path, monkeypatch):
    """In fp32, whose rounding is far below what a lost or doubled gradient would do."""
    asked = {"steps": 4, "batch": 8, "rows": 64, "learning_rate": 0.01, "dtype": "float32"}
    asked |= {"model": str(model)}
    outs = [tmp_path / name for name in ("one", "two")]
    for out in outs:
        out.mkdir()
    what = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    launched(outs[1], [*what, f"--out={outs[1] / 'figures.json'}"])
    monkeypatch.setenv("LABKIT_CACHE", str(outs[0]))
    train.train(**asked, out=outs[0] / "figures.json")
    (one, alone), (two, shared) = map(trained, outs)
    assert (one["processes"], one["rows_a_process"]) == (1, 8)
    assert (two["processes"], two["rows_a_process"]) == (2, 4)
    assert one["losses"][-1] < one["losses"][0] - 0.1, "nothing was learned or compared"
    # the same rows in the same order; sums in fp32 in another order differ in the last digits
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    for name, tensor in alone.items():
        assert (shared[name] - tensor).norm() < 1e-3 * tensor.norm(), name


@pytest.mark.thorough
def test_a_file_s_adapter_from_two_processes_is_that_of_one(model, tmp_path):
    asked = [f"what is {n} and {n * n}?" for n in range(40)]
    rows = [{"question": q, "answer": ("odd", "even")[n % 2]} for n, q in enumerate(asked)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    what = ["mine.jsonl", "--model", str(model), "--steps", "4", "--learning-rate", "0.01"]
    told = launched(tmp_path, [*what, "--dtype", "float32", "--out", "two"])
    assert told.count("most frequent answer") == 1, "one process tells the scores"
    given = {"file": tmp_path / "mine.jsonl", "out": tmp_path / "one", "model": str(model)}
    run.train(Asked(**given, steps=4, learning_rate=0.01, dtype="float32"))
    folders = [tmp_path / name for name in ("one", "two")]
    one, two = (json.loads((f / "labkit.json").read_text("utf-8")) for f in folders)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["losses"][-1] < one["losses"][0] - 0.1, "nothing was learned or compared"
    alone, shared = (load_file(f / "adapter_model.safetensors") for f in folders)
    for name, tensor in alone.items():
        assert (shared[name] - tensor).norm() < 1e-3 * tensor.norm(), name
    assert {f.name for f in folders[0].iterdir()} == {f.name for f in folders[1].iterdir()}
    assert not list(tmp_path.glob("*.partial"))


def test_a_batch_that_cannot_be_shared_is_one_line(model, tmp_path):
    from labkit.errors import LabError
    from labkit.training.arguments import arguments

    with pytest.raises(LabError, match="a batch of 9 rows is not to be shared by 2 processes"):
        arguments(str(model), ASKED(batch=9), 2, 1)


def test_a_batch_that_does_not_fit_is_accumulated(model, tmp_path, monkeypatch):
    from labkit.training.arguments import arguments

    monkeypatch.setattr(hardware, "micro_batch", lambda *asked: 2)
    args = arguments(str(model), ASKED(batch=16), 2, 1)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
