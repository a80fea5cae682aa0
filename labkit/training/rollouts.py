"""Sample answers and compute their tokens' log-probabilities, for GRPO.

A GRPO step is a rollout (`sample`), a reward for each answer, and a loss on `logprobs`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.training import fast, generation, hardware, loop, packing, trees

Answer = dict  # of `sample`: "row", "text"; "input_ids" and "labels" as `packing.pack` takes them


def prompts(dataset: Dataset, size: int, steps: int, seed: int = 0) -> Iterator[list[dict]]:
    """Yield `size` rows, `steps` times, each drawn from one of `size` equal parts of `dataset`.

    If `dataset` is sorted by kind, every step sees a similar mixture, which makes the reward curve
    less noisy. A rehearsal has only a few steps.
    """
    rng, n = random.Random(seed), len(dataset)
    edges = [round(n * k / size) for k in range(size + 1)]
    for _ in range(hardware.rehearsed("steps", steps)):
        yield [dataset[rng.randrange(*edges[k : k + 2])] for k in range(size)]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    samples: int,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[Answer]:
    """Sample `samples` answers per row, in row order, each cut after `max_new_tokens`."""
    inputs = [loop.prompt_ids(tokenizer, row["messages"]) for row in rows]
    how = {"samples": samples, "temperature": temperature, "generator": generator}
    outputs = generation.continuations(model, inputs, max_new_tokens, **how)
    texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    inputs = [pair for pair in zip(rows, inputs, strict=True) for _ in range(samples)]
    return [
        {
            "row": row,
            "text": text.strip(),
            "input_ids": prompt + ids,
            "labels": [packing.IGNORED] * len(prompt) + ids,
        }
        for text, (row, prompt), ids in zip(texts, inputs, outputs, strict=True)
    ]


def logprobs(model: PreTrainedModel, answers: list[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities `(b, t)` of the answers' tokens in fp32 and a mask of real tokens.

    Padding is zero. Gradients flow to the trained weights. A beginning that several answers share
    is computed once.
    """
    base = packing.base_of(model)
    batch = trees.tree([answer["input_ids"] for answer in answers])
    hidden, head = loop.hidden_states(base, batch), base.get_output_embeddings()  # (N, d)
    paths = batch["paths"][:, :-1].to(base.device)
    labels = packing.padded(answers)["labels"][:, 1:].to(base.device)
    answered = labels != packing.IGNORED  # (b, n - 1)
    before, targets = paths[answered], labels[answered]  # (k,)
    hidden = F.embedding(before, hidden.float()).to(hidden.dtype)  # (k, d)
    if fast.is_fixed(head):
        logp = _LogProbs.apply(hidden, head.weight, targets)  # (k,)
    else:
        logp = -F.cross_entropy(head(hidden).float(), targets, reduction="none")
    lengths = answered.sum(1)
    padded = torch.nn.utils.rnn.pad_sequence(logp.split(lengths.tolist()), batch_first=True)
    places = torch.arange(padded.shape[1], device=logp.device)
    return padded, places < lengths[:, None]


class _LogProbs(torch.autograd.Function):
    """log softmax(hidden W^T) at the targets; backward recomputes the logits to save memory.

    For each target, the gradient is (one-hot - softmax) W.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        ctx.save_for_backward(hidden, weight, targets)
        return torch.cat([_chosen(*part)[1] for part in _parts(hidden, weight, targets)])

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight, targets = ctx.saved_tensors
        back = []
        for g, part in zip(gradient.split(fast.ROWS), _parts(hidden, weight, targets), strict=True):
            logp, _ = _chosen(*part)
            pull = logp.exp_().neg_()  # -softmax
            pull[torch.arange(len(pull)), part[2]] += 1
            back.append((pull * g[:, None]).to(weight.dtype) @ weight)
        return torch.cat(back), None, None


def _parts(hidden, weight, targets):
    pairs = zip(hidden.split(fast.ROWS), targets.split(fast.ROWS), strict=True)
    return ((part, weight, some) for part, some in pairs)


def _chosen(hidden, weight, targets):
    """Log-probabilities in fp32, of all tokens `(k, vocab)` and of the targets `(k,)`."""
    logp = (hidden @ weight.t()).float().log_softmax(-1)
    return logp, logp.gather(1, targets[:, None])[:, 0]
