"""The value and gradient of a learner's formula, as facts."""

from collections.abc import Callable

import torch

from labkit.contract import kept, kind


def differentiated(f: Callable, names: list[str], noun: str, *given: object) -> dict:
    """The tensor that `f(*given)` returns, and its sum's gradient for the arguments in `names`."""
    leaves = [tensor.clone().requires_grad_() for tensor in given[: len(names)]]
    value = kept(f, *(leaf * 1.0 for leaf in leaves), *given[len(names) :])
    if not isinstance(value, torch.Tensor):
        return {"the return value": kind(value)}
    facts = {"the return value": "a tensor", noun: _near_zero(value), "the gradient": "lost"}
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        facts["the gradient"] = "kept"
        for name, leaf, grad in zip(names, leaves, found, strict=True):
            grad = torch.zeros_like(leaf) if grad is None else grad
            facts[f"the gradient for {name}"] = _near_zero(grad)
    return facts


def _near_zero(tensor):  # round tiny residue to 0
    return tensor.detach().where(~(tensor.detach().abs() < 1e-6), 0)
