"""The smallest cases of lab 5, `(call, answer, wanted, why)`: for mistakes that have no name."""

import functools

import torch

from labkit.contract import observe
from labkit.labs.lab05 import probes

ONE, TWINS = {"w": (2, 3)}, {"v": (2, 3), "w": (2, 3)}


def ranks(matched_rank):
    """Of 5.3."""
    for shapes, budget, wanted, why in [
        (ONE, 5, 1, "a rank costs 3 + 2, which just fits"),
        (ONE, 14, 2, "a rank costs 3 + 2, and 14 holds two of them"),
        (ONE, 5000, 1000, "a rank costs 3 + 2, and nothing but the budget limits it"),
        (TWINS, 25, 2, "a rank costs 5 on each of the two, and 25 holds two tens"),
        ({"v": (2, 3), "w": (4, 5)}, 30, 2, "a rank costs 2 + 3 and 4 + 5, and 30 holds two of it"),
    ]:
        answer = functools.partial(observe, probes.rank_within, matched_rank, shapes, budget)
        yield f"matched_rank({shapes}, {budget})", answer, wanted, why


def overlaps(subspace_similarity):
    """Of 5.4: rows along the axes, the longest first."""
    axes = torch.eye(4)
    A, turned = axes[:3] * torch.tensor([[3.0], [2.0], [1.0]]), axes[1:] * 1.0
    turned = turned.flip(0) * torch.tensor([[3.0], [2.0], [1.0]])
    half = (axes[:2] + axes[2:]) * torch.tensor([[2.0], [1.0]])
    for what, other, i, j, wanted, why in [
        ("with itself", A, 1, 1, 1.0, "both span axis 1"),
        ("with itself", A, 2, 2, 1.0, "both span axes 1 and 2"),
        ("with itself", A, 1, 2, 1.0, "axis 1 lies in the span of axes 1 and 2; min(i, j) is 1"),
        ("with axes 4, 3, 2", turned, 1, 1, 0.0, "axis 1 meets axis 4 at a right angle"),
        ("with axes 4, 3, 2", turned, 2, 3, 0.5, "of axes 1, 2 one lies in the span of 4, 3, 2"),
        ("with directions half a right angle off", half, 1, 1, 0.5, "the cosine is 0.707"),
    ]:
        call = f"subspace_similarity of axes 1, 2, 3 (longest first) {what}, i={i}, j={j}"
        answer = functools.partial(observe, subspace_similarity, A, other, i, j)
        yield call, answer, wanted, why


def updates(first_update):
    """Of 5.1: one row of G, and A along the axes."""
    G, one, axes = torch.tensor([[2.0, -3.0]]), torch.tensor([[1.0, 0.0]]), torch.eye(2)
    both, still = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, -3.0]])
    call = "first_update([[2, -3]], [[1, 0]], r=1, alpha=1, lr=0)"
    still_at_0 = functools.partial(observe, first_update, G, one, 1, 1, 0.0)
    yield call, still_at_0, torch.zeros(1, 2), "B starts at 0, and without a rate it stays there"
    for g, A, r, alpha, wanted, why in [
        (G, one, 1, 1, [[-0.1, 0.0]], "B's gradient is 2, so B moves by -lr, and W by it times A"),
        (G, one, 1, 3, [[-0.3, 0.0]], "alpha / r is 3, and B moves by -lr whatever its gradient"),
        (G, both, 1, 1, [[0.1, 0.1]], "B's gradient is 2 - 3, so B moves by +lr"),
        (G, axes, 2, 2, [[-0.1, 0.1]], "alpha / r is 1; B moves by -lr and +lr"),
        (still, one, 1, 1, [[0.0, 0.0]], "B's gradient is 0, and nothing moves"),
    ]:
        call = f"first_update({g.tolist()}, {A.tolist()}, r={r}, alpha={alpha}, lr=0.1)"
        answer = functools.partial(observe, first_update, g, A, r, alpha, 0.1)
        yield call, answer, torch.tensor(wanted), why


def differences(paired_difference, which):
    """Of 5.5, for the mean (0) or the error (1)."""
    two = [("a", 0, 5.0), ("a", 1, 9.0), ("b", 0, 4.0), ("b", 1, 6.0)]
    for rows, wanted, why in [
        (two, (2.0, 1.0), "the differences are 1 and 3"),
        (
            [two[1], two[0], *two[2:]],
            (2.0, 1.0),
            "the differences are 1 and 3, whatever the order of rows",
        ),
        ([*two, ("b", 2, 0.0)], (2.0, 1.0), "the differences are 1 and 3; seed 2 is b's alone"),
        (
            [*two, ("a", 2, 8.0), ("b", 2, float("nan"))],
            (2.0, 1.0),
            "the differences are 1 and 3; b failed with seed 2",
        ),
        (
            [*two, ("a", 2, 8.0), ("b", 2, 6.0), ("a", 3, 8.0), ("b", 3, 6.0)],
            (2.0, 0.408248),
            "the differences are 1, 3, 2, 2: their spread 0.816 (n - 1 inside) over sqrt(4)",
        ),
    ]:
        columns = dict(
            zip(("method", "seed", "score"), map(list, zip(*rows, strict=True)), strict=True)
        )

        def answer(columns=columns, rows=rows):
            index = list(range(len(rows)))
            got = observe(probes.difference, paired_difference, columns, index, "a", "b")
            return got[which]

        call = f"paired_difference of (method, seed, score) {rows}, {'error' if which else 'mean'}"
        yield call, answer, wanted[which], why
