"""finetune: TRL's losses for less work, results kept whole or not at all. And packed rows."""

import dataclasses
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from small_llama import small_llama as tiny
from trl import SFTConfig, SFTTrainer

from labkit import tasks
from labkit.errors import LabError
from labkit.training import lean, loop, packing
from labkit.training.finetuning import finetune


@pytest.fixture(scope="module")
def home():
    return tasks.load("home", "train").select(range(48))


@pytest.fixture(scope="module")
def pairs(home):
    return home.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=home.column_names,
    )


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The folder for results, empty."""
    monkeypatch.setattr("labkit.download.cache_dir", lambda: tmp_path)
    return tmp_path / "runs"


def lora(r=4, targets="all-linear"):
    return LoraConfig(r=r, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")


def config(folder, **more):
    options = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    return SFTConfig(str(folder), use_cpu=True, bf16=False, **quiet, **options | more)


def packed_loss(model, rows):
    batch = packing.pack(rows)
    hidden = packing.hidden_states(model.get_decoder(), batch)
    logits = model.get_output_embeddings()(hidden)
    return F.cross_entropy(logits[0, :-1], batch["labels"][0, 1:])


def encoded(tokenizer, home, n):
    return [loop.encode(tokenizer, messages) for messages in home["messages"][:n]]


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("prompts_too", [False, True])
def test_packed_loss_and_gradients_are_those_of_padded_rows(
    tokenizer, home, n, prompts_too, padded_loss
):
    model, rows = tiny(), encoded(tokenizer, home, n)
    if prompts_too:
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    wanted = padded_loss(model, rows)
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = packed_loss(model, rows)
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_packed_batch_holds_every_token_once_and_the_prefix_once(tokenizer, home):
    rows = encoded(tokenizer, home, 9)
    batch = packing.pack(rows)
    ids, p = batch["input_ids"][0], int(batch["rows"][0, 0])
    assert "Home intent" in tokenizer.decode(ids[:p])
    assert len(ids) == p + sum(len(row["input_ids"]) - p for row in rows)
    for row, places in zip(rows, batch["rows"], strict=True):
        own = places[places >= 0]
        assert ids[:p].tolist() + ids[own].tolist() == row["input_ids"]
        assert batch["position_ids"][0, own].tolist() == list(range(p, len(row["input_ids"])))


def test_a_row_sees_nothing_of_its_neighbours(tokenizer, home):
    model, rows = tiny(), encoded(tokenizer, home, 3)
    other = [rows[0], rows[1], encoded(tokenizer, home, 5)[4]]
    hidden = []
    for chosen in (rows, other):
        batch = packing.pack(chosen)
        places = batch["rows"][0]
        states = packing.hidden_states(model.get_decoder(), batch)[0]
        hidden.append(states[places[places >= 0]])
    torch.testing.assert_close(*hidden, rtol=0, atol=1e-6)


def test_packing_leaves_the_models_attention_as_it_was(tokenizer, home):
    model = tiny()
    ids = torch.tensor([encoded(tokenizer, home, 1)[0]["input_ids"]])
    before = model(ids).logits
    packed_loss(model, encoded(tokenizer, home, 3))
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_and_adapter_are_those_of_sfttrainer(tokenizer, pairs, runs, accumulate):
    args = config(runs, max_steps=4, gradient_accumulation_steps=accumulate)
    plain = SFTTrainer(
        tiny(), args, train_dataset=pairs, processing_class=tokenizer, peft_config=lora()
    )
    plain.train()
    wanted = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    got = finetune(tiny(), tokenizer, pairs, lora(), args)
    assert got.losses == pytest.approx(wanted, abs=1e-4)
    assert wanted[-1] < wanted[0] - 0.05, "nothing was learned, so nothing was compared"
    theirs = dict(plain.model.named_parameters())
    for name, p in got.model.named_parameters():
        torch.testing.assert_close(p, theirs[name], rtol=1e-2, atol=1e-4, msg=name)


def test_messages_train_on_their_last_answer(tokenizer, home, pairs, runs):
    two = [finetune(tiny(), tokenizer, rows, lora(), config(runs)) for rows in (home, pairs)]
    assert two[0].losses == pytest.approx(two[1].losses, abs=1e-5)


def test_the_learners_settings_hold(tokenizer, pairs, runs):
    slow = finetune(tiny(), tokenizer, pairs, lora(), config(runs, learning_rate=1e-6, max_steps=2))
    assert len(slow.losses) == 2
    B = [p for name, p in slow.model.named_parameters() if "lora_B" in name]
    assert 0 < max(p.abs().max() for p in B) < 1e-5


def test_the_result_is_a_plain_peft_model_in_eval_mode(tokenizer, pairs, runs):
    base = tiny()
    result = finetune(base, tokenizer, pairs, lora(), config(runs, max_steps=1))
    assert isinstance(result.model, PeftModel) and not result.model.training
    assert result.model.get_base_model() is base
    assert "forward" not in vars(base), "SFTTrainer's forward is still there"
    assert not base.model.gradient_checkpointing


def test_the_same_call_again_comes_from_the_cache(tokenizer, pairs, runs, capsys):
    settings = lora()
    first = finetune(tiny(), tokenizer, pairs, settings, config(runs))
    assert settings.target_modules == "all-linear", "the learner's own config was changed"
    capsys.readouterr()
    again = finetune(tiny(), tokenizer, pairs, settings, config(runs / "elsewhere"))
    assert (first.cached, again.cached) == (False, True)
    assert again.losses == first.losses and again.seconds == first.seconds
    assert "from the cache" in capsys.readouterr().out
    ids = torch.arange(12)[None]
    torch.testing.assert_close(again.model(ids).logits, first.model(ids).logits)
    assert not again.model.training


HOLDS = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print(flush=True), input()"


def test_what_another_process_trains_is_waited_for_and_loaded(tokenizer, pairs, runs, tmp_path):
    def trained():
        return finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=1))

    made = trained().folder.parent
    made.rename(tmp_path / "not yet")
    holds = [sys.executable, "-c", HOLDS, str(tmp_path / "locks" / made.name)]
    with (
        ThreadPoolExecutor() as pool,
        subprocess.Popen(holds, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        other.stdout.readline()
        mine = pool.submit(trained)
        with pytest.raises(TimeoutError):
            mine.result(timeout=1)
        (tmp_path / "not yet").rename(made)
        other.communicate(b"\n")
        assert mine.result().cached


@pytest.mark.parametrize("change", ["rate", "rank", "rows", "weights", "targets"])
def test_another_configuration_is_another_result(tokenizer, pairs, runs, change):
    first = finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=1))
    model, rows, settings, args = tiny(), pairs, lora(), config(runs, max_steps=1)
    if change == "rate":
        args = dataclasses.replace(args, learning_rate=2e-2)
    elif change == "rank":
        settings = lora(r=5)
    elif change == "rows":
        rows = pairs.select(range(47))
    elif change == "weights":
        model = tiny(seed=1)
    else:
        settings = lora(targets=["q_proj"])
    other = finetune(model, tokenizer, rows, settings, args)
    assert not other.cached and other.folder != first.folder


def test_without_cache_it_trains_anew(tokenizer, pairs, runs):
    for _ in range(2):
        result = finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=1), cache=False)
        assert not result.cached and result.folder.is_dir()


def test_an_interrupted_write_loses_nothing(tokenizer, pairs, runs, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=1))
    (half,) = runs.iterdir()
    assert half.suffix == ".partial"
    result = finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=1))
    assert not result.cached and list(runs.iterdir()) == [result.folder.parent]


def test_a_model_with_an_adapter_is_refused(tokenizer, pairs, runs):
    result = finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=1))
    for model in (result.model, result.model.get_base_model()):
        with pytest.raises(LabError, match="load the base model afresh"):
            finetune(model, tokenizer, pairs, lora(), config(runs))


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tokenizer, pairs, runs, monkeypatch, capsys
):
    def trained():
        return finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=8))

    whole = trained()
    weights = {name: p.clone() for name, p in whole.model.named_parameters()}
    shutil.rmtree(runs)
    loss, calls = lean.LeanTrainer.compute_loss, []

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(*args, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(lean.LeanTrainer, "compute_loss", stopped)
        trained()
    capsys.readouterr()
    second = trained()
    assert "going on after step 4 of 8" in capsys.readouterr().out
    assert second.losses == whole.losses and not second.cached
    for name, p in second.model.named_parameters():
        assert torch.equal(p, weights[name]), name
    assert second.seconds > 0 and [path.suffix for path in runs.iterdir()] == [""]
    assert trained().cached
