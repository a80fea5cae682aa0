"""What exercise 4.1 expects: integers for any number of bits, the way back, and zeros."""

import math

import torch

from labkit.checks.compare import draw, expect_shape, randn
from labkit.checks.lab04 import changes, guesses, small
from labkit.checks.lab04.whole import GUARD, LOST, blaming, expect_integers, number
from labkit.checks.laws import laws
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, generator, observe, part
from labkit.labs.lab04 import probes


def expect_absmax(absmax_quantize, absmax_dequantize, rng):
    """Half a step off at most, as far for -x as for x, for tiny numbers too; zeros stay zeros."""
    functions = absmax_quantize, absmax_dequantize
    followed = laws(*changes.integers(functions, _drawn(3, generator())))
    with part(), simplest(small.integers(*functions)), followed:
        for bits in (8, 4, 3, 2):
            _expect_integers_of(_drawn(draw(1, 50, rng), rng), bits, functions)
        with blaming(f"x holds {GUARD}"):
            _expect_integers_of(_drawn(1.5e-7, rng), 4, functions)
    with part():
        _expect_zeros(functions)


def _drawn(size, rng):
    """Numbers of that size; the largest of them, far off, is negative."""
    x = randn(40, 25, rng=rng) * size
    x[3, 4] = -1.5 * x.abs().max()
    return x


def _expect_zeros(functions):
    hint = "absmax is 0 there: don't divide by it"
    with blaming("x is zeros here"):
        q, _, back, lost = observe(probes.absmax_round_trip, *functions, torch.zeros(5), 4)
    expect_shape(q, (5,), "q of zeros")
    if q.is_quantized:  # told already
        return
    expect_shape(back, (5,), "zeros, quantized and dequantized,")
    expect(not back.isnan().any(), f"zeros give NaN; {hint}")
    first = q.flatten()[0].item()
    added = not lost and first and (q == first).all()
    expect(not added, f"zeros become {first:g} in q, wanted 0: nothing is added to q")
    expect(not q.any() and not back.any(), f"zeros don't stay zeros; {hint}")
    expect(not lost, f"zeros: {LOST}; {hint}")
    kind = str(back.dtype).removeprefix("torch.")
    told = f"zeros come back as {kind}, wanted floats like all others: q times a scale"
    expect(back.is_floating_point(), told)


def _expect_integers_of(x, bits, functions):
    """Integers in range for x and for -x, and half a step off at most on the way back."""
    top, call = 2 ** (bits - 1) - 1, f"absmax_quantize(x, {bits})"
    q, scale, back, _ = observe(probes.absmax_round_trip, *functions, x, bits)
    turned = getattr(scale, "shape", None) == x.shape and getattr(q, "numel", int)() < 2
    expect(not turned, f"{call}: q comes first, and then the scale")
    expect_shape(q, x.shape, f"q of {call}")
    told = f"q of {call} is a quantized tensor of torch's own; wanted are plain integers, int8"
    expect(not q.is_quantized, told)
    scale = number(scale, f"scale of {call}", "one scale for all of x, not one a row or a number")
    _expect_no_seven(q, back, x, bits)
    _expect_no_other_scale(scale, x, bits, call)
    half = f"half of the {2**bits} integers are below zero"
    whole = expect_integers(q, x.numel(), f"q of {call}", -math.inf, math.inf, half)
    worst = int(whole[whole.abs().argmax()])
    eight = f"127 is the largest integer of 8 bits; of `bits` it is 2**(bits-1) - 1, here {top}"
    told = f"q of {call} holds {worst}"
    expect(abs(worst) != 127 or top == 127, f"{told}: {eight}")
    expect(abs(worst) <= top + 1, f"{told}, wanted -{top} to {top}; {half}")
    told = f"{call}: no integer is below zero; a number keeps its sign in q"
    expect((whole < 0).any() or not (whole.any() and (x < 0).any()), told)
    _expect_signs(whole, x.flatten().double(), scale, call, half)
    _expect_half_a_step(back, x, q, scale, bits)
    hint = f"divide absmax by 2**(bits-1) - 1 = {top}, not by 2**(bits-1)"
    expect(whole.abs().max() <= top, f"q of {call} goes to {top + 1}; use -{top} to {top}: {hint}")
    other, mirrored, *_ = observe(probes.absmax_round_trip, *functions, -x, bits)
    _expect_no_other_scale(number(mirrored, f"scale of {call}"), -x, bits, call)
    same = torch.equal(other.flatten().long(), -whole)
    expect(same, f"{call}: q of -x is not -q; use -{top} to {top}")
    _expect_from_q(back, whole, x, bits)


def _expect_signs(whole, x, scale, call, half):
    """Integers have the signs of x: none is shifted, or too large for int8 and wrapped round."""
    if not (whole * x < 0).any():
        return
    for step in (scale, 1 / scale) if scale else ():
        off = whole - x / step
        shift = 128 - (128 - off.median().round().item()) % 256
        same = ((off - shift + 128) % 256 - 128).abs().max() <= 1  # int8 may have wrapped round
        told = f"{call}: q is shifted by {shift:g}, a zero point: 0 has to stay 0"
        expect(not (same and shift), told)
        told = f"{call}: numbers change sign, beyond int8 they wrap round; {half}"
        expect(not same, told)
    raise CheckFailed(f"{call}: numbers change their sign in q")


def _expect_no_seven(q, back, x, bits):
    """The way back of other bits than 4 does not divide by 7."""
    top = 2 ** (bits - 1) - 1
    shaped = isinstance(back, torch.Tensor) and back.shape == x.shape
    if top == 7 or not shaped or q.is_complex() or back.is_complex():
        return
    sevenths = q.double() * (x.abs().max().double() / 7)
    seven = q.double().abs().max() == top and torch.allclose(back.double(), sevenths, rtol=1e-4)
    told = f"{bits} bits, quantized and dequantized: the way back divides by 7, the largest integer"
    expect(not seven, f"{told} of 4 bits; here it is {top}: put absmax / {top} into the scale")


def _expect_no_other_scale(scale, x, bits, call):
    """`scale` is none that a misconception gives, neither as a step nor upside down."""
    right, wrong = guesses.scales(x, bits)

    def near(value):
        return value and any(abs(s / value - 1) < 1e-4 for s in (scale, scale and 1 / scale))

    for message, value in wrong.items():
        if near(value) and not near(right):
            raise CheckFailed(f"{call}: {message}")


def _expect_half_a_step(back, x, q, scale, bits):
    top, call = 2 ** (bits - 1) - 1, f"{bits} bits, quantized and dequantized:"
    expect_shape(back, x.shape, call)
    kind = str(back.dtype).removeprefix("torch.")
    whole, back = not back.is_floating_point(), back.double()
    expect(torch.isfinite(back).all(), f"{call} NaN or infinity")
    step = (x.abs().max() / top).item()
    error = ((back - x).abs().max() / step).item()
    if error <= 0.5 + 1e-3:
        return
    one = number(scale, "scale")
    _expect_no_guard(one, step, top, call)
    wanted = f"wanted half a step at most, a step being absmax / {top}"
    told = f"{call} the largest error is {error:.4g} steps; {wanted}"
    expect(q.any(), f"{told}; all of q is 0")
    wrong = guesses.absmax(x, top) | guesses.undone(q, scale, x, step)
    factor = back.flatten()[x.abs().argmax()] / x.flatten()[x.abs().argmax()]
    if (
        not 0.8 < abs(factor) < 1.2
        and factor
        and ((back - factor * x).abs() <= 0.51 * step * abs(factor)).all()
    ):
        wrong[f"this is {factor:.3g} times as much: q times the scale is all"] = back
    if whole:
        wrong["this was made an integer again; leave it a float"] = back
    for message, guess in wrong.items():
        if torch.allclose(back, guess.double(), rtol=1e-3, atol=1e-3 * step):
            raise CheckFailed(f"{call} {message}")
    cut = back.abs().max() < x.abs().max() - step
    expect(not cut, f"{told}; the largest numbers are cut off: the scale is absmax / {top}")
    expect("16" not in kind, f"{told}; these are in {kind}: use fp32")
    more = ((back - q * one) / one).double() if one else torch.zeros(1)
    told_more = f"{call} {more.mean():.3g} is added to q on the way back: q * scale is all"
    same = more.abs().mean() > 1e-2 and (more - more.mean()).abs().max() < 1e-2
    expect(not same, told_more)
    told_scale = f"the scale is {one:.6g}, and absmax / {top} is {step:.6g}: is it rounded?"
    used = one > 1.2 * step and ((q * one - x).abs() <= 0.51 * one).all()
    expect(not used, f"{call} the scale is {one / step:.3g} times absmax / {top}, wanted once")
    rounded = min(abs(s / step - 1) for s in (one, 1 / one)) if one else 0
    expect(not 1e-4 < rounded < 0.2, f"{call} {told_scale}")
    hint = "each went to one of its two neighbours, and not always to the nearer: is it by chance?"
    expect(error > 1 + 1e-3, f"{told}; {hint}")
    raise CheckFailed(told, bare=True)


def _expect_no_guard(scale, step, top, call):
    """Small numbers have their own scale, as steps or as steps a unit; larger came out right."""
    used = scale if scale < 1 else 1 / scale
    told = (
        f"a step is {used:.6g}, and absmax / {top} is {step:.6g}: it is {used - step:.3g} too large"
    )
    guarded = step < 1e-6 and 1.0001 * step < used < 1e-3
    expect(not guarded, f"{call} the guard against a zero changes the scale: {told}")


def _expect_from_q(back, whole, x, bits):
    """What comes back is q times a step: made from q, not x itself, kept on the way."""
    top = 2 ** (bits - 1) - 1
    step = (x.abs().max() / top).item()
    off = (back.flatten().double() - whole * step).abs().max().item() / step
    told = f"{bits} bits, quantized and dequantized: the numbers are not those that q stands for"
    expect(off < 0.1, f"{told}, q * absmax / {top}")
