"""Figures of lab 5."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from labkit.figures.forms import RING, bars, dots, mean_interval, spread, titled
from labkit.figures.guess import Guess
from labkit.measured import tables
from labkit.plots import BESIDE, INK, ROLES, VARIANTS

HELD_OUT = "held-out loss (nats per token)"
RULES = ("alpha = 2r", "alpha = 32", "alpha = 128", "rsLoRA, alpha = 32")
COLORS = dict(zip(RULES, VARIANTS, strict=False))


def rules(ranks: Sequence[int], losses: dict[str, Sequence[float]]) -> Figure:
    """Held-out loss against rank, one line per rule for alpha: {rule: losses}."""
    fig, ax = titled("With alpha = 2r, rank seems to matter; with a fixed alpha, it doesn't")
    for rule, values in losses.items():
        color = COLORS.get(rule, INK)
        ax.plot(ranks, values, "o-", color=color)
        ax.annotate(rule, (ranks[0], values[0]), (12, 8), color=color, **BESIDE)
    for rank, loss in zip(ranks, losses.get("alpha = 2r", ()), strict=False):
        ax.plot(rank, loss, "o", ms=22, color=COLORS["alpha = 2r"])
        ax.text(rank, loss, 2 * rank, color="white", ha="center", va="center", fontsize=9)
    ax.set(xscale="log", xticks=ranks, xticklabels=ranks, xlabel="rank", ylabel=HELD_OUT)
    ax.set_ylim(0, 1.15 * max(map(max, losses.values())))
    ax.minorticks_off()
    return fig


def first_steps(ranks: Sequence[int], helps: dict[str, Sequence[float]], guess: Guess) -> Figure:
    """How much a first step helps, by rank, as a multiple of the lowest rank's: {rule: values}."""
    fig, ax = titled("With alpha = 2r, the first step helps more at higher ranks")
    for rule, values in helps.items():
        color, share = COLORS.get(rule, INK), values[-1] / values[0]
        ax.plot(ranks, np.array(values) / values[0], "o-", color=color)
        ax.annotate(f"{rule}: × {share:.0f}", (ranks[-1], share), (8, 0), color=color, **BESIDE)
    ax.set(xscale="log", xticks=ranks, xticklabels=ranks, xlabel="rank", xlim=(None, 4 * ranks[-1]))
    ax.set_yscale("log", base=2)
    ax.set(ylabel=f"effect of the first step,\nrelative to r={ranks[0]}", ylim=(0.8, 20))
    ax.set_yticks([1, 2, 4, 8, 16], [f"× {times}" for times in (1, 2, 4, 8, 16)])
    ax.minorticks_off()
    guess.draw(ax)
    return fig


def grid(losses: pd.DataFrame) -> Figure:
    """Held-out loss against the learning rate (columns), one line per rank (index)."""
    same = losses.idxmin(axis=1).nunique() == 1
    which = "One learning rate is best for all ranks"
    fig, ax = titled(which if same else "The best learning rate depends on the rank")
    # a diverging run leaves the axis, so that it does not flatten the others
    rates, top = list(losses), 1.1 * min(losses.max().max(), 4 * losses.min().min())
    ends = spread(losses[rates[-1]].fillna(top).clip(upper=top), 0.08 * top, top)
    for i, ((rank, row), end) in enumerate(zip(losses.iterrows(), ends, strict=True)):
        color = VARIANTS[i % len(VARIANTS)]
        ax.plot(rates, row, "o-", ms=9, markevery=[row.argmin()], color=color)
        text = f"r={rank}: best {row.min():.2f}"
        ax.annotate(text, (rates[-1], end), (8, 0), color=color, **BESIDE)
    ax.set(xscale="log", ylim=(0, top), xlabel="learning rate (dot: the best)", ylabel=HELD_OUT)
    ax.set(xticks=rates, xticklabels=rates)
    ax.minorticks_off()
    return fig


def rate_against_alpha(reached: pd.DataFrame) -> Figure:
    """The rate that reaches a loss, against alpha; `reached` is from `tables.rates_reaching`."""
    slope = tables.exponent(reached)
    fig, ax = titled(f"With 16 times the alpha, 1/{16**-slope:.0f} of the learning rate is enough")
    for i, (rank, runs) in enumerate(reached.groupby("rank")):
        x = runs["alpha"] * 1.04 ** (i - 1)  # from left to right
        ax.plot(x, runs["rate"], "o", color=VARIANTS[i], alpha=0.7, label=f"r={rank}")
    ax.legend()
    alphas, rates = reached["alpha"].unique().astype(int), [0.0003, 0.001, 0.003]
    middle = np.log(reached["rate"]).mean() - slope * np.log(reached["alpha"]).mean()
    ax.plot(alphas, np.exp(middle) * alphas**slope, color=INK, lw=1.2)
    ax.set(xscale="log", yscale="log", ylabel="learning rate that\nreaches a loss of 0.45")
    ax.set(xticks=alphas, xticklabels=alphas, yticks=rates, yticklabels=rates)
    ax.set_xlabel("alpha (dot: one seed, interpolated between two rates)")
    ax.minorticks_off()
    return fig


def memory(stored: dict[tuple[int, int], float], guess: Guess) -> Figure:
    """Bits stored, in % of 6 per pair: {(rank, pairs): bits}. guess: in percent, of r=1."""
    shares = {(rank, n): 100 * bits / (6 * n) for (rank, n), bits in stored.items()}
    rank, n = least = min(shares, key=shares.get)
    fig, ax = titled(f"An r={rank} adapter stores {shares[least]:.0f}% of the bits in {n:,} pairs")
    name = "r={}\n{:,} pairs" if len({n for _, n in stored}) > 1 else "r={}"
    values = {name.format(*setting): share for setting, share in shares.items()}
    bars(ax, values, "bits stored (%)", text="{:.0f}%", top=115, guess=guess)
    return fig


def bits(stored: dict[int, Sequence[float]], available: int) -> Figure:
    """Bits stored against parameters: {rank: bits by seed}; `available`: bits in the data."""
    sizes, values = 2112 * np.array(list(stored)), np.array(list(stored.values()))
    rate = (values.mean(axis=1) / sizes).max()
    enough = min(r for r, some in stored.items() if np.mean(some) > 0.98 * available)
    fig, ax = titled(f"Below r={enough}, the rank limits how much is stored")
    ax.plot(sizes, values, **RING | {"mec": ROLES["LoRA"]})
    ends = np.array([sizes[0], available / rate])
    ax.plot(ends, rate * ends, color=INK, lw=1.2, ls=":")
    ax.axhline(available, color=INK, lw=1.2, ls=":")
    ax.annotate("all bits", (sizes[0], available), (0, 8), color=INK, **BESIDE)
    text = f"{rate:.1f} bits per parameter"
    ax.annotate(text, (sizes[1], rate * sizes[1]), (14, -4), color=INK, **BESIDE)
    what = {"ylabel": "bits stored in 100 passes", "xlabel": "parameters (ring: one seed)"}
    ax.set(xscale="log", yscale="log", **what)
    ax.set_xticks(sizes, [f"{size:,}\nr={rank}" for size, rank in zip(sizes, stored, strict=True)])
    ax.set_yticks([1000, 2000, 4000, 6000], ["1,000", "2,000", "4,000", "6,000"])
    ax.minorticks_off()
    return fig


def variants(gaps: dict[str, Sequence[float]]) -> Figure:
    """Differences from LoRA's loss, in percent: {method: one per seed}."""
    names = {"rsLoRA": "rsLoRA (= LoRA, alpha 128)"}
    order = sorted(gaps, key=lambda method: np.mean(gaps[method]))  # the best on top
    gaps = {names.get(method, method): gaps[method] for method in order}
    winners = " and ".join(name for name, values in gaps.items() if max(values) < 0)
    fig, ax = titled(f"Only {winners} beats LoRA for every seed", height=4)
    means = {name: mean_interval(values) for name, values in gaps.items()}
    colors = dict.fromkeys(gaps, "#555555") | {"full fine-tuning": "full"}
    what = "held-out loss relative to LoRA, %\n(left is better; ring: one seed, line: 95% interval)"
    dots(ax, means, what, colors, "", gaps)
    ax.axvline(0, color=ROLES["LoRA"], lw=2, zorder=0)
    ax.annotate("LoRA", (0, -0.3), (4, 0), color=ROLES["LoRA"], **BESIDE)
    return fig


def tickets(scores: pd.DataFrame, guess: Guess, n: int = 288) -> Figure:
    """Accuracy of each method: columns method, seed, accuracy (0 to 1). guess: in percent."""
    scores = scores.replace({"method": {"TF-IDF": "TF-IDF of words"}})
    scores = scores.assign(share=100 * scores["accuracy"])
    colors = {"full fine-tuning": ROLES["full"], "LoRA": ROLES["LoRA"], "QLoRA": ROLES["QLoRA"]}
    colors |= dict.fromkeys(["TF-IDF of characters", "TF-IDF of words"], "#777777")
    by_method = scores.groupby("method")["share"].agg(["mean", "max"]).loc[list(colors)]
    fig, ax = titled("A non-neural classifier comes close to LoRA", height=2.8)
    ax.barh(by_method.index, by_method["mean"], 0.6, color=colors.values())
    for method, mean, end in by_method.itertuples():
        ax.annotate(f"{mean:.0f}", (end, method), (8, 0), color=INK, **BESIDE)
    seeds = scores[scores.duplicated("method", keep=False)]
    ax.plot(seeds["share"], seeds["method"], **RING | {"mec": INK, "mfc": "white"})
    ax.set(xlabel=f"right answers on {n} tickets, % (ring: one seed)", xlim=(0, 62))
    ax.grid(axis="y", visible=False)
    guess.draw(ax, "x")
    return fig
