"""Integers, single numbers, and words on special inputs, for the checks of lab 4."""

import contextlib

import torch

from labkit.checks.compare import kind_of
from labkit.contract import CheckFailed, expect

GUARD = "numbers below 1e-6 here: a guard against a zero has to be far smaller, such as 1e-12"
LOST = "0 / 0 gives NaN on the way, and an integer has no NaN: that it became 0 is luck"


def expect_integers(got, n, call, low, high, hint="", kind="int8", counts=None):
    """`got` is an integer tensor of n numbers in low..high, `hint` if not; returned flat.

    `counts` maps a wrong number of them to what was thought.
    """
    told = f"{call} gave {kind_of(got)}, wanted one tensor of integers"
    expect(isinstance(got, torch.Tensor), told)
    also = f"; {hint}" if hint else ""
    floats = f"rounding gives floats: convert them, .to(torch.{kind}){also}"
    whole = not (got.is_floating_point() or got.is_complex() or got.dtype == torch.bool)
    expect(whole, f"{call} gave {str(got.dtype).removeprefix('torch.')}; {floats}")
    told = f"{call} gave {got.numel()} integers, wanted {n}"
    expect(got.numel() == n, told, hint=(counts or {}).get(got.numel(), ""))
    got = got.flatten().long()
    worst = got[(got - (low + high) / 2).abs().argmax()].item() if n else low
    expect(low <= worst <= high, f"{call} holds {worst}, wanted {low} to {high}{also}")
    return got


def holds(tensor, wanted):
    """How many numbers a tensor has, and how many are wanted, as words."""
    n = tensor.numel()
    return f"holds {n} number{'' if n == 1 else 's'}, wanted {wanted}"


def number(value, call, hint=""):
    """A Python float of a number or of a tensor with one; `hint` says of what it is one."""
    if isinstance(value, torch.Tensor):
        told = f"{call} is no single number: it holds {value.numel()}, wanted one"
        expect(value.numel() == 1, told, hint=hint)
        value = value.item()
    expect(type(value) in (int, float), f"{call} is no single number")
    return float(value)


@contextlib.contextmanager
def blaming(hint):
    """Where what is inside fails, say what is special about this input, if anything."""
    try:
        yield
    except CheckFailed as failure:
        if "positional argument" in str(failure):
            hint = "keep the line that begins with def as it was given"
        more = hint and hint not in str(failure)
        raise CheckFailed(f"{failure}; {hint}") if more else failure from None


def wrong_counts(n, block, usual, name="block"):
    """How many numbers and scales come out wrong of n numbers in blocks, by what was thought.

    Two dicts `{count: thought}`; `usual` is the size of a block where none is given, `name` the
    parameter that gives it.
    """
    short = f"the last {name}, though shorter, is one too"
    whole, blocks = n // block * block, -(-n // block)
    numbers = {whole: short, blocks * block: f"cut the padding off, {n} numbers stay {n}"}
    scales = {1: f"this is one for all, and each {name} has its own", n // block: short}
    scales[min(block, n)] = f"`{name}` is the size of a {name}, not their number"
    scales[-(-n // usual)] = f"these are {name}s of {usual}; use `{name}`"
    if n % block == 0:
        scales[blocks + 1] = f"{n} numbers fill whole {name}s: -n % {name} is 0 there, no padding"
    return (
        {count: told for count, told in numbers.items() if count != n},
        {count: told for count, told in scales.items() if count != blocks},
    )
