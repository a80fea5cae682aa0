"""Training: the shortcuts give the loss and gradients of the plain computation."""

import copy

import pytest
import torch
from small_llama import small_llama
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from labkit import tasks
from labkit.errors import LabError
from labkit.training import loop, models, packing
from labkit.training.generation import answers


@pytest.fixture(scope="module")
def home():
    return tasks.load("home", "train").select(range(40))


@pytest.fixture
def model():
    return small_llama(n_layers=3).train()


@pytest.mark.parametrize("n_rows", [1, 2, 7])
def test_loss_and_gradients_are_those_of_transformers(model, tokenizer, home, n_rows, padded_loss):
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"][:n_rows]]
    wanted = padded_loss(model, rows)
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = loop.answer_loss(model, packing.pack(rows), autocast=False)
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)


def test_equal_prompts_still_leave_the_answers_their_own_loss(model, padded_loss):
    rows = [
        {"input_ids": [5, 6, 7, answer], "labels": [-100, -100, -100, answer]} for answer in (8, 9)
    ]
    loss = loop.answer_loss(model, packing.pack(rows), autocast=False)
    torch.testing.assert_close(loss, padded_loss(model, rows))


def test_only_the_answer_has_labels(tokenizer, home):
    row = loop.encode(tokenizer, home[0]["messages"])
    told = [token for token in row["labels"] if token != packing.IGNORED]
    assert tokenizer.decode(told, skip_special_tokens=True).strip() == home[0]["answer"]


def test_a_conversation_without_answer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="assistant"):
        loop.encode(tokenizer, [{"role": "user", "content": "hello"}])


def test_batches_see_every_row_once_a_pass_and_repeat_by_seed(tokenizer, home):
    def seen(seed):
        found = loop.batches(home, tokenizer, 8, 5, seed)
        return [token for batch in found for token in batch["labels"][0].tolist() if token != -100]

    rows = [loop.encode(tokenizer, messages)["labels"] for messages in home["messages"]]
    assert sorted(seen(0)) == sorted(token for row in rows for token in row if token != -100)
    assert seen(0) == seen(0) != seen(1)


def test_no_row_is_encoded_that_no_batch_holds(tokenizer, home, monkeypatch):
    encode, asked = loop.encode, []
    monkeypatch.setattr(loop, "encode", lambda *row: asked.append(row) or encode(*row))
    assert len(list(loop.batches(home, tokenizer, 2, 3))) == 3
    assert len(asked) == 6 < len(home)


def test_a_batch_larger_than_the_data_is_the_data(tokenizer, home):
    (batch,) = loop.batches(home.select(range(3)), tokenizer, size=16, steps=1)
    assert len(batch["rows"]) == 3


def test_train_is_adam_with_a_rate_that_falls_to_zero(model, tokenizer, home):
    twin, batches = copy.deepcopy(model), list(loop.batches(home, tokenizer, 2, steps=3))
    optimizer = torch.optim.AdamW(twin.parameters(), 1e-3, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3)
    for batch, loss in zip(batches, loop.train(model, batches, 3, 1e-3), strict=True):
        optimizer.zero_grad()
        wanted = loop.answer_loss(twin, batch)
        wanted.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        falling.step()
        assert loss == pytest.approx(wanted.item())
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_held_out_loss_weighs_tokens_and_restores_the_mode(model, tokenizer, home, padded_loss):
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"]]
    model.train()
    got = loop.held_out_loss(model, tokenizer, home, size=7)
    assert model.training
    model.eval()
    with torch.no_grad():
        wanted = padded_loss(model, rows).item()
    # computed in bf16 where the CPU has it
    assert got == pytest.approx(wanted, rel=5e-3)


def test_answers_come_back_in_order(tokenizer):
    model, _ = models.load(dtype=torch.float32)  # in bf16 a processor may choose otherwise
    questions = ["What is the capital of France?", "Say only the word hello, nothing else, please."]
    asked = [[{"role": "user", "content": question}] for question in questions]
    told = answers(model, tokenizer, asked, max_new_tokens=8)
    one_by_one = [answers(model, tokenizer, [one], max_new_tokens=8)[0] for one in asked]
    assert "Paris" in told[0] and "Paris" not in told[1]
    assert told[0] == one_by_one[0]


SIZE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}


@pytest.mark.parametrize("model", ["window", "soft cap", "sinks"])
def test_attention_that_packed_rows_do_not_know_is_refused(model):
    """A window that a row fits into is none; the others change every score."""
    rows = [{"input_ids": [1, 2, *range(3, 9)], "labels": [-100] * 3 + [*range(4, 9)]}] * 2
    odd = {
        "window": lambda: MistralForCausalLM(MistralConfig(**SIZE, **HEADS, sliding_window=4)),
        "soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE, **HEADS)),
        "sinks": lambda: GptOssForCausalLM(GptOssConfig(**SIZE, **HEADS, num_local_experts=2)),
    }
    with pytest.raises(LabError, match=model):
        loop.summed_loss(odd[model](), packing.pack(rows))
    if model == "window":
        wide = MistralForCausalLM(MistralConfig(**SIZE, **HEADS, sliding_window=64))
        assert loop.summed_loss(wide, packing.pack(rows))[0].isfinite()
