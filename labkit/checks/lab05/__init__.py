"""Checks of lab 5. References are torch.optim.Adam, projectors, `statistics`, and formulas."""

import torch

from labkit.checks.compare import ask, draw, expect_number, expect_numbers, likeliest, randn
from labkit.checks.lab05 import changes, frames, grid, guesses, small
from labkit.checks.lab05.first_update import expect_updates
from labkit.checks.lab05.paired_difference import expect_differences
from labkit.checks.laws import laws
from labkit.checks.quiz import judge
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, exercise, expect, generator, observe, part, sound
from labkit.labs.lab05 import probes


def _shapes(rng):
    """Four matrices, wide and tall, of sizes that nobody can guess; d_out adds up to more."""
    names = [f"layers.{i}.{kind}" for i in range(2) for kind in ("q_proj", "mlp.up_proj")]
    sizes = [(draw(20, 59, rng), draw(60, 99, rng)) for _ in names]
    turned = [size[:: 1 if i % 2 else -1] for i, size in enumerate(sizes)]
    d_out, d_in = (sum(side) for side in zip(*turned, strict=True))
    return dict(zip(names, turned, strict=True)) if d_out > 1.1 * d_in else _shapes(rng)


@exercise("5.1", points=3)
def first_step(first_update):
    """as one step of torch.optim.Adam on A and B: wide, tall, of small and of no gradient"""
    expect_updates(first_update, generator())


RULES = {"twice the rank": lambda r: 2 * r, "fixed": lambda r: 24}


@exercise("5.2", points=4)
def sweeps(sweep):
    """every pair once, the same seed for all, and a failed run is a row with its error"""
    rng = generator()
    ranks = [draw(2, 5, rng), draw(6, 9, rng), draw(10, 20, rng)]
    rates = [draw(1, 9, rng) / 1000, draw(11, 99, rng) / 1000]
    pairs = sorted((r, rate) for r in ranks for rate in rates)
    call, runs = f"sweep over ranks {ranks} and learning rates {rates}", []
    for rule in RULES:
        factor = float(draw(2, 9, rng))
        results = {"loss": factor} if rule == "fixed" else {"loss": factor, "score": -factor}
        got = observe(probes.swept, sweep, ranks, rates, rule, results, [])
        runs.append(grid.Run(rule, RULES[rule], pairs, results, got["frame"], got["calls"]))
        grid.expect_made(runs[-1], call)
    readable = False
    for question in (grid.expect_alphas, grid.expect_seed, grid.expect_results):
        with part():
            for run in runs:
                question(run, call)
            readable = question is grid.expect_results
    with part():
        _expect_failures(sweep, ranks, rates, pairs, readable)
    with part():
        hint = "catch Exception, not everything"
        stopped = observe(probes.interrupted, sweep) <= 1
        expect(stopped, f"Ctrl-C must still stop the sweep; {hint}")


def _expect_failures(sweep, ranks, rates, pairs, readable):
    """A run that raises leaves a row with its error and no result; the others go on.

    Rows are looked at if they were `readable` where no run failed.
    """
    failed = (ranks[1], rates[0])
    call = f"sweep where rank {failed[0]}, learning rate {failed[1]} raises"
    hint = "in this sweep one run raises: catch Exception, and go on"
    asked = (sweep, ranks, rates, "fixed", {"loss": 2.0}, [list(failed)])
    got = ask(call, probes.swept, *asked, hint=hint)
    made = len(got["calls"])
    skipped = [pair for pair in pairs if pair not in [(r, rate) for r, _, rate, _ in got["calls"]]]
    hint = f"`try` stands inside all loops, round one run ({made} of {len(pairs)} were made)"
    told = f"{call}: no run at {(skipped or [''])[0]} after it; go on after a failure"
    expect(not skipped, f"{told}: {hint}")
    again = [(r, rate) for r, _, rate, _ in got["calls"]].count(failed)
    hint = "a run that raised is not tried again, its row has the error"
    expect(again == 1, f"{call}: {failed} was run {again} times; {hint}")
    told = f"{call}: {made} runs were made, wanted {len(pairs)}: one a pair, failed ones too"
    expect(made == len(pairs), told)
    run = grid.Run("fixed", RULES["fixed"], pairs, {"loss": 2.0}, got["frame"], got["calls"])
    if readable:
        grid.expect_failed(run, failed, call)
        grid.expect_results(run, call, failed)
        call = "sweep where one run raises an exception without a text, AssertionError()"
        hint = "str(e) is '' then, and e.args is empty"
        got = ask(call, probes.swept, *asked, True, hint={"it raised": hint})
        run = run._replace(frame=got["frame"], calls=got["calls"])
        grid.expect_failed(run, failed, call, said=False)


@exercise("5.3", points=1)
def fits(matched_rank):
    """the largest rank whose parameters fit the budget, to the last parameter"""
    rng = generator()
    for low, high in ((60, 90), (60, 90), (4500, 5500)):  # above the sides of some matrix
        shapes, r, more = _shapes(rng), draw(low, high, rng), draw(2 * high, 3 * high - 20, rng)
        sides = guesses.sides(shapes)
        within = r * sides + draw(sides // 2 + 1, sides - 2, rng)
        of = f"matched_rank of four matrices that cost {sides} a rank, budget"
        first = observe(probes.rank_within, matched_rank, shapes, within)
        if type(first) not in (int, float):
            expect_number(first, r, f"{of} {within}")
        budgets = ((within, r), (r * sides, r), (r * sides - 1, r - 1), (more * sides, more))
        with part(), simplest(small.ranks(matched_rank)):
            gots = [
                observe(probes.rank_within, matched_rank, shapes, budget) for budget, _ in budgets
            ]
            cases = []
            for got, (budget, wanted) in zip(gots, budgets, strict=True):
                known = guesses.ranks_within(shapes, budget, wanted)
                below = type(got) is int and got < wanted
                if below and low > 4000:  # small ones were right
                    known |= {"is the search over there? The budget alone sets the limit": got}
                if below and got >= 16 and set(gots) == {got} and low < 4000:
                    known |= {"nothing but the budget limits it: the budget alone does": got}
                cases.append((f"{of} {budget}", got, wanted, known))
            expect_numbers(cases)
        with part():
            call, little = f"{of} {sides - 1}", sides - 1
            got = ask(
                call, probes.rank_within, matched_rank, shapes, little, hint=guesses.NONE_FITS
            )
            expect(got is not None, f"{call} gave None; {guesses.NONE_FITS}")
            expect_number(got, 0, call, guesses.ranks_within(shapes, little, 0))
        if not sound():
            return
    _expect_smol(matched_rank)


def _expect_smol(matched_rank):
    """The ranks that the lab asks for itself."""
    attention = {n: s for n, s in guesses.SMOL.items() if n.split(".")[-1][0] in "qkvo"}
    mlp = {name: shape for name, shape in guesses.SMOL.items() if name not in attention}
    for name, shapes, wanted in [
        ("attention", attention, 10),
        ("MLP", mlp, 6),
        ("all linear", guesses.SMOL, 4),
    ]:
        got = observe(probes.rank_within, matched_rank, shapes, 1_221_120)
        known = guesses.ranks_within(shapes, 1_221_120, wanted)
        expect_number(got, wanted, f"matched_rank, SmolLM2 {name} layers, 1,221,120", known)


OF_ROWS = (
    "left singular vectors, or columns of Vh? They have r numbers, the right ones, the rows of Vh, "
    "d_in"
)
SHAPES = {"cannot be multiplied": OF_ROWS, "matmul: ": OF_ROWS, "not aligned": OF_ROWS}


@exercise("5.4", points=3)
def overlaps(subspace_similarity):
    """1 for equal spans, about i / d for random ones, unmoved by rotation; as projectors have it"""
    rng = generator()
    d = draw(40, 60, rng)
    A1, A2 = _spread(6, d, rng), _spread(9, d, rng)
    turned = torch.linalg.qr(randn(6, 6, rng=rng))[0] @ A1
    shared = torch.cat([A1[:3], 1e-3 * _spread(5, d, rng)])
    cases = [
        ("two of one rank", A1, _spread(6, d, rng), 2, 5),
        ("the same A rotated", A1, turned, 6, 6),
        ("two random matrices", A1, A2, 3, 3),
        ("two random matrices", A1, A2, 2, 5),
        ("two random matrices", A1, A2, 6, 4),
        ("two random matrices", A1, A2, 1, 9),
        ("A and the same A rotated", A1, turned, 2, 4),
        ("A and a matrix with three of its rows", A1, shared, 6, 3),
        ("a square and a thin matrix", _spread(12, 12, rng), _spread(4, 12, rng), 5, 4),
        ("two square matrices", _spread(7, 7, rng), _spread(7, 7, rng), 2, 3),
    ]
    told, sizes, failed = [], [], None
    followed = laws(*changes.overlaps(subspace_similarity, A1, A2, 2, 5))
    with simplest(small.overlaps(subspace_similarity)), followed, likeliest() as case:
        for what, first, second, i, j in cases:
            call = f"subspace_similarity of {what}, i={i}, j={j}"
            try:
                got = ask(call, subspace_similarity, first, second, i, j, hint=SHAPES)
            except CheckFailed as failure:
                failed = CheckFailed(failure, bare=OF_ROWS not in str(failure))
                break
            wanted = guesses.overlap(first, second, i, j) / min(i, j)
            told.append((call, frames.number(got), wanted, guesses.overlaps(first, second, i, j)))
            sizes.append({"i": i, "j": j, "r1": len(first), "r2": len(second)})
            sizes[-1]["d_in"] = first.shape[1]
        with case():
            expect_numbers(told, tol=1e-3, sizes=sizes)
        with case():
            if failed:  # a name for the numbers before it is told first
                raise failed


def _spread(r, d, rng):
    """A random (r, d) matrix whose singular values lie clearly apart."""
    left = torch.linalg.qr(randn(r, r, rng=rng))[0]
    right = torch.linalg.qr(randn(d, r, rng=rng))[0]
    return left @ torch.diag(3.0 * 0.7 ** torch.arange(r)) @ right.T


@exercise("5.5", points=3)
def pairs(paired_difference):
    """pairs by seed, leaves failed runs out, the error of the mean; nan where too few are shared"""
    expect_differences(paired_difference, generator())


@exercise("5.6", points=4)
def quiz(quiz):
    """four answers, each with its reason"""
    return judge(quiz, "05")
