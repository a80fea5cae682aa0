"""Comparisons that say what is wrong: shape, dtype, a known misconception, or by how much."""

import torch

from labkit.grading.contract import CheckFailed, expect, generator


def randn(*shape, rng=None):
    """Standard normal numbers of `shape` from `rng`, else from a new generator of the session."""
    return torch.randn(*shape, generator=rng or generator())


def expect_close(got, wanted, call, guesses=None, tol=1e-4):
    """Raise CheckFailed unless tensor `got` equals `wanted` to `tol`, relative to its size.

    `call` is how the learner would write what was asked. `guesses` maps a misconception to the
    tensor that it gives: when `got` is that tensor, the misconception is the message.
    """
    expect_shape(got, wanted.shape, call)
    got, wanted = got.double(), wanted.double()
    expect(torch.isfinite(got).all(), f"{call} holds NaN or infinity")
    if _close(got, wanted, tol):
        return
    for message, guess in (guesses or {}).items():
        if guess.shape == got.shape and _close(got, guess.double(), tol):
            raise CheckFailed(f"{call}: {message}")
    raise CheckFailed(f"{call}: {_difference(got, wanted)}")


def expect_shape(got, shape, call):
    """Raise CheckFailed unless `got` is a tensor of `shape`."""
    expect(
        isinstance(got, torch.Tensor),
        f"{call} gave {_kind(got)}, wanted a tensor of shape {tuple(shape)}",
    )
    if got.shape != shape:
        turned = got.shape == torch.Size(reversed(shape))
        hint = ": is something transposed?" if turned else ""
        raise CheckFailed(f"{call} has shape {tuple(got.shape)}, wanted {tuple(shape)}{hint}")


def expect_number(got, wanted, call, guesses=None, tol=1e-4):
    """Raise CheckFailed unless `got` is a Python number equal to `wanted` (ints exactly).

    `guesses` maps a misconception to the number that it gives.
    """
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        raise CheckFailed(f"{call} gave a tensor, wanted a Python number: use .item()")
    number = type(got) in (int, float)
    expect(number, f"{call} gave {_kind(got)}, wanted {_kind(wanted)}")
    if type(wanted) is int:
        whole = type(got) is int
        expect(
            whole or got != wanted, f"{call} gave {got!r}, wanted the int {wanted}: use // or int()"
        )
        right = got == wanted
    else:
        right = abs(got - wanted) <= tol * max(1e-8, abs(wanted))
    if right:
        return
    for message, guess in (guesses or {}).items():
        if abs(got - guess) <= tol * max(1e-8, abs(guess)):
            raise CheckFailed(f"{call} gave {got:,.6g}, wanted {wanted:,.6g}: {message}")
    raise CheckFailed(f"{call} gave {got:,.6g}, wanted {wanted:,.6g}")


def _close(got, wanted, tol):
    scale = wanted.abs().max().clamp_min(1e-8) if wanted.numel() else 1.0
    return bool(((got - wanted).abs() <= tol * scale).all())


def _difference(got, wanted):
    """How `got` misses `wanted`: by a factor, by a sign, or the largest difference."""
    size = (wanted * wanted).sum()
    factor = ((got * wanted).sum() / size).item() if size > 0 else 0.0
    if factor and _close(got, factor * wanted, 1e-3):
        return "the sign is turned round" if abs(factor + 1) < 1e-3 else f"{factor:.3g}x the wanted"
    worst = (got - wanted).abs().argmax()
    yours, theirs = got.flatten()[worst].item(), wanted.flatten()[worst].item()
    return f"yours {yours:.4g}, wanted {theirs:.4g} where they differ most"


def _kind(value):
    if value is None:
        return "None (is `return` missing?)"
    return {"int": "an int", "str": "text", "list": "a list"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
