"""What exercise 5.5 expects of `paired_difference`, and what misconceptions give."""

import contextlib
import math
import statistics

from labkit.checks.compare import ask, draw, expect_numbers_or_first
from labkit.checks.lab05 import small
from labkit.checks.lab05.differences import OTHERS, Table, error_of, errors, means, of_every_method
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab05 import probes

NONE = float("nan")
GONE = "all runs of that method failed, and pivot_table or dropna left nothing of it: both are nan"


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
        _expect_no_nan(asked, 0)
        expect_numbers_or_first(cases)
    with part(), _unless_told(), simplest(small.differences(paired_difference, 1)):
        cases = [
            (f"{call}: the error", got[1], error_of(table.differences), errors(table))
            for table, call, got in asked
        ]
        _expect_no_nan(asked, 1)
        expect_numbers_or_first(cases)
    if sound():
        _expect_few(paired_difference, rng)


@contextlib.contextmanager
def _unless_told():
    """A wrong error without a name says nothing where the mean is wrong: it has the same pairs."""
    try:
        yield
    except CheckFailed as failure:
        if sound() or not failure.bare:
            raise


def _expect_no_nan(asked, which):
    """The mean (0) or the error (1) exists in each of these tables."""
    first, _, (mean, _) = asked[0]
    for table, call, got in asked:
        told = f"{call}: the error" if which else call
        expect(got[which] != "nan", f"{told} is nan; {_why_nan(table, first, mean)}")


def _why_nan(table, first, mean):
    """What is missing in a table, for an answer that is nan; of the `first` it gave the `mean`."""
    if any(score != score for score in table.columns["score"]):
        return "leave failed runs (nan) out, of both"
    columns = zip(table.columns["method"], table.columns["seed"], strict=True)
    pairs = set(columns)
    if {seed for m, seed in pairs if m == table.a} != {seed for m, seed in pairs if m == table.b}:
        return "a seed that one of them lacks is left out"
    if mean != "nan" and math.isclose(mean, statistics.fmean(first.differences), rel_tol=1e-4):
        return f"{len(table.differences)} differences have a mean, and from two on a spread, too"
    if mean != "nan" and math.isclose(mean, statistics.fmean(of_every_method(first)), rel_tol=1e-4):
        return OTHERS
    return "no run failed, and both have all seeds: pair rows by their seed, not by their label"


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
        lost = _table("of which one method's all failed", [0, 1, 2], [0, 1, 2], rng)
        lost.columns["score"][:] = [
            NONE if method == lost.a else score
            for method, score in zip(lost.columns["method"], lost.columns["score"], strict=True)
        ]
        for table in (none, lost):
            call, got = _asked(paired_difference, table, {"KeyError": GONE, "": hint})
            expect(got == ["nan", "nan"], f"{call} gave {_shown(got)}; {hint}")


def _shown(got):
    return f"({', '.join(str(figure) for figure in got)})"


def _table(what, first, second, rng, failed=0, turned=False):
    """Runs in any order, whose seeds differ more than their methods; others stand beside them."""
    luck = {seed: draw(100, 900, rng) / 100 for seed in range(8)}
    rows = []
    for method, seeds in (("lora", first), ("lora+", second), ("dora", list(second)[1:])):
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
    apart = "the two have not the same seeds: pair scores by seed, not by their place"
    lengths = {"could not be broadcast": apart, "same length": apart, "": ""}
    got = ask(call, probes.difference, *data, hint=hint or lengths)
    wanted = "wanted two numbers, (mean, error)"
    if isinstance(got, dict):
        raise CheckFailed(f"{call} gave {got['is']}, {wanted}")
    expect(len(got) == 2, f"{call} gave {len(got)} things, {wanted}")
    for figure, name in zip(got, ("mean", "error"), strict=True):
        kind = figure["is"] if isinstance(figure, dict) else ""
        expect(not kind, f"{call}: the {name} is {kind}, wanted a number (float('nan') for none)")
        expect(not isinstance(figure, bool), f"{call}: the {name} is {figure}, wanted a number")
    return call, [float(x) if type(x) is int else x for x in got]
