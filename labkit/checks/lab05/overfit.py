"""What exercise 5.6 expects of overfit_gap."""

import torch

from labkit.checks.compare import draw, expect_numbers
from labkit.checks.lab05 import frames, guesses, small
from labkit.checks.simplest import simplest
from labkit.contract import expect, observe, part
from labkit.labs.lab05 import probes


def expect_gaps(overfit_gap, rng):
    """A row a rank with the best step, the gap and the rise; all of a column are told at once."""
    history, wanted = _history(rng)
    call = "overfit_gap of three ranks"
    got = observe(probes.gaps, overfit_gap, history)
    table = frames.columns(got, ("rank", "best_step", "gap", "rise"), call)
    ranks, hint = sorted(wanted), "; ranks may end at different steps: look at one at a time"
    told = frames.expect_ranks(table["rank"], ranks, call, hint)
    with part():
        expect(told == ranks, f"{call}: its rows are for the ranks {told}: wanted is rising order")
    columns = ("best_step", "gap", "rise")
    rows = [[frames.number(table[name][k]) for name in columns] for k in range(len(told))]
    hint = "take the rows of each rank alone, and compute from these"
    alike = None not in rows[0] and all(row == rows[0] for row in rows)
    expect(not alike, f"{call}: all its rows are the same: {hint}")
    _expect_beside(rows, [[wanted[r][0][name] for name in columns] for r in told], call)
    for name in columns:
        cases = []
        for r, value in zip(told, table[name], strict=True):
            right, known = wanted[r]
            at = f"{call}: {name} at rank {r}"
            cases.append((at, _cell(value, right[name]), right[name], known[name]))
        with part(), simplest(small.gaps(overfit_gap, name)):
            for at, value, *_ in cases:
                hint = "ranks may have different steps: look at one rank at a time"
                expect(value is not None, f"{at} is missing (NaN): {hint}")
            expect_numbers(cases)


def _expect_beside(rows, wanted, call):
    """Raise CheckFailed where the rows are those wanted, in another order."""

    def same(a, b):
        return all(type(x) is float and abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))

    places = [[k for k, row in enumerate(wanted) if same(mine, row)] for mine in rows]
    moved = sorted(place for place, *_ in filter(None, places)) == list(range(len(wanted)))
    hint = "groupby sorts the ranks, unique() does not"
    moved = moved and any(k not in place for k, place in enumerate(places))
    expect(not moved, f"{call}: its rows are right and stand beside other ranks: {hint}")


def _cell(value, wanted):
    """A cell as the kind of number that is wanted."""
    return frames.whole(value) if type(wanted) is int else frames.number(value)


def _history(rng):
    """Columns of a history in shuffled order, and {rank: (right row, guesses)}."""
    ranks = (draw(2, 5, rng), draw(6, 20, rng), draw(30, 64, rng))
    curves = {r: _curves(rng, k) for k, r in enumerate(ranks)}
    rows = [[r, *row] for r, curve in curves.items() for row in zip(*curve[:3], strict=True)]
    rows = [rows[i] for i in torch.randperm(len(rows), generator=rng).tolist()]
    ends = {(r, steps[best + 1]): -1 for r, (steps, *_, best) in curves.items()}  # the tie first,
    ends |= {(r, steps[-2]): 1 for r, (steps, *_) in curves.items()}  # and not the last step last
    rows.sort(key=lambda row: ends.get((row[0], row[1]), 0))
    first = next(i for i, row in enumerate(rows) if row[0] != min(curves))
    rows.insert(0, rows.pop(first))
    last = {r: step for r, step, *_ in rows}  # of the table's last row of r
    wanted = {}
    for r, (steps, train, held, best) in curves.items():
        labels = [rows.index([r, steps[k], train[k], held[k]]) for k in (best, best + 1)]
        wanted[r] = guesses.gap_of(steps, train, held, best, steps.index(last[r]), labels)
    names = ("rank", "step", "train_loss", "held_out_loss")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)), wanted


def _curves(rng, k):
    """Steps, training losses, held-out losses, and where these are lowest, of the k-th rank."""
    steps = [10 * i + k for i in range(1, 8 - k % 2)]
    train = sorted((draw(100, 900, rng) / 1000 for _ in steps), reverse=True)
    best, low = draw(1, 3, rng), draw(400, 1600, rng) / 1000
    held = [low + abs(i - best) * draw(50, 90, rng) / 1000 for i in range(len(steps))]
    held[best + 1] = held[best]  # a tie: the first one counts
    if k == 0:
        train = [t + 2 for t in train]  # the gaps of the lowest rank are below zero
    elif k == 1:
        held[0] += 2  # the largest gap of the next one is its first
    return steps, train, held, best
