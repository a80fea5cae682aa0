"""Figures of lab 7."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from labkit.plots import INK, PALETTE, figure, headed

BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # so that no line runs through text


def _bars(values, colours, label, told):
    """Horizontal bars, the first on top, each with its text beside it."""
    fig, ax = figure(height=1.5 + 0.42 * len(values))
    names, lengths = list(values), list(values.values())
    ax.barh(names[::-1], lengths[::-1], color=list(colours)[::-1], height=0.58)
    for name, length, text in zip(names, lengths, told, strict=True):
        ax.text(length, name, f" {text}", va="center", color=INK)
    ax.set(xlabel=label, xlim=(0, 1.15 * max(1, *lengths)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)
    return fig, ax


def faults(counts, n, left_out, guess):
    """Bars: how many of n rows have each fault."""
    fig, ax = _bars(counts, [PALETTE[1]] * len(counts), f"rows of {n}", list(counts.values()))
    ax.set_title(f"{left_out} of {n} rows are not fit to train on;\na row may have several faults")
    guess.draw(ax, "x")
    return fig


def leaks(shares, guess):
    """Bars in percent: test rows whose question stands in training, by way of splitting."""
    told = [f"{share:.0f}%" for share in shares.values()]
    colours = [PALETTE[1], PALETTE[0]]
    fig, ax = _bars(shares, colours, "test rows whose question is in training, %", told)
    first, second = told
    ax.set_title(f"A coin for each row leaks {first} of the test rows, your split {second}")
    guess.draw(ax, "x")
    return fig


def shares(rights, n, how, guess):
    """Bars in percent with their standard errors: answers right to the letter, of n."""
    values = {name: 100 * share for name, share in rights.items()}
    top = max(values, key=values.get)
    colours = [PALETTE[0] if name == top else PALETTE[5] for name in values]
    fig, ax = _bars(values, colours, f"answers right to the letter, % of {n}", [""] * len(values))
    for name, share in rights.items():
        error = 100 * (share * (1 - share) / n) ** 0.5
        value = 100 * share
        ax.plot([value - error, value + error], [name, name], color=INK, lw=1.5)
        ax.text(value + error, name, f"  {value:.0f}%", va="center", color=INK)
    ax.set_xlim(0, 118)
    ax.set_xticks(range(0, 101, 20))
    low = min(values.values())
    lowest = [name for name, value in values.items() if value == low]
    where = f"“{lowest[0]}”" if len(lowest) == 1 else f"in {len(lowest)} of {len(values)}"
    ax.set_title(f"Right, {how}:\n{values[top]:.0f}% “{top}”, {low:.0f}% {where}")
    guess.draw(ax, "x")
    return fig


def files(made, exact, guess):
    """Left the size of each file, middle its KL from what was trained, right its score.

    `made` maps a kind to (MB, KL in nats a token, share right), `exact` is the share before.
    """
    fig, axes = figure(3, height=1.7 + 0.42 * len(made))
    names = list(made)[::-1]
    sizes, gaps, rights = (np.array([made[name][k] for name in names]) for k in range(3))
    size, gap, right = axes
    size.barh(names, sizes, color=PALETTE[0], height=0.55)
    for name, value in zip(names, sizes, strict=True):
        size.text(value, name, f" {value:.0f}", va="center", color=INK)
    size.set(xlabel="MB", xlim=(0, 1.3 * sizes.max()))
    shown = np.maximum(gaps, 1e-8)
    gap.plot(shown, names, "o", color=PALETTE[1], ms=8)
    for name, value in zip(names, shown, strict=True):
        gap.annotate(f"{value:.1g}", (value, name), (9, 0), textcoords="offset points", va="center")
    gap.set(xscale="log", xlabel="KL, nats a token\n(log)")
    gap.set_xlim(shown.min() / 10, shown.max() * 1000)  # room for the numbers
    right.barh(names, 100 * rights, color=PALETTE[2], height=0.55)
    for name, value in zip(names, 100 * rights, strict=True):
        right.text(value + 3, name, f"{value:.0f}", va="center", color=INK, bbox=BEHIND)
    right.axvline(100 * exact, color=INK, ls=":", lw=1.2, zorder=1)
    right.set(xlabel="right, %\n(dots: as trained)", xlim=(0, 125))
    for ax in (gap, right):
        ax.set_yticks(range(len(names)), [""] * len(names))
    for ax in axes:
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.grid(axis="y", visible=False)
    smallest = min(made, key=lambda name: made[name][0])
    shrunk = made["bf16"][0] / made[smallest][0]
    told = f"{smallest}: {shrunk:.1f} times smaller than bf16, KL {made[smallest][1]:.1g}"
    told += f",\nright {100 * made[smallest][2]:.0f}% (as trained {100 * exact:.0f}%)"
    headed(fig, told)
    guess.draw(right, "x")
    return fig


def batches(sizes, times):
    """Milliseconds of a layer's adapters against the rows of a batch; both axes are logs."""
    fig, ax = figure(height=3.2)
    for (name, seconds), colour, marker in zip(times.items(), PALETTE, "so", strict=False):
        ax.plot(sizes, [1000 * s for s in seconds], color=colour, marker=marker, label=name)
    ax.set(xscale="log", yscale="log", xlabel="rows of the batch", ylabel="milliseconds")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    ax.set_xticks(sizes)
    ax.legend()
    told = ", ".join(f"{1000 * seconds[-1]:.2g} ms {name}" for name, seconds in times.items())
    ax.set_title(f"{sizes[-1]} mixed rows: {told}")
    return fig


def equal(counts, guess):
    """Bars: how many of a customer's answers are PEFT's to the letter; columns sum and count."""
    values = counts["sum"].to_dict()
    told = [f"{row['sum']} of {row['count']}" for _, row in counts.iterrows()]
    fig, ax = _bars(values, [PALETTE[0]] * len(values), "answers equal to the letter", told)
    same, n = counts["sum"].sum(), counts["count"].sum()
    ax.set_title(f"{same} of {n} served answers are PEFT's, to the letter")
    if guess.value is not None:
        ax.set_xlabel(f"answers equal to the letter (your guess: {guess.value:g} of {n})")
    return fig


def speeds(rates, title):
    """Bars of tokens a second, the median of rounds; whiskers from the slowest to the fastest."""
    middle = {name: float(np.median(runs)) for name, runs in rates.items()}
    fig, ax = _bars(middle, PALETTE[: len(rates)], "new tokens a second", [""] * len(rates))
    for name, runs in rates.items():
        ax.plot([min(runs), max(runs)], [name, name], color=INK, lw=1.5)
        ax.text(max(runs), name, f"  {middle[name]:.3g}", va="center", color=INK)
    ax.set_xlim(0, 1.2 * max(max(runs) for runs in rates.values()))
    first, *others = middle.items()
    told = ", ".join(f"{name} {value / first[1]:.0%}" for name, value in others)
    ax.set_title(f"{title}, {first[0]} = 100%:\n{told}")
    return fig
