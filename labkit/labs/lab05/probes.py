"""What runs beside the learner's code in lab 5, and brings plain data back to its checks."""

import contextlib
import functools

import numpy as np
import pandas as pd

from labkit.contract import kept

ALPHAS = {"twice the rank": lambda rank: 2 * rank, "fixed": lambda rank: 24}


class Broken(Exception):
    """What a failing run of the check raises."""


def swept(sweep, ranks, learning_rates, rule, results, fails, silent=False):
    """`sweep` on a training function that notes its calls: the frame as data, and the calls.

    `rule` names one of ALPHAS. `results` is `{name: factor}`: a run returns the factor times
    `rank + learning_rate`. `fails` lists the pairs `[rank, learning_rate]` that raise; `silent`
    leaves out the text.
    """
    calls = []

    def train_fn(rank, alpha, learning_rate, seed):
        calls.append([_given(value) for value in (rank, alpha, learning_rate, seed)])
        if [rank, learning_rate] in fails:
            raise AssertionError() if silent else Broken(f"diverged at rank {rank}")
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


def rank_within(matched_rank, shapes, budget):
    """`matched_rank` of shapes that arrive as lists."""
    return kept(matched_rank, _tuples(shapes), budget)


def _tuples(shapes):
    return {name: tuple(shape) for name, shape in shapes.items()}


def difference(paired_difference, columns, index, a, b):
    """The two figures of `paired_difference` of the frame with these columns; "nan" for no number.

    What is no pair of anything is given by its kind alone.
    """
    got = kept(paired_difference, pd.DataFrame(columns, index=index), a, b)
    if isinstance(got, tuple | list | np.ndarray):
        return [_figure(value) for value in got]
    return {"is": _kind(got)}


def _figure(value):
    """A figure as plain data; NaN as text, since it is asked for here, and others by kind."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and value != value:
        return "nan"
    return value if isinstance(value, bool | int | float) else {"is": _kind(value)}


def _kind(value):
    if value is None:
        return "None (is `return` missing?)"
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return f"a {type(value).__name__}"


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
