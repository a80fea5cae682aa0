"""finetune: TRL's losses for less work, results kept whole or not at all."""

import dataclasses
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from small_llama import small_llama as tiny
from trl import SFTConfig, SFTTrainer

from labkit.errors import LabError
from labkit.training import lean
from labkit.training.finetuning import finetune


@pytest.fixture(scope="module")
def pairs(home):
    return home.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=home.column_names,
    )


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.download.cache_dir", lambda: tmp_path)
    return tmp_path / "runs"


def lora(r=4, targets="all-linear"):
    return LoraConfig(r=r, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")


def config(folder, **more):
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    return SFTConfig(str(folder), use_cpu=True, bf16=False, **quiet, **options | more)


@pytest.mark.parametrize(("form", "accumulate"), [("pairs", 1), ("messages", 2)])
def test_losses_and_adapter_are_those_of_sfttrainer(tokenizer, home, pairs, runs, form, accumulate):
    """Of messages the last one is the completion."""
    args = config(runs, max_steps=4, gradient_accumulation_steps=accumulate)
    plain = SFTTrainer(
        tiny(), args, train_dataset=pairs, processing_class=tokenizer, peft_config=lora()
    )
    plain.train()
    wanted = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    got = finetune(tiny(), tokenizer, pairs if form == "pairs" else home, lora(), args)
    assert got.losses == pytest.approx(wanted, abs=1e-4)
    assert wanted[-1] < wanted[0] - 0.05, "nothing was learned, so nothing was compared"
    theirs = dict(plain.model.named_parameters())
    for name, p in got.model.named_parameters():
        torch.testing.assert_close(p, theirs[name], rtol=1e-2, atol=1e-4, msg=name)


def test_the_result_is_a_plain_peft_model_which_comes_from_the_cache_the_next_time(
    tokenizer, pairs, runs, capsys
):
    base, settings = tiny(), lora()
    first = finetune(base, tokenizer, pairs, settings, config(runs))
    assert settings.target_modules == "all-linear", "the learner's own config was changed"
    assert isinstance(first.model, PeftModel) and not first.model.training
    assert first.model.get_base_model() is base
    assert "forward" not in vars(base), "SFTTrainer's forward is still there"
    assert not base.model.gradient_checkpointing
    capsys.readouterr()
    again = finetune(tiny(), tokenizer, pairs, settings, config(runs / "elsewhere"))
    assert (first.cached, again.cached) == (False, True)
    assert again.losses == first.losses and again.seconds == first.seconds
    assert "from the cache" in capsys.readouterr().out
    ids = torch.arange(12)[None]
    torch.testing.assert_close(again.model(ids).logits, first.model(ids).logits)
    assert not again.model.training
    anew = finetune(tiny(), tokenizer, pairs, settings, config(runs), cache=False)
    assert not anew.cached and anew.folder.is_dir()


def test_what_somebody_else_trains_is_waited_for_and_loaded(tokenizer, pairs, runs, tmp_path):
    def trained():
        return finetune(tiny(), tokenizer, pairs, lora(), config(runs, max_steps=1))

    made = trained().folder.parent
    made.rename(tmp_path / "not yet")
    lock = FileLock(tmp_path / "locks" / made.name)  # locks of two objects are as of two processes
    with ThreadPoolExecutor() as pool:
        with lock:
            mine = pool.submit(trained)
            with pytest.raises(TimeoutError):
                mine.result(timeout=1)
            (tmp_path / "not yet").rename(made)
        assert mine.result().cached


def test_another_configuration_is_another_result(tokenizer, pairs, runs):
    args = config(runs, max_steps=1)
    calls = [
        (tiny(), pairs, lora(), args),
        (tiny(), pairs, lora(), dataclasses.replace(args, learning_rate=2e-2)),
        (tiny(), pairs, lora(r=5), args),
        (tiny(), pairs, lora(targets=["q_proj"]), args),
        (tiny(), pairs.select(range(47)), lora(), args),
        (tiny(seed=1), pairs, lora(), args),
    ]
    results = [finetune(model, tokenizer, *asked) for model, *asked in calls]
    assert len({result.folder for result in results}) == len(calls)


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
    tuned = get_peft_model(tiny(), lora())
    for model in (tuned, tuned.get_base_model()):
        with pytest.raises(LabError, match="reload the base model"):
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
    assert "resuming after step 4 of 8" in capsys.readouterr().out
    assert second.losses == whole.losses and not second.cached
    for name, p in second.model.named_parameters():
        assert torch.equal(p, weights[name]), name
    assert second.seconds > 0 and [path.suffix for path in runs.iterdir()] == [""]
    assert trained().cached
