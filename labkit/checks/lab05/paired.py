"""What exercise 5.5 expects of `paired_difference`, and what misconceptions give."""

import math
import statistics
from typing import NamedTuple

from labkit.checks.compare import ask, draw, expect_numbers_or_first
from labkit.checks.lab05 import small
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab05 import probes

NONE = float("nan")


class Table(NamedTuple):
    """A frame of runs: what it is, its columns, its labels; a and b are the methods compared."""

    what: str
    columns: dict
    index: list
    a: str
    b: str

    def scores(self, method):
        """{seed: score} of a method, its failed runs left out."""
        return {s: x for s, x in self.all(method).items() if x == x}

    def all(self, method):
        """{seed: score} of a method, failed runs among them, in the table's order."""
        rows = zip(*(self.columns[name] for name in ("method", "seed", "score")), strict=True)
        return {seed: score for name, seed, score in rows if name == method}

    @property
    def differences(self):
        """score(a) - score(b) of each seed that both have."""
        first, second = self.scores(self.a), self.scores(self.b)
        return [first[seed] - second[seed] for seed in first if seed in second]


def expect_differences(paired_difference, rng):
    """Mean and standard error over shared seeds; nan where there are too few of them."""
    tables = [
        _table("with the same seeds", range(6), range(6), rng),
        _table("with other seeds for each", [0, 1, 2, 3, 7], [1, 2, 3, 4, 5, 7], rng),
        _table("of which two failed", range(6), range(7), rng, failed=2, turned=True),
        _table("with two seeds", [3, 5], [5, 3], rng),
    ]
    asked = [(table, *_asked(paired_difference, table)) for table in tables]
    with part(), simplest(small.differences(paired_difference, 0)):
        cases = [
            (call, got[0], statistics.fmean(table.differences), means(table))
            for table, call, got in asked
        ]
        _expect_no_nan(cases)
        expect_numbers_or_first(cases)
    with part(), simplest(small.differences(paired_difference, 1)):
        cases = [
            (f"{call}: the error", got[1], error_of(table.differences), errors(table))
            for table, call, got in asked
        ]
        _expect_no_nan(cases)
        expect_numbers_or_first(cases)
    if sound():
        _expect_few(paired_difference, rng)


def _expect_no_nan(cases):
    """Both numbers exist in each of these tables."""
    for call, got, *_ in cases:
        hint = "leave failed runs (nan) out, of both; and let the seeds pair, not the rows"
        expect(got != "nan", f"{call} is nan; {hint}")


def _expect_few(paired_difference, rng):
    """One shared seed gives a mean and no error; none gives neither."""
    one = _table("with one shared seed", [0, 1], [1, 2], rng)
    lone = _table("with one seed left, the other failed", [0, 1], [0, 1], rng, failed=1)
    for table in (one, lone):
        hint = "one difference has a mean, and nothing to tell its error by: (mean, nan)"
        call, got = _asked(paired_difference, table, hint)
        with part():
            told = [(call, got[0], table.differences[0], means(table))]
            expect(got[0] != "nan", f"{call}: the mean is nan; {hint}")
            expect_numbers_or_first(told)
            expect(got[1] == "nan", f"{call}: the error is {got[1]}; {hint}")
    if sound():
        none = _table("with no shared seed", [0, 1, 2], [3, 4, 5], rng)
        hint = "with no difference at all both are nan"
        call, got = _asked(paired_difference, none, hint)
        expect(got == ["nan", "nan"], f"{call} gave {_shown(got)}; {hint}")


def _shown(got):
    return f"({', '.join(str(figure) for figure in got)})"


def _table(what, first, second, rng, failed=0, turned=False):
    """Runs in any order, whose seeds differ more than their methods; others stand beside them."""
    luck = {seed: draw(100, 900, rng) / 100 for seed in range(8)}
    rows = []
    for method, seeds in (("lora", first), ("lora+", second), ("dora", second)):
        for seed in seeds:
            gain = draw(40, 90, rng) if seed % 2 else -draw(5, 30, rng)
            score = luck[seed] + {"lora": gain / 100, "lora+": 0.0, "dora": 2.0}[method]
            rows.append([method, seed, round(score, 2)])
    for k in range(failed):  # the first one's first seed, the other's last but one
        lost = ("lora", next(iter(first))) if k == 0 else ("lora+", list(second)[-2])
        next(row for row in rows if row[:2] == list(lost))[2] = NONE
    rows = [rows[i] for i in _order(len(rows), rng)]
    names = ("method", "seed", "score")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["note"] = ["again"] * len(rows)
    if len(rows) > 9:
        columns["note"][columns["method"].index("lora")] = None
    names = ("lora+", "lora") if turned else ("lora", "lora+")
    return Table(what, columns, [i // 2 for i in range(len(rows))], *names)


def _order(n, rng):
    import torch

    return torch.randperm(n, generator=rng).tolist()


def _asked(paired_difference, table, hint=""):
    """The call as one writes it, and the two figures that came: numbers, or "nan"."""
    call = f'paired_difference(frame, "{table.a}", "{table.b}") of runs {table.what}'
    data = (paired_difference, table.columns, table.index, table.a, table.b)
    got = ask(call, probes.difference, *data, hint=hint or {"": ""})
    wanted = "wanted two numbers, (mean, error)"
    if isinstance(got, dict):
        raise CheckFailed(f"{call} gave {got['is']}, {wanted}")
    expect(len(got) == 2, f"{call} gave {len(got)} things, {wanted}")
    for figure, name in zip(got, ("mean", "error"), strict=True):
        kind = figure["is"] if isinstance(figure, dict) else ""
        expect(not kind, f"{call}: the {name} is {kind}, wanted a number (float('nan') for none)")
        expect(not isinstance(figure, bool), f"{call}: the {name} is {figure}, wanted a number")
    return call, [float(x) if type(x) is int else x for x in got]


def error_of(values):
    """The standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def means(table):
    """Wrong means."""
    first, second = table.scores(table.a), table.scores(table.b)
    whole = table.all(table.a), table.all(table.b)
    right, n = table.differences, len(table.differences)
    mean = statistics.fmean(right)
    rows = [x - y for x, y in zip(first.values(), second.values(), strict=False)]
    order = [x - y for x, y in zip(*(d.values() for d in whole), strict=False) if x == x and y == y]
    zeros = [
        {seed: 0.0 if x != x else x for seed, x in side.items()} for side in whole
    ]  # failed runs counted as 0
    both = [zeros[0][seed] - zeros[1][seed] for seed in zeros[0] if seed in zeros[1]]
    filled = [first.get(s, 0.0) - second.get(s, 0.0) for s in {*first, *second}]
    holes = Table(*table[:1], _without_holes(table.columns), *table[2:]).differences
    others = [x for name in ("lora", "lora+", "dora") for x in table.scores(name).values()]
    return {
        "the sign is turned round: score(a) - score(b)": -mean,
        'rows with a hole in another column are gone: dropna(subset=["score"]) looks at one': (
            statistics.fmean(holes or right)
        ),
        "the means are of all seeds; take the difference of each seed that both have": (
            statistics.fmean(first.values()) - statistics.fmean(second.values())
        ),
        "rows are paired by their order; pair those of one seed": statistics.fmean(rows),
        "rows are paired by their order in the table; pair those of one seed": (
            statistics.fmean(order) if order else mean
        ),
        "a failed run counts with some number here: leave its seed out": statistics.fmean(both),
        "a seed that only one has counts as 0 here: leave it out": statistics.fmean(filled),
        "divided by more seeds than both have": sum(right) / len({*first, *second}),
        "rows are paired by their order, from the lowest seed on; pair those of one seed": (
            statistics.fmean(_by_place(whole))
        ),
        "mean and error are swapped: (mean, error)": error_of(right) if n > 1 else mean,
        "that is in percent of b; wanted is the difference": statistics.fmean(
            100 * (first[s] / second[s] - 1) for s in first if s in second
        ),
        "that is halfway between the largest and the smallest": (max(right) + min(right)) / 2,
        "it is rounded; give the number as it is": _rounded(mean),
        "that is the median; wanted is the mean": statistics.median(right),
        "that is the sum; wanted is the mean": sum(right),
        "that is the mean of the sizes: keep the signs": statistics.fmean(map(abs, right)),
        "that is in proportion to b; wanted is the difference": statistics.fmean(
            first[s] / second[s] - 1 for s in first if s in second
        ),
        "that is the first difference alone": right[0],
        "that is an end of an interval; wanted are (mean, error)": mean - error_of(right)
        if n > 1
        else mean,
        "that is a ratio; wanted is the difference": statistics.fmean(
            first[s] / second[s] for s in first if s in second
        ),
        "that is the first seed's difference alone": min(
            (s, first[s] - second[s]) for s in first if s in second
        )[1],
        "that is the mean of all runs in the table": statistics.fmean(others),
        "that is a's mean; take b's score from it, seed by seed": statistics.fmean(first.values()),
        "that is b's mean; take it from a's, seed by seed": statistics.fmean(second.values()),
        "divided by n - 1: the mean divides by n": sum(right) / max(1, n - 1),
        '"lora" is in "lora+" too: compare whole names, with ==': _of_parts(table),
    }


def _by_place(sides):
    """Differences of rows that stand at one place once each side is sorted by seed."""
    values = [[side[seed] for seed in sorted(side)] for side in sides]
    gaps = [x - y for x, y in zip(*values, strict=False) if x == x and y == y]
    return gaps if len(gaps) > 1 else [0.0, 0.0]


def _rounded(value):
    """The value to three digits behind the point, or fewer, where that changes it."""
    cut = (round(value, n) for n in (3, 2, 1))
    return next((short for short in cut if abs(short - value) > 1e-4 * abs(value)), 0.0)


def _without_holes(columns):
    """The columns without the rows in which any of them has none."""
    rows = [row for row in zip(*columns.values(), strict=True) if None not in row]
    return dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))


def _of_parts(table):
    """The mean where a name is looked for within names: a is then a and b together."""
    pool = [*table.scores(table.a).values(), *table.scores(table.b).values()]
    return statistics.fmean(pool) - statistics.fmean(table.scores(table.b).values())


def errors(table):
    """Wrong standard errors."""
    first, second = table.scores(table.a), table.scores(table.b)
    right, n = table.differences, len(table.differences)
    spread, both = statistics.stdev(right), [s for s in first if s in second]
    pairs = [[side[s] for s in both] for side in (first, second)]
    rows = [x - y for x, y in zip(first.values(), second.values(), strict=False)]
    apart = [statistics.variance(values) / len(values) for values in pairs]
    alone = [statistics.variance(v) / len(v) for v in (first.values(), second.values())]
    zeros = [
        {seed: 0.0 if x != x else x for seed, x in table.all(name).items()}
        for name in (table.a, table.b)
    ]
    filled = [zeros[0][seed] - zeros[1][seed] for seed in zeros[0] if seed in zeros[1]]
    size = statistics.fmean(abs(x - statistics.fmean(right)) for x in right)
    unpaired = "that is the error of two means apart; the seeds are shared, so take the spread of"
    return {
        "that is the spread of the differences; the error of their mean is it over sqrt(n)": spread,
        "divide by sqrt(n), not by n": spread / n,
        "divided by n inside: the spread of a sample divides by n - 1 (NumPy wants ddof=1)": (
            statistics.pstdev(right) / math.sqrt(n)
        ),
        "that is the spread, and divided by n inside (NumPy wants ddof=1); over sqrt(n), too": (
            statistics.pstdev(right)
        ),
        f"{unpaired} the differences": math.sqrt(sum(apart)),
        f"{unpaired} the differences alone": math.sqrt(sum(alone)),
        "that is the difference of two errors; wanted is that of the differences": (
            math.sqrt(apart[0]) - math.sqrt(apart[1])
        ),
        "that is the sum of two errors; wanted is that of the differences": sum(
            map(math.sqrt, apart)
        ),
        "that is the variance over n: its root is wanted": spread**2 / n,
        "that is the variance; its root over sqrt(n) is wanted": spread**2,
        "n is the number of shared seeds, not of rows": spread / math.sqrt(2 * n),
        "n is the number of shared seeds, not of those that either has": spread
        / math.sqrt(len({*first, *second})),
        "n is the number of shared seeds, not of a's": spread / math.sqrt(len(first)),
        "n is the number of shared seeds, not of b's": spread / math.sqrt(len(second)),
        "n is the number of shared seeds, failed ones left out": spread
        / math.sqrt(len({*table.all(table.a)} & {*table.all(table.b)})),
        "divide by sqrt(n); the n - 1 is inside already": spread / math.sqrt(max(1, n - 1)),
        "that is 1.96 errors, a 95% interval; one is wanted": 1.96 * spread / math.sqrt(n),
        "that is 2 errors; one is wanted": 2 * spread / math.sqrt(n),
        "that is half of the range; wanted is the standard error": (max(right) - min(right)) / 2,
        "that is the range; wanted is the standard error": max(right) - min(right),
        "that is the mean size of the deviations; wanted is the standard error": size,
        "that is the mean size of the deviations over sqrt(n); square them": size / math.sqrt(n),
        "a failed run counts with some number here: leave its seed out": error_of(filled),
        "mean and error are swapped: (mean, error)": statistics.fmean(right),
        "that is a's own error; wanted is that of the differences": math.sqrt(alone[0]),
        "that is b's own error; wanted is that of the differences": math.sqrt(alone[1]),
        "that is the difference of two spreads; wanted is the error of the differences": (
            statistics.stdev(first.values()) - statistics.stdev(second.values())
        ),
        "that is an end of an interval; wanted are (mean, error)": statistics.fmean(right)
        + spread / math.sqrt(n),
        "n is the number of differences, not of all rows": spread
        / math.sqrt(len(table.columns["seed"])),
        "it is rounded; give the number as it is": _rounded(spread / math.sqrt(n)),
        "rows are paired by their order, from the lowest seed on; pair those of one seed": error_of(
            _by_place([table.all(name) for name in (table.a, table.b)])
        ),
        "rows are paired by their order; pair those of one seed": error_of(rows),
    }
