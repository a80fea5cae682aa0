"""What exercise 4.3 expects of quantize_blockwise and dequantize_blockwise."""

import torch
import torch.nn.functional as F

from labkit import contract
from labkit.checks.compare import expect_related, randn
from labkit.checks.lab04 import changes, guesses, small
from labkit.checks.lab04.bnb import codebook, stored_codes
from labkit.checks.lab04.guesses import peaks_of
from labkit.checks.lab04.whole import GUARD, blaming, expect_integers, holds, wrong_counts
from labkit.checks.laws import laws
from labkit.checks.relations import relation
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab04 import probes

CASES = [((6, 64), None), ((3, 100), None), ((7,), None), ((5, 27), 32)]
BEGIN = "blocks begin at"
LOOP = "it loops over the blocks in Python; a small model has 1.7 million: one step for all"


def expect_blockwise(quantize_blockwise, dequantize_blockwise, rng):
    """Both ways apart, so that one does not hide the other; then both together, and the work."""
    nf4, odd = codebook().float(), torch.tensor([-1, -0.3, 0, 0.1, 0.45, 1])
    cases = []
    for shape, block in CASES:
        w = randn(*shape, rng=rng)
        w *= 1 + 20 * torch.rand(shape[0], *[1] * (w.dim() - 1), generator=rng)
        cases.append((w, nf4 if block is None else odd, block))
    tiny = randn(8, 64, rng=rng) * 2.5e-7
    codes, peaks = (laws(*changes.blocks(quantize_blockwise, nf4, k)) for k in (0, 1))
    with part(), simplest(small.blocks(quantize_blockwise)), peaks, codes:
        _expect_quantized(quantize_blockwise, cases, tiny, nf4, 0.01 * randn(64, 64, rng=rng))
    with part():
        _expect_zeros(quantize_blockwise, nf4)
    with part(), simplest(small.restored(dequantize_blockwise)):
        for w, book, block in cases:
            _expect_restored(dequantize_blockwise, w, book, block)
        _expect_zeros_back(dequantize_blockwise, nf4)
    if not contract.session.faults:  # else it would say the same again
        for w, book, block in cases:
            _expect_round_trip(quantize_blockwise, dequantize_blockwise, w, book, block)
    with part():
        few, many = observe(probes.work_to_quantize, quantize_blockwise, nf4)
        expect(many - few < 3 * probes.MORE_BLOCKS, f"quantize_blockwise: {LOOP}")
    with part():
        few, many = observe(probes.work_to_dequantize, dequantize_blockwise, nf4)
        expect(many - few < 3 * probes.MORE_BLOCKS, f"dequantize_blockwise: {LOOP}")


def _expect_quantized(quantize_blockwise, cases, tiny, nf4, wide):
    for w, book, block in cases:
        call = f"quantize_blockwise of w {tuple(w.shape)}" + (f", block={block}" if block else "")
        codes, _ = _expect_blocks(quantize_blockwise, w, book, block, call)
        if block is None:
            _expect_same_codes(codes, w, book, call)
    call = "quantize_blockwise of w (8, 64)"
    with blaming(f"w holds {GUARD}"):
        for w in (tiny, tiny / 10):  # these are still larger than a guard of 1e-8
            _expect_blocks(quantize_blockwise, w, nf4, None, call, tol=5e-2)
    few = 1e5 * tiny.flatten()[:70]  # less than the ones that some pad with
    _expect_blocks(quantize_blockwise, few, nf4, None, "quantize_blockwise of w (70,)")
    w, call = wide.bfloat16(), "quantize_blockwise of w (64, 64)"  # many lie beside a midpoint
    with blaming("w is in bfloat16 here; compute in fp32: w.float(), and the codebook as it comes"):
        peaks = _expect_blocks(quantize_blockwise, w, nf4, None, call)[1]
        expect(peaks.dtype != torch.bfloat16, f"absmax of {call} is in bfloat16")


def _expect_blocks(quantize_blockwise, w, book, block, call, tol=1e-5):
    """Codes and absmax of `w`, which are right, and `w` stays."""
    with blaming(_ragged(w, block or 64)):
        codes, peaks = observe(probes.blockwise, quantize_blockwise, w, book, block)
    _expect_no_rows(peaks, w, block or 64, call)
    codes = _expect_indices(codes, w, book, block or 64, call)
    _expect_peaks(peaks, w.float(), block or 64, call)
    _expect_nearest(codes, w.float(), book, block or 64, call, tol)
    return codes, peaks


def _ragged(w, block):
    n, rest = w.numel(), w.numel() % block
    told = f"these are {n} numbers, and the last block has {rest} of them, not {block}"
    told += ": blocks run on from row to row" if w.dim() > 1 else ""
    return told if rest else ""


def _expect_no_rows(peaks, w, block, call):
    """There are not the blocks that one gets who cuts each row for itself."""
    if w.dim() < 2 or not isinstance(peaks, torch.Tensor):
        return
    n = -(-w.numel() // block)
    rows = w.numel() // w.shape[-1] * -(-w.shape[-1] // block)
    told = f"absmax of {call} {holds(peaks, n)}"
    hint = "blocks begin anew in each row: flatten first"
    expect(peaks.numel() != rows or rows == n, f"{told}: {hint}")
    hint = f"one a row? Blocks are {block} neighbours each: flatten first"
    expect(peaks.numel() != len(w) or len(w) == n, f"{told}: {hint}")


def _expect_indices(codes, w, book, block, call):
    """An index of the codebook for each number of `w`, flat."""
    hint = f"codes come first, and are indices into the {len(book)} values of `codebook`"
    told = f"codes of {call}"
    if isinstance(codes, torch.Tensor) and codes.is_floating_point() and codes.numel() == w.numel():
        values = (codes.flatten()[:, None] - book).abs().amin(1).max() < 1e-5
        hint = f"wanted are their places in it, 0 to {len(book) - 1}"
        expect(not values, f"{told} are values of the codebook; {hint}")
    counts = wrong_counts(w.numel(), block, 64)[0]
    return expect_integers(codes, w.numel(), told, 0, len(book) - 1, hint, "uint8", counts)


def _expect_nearest(codes, w, book, block, call, tol):
    each, _ = peaks_of(w, block)
    scaled = w.flatten() / each
    gap = (scaled[:, None] - book).abs()
    off = gap.gather(1, codes[:, None])[:, 0] - gap.amin(1) > tol  # at a midpoint both will do
    for message, guess in guesses.codes(w, book, block).items():
        if off.any() and torch.equal(codes, guess):
            raise CheckFailed(f"codes of {call}: {message}")
    low = (scaled[:, None] - book.bfloat16().float()).abs()
    cast = (low.gather(1, codes[:, None])[:, 0] - low.amin(1) <= tol).all()
    hint = "these are nearest to the codebook rounded to bfloat16: leave it as it comes"
    expect(not (off.any() and cast), f"codes of {call}: {hint}")
    told = f"{int(off.sum())} of {len(off)} codes of {call} are not the nearest"
    if off.any():
        found = relation(codes, gap.argmin(1))
        raise CheckFailed(f"{told}: {found}" if found else told, bare=not found)


def _expect_peaks(peaks, w, block, call):
    wanted, parts = peaks_of(w, block)[1], w.flatten().split(block)
    expect(isinstance(peaks, torch.Tensor), f"absmax of {call} is no tensor")
    n = peaks.numel()
    told = f"absmax of {call} {holds(peaks, len(wanted))}: one a block of {block}"
    hint = wrong_counts(w.numel(), block, 64)[1].get(n, "")
    expect(n == len(wanted), told, hint=hint)
    wrong = {
        "upside down: it is 1 / absmax": 1 / wanted,
        "absmax is divided by 7, a scale of even steps: return absmax itself": wanted / 7,
        "absmax is divided by 127, a scale of even steps: return absmax itself": wanted / 127,
        guesses.SIGNED: torch.stack([p.max() for p in parts]),
        "these are means; absmax is the largest": torch.stack([p.abs().mean() for p in parts]),
        "these are lengths; absmax is the largest": torch.stack([p.norm() for p in parts]),
        "these are root mean squares; absmax is the largest": torch.stack(
            [p.square().mean().sqrt() for p in parts]
        ),
        "these are standard deviations; absmax is the largest": torch.stack(
            [p.std() for p in parts]
        ),
        "one absmax for all of w; take one a block": w.abs().max().expand(len(wanted)),
        "it has the sign of the largest number; absmax is its size": torch.stack(
            [p[p.abs().argmax()] for p in parts]
        ),
        f"{BEGIN} 0, {block}, {2 * block}, …: pad behind the numbers, make no equal shares": (
            peaks_of(F.pad(w.flatten(), (-w.numel() % block, 0)), block)[1]
        ),
    }
    shares = torch.stack([p.abs().max() for p in w.flatten().tensor_split(len(wanted))])
    wrong[f"{BEGIN} 0, {block}, {2 * block}, …: make no equal shares"] = shares
    last = peaks.flatten()[-1:].to(wanted)
    if w.numel() % block and last > 2 * wanted[-1:]:
        told = "the padding decides the last block's absmax: pad with zeros"
        wrong[told] = torch.cat([wanted[:-1], last])
    if w.dim() == 2:
        wrong["w is read by columns: flatten it as it is"] = peaks_of(w.T, block)[1]
    if w.numel() % block == 0:
        far = w.flatten().view(block, -1).abs().amax(0)
        wrong["a block is a row of neighbours: view(-1, block)"] = far
    expect_related(peaks.flatten(), wanted, f"absmax of {call}", wrong)


def _expect_same_codes(codes, w, book, call):
    """The codes of bitsandbytes; where two codes are equally near, either will do."""
    theirs, _ = stored_codes(w)
    scaled = w.flatten() / peaks_of(w, 64)[0]
    further = (scaled - book[codes]).abs() - (scaled - book[theirs]).abs() > 1e-5
    n = int((further & (codes != theirs)).sum())
    expect(n == 0, f"{n} codes of {call} differ from those of bitsandbytes")


def _expect_zeros(quantize_blockwise, nf4):
    """A block of zeros before one of threes has absmax 0, and no NaN decides on its codes.

    These may be any, for 0 times each is 0. Where even the threes come out wrong, the zeros say
    nothing that was not said before.
    """
    codes, peaks, lost = observe(probes.zeros_before_threes, quantize_blockwise, nf4)
    if not all(isinstance(x, torch.Tensor) for x in (codes, peaks)) or codes.numel() != 128:
        return
    codes, peaks = codes.flatten(), peaks.flatten()
    with part():
        met = (codes[64:] != 15).any() or (codes[:64] == 7).all() or not lost
        told = (
            f"a block of zeros: 0 / 0 is NaN, which no code is nearest to, and {codes[0]} is luck"
        )
        expect(met, f"{told}; its absmax is 0: don't divide by it")
    if len(peaks) == 2 and abs(peaks[1] - 3) < 1e-3:
        first = peaks[0].item()
        told = f"the absmax of a block of zeros comes back as {first:g}, and it is 0"
        other = abs(first - 3) < 1e-3  # no guard: these blocks are not the right ones
        expect(other or first == 0, f"{told}; guard the division, not what you return")


def _stored(w, book, block):
    """Codes of `w`, bitsandbytes' own where the block is the usual one."""
    if block is None:
        return stored_codes(w)[0]
    return guesses.nearest(w.flatten() / peaks_of(w, block)[0], book)


def _expect_restored(dequantize_blockwise, w, book, block):
    codes, size = _stored(w, book, block), block or 64
    each, peaks = peaks_of(w, size)
    shape = tuple(w.shape)
    call = f"dequantize_blockwise to {shape}" + (f", block={block}" if block else "")
    with blaming(_ragged(w, size)):
        args = (codes, peaks, book, shape, block)
        got = observe(probes.dequantized, dequantize_blockwise, *args)
    wrong = guesses.restored(codes, peaks, book, shape, size)
    wanted = (book[codes] * each).view(shape)
    wrong["these are even steps of the code; look it up, codebook[code]"] = _even_steps(
        got, codes, each
    ).view(shape)
    expect_related(got, wanted, call, wrong)


def _even_steps(got, codes, each):
    """The line over the codes that is nearest to `got` without the absmax, times the absmax."""
    if not isinstance(got, torch.Tensor) or got.numel() != codes.numel():
        return torch.zeros_like(each)
    line = torch.stack([codes.double(), torch.ones(len(codes)).double()], 1)
    scaled = got.flatten().double() / each.double()
    return (line @ torch.linalg.pinv(line) @ scaled * each).to(each.dtype)


def _expect_zeros_back(dequantize_blockwise, nf4):
    """Codes of zeros and an absmax of 0 give zeros, and no NaN."""
    codes, peaks = torch.full((64,), 7), torch.zeros(1)
    back = observe(probes.dequantized, dequantize_blockwise, codes, peaks, nf4, (64,))
    expect(
        not back.isnan().any(), "a block of zeros gives NaN; its absmax is 0: don't divide by it"
    )
    expect(not back.any(), "a block of zeros does not come back as zeros")


def _expect_round_trip(quantize_blockwise, dequantize_blockwise, w, book, block):
    codes = _stored(w, book, block)
    wanted = (book[codes] * peaks_of(w, block or 64)[0]).view(w.shape)
    args = (quantize_blockwise, dequantize_blockwise, w, book, block)
    back = observe(probes.blockwise_round_trip, *args)
    call = f"w {tuple(w.shape)} quantized and dequantized"
    expect_related(back, wanted, call, tol=1e-3)
