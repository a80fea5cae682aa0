"""What `energy_within` of exercise 1.5 gives, and what misconceptions give."""

import torch

from labkit.checks.compare import ask, expect_kind, expect_numbers, randn
from labkit.checks.lab01.cuts import leading
from labkit.contract import CheckFailed, expect


def within_cases(rng):
    """`(name, dW, reference, k)`: tall, wide, square, its own reference, of rank k and scaled."""
    cases = []
    for d_out, d_in, k in [(9, 5, 2), (5, 9, 3), (7, 7, 2), (7, 7, 1)]:
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
    U, S, Vh = torch.linalg.svd(reference, full_matrices=False)
    own, s, own_h = torch.linalg.svd(dW, full_matrices=False)
    whole, part = dW.square().sum(), U[:, :k].T @ dW
    columns = torch.linalg.qr(reference[:, :k]).Q

    def share(projected, total=whole):
        return (projected.square().sum() / total).item()

    return {
        "these are right singular vectors, rows of Vh; the left are the columns of U": share(
            dW @ Vh[:k].T
        ),
        "the two are swapped: the span is the reference's, the energy dW's": share(
            own[:, :k].T @ reference, reference.square().sum()
        ),
        "the norms are not squared; energy is the sum of squares": wanted**0.5,
        "squared twice: a share of squares is a share of energy": wanted**2,
        "this is the energy outside of the span; that inside is asked": 1 - wanted,
        "this is the norm outside of the span; the energy inside is asked": max(0, 1 - wanted)
        ** 0.5,
        "this is the energy itself: divide by that of dW": part.square().sum().item(),
        "this is a norm: square it, and divide by the energy of dW": part.norm().item(),
        "divided by the energy of the reference; the share is of dW's": share(
            part, reference.square().sum()
        ),
        "both sides are projected, and a norm is not squared; the left side alone is asked": share(
            part @ Vh[:k].T
        )
        ** 0.5,
        "both sides are projected, on U and on Vh; the left one alone is asked": share(
            part @ Vh[:k].T
        ),
        "each u_i is paired with its v_i; all that dW does in the span of the u_i counts": share(
            (part @ Vh[:k].T).diagonal()
        ),
        "dW is cut to its own top k; all of dW counts": share(
            U[:, :k].T @ (own[:, :k] * s[:k]) @ own_h[:k]
        ),
        "dW is cut to its own top k and measured by it; all of dW counts": share(
            U[:, :k].T @ (own[:, :k] * s[:k]), s[:k].square().sum()
        ),
        "that compares the top k of both; all of dW counts, weighed by its energy": share(
            U[:, :k].T @ own[:, :k], k
        ),
        "that compares the top k of both by a norm; all of dW counts, by its energy": share(
            U[:, :k].T @ own[:, :k], 1
        )
        ** 0.5,
        "that compares directions without their size; energy weighs those of dW": share(
            U[:, :k].T @ own, k
        ),
        "that compares the top k of both, summed; all of dW counts, by its energy": share(
            U[:, :k].T @ own[:, :k], 1
        ),
        "this is the reference in its own top k; dW is left out": share(S[:k], S.square().sum()),
        "this is dW in its own top k; the reference is left out": share(s[:k], s.square().sum()),
        "divided by k; a share sums over the k directions": wanted / k,
        "this is measured by chance, k / d_out; the plain share is asked": wanted * len(dW) / k,
        "this is what chance gives, whatever dW is": k / len(dW),
    } | _other_spans(dW, reference, k, (U, S, columns), share)


def _other_spans(dW, reference, k, parts, share):
    """Wrong shares of energy: that in the span of something else."""
    U, S, columns = parts
    whole, dot = dW.square().sum(), (dW * reference).sum()
    dot_cut = ((U[:, :k].T @ dW) * (U[:, :k].T @ reference)).sum()  # with its best rank-k part
    s = torch.linalg.svdvals(dW)
    guesses = {
        "the norms of the k parts are added; add their squares": (
            (U[:, :k].T @ dW).norm(dim=1).sum() / dW.norm()
        ).item(),
        "the entries are summed and then squared; energy is the sum of squares": (
            (U[:, :k].T @ dW).sum() ** 2 / whole
        ).item(),
        "the energy is divided by a norm: square it": (
            (U[:, :k].T @ dW).square().sum() / dW.norm()
        ).item(),
        "that is the spectral norm; energy is the sum of all squares": (
            torch.linalg.svdvals(U[:, :k].T @ dW)[0] / s[0]
        ).item(),
        "it takes k + 1 directions, one too many": share(U[:, : k + 1].T @ dW),
        "the directions start at index 1; indices start at 0": share(U[:, 1 : k + 1].T @ dW),
        "these are the last k directions; the largest come first": share(U[:, -k:].T @ dW),
        "these are all but the first k directions": share(U[:, k:].T @ dW),
        "this is the span of the first k columns of the reference; U's are asked": share(
            columns.T @ dW
        ),
        "the first k columns of the reference are no singular vectors": share(
            reference[:, :k].T @ dW
        ),
        "it takes direction k alone; the span is of the first k": share(U[:, k - 1] @ dW),
        "the singular values weigh the directions; those of a span have length 1": share(
            (U[:, :k] * S[:k]).T @ dW
        ),
        "the cut of the reference is taken for one direction; each of its k left ones counts": (
            dot_cut**2 / whole / S[:k].square().sum()
        ).item(),
        "these are the first k rows of dW; the directions are the columns of U": share(dW[:k]),
        "that is the cosine of two matrices; the span of the top k is asked": (
            dot / dW.norm() / reference.norm()
        ).item(),
        "that is the squared cosine of two matrices; the span of the top k is asked": (
            dot**2 / whole / reference.square().sum()
        ).item(),
        "the entries are summed; energy is the sum of their squares": (
            (U[:, :k].T @ dW).sum() / dW.sum()
        ).item(),
        "absolute values are summed; energy is the sum of squares": (
            (U[:, :k].T @ dW).abs().sum() / dW.abs().sum()
        ).item(),
        "that is the spectral norm, squared; energy is the sum of all squares": (
            torch.linalg.svdvals(U[:, :k].T @ dW)[0] ** 2 / s[0] ** 2
        ).item(),
        "the singular values are summed, not squared": (
            torch.linalg.svdvals(U[:, :k].T @ dW).sum() / s.sum()
        ).item(),
        "the squares are averaged; sum them": share(U[:, :k].T @ dW) * len(dW) / k,
    }
    if k > 1:
        guesses["it takes k - 1 directions, one too few"] = share(U[:, : k - 1].T @ dW)
        guesses["it takes the first direction alone; the span is of the first k"] = share(
            U[:, 0] @ dW
        )
    rows = torch.linalg.svd(reference).U[:k]
    guesses["it takes rows of U; the directions are its columns"] = share(rows @ dW)
    if len(dW) == len(dW.T):
        told = "it takes columns of Vh; and those are right ones: the left are U's columns"
        guesses[told] = share(torch.linalg.svd(reference).Vh[:, :k].T @ dW)
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


def _unlike(plain, tall, square, line, larger, turned, thin, own):
    """What a share does not do and these numbers, one a case of `within_cases`, do."""

    def differ(a, b):
        return abs(a - b) > 1e-3 * max(1.0, abs(b))

    if differ(plain, larger):
        return ". It changes with the size of dW: divide by the energy of dW"
    if differ(plain, turned):
        return ". It changes with the size or sign of the reference, whose span has neither"
    if max(plain, tall, square, line, thin) > 1.001 or min(plain, tall, square, line, thin) < 0:
        return ". A share is between 0 and 1"
    if differ(own, 1.0):
        return ". All of dW lies within its own directions: that must give 1"
    return ""
