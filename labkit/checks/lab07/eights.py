"""What exercise 7.4 expects of `q8_0`: the bytes of `gguf.quants`."""

import torch

from labkit.checks.compare import ask, expect_shape, likeliest, randn
from labkit.checks.lab07.coded import BLOCK, SLABS, away, bytes_of, guesses, larger, slabs
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab07 import probes

Q8 = {
    "invalid for input of size": "blocks have 32 weights each: w.reshape(-1, 32)",
    "must match the size": "one scale a block, 32 codes: scales[:, None] beside the codes",
    "numpy() on a": "work with torch alone",
}


def matrices(rng):
    """`{what w is: w}`, those that show a mistake by its name."""
    wide = randn(4, 64, rng=rng) * (10.0 ** torch.arange(-2, 2))[:, None]
    tie = torch.arange(-32, 32).reshape(2, 32) / 1.0
    tie = tie + 0.5 * (torch.arange(32) % 2 == 0)
    tie[:, 5] = 127.0  # so the scale is 1 and a half is a tie
    tie[:, 9] = torch.tensor([1, -1]) * (0.5 - 2**-11)  # just not halfway, in fp16 too
    tie[:, 20], tie[:, 22] = torch.tensor([100.5, -100.5]), torch.tensor([-34.5, 34.5])
    empty = randn(3, 32, rng=rng)
    empty[1] = 0
    low = -randn(2, 64, rng=rng).abs()
    low[:, 7] = -9.0
    return {
        "a matrix": randn(6, 96, rng=rng) * 0.02,
        "rows of very different size": wide,
        "a matrix with a block of zeros": empty,
        "blocks whose largest weight is negative": low,
        "a block whose scale is 1, weights halfway between two codes": tie,
        "tiny weights, whose scale loses digits in fp16": randn(3, 64, rng=rng) * 1e-4,
        "tiny weights, whose scale is hardly more than 0": randn(2, 64, rng=rng) * 2e-5,
        "a matrix in bf16": randn(4, 64, rng=rng).bfloat16(),
    }


def expect_q8(q8_0, rng):
    """Shapes, dtypes, scales and codes of each matrix."""
    cases = list(matrices(rng).items())
    with part():
        _expect_form(q8_0, *cases[0])
    if not sound():
        return
    with part(), likeliest() as case:
        for what, w in cases:
            with case():
                _expect_scales(q8_0, what, w)
    with part(), likeliest() as case:
        for what, w in cases:
            with case():
                _expect_codes(q8_0, what, w)


def _pair(q8_0, what, w):
    call = f"q8_0 of {what}"
    return call, ask(call, probes.blocks, q8_0, w, hint=Q8)


def _expect_form(q8_0, what, w):
    call, got = _pair(q8_0, what, w)
    (scales, codes), n = got["pair"], w.numel() // BLOCK
    turned = tuple(scales.shape) == (n, BLOCK)
    expect(not turned, f"{call}: the pair is turned round, return (scales, codes)")
    if scales.shape == (n, 1):
        raise CheckFailed(f"{call}: scales have shape ({n}, 1), wanted ({n},): one number a block")
    if scales.dim() > 1 and scales.numel() == n:
        told = f"{call}: scales have shape {tuple(scales.shape)}, wanted ({n},)"
        raise CheckFailed(f"{told}: block after block in one axis")
    told = f"{call}: {scales.numel()} scales for {w.numel()} weights"
    expect(scales.numel() == n, f"{told}, wanted {n}: one for each 32 neighbours")
    expect_shape(scales, torch.Size([n]), f"scales of {call}")
    if codes.numel() == n * BLOCK and codes.shape != (n, BLOCK):
        told = f"{call}: codes have shape {tuple(codes.shape)}, wanted ({n}, {BLOCK})"
        raise CheckFailed(f"{told}: a row a block")
    expect_shape(codes, torch.Size([n, BLOCK]), f"codes of {call}")
    kinds = dict(zip(("scales", "codes"), got["kinds"], strict=True))
    with part():
        hint = "a file has two bytes for each"
        told = f"{call}: scales are in {kinds['scales']}, wanted float16"
        expect(kinds["scales"] == "float16", f"{told}; {hint}")
    with part():
        told = f"{call}: codes are {kinds['codes']}, wanted int8"
        expect(kinds["codes"] == "int8", f"{told}; round, and then convert")


def _expect_scales(q8_0, what, w):
    call, got = _pair(q8_0, what, w)
    scales, (wanted, codes) = got["pair"][0], bytes_of(w)
    if torch.equal(scales, wanted):
        return
    expect(torch.isfinite(scales.float()).all(), f"{call}: scales hold NaN or infinity")
    blocks = w.float().reshape(-1, BLOCK)
    top = blocks.abs().amax(1)
    known = _scale_guesses(w, blocks, top)
    zeros = top == 0
    if bool((scales[zeros] != 0).any()):
        told = f"a block of zeros has scale {scales[zeros][0].item():.3g}, wanted 0"
        low = "a least scale (clamp, eps) or another stand-in for 0 is stored"
        hint = "divide where the scale is not 0, and store it as it is"
        raise CheckFailed(f"{call}: {told}: {low}; {hint}")
    rounded = (w.half().float().reshape(-1, BLOCK).abs().amax(1) / 127).half()
    told = "the weights themselves are rounded to fp16; compute in fp32, and round scales last"
    if torch.equal(got["pair"][1], codes):
        told = "the scale is computed in fp16; divide in fp32, and round it last"
    expect(not torch.equal(scales, rounded) or w.dtype != torch.float32, f"{call}: {told}")
    named = "tiny" not in what  # there fp16 has few digits, and many things look alike
    for message, guess in known.items():
        if named and _near(scales, guess):
            raise CheckFailed(f"{call}: {message}")
    if torch.equal(scales.sort().values, wanted.sort().values):
        raise CheckFailed(f"{call}: these are the right scales, in another order than the blocks")
    at = int((scales.double() - wanted.double()).abs().argmax())
    told = f"scale {at} is {scales[at].item():.6g}, wanted {wanted[at].item():.6g}"
    told += f": a 127th of {top[at].item():.4g}, the largest size in its block"
    low = "the weights themselves are divided in bf16; convert them first, w.float()"
    expect(w.dtype != torch.bfloat16 or not _in_own_dtype(scales, w), f"{call}: {low}")
    ratios = (scales.double() / wanted.double())[wanted > 0]
    near = named and _near(scales, wanted.float())
    even = len(ratios) and (ratios - ratios[0]).abs().max() < 2e-3 * ratios[0].abs()
    if named and not near and even:
        factor = ratios.mean().item()
        told = f"each scale is {factor:.4g} times the wanted: the largest size over "
        told += f"{127 / factor:.4g}, wanted over 127"
    hint = "right but for rounding: divide in fp32, and round to fp16 once" if near else ""
    raise CheckFailed(f"{call}: {told}{'; ' * bool(hint)}{hint}", bare=not near)


def _as_int8(guess, codes):
    """Whether whole numbers are these codes, where too large ones wrap or are cut off."""
    return any(torch.equal(codes, g.to(torch.int8)) for g in (guess, guess.clamp(-128, 127)))


def _in_own_dtype(scales, w):
    return torch.equal(scales, (w.reshape(-1, BLOCK).abs().amax(1) / 127).half())


def _scale_guesses(w, blocks, top):
    """`{message: scales}`, the likeliest first."""
    rows = w.float().abs().amax(1).repeat_interleave(w.shape[1] // BLOCK)
    signed = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))[:, 0] / 127
    return {
        "that is the largest size itself; the scale is a 127th of it": top,
        "divided by 128: the codes go from -127 to 127": top / 128,
        "divided by 127.5: the codes go from -127 to 127": top / 127.5,
        "divided by 255, as for codes from 0 to 255": top / 255,
        "the inverse is returned: a code times its scale is the weight": 127 / top,
        "max() without abs(): the largest weight may be a negative one": blocks.amax(1) / 127,
        "it takes the largest of each row of w: each block of 32 has its own": rows / 127,
        "it takes the largest of the whole matrix: each block of 32 has its own": (
            torch.full_like(top, w.float().abs().max().item()) / 127
        ),
        "reshape(32, -1) makes 32 rows: a block is 32 neighbours, reshape(-1, 32)": (
            w.float().reshape(BLOCK, -1).abs().amax(0) / 127
        ),
        "that is the mean of the sizes; the scale comes from the largest": (
            blocks.abs().mean(1) / 127
        ),
        "that is the norm of a block; the scale comes from its largest": blocks.norm(dim=1) / 127,
        "that is the range, largest minus smallest; the grid has a 0 in its middle": (
            (blocks.amax(1) - blocks.amin(1)) / 255
        ),
        SLABS: slabs(blocks, w).abs().amax(1) / 127,
        "blocks run down the columns: a block is 32 neighbours of one row": (
            w.float().T.reshape(-1, BLOCK).abs().amax(1) / 127
        ),
        "the mean of a block is taken off first: a code times its scale is the weight itself": (
            (blocks - blocks.mean(1, keepdim=True)).abs().amax(1) / 127
        ),
        "the scale keeps the sign of the largest weight: take its size": signed,
        "the scale has the sign of the largest weight, turned round as in Q4_0: in Q8_0 it is a "
        "size": -signed,
    }


def _near(scales, guess, tol=2e-3):
    guess = guess.half().float()
    if not torch.isfinite(guess).all():
        return False
    return bool(((scales.float() - guess).abs() <= tol * guess.abs() + 1e-7).all())


def _expect_codes(q8_0, what, w):
    call, got = _pair(q8_0, what, w)
    codes, (scales, wanted) = got["pair"][1], bytes_of(w)
    blocks = w.float().reshape(-1, BLOCK)
    fine = blocks.abs().amax(1, keepdim=True) / 127
    exact = torch.where(fine > 0, blocks / fine, 0.0)
    tied = "halfway" in what
    almost = ((exact.double().abs() % 1) - 0.5).abs() < 1e-4  # where 1 / d and d may part
    off = (codes != wanted) & (tied | ~almost)
    if not off.any():
        return
    rough = torch.where(fine > 0, blocks / scales.float()[:, None], 0.0)
    known = guesses(w, wanted, exact, fine, away(rough), tied)
    several = int((codes != wanted).sum()) > 1  # one code is soon explained by accident
    for message, guess in known.items():
        if several and guess is not None and _as_int8(guess, codes):
            raise CheckFailed(f"{call}: {message}")
    expect(not (told := larger(codes, blocks, fine)), f"{call}: {told}")
    inside = torch.equal(codes.sort(1).values, wanted.sort(1).values)
    if inside or torch.equal(codes.flatten().sort().values, wanted.flatten().sort().values):
        raise CheckFailed(f"{call}: these are the right codes, in another order than the weights")
    row, column = (int(i) for i in off.nonzero()[0])
    told = f"code {column} of block {row} is {int(codes[row, column])}"
    weight = f"a weight of {exact[row, column].item():.4g} scales"
    zero = bool((blocks[row] == 0).all())
    hint = "; 0 / 0 is no number: a block of zeros has codes 0" if zero else ""
    told = f"{call}: {told}, wanted {int(wanted[row, column])} for {weight}{hint}"
    beside = bool(((codes - exact).abs() < 1).all())  # rounded by another rule, or by chance
    told += "; each code lies beside its weight, and not always at the nearest" * beside
    raise CheckFailed(told, bare=not zero)
