"""Figures of lab 5."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.figures.forms import bars, dots, heatmap, mean_interval, t_interval, titled, wilson
from labkit.figures.guess import Guess
from labkit.measured import tables
from labkit.plots import INK, VARIANTS

HELD_OUT = "held-out loss (nats per token)"


def rules(ranks: Sequence[int], losses: dict[str, Sequence[float]]) -> Figure:
    """Held-out loss against rank, one line per rule for alpha: {rule: losses}."""
    fig, ax = titled(
        f"With {next(iter(losses))}, rank seems to matter; with a fixed alpha, it doesn't"
    )
    for (rule, values), color in zip(losses.items(), VARIANTS, strict=False):
        ax.plot(ranks, values, "o-", color=color)
        how = {"textcoords": "offset points", "color": color, "va": "bottom"}
        ax.annotate(rule, (ranks[0], values[0]), (8, 4), **how)
    _ranks(ax, ranks)
    ax.set(ylabel=HELD_OUT, ylim=(0, 1.1 * max(map(max, losses.values()))))
    return fig


def _ranks(ax: Axes, ranks: Sequence[int], room: float = 1.3) -> None:
    """Set up a logarithmic axis of ranks, with room for labels on the right."""
    ax.set(xscale="log", xlabel="rank r", xlim=(ranks[0] / 1.3, ranks[-1] * room))
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.set_xticks([], minor=True)


def first_steps(ranks: Sequence[int], helps: dict[str, Sequence[float]], guess: Guess) -> Figure:
    """How much a first step helps, by rank, as a multiple of the lowest rank's: {rule: values}."""
    fig, ax = titled("The first step's effect is proportional to alpha at every rank")
    for (rule, values), color in zip(helps.items(), VARIANTS, strict=False):
        shares = np.array(values) / values[0]
        ax.plot(ranks, shares, "o-", color=color)
        ax.annotate(f"  {rule}", (ranks[-1], shares[-1]), color=color, va="center")
    _ranks(ax, ranks, room=4)
    ax.set(ylabel=f"effect of the first step,\nas a multiple of r={ranks[0]}", ylim=(0, 18))
    guess.draw(ax)
    return fig


def grid(losses: pd.DataFrame) -> Figure:
    """Held-out losses by rank (index) and learning rate (columns)."""
    best = losses.idxmin(axis=1).unique()
    title = (
        "The best learning rate depends on the rank"
        if len(best) > 1
        else "One learning rate is best for all ranks"
    )
    fig, ax = titled(title)
    rows, columns = ([f"r={r}" for r in losses.index], [f"rate {x:g}" for x in losses.columns])
    heatmap(ax, losses.to_numpy(), rows, columns, HELD_OUT, "{:.2f}")
    return fig


def rate_against_alpha(reached: pd.DataFrame) -> Figure:
    """The rate that reaches a loss, against alpha; `reached` is from `tables.rates_reaching`."""
    slope = tables.exponent(reached)
    fig, ax = titled(f"The learning rate you need falls roughly as alpha to the power {slope:.1f}")
    for (rank, runs), color in zip(reached.groupby("rank"), VARIANTS, strict=False):
        ax.plot(runs["alpha"], runs["rate"], "o", color=color, alpha=0.7, label=f"r={rank}")
    alphas = np.array(sorted(reached["alpha"].unique()))
    middle = np.log(reached["rate"]).mean() - slope * np.log(reached["alpha"]).mean()
    ax.plot(alphas, np.exp(middle) * alphas**slope, color=INK, lw=1.2)
    ax.set(xscale="log", yscale="log", xlabel="alpha (each dot: one seed, interpolated)")
    ax.legend()
    ax.set_ylabel("learning rate that\nreaches a loss of 0.45")
    ax.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    rates = [0.0003, 0.001, 0.003]
    ax.set_yticks(rates, [f"{rate:g}" for rate in rates])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([], minor=True)
    return fig


def memory(stored: dict[str, float], guess: Guess) -> Figure:
    """Bits stored, by setting ("r=1\\n250 pairs"), the newest last; dotted: the 6 bits per pair.

    guess: in bits, of r=1.
    """
    available = {label: 6 * int(label.split()[1]) for label in stored}
    least = min(stored, key=lambda label: stored[label] / available[label])
    share, rank = stored[least] / available[least], least.split()[0]
    fig, ax = titled(f"At {rank}, the adapter stores {share:.0%} of the bits")
    bars(ax, stored, "bits stored", text="{:,.0f}", top=1.15 * max(available.values()), guess=guess)
    for x, bits in enumerate(available.values()):
        ax.plot([x - 0.4, x + 0.4], [bits, bits], color=INK, lw=1.2, ls=":")
    ax.text(-0.4, next(iter(available.values())), "all bits", va="bottom", color=INK)
    return fig


def bits(stored: dict[str, Sequence[float]], available: float) -> Figure:
    """Bits stored by rank: {rank: bits by seed}; `available`: bits in the data."""
    values = {rank: tuple(np.array(mean_interval(b)) / 1000) for rank, b in stored.items()}
    first, (mean, *_) = next(iter(values.items()))
    fig, ax = titled(f"At {first}, the adapter stores {1000 * mean / available:.0%} of the bits")
    bars(ax, values, "thousands of bits stored\n(line: 95% interval)", text="{:.1f}")
    ax.axhline(available / 1000, color=INK, lw=1, ls=":")
    ax.text(-0.4, available / 1000, "all bits", va="bottom", color=INK)
    return fig


def variants(compared: dict[str, tuple[float, float]], n_seeds: int) -> Figure:
    """Differences from LoRA in percent: {method: (mean, standard error)} over the same seeds."""
    ordered = sorted(compared.items(), key=lambda pair: pair[1][0])
    rows = {method: t_interval(*pair, n_seeds) for method, pair in ordered}
    beyond = [method for method, (_, low, high) in rows.items() if low > 0 or high < 0]
    which = f"Only {', '.join(beyond)}" if beyond else "No method"
    fig, ax = titled(f"{which} differs from LoRA by more than chance", height=4)
    roles = {method: "full" if method.startswith("full") else "LoRA" for method in rows}
    xlabel = "held-out loss relative to LoRA, % (left is better; line: 95% interval)"
    dots(ax, rows, xlabel, roles, "{:+.0f}")
    ax.axvline(0, color=INK, lw=1)
    return fig


def tickets(scores: pd.DataFrame, guess: Guess, n: int = 288) -> Figure:
    """Accuracy of each method: columns method, seed, accuracy (0 to 1). guess: in percent."""
    values = {}
    classical = ("zero-shot", "TF-IDF", "TF-IDF of characters")
    for method in (*classical, "QLoRA", "LoRA", "full fine-tuning"):
        part = n * scores.loc[scores["method"] == method, "accuracy"].to_numpy()
        ends = mean_interval(part) if len(part) > 1 else wilson(part[0], n)
        values[method.replace(" ", "\n", 1)] = tuple(100 * np.array(ends) / n)
    fig, ax = titled("A non-neural classifier comes close to LoRA")
    roles = {method.replace(" ", "\n", 1): "base" for method in classical}
    roles |= {"QLoRA": "QLoRA", "full\nfine-tuning": "full"}
    ylabel = f"right answers on {n} tickets, %\n(line: 95% interval)"
    bars(ax, values, ylabel, roles, "{:.0f}", guess=guess)
    return fig
