"""Inputs with an axis of length 1, asked where others were right: all that is told is of them."""

import torch

from labkit.checks.compare import ask, expect_close, expect_number
from labkit.contract import CheckFailed, part

HINT = "other shapes are right; here an axis has length 1, and squeeze() drops it"


def expect_narrow(call, wanted, f, *data):
    """`f(*data)`, called `call`, is `wanted`, a tensor or a number."""
    with part():
        got = ask(call, f, *data, hint=HINT)
        expect_right = expect_close if isinstance(wanted, torch.Tensor) else expect_number
        try:
            expect_right(got, wanted, call)
        except CheckFailed as failure:
            raise CheckFailed(f"{failure}; {HINT}") from None
