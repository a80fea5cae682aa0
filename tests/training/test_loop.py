"""Training: the shortcuts give the loss and gradients of the plain computation."""

import copy

import pytest
import torch
from small_llama import small_llama
from test_fast import SIZE
from transformers import AutoConfig, AutoModelForCausalLM

from labkit.errors import LabError
from labkit.training import loop, models, packing
from labkit.training.generation import answers


@pytest.fixture
def model():
    return small_llama(n_layers=3).train()


@pytest.mark.parametrize("n_rows", [1, 2, 7])
@pytest.mark.parametrize("prompts_too", [False, True])
def test_loss_and_gradients_are_those_of_transformers(
    model, tokenizer, home, n_rows, prompts_too, padded_loss
):
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"][:n_rows]]
    if prompts_too:
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    wanted = padded_loss(model, rows)
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = loop.answer_loss(model, packing.pack(rows), autocast=False)
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)


def test_equal_prompts_still_leave_the_answers_their_own_loss(model, padded_loss):
    rows = [{"input_ids": [5, 6, 7, n], "labels": [-100, -100, -100, n]} for n in (8, 9)]
    loss = loop.answer_loss(model, packing.pack(rows), autocast=False)
    torch.testing.assert_close(loss, padded_loss(model, rows))


def test_a_packed_batch_holds_every_token_once_and_the_prefix_once(tokenizer, home):
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"][:9]]
    batch = packing.pack(rows)
    ids, p = batch["input_ids"][0], int(batch["rows"][0, 0])
    assert "Home intent" in tokenizer.decode(ids[:p])
    assert len(ids) == p + sum(len(row["input_ids"]) - p for row in rows)
    for row, places in zip(rows, batch["rows"], strict=True):
        own = places[places >= 0]
        assert ids[:p].tolist() + ids[own].tolist() == row["input_ids"]


def test_a_conversation_without_answer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="assistant"):
        loop.encode(tokenizer, [{"role": "user", "content": "hello"}])


def test_batches_see_every_row_once_a_pass_and_repeat_by_seed(tokenizer, home):
    def seen(seed):
        found = loop.batches(home, tokenizer, 8, 6, seed)
        return [token for batch in found for token in batch["labels"][0].tolist() if token != -100]

    rows = [loop.encode(tokenizer, messages)["labels"] for messages in home["messages"]]
    assert sorted(seen(0)) == sorted(token for row in rows for token in row if token != -100)
    assert seen(0) == seen(0) != seen(1)
    (batch,) = loop.batches(home.select(range(3)), tokenizer, size=16, steps=1)
    assert len(batch["rows"]) == 3, "there are no more"


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
    home = home.select(range(10))
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"]]
    got = loop.held_out_loss(model, tokenizer, home, size=7)
    assert model.training
    model.eval()
    with torch.no_grad():
        wanted = padded_loss(model, rows).item()
    # computed in bf16 where the CPU has it
    assert got == pytest.approx(wanted, rel=5e-3)


def test_the_real_model_answers_and_answers_come_back_in_order(tokenizer):
    model, _ = models.load(dtype=torch.float32)  # in bf16 a processor may choose otherwise
    assert model.num_parameters() == 134_515_008
    questions = ["Say only the word hello, nothing else, please.", "What is the capital of France?"]
    asked = [[{"role": "user", "content": question}] for question in questions]
    told = answers(model, tokenizer, asked, max_new_tokens=8)
    assert "Paris" in told[1] and "Paris" not in told[0]
    assert told[1:] == answers(model, tokenizer, asked[1:], max_new_tokens=8)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("mistral", {"sliding_window": 4}, "window"),
        ("gemma2", {}, "soft cap"),
        ("gpt_oss", {"num_local_experts": 2}, "sinks"),
    ],
)
def test_attention_that_packed_rows_do_not_know_is_refused(kind, options, said):
    rows = [{"input_ids": [1, 2, *range(3, 9)], "labels": [-100] * 3 + [*range(4, 9)]}] * 2
    config = AutoConfig.for_model(kind, **SIZE, **options)
    with pytest.raises(LabError, match=said):
        loop.summed_loss(AutoModelForCausalLM.from_config(config), packing.pack(rows))
    if kind == "mistral":  # a window that a row fits into is none
        config.sliding_window = 64
        loss, _ = loop.summed_loss(AutoModelForCausalLM.from_config(config), packing.pack(rows))
        assert loss.isfinite()
