"""What misconceptions give for `paired_difference` of exercise 5.5."""

import math
import statistics
from typing import NamedTuple


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


OTHERS = "seeds that another method lacks are gone: a and b have to have it, no other"


def error_of(values):
    """The standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def means(table):
    """Wrong means."""
    return _mean_pairs(table) | _mean_figures(table)


def _mean_pairs(table):
    """What wrong pairs give."""
    first, second = table.scores(table.a), table.scores(table.b)
    whole = table.all(table.a), table.all(table.b)
    right = table.differences
    mean = statistics.fmean(right)
    rows = [x - y for x, y in zip(first.values(), second.values(), strict=False)]
    order = [x - y for x, y in zip(*(d.values() for d in whole), strict=False) if x == x and y == y]
    zeros = [{seed: 0.0 if x != x else x for seed, x in side.items()} for side in whole]
    both = [zeros[0][seed] - zeros[1][seed] for seed in zeros[0] if seed in zeros[1]]
    filled = [first.get(s, 0.0) - second.get(s, 0.0) for s in {*first, *second}]
    common = of_every_method(table) or right
    holes = Table(*table[:1], _without_holes(table.columns), *table[2:]).differences
    return {
        "the sign is turned round: score(a) - score(b)": (-mean),
        'rows with a hole in another column are gone: dropna(subset=["score"]) looks at one': (
            statistics.fmean(holes or right)
        ),
        OTHERS: statistics.fmean(common),
        "all other methods are taken for b": statistics.fmean(_from_all_others(table)),
        "the means are of all seeds; take the difference of each seed that both have": (
            statistics.fmean(first.values()) - statistics.fmean(second.values())
        ),
        "rows are paired by their order; pair those of one seed": (statistics.fmean(rows)),
        "rows are paired by their order in the table; pair those of one seed": (
            statistics.fmean(order) if order else mean
        ),
        "a failed run counts with some number here: leave its seed out": (statistics.fmean(both)),
        "a seed that only one has counts as 0 here: leave it out": (statistics.fmean(filled)),
        "divided by more seeds than both have": (sum(right) / len({*first, *second})),
        "rows are paired by their order, from the lowest seed on; pair those of one seed": (
            statistics.fmean(_by_place(whole))
        ),
    }


def _mean_figures(table):
    """Other figures than the mean."""
    first, second = table.scores(table.a), table.scores(table.b)
    right, n = table.differences, len(table.differences)
    mean = statistics.fmean(right)
    others = [x for name in ("lora", "lora+", "dora") for x in table.scores(name).values()]
    return {
        "mean and error are swapped: (mean, error)": (error_of(right) if n > 1 else mean),
        "that is in percent of b; wanted is the difference": (
            statistics.fmean(100 * (first[s] / second[s] - 1) for s in first if s in second)
        ),
        "that is halfway between the largest and the smallest": ((max(right) + min(right)) / 2),
        "it is rounded; give the number as it is": (_rounded(mean)),
        "that is the median; wanted is the mean": (statistics.median(right)),
        "that is the mean over its error, a t value; wanted is the mean": (
            mean / error_of(right) if n > 1 else mean
        ),
        "that is the sum; wanted is the mean": (sum(right)),
        "that is the mean of the sizes: keep the signs": (statistics.fmean(map(abs, right))),
        "that is in proportion to b; wanted is the difference": (
            statistics.fmean(first[s] / second[s] - 1 for s in first if s in second)
        ),
        "that is the first difference alone": (right[0]),
        "that is an end of an interval; wanted are (mean, error)": (
            mean - error_of(right) if n > 1 else mean
        ),
        "that is a ratio; wanted is the difference": (
            statistics.fmean(first[s] / second[s] for s in first if s in second)
        ),
        "that is the first seed's difference alone": (
            min((s, first[s] - second[s]) for s in first if s in second)[1]
        ),
        "that is the mean of all runs in the table": (statistics.fmean(others)),
        "that is a's mean; take b's score from it, seed by seed": (
            statistics.fmean(first.values())
        ),
        "that is b's mean; take it from a's, seed by seed": (statistics.fmean(second.values())),
        "divided by n - 1: the mean divides by n": (sum(right) / max(1, n - 1)),
        '"lora" is in "lora+" too: compare whole names, with ==': (_of_parts(table)),
    }


def of_every_method(table):
    """Differences of the seeds that every method of the table has."""
    sides = [table.scores(name) for name in dict.fromkeys(table.columns["method"])]
    first, second = table.scores(table.a), table.scores(table.b)
    return [first[s] - second[s] for s in first if all(s in side for side in sides)]


def _from_all_others(table):
    """Differences from the mean of all other methods, seed by seed."""
    first = table.scores(table.a)
    others = [table.scores(m) for m in dict.fromkeys(table.columns["method"]) if m != table.a]
    pools = {s: [side[s] for side in others if s in side] for s in first}
    return [first[s] - statistics.fmean(pool) for s, pool in pools.items() if pool]


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
    return _error_figures(table) | _error_counts(table) | _error_pairs(table)


def _error_figures(table):
    """Other figures than the standard error, and those of two means."""
    first, second = table.scores(table.a), table.scores(table.b)
    right, n = table.differences, len(table.differences)
    spread, both = statistics.stdev(right), [s for s in first if s in second]
    pairs = [[side[s] for s in both] for side in (first, second)]
    apart = [statistics.variance(values) / len(values) for values in pairs]
    alone = [statistics.variance(v) / len(v) for v in (first.values(), second.values())]
    unpaired = "that is the error of two means apart; the seeds are shared, so take the spread of"
    return {
        "that is the spread of the differences; the error of their mean is it over sqrt(n)": (
            spread
        ),
        "divide by sqrt(n), not by n": (spread / n),
        "divide by sqrt(n), not by n - 1, which std() has inside": (spread / max(1, n - 1)),
        "divided by n inside: the spread of a sample divides by n - 1 (NumPy wants ddof=1)": (
            statistics.pstdev(right) / math.sqrt(n)
        ),
        "that is the spread, and divided by n inside (NumPy wants ddof=1); over sqrt(n), too": (
            statistics.pstdev(right)
        ),
        f"{unpaired} the differences": (math.sqrt(sum(apart))),
        f"{unpaired} the differences alone": (math.sqrt(sum(alone))),
        "that is the difference of two errors; wanted is that of the differences": (
            math.sqrt(apart[0]) - math.sqrt(apart[1])
        ),
        "that is the sum of two errors; wanted is that of the differences": (
            sum(map(math.sqrt, apart))
        ),
        "that is the mean over its error; wanted is the error": (
            statistics.fmean(right) / (spread / math.sqrt(n))
        ),
        "that is the variance over n: its root is wanted": (spread**2 / n),
        "that is the variance; its root over sqrt(n) is wanted": (spread**2),
        "that is the variance over sqrt(n): var() is the square of std()": (
            spread**2 / math.sqrt(n)
        ),
    }


def _error_counts(table):
    """Wrong numbers of differences, and wider intervals."""
    first, second = table.scores(table.a), table.scores(table.b)
    right, n = table.differences, len(table.differences)
    spread = statistics.stdev(right)
    size = statistics.fmean(abs(x - statistics.fmean(right)) for x in right)
    return {
        "n is the number of shared seeds, not of rows": (spread / math.sqrt(2 * n)),
        "n is the number of shared seeds, not of those that either has": (
            spread / math.sqrt(len({*first, *second}))
        ),
        "n is the number of shared seeds, not of a's": (spread / math.sqrt(len(first))),
        "n is the number of shared seeds, not of b's": (spread / math.sqrt(len(second))),
        "n is the number of shared seeds, failed ones left out": (
            spread / math.sqrt(len({*table.all(table.a)} & {*table.all(table.b)}))
        ),
        "divide by sqrt(n); the n - 1 is inside already": (spread / math.sqrt(max(1, n - 1))),
        "that is 1.96 errors, a 95% interval; one is wanted": (1.96 * spread / math.sqrt(n)),
        "that is 2 errors; one is wanted": (2 * spread / math.sqrt(n)),
        "that is half of the range; wanted is the standard error": ((max(right) - min(right)) / 2),
        "that is the range; wanted is the standard error": (max(right) - min(right)),
        "that is the mean size of the deviations; wanted is the standard error": (size),
    }


def _error_pairs(table):
    """What wrong pairs give, and errors of one side."""
    first, second = table.scores(table.a), table.scores(table.b)
    right, n = table.differences, len(table.differences)
    spread = statistics.stdev(right)
    rows = [x - y for x, y in zip(first.values(), second.values(), strict=False)]
    alone = [statistics.variance(v) / len(v) for v in (first.values(), second.values())]
    zeros = [
        {seed: 0.0 if x != x else x for seed, x in table.all(name).items()}
        for name in (table.a, table.b)
    ]
    filled = [zeros[0][seed] - zeros[1][seed] for seed in zeros[0] if seed in zeros[1]]
    common = of_every_method(table)
    size = statistics.fmean(abs(x - statistics.fmean(right)) for x in right)
    return {
        "that is the mean size of the deviations over sqrt(n); square them": (size / math.sqrt(n)),
        "a failed run counts with some number here: leave its seed out": (error_of(filled)),
        "mean and error are swapped: (mean, error)": (statistics.fmean(right)),
        OTHERS: error_of(common if len(common) > 1 else right),
        "all other methods are taken for b": error_of(_from_all_others(table)),
        "the mean is not taken off: the spread is about the mean": (
            math.sqrt(sum(x * x for x in right) / (n - 1) / n)
        ),
        "that is a's own error; wanted is that of the differences": (math.sqrt(alone[0])),
        "that is b's own error; wanted is that of the differences": (math.sqrt(alone[1])),
        "that is the difference of two spreads; wanted is the error of the differences": (
            statistics.stdev(first.values()) - statistics.stdev(second.values())
        ),
        "that is an end of an interval; wanted are (mean, error)": (
            statistics.fmean(right) + spread / math.sqrt(n)
        ),
        "n is the number of differences, not of all rows": (
            spread / math.sqrt(len(table.columns["seed"]))
        ),
        "it is rounded; give the number as it is": (_rounded(spread / math.sqrt(n))),
        "rows are paired by their order, from the lowest seed on; pair those of one seed": (
            error_of(_by_place([table.all(name) for name in (table.a, table.b)]))
        ),
        "rows are paired by their order; pair those of one seed": (error_of(rows)),
    }
