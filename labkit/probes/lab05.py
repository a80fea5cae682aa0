"""Probes for lab 5."""

import functools

import numpy as np
import pandas as pd

from labkit.contract import kept, kind

FEW = 3  # seeds listed in a message


def stored(bits_stored, losses, n_choices):
    """The result of `bits_stored`; an empty sum may be an int."""
    got = bits_stored(losses, n_choices)
    return {"the result": float(got) if type(got) is int else got}


def _number(value):
    """Convert a number to a float; return everything else as it is."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else value


def _text(value):
    """Show a number with six digits; text, None and booleans as they are; other types by name."""
    value = _number(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if callable(value):
        return "a function: call alpha_of(rank)"
    return repr(value) if isinstance(value, str | bool | None) else kind(value)


ALPHAS = {"twice": lambda rank: 2 * rank, "fixed": lambda rank: 24.25}  # rules for alpha


def _swept(sweep, ranks, learning_rates, rule, names):
    """The result of `sweep` and its calls; a run returns a number for each of `names`."""
    calls = []

    def train_fn(rank, alpha, learning_rate, seed):
        calls.append((rank, alpha, learning_rate, seed))
        return {name: result(i, rank, float(learning_rate)) for i, name in enumerate(names)}

    train_fn.__qualname__ = "train_fn"
    named = functools.partial(sweep, alpha_of=ALPHAS[rule])
    return kept(named, train_fn, ranks, learning_rates), calls


def result(i, rank, learning_rate):
    """The result number `i` of a run, with too many digits to survive rounding."""
    return (i + 1) * rank / 7 + learning_rate


def runs(sweep, ranks, learning_rates, rule, names):
    """The runs that `sweep` makes."""
    frame, calls = _swept(sweep, ranks, learning_rates, rule, names)
    facts = {"the return value": kind(frame)}
    pairs = [f"({rank}, {rate})" for rank, _, rate, _ in calls]
    facts["the calls of train_fn per pair"] = max(map(pairs.count, pairs), default=1)
    facts["the number of runs"] = len(calls)
    kinds = ("a float" if isinstance(rank, float) else kind(rank) for rank, *_ in calls)
    facts["the rank that train_fn gets"] = " or ".join(sorted(set(kinds)))
    rates = {repr(rate) if isinstance(rate, str) else f"{rate}" for _, _, rate, _ in calls}
    facts["learning_rate in the runs"] = ", ".join(sorted(rates))
    facts["the runs (rank, learning rate)"] = sorted(set(pairs))
    for rank in ranks:
        alphas = dict.fromkeys(_text(alpha) for r, alpha, *_ in calls if r == rank)
        facts[f"alpha in the runs at rank {rank}"] = " or ".join(alphas)
    return facts | {"the seed": _seed([seed for *_, seed in calls])}


def _seed(seeds):
    different = list(dict.fromkeys(map(str, seeds)))
    if len(different) == 1 and type(seeds[0]) is int:
        return "the same int in all runs"
    return ", ".join(different[:FEW]) + (", …" if len(different) > FEW else "")


def table(sweep, ranks, learning_rates, rule, names):
    """The required columns of `sweep`'s table, and its rows as text."""
    frame, calls = _swept(sweep, ranks, learning_rates, rule, names)
    names, found = ["rank", "alpha", "learning_rate", *names], list(map(str, frame.columns))
    columns = [n if found.count(n) == 1 else f"{n} twice" for n in names if n in found]
    dicts = frame.map(lambda cell: isinstance(cell, dict)).any(axis=None)
    index = ", ".join(n for n in names if n in frame.index.names) or "none"
    facts = {"a cell of the table": "a dict" if dicts else "one value"}
    facts["the columns in the index"] = index
    facts |= {"the columns": columns, "the number of rows": len(frame)}
    if columns != names or dicts or len(frame) != len(calls):
        return facts
    return facts | contents({name: [*map(_text, frame[name].tolist())] for name in names})


def contents(cells):
    """The different texts in each column of a sweep's table, and its rows as text."""
    facts = {f"{name} in the table": ", ".join(sorted({*texts})) for name, texts in cells.items()}
    rows = zip(
        *([f"{name}={text}" for text in texts] for name, texts in cells.items()), strict=True
    )
    return facts | {"the rows": sorted(map(" ".join, rows))}


def paired(paired_difference, columns, index, a, b, nouns):
    """The facts in `nouns` (mean, error) for a DataFrame with these columns."""
    got = kept(paired_difference, pd.DataFrame(columns, index=index), a, b)
    if not isinstance(got, tuple | list | np.ndarray):
        return {"the return value": kind(got)}
    figures = [_number(value) for value in got]
    if len(figures) != 2:
        return {"the return value": f"{len(figures)} values"}
    if not all(isinstance(value, float) for value in figures):
        kinds = ["a number" if isinstance(value, float) else _text(value) for value in figures]
        return {"the return value": " and ".join(kinds)}
    facts = {"the mean": figures[0], "the error": figures[1]}
    return {"the return value": "two numbers"} | {noun: facts[noun] for noun in nouns}
