"""The smallest cases of lab 4, `(call, answer, wanted, why)`: for mistakes that have no name."""

import functools

import torch

from labkit.contract import CheckFailed, observe
from labkit.labs.lab04 import probes

BOOK = torch.tensor([-1.0, 0.0, 0.5, 1.0])


def integers(*functions):
    """Of 4.1: the integers, and the numbers that come back."""
    for x, bits, q, back, why in [
        ([7.0, -3.4, 0.6], 4, [7, -3, 1], [7.0, -3.0, 1.0], "a step is 7 / 7 = 1"),
        ([-14.0, 3.2, 0.0], 4, [-7, 2, 0], [-14.0, 4.0, 0.0], "a step is 14 / 7 = 2"),
        ([6.0, -2.2], 3, [3, -1], [6.0, -2.0], "3 bits go to 3, so a step is 6 / 3 = 2"),
    ]:
        answer = functools.partial(observe, probes.absmax_round_trip, *functions, torch.tensor(x))
        yield f"q of absmax_quantize({x}, {bits})", _nth(answer, 0, bits), q, why
        yield f"{x}, quantized to {bits} bits and back,", _nth(answer, 2, bits), back, why


def blocks(quantize_blockwise):
    """Of 4.3, codes and absmax."""
    for w, codes, peaks, why in [
        ([1.0, -2.0], [2, 0], [2.0], "absmax is 2, and 0.5 and -1 are values 2 and 0"),
        ([1.0, -2.0, 8.0, 1.0], [2, 0, 3, 1], [2.0, 8.0], "1/8 is nearest to 0, value 1"),
        ([1.0, -2.0, 8.0], [2, 0, 3], [2.0, 8.0], "the last block is 8 alone"),
    ]:
        answer = functools.partial(
            observe, probes.blockwise, quantize_blockwise, torch.tensor(w), BOOK, 2
        )
        call = f"quantize_blockwise({w}, codebook={BOOK.tolist()}, block=2)"
        yield f"codes of {call}", _nth(answer, 0), codes, why
        yield f"absmax of {call}", _nth(answer, 1), peaks, why


def restored(dequantize_blockwise):
    """Of 4.3, the way back."""
    for codes, peaks, wanted, why in [
        ([2, 0], [2.0], [1.0, -2.0], "values 0.5 and -1, times 2"),
        ([2, 0, 3, 2], [2.0, 8.0], [1.0, -2.0, 8.0, 4.0], "the second block is times 8"),
        ([2, 0, 3], [2.0, 8.0], [1.0, -2.0, 8.0], "the last block is one number, times 8"),
    ]:
        data = torch.tensor(codes), torch.tensor(peaks), BOOK, (len(codes),), 2
        call = f"dequantize_blockwise({codes}, {peaks}, {BOOK.tolist()}, ({len(codes)},), block=2)"
        answer = functools.partial(observe, probes.dequantized, dequantize_blockwise, *data)
        yield call, answer, wanted, why


def packed(pack_nibbles):
    """Of 4.4."""
    for codes, wanted, why in [
        ([1, 2], [18], "16 * 1 + 2"),
        ([1, 2, 15, 0], [18, 240], "16 * 1 + 2, and 16 * 15 + 0"),
    ]:
        data = torch.tensor(codes, dtype=torch.uint8)
        answer = functools.partial(observe, probes.packed, pack_nibbles, data)
        yield f"pack_nibbles({codes})", answer, wanted, why


def unpacked(unpack_nibbles):
    """Of 4.4, the way back."""
    for stored, wanted, why in [
        ([18], [1, 2], "18 is 16 * 1 + 2"),
        ([18, 240], [1, 2, 15, 0], "18 is 16 * 1 + 2, and 240 is 16 * 15 + 0"),
    ]:
        data = torch.tensor(stored, dtype=torch.uint8)
        answer = functools.partial(observe, probes.unpacked, unpack_nibbles, data)
        yield f"unpack_nibbles({stored})", answer, wanted, why


def doubled(double_quantize):
    """Of 4.5, in groups of two: offset, scale and q."""
    for absmax, q, scale, why in [
        ([1.0, 3.0], [-127, 127], [1.0], "less the mean, 2, they are -1 and 1"),
        ([1.0, 3.0, 2.0, 10.0], [-127, -42, -42, 127], [3.0, 6.0], "less 4: -3, -1 and -2, 6"),
        ([0.0, 4.0, 5.0], [-127, 42, 127], [3.0, 2.0], "less 3: -3, 1, and 2 alone"),
    ]:
        data = torch.tensor(absmax), 2
        answer = functools.partial(observe, probes.doubled, double_quantize, *data)
        call, mean = f"double_quantize({absmax}, group=2)", sum(absmax) / len(absmax)
        yield f"offset of {call}", _nth(answer, 2), mean, why
        yield f"127 * scale of {call}", lambda a=answer: 127 * _tensor(a()[1]), scale, why
        yield f"q of {call}", _nth(answer, 0), q, why


def starts(loftq_start):
    """Of 4.7: a matrix of which quantize leaves nothing, and B @ A."""
    for rows, r, wanted, why in [
        ([[3.0, 0.0], [0.0, 2.0]], 1, [[3.0, 0.0], [0.0, 0.0]], "3 is the larger direction"),
        ([[3.0, 0.0], [0.0, 2.0]], 2, [[3.0, 0.0], [0.0, 2.0]], "rank 2 holds all of it"),
        ([[0.0, 5.0, 0.0], [2.0, 0.0, 0.0]], 1, [[0.0, 5.0, 0.0], [0.0] * 3], "5 is larger than 2"),
    ]:

        def answer(rows=rows, r=r):
            W = torch.tensor(rows)
            A, B = observe(probes.started, loftq_start, W, "all to zero", r)
            return B @ A

        call = f"B @ A of loftq_start(W={rows}, quantize, {r}) where quantize gives 0"
        yield call, answer, torch.tensor(wanted), why


BYTES = [  # method, bytes of weights, gradients and moments of 1000 numbers, of which 10 train
    ("lora", (2040.0, 40.0, 80.0), ("2 * 1000 + 4 * 10", "4 * 10", "2 moments * 4 * 10")),
    ("qlora", (555.869, 40.0, 80.0), ("4.127 / 8 * 1000 + 4 * 10", "4 * 10", "2 moments * 4 * 10")),
    ("full", (4000.0, 4000.0, 8000.0), ("4 * 1000", "4 * 1000", "2 moments * 4 * 1000")),
    ("full_bf16", (2000.0, 2000.0, 4000.0), ("2 * 1000", "2 * 1000", "2 moments * 2 * 1000")),
]


def bytes_of(training_bytes, method, name):
    """Of 4.8: one part of what a method takes."""
    at = ("weights", "gradients", "optimizer").index(name)
    for other, wanted, why in BYTES:
        if other == method:
            trained = 1000 if method.startswith("full") else 10
            call = f'{name} of training_bytes(1000, {trained}, "{method}")'

            def answer(n=1000, trained=trained):
                return observe(training_bytes, n, trained, method)[name]

            yield call, answer, wanted[at], f"{why[at]}{_each(answer, method)}"


def _each(answer, method):
    """How many bytes a number the answer gives, as text; "" where it is no such rule."""
    try:
        one, base, trained = answer(), answer(n=2000), answer(trained=20)
    except CheckFailed:
        return ""
    if method.startswith("full"):
        return f"; yours is {one / 1000:.4g} a number"
    each = (base - one) / 1000, (trained - one) / 10
    if abs(1000 * each[0] + 10 * each[1] - one) > 1e-3 * abs(one):
        return ""
    bits = f" ({8 * each[0]:.4g} bits)" if method == "qlora" else ""
    return f"; yours is {each[0]:.4g}{bits} a number of the base and {each[1]:.4g} of the adapter"


def _nth(answer, which, *more):
    return lambda: answer(*more)[which]


def _tensor(value):
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)
