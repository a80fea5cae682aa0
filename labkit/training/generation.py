"""Batched generation, greedy or sampled.

Unlike `model.generate`, this code processes the prompts' common prefix once for all rows, casts an
adapter once, and drops finished rows from the batch.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.training import fast, hardware, loop, packing

ROWS = 16  # rows sampled at once: half the time if they fit in the CPU's cache
PART = 256  # vocabulary entries whose probabilities are summed at once


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[list[dict]],
    max_new_tokens: int = 48,
    batch_size: int = 64,
) -> list[str]:
    """Return the model's greedy answer to each conversation (a list of messages).

    A trailing assistant message is dropped, so a task's rows can be passed as they are. A rehearsal
    answers only a few conversations and repeats those answers for the others.
    """
    prompts = [loop.prompt_ids(tokenizer, messages) for messages in conversations]
    n, prompts = len(prompts), prompts[: hardware.rehearsed("rows", len(prompts))]
    found = in_batches(prompts, batch_size, lambda part: continuations(model, part, max_new_tokens))
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    return [texts[i % len(texts)].strip() for i in range(n)]


def in_batches(prompts: list[list[int]], size: int, continued: Callable) -> list[list[int]]:
    """Call `continued` on batches of similar length; results are in the order of `prompts`."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        found |= dict(zip(chosen, continued([prompts[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(prompts))]


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Return the token ids that the model appends to each prompt, including any end token.

    Each prompt gets `samples` consecutive rows. The next token is the most likely one if
    `temperature` is 0, else sampled from softmax(logits / temperature) with `generator`. During
    generation, the model is in eval mode.
    """
    max_new_tokens = hardware.rehearsed("tokens", max_new_tokens)
    was_training = model.training
    model.eval()
    try:
        with fast.layers(model, fixed=True):
            return _decode(model, prompts, max_new_tokens, samples, temperature, generator)
    finally:
        model.train(was_training)


def _decode(model, prompts, max_new_tokens, samples, temperature, generator):
    base = packing.base_of(model)
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    ends = torch.tensor(_ends(base), device=base.device)
    hidden, cached = _read(decoder, prompts, max_new_tokens, base.device)
    if samples > 1:
        cached.choose(torch.arange(len(prompts), device=base.device).repeat_interleave(samples))
        hidden = hidden.repeat_interleave(samples, 0)
    found = [[] for _ in range(len(hidden))]
    rows, alive = torch.arange(len(hidden)), torch.ones(len(hidden), dtype=torch.bool)
    for _ in range(max_new_tokens):
        tokens = _next(head(hidden), temperature, generator)  # (b,)
        for row, running, token in zip(rows.tolist(), alive.tolist(), tokens.tolist(), strict=True):
            if running:
                found[row].append(token)
        alive &= ~torch.isin(tokens, ends).cpu()
        if not alive.any():
            break
        if alive.sum() <= 0.75 * len(alive):  # dropping rows copies the cache
            stay = alive.nonzero()[:, 0]
            rows, alive, tokens = rows[stay], alive[stay], tokens[stay.to(tokens.device)]
            cached.choose(stay.to(tokens.device))
        hidden = cached.step(decoder, tokens)
    return found


def _read(decoder, prompts, max_new_tokens, device):
    """Hidden states `(b, d)` of the prompts' last tokens, and the cache of all tokens."""
    rows = [{"input_ids": ids, "labels": [packing.IGNORED] * len(ids)} for ids in prompts]
    for row in rows:
        row["labels"][-1] = row["input_ids"][-1]  # the prefix ends before this token
    batch = {name: values.to(device) for name, values in packing.pack(rows).items()}
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    cached = packing.KeyValueCache(lengths, max_new_tokens)
    hidden = packing.hidden_states(decoder, batch, cached)[0]
    last = (batch["rows"] >= 0).sum(1) - 1
    return hidden[batch["rows"].gather(1, last[:, None])[:, 0]], cached


def _next(logits, temperature, generator):
    if not temperature:
        return logits.argmax(-1)
    drawn = (_drawn(some, temperature, generator) for some in logits.split(ROWS))
    return torch.cat(list(drawn))


def _drawn(logits, temperature, generator):
    chances = logits.float().div_(temperature).softmax(-1)  # (b, vocab)
    # One random number picks a part of the vocabulary, then a token in it. torch.multinomial draws
    # one per token, and fp64 cumulative sums over all tokens take longer than the softmax.
    parts = F.pad(chances, (0, -chances.shape[1] % PART)).unflatten(1, (-1, PART))
    at = torch.rand(len(chances), dtype=torch.float64, device=chances.device, generator=generator)
    part, at = _fall(parts.sum(2), at)
    word, _ = _fall(parts[torch.arange(len(part), device=part.device), part], at)
    return part * PART + word


def _fall(weights, at):
    """Find the piece that contains `at` in [0, 1), and the position in that piece; `(b,)` each.

    `weights` `(b, n)` are the lengths of each row's pieces.
    """
    ends = weights.cumsum(1, dtype=torch.float64)
    goal = at[:, None] * ends[:, -1:]
    piece = torch.searchsorted(ends, goal, right=True)
    long = weights.gather(1, piece)
    inside = (goal - ends.gather(1, piece)) / long + 1
    return piece[:, 0], inside[:, 0].clamp(0, 1 - 1e-9)


def _ends(model):
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]
