"""Scores from one forward pass are those of generation and of transformers' own loss."""

import pytest
import torch
from datasets import Dataset

from labkit.probes.tiny import language_model, words
from labkit.training import loop, packing, scoring

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}<end> turn {% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def told():
    """A tiny model, its tokenizer, prompts and its greedy answers, which end by themselves."""
    model, tokenizer = language_model(seed=11)
    model.generation_config.update(eos_token_id=0, pad_token_id=0)
    tokenizer.chat_template = TEMPLATE
    rng, pairs = torch.Generator().manual_seed(0), []
    for i in range(40):
        prompt = words(rng, 2 + i % 5)
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=48, do_sample=False)
        answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :]).partition(" <end>")[0]
        if 1 < len(answer.split()) < 40 and "<unk>" not in answer:
            pairs.append((prompt, answer))
    assert len(pairs) > 7
    return model, tokenizer, pairs


def rows(pairs):
    asked = [{"role": "user", "content": prompt} for prompt, _ in pairs]
    told = [{"role": "assistant", "content": answer} for _, answer in pairs]
    return Dataset.from_dict({"messages": [*zip(asked, told, strict=True)]})


def test_what_the_model_says_is_right_and_nothing_else(told):
    model, tokenizer, pairs = told
    assert scoring.score(model, tokenizer, rows(pairs))[0] == 1
    longer = [(prompt, f"{answer} blue") for prompt, answer in pairs]
    shorter = [(prompt, answer.partition(" ")[2]) for prompt, answer in pairs]
    assert scoring.score(model, tokenizer, rows(longer + shorter))[0] == 0
    assert scoring.score(model, tokenizer, rows(pairs + longer))[0] == 0.5


def test_the_loss_and_the_logits_are_those_of_padded_rows(told, padded_loss):
    model, tokenizer, pairs = told
    data = rows(pairs)
    encoded = [loop.encode(tokenizer, messages) for messages in data["messages"]]
    wanted = padded_loss(model, encoded).item()
    assert scoring.score(model, tokenizer, data)[1] == pytest.approx(wanted, rel=1e-5)
    right, loss, logits = scoring.said(model, tokenizer, data)
    assert (sum(right) / len(pairs), loss) == scoring.score(model, tokenizer, data)
    n_targets = sum(y != packing.IGNORED for row in encoded for y in row["labels"])
    assert logits.shape == (n_targets, model.config.vocab_size) and logits.dtype == torch.float32
