"""The check of `arrives`. The reference is least squares: which share of dW is nearest."""

import itertools
import math

import torch

from labkit.checks.compare import ask, expect_number, expect_numbers, randn
from labkit.checks.lab06 import changes, small
from labkit.checks.lab06.divergences import rough
from labkit.checks.laws import laws
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, generator, part
from labkit.labs.lab06 import probes

SHAPE = (24, 40)
SIXTEEN = "is it computed in 16 bits? W.float() and dW.float() first, store's result too"
HINTS = {
    "same dtype": SIXTEEN,
    "1D tensors expected": "flatten both, or multiply element by element and sum",
    "cannot be multiplied": "no matrix product: multiply element by element and sum",
    "positional argument": "store takes one matrix, the weight with the update in it",
}


def expect_arrives(arrives):
    """Every part of the check."""
    rng, right = generator(), False
    other = generator()  # so that the inputs below stay as they were
    pair = randn(*SHAPE, rng=other), 0.1 * randn(*SHAPE, rng=other)
    with part(), simplest(small.arrivals(arrives)), laws(*changes.arrivals(arrives, *pair)):
        expect_numbers([_asked(arrives, *case) for case in _cases(rng)], tol=1e-3)
        right = True
    with part():
        if right:
            _expect_dead_zone(arrives, rng)
            _expect_exact(arrives, rng)
    with part():
        _expect_16_bits(arrives, rng, right)


def _cases(rng):
    """`(W, dW, store, what it is called)` in fp32."""
    W, dW = randn(*SHAPE, rng=rng), 0.1 * randn(*SHAPE, rng=rng) + 0.02
    even = probes.stored("grid", W)
    yield W, dW, "as it is", "a store that keeps every number"
    steps = dW.sign() * (0.13 + 0.05 * torch.rand(SHAPE, generator=rng))
    yield even, steps, "grid", "a grid with W on it, each step of dW just long enough"
    yield W, dW, "grid", "a grid on which W does not lie"
    yield even, 0.7 * dW, "grid", "a grid with W on it"
    yield W, dW, "blocks", "a grid that each block scales anew"
    yield W, 0.03 * dW, "bf16", "bf16, which store returns"
    yield *_against(rng), "blocks", "a grid that each block scales anew, W near its boundaries"


def _against(rng):
    """W and dW whose share is below 0: each block's largest weight grows, and with it the steps.

    The others stand just above a boundary, and go down a step while dW goes up a little.
    """
    sign = randn(*SHAPE, rng=rng).sign()
    W = (torch.randint(2, 6, SHAPE, generator=rng) + 0.5) / 7 + 1e-4
    dW = torch.full(SHAPE, 1e-3)
    W[:, ::8], dW[:, ::8] = 1.0, 1e-2
    return sign * W, sign * dW


def _expect_dead_zone(arrives, rng):
    W, dW = probes.stored("grid", randn(*SHAPE, rng=rng)), 0.1 * randn(*SHAPE, rng=rng)
    call, got, wanted, known = _asked(
        arrives, W, dW.clamp(-0.12, 0.12), "grid", "dW shorter than half a step, W on the grid"
    )
    hint = "nothing moves there, so don't divide by what moved"
    expect(not isinstance(got, float) or not math.isnan(got), f"{call} gave nan, wanted 0: {hint}")
    expect_number(got, wanted, call, known)


def _expect_exact(arrives, rng):
    """What store returns in 16 bits is subtracted in fp32: 1 - 2**-9 has more digits than bf16."""
    sign = randn(*SHAPE, rng=rng).sign()
    W, call = sign * 2**-9, "arrives for a store that returns bf16"
    got = ask(call, probes.arrived, arrives, W, sign - W, "bf16", hint=HINTS)
    hint = "the difference is rounded to 16 bits: store(…).float(), and then subtract"
    expect_numbers([(call, got, 1.0, {hint: got})], tol=1e-3)


def _asked(arrives, W, dW, store, told):
    call = f"arrives for {told}"
    got = ask(call, probes.arrived, arrives, W, dW, store, hint=HINTS)
    if isinstance(got, float) and abs(got) < 1e-9:
        got = 0.0
    wanted = share(W, dW, store)
    return call, got, wanted, mistaken(W, dW, store) | rough(got, wanted, 0.02)


def share(W, dW, store):
    """The c for which c dW is nearest to what the stored weight changes by, in fp64."""
    before, after = (probes.stored(store, x).double() for x in (W.float(), W.float() + dW.float()))
    columns = (x.double().reshape(-1, 1) for x in (dW, after - before))
    found = torch.linalg.lstsq(*columns).solution.item()
    return 0.0 if abs(found) < 1e-9 else found


def mistaken(W, dW, store):
    """Wrong numbers for the share of dW that a stored weight changes by, in fp64."""
    moved = probes.stored(store, W + dW).double() - probes.stored(store, W).double()
    d = dW.double()
    wrong = _stored_otherwise(W, dW, store) | _divided(moved, d, W) | _compared(moved, d, W)
    return {message: number.item() for message, number in wrong.items()} | {
        f"W and dW are rounded to {name} first; they stay in fp32": share(
            W.to(kind).float(), dW.to(kind).float(), store
        )
        for name, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16))
        if W.dtype == torch.float32
    }


def _stored_otherwise(W, dW, store):
    """Something else is stored, or taken away."""

    def stored(x):
        return probes.stored(store, x).double()

    before, after, alone, d = stored(W), stored(W + dW), stored(dW), dW.double()
    size = d.square().sum()
    return {
        "store(W) is to be taken away, not W: its own rounding is counted": (
            ((after - W.double()) * d).sum() / size
        ),
        "store(W) is not taken away": (after * d).sum() / size,
        "this is 1 less the rounding error of the sum: take store(W) away, multiply by dW": (
            1 - (after - (W + dW).double()).norm() / d.norm()
        ),
        "dW is added to store(W); what is stored is W + dW": (
            ((stored((before + d).float()) - before) * d).sum() / size
        ),
        "dW alone is stored; what is stored is W + dW": (alone * d).sum() / size,
        "the product and |dW| squared are those of store(dW): dW itself belongs there": (
            ((after - before) * alone).sum() / alone.square().sum()
        ),
        "it is 1 whatever store does: W + dW is stored, and W": (d * d).sum() / size,
        "W + dW is not stored: store(W + dW) - store(W)": (
            (((W + dW).double() - before) * d).sum() / size
        ),
        "what moved is stored once more: store(W + dW) - store(W)": (
            (stored((after - before).float()) * d).sum() / size
        ),
        "store gets the transposed matrix, and blocks run along rows": (
            ((stored((W + dW).T) - stored(W.T)).T * d).sum() / size
        ),
        "this is the rounding error of the sum: take store(W) away": (
            ((after - (W + dW).double()) * d).sum() / size
        ),
        "half of what lies between store(W - dW) and store(W + dW): take store(W) away": (
            ((after - stored(W - dW)) * d).sum() / size / 2
        ),
        "dW is taken away, not added: store(W + dW)": ((before - stored(W - dW)) * d).sum() / size,
    }


def _divided(moved, d, W):
    """The product with dW is divided by something else, or it is another ratio."""
    along, size = (moved * d).sum(), d.square().sum()
    share = along / size
    return {
        "divided by the steps that moved a weight alone: divide by all of |dW| squared": (
            along / d[moved != 0].square().sum()
        ),
        "this is a ratio of lengths, and noise has a length: multiply by dW and sum": (
            moved.norm() / d.norm()
        ),
        "this is a ratio of squared lengths: multiply by dW and sum": moved.square().sum() / size,
        "this is the cosine: divide by |dW| squared": along / (moved.norm() * d.norm()),
        "1 is where all arrives": 100 * share,
        "that is the sum of a matrix product's entries; multiply element by element": (
            (moved @ d.T).sum() / (d @ d.T).sum()
        ),
        "divided by |dW|, wanted its square": along / d.norm(),
        "divided by what arrived, squared; divide by |dW| squared": along / moved.square().sum(),
        "divided by |W| squared; divide by |dW| squared": along / W.double().square().sum(),
        "divided by |dW| |W|; divide by |dW| squared": along / (d.norm() * W.double().norm()),
        "that compares the largest numbers alone: multiply by dW and sum": (
            moved.abs().max() / d.abs().max()
        ),
        "this is a correlation: divide by |dW| squared": _covariance(moved, d)
        / (moved.std() * d.std()),
        "the means are taken away, and they belong to it": _covariance(moved, d) / d.var(),
        "divided by |W + dW| squared; divide by |dW| squared": along / (W + d).square().sum(),
        "this is the mean of single ratios: sum first, then divide": (moved / d).mean(),
        "this is the median of single ratios: sum first, then divide": (moved / d).median(),
        "this is the mean of the rows' shares: sum over all, then divide": (
            ((moved * d).sum(1) / d.square().sum(1)).mean()
        ),
        "this is the mean of the columns' shares: sum over all, then divide": (
            ((moved * d).sum(0) / d.square().sum(0)).mean()
        ),
        "what moved is not multiplied by dW: multiply element by element, then sum": (
            moved.sum() / size
        ),
        "the product is not divided by |dW| squared": along,
        "this is a mean that is not divided by |dW| squared": along / d.numel(),
        "the sum is divided by the number of weights too": share / d.numel(),
    }


def _compared(moved, d, W):
    """The two are compared in another way."""
    along, size = (moved * d).sum(), d.square().sum()
    share = along / size
    return {
        "this is the share of weights that move": (moved != 0).double().mean(),
        "this is the share of weights that stay": (moved == 0).double().mean(),
        "this is the relative error |moved - dW| / |dW|": (moved - d).norm() / d.norm(),
        "this is 1 less the relative error": 1 - (moved - d).norm() / d.norm(),
        "this is 1 less the squared relative error: multiply by dW and sum": (
            1 - (moved - d).square().sum() / size
        ),
        "this is the share of signs that agree: multiply by dW and sum": (
            (moved.sign() == d.sign()).double().mean()
        ),
        "this is what is lost; wanted is what arrives": 1 - share,
        "this is the mean of the rows' cosines: sum over all, and divide by |dW| squared": (
            torch.nn.functional.cosine_similarity(moved, d, dim=1).mean()
        ),
        "the signs are lost: multiply first, then sum": (moved * d).abs().sum() / size,
        "these are sums of sizes: multiply by dW and sum": moved.abs().sum() / d.abs().sum(),
        "these are sums of changes, where plus and minus cancel: multiply by dW and sum": (
            moved.sum() / d.sum()
        ),
        "the sign is turned round: store(W + dW) - store(W)": -share,
        "held between 0 and 1: more than 1 can arrive": share.clamp(0, 1),
        "held at 1: more than 1 can arrive": share.clamp(max=1),
        "held at 0: where a block's scale grows, weights may go against dW": share.clamp(min=0),
        "the sign is lost: where a block's scale grows, weights may go against dW": share.abs(),
        "that is a matrix product: multiply element by element": (moved @ d.T).sum() / size,
        "that is a matrix product, moved.T @ dW: multiply element by element": (
            (moved.T @ d).sum() / size
        ),
        "|dW| is the root of the sum of squares, not the largest singular value": (
            along / torch.linalg.matrix_norm(d, 2).square()
        ),
        "the product is that with W; wanted is that with dW": (moved * W.double()).sum() / size,
        "the root is drawn: no square root of the share": share.abs().sqrt(),
    }


def _expect_16_bits(arrives, rng, right):
    small = (torch.bfloat16, 1e-3, None), (torch.float16, 1e-4, None)  # whose square is 0 there
    halfway = 0.9998 * (1 + 2**-8)  # a length that bf16 rounds off by half a step
    for kind, size, length in (*small, (torch.bfloat16, 1, halfway / 32)):
        W, dW = randn(*SHAPE, rng=rng).to(kind), size * randn(*SHAPE, rng=rng)
        dW = (dW * length / dW.norm() if length else dW).to(kind)
        name = str(kind).removeprefix("torch.")
        for store, told in (
            ("as it is", "a store that keeps every number"),
            ("fine", "a fine grid"),
        ):
            call = f"arrives for W and dW in {name}, {told}"
            try:
                got = ask(call, probes.arrived, arrives, W, dW, store, hint=HINTS)
            except CheckFailed:
                if right:
                    raise
                return
            if right:
                known = _in_16_bits(W, dW, store)
                expect_numbers([(call, got, share(W, dW, store), known, SIXTEEN)], tol=3e-3)


def _in_16_bits(W, dW, store):
    """The share where the sum, the product or the squares are in 16 bits, or two of them."""
    d, before, squares = dW.double(), probes.stored(store, W).double(), dW.square()
    moved, rounded = (
        probes.stored(store, x).double() - before for x in (W.float() + dW.float(), W + dW)
    )
    along = {
        "": (moved * d).sum(),
        "W + dW is added": (rounded * d).sum(),
        "what moved is multiplied by dW": (moved.to(W.dtype) * dW).sum().double(),
    }
    sizes = {
        "": d.square().sum(),
        "the squares |dW|² are taken": squares.double().sum(),
        "the squares |dW|² are taken and summed": squares.sum().double(),
        "the length |dW| is taken": dW.norm().square().double(),
    }
    hint = "in 16 bits, where small numbers get lost: W.float() and dW.float() first"
    return {
        f"{' and '.join(filter(None, both))} {hint}": (along[both[0]] / sizes[both[1]]).item()
        for both in itertools.product(along, sizes)
        if any(both)
    }


def _covariance(x, y):
    return ((x - x.mean()) * (y - y.mean())).sum() / (x.numel() - 1)
