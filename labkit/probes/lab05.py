"""What runs beside the learner's code in lab 5, and brings plain data back to its checks."""

import pandas as pd

ALPHAS = {"twice the rank": lambda rank: 2 * rank, "fixed": lambda rank: 24}


FRONT = {  # what an error of `pareto` says -> a hint
    "'cost'": "cost holds a column's name: frame[cost]",
    "'quality'": "quality holds a column's name: frame[quality]",
    "Array conditional": "where keeps every row: use frame[mask]",
}


class Broken(Exception):
    """What a failing run of the check raises."""


def swept(sweep, ranks, learning_rates, rule, results, fails):
    """`sweep` on a training function that notes its calls: the frame as columns, and the calls.

    `rule` names one of ALPHAS. `results` is `{name: factor}`: a run returns the factor times
    `rank + learning_rate`. `fails` lists the pairs `[rank, learning_rate]` that raise.
    """
    calls = []

    def train_fn(rank, alpha, learning_rate, seed):
        calls.append([rank, alpha, learning_rate, seed])
        if [rank, learning_rate] in fails:
            raise Broken(f"diverged at rank {rank}")
        return {name: factor * (rank + learning_rate) for name, factor in results.items()}

    frame = sweep(train_fn, ranks, learning_rates, ALPHAS[rule])
    return {"frame": _columns(frame), "calls": calls}


def interrupted(sweep):
    """Whether Ctrl-C in a run leaves `sweep`."""

    def train_fn(rank, alpha, learning_rate, seed):
        raise KeyboardInterrupt

    try:
        sweep(train_fn, [2], [0.1], ALPHAS["fixed"])
    except KeyboardInterrupt:
        return True
    return False


def table(param_table, shapes, ranks):
    """`param_table` of shapes that arrive as lists, as columns."""
    return _columns(param_table({name: tuple(shape) for name, shape in shapes.items()}, ranks))


def rank_within(matched_rank, shapes, budget):
    """`matched_rank` of shapes that arrive as lists."""
    return matched_rank({name: tuple(shape) for name, shape in shapes.items()}, budget)


def front(pareto, columns, index, cost, quality):
    """`pareto` of the frame with these columns and index, as columns."""
    try:
        return _columns(pareto(pd.DataFrame(columns, index=index), cost, quality))
    except Exception as error:
        hint = next((hint for sign, hint in FRONT.items() if sign in str(error)), None)
        error.args = (f"{error}; {hint}",) if hint else error.args
        raise


def gaps(overfit_gap, columns):
    """`overfit_gap` of the history with these columns, as columns."""
    return _columns(overfit_gap(pd.DataFrame(columns)))


def _columns(frame):
    """A DataFrame's columns as lists; a named index counts as one. Others as they are, by kind."""
    if not isinstance(frame, pd.DataFrame):
        return {"is": type(frame).__name__}
    named = [name for name in frame.index.names if name is not None and name not in frame]
    frame = frame.reset_index(level=named)
    return {str(name): [_number(value) for value in frame[name]] for name in frame}


def _number(value):
    """A cell as plain data: a missing value as None, NumPy's scalars as Python's."""
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if pd.isna(value) is True else value
