"""What exercise 4.2 expects of nf4_codebook: the table of bitsandbytes, computed."""

import torch

from labkit.checks.compare import expect_shape
from labkit.checks.lab04 import bnb as reference
from labkit.checks.lab04 import guesses
from labkit.contract import CheckFailed, expect, observe
from labkit.labs.lab04 import probes

NEAR = 1.5e-3  # what a codebook's values may be off, and still be those of such a recipe


def expect_codebook(nf4_codebook):
    """Its values to 1e-6; they come from no table."""
    got = observe(probes.codebook, nf4_codebook)
    values, call = got["values"], "nf4_codebook()"
    if isinstance(values, torch.Tensor) and not values.is_complex():
        _expect_no_other_values(values.flatten().double(), call)
    expect_shape(values, torch.Size([16]), call)
    values, wanted = values.double(), reference.codebook()
    expect((values.diff() >= 0).all(), f"{call} is not in ascending order: sort it")
    error = (values - wanted).abs()
    worst = int(error.argmax())
    told = f"value {worst} is {values[worst]:.7f}, wanted {wanted[worst]:.7f}, to 1e-6"
    near = "near, so are these the quantiles of a sample, or rounded, or is 0.9677083 another "
    near += "number? Take the exact ones, icdf"
    begin = "do the probabilities go from 0.9677083 to 0.5, evenly, and is the distribution "
    begin += "normal?"
    if abs(values.abs().max() - 1) > 5e-3:
        begin = "divide by the largest one, so that the ends are -1 and 1"
    if 1e-6 < error.max() < 2e-2:
        raise CheckFailed(f"{call}: {told}; {near}")
    found = error.max() > 1e-6 and (_other_ends(values) or _of_probabilities(values, wanted))
    expect(not found, f"{call}: {found}; {told}")
    if error.max() > 1e-6:
        raise CheckFailed(f"{call}: {told}; {begin}", bare=True)
    _expect_no_table(got, values, wanted.tolist(), call)


def _other_ends(values):
    """Where the halves begin, if they go to 0.5 in even steps, but from elsewhere; or ""."""
    (off, above), (off_below, below) = map(_end, (values[8:], -values[:7].flip(0)))
    near = max(abs(end - 0.9677083) for end in (above, below)) < 2e-3
    if near or not max(off, off_below) < NEAR:
        return ""
    ends = f"about {above:.3f} above zero and {below:.3f} below"
    return f"the steps of probability are even, and begin at {ends}, wanted 0.9677083"


def _end(half, averaged=False, first=0.0):
    """How far this half is from what even steps of probability give, and where they best begin.

    Up to a factor its values are quantiles or, `averaged`, means of neighbours, of which the lowest
    lies `first` steps above 0.5.
    """
    ends, steps = torch.linspace(0.6, 0.999, 3991).double(), len(half) + first
    places = torch.arange(len(half) + 1).double() + first
    made = torch.special.ndtri(0.5 + (ends[:, None] - 0.5) * places / steps)
    made = (made[:, 1:] + made[:, :-1]) / 2 if averaged else made[:, 1:]
    off = (made / made[:, -1:] - half / half[-1]).abs().amax(1)
    return off.min().item(), ends[off.argmin()].item()


def _averaged(values):
    """Whether they are averages of neighbouring quantiles on either side of zero."""
    values = values.sort().values
    halves = values[values > 1e-5], -values[values < -1e-5].flip(0)
    if min(map(len, halves)) < 5:
        return False
    means = [min(_end(half, True, first)[0] for first in (0.0, 0.5)) for half in halves]
    plain = [_end(half)[0] for half in halves]  # these are close to means with another end
    return max(means) < min(NEAR, *plain)


def _of_probabilities(values, wanted):
    """Which probabilities have these values as quantiles, on the side that is wrong; or ""."""
    normal, ends = torch.distributions.Normal(0, 1), abs(values.abs().max() - 1) < 5e-3
    top = normal.icdf(torch.tensor(0.9677083).double())
    wrong = (values - wanted).abs() > 1e-3
    if not ends or (wrong[:7].any() and wrong[8:].any()):
        return ""
    where, side = ("below", slice(0, 7)) if wrong[:7].any() else ("above", slice(8, 16))
    mine, right = (
        normal.cdf(v[side].abs() * top).sort(descending=True)[0] for v in (values, wanted)
    )
    told = [", ".join(f"{p:.3f}" for p in row[:3].tolist()) for row in (mine, right)]
    wanted = f"wanted {told[1]}, …, {len(right)} steps of {right[0] - right[1]:.3f} to 0.5"
    return f"{where} zero these are quantiles of {told[0]}, …, {wanted}"


def _expect_no_other_values(values, call):
    """None of the known misconceptions, and eight values above zero, seven below, one zero."""
    for message, guess in guesses.codebook().items():
        if values.shape == guess.shape and (values - guess).abs().max() < 1e-5:
            raise CheckFailed(f"{call}: {message}")
    told = "these are averages of neighbouring quantiles, as the paper prints"
    expect(not _averaged(values), f"{call}: {told}; take the quantiles themselves")
    hint = "a quantile at 0 or 1? It has none"
    expect(torch.isfinite(values).all(), f"{call} holds NaN or infinity: {hint}")
    hint = "nothing lies below zero: the lower half's quantiles need a minus"
    expect((values < -1e-5).any() or len(values) < 9, f"{call}: {hint}")
    below, above = int((values < -1e-5).sum()), int((values > 1e-5).sum())
    zeros = len(values) - below - above
    expect(
        zeros < 2,
        f"{call} holds 0 more than once, {zeros} times",
        hint="the halves share one: nine probabilities down to 0.5 above, eight below, and one of "
        "the two zeros goes",
    )
    told = f"{above} values lie above zero, {below} below and {zeros} on it"
    if not zeros:
        told += "; what mirrors itself has no zero, so do the two halves apart, nine and eight"
    expect((above, below, zeros) == (8, 7, 1), f"{call}: {told}; wanted 8, 7 and 1")


def _expect_no_table(got, values, wanted, call):
    """The values are computed; a table may be asked to compare with, not to take them from."""
    inside, outside = (
        sum(any(abs(x - w) < 1e-3 for x in got[where]) for w in wanted)
        for where in ("inside", "outside")
    )
    again, hint = got["again"], "compute it from quantiles"
    still = again is None or getattr(again, "shape", None) == values.shape
    if still and again is not None:
        still = torch.allclose(again.double(), values, atol=1e-5)
    asks = got["names"] or (got["asked"] and not still)
    expect(not asks, f"{call} asks bitsandbytes for its table: {hint}")
    typed = max(inside, 0 if still else outside)
    expect(typed < 5, f"{call} holds {typed} of the values as numbers: {hint}")
