"""What exercise 4.8 expects of training_bytes: a rule for what stays between steps."""

import torch

from labkit.checks.compare import ask, draw, expect_number, kind_of
from labkit.checks.lab04 import sizes, small
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, observe, part

NF4 = 4.126953 / 8  # bytes a parameter, with double quantization
# method -> bytes a parameter of the base, and of a number that trains: weight, gradient, moments
METHODS = {
    "full": (0, 4.0, 4.0, 8.0),
    "full_bf16": (0, 2.0, 2.0, 4.0),
    "lora": (2, 4.0, 4.0, 8.0),
    "qlora": (NF4, 4.0, 4.0, 8.0),
}
RAISED = {"KeyError": "there are four methods: full, full_bf16, lora, qlora"}


def expect_rule(training_bytes, rng):
    """The three sizes of each method, for numbers that nobody knows by heart."""
    for method, (base, weight, gradient, moments) in METHODS.items():
        n = draw(1, 9, rng) * 10**9 + draw(1, 10**6, rng)
        trained = n if method.startswith("full") else draw(100, 900, rng) * 10**5
        wanted = {"weights": base * n + weight * trained}
        wanted |= {"gradients": gradient * trained, "optimizer": moments * trained}
        call = f'training_bytes({n:,}, {trained:,}, "{method}")'
        with part():
            got = ask(call, training_bytes, n, trained, method, hint=RAISED)
            _expect_parts(got, n, trained, method, wanted, call, training_bytes)


def _expect_parts(got, n, trainable, method, wanted, call, training_bytes):
    good = isinstance(got, dict) and set(wanted) <= set(got)
    held = isinstance(got, dict) and all(isinstance(key, str) for key in got)
    keys = f"; it has {', '.join(got)}" if held else f"; it gave {kind_of(got)}"
    told = f'{call} must return a dict with "weights", "gradients" and "optimizer"{keys}'
    expect(good, told)
    if method == "full_bf16":
        _expect_not_full(got, wanted, call)
    wrong = sizes.training_parts(n, trainable, method)
    if method == "lora" and _takes_off(training_bytes, n, trainable):
        wrong["weights"] = {sizes.ALONE: wanted["weights"] - 2.0 * trainable} | wrong["weights"]
    for name, size in wanted.items():
        value = got[name]
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        units = {
            **_rounded(size),
            "these are GB; wanted bytes": size / 1e9,
            "these are GiB; wanted bytes": size / 2**30,
            "these are MB; wanted bytes": size / 1e6,
            "these are bits; wanted bytes": 8 * size,
            "these are numbers; wanted bytes": size / (2 if method == "full_bf16" else 4),
            "what trains has a gradient and moments, with any method": 0.0,
        }
        with part(), simplest(small.bytes_of(training_bytes, method, name)):
            value = float(value) if type(value) is int else value
            expect_number(value, size, f"{name} of {call}", wrong[name] | units, 1e-4)


def _expect_not_full(got, wanted, call):
    """The three sizes are not all those of fp32, as where full_bf16 has no branch of its own."""
    told = 'these are the bytes of "full", fp32: does full_bf16 run into the branch of full? All is'
    try:
        same = all(abs(float(got[name]) / (2 * size) - 1) < 1e-4 for name, size in wanted.items())
    except (TypeError, ValueError, RuntimeError):  # no numbers, which is told of each part
        return
    expect(not same, f"{call}: {told} bf16 here, 2 bytes a number")


def _takes_off(training_bytes, n, trainable):
    """Whether the base is taken for n - trainable: in 16 bits it looks like an adapter in bf16."""
    try:
        got = observe(training_bytes, n, trainable, "qlora")["weights"]
        expect_number(float(got), NF4 * (n - trainable) + 4.0 * trainable, "")
    except (CheckFailed, KeyError, TypeError):
        return False
    return True


def _rounded(size):
    """Whole numbers of a unit, where there is at least one."""
    made = {"that is rounded to GB; wanted bytes": 1e9 * round(size / 1e9)}
    for unit, n in (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6), ("MiB", 2**20)):
        made[f"these are {unit}, cut to whole ones; wanted bytes"] = float(size // n)
        made[f"these are {unit}, rounded to whole ones; wanted bytes"] = float(round(size / n))
    return {told: value for told, value in made.items() if value}
