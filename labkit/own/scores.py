"""Score the answers of the adapter, its base and two simple baselines on held-out rows."""

import math
from collections import Counter
from contextlib import nullcontext, suppress

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from labkit.data import baselines, tokens
from labkit.data.shapes import Example
from labkit.errors import LabError
from labkit.own.stages import say
from labkit.own.trainer import packs, padded_logits
from labkit.training import generation, hardware, loop, packing

ASKED = 100  # rows to answer; the loss is over all rows
LONGEST = 256  # tokens of an answer


def compare(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Example],
    held: list[Example],
    rows: tuple[list[dict], list[dict]],
    ends: set[int],
) -> dict:
    """Return `{"table": {who: {"exact", "overlap", "loss"}}, "samples": […], "asked": n}`.

    `rows` are `(train, held out)` as tokens. Texts without a prompt have only a loss.
    """
    model.eval()
    trained, scored = rows
    with model.disable_adapter():
        packed = packs(model, scored)
    every = math.ceil(len(held) / ASKED)
    asked = held[::every] if held[0].messages else []
    # as rendered by the template: Qwen3's puts an empty thinking block before an answer
    wanted = [_until_end(tokens.learned(row["labels"]), ends, tokenizer) for row in scored[::every]]
    longest = max(len(tokens.learned(row["labels"])) for row in trained + scored)
    answers, table = {}, {}
    for who in ("adapter", "base"):
        say(f"scoring {len(held)} held-out rows: {who} …")
        with nullcontext() if who == "adapter" else model.disable_adapter():
            table[who] = {"loss": _loss(model, scored, packed)}
            if asked:
                prompts = [tokens.prompt_ids(e, tokenizer) for e in asked]
                n = min(longest + 1, LONGEST)
                answers[who] = _answers(model, tokenizer, prompts, n, ends, packed)
                table[who] |= _marks(answers[who], wanted)
    if asked:
        right = [e.answer for e in asked]
        table["most frequent answer"] = _marks(baselines.most_frequent(train, asked), right)
        table["nearest training prompt"] = _marks(baselines.nearest(train, asked), right)
    else:
        table["token frequencies"] = {"loss": _unigram(trained, scored, len(tokenizer))}
    return {"table": table, "samples": _samples(asked, answers), "asked": len(asked)}


def _marks(answers, wanted):
    pairs = list(zip(answers, wanted, strict=True))
    return {
        "exact": sum(baselines.right(*pair) for pair in pairs) / len(pairs),
        "overlap": sum(baselines.overlap(*pair) for pair in pairs) / len(pairs),
    }


def _samples(asked, answers, n=3):
    return [
        {"prompt": e.prompt, "wanted": e.answer.strip()}
        | {who: answers[who][i] for who in ("adapter", "base")}
        for i, e in enumerate(asked[:n])
    ]


@torch.no_grad()
def _loss(model, rows, packed, size=8):
    """Mean loss over all rows, in nats per learned token."""
    total = count = 0
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        if packed:
            logits, targets = loop.answer_logits(model, packing.pack(part))
        else:
            logits, targets = padded_logits(model, part)
        total += F.cross_entropy(logits.float(), targets, reduction="sum").item()
        count += len(targets)
    return total / count


def _answers(model, tokenizer, prompts, n, ends, packed, size=16):
    """Generate greedy answers as text, by `model.generate` if rows can't be packed."""

    def continued(part):
        with suppress(LabError):  # rows fit the attention window, answers may not
            if packed:
                return generation.continuations(model, part, n)
        return _generated(model, part, hardware.rehearsed("tokens", n), ends)

    found = generation.in_batches(prompts, size, continued)
    return [_until_end(ids, ends, tokenizer) for ids in found]


@torch.no_grad()
def _generated(model, prompts, n, ends):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    how = {"do_sample": False, "eos_token_id": sorted(ends), "pad_token_id": min(ends)}
    how["repetition_penalty"] = 1.0  # some models' generation_config has another
    out = model.generate(
        input_ids=ids, attention_mask=seen.to(model.device), max_new_tokens=n, **how
    )
    return out[:, longest:].tolist()


def _until_end(ids, ends, tokenizer):
    at = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode(ids[:at], skip_special_tokens=True).strip()


def _unigram(trained, scored, n_tokens):
    """Loss of predicting each token by its training frequency plus one."""
    counts = Counter(token for row in trained for token in tokens.learned(row["labels"]))
    total = counts.total() + n_tokens
    asked = [token for row in scored for token in tokens.learned(row["labels"])]
    return -sum(math.log((counts[y] + 1) / total) for y in asked) / len(asked)
