"""Blocks and codes for exercise 7.4: those of `gguf.quants`, and those of mistaken rules."""

import gguf
import torch

BLOCK = 32
SLABS = "all rows' first blocks come first: a row's blocks stand together, w.reshape(-1, 32)"
HALVES = "a half goes towards 0; it goes away from it: is the scale made larger by something?"


def slabs(blocks, w):
    """The blocks of w in another order: the first of all rows, then the second."""
    return blocks.reshape(len(w), -1, BLOCK).transpose(0, 1).reshape(-1, BLOCK)


def bytes_of(w):
    """(scales fp16 (n,), codes int8 (n, 32)) as gguf's own quantisation writes them."""
    data = gguf.quants.quantize(w.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    blocks = torch.from_numpy(data.copy()).reshape(-1, 2 + BLOCK)
    return blocks[:, :2].contiguous().view(torch.float16)[:, 0], blocks[:, 2:].view(torch.int8)


def guesses(w, wanted, exact, fine, rough, tied):
    """`{message: codes}`, the likeliest first; `exact` are not rounded yet, `rough` of fp16."""
    blocks = w.float().reshape(-1, BLOCK)
    return {
        "codes are those of the scale that fp16 has rounded: divide by it before it is": (
            rough if not torch.equal(rough, wanted.float()) else None
        ),
        "torch.round takes a half to the even neighbour; GGUF takes it away from 0, as C does": (
            exact.round()
        ),
        **_nudged(exact),
        "half a code too far on the negative side: floor(x + 0.5) goes up there": (
            (exact + 0.5).floor()
        ),
        HALVES if tied else "it cuts the fraction off: round": exact.trunc(),
        "it rounds away from 0, whatever the fraction: round to the nearest": (
            exact.sign() * exact.abs().ceil()
        ),
        "it rounds down: round to the nearest": exact.floor(),
        "it rounds up: round to the nearest": exact.ceil(),
        "the codes are those of a scale over 128": away(exact * 128 / 127).clamp(-128, 127),
        "the codes begin at 0: int8 has a sign, and 0 is 0": away(exact) + 128,
        "codes carry the sign of the largest weight": -wanted.float(),
        "negative weights have code 0 here: int8 has a sign": wanted.float().clamp(min=0),
        "the sign is lost: a negative weight has a negative code": wanted.float().abs(),
        "127 is a code, too: clamp nothing, or from -127 to 127": wanted.float().clamp(-128, 126),
        "int(x + 0.5) rounds positive numbers alone: below 0 it takes half a code too much": (
            (exact + 0.5).trunc()
        ),
        "ceil of |x| + 0.5 is one too far from 0: floor": exact.sign() * (exact.abs() + 0.5).ceil(),
        **_clamped(blocks, fine),
        "a code is its weight *divided* by the scale, and no weight again": away(blocks * fine),
        "these are weights over the largest, from -1 to 1: a code has 127 times that": (
            away(exact / 127)
        ),
        "codes of all blocks have one scale: each block of 32 has its own": (
            away(blocks / blocks.abs().max() * 127)
        ),
        SLABS: slabs(wanted.float(), w),
        "codes are in the order of columns: a block is 32 neighbours of one row": (
            bytes_of(w.float().T.contiguous())[1].float() if w.shape[0] % BLOCK == 0 else None
        ),
    }


def _nudged(exact):
    right = "sign(x) * floor(|x| + 0.5)"
    told = {1e-6: f"a nudge before rounding is lost beside a large code: {right}"}
    for size in (1e-5, 1e-4, 1e-3, 1e-2):
        told[size] = f"a nudge of {size:g} or so takes up what is just below a half, too: {right}"
    return {text: (exact + size * exact.sign()).round() for size, text in told.items()}


def larger(codes, blocks, scales):
    """What to say of codes that are right for a larger scale in each block that is off; or "".

    A code tells between which scales its block's lies: half a code more, half a code less.
    """
    sizes, whole = blocks.abs(), codes.float().abs()
    low = (sizes / (whole + 0.5)).amax(1)
    high = torch.where(whole > 0, sizes / (whole - 0.5), torch.inf).amin(1)
    known = ((codes.sign() == blocks.sign()) | (codes == 0)).all(1) & (low <= high * (1 + 1e-6))
    off = (codes != away(torch.where(scales > 0, blocks / scales, 0.0))).any(1)
    told = off & (whole > 0).any(1)
    if not (known[off].all() and (low[off] > 1.01 * scales[off, 0]).all() and told.any()):
        return ""
    at = int(told.nonzero()[0])
    sizes = " to ".join(dict.fromkeys(f"{edge:.3g}" for edge in (low[at], high[at])))
    made = f"the codes of block {at} are made with a larger scale, {sizes}"
    least = (
        low[off].max() <= high[off].min()
        and (scales[~off & (scales[:, 0] > 0), 0] >= low[off].max()).all()
    )
    hint = ": is there a smallest one (clamp, eps)?" if least else ""
    return f"{made} in the place of {scales[at, 0]:.3g}{hint}"


def _clamped(blocks, fine):
    told = "the scale is kept above {:.0g} here, and smaller ones exist: divide where it is not 0"
    lows = [low for low in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8) if low > fine.max()]
    return {told.format(low): away(blocks / low) for low in lows}


def away(x):
    """Rounded to the nearest, halves away from 0."""
    return x.sign() * (x.abs() + 0.5).floor()
