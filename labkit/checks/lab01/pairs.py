"""What two misconceptions at once give in lab 1, and which sum a wrong count is."""

import contextlib

import torch

from labkit.checks.compound import combined, terms_of
from labkit.contract import CheckFailed, observe

POWERS = {"": 2, "the singular values are not squared": 1, "they are squared twice": 4}
ROOTS = {"": 2, "the square root is missing": 1, "the root is taken twice": 4}
WHOLES = {
    "": "W",
    "divided by the part that is kept, not by |W|": "head",
    "divided by the largest singular value, not by |W|": "largest",
    "divided by the last singular value kept, not by |W|": "kept",
    "divided by the first one cut off, not by |W|": "cut",
    "it is not divided by |W|": "none",
    "divided by the plain sum of the singular values, not by |W|": "sum",
}
LEFT = {
    "": "",
    "taken from 1, which only squares allow": "rest",
    "the root is of the numerator alone: |W| has one, too": "above",
}
SIDES = {"": False, "these are right singular vectors, rows of Vh": True}
ROLES = {
    "": (0, 1),
    "the two are swapped: the span is the reference's, the energy dW's": (1, 0),
    "the directions are dW's own; the reference's are asked": (0, 0),
}
MEASURES = {
    "": lambda t: t.square().sum(),
    "the norms are not squared": torch.norm,
    "absolute values are summed, not squares": lambda t: t.abs().sum(),
    "the nuclear norm stands for the sum of squares": lambda t: torch.linalg.norm(t, "nuc"),
    "the spectral norm stands for the sum of squares": lambda t: torch.linalg.norm(t, 2),
}
DIVISORS = {
    "": "",
    "divided by the energy of the other matrix": "other",
    "it is not divided by the energy of dW": "none",
}
RESTS = {
    "": "",
    "that is the part outside; the part inside is asked": "rest",
    "divided by k; a share sums over the k directions": "mean",
}


def errors(s, r, shape):
    """Wrong relative errors of two mistakes, for the singular values of a W of `shape`."""

    def error(part, power, root, whole, left):
        parts = {
            "W": s,
            "head": s[:r],
            "largest": s[:1],
            "none": s[:0],
            "sum": s,
            "kept": s[r - 1 : r],
            "cut": s[r : r + 1],
        }
        above, below = (t.pow(power).sum() for t in (part, parts[whole]))
        below = s.sum() ** root if whole == "sum" else below
        below = below if whole != "none" else torch.ones(())
        shares = {"both": (above / below) ** (1 / root), "above": above ** (1 / root) / below}
        value = shares["above" if left == "above" else "both"].item()
        return 1 - value if left == "rest" else value

    return combined(error, _tails(s, r, shape), POWERS, ROOTS, WHOLES, LEFT)


def _tails(s, r, shape):
    """Parts of the singular values that stand for the tail; eigenvalues come the other way."""
    first = "eigvalsh and eigh have the smallest first (flip them)"
    upwards = {
        f"{first}, here after the zeros of {gram}": torch.cat([s.new_zeros(n), s.flip(0)])[r:]
        for gram, n in zip(("W @ W.T", "W.T @ W"), (side - len(s) for side in shape), strict=True)
    }
    return {
        "": s[r:],
        "the head s[:r] stands for the tail s[r:]": s[:r],
        "the tail starts one too late, at r + 1": s[r + 1 :],
        "the tail starts one too early, at r - 1": s[r - 1 :],
        "s[r] alone stands for the tail s[r:]": s[r : r + 1],
        "the last r stand for the tail s[r:]": s[-r:],
        f"all but the smallest r stand for the tail s[r:]: {first}, or it is s[:-r]": s[:-r],
    } | upwards


def stable(s):
    """Stable ranks of two mistakes."""
    return combined(
        lambda above, below: (above / below).item(),
        {
            "": s.square().sum(),
            "|W|_F is not squared": s.norm(),
            "the singular values are summed and not squared": s.sum(),
            "the plain sum, the nuclear norm, stands for |W|_F": s.sum() ** 2,
            "the squares are averaged": s.square().mean(),
            "the number of values stands for |W|_F²": torch.tensor(float(len(s))),
        },
        {
            "": s[0] ** 2,
            "|W|_2 is not squared": s[0],
            "the smallest singular value stands for |W|_2": s[-1] ** 2,
            "the smallest singular value, not squared, stands for |W|_2²": s[-1],
            "the plain sum, the nuclear norm, stands for |W|_2": s.sum() ** 2,
            "the sum of singular values stands for |W|_2²": s.sum(),
        },
    )


def used_up(cosines, threshold):
    """Intruders where each of W0's directions (columns) is taken by one of W1's (rows) alone."""
    left, found = cosines.clone(), 0
    for row in left:
        best, at = row.max(0)
        found += int(best < threshold)
        left[:, at] = 0
    return found


@contextlib.contextmanager
def hinted(asked, least, most, told, alike):
    """Says of wrong numbers without a name that they lie outside of what is possible.

    `asked` as `expect_numbers` takes it. `alike` are two of them, of W and of a multiple of W.
    """
    try:
        yield
    except CheckFailed as failure:
        if not failure.bare:
            raise
        got = [number for _, number, *_ in asked]
        one, other = (got[i] for i in alike)
        if abs(one - other) > 1e-3 * max(abs(one), abs(other)):
            hint = "it changes with the scale of W, or with .T; neither matters: a norm over a norm"
        elif min(got) < least or max(got) > most + 1e-3:
            hint = told
        else:
            raise
        raise CheckFailed(f"{failure}; {hint}") from None


@contextlib.contextmanager
def as_sum(lora_params):
    """Says of a wrong count without a name which sum of products it is."""
    try:
        yield
    except CheckFailed as failure:
        if not failure.bare:
            raise
        sizes = [(7 + 3 * i, 50 - 2 * i + i * i % 7, 2 + i * i % 11) for i in range(16)]
        rows = []
        for o, i, r in sizes:
            row = {"r * d_in": r * i, "d_out * r": o * r, "r * r": r * r, "d_out * d_in": o * i}
            rows.append(row | {"d_in": i, "d_out": o, "r": r, "1": 1})
        made = terms_of(lambda n: observe(lora_params, *sizes[n]), rows)
        if not made:
            raise
        signs = {1: "+ ", -1: "- "}
        told = [f"{signs.get(n, f'{n:+} * ')}{name}" for name, n in made.items() if n]
        told = " ".join(told).removeprefix("+ ")
        raise CheckFailed(f"{failure}: you count {told}; A has r * d_in, B d_out * r") from None


def within(dW, reference, k):
    """Wrong shares of energy of two mistakes."""
    sides = {}
    for turned in (False, True):  # the right singular vectors are the left ones of W.T
        pair = [M.T if turned else M for M in (dW, reference)]
        sides[turned] = pair, [torch.linalg.svd(M, full_matrices=False).U for M in pair]

    def share(turned, roles, which, measure, of, left):
        (whose, span), (pair, Us) = roles, sides[turned]
        above = measure(Us[span][:, which].T @ pair[whose])
        below = measure(pair[whose if of == "" else 1 - whose]) if of != "none" else 1.0
        value = float(above / below)
        return {"rest": 1 - value, "mean": value / k}.get(left, value)

    which = {
        "": slice(k),
        "it takes k + 1 directions, one too many": slice(k + 1),
        "the directions start at index 1; indices start at 0": slice(1, k + 1),
        "these are the last k directions; the largest come first": slice(-k, None),
        "it takes the first direction alone": slice(1),
    }
    return combined(share, SIDES, ROLES, which, MEASURES, DIVISORS, RESTS)
