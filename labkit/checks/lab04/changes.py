"""How right answers of lab 4 follow their inputs: `(call, answer, data, changed)` for `laws`."""

import torch

from labkit.contract import observe
from labkit.labs.lab04 import probes


def integers(functions, x):
    """Of 4.1: what comes back of 4 bits."""

    def answer(x):
        return observe(probes.absmax_round_trip, *functions, x, 4)[2]

    changed = {"with x twice as large": ((2 * x,), 2), "with -x": ((-x,), -1)}
    return "x, quantized to 4 bits and back:", answer, (x,), changed


def blocks(quantize_blockwise, codebook, which):
    """Of 4.3: the codes (0), or absmax (1), of two blocks."""
    w = torch.linspace(-1, 1, 128)

    def answer(w):
        return observe(probes.blockwise, quantize_blockwise, w, codebook, None)[which]

    told = {
        "with w twice as large": ((2 * w,), 1 + which),
        "with w as a matrix": ((w.view(4, 32),), 1),
    }
    if which:
        told["with -w"] = ((-w,), 1)
    name = ("codes", "absmax")[which]
    return f"{name} of quantize_blockwise of 128 numbers", answer, (w,), told


def doubled(double_quantize, absmax):
    """Of 4.5: q of scales in groups of 4."""

    def answer(absmax):
        return observe(probes.doubled, double_quantize, absmax, 4)[0]

    changed = {
        "with 1 added to all of absmax": ((absmax + 1,), 1),
        "with absmax twice as large": ((2 * absmax,), 1),
    }
    return "q of double_quantize, group=4", answer, (absmax,), changed
