"""Asking a model many questions at once, greedily or by chance.

What `model.generate` would do again is done once: the prompts' common prefix is read and kept for
all rows together, an adapter is cast once, and rows that have come to their end leave the batch.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.training import fast, hardware, loop, packing

ROWS = 16  # that are drawn for at once: what fits into a cache takes half the time
PART = 256  # words of the vocabulary whose chances are summed at once


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[list[dict]],
    max_new_tokens: int = 48,
    batch_size: int = 64,
) -> list[str]:
    """The model's greedy answer to each conversation (lists of messages that end with the user's).

    A trailing assistant message is taken off, so rows of a task can be passed as they are. In a
    rehearsal a few are asked, and what they say stands for the others.
    """
    prompts = [loop.prompt_ids(tokenizer, messages) for messages in conversations]
    n, prompts = len(prompts), prompts[: hardware.rehearsed("rows", len(prompts))]
    said = in_batches(prompts, batch_size, lambda part: continuations(model, part, max_new_tokens))
    texts = tokenizer.batch_decode(said, skip_special_tokens=True)
    return [texts[i % len(texts)].strip() for i in range(n)]


def in_batches(prompts: list[list[int]], size: int, continued: Callable) -> list[list[int]]:
    """`continued` of all prompts, in their order; it is asked for `size` of about one length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    said = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        said |= dict(zip(chosen, continued([prompts[i] for i in chosen]), strict=True))
    return [said[i] for i in range(len(prompts))]


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """What the model says after each prompt, as token ids, the end token among them if it came.

    `samples` rows for each prompt, side by side. Each next token is the likeliest where
    `temperature` is 0, else drawn from softmax(logits / temperature) with `generator`.
    The model is in eval mode meanwhile.
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
    hidden, kept = _read(decoder, prompts, max_new_tokens, base.device)
    if samples > 1:
        kept.choose(torch.arange(len(prompts), device=base.device).repeat_interleave(samples))
        hidden = hidden.repeat_interleave(samples, 0)
    said = [[] for _ in range(len(hidden))]
    rows, alive = torch.arange(len(hidden)), torch.ones(len(hidden), dtype=torch.bool)
    for _ in range(max_new_tokens):
        tokens = _next(head(hidden), temperature, generator)  # (b,)
        for row, lives, token in zip(rows.tolist(), alive.tolist(), tokens.tolist(), strict=True):
            if lives:
                said[row].append(token)
        alive &= ~torch.isin(tokens, ends).cpu()
        if not alive.any():
            break
        if alive.sum() <= 0.75 * len(alive):  # to leave costs a copy of what the others keep
            stay = alive.nonzero()[:, 0]
            rows, alive, tokens = rows[stay], alive[stay], tokens[stay.to(tokens.device)]
            kept.choose(stay.to(tokens.device))
        hidden = kept.step(decoder, tokens)
    return said


def _read(decoder, prompts, max_new_tokens, device):
    """Hidden states `(b, d)` of the prompts' last tokens, and what was kept of all tokens."""
    rows = [{"input_ids": ids, "labels": [packing.IGNORED] * len(ids)} for ids in prompts]
    for row in rows:
        row["labels"][-1] = row["input_ids"][-1]  # the prefix ends before it
    batch = {name: values.to(device) for name, values in packing.pack(rows).items()}
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    kept = packing.Kept(lengths, max_new_tokens)
    hidden = packing.hidden_states(decoder, batch, kept)[0]
    last = (batch["rows"] >= 0).sum(1) - 1
    return hidden[batch["rows"].gather(1, last[:, None])[:, 0]], kept


def _next(logits, temperature, generator):
    if not temperature:
        return logits.argmax(-1)
    drawn = (_drawn(some, temperature, generator) for some in logits.split(ROWS))
    return torch.cat(list(drawn))


def _drawn(logits, temperature, generator):
    chance = logits.float().div_(temperature).softmax(-1)  # (b, vocab)
    # one number finds a part of the vocabulary, then a word in it: torch.multinomial draws one for
    # each word, and sums of all words in fp64 take longer than the softmax
    parts = F.pad(chance, (0, -chance.shape[1] % PART)).unflatten(1, (-1, PART))
    at = torch.rand(len(chance), dtype=torch.float64, device=chance.device, generator=generator)
    part, at = _fall(parts.sum(2), at)
    word, _ = _fall(parts[torch.arange(len(part), device=part.device), part], at)
    return part * PART + word


def _fall(weights, at):
    """The piece of a line on which `at` of [0, 1) falls, and where on it; `(b,)` each.

    The pieces of a row's line are as long as its `weights` `(b, n)`.
    """
    ends = weights.cumsum(1, dtype=torch.float64)
    goal = at[:, None] * ends[:, -1:]
    piece = torch.searchsorted(ends, goal, right=True)
    long = weights.gather(1, piece)
    inside = (goal - ends.gather(1, piece)) / long + 1
    return piece[:, 0], inside[:, 0].clamp(0, 1 - 1e-9)


def _ends(model):
    """The ids that end an answer, of the model's own settings."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]
