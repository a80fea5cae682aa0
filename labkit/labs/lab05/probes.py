"""What runs beside the learner's code in lab 5, and brings plain data back to its checks."""

import contextlib
import functools

import pandas as pd

from labkit.contract import kept

ALPHAS = {"twice the rank": lambda rank: 2 * rank, "fixed": lambda rank: 24}


FRONT = {  # what an error of `pareto` says -> a hint
    "'cost'": "cost holds a column's name: frame[cost]",
    "'quality'": "quality holds a column's name: frame[quality]",
    "'seconds'": "here the columns have other names: frame[cost], frame[quality]",
    "'score'": "here the columns have other names: frame[cost], frame[quality]",
    "Array conditional": "where keeps every row: use frame[mask]",
    "Unalignable boolean": "mask and frame have different rows: make both from the same frame",
    "identically-labeled": "compare with the row's values: frame[cost] <= row[cost]",
}


class Broken(Exception):
    """What a failing run of the check raises."""


def swept(sweep, ranks, learning_rates, rule, results, fails):
    """`sweep` on a training function that notes its calls: the frame as data, and the calls.

    `rule` names one of ALPHAS. `results` is `{name: factor}`: a run returns the factor times
    `rank + learning_rate`. `fails` lists the pairs `[rank, learning_rate]` that raise.
    """
    calls = []

    def train_fn(rank, alpha, learning_rate, seed):
        calls.append([_given(value) for value in (rank, alpha, learning_rate, seed)])
        if [rank, learning_rate] in fails:
            raise Broken(f"diverged at rank {rank}")
        return {name: factor * (rank + learning_rate) for name, factor in results.items()}

    train_fn.__qualname__ = "train_fn"
    named = functools.partial(sweep, alpha_of=ALPHAS[rule])  # as the lab's cells call it
    frame = kept(named, train_fn, ranks, learning_rates)
    return {"frame": _data(frame), "calls": calls}


def interrupted(sweep):
    """How many runs `sweep` makes when Ctrl-C is pressed in each."""
    calls = []

    def train_fn(rank, alpha, learning_rate, seed):
        calls.append(rank)
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sweep(train_fn, [2, 3], [0.1, 0.2], alpha_of=ALPHAS["fixed"])
    return len(calls)


def table(param_table, shapes, ranks):
    """`param_table` of shapes that arrive as lists, as data."""
    return _data(kept(param_table, _tuples(shapes), ranks))


def rank_within(matched_rank, shapes, budget):
    """`matched_rank` of shapes that arrive as lists."""
    return kept(matched_rank, _tuples(shapes), budget)


def _tuples(shapes):
    return {name: tuple(shape) for name, shape in shapes.items()}


def front(pareto, columns, index, cost, quality):
    """`pareto` of the frame with these columns and index, as data."""
    try:
        return _data(kept(pareto, pd.DataFrame(columns, index=index), cost, quality))
    except Exception as error:
        hint = next((hint for sign, hint in FRONT.items() if sign in str(error)), None)
        error.args = (f"{error}; {hint}",) if hint else error.args
        raise


def gaps(overfit_gap, columns):
    """`overfit_gap` of the history with these columns, as data."""
    try:
        return _data(kept(overfit_gap, pd.DataFrame(columns)))
    except IndexError as error:
        error.args = (f"{error}; ranks may end at different steps: look at one at a time",)
        raise


def _data(frame):
    """A DataFrame's columns as lists, its row labels and their names; others by kind alone."""
    if not isinstance(frame, pd.DataFrame):
        return {"is": type(frame).__name__}
    return {
        "columns": {str(n): [_cell(v) for v in frame.iloc[:, k]] for k, n in enumerate(frame)},
        "twice": [str(name) for name in frame.columns[frame.columns.duplicated()]],
        "labels": [_cell(label) for label in frame.index],
        "index": [str(name) for name in frame.index.names if name is not None],
    }


def _cell(value):
    """A cell as plain data: a missing value as None, others than text and numbers by kind."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or (isinstance(value, float) and value != value) or value is pd.NA:
        return None
    if isinstance(value, bool | int | float | str):
        return value
    return {"is": "exception" if isinstance(value, BaseException) else type(value).__name__}


def _given(value):
    """What the training function got: Python's numbers as they are, others by kind."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"is": type(value).__name__}
