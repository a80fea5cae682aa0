"""What a matrix merged from 4 bits was made of: named by a table, else by taking it apart."""

import torch

from labkit.checks.lab06.guesses import MISSING, merged

BLOCK = 64
EVENLY = f"the numbers are not shared out evenly: each run has {BLOCK}, the last may be shorter"


def nearest(blocks, absmax, codebook):
    """The codes (uint8) whose values lie nearest to numbers in rows that share an absmax."""
    return (blocks[..., None] / absmax[:, None, None] - codebook).abs().argmin(-1).byte()


def quantized(W4, absmax, codebook, update, shape, r, alpha):
    """Wrong versions of the dequantised matrix plus `update`."""
    n, values = len(W4), codebook[W4.long()]
    scales = spread(absmax, n)
    base = (values * scales).reshape(shape)
    by_column = (values * scales).reshape(shape[1], shape[0]).T
    tiled = (values * absmax.repeat(BLOCK)[:n]).reshape(shape)
    known = merged(base, update, alpha, r)
    known["the update is missing, or was rounded away with the codes"] = known.pop(MISSING)
    return known | {
        **requantized(base + update, absmax, codebook),
        **_rounded(base, update),
        **_read_otherwise(W4, codebook, scales, update),
        **_of_rounded(values, scales, codebook.bfloat16().float()[W4.long()], update),
        **_twice_or_turned(base, values * scales**2, update),
        "absmax is added; a weight is its value times absmax": (values + scales).reshape(shape)
        + update,
        "absmax divides; a weight is its value times absmax": (values / scales).reshape(shape)
        + update,
        "one absmax is used for all blocks (the mean): each has its own": values.reshape(shape)
        * absmax.mean()
        + update,
        "one absmax is used for all blocks (the largest): each has its own": values.reshape(shape)
        * absmax.max()
        + update,
        **_spread_evenly(W4, scales, update),
        "the sum is held within absmax, which bounds the dequantised weights alone": (
            (base + update).clamp(*(sign * scales.reshape(shape) for sign in (-1, 1)))
        ),
        "absmax scales the update too": ((values + update.flatten()) * scales).reshape(shape),
        "absmax is missing: codebook values lie in [-1, 1]": values.reshape(shape) + update,
        "the codes are taken for numbers; look them up in codebook": (W4 * scales).reshape(shape)
        + update,
        "absmax belongs to blocks of 64 neighbours: repeat_interleave, not repeat": tiled + update,
        **{
            f"{EVENLY}{' ' * up}": (values * _even(absmax, n, up)).reshape(shape) + update
            for up in (0, 1)
        },
        "the numbers are laid out by columns; W is stored row by row": by_column + update,
    }


def _spread_evenly(W4, scales, update):
    """Codes taken for even steps from -1 to 1."""
    steps = {"": (W4 - 8.0) / 8, " from -1 to 1": W4 / 7.5 - 1}
    return {
        f"the codes are spread evenly{told}: look them up in codebook": (
            (value * scales).reshape(update.shape) + update
        )
        for told, value in steps.items()
    }


def _even(absmax, n, up):
    """The scales of n weights in runs of n // len(absmax) + up, 0 behind them."""
    each = absmax.repeat_interleave(n // len(absmax) + up)
    return torch.nn.functional.pad(each, (0, n - len(each)))


def _twice_or_turned(base, squared, update):
    """absmax twice, and the update in another layout."""
    return {
        "absmax comes twice; a weight is its value times it": squared.reshape(base.shape) + update,
        "the update multiplies the weights; add it": base * (1 + update),
        "the update is laid out by columns; it is alpha / r * B @ A, as it comes": base
        + update.T.flatten().reshape(base.shape),
    }


def _read_otherwise(W4, codebook, scales, update):
    """Another entry of the codebook than that of the code."""
    codes = W4.long()
    return {
        told: (codebook[other] * scales).reshape(update.shape) + update
        for told, other in {
            "codes begin at 0: code 0 is codebook[0], and nothing is taken off": codes - 1,
            "the codebook is read from its end: code 0 is its first value": len(codebook)
            - 1
            - codes,
        }.items()
    }


def _of_rounded(values, scales, low, update):
    """The codebook, whose values are then `low`, or absmax in 16 bits."""
    return {
        "the codebook is rounded to 16 bits first; stay in fp32": (
            (low * scales).reshape(update.shape) + update
        ),
        "absmax is rounded to 16 bits first; stay in fp32": (
            (values * scales.bfloat16().float()).reshape(update.shape) + update
        ),
    }


def _rounded(base, update):
    """The sum, or what is added, in 16 bits."""
    sixteen = "are rounded to 16 bits before the sum; stay in fp32"
    return {
        "the sum is rounded to bf16; add in fp32 and stay there": (base + update).bfloat16(),
        "the sum is rounded to fp16; add in fp32 and stay there": (base + update).half(),
        f"the dequantised weights {sixteen}": base.bfloat16() + update,
        f"the numbers of the update {sixteen}": base + update.bfloat16(),
        f"the numbers of the update {sixteen} (fp16)": base + update.half(),
        f"the update and the weights {sixteen}, as the sum does": (
            base.bfloat16() + update.bfloat16()
        ),
        f"the update and the weights {sixteen}, as the sum does (fp16)": (
            base.half() + update.half()
        ),
        f"the update and the weights {sixteen}": base.bfloat16().float() + update.bfloat16(),
        "the dequantised weights are rounded to fp16 before the sum; stay in fp32": base.half()
        + update,
    }


def requantized(total, absmax, codebook):
    """The sum rounded to the grid once more, with the old absmax and with a new one."""
    n = total.numel()
    blocks = torch.nn.functional.pad(total.flatten(), (0, -n % BLOCK)).reshape(-1, BLOCK)

    def rounded(scale):
        values = codebook[nearest(blocks, scale, codebook).long()] * scale[:, None]
        return values.flatten()[:n].reshape(total.shape)

    return {
        "the sum was quantised again, and the update is lost": rounded(absmax),
        "the sum was quantised again, with a new absmax": rounded(blocks.abs().amax(1)),
    }


def apart(got, W4, absmax, codebook, update, shape, factor):
    """What is wrong with `got`, by what its parts are: a message, or None where none is found.

    Weights over their scales are values of a code; weights over their values are scales. `factor`
    is alpha / r: the update may be there without it, or be missing.
    """
    values, scales = codebook[W4.long()].double(), spread(absmax.double(), len(W4))
    base = (values * scales).reshape(shape)
    off = got.double() - base
    told = _of_the_update(off, update.double()) if off.norm() < 10 * update.norm() else None
    if told:
        return told
    for added in (update, 0 * update, update / factor):
        rest = (got.double() - added).flatten()
        told = _lost(rest, values * scales) or _taken(rest, values, absmax)
        told = told or _read(rest / scales, W4, codebook)
        if told:
            return told
    return None


def spread(absmax, n):
    """The absmax of each of n weights."""
    return absmax.repeat_interleave(BLOCK)[:n]


def _of_the_update(off, update):
    """The dequantised weights are right: how often the update is in it, if it is at all."""
    times = ((off * update).sum() / update.square().sum()).item()
    if (off - times * update).norm() < 0.02 * update.norm() and abs(times - 1) > 0.02:
        return f"the update is in it {times:.3g} times: add alpha / r * B @ A once"
    if (off - update).norm() > 0.2 * update.norm() and off.norm() < 2 * update.norm():
        return "the dequantised weights are right, the update is not: alpha / r * B @ A"
    return None


def _lost(rest, base):
    """Weights that stayed 0 while the others are right."""
    lost = (rest.abs() < 1e-6) & (base.abs() > 1e-6)
    right = (rest - base).abs() < 1e-4
    if not lost.any() or not (lost | right).all():
        return None
    first, last = (int(lost.nonzero()[k]) for k in (0, -1))
    told = f"of {len(rest)} weights those from {first} to {last} are 0"
    short = "the last run is shorter, and has its entry of absmax too"
    return f"{told}: {short if last == len(rest) - 1 else 'each has its code'}"


def _taken(rest, values, absmax):
    """Each weight has some entry of absmax, and not that of its run."""
    run, clear = torch.arange(len(rest)) // BLOCK, values.abs() > 0.02
    near = ((rest / values)[:, None] - absmax.double()).abs().min(1)
    if (near.values[clear] > 1e-3 * absmax.min()).double().mean() > 0.1:
        return _scaled(rest / values, run, clear, absmax)
    moved = (clear & (near.indices != run)).nonzero().flatten().tolist()
    if not moved:
        return None
    k = moved[0]
    told = f"weight {k} of the flat W4 takes absmax[{near.indices[k]}], wanted absmax[{k // BLOCK}]"
    return f"{told}: each run of {BLOCK} shares one, also across rows; the last may be shorter"


def _scaled(scale, run, clear, absmax):
    """Each run has one scale, and it is not its entry of absmax."""
    runs = [scale[clear & (run == k)] for k in range(len(absmax))]
    if any((mine - mine[0]).abs().max() > 1e-3 * absmax.min() for mine in runs):
        return None
    k = max(range(len(runs)), key=lambda k: abs(runs[k][0] / absmax[k] - 1))
    if abs(runs[k][0] / absmax[k] - 1) < 0.01:  # it is rounded
        return None
    told = f"the weights of run {k} are scaled by {runs[k][0]:.3g}, and absmax[{k}] is "
    return f"{told}{absmax[k]:.3g}: a weight is its code's value times its absmax"


def _read(value, W4, codebook):
    """Each weight is some value, and not that of its code in codebook."""
    for code in W4.unique().tolist():
        mine = value[code == W4]
        if (mine - mine[0]).abs().max() > 1e-3:
            break
    else:
        worst = (value - codebook[W4.long()]).abs().argmax()
        code = int(W4[worst])
        if abs(value[worst] - codebook[code]) < 0.01:  # it is rounded
            return None
        told = f"code {code} is read as {value[worst]:.3g}, and codebook[{code}] is "
        return f"{told}{codebook[code]:.3g}: look the codes up in the codebook that is given"
    near = (value[:, None] - codebook.double()).abs().min(1)
    if (near.values > 1e-3).any():
        return None
    k = int((near.indices != W4).nonzero()[0])  # else its codes had one value each
    told = f"weight {k} is read as code {near.indices[k]}, and W4[{k}] is {W4[k]}"
    return f"{told}: one code a weight, row by row, with nothing to unpack"
