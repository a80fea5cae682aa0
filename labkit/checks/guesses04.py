"""What misconceptions give in lab 4: each function maps a message to the wrong value."""

from statistics import NormalDist

import torch

OFFSET = (31 / 32 + 29 / 30) / 2


def nearest(scaled, codebook):
    """Index (n,) of the nearest code of each number."""
    return (scaled[:, None] - codebook).abs().argmin(1)


def peaks_of(w, block):
    """The absmax of each element's block (n,), and of each block."""
    peaks = torch.stack([part.abs().max() for part in w.flatten().split(block)])
    return peaks.repeat_interleave(block)[: w.numel()], peaks


def absmax(x, top):
    """Wrong reconstructions of `x` with integers from -top to top."""
    step, low, high = x.abs().max() / top, -top - 1, top
    seventh = x.abs().max() / 7
    cut = (x / x.max() * top).round().clamp(low, high) * x.max() / top
    return {
        "this cuts off instead of rounding: use round": (x / step).trunc() * step,
        "this rounds down; round to the nearest": (x / step).floor().clamp(low, high) * step,
        "this rounds up; round to the nearest": (x / step).ceil().clamp(low, high) * step,
        "the scale comes from max(), not from abs().max()": cut,
        "these are the 7 steps of 4 bits; use `bits`": (x / seventh).round() * seventh,
    }


def undone(q, scale, x, step):
    """Wrong ways back from integers and scale; of * and / the one whose other gives x."""
    times, over = q * scale, q / scale
    wrong = {"this is q itself; the scale is missing": q}
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
    inverse = NormalDist().inv_cdf
    paper = [(inverse(i / 17) + inverse((i + 1) / 17)) / 2 for i in range(1, 16)]
    row = [inverse(1 - OFFSET + (2 * OFFSET - 1) * i / 15) for i in range(16)]
    right = torch.tensor(sorted(_halves(OFFSET)), dtype=torch.double)
    book, zero, eight = right / right.max(), torch.zeros(1).double(), _quantiles(8)
    seven = [-v for v in _quantiles(7)]
    two = torch.tensor(sorted(_halves(29 / 30, 31 / 32)), dtype=torch.double)
    return {
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
        "16 quantiles in one row hold no zero: do the two halves apart": _scaled(row),
        "averages of neighbours, as in the paper; bitsandbytes takes quantiles": _scaled(paper),
        "these are evenly spaced; take quantiles": torch.linspace(-1, 1, 16).double(),
        "the offset is the mean of 31/32 and 29/30, not 31/32": _scaled(_halves(31 / 32)),
        "the offset is the mean of 31/32 and 29/30, not 29/30": _scaled(_halves(29 / 30)),
        "both halves begin at the mean of 31/32 and 29/30, not at one each": _scaled(
            _halves(31 / 32, 29 / 30)
        ),
        "both halves begin at the mean of 29/30 and 31/32, not at one each": two / two.max(),
    }


def codes(w, codebook, block):
    """Wrong codes of `w`."""
    flat, last = w.flatten(), len(codebook) - 1
    scaled = flat / peaks_of(w, block)[0].clamp_min(1e-30)
    signed = torch.stack([part.max() for part in flat.split(block)]).repeat_interleave(block)
    rows = w.abs().amax(-1, keepdim=True).expand_as(w).flatten().clamp_min(1e-30)
    fixed = nearest(flat / peaks_of(w, 64)[0].clamp_min(1e-30), codebook)
    below = (torch.bucketize(scaled, codebook, right=True) - 1).clamp(0, last)
    above = torch.bucketize(scaled, codebook).clamp(0, last)
    return {
        "one absmax for all of w; take one a block": nearest(flat / w.abs().max(), codebook),
        "rows of w are no blocks; flatten w first": nearest(flat / rows, codebook),
        "the scale is max(), not abs().max()": nearest(flat / signed[: len(flat)], codebook),
        "this is the next code below; the nearest lies on either side": below,
        "this is the next code above; the nearest lies on either side": above,
        "w was not divided by its block's absmax": nearest(flat, codebook),
        "these are blocks of 64; use `block`": fixed,
    }


def packed(codes):
    """Wrong bytes of an even number of codes."""
    first, second, half = codes[::2], codes[1::2], len(codes) // 2
    halves = codes[:half] << 4 | codes[half:]
    return {
        "the first code goes into the high nibble, as in bitsandbytes": first | second << 4,
        "neighbours share a byte, not the two halves of the list": halves,
        "this adds the two; move the first one up by 4 bits": first + second,
        "& keeps the bits that both have, and there are none; join them by |": 0 * first,
    }


def bits(block, double):
    """Wrong numbers of bits a parameter."""
    first, second = 32 / block, 8 / block + 32 / (block * 256)
    scales = second if double else first
    fixed = 8 / 64 + 32 / (64 * 256) if double else 32 / 64
    return ({"this is for blocks of 64; use `block`": 4 + fixed} if block != 64 else {}) | {
        "this is the share of the scales alone; add 4 bits for the code": scales,
        "these are bytes; wanted bits": (4 + scales) / 8,
        "scales are fp32, 32 bits each": 4 + 16 / block * (not double),
        "the 8-bit scales have scales too, 32 bits a block of 256": 4 + 8 / block,
        "the scales of scales are fp32, 32 bits each": 4 + 8 / block + 16 / (block * 256),
        "a second scale serves 256 blocks, not 256 parameters": 4 + 8 / block + 32 / 256,
        "double_quant changes nothing": 4 + first,
        "with double_quant=False the scales stay fp32": 4 + second,
    }


def training_parts(n, t, method):
    """Wrong bytes of weights, gradients and optimizer: n numbers in the base, t that train."""
    two = {"that is 2 bytes each; what trains is kept in fp32, 4 bytes": 2.0}
    moments = {"Adam keeps two moments, 4 bytes each": 4.0, "Adam's moments are fp32": 2.0}
    everyone = "frozen weights have none: multiply by n_trainable"
    base = {"full": 4.0 * n, "lora": 2.0 * n, "qlora": 4.126953 / 8 * n}[method]
    weights = {
        "the adapter's own weights are missing": base,
        "the adapter is fp32, 4 bytes": base + 2 * t,
        "the frozen base rests in 16 bits": 4.0 * (n + t),
    }
    if method == "full":
        weights = {message: value * n for message, value in two.items()} | {
            "without an adapter the weights are all there is, 4 bytes each": 8.0 * n,
            "no 16-bit copy beside the fp32 weights in this table": 6.0 * n,
        }
    elif method == "qlora":
        weights |= {
            "these are bits; 8 make a byte": 8 * base + 4 * t,
            "4 bits a parameter and nothing for the scales": n / 2 + 4 * t,
            "4.5 bits a parameter; with double quantization it is 4.127": 4.5 / 8 * n + 4 * t,
            "4 bits a parameter, and neither scales nor adapter": n / 2,
            "the 8-bit scales have scales too, which makes 4.127 bits": 4.125 / 8 * n + 4 * t,
            "the base is 4-bit here, not 16-bit": 2.0 * n + 4 * t,
        }
    return {
        "weights": weights,
        "gradients": {k: v * t for k, v in two.items()} | {everyone: 4.0 * n},
        "optimizer": {k: v * t for k, v in moments.items()} | {everyone: 8.0 * n},
    }
