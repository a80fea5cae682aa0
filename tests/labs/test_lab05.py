"""Lab 5's checks: stubs, wrong answers that learners give, right answers written differently."""

import itertools
import math
import traceback
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from labkit import contract, measured
from labkit.checks import lab05 as check
from labkit.measured import short

SEEDS = {"RIGHT": range(6)}

# --- right answers -------------------------------------------------------------------------


def param_table(shapes, ranks):
    per_rank = sum(o + i for o, i in shapes.values())
    total = sum(o * i for o, i in shapes.values())
    rows = [(r, r * per_rank, 100 * r * per_rank / total) for r in ranks]
    return pd.DataFrame(rows, columns=["rank", "trainable", "percent"])


def table_vectorised(shapes, ranks):
    sizes = np.array(list(shapes.values()))
    frame = pd.DataFrame({"rank": ranks})
    frame["trainable"] = frame["rank"] * sizes.sum()
    frame["percent"] = frame["trainable"] / sizes.prod(axis=1).sum() * 100
    return frame


def table_rounded_with_more(shapes, ranks):
    frame = param_table(shapes, ranks).round({"percent": 2})
    return frame.assign(bytes=4 * frame["trainable"])


def table_by_rank(shapes, ranks):
    """The ranks are an index on the way."""
    per_rank = sum(map(sum, shapes.values()))
    frame = pd.DataFrame({"trainable": [r * per_rank for r in ranks]}, index=ranks)
    frame["percent"] = frame["trainable"] * 100.0 / sum(o * i for o, i in shapes.values())
    return frame.astype({"trainable": float}).rename_axis("rank").reset_index()


def table_of_torch(shapes, ranks):
    sizes = torch.tensor(list(shapes.values()))
    n = torch.tensor(ranks) * sizes.sum()
    percent = (100 * n / sizes.prod(1).sum()).tolist()
    return pd.DataFrame({"percent": percent, "rank": ranks, "trainable": n.tolist()})


def sweep(train_fn, ranks, learning_rates, alpha_of):
    rows = []
    for rank in ranks:
        for rate in learning_rates:
            row = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate, "error": ""}
            try:
                row |= train_fn(rank=rank, alpha=alpha_of(rank), learning_rate=rate, seed=0)
            except Exception as error:
                row["error"] = str(error)
            rows.append(row)
    return pd.DataFrame(rows)


def sweep_positional(train_fn, ranks, learning_rates, alpha_of):
    def one(rate, rank):
        try:
            return train_fn(rank, alpha_of(rank), rate, 7) | {"error": ""}
        except Exception as error:
            return {"error": repr(error)}

    pairs = list(itertools.product(learning_rates, ranks))
    told = pd.DataFrame([one(*pair) for pair in pairs])
    told["learning_rate"], told["rank"] = zip(*pairs, strict=True)
    return told.assign(alpha=told["rank"].map(alpha_of), seed=7)


def sweep_as_index(train_fn, ranks, learning_rates, alpha_of):
    """An index on the way, and rows in another order."""
    frame = sweep(train_fn, ranks, learning_rates, alpha_of).set_index(["rank", "learning_rate"])
    return frame.sort_index(ascending=False).reset_index()


def sweep_that_stops(train_fn, ranks, learning_rates, alpha_of):
    """Ctrl-C ends it, and what was done is returned."""
    rows, pairs = [], [(r, rate) for rate in learning_rates for r in ranks]
    for rank, learning_rate in pairs:
        setting = dict(rank=rank, alpha=alpha_of(rank), learning_rate=learning_rate)
        try:
            rows.append({**setting, **train_fn(**setting, seed=42), "error": ""})
        except KeyboardInterrupt:
            break
        except Exception as error:
            rows.append({**setting, "error": f"{error!r}"})
    return pd.DataFrame(rows)


def sweep_concat(train_fn, ranks, learning_rates, alpha_of):
    frames = []
    for rank, learning_rate in itertools.product(ranks, learning_rates):
        setting = {"rank": rank, "alpha": float(alpha_of(rank)), "learning_rate": learning_rate}
        try:
            found = train_fn(**setting, seed=123)
        except Exception as error:
            found = {"loss": math.nan, "error": f"{type(error).__name__}: {error}"}
        frames.append(pd.DataFrame([setting | found]))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(error=frame.get("error", pd.Series(index=frame.index)).fillna(""))


def sweep_turned(train_fn, ranks, learning_rates, alpha_of):
    """A column a run, turned at the end: all columns hold objects."""
    runs = {}
    for i, (rank, rate) in enumerate(itertools.product(ranks, learning_rates)):
        runs[i] = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate}
        try:
            runs[i] |= train_fn(**runs[i], seed=17) | {"error": ""}
        except KeyboardInterrupt:
            raise
        except BaseException:
            runs[i]["error"] = traceback.format_exc()
    return pd.DataFrame(runs).T


def matched_rank(shapes, budget):
    return budget // sum(o + i for o, i in shapes.values())


def rank_counted(shapes, budget):
    r = 0
    while sum((r + 1) * (o + i) for o, i in shapes.values()) <= budget:
        r += 1
    return r


def rank_halved(shapes, budget):
    """Search by halves."""
    low, high = 0, budget
    while low < high:
        middle = (low + high + 1) // 2
        fits = middle * sum(map(sum, shapes.values())) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def rank_floor(shapes, budget):
    return math.floor(budget / np.array(list(shapes.values())).sum())


def subspace_similarity(A1, A2, i, j):
    U1 = torch.linalg.svd(A1, full_matrices=False).Vh[:i]
    U2 = torch.linalg.svd(A2, full_matrices=False).Vh[:j]
    return (U1 @ U2.T).square().sum().item() / min(i, j)


def similarity_norm(A1, A2, i, j):
    V1, V2 = (torch.svd(A)[2] for A in (A1, A2))
    return float(torch.linalg.matrix_norm(V1[:, :i].T @ V2[:, :j]) ** 2 / min(i, j))


def similarity_projectors(A1, A2, i, j):
    (V1, V2) = (torch.linalg.svd(A, full_matrices=False).Vh for A in (A1, A2))
    return torch.trace(V1[:i].T @ V1[:i] @ V2[:j].T @ V2[:j]).item() / min(i, j)


def similarity_full(A1, A2, i, j):
    V1, V2 = (np.linalg.svd(A.double().numpy())[2] for A in (A1, A2))
    return np.linalg.norm(V1[:i] @ V2[:j].T) ** 2 / min(i, j)


def similarity_angles(A1, A2, i, j):
    V1, V2 = (torch.linalg.svd(A.T, full_matrices=False).U for A in (A1, A2))
    return torch.linalg.svdvals(V1[:, :i].T @ V2[:, :j]).pow(2).sum().div(min(i, j)).item()


def pareto(frame, cost, quality):
    keep = []
    for _, row in frame.iterrows():
        no_worse = (frame[cost] <= row[cost]) & (frame[quality] >= row[quality])
        better = (frame[cost] < row[cost]) | (frame[quality] > row[quality])
        keep.append(not (no_worse & better).any() and row[quality] == row[quality])
    return frame[keep]


def pareto_sorted(frame, cost, quality):
    frame = frame.dropna(subset=[quality]).sort_values([cost, quality], ascending=[True, False])
    before = frame.groupby(cost)[quality].max().cummax().shift(fill_value=-math.inf)
    top = frame.groupby(cost)[quality].transform("max")
    kept = (frame[quality] == top) & (frame[quality] > frame[cost].map(before))
    return frame[kept]


def pareto_arrays(frame, cost, quality):
    frame = frame[frame[quality].notna()]
    c, q = frame[cost].to_numpy(), frame[quality].to_numpy()
    no_worse = (c[:, None] <= c) & (q[:, None] >= q)
    better = (c[:, None] < c) | (q[:, None] > q)
    return frame.iloc[np.flatnonzero(~(no_worse & better).any(0))]


def pareto_helped(frame, cost, quality):
    """A helping column stays in the copy."""
    frame = frame.copy()
    pairs = list(zip(frame[cost], frame[quality], strict=True))
    frame["kept"] = [
        q == q and not any(c2 <= c and q2 >= q and (c2, q2) != (c, q) for c2, q2 in pairs)
        for c, q in pairs
    ]
    return frame[frame["kept"]]


def overfit_gap(history):
    rows = []
    for rank, part in history.groupby("rank"):
        part = part.sort_values("step")
        held = part["held_out_loss"]
        last = part.iloc[-1]
        rows.append(
            {
                "rank": rank,
                "best_step": part.loc[held.idxmin(), "step"],
                "gap": last["held_out_loss"] - last["train_loss"],
                "rise": last["held_out_loss"] - held.min(),
            }
        )
    return pd.DataFrame(rows)


def by_rank(history):
    ordered = history.sort_values(["rank", "step"])
    last = ordered.groupby("rank").last()
    best = ordered.loc[ordered.groupby("rank")["held_out_loss"].idxmin()].set_index("rank")
    return pd.DataFrame(
        {
            "best_step": best["step"],
            "gap": last["held_out_loss"] - last["train_loss"],
            "rise": last["held_out_loss"] - best["held_out_loss"],
        }
    )


def gap_vectorised(history):
    return by_rank(history).reset_index()


def gap_of_series(history):
    def one(part):
        part = part.sort_values("step")
        held = part["held_out_loss"].to_numpy()
        step = part["step"].to_numpy()[held.argmin()]
        gap = held[-1] - part["train_loss"].iloc[-1]
        return pd.Series({"best_step": step, "gap": gap, "rise": held[-1] - held.min()})

    return history.groupby("rank").apply(one).reset_index()


def gap_filled(history):
    """Shorter runs end in NaN, which is filled from above."""
    held = history.pivot(index="step", columns="rank", values="held_out_loss").sort_index()
    train = history.pivot(index="step", columns="rank", values="train_loss").sort_index()
    table = pd.DataFrame({"best_step": held.idxmin(), "gap": (held - train).ffill().iloc[-1]})
    return table.assign(rise=held.ffill().iloc[-1] - held.min()).reset_index()


def gap_pivoted(history):
    held = history.pivot(index="step", columns="rank", values="held_out_loss").sort_index()
    train = history.pivot(index="step", columns="rank", values="train_loss").sort_index()
    table = pd.DataFrame({"best_step": held.idxmin(), "gap": (held - train).iloc[-1]})
    return table.assign(rise=held.iloc[-1] - held.min(), worst=held.max()).reset_index()


def quiz():
    return {"q1": "c", "q2": "b", "q3": "d"}


RIGHT = [
    *[
        (check.counts, f)
        for f in (param_table, table_vectorised, table_rounded_with_more, table_by_rank)
    ],
    *[(check.sweeps, f) for f in (sweep, sweep_positional, sweep_as_index, sweep_concat)],
    (check.counts, table_of_torch),
    (check.sweeps, sweep_that_stops),
    (check.sweeps, sweep_turned),
    (check.fits, rank_halved),
    (check.overlaps, similarity_projectors),
    (check.not_beaten, pareto_helped),
    (check.gap, gap_of_series),
    *[(check.fits, f) for f in (matched_rank, rank_counted, rank_floor)],
    (check.overlaps, subspace_similarity),
    (check.overlaps, similarity_norm),
    (check.overlaps, similarity_full),
    (check.overlaps, similarity_angles),
    *[(check.not_beaten, f) for f in (pareto, pareto_sorted, pareto_arrays)],
    *[(check.gap, f) for f in (overfit_gap, gap_vectorised, gap_filled)],
    (check.quiz, quiz),
    (check.quiz, lambda: {"q3": " D", "q1": "C", "q2": "B "}),
]


# --- wrong answers, each with a word of the message that names what the learner thought -------


def _table(trainable, percent=None):
    """A `param_table` from formulas of (sum of sides, dense numbers, rank)."""

    def wrong(shapes, ranks):
        sides = sum(o + i for o, i in shapes.values())
        dense = sum(o * i for o, i in shapes.values())
        part = percent or (lambda n, dense: 100 * n / dense)
        rows = [(r, n := trainable(sides, dense, r), part(n, dense)) for r in ranks]
        return pd.DataFrame(rows, columns=["rank", "trainable", "percent"])

    return wrong


def _linear(sides, dense, r):
    return r * sides


def _one_side(k):
    def wrong(shapes, ranks):
        total = sum(o * i for o, i in shapes.values())
        counts = [r * sum(pair[k] for pair in shapes.values()) for r in ranks]
        percents = [100 * n / total for n in counts]
        return pd.DataFrame({"rank": ranks, "trainable": counts, "percent": percents})

    return wrong


def _odd_ranks(*odd):
    return lambda shapes, ranks: param_table(shapes, ranks).assign(rank=[*odd, *ranks[len(odd) :]])


def _wrong_for_one(shapes, ranks):
    return param_table(shapes, ranks).assign(
        rank=[[r] for r in ranks] if len(ranks) == 1 else ranks
    )


def _keyed_by_rank(shapes, ranks):
    return param_table(shapes, ranks).set_index("rank").rename_axis(None)


def _last_matrix(shapes, ranks):
    return param_table(dict(list(shapes.items())[-1:]), ranks)


def _each_matrix(shapes, ranks):
    return pd.concat(
        [param_table({n: s}, ranks) for n, s in shapes.items()], ignore_index=True
    ).sort_values("rank")


def _mean_percent(shapes, ranks):
    each = [100 * (o + i) / (o * i) for o, i in shapes.values()]
    return param_table(shapes, ranks).assign(percent=[r * np.mean(each) for r in ranks])


def _appended(shapes, ranks):
    frame = pd.DataFrame()
    for rank in ranks:
        frame = frame.append({"rank": rank}, ignore_index=True)
    return frame


def _counts_shapes_once(shapes, ranks):
    per_rank = sum(map(sum, set(shapes.values())))
    return param_table(shapes, ranks).assign(trainable=[r * per_rank for r in ranks])


def _runs_on(shapes, ranks):
    table = param_table(shapes, ranks)
    return table.assign(trainable=table["trainable"].cumsum())


def _brackets(first):
    """The rank times one side alone."""

    def wrong(shapes, ranks):
        d_out, d_in = (sum(pair[k] for pair in shapes.values()) for k in (0, 1))
        counts = [r * d_out + d_in if first else d_out + d_in * r for r in ranks]
        return param_table(shapes, ranks).assign(trainable=counts)

    return wrong


def _percent_of_the_last(shapes, ranks):
    frame = param_table(shapes, ranks)
    return frame.assign(percent=frame["percent"].iloc[-1])


def _matrices_add_up(shapes, ranks):
    """The sum of the matrices' numbers goes on from rank to rank."""
    frame = param_table(shapes, ranks)
    return frame.assign(percent=frame["percent"] / np.arange(1, len(frame) + 1))


def _sum_of(of_rank_and_sides):
    def wrong(shapes, ranks):
        counts = [sum(of_rank_and_sides(r, *s) for s in shapes.values()) for r in ranks]
        dense = sum(o * i for o, i in shapes.values())
        frame = pd.DataFrame({"rank": ranks, "trainable": counts})
        return frame.assign(percent=100 * frame["trainable"] / dense)

    return wrong


TABLES = [
    (_percent_of_the_last, "begin anew for each"),
    (_matrices_add_up, "begin anew for each"),
    (_sum_of(lambda r, o, i: 2 * r * min(o, i)), "A has 3 numbers, B has 2"),
    (_sum_of(lambda r, o, i: min(r, o, i) * (o + i)), "however many there are"),
    (lambda s, r: param_table(s, r).T, "turn it, .T"),
    (_brackets(True), "brackets"),
    (_brackets(False), "brackets"),
    (_table(lambda sides, dense, r: r * r * dense), "multiplied: add them"),
    (_keyed_by_rank, "Are the ranks its index?"),
    (_last_matrix, "the last matrix alone"),
    (_each_matrix, "sum over the matrices"),
    (_mean_percent, "mean of the matrices' own"),
    (_appended, "collect dicts in a list"),
    (lambda s, r: param_table(s, r).assign(percent="12.3%"), "is the text '12.3%'"),
    (_table(lambda sides, dense, r: sides), "the rank is missing"),
    (_odd_ranks(None), "one row a rank"),
    (_odd_ranks([4], "r"), "column rank holds a list"),
    (_wrong_for_one, "column rank holds a list"),
    (lambda s, r: param_table(s, r).assign(trainable=[None] * len(r)), "is missing (NaN)"),
    (lambda s, r: param_table(s, r).assign(percent=[torch.ones(2)] * len(r)), "a tensor"),
    (lambda s, r: param_table(s, r).set_index("rank"), "the index here, not a column"),
    (lambda s, r: param_table(s, r).sort_values("rank"), "keep the order of ranks"),
    (lambda s, r: param_table(s, sorted(r)), "keep the order of ranks"),
    (lambda s, r: param_table(s, r).set_index("rank", drop=False), "labelled"),
    (lambda s, r: pd.concat([param_table(s, [x]) for x in r]), "ignore_index=True"),
    (_table(lambda sides, dense, r: r * r * sides), "not quadratic"),
    (_table(lambda sides, dense, r: r * dense), "add the sides"),
    (_table(_linear, lambda n, dense: n / dense), "times 100"),
    (_table(_linear, lambda n, dense: 100 * n / (n + dense)), "without the adapter's"),
    (_table(_linear, lambda n, dense: round(100 * n / dense)), "rounded too much"),
    (_table(_linear, lambda n, dense: 100 * dense / n), "in percent of the adapter"),
    (lambda s, r: param_table(s, r).rename(columns={"trainable": "n"}), "no column trainable"),
    (_one_side(0), "B only"),
    (_one_side(1), "A only"),
    (lambda shapes, ranks: None, "return"),
    (lambda shapes, ranks: param_table(shapes, ranks).to_dict("records"), "a list"),
    (lambda shapes, ranks: param_table(shapes, ranks[:1]), "one row a rank"),
    (lambda shapes, ranks: param_table(dict(list(shapes.items())[:1]), ranks), "one matrix"),
    (_counts_shapes_once, "one shape are counted once"),
    (_runs_on, "begin at 0"),
]


def _sweep(pairs=None, alpha=None, seed=None, keep=True, catch=Exception, text=str, result=None):
    """A `sweep` with one thing wrong."""

    def wrong(train_fn, ranks, rates, alpha_of):
        rows, last = [], {}
        for k, (rank, rate) in enumerate((pairs or itertools.product)(ranks, rates)):
            a = (alpha or alpha_of)(rank)
            row = {"rank": rank, "alpha": a, "learning_rate": rate, "error": ""}
            try:
                found = train_fn(rank, a, rate, seed(k) if seed else 0)
                row |= result(found) if result else found
                last = found
            except catch as error:
                if not keep:
                    continue
                row["error"] = text(error)
                row |= last if keep == "stale" else {}
            rows.append(row)
        return pd.DataFrame(rows)

    return wrong


def _float_ranks(train_fn, ranks, rates, alpha_of):
    pairs = np.array(list(itertools.product(ranks, rates)))
    return sweep(train_fn, pairs[::2, 0].tolist(), pairs[:2, 1].tolist(), alpha_of)


def _failed_as(**columns):
    def wrong(train_fn, ranks, rates, alpha_of):
        frame = sweep(train_fn, ranks, rates, alpha_of)
        for name, value in columns.items():
            frame[name] = frame[name].astype(object)
            frame.loc[frame["error"] != "", name] = value
        return frame

    return wrong


def _one_dict(train_fn, ranks, rates, alpha_of):
    row, rows = {"error": ""}, []
    for rank, rate in itertools.product(ranks, rates):
        row |= {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate}
        row |= train_fn(rank, alpha_of(rank), rate, 0)
        rows.append(row)
    return pd.DataFrame(rows)


def _error_stays(train_fn, ranks, rates, alpha_of):
    frame = sweep(train_fn, ranks, rates, alpha_of)
    return frame.assign(error=frame["error"].replace("", None).ffill().fillna(""))


class _Never(Exception):
    """Nothing raises it."""


def _stops(train_fn, ranks, rates, alpha_of):
    rows = []
    try:
        for rank, rate in itertools.product(ranks, rates):
            row = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate, "error": ""}
            rows.append(row)
            row |= train_fn(rank, alpha_of(rank), rate, 0)
    except Exception as error:
        rows[-1]["error"] = str(error)
    return pd.DataFrame(rows)


def _no_seed(train_fn, ranks, rates, alpha_of):
    return sweep(lambda seed, **s: train_fn(**s), ranks, rates, alpha_of)


def _no_error_column(train_fn, ranks, rates, alpha_of):
    return sweep(train_fn, ranks, rates, alpha_of).drop(columns="error")


def _row_a_rank(train_fn, ranks, rates, alpha_of):
    """The row is appended behind the inner loop."""
    return sweep(train_fn, ranks, rates, alpha_of).groupby("rank", as_index=False).last()


def _with_lr(train_fn, ranks, rates, alpha_of):
    return sweep(lambda learning_rate, **s: train_fn(lr=learning_rate, **s), ranks, rates, alpha_of)


def _three_mistakes(train_fn, ranks, rates, alpha_of):
    """The factor for alpha, a seed a run, and a loss where there is none."""
    frame = _sweep(alpha=lambda r: alpha_of(r) / r, seed=lambda k: k)(
        train_fn, ranks, rates, alpha_of
    )
    return frame.fillna({"loss": 0.0})


def _drops_failed(train_fn, ranks, learning_rates, alpha_of):
    table = sweep(train_fn, ranks, learning_rates, alpha_of)
    return table[table["error"] == ""]


def _other_parameters(train_fn, ranks, rates, rule):
    return sweep(train_fn, ranks, rates, rule)


def _tried_again(train_fn, ranks, rates, alpha_of):
    def twice(**settings):
        try:
            return train_fn(**settings)
        except Exception:
            return train_fn(**settings)

    return sweep(twice, ranks, rates, alpha_of)


SWEEPS = [
    (_tried_again, "7 runs were made, wanted 6"),
    (_other_parameters, "unexpected keyword argument 'alpha_of'"),
    (_row_a_rank, "append in the inner loop"),
    (_with_lr, "unexpected keyword argument 'lr'"),
    (_three_mistakes, "the factor alpha / r"),
    (_three_mistakes, "one seed for all"),
    (
        lambda f, r, x, alpha_of: sweep(f, r, x, lambda rank: alpha_of),
        "alpha is a function: call it",
    ),
    (_float_ranks, "np.array make floats of ints"),
    (_sweep(seed=lambda k: None), "the seed None, wanted an int"),
    (_sweep(seed=lambda k: 0.5), "the seed 0.5, wanted an int"),
    (_sweep(catch=RuntimeError), "catch Exception"),
    (
        lambda f, r, x, alpha_of: sweep(f, r, x, alpha_of).set_index("rank"),
        "the index here, not a column",
    ),
    (
        lambda f, r, x, alpha_of: sweep(f, r, x, alpha_of).replace({"error": {"": None}}),
        'wanted is ""',
    ),
    (lambda f, r, x, alpha_of: sweep(f, np.array(r), x, alpha_of), "LoraConfig wants int(rank)"),
    (_sweep(text=lambda error: error), "an exception; wanted is its text"),
    (_sweep(text=lambda error: error.args), "column error holds a tuple"),
    (_failed_as(alpha=None), "alpha at rank"),
    (_failed_as(alpha=1), "alpha at rank"),
    (_failed_as(loss=math.inf), "never got one"),
    (_failed_as(loss="none"), "never got one"),
    (_failed_as(rank=None), "one for each pair"),
    (_one_dict, "a new one for each run"),
    (_error_stays, "and learning rate"),
    (_sweep(pairs=zip), "two loops"),
    (_sweep(pairs=lambda a, b: 2 * list(itertools.product(a, b))), "one a pair"),
    (_sweep(alpha=lambda r: r), "alpha_of"),
    (_sweep(alpha=lambda r: 2 * r), "alpha_of"),
    (_sweep(seed=lambda k: k), "one seed for all"),
    (_sweep(keep=False), "one for each pair"),
    (_sweep(keep="stale"), "never got one"),
    (_sweep(catch=_Never), "Broken"),
    (_sweep(catch=BaseException), "Ctrl-C"),
    (_sweep(text=lambda error: "failed"), "keep the exception's text"),
    (_sweep(text=lambda error: type(error).__name__), "keep the exception's text"),
    (_sweep(result=lambda found: {}), "no column loss"),
    (_sweep(result=lambda found: {"loss": found["loss"]}), "no column score"),
    (_sweep(result=lambda found: {"result": found}), "no column loss"),
    (_stops, "go on after a failure"),
    (_no_error_column, "no column error"),
    (_no_seed, "argument: 'seed'"),
    (lambda train_fn, ranks, rates, alpha_of: None, "return"),
    (_drops_failed, "the run that raised has none"),
]


def _capped(top):
    def wrong(shapes, budget):
        return max((r for r in range(1, top) if r * _sides(shapes) <= budget), default=0)

    return wrong


def _without_default(shapes, budget):
    return max(r for r in range(1, 6000) if r * _sides(shapes) <= budget)


def _sides(shapes):
    return sum(o + i for o, i in shapes.values())


RANKS = [
    (lambda shapes, budget: budget // sum(map(max, shapes.values())), "14 holds two"),
    (lambda shapes, budget: min(64, budget // _sides(shapes)), "nothing but the budget limits it"),
    (lambda shapes, budget: _sides(shapes) // budget, "upside down"),
    (lambda s, b: min(b // (len(s) * sum(pair)) for pair in s.values()), "not shared out equally"),
    (lambda s, budget: sum(budget // sum(pair) for pair in s.values()), "each matrix alone"),
    (lambda shapes, budget: math.isqrt(budget // _sides(shapes)), "no square root"),
    (lambda shapes, budget: budget // (2 * _sides(shapes)), "half of what fits"),
    (lambda shapes, budget: 2 ** (max(1, budget // _sides(shapes)).bit_length() - 1), "power of"),
    (lambda shapes, budget: math.ceil(budget / _sides(shapes)), "round down"),
    (lambda shapes, budget: round(budget / _sides(shapes)), "round down"),
    (lambda shapes, budget: budget / _sides(shapes), "fraction of a rank"),
    (lambda shapes, budget: float(budget // _sides(shapes)), "wanted the int"),
    (lambda shapes, budget: np.floor(budget / _sides(shapes)), "wanted the int"),
    (lambda s, budget: min(budget // _sides(s), *map(min, s.values())), "the budget alone does"),
    (lambda shapes, budget: (budget - 1) // _sides(shapes), "meets the budget exactly"),
    (lambda shapes, budget: budget // sum(o * i for o, i in shapes.values()), "dense"),
    (lambda shapes, budget: min(budget // (o + i) for o, i in shapes.values()), "one matrix"),
    (lambda shapes, budget: max(1, budget // _sides(shapes)), "not even rank 1 fits: 0 is"),
    (lambda shapes, budget: budget // _sides(shapes) or None, "not even rank 1 fits: 0 is"),
    (_without_default, "not even rank 1 fits: 0 is"),
    (_capped(257), "is the search over"),
    (_capped(4097), "is the search over"),
    (lambda shapes, budget: None, "return"),
    (lambda shapes, budget: matched_rank(shapes, budget) // 8 * 8, "a multiple of 8"),
    (lambda shapes, budget: matched_rank(shapes, budget // 4), "not in bytes"),
    (
        lambda shapes, budget: budget // sum(map(sum, set(shapes.values()))),
        "one shape are counted once",
    ),
]


def _overlap(cut=None, scale=None, power=2):
    """A `subspace_similarity` that cuts or scales wrongly."""

    def wrong(A1, A2, i, j):
        V1, V2 = (torch.linalg.svd(A, full_matrices=False)[2] for A in (A1, A2))
        U1, U2 = (cut or (lambda V, k: V[:k].T))(V1, i), (cut or (lambda V, k: V[:k].T))(V2, j)
        total = (U1.T @ U2).norm() ** power
        return total.item() / (scale or min)(i, j)

    return wrong


def _first_rows(A1, A2, i, j):
    Q1, Q2 = torch.linalg.qr(A1[:i].T)[0], torch.linalg.qr(A2[:j].T)[0]
    return (Q1.T @ Q2).square().sum().item() / min(i, j)


def _left(A1, A2, i, j):
    U1, U2 = (torch.linalg.svd(A, full_matrices=False).U for A in (A1, A2))
    return (U1[:, :i].T @ U2[:, :j]).square().sum().item() / min(i, j)


def _columns(A1, A2, i, j):
    V1, V2 = (torch.linalg.svd(A).Vh for A in (A1, A2))
    return (V1[:, :i].T @ V2[:, :j]).square().sum().item() / min(i, j)


def _upwards(A1, A2, i, j):
    V1, V2 = (torch.linalg.eigh(A.T @ A).eigenvectors for A in (A1, A2))
    return (V1[:, :i].T @ V2[:, :j]).square().sum().item() / min(i, j)


def _centred(A1, A2, i, j):
    V1, V2 = (torch.pca_lowrank(A, q=min(A.shape))[2] for A in (A1, A2))
    return (V1[:, :i].T @ V2[:, :j]).square().sum().item() / min(i, j)


def _product(reduce):
    def wrong(A1, A2, i, j):
        V1, V2 = (torch.linalg.svd(A, full_matrices=False).Vh for A in (A1, A2))
        return reduce(V1[:i] @ V2[:j].T, min(i, j))

    return wrong


def _overlap_of(one, other):
    """`overlap`'s answer from other vectors: `one` and `other` pick them from `(A, i, j)`."""

    def similarity(A1, A2, i, j):
        return (one(A1, i, j) @ other(A2, i, j).T).square().sum().item() / min(i, j)

    return similarity


def _right_vectors(A):
    return torch.linalg.svd(A, full_matrices=False).Vh


def _unit_rows(A, k):
    return torch.nn.functional.normalize(A[:k], dim=1)


def _one_minus(A1, A2, i, j):
    pick = _overlap_of(lambda A, i, j: _right_vectors(A)[:i], lambda A, i, j: _right_vectors(A)[:j])
    return 1 - pick(A1, A2, i, j)


def _cut_both(A1, A2, i, j):
    return _similar(A1, A2, min(i, j), min(i, j))


def _of_the_product(A1, A2, i, j):
    S = torch.linalg.svdvals(A1 @ A2.T).square()
    return (S[: min(i, j)].sum() / S.sum()).item()


def _distance(A1, A2, i, j):
    U, V = (torch.linalg.svd(A, full_matrices=False).Vh[:k] for A, k in ((A1, i), (A2, j)))
    return (U.T @ U - V.T @ V).square().sum().item() / min(i, j)


def _similar(A1, A2, i, j):
    U, V = (torch.linalg.svd(A, full_matrices=False).Vh[:k] for A, k in ((A1, i), (A2, j)))
    return (U @ V.T).square().sum().item() / min(i, j)


OVERLAPS = [
    (_cut_both, "of axes 1, 2 one lies in the span of 4, 3, 2"),
    (_of_the_product, "both span axis 1"),
    (_distance, "both span axis 1"),
    (lambda A1, A2, i, j: _similar(A1, A2, i, j) * min(i, j) * 2 / (i + j), "min(i, j) is 1"),
    (_columns, "these are columns of Vh"),
    (_upwards, "eigh sorts upwards"),
    (_centred, "centred first, as PCA does"),
    (_product(lambda M, n: M.abs().max().item()), "largest overlap of two"),
    (_product(lambda M, n: torch.linalg.matrix_norm(M, 2).item() ** 2 / n), "another norm"),
    (_product(lambda M, n: (M.norm().item() / n) ** 2), "square the whole norm once"),
    (_product(lambda M, n: round(M.square().sum().item() / n, 2)), "it is rounded"),
    (_product(lambda M, n: math.sqrt(M.square().sum().item() / n)), "no square root of it all"),
    (_overlap(scale=lambda i, j: 1), "divide by min"),
    (_overlap(scale=max), "divide by min"),
    (_overlap(scale=lambda i, j: i), "divide by min"),
    (_overlap(scale=lambda i, j: j), "divide by min"),
    (_overlap(scale=lambda i, j: i * j), "mean of the squares"),
    (_left, "left singular vectors"),
    (_overlap(power=1), "not squared"),
    (_overlap(cut=lambda V, k: V[:, :k]), "columns of Vh"),
    (lambda A1, A2, i, j: (A1[:i] @ A2[:j].T).square().sum().item() / min(i, j), "rows of A"),
    (_first_rows, "first rows"),
    (lambda A1, A2, i, j: subspace_similarity(A1.T, A2.T, i, j), ("RuntimeError", "wanted")),
    (lambda A1, A2, i, j: torch.tensor(subspace_similarity(A1, A2, i, j)), "item"),
    (lambda A1, A2, i, j: subspace_similarity(A1, A2, j, i), ("swapped", "wanted")),
    (lambda A1, A2, i, j: None, "return"),
    (_one_minus, "one minus it"),
    (
        _overlap_of(lambda A, i, j: _unit_rows(A, i), lambda A, i, j: _unit_rows(A, j)),
        "of length one",
    ),
    (
        _overlap_of(lambda A, i, j: _right_vectors(A)[:i], lambda A, i, j: _right_vectors(A)[:i]),
        "i cuts both",
    ),
    (
        _overlap_of(lambda A, i, j: _right_vectors(A), lambda A, i, j: _right_vectors(A)),
        "all singular vectors",
    ),
]


def _strictly(frame, cost, quality):
    keep = [
        not ((frame[cost] < row[cost]) & (frame[quality] > row[quality])).any()
        for _, row in frame.iterrows()
    ]
    return frame[keep]


def _drop_ties(frame, cost, quality):
    return pareto(frame, cost, quality).drop_duplicates([cost, quality])


def _cheapest_best(frame, cost, quality):
    frame = frame.sort_values(cost)
    return frame[frame[quality] >= frame[quality].cummax()]


def _turned(frame, cost, quality):
    return pareto(frame.assign(**{quality: -frame[quality]}), cost, quality)


def _with_failed(frame, cost, quality):
    kept = pareto(frame, cost, quality)
    return pd.concat([kept, frame[frame[quality].isna()]])


def _keeps_itself_out(frame, cost, quality):
    keep = [
        not ((frame[cost] <= row[cost]) & (frame[quality] >= row[quality])).any()
        for _, row in frame.iterrows()
    ]
    return frame[keep]


def _named(frame, cost, quality):
    return frame[frame.cost <= frame.cost.min()]


def _kept(frame, cost, quality):
    return frame.index.isin(pareto(frame, cost, quality).index)


def _in_place(frame, cost, quality):
    frame.dropna(subset=[quality], inplace=True)
    return pareto(frame, cost, quality)


def _by_labels(frame, cost, quality):
    return frame.loc[pareto(frame, cost, quality).index]


def _fixed_names(frame, cost, quality):
    return pareto(frame, "seconds", "score")


def _beaten(frame, cost, quality):
    return frame[~_kept(frame, cost, quality)]


def _without_drop(frame, cost, quality):
    """Failed runs stay, since NaN is never beaten."""
    kept = pareto(frame, cost, quality)
    return frame[frame["run"].isin(kept["run"]) | frame[quality].isna()]


def _by_label(frame, cost, quality):
    known = frame.dropna(subset=[quality])
    stay = [
        label
        for label, row in known.iterrows()
        if not any(
            other[cost] <= row[cost]
            and other[quality] >= row[quality]
            and (other[cost] < row[cost] or other[quality] > row[quality])
            for _, other in known.iterrows()
        )
    ]
    return frame.loc[stay] if frame.index.is_unique else frame[frame.index.isin(stay)]


def _scored(frame, cost, quality):
    return frame.dropna(subset=[quality]).sort_values([cost, quality], ascending=[True, False])


def _neighbour(frame, cost, quality):
    rows = _scored(frame, cost, quality)
    return rows[~(rows[quality].shift(fill_value=-np.inf) > rows[quality])]


FRONTS = [
    (_neighbour, "its neighbour alone"),
    (lambda f, c, q: f[f[q] >= f[q].cummax()], "its neighbour alone, by cost or in the table"),
    (lambda f, c, q: f[f[q] == f.groupby(c)[q].transform("max")], "only rows of one cost"),
    (lambda f, c, q: f[f[q] / f[c] == (f[q] / f[c]).max()], "such as a ratio"),
    (_beaten, "turn the mask round"),
    (_without_drop, "on no front"),
    (lambda frame, cost, quality: pareto(frame, quality, cost), "swapped"),
    (lambda frame, cost, quality: pareto(frame, cost, quality).set_index("run"), "is the index"),
    (_in_place, "changes its input frame in place"),
    (_by_labels, "two rows have one label"),
    (_fixed_names, "other names: frame[cost]"),
    (lambda f, c, q: pareto(f.dropna(), c, q), "dropna(subset=[quality])"),
    (lambda f, c, q: pareto(f, c, q).reset_index(drop=True), "keep the labels"),
    (lambda f, c, q: pareto(f, c, q).fillna(0), "note of"),
    (_named, "cost holds a column's name: frame[cost]"),
    (lambda f, cost, quality: f[f["quality"] > 0], "quality holds a column's name"),
    (lambda f, c, q: f.where(pd.Series(_kept(f, c, q), f.index)), "where keeps every row"),
    (lambda f, c, q: f.where(_kept(f, c, q)), "where keeps every row"),
    (lambda f, c, q: pareto(f, c, q).assign(run=[["run1"]] * len(pareto(f, c, q))), "holds a list"),
    (lambda f, c, q: pareto(f, c, q).assign(run="?"), "which no row of frame has"),
    (_strictly, "ties in one and is better"),
    (_drop_ties, "keep both"),
    (_cheapest_best, ("stays", "gone")),
    (_turned, "quality is turned round"),
    (_with_failed, "on no front"),
    (_keeps_itself_out, "beats itself"),
    (lambda frame, cost, quality: frame, "stays"),
    (lambda frame, cost, quality: frame.nlargest(1, quality), "best alone"),
    (lambda frame, cost, quality: pareto(frame, cost, quality)[[cost, quality]], "no column"),
    (lambda frame, cost, quality: list(pareto(frame, cost, quality)["run"]), "a list"),
    (lambda frame, cost, quality: None, "return"),
    (_by_label, "go by their labels"),
]


def _gap(**columns):
    """An `overfit_gap` with columns replaced: functions of one rank's rows, sorted by step."""

    def wrong(history):
        right = overfit_gap(history)
        for name, f in columns.items():
            groups = history.sort_values("step").groupby("rank")
            right[name] = [f(part.reset_index(drop=True)) for _, part in groups]
        return right

    return wrong


def _difference(part):
    return part["held_out_loss"] - part["train_loss"]


def _unsorted(history):
    """The last row of the table for the last step."""
    last = history.groupby("rank").last()
    right = overfit_gap(history).set_index("rank")
    right["gap"] = last["held_out_loss"] - last["train_loss"]
    return right.reset_index()


def _last_of_two(part):
    return part.loc[part["held_out_loss"][::-1].idxmin(), "step"]


def _first_in_table(history):
    """Of equal losses the one that the table has first, as without sorting."""
    return history.loc[history.groupby("rank")["held_out_loss"].idxmin(), "step"].tolist()


def _seen(history):
    return history["rank"].unique()


def _gap_in_place(history):
    history.sort_values("step", inplace=True)
    return overfit_gap(history)


def _last_of_all(history):
    """The last step of the longest run for every rank."""
    return overfit_gap(history).merge(history[history["step"] == history["step"].max()]["rank"])


def _at_the_last_of_all(history):
    last = history["step"].max()
    ends = [part[part["step"] == last].iloc[0] for _, part in history.groupby("rank")]
    return overfit_gap(history).assign(gap=[e["held_out_loss"] - e["train_loss"] for e in ends])


def _all_ranks_together(history):
    ordered = history.sort_values("step")
    last, low = ordered.iloc[-1], ordered["held_out_loss"].min()
    best = ordered.loc[ordered["held_out_loss"].idxmin(), "step"]
    gap, rise = last["held_out_loss"] - last["train_loss"], last["held_out_loss"] - low
    ranks = sorted(history["rank"].unique())
    return pd.DataFrame({"rank": ranks, "best_step": best, "gap": gap, "rise": rise})


def _rise_in_proportion(history):
    low = history.groupby("rank")["held_out_loss"].min().to_numpy()
    table = overfit_gap(history)
    return table.assign(rise=table["rise"] / low)


def _rise_of_all(history):
    """Above the lowest loss of all ranks."""
    last = history.sort_values("step").groupby("rank")["held_out_loss"].last()
    rise = (last - history["held_out_loss"].min()).sort_index().tolist()
    return overfit_gap(history).assign(rise=rise)


def _rise_in_percent(history):
    frame = overfit_gap(history)
    last = history.sort_values("step").groupby("rank")["held_out_loss"].last().sort_index()
    return frame.assign(rise=100 * frame["rise"].to_numpy() / (last.to_numpy() - frame["rise"]))


GAPS = [
    (_rise_of_all, "take each rank's own rows"),
    (_rise_in_percent, "3 minus 2.5"),
    (_at_the_last_of_all, "ranks may end at different steps"),
    (_gap(best_step=lambda p: p["step"].min()), "that is the first step"),
    (
        _gap(best_step=lambda p: p.loc[_difference(p).idxmin(), "step"]),
        ("first step", "smallest gap"),
    ),
    (_gap(gap=lambda p: p["held_out_loss"].min() - p["train_loss"].min()), "lowest held-out minus"),
    (_gap(rise=lambda p: p["held_out_loss"].max()), "the highest loss itself"),
    (
        lambda h: overfit_gap(h).assign(
            best_step=h.groupby("rank")["held_out_loss"].idxmin().tolist()
        ),
        "label of a row",
    ),
    (_gap_in_place, "changes its input history in place"),
    (_last_of_all, "ranks may end at different steps"),
    (gap_pivoted, "ranks may have different steps"),
    (by_rank, "rank is the index here"),
    (_gap(best_step=lambda p: p.loc[p["train_loss"].idxmin(), "step"]), "training loss is lowest"),
    (_gap(best_step=lambda p: p["held_out_loss"].idxmin()), "position"),
    (_unsorted, "sort by step"),
    (_gap(gap=lambda p: -_difference(p).iloc[-1]), "sign"),
    (_gap(gap=lambda p: _difference(p).loc[p["held_out_loss"].idxmin()]), "best step"),
    (_gap(gap=lambda p: _difference(p).mean()), "mean"),
    (_gap(gap=lambda p: p["held_out_loss"].iloc[-1] / p["train_loss"].iloc[-1]), "divides"),
    (_gap(rise=lambda p: p["held_out_loss"].min() - p["held_out_loss"].iloc[-1]), "sign"),
    (_gap(rise=lambda p: p["held_out_loss"].iloc[0] - p["held_out_loss"].min()), "first step"),
    (_gap(rise=lambda p: _difference(p).iloc[-1]), "held-out alone"),
    (_gap(rise=lambda p: p["held_out_loss"].iloc[-1] / p["held_out_loss"].min()), "divides"),
    (_gap(rise=lambda p: p["held_out_loss"].iloc[-1] - 1), "wanted"),
    (
        _gap(rise=lambda p: p["held_out_loss"].max() - p["held_out_loss"].min()),
        ("spread", "first step"),
    ),
    (_gap(gap=lambda p: abs(_difference(p).iloc[-1])), "sign"),
    (_gap(gap=lambda p: _difference(p).max()), "largest gap"),
    (_gap(best_step=_last_of_two), "the first of them"),
    (lambda h: overfit_gap(h).assign(best_step=_first_in_table(h)), "the first of them"),
    (
        lambda history: overfit_gap(history)[["best_step", "gap", "rise"]].assign(
            rank=_seen(history)
        ),
        "beside other ranks",
    ),
    (lambda history: overfit_gap(history).drop(columns="rise"), "no column rise"),
    (lambda history: overfit_gap(history)[::-1], "rising order"),
    (lambda history: overfit_gap(history).head(1), "one row a rank"),
    (lambda history: overfit_gap(history.assign(step=range(len(history)))), "wanted"),
    (lambda history: None, "return"),
    (_all_ranks_together, "of each rank alone"),
    (_rise_in_proportion, "in proportion"),
]

WRONG = [
    *[(check.counts, *case) for case in TABLES],
    *[(check.sweeps, *case) for case in SWEEPS],
    *[(check.fits, *case) for case in RANKS],
    *[(check.overlaps, *case) for case in OVERLAPS],
    *[(check.not_beaten, *case) for case in FRONTS],
    *[(check.gap, *case) for case in GAPS],
    (check.quiz, lambda: {"q1": "c", "q2": "b", "q3": "a"}, "2 of 3"),
    (check.quiz, lambda: ["c", "b", "d"], "dict"),
    (check.quiz, lambda: {"q1": "c", "q2": "e", "q3": "d"}, "q2 wants one of"),
]


# --- stubs ---------------------------------------------------------------------------------


def _stub(*args, **kwargs):
    raise NotImplementedError


STUBS = [
    (check.counts, _stub),
    (check.sweeps, _stub),
    (check.fits, _stub),
    (check.overlaps, _stub),
    (check.not_beaten, _stub),
    (check.gap, _stub),
    (check.quiz, _stub),
]


# --- what was measured beforehand ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_columns_of_vh_are_named_though_their_signs_are_free(seed, rejects, monkeypatch):
    monkeypatch.setattr(contract.session, "seed", seed)
    assert "columns of Vh" in rejects(check.overlaps, _columns)


def test_each_measured_run_stands_once_and_has_a_loss_or_an_error():
    runs = measured.load("rank_sweep")
    settings = ["study", "rank", "alpha", "learning_rate", "seed", "variant", "targets"]
    assert not runs.duplicated(settings).any()
    assert (runs["loss"].notna() | (runs["error"] != "")).all()


def test_every_rule_has_three_ranks_and_meets_the_others_at_16():
    rules = short.by_rule(measured.load("rank_sweep"))
    assert all(set(lines) == {4, 16, 64} for lines in rules.values())
    first, *others = (lines[16] for lines in rules.values())
    assert all(first.equals(line) for line in others)


def test_the_spread_leaves_failed_runs_out():
    runs = pd.DataFrame({"learning_rate": [1, 1, 2, 2], "loss": [0.2, 0.4, math.nan, 0.5]})
    spread = measured.spread(runs)
    assert spread["mean"].tolist() == pytest.approx([0.3, 0.5])
    assert spread["low"].tolist() == [0.2, 0.5]
    assert spread["high"].tolist() == [0.4, 0.5]
    assert spread["runs"].tolist() == [2, 1]


def test_a_measurement_is_made_once_for_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    made = []

    def double(n):
        made.append(n)
        return {"twice": 2 * n}

    assert [measured.remember(double, n=n)["twice"] for n in (3, 4, 3)] == [6, 8, 6]
    assert made == [3, 4]


def test_the_reduced_factor_spans_what_the_update_spans():
    A, B = torch.randn(4, 30), torch.randn(20, 4)
    leaf = torch.nn.Module()
    leaf.lora_A, leaf.lora_B = ({"default": torch.nn.Linear(1, 1)} for _ in "AB")
    leaf.lora_A["default"].weight = torch.nn.Parameter(A)
    leaf.lora_B["default"].weight = torch.nn.Parameter(B)
    attention = torch.nn.Module()
    attention.q_proj = leaf
    block = torch.nn.Module()
    block.self_attn = attention
    base = SimpleNamespace(model=SimpleNamespace(layers=[block]))
    tuned = SimpleNamespace(model=SimpleNamespace(get_base_model=lambda: base))
    same, reduced = short.factors(tuned, layer=0)
    assert torch.equal(same, A)
    assert subspace_similarity(reduced, (B @ A).T, 2, 2) == pytest.approx(1, abs=1e-4)
    values = torch.linalg.svdvals(B @ A)[:4]
    assert torch.allclose(torch.linalg.svdvals(reduced), values, rtol=1e-4)
