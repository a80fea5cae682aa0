"""What an adapter can store: random pairs learned by heart, in one matrix of the last layer.

A key is four random tokens, its value one of 64. All that lies below the last layer's MLP is
frozen, so it is computed once and kept. What trains is the LoRA that PEFT would put on this MLP's
gate_proj, 2,112 numbers per rank. The loss is the cross-entropy among the 64 values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from labkit import live
from labkit.training import hardware, models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VALUES, KEY = 64, 4  # tokens that a value is one of; tokens of a key
PASSES, ALPHA = 100, 32  # passes through all pairs


class Stage(NamedTuple):
    """The last MLP and the head of a model, and n keys as they arrive there."""

    below: torch.Tensor  # (n, d), what the MLP's output is added to
    given: torch.Tensor  # (n, d), the MLP's input
    gate: torch.Tensor  # (n, m), what gate_proj and up_proj make of it
    up: torch.Tensor
    down: torch.Tensor  # (d, m), frozen
    scale: torch.Tensor  # (d,), of the norm before the head
    head: torch.Tensor  # (VALUES, d), the head's rows of the values


def keys(n: int, vocab: int) -> torch.Tensor:
    """n keys of random tokens, (n, KEY); the first ones of more are the same."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(1000, vocab, (n, KEY), generator=rng)  # special tokens come before 1000


def stage(n: int, progress: Callable[[list, str], Iterable] = live.progress) -> Stage:
    """The Stage of n random keys on the labs' model, in fp32 on the CPU."""
    model, _ = models.load(dtype=torch.float32)
    return staged(model, keys(n, model.config.vocab_size), progress)


@torch.no_grad()
def staged(
    model: PreTrainedModel, tokens: torch.Tensor, progress: Callable[[list, str], Iterable]
) -> Stage:
    """The Stage of these keys (n, KEY) on a Llama-like model."""
    decoder, seen = model.get_decoder(), []
    layer = decoder.layers[-1]
    hook = layer.post_attention_layernorm.register_forward_pre_hook(
        lambda _, args: seen.append(args[0][:, -1].cpu())
    )
    parts = list(tokens.to(model.device).split(250))
    for part in progress(parts, f"{len(tokens)} keys through the frozen layers"):
        decoder(part, use_cache=False)
    hook.remove()
    layer, below = layer.cpu(), torch.cat(seen)
    given = layer.post_attention_layernorm(below)
    head = model.get_output_embeddings().weight[1000 : 1000 + 100 * VALUES : 100]
    gate, up = layer.mlp.gate_proj(given), layer.mlp.up_proj(given)
    down, scale = layer.mlp.down_proj.weight, decoder.norm.weight
    return Stage(below, given, gate, up, *(t.detach().cpu() for t in (down, scale, head)))


def adapter(stage: Stage, rank: int, seed: int) -> list[torch.Tensor]:
    """A (r, d), drawn as PEFT does, and B (m, r) of zeros."""
    d, m = stage.down.shape
    A = 2 * torch.rand(rank, d, generator=torch.Generator().manual_seed(seed)) - 1
    return [tensor.requires_grad_() for tensor in (A / math.sqrt(d), torch.zeros(m, rank))]


def logits(stage: Stage, trains: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Scores (len(rows), VALUES) of the values for these keys."""
    A, B = trains
    added = ALPHA / len(A) * (stage.given[rows] @ A.T @ B.T)
    hidden = F.silu(stage.gate[rows] + added) * stage.up[rows]
    out = stage.below[rows] + hidden @ stage.down.T
    return F.rms_norm(out, stage.scale.shape, stage.scale, 1e-5) @ stage.head.T


def memorize(
    stage: Stage,
    n: int,
    rank: int,
    learning_rate: float,
    seed: int,
    batch: int,
    progress: Callable[[list, str], Iterable] = live.progress,
) -> dict:
    """Learn n pairs by heart: numbers trained, bits stored of all pairs, share of values right.

    Stored are log2(VALUES) bits per pair minus the cross-entropy in bits. PASSES passes, Adam,
    linear decay to zero. The seed draws A, the values and the order.
    """
    rng = torch.Generator().manual_seed(seed)
    targets, trained = torch.randint(VALUES, (n,), generator=rng), adapter(stage, rank, seed)
    optimizer = torch.optim.Adam(trained, learning_rate)
    order = [rows for _ in range(PASSES) for rows in torch.randperm(n, generator=rng).split(batch)]
    steps = len(order)
    order = order[: hardware.rehearsed("steps", steps)]
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for rows in progress(order, f"{n} pairs, r={rank}"):
        F.cross_entropy(logits(stage, trained, rows), targets[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    with torch.no_grad():
        scores = torch.cat([logits(stage, trained, rows) for rows in torch.arange(n).split(500)])
    missing = F.cross_entropy(scores, targets).item() / math.log(2)
    return {
        "trainable": sum(tensor.numel() for tensor in trained),
        "bits": round(n * max(0.0, math.log2(VALUES) - missing)),
        "right": round((scores.argmax(1) == targets).float().mean().item(), 4),
    }
