"""A rehearsal, as `make test` asks: labs run to their end on as little as shows that they do."""

import pytest
import torch
from peft import LoraConfig
from small_llama import small_llama
from trl import SFTConfig

from labkit import download, lab, tasks
from labkit.probes import tiny
from labkit.training import finetuning, generation, hardware, loop, models


@pytest.fixture(params=["rehearsal", "for real"])
def rehearsal(request, monkeypatch):
    """Whether it is one; with LABKIT_REHEARSAL=0 it is none, either."""
    monkeypatch.setenv("LABKIT_REHEARSAL", "1" if request.param == "rehearsal" else "0")
    return request.param == "rehearsal"


def test_a_loop_takes_a_few_steps_and_a_header_says_so(rehearsal, tokenizer, home):
    assert len(list(loop.batches(home, tokenizer, size=2, steps=5))) == (3 if rehearsal else 5)
    assert ("rehearsal: no figure counts" in lab.Lab("01_svd").header()) is rehearsal


def test_drawn_rows_are_the_same_for_a_seed_and_few(rehearsal):
    drawn = [tasks.draw("home", "test", 12, seed)["text"] for seed in (1, 1, 2)]
    known = set(tasks.load("home", "test")["text"])
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) <= known
    assert len(drawn[0]) == len(set(drawn[0])) == (4 if rehearsal else 12)


def test_a_training_is_short_and_never_taken_for_a_real_one(tokenizer, home, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    args = SFTConfig(str(tmp_path), max_steps=5, use_cpu=True, bf16=False)
    few, results = home.select(range(4)), []
    for told, rows in (("1", home), ("1", few), ("0", few)):
        monkeypatch.setenv("LABKIT_REHEARSAL", told)
        results.append(finetuning.finetune(small_llama(), tokenizer, rows, lora, args))
    assert [len(result.losses) for result in results] == [3, 3, 5]
    assert [result.cached for result in results] == [False, True, False]


def test_an_answer_has_a_few_tokens_and_few_are_asked(rehearsal, monkeypatch):
    model, tokenizer = tiny.language_model(seed=0)
    model.generation_config.eos_token_id = []
    [told] = generation.continuations(model, [[3, 4, 5]], max_new_tokens=12)
    assert len(told) == (4 if rehearsal else 12)
    said = lambda model, prompts, n: [[prompt[0]] for prompt in prompts]  # noqa: E731
    monkeypatch.setattr(generation, "continuations", said)
    monkeypatch.setattr(loop, "prompt_ids", lambda tokenizer, messages: messages)
    told = generation.answers(None, tokenizer, [[i] for i in range(2, 12)])
    words = tiny.WORDS[:10]
    assert told == ((words[:4] * 3)[:10] if rehearsal else words)


def test_a_model_is_a_small_copy_made_once(rehearsal, tmp_path, monkeypatch):
    """Of the same weights; by whichever name of a folder it is asked for later."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setitem(models.MODELS, "tiny", download.Entry(repo="nobody/tiny"))
    monkeypatch.setattr(hardware, "REHEARSED", {"layers": 1, "mlp": 16})
    whole, tokenizer = tiny.language_model(seed=0)
    for part in (whole, tokenizer):
        part.save_pretrained(models.folder("tiny"))
    (models.folder("tiny") / "source.txt").write_text("here")
    found = models.path("tiny")
    assert (found == models.folder("tiny")) is not rehearsal
    assert models.path("tiny") == models.path(found) == found
    model, again = models.load("tiny", dtype=torch.float32)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert len(model.model.layers) == (1 if rehearsal else 2)
    for name, kept in model.named_parameters():
        known = whole.get_parameter(name)
        assert torch.equal(kept, known[tuple(map(slice, kept.shape))]), name
    assert model.model.layers[0].mlp.down_proj.weight.shape == (32, 16 if rehearsal else 48)
    model(torch.tensor([[3, 4, 5]]))
