"""Run a training step's layers and loss in fewer memory passes, with the same gradients.

On a CPU with fast bf16, matrix products take less than half of a LoRA step. The rest of the step
reads and writes activations `(n, d)`, often in fp32, in thousands of calls. This module computes
four operations with fewer calls:

- Adapters. PEFT casts the input to A's fp32, multiplies by A, B and the scaling, adds, and casts
  back: six passes over `(n, d_out)`. Here A and s B are rounded once to the input's precision, and
  the second product also does the addition. Weights, gradients and optimizer stay in fp32.
- RMSNorm. Autograd stores and differentiates each of its six operations. If the weight is frozen,
  the input and one scalar per row are enough, and the gradient has a closed form.
- Rotary positions. The gradient of a rotation is the inverse rotation, without copies of halves.
- The loss. Logits `(k, vocab)` are a step's largest tensors, four of them in fp32. With a frozen
  head, the forward pass can compute the gradient (softmax minus one-hot, times the head) for some
  rows at a time. Only `(k, d)` is stored.

`dropouts` is separate: its random numbers differ from torch's, which would change studies' tables.

Other layers (a trained norm, DoRA, several adapters) run their own code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn

ROWS = 64  # of logits at a time: 64 x 49,152 in fp32 are 12 MiB


@contextmanager
def layers(model: nn.Module, fixed: bool = False) -> Iterator[None]:
    """Use this module's layers while the block runs; if `fixed`, adapters are rounded only once."""
    turns = _rotaries(model)
    before = {name: sys.modules[name].apply_rotary_pos_emb for name in turns}
    with _replaced(_forwards(model, fixed)):
        for name in turns:
            sys.modules[name].apply_rotary_pos_emb = rotated
        try:
            yield
        finally:
            for name, own in before.items():
                sys.modules[name].apply_rotary_pos_emb = own


@contextmanager
def _replaced(forwards):
    """Use these forwards while the block runs; no module may have a replaced forward already."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def _forwards(model, fixed):
    found = {}
    for module in model.modules():
        if "forward" in vars(module):
            continue  # already replaced by another library
        if isinstance(module, lora.Linear) or _is_4bit(module):
            factors = cache(_factors) if fixed else _factors
            found[module] = partial(adapted, module, module.forward, factors)
        elif _is_rms_norm(type(module)):
            found[module] = partial(normed, module, module.forward)
    return found


def _rotaries(model):
    """Names of the Python modules whose `apply_rotary_pos_emb` computes the same as `rotated`."""
    names = {type(module).__module__ for module in model.modules()}
    return {
        n for n in names if _turns_halves(getattr(sys.modules[n], "apply_rotary_pos_emb", None))
    }


def adapted(
    layer: lora.LoraLayer, plain: Callable, factors: Callable, x: torch.Tensor, **options
) -> torch.Tensor:
    """Compute a LoRA layer's output `(…, d_out)`, by its own forward `plain` if not plain LoRA.

    Not plain LoRA: no adapter, several, a merged one, a bias, DoRA, per-row adapters (`options`).
    """
    name = _only_adapter(layer)
    if options or name is None:
        return plain(x, **options)
    out = layer.base_layer(x)
    a, b = factors(layer, name, out.dtype)
    low_rank = F.linear(layer.lora_dropout[name](x), a).flatten(0, -2)  # (n, r)
    return torch.addmm(out.flatten(0, -2), low_rank, b).view(out.shape)


def _is_4bit(module):
    return isinstance(module, getattr(lora, "Linear4bit", ()))


def _factors(layer, name, dtype):
    """A `(r, d_in)` and the transpose of s B `(r, d_out)`, in `dtype`."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return a.to(dtype), (b * layer.scaling[name]).to(dtype).t()


def _only_adapter(layer):
    """The name of the one plain adapter in use, or None."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1:
        return None
    plain = names[0] not in layer.lora_variant and layer.lora_B[names[0]].bias is None
    return names[0] if plain else None


@contextmanager
def dropouts(model: nn.Module) -> Iterator[None]:
    """On a CPU, use `dropped` for the model's dropout while the block runs."""
    found = [m for m in model.modules() if type(m) is nn.Dropout and "forward" not in vars(m)]
    with _replaced({module: partial(_dropped, module) for module in found}):
        yield


def _dropped(dropout, x):
    if not dropout.training or dropout.inplace or x.device.type != "cpu":
        return F.dropout(x, dropout.p, dropout.training, dropout.inplace)
    return dropped(x, dropout.p)


def dropped(x: torch.Tensor, p: float) -> torch.Tensor:
    """Apply dropout to `x` with 16 random bits per element, rounding p to a multiple of 1/65,536.

    torch draws one float at a time: 5 ns each, 80 million times in a step of 16 rows.
    """
    if p == 1:
        return x * 0
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (bits >= round(p * 2**16) - 2**15).to(x.dtype).div_(1 - p)


def normed(norm: nn.Module, plain: Callable, x: torch.Tensor) -> torch.Tensor:
    """Apply RMSNorm to `(…, d)`, by its own forward `plain` if its weight is trained."""
    if norm.weight.requires_grad or norm.weight.dtype != x.dtype:
        return plain(x)
    return _Norm.apply(x, norm.weight, norm.variance_epsilon)


class _Norm(torch.autograd.Function):
    """y = w x / rms(x) for a frozen w. With g = w dy, dx = (g - x mean(g x) / rms^2) / rms."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = (norm * norm / x.shape[-1] + eps).rsqrt()  # (…, 1)
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale, out=torch.empty_like(x)).mul_(weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, scale = ctx.saved_tensors
        g = gradient * weight
        mean = (g * x).sum(-1, keepdim=True, dtype=scale.dtype) / x.shape[-1]
        dx = torch.addcmul(g * scale, x.to(scale.dtype), mean * scale**3, value=-1)
        return dx.to(x.dtype), None, None


@cache
def _is_rms_norm(kind):
    """Whether a class's modules compute the same as `_Norm`, tested once on a small example."""
    if not kind.__name__.endswith("RMSNorm"):
        return False
    x = torch.linspace(-2, 3, 8)
    try:
        norm = kind(8, 1e-3)
        norm.weight.data.copy_(x + 4)
        return torch.allclose(norm(x), _Norm.apply(x, norm.weight.data, norm.variance_epsilon))
    except (AttributeError, TypeError):
        return False


def rotated(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' `apply_rotary_pos_emb`: q and k `(b, heads, n, d)`, cos and sin `(b, n, d)`."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)


class _Rotate(torch.autograd.Function):
    """Rotate each pair (x_i, x_(i + d/2)) by its angle; backward rotates by minus the angle."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx, gradient):
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, -sin), None, None


def _turn(x, cos, sin):
    (x1, x2), (sin, _) = x.chunk(2, -1), sin.chunk(2, -1)
    out = x * cos
    out1, out2 = out.chunk(2, -1)
    out1.addcmul_(x2, sin, value=-1)
    out2.addcmul_(x1, sin)
    return out


@cache
def _turns_halves(rotary):
    """Whether `rotary` equals `rotated`; other models pair neighbors, or rotate half of d."""
    if rotary is None:
        return False
    q, angles = torch.linspace(-2, 3, 24).view(1, 1, 3, 8), torch.linspace(0, 3, 12).view(1, 3, 4)
    angles = torch.cat([angles, angles], -1)
    inputs = (q, q + 1, angles.cos(), angles.sin())
    try:
        return all(map(torch.allclose, rotary(*inputs), rotated(*inputs)))
    except (TypeError, ValueError, RuntimeError):
        return False


def summed_loss(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropy (nats, fp32) of `head(hidden)` at `targets` `(k,)`; hidden is `(k, d)`.

    If the head is trained, adapted or has a bias, torch computes the loss.
    """
    if not is_fixed(head):
        return F.cross_entropy(head(hidden).float(), targets, reduction="sum")
    weight, kind = head.weight, hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (hidden, weight))
    return _Loss.apply(hidden, weight, targets)


def is_fixed(head: nn.Module) -> bool:
    """Whether a head is a plain, frozen linear layer without a bias."""
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad


class _Loss(torch.autograd.Function):
    """The summed loss; forward also computes its gradient, (softmax - one-hot) W."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total, gradient = torch.zeros((), dtype=wide, device=hidden.device), None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), ROWS):
            part = slice(start, start + ROWS)
            logp = (hidden[part] @ weight.t()).to(wide).log_softmax(-1)
            at = (torch.arange(len(logp), device=hidden.device), targets[part])
            total -= logp[at].sum()
            if gradient is not None:
                logp.exp_()[at] -= 1
                torch.mm(logp.to(weight.dtype), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0] * gradient.to(ctx.saved_tensors[0].dtype), None, None
