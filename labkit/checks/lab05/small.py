"""The smallest cases of lab 5, `(call, answer, wanted, why)`: for mistakes that have no name."""

import functools

import torch

from labkit.checks.lab05 import frames
from labkit.contract import observe
from labkit.labs.lab05 import probes

ONE, TWINS = {"w": (2, 3)}, {"v": (2, 3), "w": (2, 3)}
TABLES = [  # shapes, ranks, trainable, percent, why
    (ONE, [1], [5], [500 / 6], "A has 3 numbers, B has 2, and the matrix 6"),
    (ONE, [10], [50], [5000 / 6], "each rank costs 3 + 2, however many there are"),
    (
        ONE,
        [4, 1],
        [20, 5],
        [2000 / 6, 500 / 6],
        "one alone is right: begin anew for each",
    ),
    (TWINS, [1], [10], [1000 / 12], "each matrix counts, also where two are alike"),
    ({"v": (2, 3), "w": (4, 5)}, [1], [14], [1400 / 26], "2 + 3 and 4 + 5, of 6 + 20 numbers"),
]


def tables(param_table, column):
    """Of 5.1, for one of its columns."""

    def answer(shapes, ranks):
        got = observe(probes.table, param_table, shapes, ranks)
        cells = frames.columns(got, (column,), "param_table")[column]
        return [frames.whole(cell) for cell in cells]

    for shapes, ranks, trainable, percent, why in TABLES:
        call = f"param_table({shapes}, {ranks})[{column!r}]"
        wanted = trainable if column == "trainable" else percent
        yield call, functools.partial(answer, shapes, ranks), wanted, why


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


def gaps(overfit_gap, column):
    """Of 5.6, for one of its columns."""
    names = ("rank", "step", "train_loss", "held_out_loss")
    one = [(4, 1, 3.0, 4.0), (4, 2, 2.0, 2.5), (4, 3, 1.0, 3.0)]
    other = [(8, 5, 1.5, 1.0), (8, 6, 0.5, 0.25), (8, 7, 0.2, 0.5), (8, 8, 0.1, 0.75)]
    right = {"best_step": [2, 6], "gap": [2.0, 0.65], "rise": [0.5, 0.5]}[column]
    shown = "rank 4: steps 1, 2, 3, train_loss 3, 2, 1, held_out_loss 4, 2.5, 3"
    alone = {"best_step": "2.5 is at step 2", "gap": "3 minus 1", "rise": "3 minus 2.5"}[column]

    def answer(rows):
        data = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        got = observe(probes.gaps, overfit_gap, data)
        return [frames.whole(c) for c in frames.columns(got, (column,), "overfit_gap")[column]]

    for rows, wanted, what, why in [
        (one, right[:1], "", alone),
        (one[::-1], right[:1], ", its rows turned round", "in order it is right: sort by step"),
        (
            one + other,
            right,
            " and another rank",
            "one rank alone is right: take each rank's own rows",
        ),
    ]:
        call = f"overfit_gap of {shown}{what}: {column}"
        yield call, functools.partial(answer, rows), wanted, why
