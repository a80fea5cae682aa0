"""Checks of lab 5. The reference is torch.optim.Adam, `statistics`, or the check's own formula."""

import math
import statistics

import torch

from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import CheckFailed, exercise, generator
from labkit.probes import lab05 as probes

NAN = float("nan")


@exercise("5.1", points=3)
def first_step(first_update):
    """equals one step of torch.optim.Adam on A and B, also with small and with zero gradients"""
    rng, one = generator(), torch.tensor([[2.0, -3.0]])
    cases = {
        "for first_update([[2, -3]], [[1, 0]], r=1, alpha=3, lr=0.1)": (
            *(one, torch.tensor([[1.0, 0.0]]), 1, 3, 0.1),
        ),
        "for first_update([[2, -3]], [[1, 1]], r=1, alpha=1, lr=0.5)": (
            *(one, torch.tensor([[1.0, 1.0]]), 1, 1, 0.5),
        ),
    }
    for size, scale, alpha, lr in (
        *(((4, 7, 3), 1, 12.0, 0.01), ((8, 6, 5), 1, 29, 0.004), ((7, 7, 6), 1, 65, 0.5)),
        *(((6, 12, 10), 1, 4, 0.02), ((6, 5, 6), 1e-3, 7, 0.1), ((5, 6, 1), 1, 7, 0.003)),
    ):
        G, A = _far_from_zero(*size, rng)
        G[:: 3 + draw(0, 1, rng)] = 0.0  # a row that no token moves
        where = f"on G of shape {tuple(G.shape)}, r = {len(A)}, alpha = {alpha:g}, lr = {lr}"
        cases[where + (", small gradients" if scale < 1 else "")] = scale * G, A, len(A), alpha, lr
    expect_right(first_update, cases, by_adam, tol=1e-3)


def _far_from_zero(d_out, d_in, r, rng):
    """G and A such that no entry of G @ A.T is so near 0 that rounding decides its sign."""
    while True:
        G, A = randn(d_out, d_in, rng=rng), randn(r, d_in, rng=rng) / d_in**0.5
        size = (G @ A.T).abs()
        if size.min() > 0.02 * size.mean():
            return G, A


def by_adam(G, A, r, alpha, lr):
    """The change of W in one step of torch.optim.Adam from B = 0, where G is dL/dW."""
    A, B = A.clone().requires_grad_(), torch.zeros(len(G), r, requires_grad=True)
    optimizer = torch.optim.Adam([A, B], lr)
    with torch.enable_grad():
        (G * (alpha / r * B @ A)).sum().backward()
    optimizer.step()
    return (alpha / r * B @ A).detach()


@exercise("5.2", points=1)
def scales(scaling):
    """alpha / r; with rank_stabilized, alpha over the square root of r"""
    cases = {}
    for alpha, r in ((18, 9), (3, 8), (32, 5), (8.0, 100)):
        cases[f"for scaling(alpha={alpha:g}, r={r})"] = alpha, r
        for stable in (True, False):
            where = f"for scaling(alpha={alpha:g}, r={r}, rank_stabilized={stable})"
            cases[where] = alpha, r, stable
    expect_right(scaling, cases, _factor)


def _factor(alpha, r, rank_stabilized=False):
    return alpha * float(r) ** (-0.5 if rank_stabilized else -1)


@exercise("5.3", points=2)
def sweeps(sweep):
    """runs each pair once, with its rank's alpha and the same seed; returns one row per run"""
    rng = generator()
    rates = [(10 * draw(1, 9, rng) + 7) / 1e5, (10 * draw(11, 99, rng) + 3) / 1e4]
    ranks = [draw(2, 5, rng), draw(6, 9, rng), draw(10, 20, rng)]
    cases = {
        "for one rank and one learning rate": (ranks[:1], rates[:1], "twice", ["loss"]),
        "for 3 ranks and 2 learning rates": (ranks, rates, "twice", ["loss"]),
        "when train_fn returns accuracy and steps, with alpha = 24.25": (
            *(ranks[:0:-1], rates, "fixed", ["accuracy", "steps"]),
        ),
    }
    expect_right(sweep, cases, _runs, probes.runs)
    expect_right(sweep, cases, _table, probes.table)


def _runs(ranks, rates, rule, results):
    pairs = [f"({rank}, {rate})" for rank in ranks for rate in rates]
    return {
        "the return value": "a DataFrame",
        "the calls of train_fn per pair": 1,
        "the number of runs": len(pairs),
        "the rank that train_fn gets": "an int",
        "learning_rate in the runs": ", ".join(map(str, rates)),
        "the runs (rank, learning rate)": sorted(pairs),
        **{f"alpha in the runs at rank {rank}": f"{probes.ALPHAS[rule](rank)}" for rank in ranks},
        "the seed": "the same int in all runs",
    }


def _table(ranks, rates, rule, results):
    runs = [(rank, rate) for rank in ranks for rate in rates]
    cells = {"rank": [rank for rank, _ in runs]}
    cells["alpha"] = [probes.ALPHAS[rule](rank) for rank, _ in runs]
    cells["learning_rate"] = [rate for _, rate in runs]
    cells |= {name: [probes.result(i, *run) for run in runs] for i, name in enumerate(results)}
    facts = {"a cell of the table": "one value", "the columns in the index": "none"}
    facts |= {"the columns": list(cells), "the number of rows": len(runs)}
    texts = {name: [f"{number:.6g}" for number in column] for name, column in cells.items()}
    return facts | probes.contents(texts)


@exercise("5.4", points=2)
def stores(bits_stored):
    """log2(n_choices) minus the loss in bits, summed over the pairs; at least 0 in total"""
    rng = generator()
    cases = {
        "for losses = [0] and n_choices = 8": (torch.zeros(1), 8),
        "for losses = [1] and n_choices = 8": (torch.ones(1), 8),
        "for losses = [0, 1, 3] and n_choices = 8": (torch.tensor([0.0, 1.0, 3.0]), 8),
        "for losses = [3, 9], both worse than a guess, and n_choices = 8": (
            *(torch.tensor([3.0, 9.0]), 8),
        ),
    }
    for n, n_choices, most in ((5, 2, 0.9), (40, 64, 0.8), (60, 1000, 1.5), (30, 6, 1.3)):
        losses = most * math.log(n_choices) * torch.rand(n, generator=rng)
        what = "some worse than a guess" if most > 1 else "all better than a guess"
        cases[f"for {n} losses, {what}, and n_choices = {n_choices}"] = losses, n_choices
    expect_right(bits_stored, cases, _bits, probes.stored)


def _bits(losses, n_choices):
    nats = math.fsum(math.log(n_choices) - loss for loss in losses.tolist())
    return {"the result": max(0.0, nats / math.log(2))}


@exercise("5.5", points=3)
def pairs(paired_difference):
    """mean and standard error over shared seeds; NaN if there are too few of them"""
    rng = generator()
    columns = {"method": [*"aaabbb"], "seed": [0, 1, 2, 1, 2, 0]}
    columns["score"] = [5.0, 9.0, 8.0, 8.0, 4.0, 4.0]
    two = {"method": [*"aabb"], "seed": [0, 1, 1, 0], "score": [5.0, 9.0, 6.0, 4.0]}
    cases = {
        "for three shared seeds with the differences 1, 1 and 4": (
            *(columns, [0, 0, 1, 1, 2, 2], "a", "b"),
        ),
        "for two shared seeds with the differences 1 and 3": (two, [0, 0, 1, 1], "a", "b"),
        "when both methods have the same six seeds": _frame(range(6), range(6), rng),
        "when each method has seeds that the other lacks": _frame(
            [0, 1, 2, 3, 7], [1, 2, 3, 4, 5, 7], rng
        ),
        "when each method has a failed run, whose score is NaN": _frame(
            range(7), range(6), rng, [1, 2], swap=True
        ),
    }
    _expect_pairs(paired_difference, cases)
    none = "no shared seed, so (NaN, NaN)"
    cases = {
        "with one shared seed": _frame([0, 1], [1, 2], rng),
        "with two seeds of which one failed": _frame([0, 1], [0, 1], rng, [0]),
        f"with {none}": _frame([0, 1, 2], [3, 4, 5], rng),
        f"when every run of a failed: {none}": _frame([0, 1], [0, 1, 2], rng, [0, 2, 1]),
    }
    _expect_pairs(paired_difference, cases)


def _expect_pairs(paired_difference, cases):
    """As `expect_right`, but a mistake may also explain only the first case, or only the mean."""
    both, bare = ["the mean", "the error"], None
    for many, nouns in ((None, both), (1, both), (None, both[:1])):
        data = {where: (*cases[where], nouns) for where in list(cases)[:many]}
        try:
            expect_right(paired_difference, data, _paired, probes.paired)
        except CheckFailed as failure:
            if not failure.bare:
                raise
            bare = bare or failure
        if not bare:
            return
    raise bare


def _frame(first, second, rng, failed=(), swap=False):
    """Columns and index of a DataFrame, and the names of two methods.

    `first` and `second` are their seeds; `failed` lists seeds of the first, the second, the first,
    …. Seeds differ more than methods, rows are in random order, and a third method is included.
    """
    a, b = names = ["lora", "lora+"]
    luck, rows = [draw(100, 900, rng) / 100 for _ in range(8)], []
    for method, seeds in ((a, first), (b, second), ("dora", list(second)[1:])):
        for seed in seeds:
            gain = draw(40, 90, rng) if seed % 2 else -draw(5, 30, rng)
            gain = {a: gain / 100, b: 0.0, "dora": 2.0}[method]
            rows.append([method, seed, round(luck[seed] + gain, 2), "again"])
    for i, seed in enumerate(failed):
        next(row for row in rows if row[:2] == [names[i % 2], seed])[2] = NAN
    rows = [rows[i] for i in torch.randperm(len(rows), generator=rng).tolist()]
    next(row for row in rows if row[0] == a and row[1] == list(first)[-1])[3] = None
    columns = zip(
        ("method", "seed", "score", "note"), map(list, zip(*rows, strict=True)), strict=True
    )
    return dict(columns), [i // 2 for i in range(len(rows))], *(names[::-1] if swap else names)


def _paired(columns, index, a, b, nouns):
    scores = {}
    for method, seed, score in zip(*(columns[n] for n in ("method", "seed", "score")), strict=True):
        if not math.isnan(score):
            scores[method, seed] = score
    gaps = [
        scores[a, seed] - scores[b, seed] for m, seed in scores if m == a and (b, seed) in scores
    ]
    mean = statistics.fmean(gaps) if gaps else NAN
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else NAN
    facts = {"the return value": "two numbers", "the mean": mean, "the error": error}
    return {noun: facts[noun] for noun in ("the return value", *nouns)}


quiz = quiz_of("5.6", points=3)
