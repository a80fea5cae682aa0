"""What misconceptions give in lab 4: each function maps a message to the wrong value."""

import math
from statistics import NormalDist

import torch

SIGNED = "you take max(); take abs().max()"
OFFSET = (31 / 32 + 29 / 30) / 2


def nearest(scaled, codebook):
    """Index (n,) of the nearest code of each number."""
    return (scaled[:, None] - codebook).abs().argmin(1)


def peaks_of(w, block):
    """The absmax of each element's block (n,), and of each block."""
    peaks = torch.stack([part.abs().max() for part in w.flatten().split(block)])
    return peaks.repeat_interleave(block)[: w.numel()], peaks


def scales(x, bits):
    """The right scale of 4.1 and, by message, those of misconceptions."""
    top, peak = 2 ** (bits - 1) - 1, x.abs().max().item()
    half = f"half of the {2**bits} integers are below zero: divide by 2**(bits-1) - 1 = {top}"
    large = peak > 1e-3  # a small one may be a guard, such as 2**-23, which fp16 holds too
    steps = f"divide absmax by 2**(bits-1) - 1 = {top}, not by 2**(bits-1)"
    return peak / top, {
        SIGNED: x.max().item() / top,
        f"{SIGNED}, and divide it": x.max().item(),
        "you take min(); take abs().max()": x.min().abs().item() / top,
        **{
            f"the scale goes from min to max, in {n} steps; plus and minus are treated alike here: "
            "absmax": (x.max() - x.min()).item() / n
            for n in (2**bits - 1, 2**bits, 2 * top)
        },
        f"use -{top} to {top}: {steps}": peak / (top + 1),
        half: peak / (2**bits - 1),
        f"{half}, not by 2**bits": peak / 2**bits,
        "the scale is absmax itself; divide it by the largest integer": peak,
        "the scale is the largest sum of a row, as of torch.linalg.norm(x, inf); take the largest "
        "number, x.abs().max()": x.abs().sum(-1).max().item() / top,
        "the scale is rounded to fp16; keep it in fp32": x.new_tensor(peak / top).half().item()
        * large,
        "the scale is rounded up to a power of two; take it as it comes": (
            2.0 ** math.ceil(math.log2(peak / top)) * large
        ),
        "the scale is rounded down to a power of two; take it as it comes": (
            2.0 ** math.floor(math.log2(peak / top)) * large
        ),
        "the scale is made a whole number; take it as it comes": math.ceil(peak / top) * large,
        "the scale is the mean of |x|; take the largest": x.abs().mean().item() / top,
        "the scale is a standard deviation; take the largest": x.std().item() / top,
        f"^ is no power in Python: 2 ** (bits - 1) - 1 = {top}": peak / ((2 ^ (bits - 1)) - 1 or 1),
        f"-1 belongs to the exponent alone: 2 ** (bits - 1) - 1 = {top}": peak / 2 ** (bits - 2),
        f"that is a bit less than there are: 2 ** (bits - 1) - 1 = {top}": (
            peak / (2 ** (bits - 2) - 1 or 1)
        ),
    }


def absmax(x, top):
    """Wrong reconstructions of `x` with integers from -top to top."""
    peak, low, high = x.abs().max(), -top - 1, top
    step, late = peak / top, f"before it is multiplied by {top}: multiply first, then round"
    seventh = x.abs().max() / 7
    cut = (x / x.max() * top).round().clamp(low, high) * x.max() / top
    return {
        "this cuts off instead of rounding: use round": (x / step).trunc() * step,
        "this rounds down; round to the nearest": (x / step).floor().clamp(low, high) * step,
        "this rounds up; round to the nearest": (x / step).ceil().clamp(low, high) * step,
        "0.5 more and cut off is no rounding below zero: use round": (
            (x / step + 0.5).trunc() * step
        ),
        SIGNED: cut,
        "these are the 7 steps of 4 bits; use `bits`": (x / seventh).round() * seventh,
        "x is rounded before it is divided: round x / scale": (x.round() / step).trunc() * step,
        f"x / absmax is rounded {late}": (x / peak).round() * peak,
        f"x / absmax is made an integer {late}": (x / peak).trunc() * peak,
        "x is made an integer before it is divided: round x / scale": (
            (x.trunc() / step).round() * step
        ),
    }


def undone(q, scale, x, step):
    """Wrong ways back from integers and scale; of * and / the one whose other gives x."""
    times, over = q * scale, q / scale
    top = round((x.abs().max() / step).item())
    wrong = {
        "this is q itself; the scale is missing": q,
        "this was rounded again; leave it as it is": times.round(),
        "multiply by scale alone: the largest integer is in it already": times * top,
        "0 stands for 0 here: nothing is added to q": times + (top + 1) * scale,
    }
    if (times - x).abs().max() <= 0.51 * step:
        wrong["this is q / scale; a scale is the size of a step here, so multiply"] = over
    if (over - x).abs().max() <= 0.51 * step:
        wrong["this is q * scale; a scale is steps a unit here, so divide"] = times
    if not torch.equal(times, times.trunc()):
        wrong["this was made an integer again; leave it a float"] = times.trunc()
    return wrong


def _quantiles(n, offset=OFFSET):
    """The n upper quantiles from `offset` down, evenly spaced in probability, 0.5 left out."""
    return [NormalDist().inv_cdf(offset + (0.5 - offset) * i / n) for i in range(n)]


def _scaled(values):
    return torch.tensor(sorted(values), dtype=torch.double) / max(map(abs, values))


def _halves(offset, below=None):
    return _quantiles(8, offset) + [0.0] + [-v for v in _quantiles(7, below or offset)]


def codebook():
    """Wrong codebooks."""
    right = torch.tensor(sorted(_halves(OFFSET)), dtype=torch.double)
    book, zero, eight = right / right.max(), torch.zeros(1).double(), _quantiles(8)
    seven = [-v for v in _quantiles(7)]
    one = torch.tensor([1.0], dtype=torch.double)
    return {
        "begin with nine and eight probabilities: less the 0.5 they are eight and seven": _scaled(
            _quantiles(7) + [0.0] + [-v for v in _quantiles(6)]
        ),
        "cdf goes from values to probabilities; the way back is icdf": _by(torch.special.ndtr),
        "erfinv wants 2 p - 1 of a probability p": _by(torch.special.erfinv),
        "these are the probabilities themselves; take their quantiles": _by(lambda p: p),
        "the ends are the largest quantile divided by itself; don't set them": torch.cat(
            [-one, book[1:-1] * right.max(), one]
        ),
        "the zero is missing": torch.cat([book[:7], book[8:]]),
        "0.5 is not dropped: its quantile is another zero, on either side": torch.cat(
            [book[:7], zero, zero, book[7:]]
        ),
        "eight values above zero are right; below it there are seven": _scaled(
            [-v for v in eight] + [0.0] + eight
        ),
        "seven values below zero are right; above it there are eight": _scaled(
            seven + [0.0] + [-v for v in seven]
        ),
        "divide by the largest one, so that the ends are -1 and 1": right,
        "eight values belong above zero and seven below": -_scaled(_halves(OFFSET)).flip(0),
        "these are evenly spaced; take quantiles": torch.linspace(-1, 1, 16).double(),
        "both halves have the upper one's steps: the lower one has seven from end to 0.5": _scaled(
            eight + [0.0] + [-v for v in eight[1:]]
        ),
        "the lower half is the upper one's mirror image with one value dropped; it has its own "
        "seven steps from 0.9677083 to 0.5": _scaled(eight + [0.0] + [-v for v in eight[:-1]]),
        "these are evenly spaced on either side; take quantiles": torch.cat(
            [torch.linspace(-1, 0, 8)[:-1], torch.linspace(0, 1, 9)]
        ).double(),
        **_in_a_row(),
        **_other_ends(),
        **_other_functions(),
    }


def _in_a_row():
    """Codebooks whose probabilities run evenly from end to end, and what is made of the zero."""
    inverse = NormalDist().inv_cdf
    row = [inverse(1 - OFFSET + (2 * OFFSET - 1) * i / 15) for i in range(16)]
    nearest_below = max(x for x in row if x < 0)
    return {
        "16 quantiles in one row hold no zero: do the two halves apart": _scaled(row),
        "the value next to zero is set to zero, and the others stay: do the two halves apart": (
            _scaled([0.0 if v == nearest_below else v for v in row])
        ),
        "the zero is put into a row of 15: eight belong above it and seven below": _scaled(
            [inverse(1 - OFFSET + (2 * OFFSET - 1) * i / 14) for i in range(15)]
        ),
        "the infinite ends are replaced alone; begin at 0.9677083, in even steps to 0.5": _scaled(
            [inverse(min(max(i / 15, 1 - OFFSET), OFFSET)) for i in range(16)]
        ),
    }


def _other_ends():
    """Codebooks that begin at other probabilities."""
    row = "erfinv wants 2 p - 1: p goes to 0.9677083, and 2 p - 1 to 0.9354166"
    two = torch.tensor(sorted(_halves(29 / 30, 31 / 32)), dtype=torch.double)
    return {
        row: _scaled(_halves((1 + OFFSET) / 2)),
        "the offset is the mean of 31/32 and 29/30, not 31/32": _scaled(_halves(31 / 32)),
        "the offset is the mean of 31/32 and 29/30, not 29/30": _scaled(_halves(29 / 30)),
        "both halves begin at the mean of 31/32 and 29/30, not at one each": _scaled(
            _halves(31 / 32, 29 / 30)
        ),
        "both halves begin at the mean of 29/30 and 31/32, not at one each": two / two.max(),
    }


def _by(function):
    """The recipe with another function than the quantiles."""
    p = [torch.linspace(OFFSET, 0.5, n + 1, dtype=torch.double)[:-1] for n in (8, 7)]
    above, below = map(function, p)
    values = torch.cat([-below, above.new_zeros(1), above]).sort().values
    return values / values.max()


def _other_functions():
    """Codebooks of other functions than a normal distribution's quantiles."""
    cdf = torch.special.ndtr
    return {
        "cdf goes from values to probabilities, whatever is taken off; the way back is icdf": _by(
            lambda p: cdf(p) - cdf(p.new_tensor(0.5))
        ),
        "cdf goes from values to probabilities, and 0.5 to no zero; the way back is icdf": (
            _by_cdf()
        ),
        "these are a Laplace distribution's quantiles; take a normal one's": _by(
            lambda p: -(2 * (1 - p)).log()
        ),
        "these are a logistic distribution's quantiles; take a normal one's": _by(torch.logit),
    }


def _by_cdf():
    """The recipe with the cdf, of 0.5 too."""
    p = [torch.linspace(0.5, OFFSET, n, dtype=torch.double) for n in (9, 8)]
    values = torch.cat([torch.special.ndtr(p[0]), -torch.special.ndtr(p[1][1:])]).sort().values
    return values / values.max()


def codes(w, codebook, block):
    """Wrong codes of `w`."""
    flat, last = w.flatten(), len(codebook) - 1
    scaled = flat / peaks_of(w, block)[0].clamp_min(1e-30)
    signed = torch.stack([part.max() for part in flat.split(block)]).repeat_interleave(block)
    rows = w.abs().amax(-1, keepdim=True).expand_as(w).flatten().clamp_min(1e-30)
    fixed = nearest(flat / peaks_of(w, 64)[0].clamp_min(1e-30), codebook)
    below = (torch.bucketize(scaled, codebook, right=True) - 1).clamp(0, last)
    above = torch.bucketize(scaled, codebook).clamp(0, last)
    parts = [p for row in w.view(-1, w.shape[-1]) for p in row.split(block)]
    begun = torch.cat([p.abs().max().clamp_min(1e-30).expand(len(p)) for p in parts])
    right = nearest(scaled, codebook)
    return {
        f"counted from the largest value down: the smallest, -1, has code 0, 1 has {last}": (
            last - right
        ),
        "blocks begin anew in each row: flatten first": nearest(flat / begun, codebook),
        "one absmax for all of w; take one a block": nearest(flat / w.abs().max(), codebook),
        "rows of w are no blocks; flatten w first": nearest(flat / rows, codebook),
        SIGNED: nearest(flat / signed[: len(flat)], codebook),
        "this is the next code below; the nearest lies on either side": below,
        "this is the next code above; the nearest lies on either side": above,
        "w was not divided by its block's absmax": nearest(flat, codebook),
        "absmax multiplies here; divide": nearest(flat * peaks_of(w, block)[0], codebook),
        "this is the furthest code; take the nearest": (
            (scaled[:, None] - codebook).abs().argmax(1)
        ),
        "these are even steps; take the nearest value of `codebook`": (
            ((scaled + 1) * last / 2).round().long()
        ),
        "a midpoint is half of the sum of two neighbours, not of their difference": (
            torch.bucketize(scaled, (codebook[1:] - codebook[:-1]) / 2)
        ),
        "these are blocks of 64; use `block`": fixed,
        "one too low: where does bucketize begin to count? The nearest lies on either side": (
            (above - 1).clamp(0, last)
        ),
        "the least of signed differences is no nearest: abs() is missing": torch.full_like(
            right, last
        ),
        "the least of signed differences is no nearest; abs() is missing": 0 * right,
    }


def restored(codes, peaks, book, shape, block):
    """Wrong weights from codes and the absmax of blocks."""
    each, looked_up = peaks.repeat_interleave(block)[: len(codes)], book[codes]
    tiled = peaks.repeat(len(codes))[: len(codes)]
    late = ((torch.arange(len(codes)) + block - 1) // block).clamp_max(len(peaks) - 1)
    wrong = {
        "absmax is missing": looked_up,
        "each block has its own absmax, and this takes one for all": looked_up * peaks[0],
        "the codes are not looked up in the codebook": codes * each,
        "repeat() runs through all blocks again and again; repeat_interleave": looked_up * tiled,
        "absmax divides here; multiply": looked_up / each,
        "the next block's absmax from its second number on: number i has block i // block": (
            looked_up * peaks[late]
        ),
        "absmax is added here; multiply": looked_up + each,
        "codes begin at 0: the value is codebook[code]": book[codes - 1] * each,
        f"a scale serves {block} numbers, also where the last block is shorter": looked_up
        * peaks.repeat_interleave(max(1, len(codes) // len(peaks))).repeat(2)[: len(codes)],
        "these are blocks of 64; use `block`": looked_up
        * peaks.repeat_interleave(64)[: len(codes)],
    }
    return {message: value.view(shape) for message, value in wrong.items()}
