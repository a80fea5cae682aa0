"""Lab 5's checks: right answers written differently, and wrong ones that no row expresses."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from labkit.checks import lab05 as check
from labkit.measured import tables

# --- 5.1 and 5.2 ---------------------------------------------------------------------------


def update_by_torch(G, A, r, alpha, lr):
    A = torch.nn.Parameter(A.clone())
    B = torch.nn.Parameter(torch.zeros(G.shape[0], r))
    optimizer = torch.optim.Adam([A, B], lr=lr)
    B.grad = (alpha / r) * G @ A.detach().T
    A.grad = (alpha / r) * B.detach().T @ G
    optimizer.step()
    return ((alpha / r) * B @ A).detach()


def update_with_epsilon(G, A, r, alpha, lr):
    """As the text has it."""
    g = alpha / r * G @ A.T
    return -lr * (g / (g.abs() + 1e-8)) @ A * alpha / r


def update_in_numpy(G, A, r, alpha, lr):
    G, A = G.double().numpy(), A.double().numpy()
    return torch.from_numpy(-lr * alpha / r * np.sign(G @ A.T) @ A)


def scaling_by_power(alpha, r, rank_stabilized=False):
    return alpha * r ** (-1 + 0.5 * rank_stabilized)


def scaling_in_torch(alpha, r, rank_stabilized=False):
    return (alpha / torch.tensor(float(r)).sqrt()).item() if rank_stabilized else alpha / r


def scaling_in_numpy(alpha, r, rank_stabilized=False):
    return np.float32(alpha / r) if not rank_stabilized else np.divide(alpha, np.sqrt(r))


# --- 5.3 -----------------------------------------------------------------------------------


def sweep_positional(train_fn, ranks, learning_rates, alpha_of):
    """By position, one more column, and another order of rows and columns."""
    pairs = list(itertools.product(learning_rates, ranks))
    frame = pd.DataFrame([train_fn(r, alpha_of(r), rate, 7) for rate, r in pairs])
    frame["learning_rate"], frame["rank"] = zip(*pairs, strict=True)
    return frame.assign(alpha=frame["rank"].map(alpha_of), seed=7)


def sweep_concat(train_fn, ranks, learning_rates, alpha_of):
    frames = []
    for rank, rate in itertools.product(ranks, learning_rates):
        setting = {"rank": rank, "alpha": float(alpha_of(rank)), "learning_rate": rate}
        frames.append(pd.DataFrame([setting | train_fn(**setting, seed=123)]))
    return pd.concat(frames)


def sweep_turned(train_fn, ranks, learning_rates, alpha_of):
    """A column a run, turned at the end: all columns hold objects."""
    runs = {}
    for i, (rank, rate) in enumerate(itertools.product(ranks, learning_rates)):
        runs[i] = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate}
        runs[i] |= train_fn(**runs[i], seed=17)
    return pd.DataFrame(runs).T


# --- 5.4 and 5.5 ---------------------------------------------------------------------------


def bits_in_loop(losses, n_choices):
    total = 0
    for loss in losses:
        total += math.log2(n_choices) - loss.item() * math.log2(math.e)
    if total < 0:
        return 0
    return total


def bits_in_numpy(losses, n_choices):
    return np.maximum((np.log2(n_choices) - losses.numpy() / np.log(2)).sum(), 0)


def bits_by_probability(losses, n_choices):
    return (losses.neg().exp() * n_choices).log2().sum().clamp(min=0).item()


def pairs_pivoted(frame, a, b):
    wide = frame.pivot(index="seed", columns="method", values="score")
    gap = (wide[a] - wide[b]).dropna()
    return float(gap.mean()), float(gap.sem())


def pairs_in_loops(frame, a, b):
    scores = {}
    for _, row in frame.iterrows():
        if not math.isnan(row["score"]):
            scores[row["method"], row["seed"]] = row["score"]
    seeds = {seed for name, seed in scores if name == a and (b, seed) in scores}
    gaps = [scores[a, seed] - scores[b, seed] for seed in seeds]
    if not gaps:
        return math.nan, math.nan
    mean = sum(gaps) / len(gaps)
    if len(gaps) == 1:
        return mean, math.nan
    variance = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    return mean, math.sqrt(variance / len(gaps))


def pairs_in_torch(frame, a, b):
    one, other = (dict(frame[frame.method == m][["seed", "score"]].values) for m in (a, b))
    gaps = torch.tensor([one[s] - other[s] for s in sorted(one.keys() & other.keys())])
    gaps = gaps[~gaps.isnan()]
    error = gaps.std().item() / len(gaps) ** 0.5 if len(gaps) > 1 else math.nan
    return gaps.mean().item(), error


RIGHT = [
    *((check.first_step, f) for f in (update_by_torch, update_with_epsilon, update_in_numpy)),
    *((check.scales, f) for f in (scaling_by_power, scaling_in_torch, scaling_in_numpy)),
    *((check.sweeps, f) for f in (sweep_positional, sweep_concat, sweep_turned)),
    *((check.stores, f) for f in (bits_in_loop, bits_in_numpy, bits_by_probability)),
    *((check.pairs, f) for f in (pairs_pivoted, pairs_in_loops, pairs_in_torch)),
]

# --- wrong answers, besides the rows of lab05.toml --------------------------------------------


def update_by_adamw(G, A, r, alpha, lr):
    return update_in_numpy(G, (1 - 0.02 * lr) * A, r, alpha, lr)


def update_with_large_epsilon(G, A, r, alpha, lr):
    grad = alpha / r * G @ A.T
    return -alpha / r * lr * grad / (grad.abs() + 1e-6) @ A


def sweep_of_arrays(train_fn, ranks, learning_rates, alpha_of):
    return sweep_concat(train_fn, np.array(ranks), learning_rates, alpha_of)


def sweep_twice(train_fn, ranks, learning_rates, alpha_of):
    sweep_concat(train_fn, ranks, learning_rates, alpha_of)
    return sweep_concat(train_fn, ranks, learning_rates, alpha_of)


def sweep_the_best(train_fn, ranks, learning_rates, alpha_of):
    frame = sweep_concat(train_fn, ranks, learning_rates, alpha_of)
    return frame.sort_values(frame.columns[-1]).head(1)


def sweep_that_pops(train_fn, ranks, learning_rates, alpha_of):
    frame = sweep_concat(train_fn, ranks, learning_rates, alpha_of)
    ranks.pop()
    return frame


def bits_of_whole_pairs(losses, n_choices):
    return float((math.log2(n_choices) - losses / math.log(2)).round().sum().clamp_min(0))


def pairs_in_place(frame, a, b):
    frame.dropna(subset=["score"], inplace=True)
    return pairs_pivoted(frame, a, b)


def pairs_of_table(frame, a, b):
    """pivot_table drops a method whose scores are all NaN."""
    wide = frame.pivot_table(index="seed", columns="method", values="score")
    gaps = (wide[a] - wide[b]).dropna()
    return gaps.mean(), gaps.sem()


def pairs_within_names(frame, a, b):
    methods = [frame[frame["method"].str.contains(m, regex=False)] for m in (a, b)]
    first, second = (rows.groupby("seed")["score"].mean() for rows in methods)
    return (first - second).mean(), (first - second).sem()


WRONG = [
    (check.first_step, update_by_adamw, "should be [[-0.3, 0]], not [[-0.2994, 0]]"),
    (check.first_step, update_with_large_epsilon, "small gradients, the result is"),
    (check.sweeps, sweep_of_arrays, "the rank that train_fn gets should be an int, not an int64"),
    (check.sweeps, sweep_twice, "the calls of train_fn per pair should be 1, not 2"),
    (check.sweeps, sweep_the_best, "the number of rows should be 6, not 1"),
    (check.sweeps, sweep_that_pops, "changes its input `ranks` in place"),
    (check.stores, bits_of_whole_pairs, "should be 1.5573, not 2"),
    (check.pairs, pairs_in_place, "changes its input `frame` in place"),
    (check.pairs, pairs_of_table, "when every run of a failed: no shared seed"),
    (check.pairs, pairs_within_names, "the same six seeds, the mean should be"),
]

# --- what the lab makes of the rows of many runs ---------------------------------------------


def test_each_method_is_shown_at_its_best_rate():
    losses = {0.1: [3.0, 1.0], 0.2: [1.5, 1.5], 0.3: [0.5]}  # the last has one lucky seed
    rows = [("lora", rate, s, x) for rate, some in losses.items() for s, x in enumerate(some)]
    rows.append(("full", 0.1, 0, math.nan))
    runs = pd.DataFrame(rows, columns=["method", "learning_rate", "seed", "loss"])
    best = tables.at_best_rate(runs)
    assert best.to_dict("list") == {
        "method": ["LoRA", "LoRA"],
        "learning_rate": [0.2, 0.2],
        "seed": [0, 1],
        "loss": [1.5, 1.5],
    }


def test_the_rate_that_reaches_a_loss_is_found_between_two():
    """Losses that fall by log(rate * alpha^0.5) reach a level at alpha to the power -0.5."""
    grid = [(alpha, rate) for alpha in (4, 16, 64) for rate in (1e-3, 1e-2, 1e-1, 1.0)]
    runs = pd.DataFrame(grid, columns=["alpha", "learning_rate"])
    runs["loss"] = -(runs["learning_rate"] * runs["alpha"] ** 0.5).map(math.log10)
    reached = tables.rates_reaching(runs.assign(study="rank", variant="", rank=8, seed=0), 0.75)
    wanted = 10**-0.75 / reached["alpha"] ** 0.5
    assert len(reached) == 3 and reached["rate"].to_list() == pytest.approx(wanted.to_list())
    assert tables.exponent(reached) == pytest.approx(-0.5)
