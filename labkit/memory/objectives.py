"""Compute a step's loss: supervised fine-tuning, DPO, or GRPO with its rollouts.

The code takes log-probabilities from the full logits. (TRL's trainers have a fused head, which
never keeps all logits in memory.)
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from labkit.memory.settings import Settings


def loss_of(
    model: nn.Module,
    ids: torch.Tensor,
    settings: Settings,
    reference: nn.Module | None = None,
    mark: Callable[[str], None] = lambda phase: None,
) -> torch.Tensor:
    """Compute the loss of one micro-batch of token ids `(rows, seq)`, a scalar tensor.

    reference: DPO's second model; None if the model without its adapter is the reference.
    mark: called when a phase begins: "reference" or "rollout" (if any), then "forward".
    """
    n_answer = settings.answer_tokens
    if settings.objective == "dpo":
        mark("reference")
        alone = contextlib.nullcontext() if reference else model.disable_adapter()
        with _unchanged(reference or model), alone:
            before = _logprobs(reference or model, ids, settings, n_answer)
        mark("forward")
        gain = (_logprobs(model, ids, settings, n_answer) - before).sum(dim=1)
        chosen, rejected = gain.chunk(2)
        return -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    if settings.objective == "grpo":
        mark("rollout")
        with _unchanged(model):
            _rollout(model, ids, settings)
        mark("forward")
        now = _logprobs(model, ids, settings, n_answer)
        advantages = torch.zeros_like(now[:, :1])
        ratio = (now - now.detach()).exp()
        clipped = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        return -clipped.mean()
    mark("forward")
    batch = _batch(ids, settings) | {"labels": ids[:, -(n_answer or 0) :]}
    with _cast(ids, settings):
        return model(**batch, use_cache=False, logits_to_keep=n_answer or 0).loss


def _cast(ids, settings):
    compute = torch.float16 if settings.dtype == "float16" else torch.bfloat16
    return torch.autocast(ids.device.type, compute, enabled=settings.autocast)


def _batch(ids, settings):
    batch = {"input_ids": ids}
    if settings.padded:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][0, -1] = 0
    return batch


@contextlib.contextmanager
def _unchanged(model) -> Iterator[None]:
    """Run without gradients, dropout or recomputation."""
    model.eval()
    with torch.no_grad():
        yield
    model.train()


def _logprobs(model, ids, settings, n_answer):
    """Log-probabilities `(rows, tokens)` in fp32 of the last `n_answer` tokens, or of all."""
    n = n_answer or ids.shape[1] - 1
    with _cast(ids, settings):
        out = model(
            **_batch(ids, settings), use_cache=False, logits_to_keep=n_answer + 1 if n_answer else 0
        )
        logits = out.logits[:, -n - 1 : -1]
        return logits.float().log_softmax(-1).gather(-1, ids[:, -n:, None])[..., 0]


def _rollout(model, ids, settings):
    """Run the prompts, then the last generated token; in between, only the cache grows."""
    batch = _batch(ids[:, : -settings.answer_tokens], settings)
    for last in (False, True):
        with _cast(ids, settings):
            out = model(**batch, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()  # as in `generate`
        drawn = torch.multinomial(logits.softmax(-1), 1)
        if not last:
            _grow(out.past_key_values, ids.shape[1] - 1)
            mask = {"attention_mask": torch.ones_like(ids)} if settings.padded else {}
            name = "cache" if "cache" in out else "past_key_values"  # transformers renamed it
            batch = {"input_ids": drawn, name: out.past_key_values} | mask
        del out, logits


def _grow(cache, length):
    """Resize each layer's keys and values to `length` tokens, or to the layer's window."""
    for layer in cache.layers:
        window = getattr(layer, "sliding_window", None)
        n = min(length, window - 1) if window else length
        layer.keys = layer.keys.new_empty(*layer.keys.shape[:-2], n, layer.keys.shape[-1])
        layer.values = layer.values.new_empty(*layer.values.shape[:-2], n, layer.values.shape[-1])
        if window:
            layer.cumulative_length = length
