"""What `energy_within` of exercise 1.5 gives, and what misconceptions give."""

import torch

from labkit.checks.compare import ask, expect_kind, expect_numbers, randn
from labkit.checks.lab01 import free, pairs
from labkit.checks.lab01.cuts import leading
from labkit.contract import CheckFailed, expect


def within_cases(rng):
    """`(name, dW, reference, k)`: tall, wide, square, its own reference, of rank k and scaled.

    Two are tall: in a wide or square one all of U gives 1, and so do other mistakes.
    """
    cases = []
    for d_out, d_in, k in [(9, 5, 2), (5, 9, 3), (7, 7, 2), (7, 7, 1), (10, 4, 2)]:
        reference = randn(d_out, d_in, rng=rng)
        dW = randn(d_out, d_in, rng=rng) + 0.4 * reference
        cases.append((f"matrices of shape {(d_out, d_in)}", dW, reference, k))
    name, dW, reference, k = cases[0]
    thin = randn(9, 2, rng=rng) @ randn(2, 5, rng=rng)
    return [
        *cases,
        (f"{name}, dW times 10", 10 * dW, reference, k),
        (f"{name}, the reference times -10", dW, -10 * reference, k),
        (f"{name}, the reference of rank 2", dW, thin, 2),
        (f"{name}, dW as its own reference", dW, dW, 5),
    ]


def asked_within(energy_within, name, dW, reference, k):
    """What `expect_numbers` takes of one case."""
    call = f"energy_within(dW, reference, {k}) for {name}"
    hint = "U of the reference is (d_out, …), its first k columns span the space: U[:, :k].T @ dW"
    got = ask(call, energy_within, dW, reference, k, hint=hint)
    matrix = isinstance(got, torch.Tensor) and got.numel() > 1
    shape = f"{call} gave a tensor of shape {tuple(got.shape)}" if matrix else ""
    expect(not matrix, f"{shape}, wanted one number: the sum of its squares over that of dW")
    expect(got == got, f"{call} is NaN; a share of energy is a sum of squares over another")
    expect_kind(got, call)
    whole, inside = dW.double().square().sum(), (leading(reference, k).T @ dW.double()).square()
    made = f"the energy of dW is {whole:.4g}, that of its part in the span {inside.sum():.4g}"
    wanted = (inside.sum() / whole).item()
    thin = "rank 2" in name  # what comes after its second direction is arbitrary
    known = {} if thin else within_guesses(dW.double(), reference.double(), k, wanted)
    return call, got, wanted, known, made


def within_guesses(dW, reference, k, wanted):
    """Wrong shares of energy."""
    theirs, own = (torch.linalg.svd(M, full_matrices=False) for M in (reference, dW))
    part = theirs.U[:, :k].T @ dW  # (k, d_in)
    return (
        {
            "the two are swapped: the span is the reference's, the energy dW's": _share(
                leading(dW, k).T @ reference, reference
            ),
            "the norms are not squared; energy is the sum of squares": wanted**0.5,
            "squared twice: a share of squares is a share of energy": wanted**2,
            "this is the energy outside of the span; that inside is asked": 1 - wanted,
            "this is the norm outside of the span; the energy inside is asked": max(0, 1 - wanted)
            ** 0.5,
            "this is the energy itself: divide by that of dW": part.square().sum().item(),
            "this is a norm: square it, and divide by the energy of dW": part.norm().item(),
            "the energy is divided by a norm: square it": (part.square().sum() / dW.norm()).item(),
            "divided by the energy of the reference; the share is of dW's": _share(part, reference),
            "divided by k; a share sums over the k directions": wanted / k,
            "sums of squares are compared, not their means (which measures by chance, k / d_out)": (
                wanted * len(dW) / k
            ),
            "this is what chance gives, whatever dW is": k / len(dW),
        }
        | _by_sums(dW, theirs.U[:, :k], part)
        | _by_svds(dW, theirs, own, k, part)
        | _by_sizes(dW, theirs, own.S, k, part)
        | _other_spans(dW, reference, theirs.U, k)
        | _other_sides(dW, reference, theirs, k)
        | free.within(dW, reference, k)
        | pairs.within(dW, reference, k)
    )


def _share(part, whole):
    return (part.square().sum() / whole.square().sum()).item()


def _by_sums(dW, U, part):
    """Wrong shares of energy: other sums of the entries of the part, `U @ part`."""
    k = len(part)
    return {
        "the norms of the k parts are added; add their squares": (
            part.norm(dim=1).sum() / dW.norm()
        ).item(),
        "the entries are summed and then squared; energy is the sum of squares": (
            part.sum() ** 2 / dW.square().sum()
        ).item(),
        "the entries are summed; energy is the sum of their squares": (
            part.sum() / dW.sum()
        ).item(),
        "the entries of the part are summed; energy is the sum of their squares": (
            (U @ part).sum() / dW.sum()
        ).item(),
        "these are the first k columns of dW alone; k counts the directions": _share(
            part[:, :k], dW[:, :k]
        ),
        "these are the first k columns of dW alone, over all of it; k counts directions": (
            _share(part[:, :k], dW)
        ),
        "each column of dW counts alike; a share of energy weighs them by their squares": (
            (part.square().sum(0) / dW.square().sum(0)).mean().item()
        ),
        "each column of dW counts alike, by its norm; energy is the sum of squares": (
            (part.norm(dim=0) / dW.norm(dim=0)).mean().item()
        ),
        "absolute values are summed; energy is the sum of squares": (
            part.abs().sum() / dW.abs().sum()
        ).item(),
    }


def _by_svds(dW, theirs, mine, k, part):
    """Wrong shares of energy, from the singular values or vectors of both."""
    (U, S, Vh), (own, s, own_h) = theirs, mine
    top, both = part.new_tensor(k**0.5), U[:, :k].T @ own[:, :k]
    cut = (own[:, :k] * s[:k]) @ own_h[:k]
    angles = torch.linalg.svdvals(both)  # cosines of the angles between the two spans
    with_cut = (part * (S[:k, None] * Vh[:k])).sum()  # with the reference's best rank-k part
    return {
        "dW is cut to its own top k; all of dW counts": _share(U[:, :k].T @ cut, dW),
        "dW is cut to its own top k and measured by it; all of dW counts": _share(
            U[:, :k].T @ cut, cut
        ),
        "that compares the top k of both; all of dW counts, weighed by its energy": _share(
            both, top
        ),
        "that compares the top k of both by a norm; all of dW counts, by its energy": (
            both.norm().item()
        ),
        "that compares the top k of both, summed; all of dW counts, by its energy": (
            both.square().sum().item()
        ),
        "these are cosines between the top k of both; dW is weighed by its energy": (
            angles.mean().item()
        ),
        "that is the largest cosine between the top k of both; dW is weighed by its energy": (
            angles[0].item()
        ),
        "that is a cosine with the cut reference; the energy of dW in its span is asked": (
            with_cut / dW.norm() / S[:k].norm()
        ).item(),
        "that compares directions without their size; energy weighs those of dW": _share(
            U[:, :k].T @ own, top
        ),
        "this is the reference in its own top k; dW is left out": _share(S[:k], S),
        "this is dW in its own top k; the reference is left out": _share(s[:k], s),
    }


def _by_sizes(dW, theirs, s, k, part):
    """Wrong shares of energy: norms other than Frobenius's, directions that are weighed."""
    _, S, Vh = theirs
    inside = torch.linalg.svdvals(part)
    with_cut = (part * (S[:k, None] * Vh[:k])).sum()  # with the reference's best rank-k part
    weighed = (part * S[:k, None]).square().sum() / dW.square().sum()
    told = "the reference weighs its directions by its size; those of a span have length 1"
    return {
        told: (weighed / S.square().sum()).item(),
        f"{told} each": (weighed / S[:k].square().sum()).item(),
        "that is a cosine with the cut reference, over |reference|; the energy of dW is asked": (
            with_cut / dW.norm() / S.norm()
        ).item(),
        "that is the spectral norm; energy is the sum of all squares": (inside[0] / s[0]).item(),
        "that is the spectral norm, squared; energy is the sum of all squares": (
            inside[0] / s[0]
        ).item()
        ** 2,
        "the singular values are summed, not squared": (inside.sum() / s.sum()).item(),
        "the singular values weigh the directions; those of a span have length 1": _share(
            part * S[:k, None], dW
        ),
        "the cut of the reference is taken for one direction; each of its k left ones counts": (
            with_cut**2 / dW.square().sum() / S[:k].square().sum()
        ).item(),
    }


def _other_spans(dW, reference, U, k):
    """Wrong shares of energy: that in the span of other left vectors."""
    dot = (dW * reference).sum()
    cosine = (dot / dW.norm() / reference.norm()).item()
    guesses = {
        "all columns of U are taken; the first k span the space: U[:, :k]": _share(U.T @ dW, dW),
        "it is 1 in any case, as where all of U is taken; its first k columns count": 1.0,
        "it takes k + 1 directions, one too many": _share(U[:, : k + 1].T @ dW, dW),
        "the directions start at index 1; indices start at 0": _share(U[:, 1 : k + 1].T @ dW, dW),
        "these are the last k directions; the largest come first": _share(U[:, -k:].T @ dW, dW),
        "these are all but the first k directions": _share(U[:, k:].T @ dW, dW),
        "this is the span of the first k columns of the reference; U's are asked": _share(
            torch.linalg.qr(reference[:, :k]).Q.T @ dW, dW
        ),
        "the first k columns of the reference are no singular vectors": _share(
            reference[:, :k].T @ dW, dW
        ),
        "it takes direction k alone; the span is of the first k": _share(U[:, k - 1] @ dW, dW),
        "these are the first k rows of dW; the directions are the columns of U": _share(dW[:k], dW),
        "that is the cosine of two matrices; the span of the top k is asked": cosine,
        "that is the squared cosine of two matrices; the span of the top k is asked": cosine**2,
    }
    if k > 1:
        guesses["it takes k - 1 directions, one too few"] = _share(U[:, : k - 1].T @ dW, dW)
        first = "it takes the first direction alone; the span is of the first k"
        guesses[first] = _share(U[:, 0] @ dW, dW)
    return guesses


def _other_sides(dW, reference, theirs, k):
    """Wrong shares of energy: right singular vectors are taken, or both."""
    U, _, Vh = theirs
    right, both = dW @ Vh[:k].T, U[:, :k].T @ dW @ Vh[:k].T
    guesses = {
        "these are right singular vectors, rows of Vh; the left are the columns of U": _share(
            right, dW
        ),
        "both sides are projected, on U and on Vh; the left one alone is asked": _share(both, dW),
        "both sides are projected, and a norm is not squared; the left side alone is asked": _share(
            both, dW
        )
        ** 0.5,
        "each u_i is paired with its v_i; all that dW does in the span of the u_i counts": _share(
            both.diagonal(), dW
        ),
    }
    return guesses


def expect_within(asked):
    """`expect_numbers`; what has no name is told by what every share of energy is like."""
    try:
        expect_numbers(asked)
    except CheckFailed as failure:
        if not failure.bare:
            raise
        raise CheckFailed(
            f"{failure}{_unlike(*[got for _, got, *_ in asked])}", bare=True
        ) from None


def _unlike(plain, wide, square, line, narrow, larger, turned, thin, own):
    """What a share does not do and these numbers, one a case of `within_cases`, do."""

    def differ(a, b):
        return abs(a - b) > 1e-3 * max(1.0, abs(b))

    if differ(plain, larger):
        return ". It changes with the size of dW: divide by the energy of dW"
    if differ(plain, turned):
        return ". It changes with the size or sign of the reference, whose span has neither"
    shares = (plain, wide, square, line, narrow, thin)
    if max(shares) > 1.001 or min(shares) < 0:
        return ". A share is between 0 and 1"
    if differ(own, 1.0):
        return ". All of dW lies within its own directions: that must give 1"
    return ""
