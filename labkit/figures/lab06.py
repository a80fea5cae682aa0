"""Figures of lab 6."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.figures.forms import dots, titled
from labkit.figures.guess import Guess
from labkit.plots import BESIDE, INK, ROLES, VARIANTS

GRIDS = dict(zip(("bf16", "Q8_0", "NF4"), VARIANTS, strict=False))
NAMES = ("cat", "linear", "TIES 0.5", "cat, cut to r=8", "TIES 0.2")
WAYS = dict(zip(NAMES, VARIANTS, strict=False))
Points = dict[tuple[str, tuple[float, float]], tuple[float, float]]  # {(way, weights): (x, y)}


def number_line(rows: dict[str, tuple[Sequence[float], float, float]], update: float) -> Figure:
    """One weight on several grids: {grid: (values near it, the weight, the rounded sum)}."""
    stay = [name for name, (_, start, landed) in rows.items() if landed == start]
    title = f"This update is lost in {' and '.join(stay)}" if stay else "The update survives"
    fig, ax = titled(title, height=0.8 * len(rows) + 1.2)
    reach = 22 * abs(update)
    arrow = {"arrowstyle": "->", "color": INK, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    for y, (name, (values, start, landed)) in enumerate(reversed(rows.items())):
        near, color = np.array(values) - start, GRIDS[name]
        ax.vlines(near[np.abs(near) <= reach], y - 0.16, y + 0.16, color=INK, lw=0.8, alpha=0.45)
        low, high = near[near < 0].max(initial=-2 * reach), near[near > 0].min(initial=2 * reach)
        ax.fill_between([low / 2, high / 2], y - 0.3, y + 0.3, color=color, alpha=0.25, lw=0)
        ax.plot(0, y, "o", color=color, ms=10, mfc="white", mew=2)
        ax.annotate("", (update, y + 0.38), (0, y + 0.38), arrowprops=arrow)
        ax.plot(landed - start, y, "o", color=color, ms=5)
    (away, there), side = (("right", "left"), 1) if update > 0 else (("left", "right"), -1)
    how = {"fontsize": 9, "color": INK, **BESIDE}
    ax.annotate("update", (update, y + 0.38), (4 * side, 0), ha=there, **how)
    ax.annotate("before", (0, y - 0.35), (-3 * side, 0), ha=away, **how)
    ax.annotate("after", (landed - start, y - 0.35), (-3 * side, 0), ha=there, **how)
    ax.annotate("dead zone", (0, -0.45), (0, 0), ha="center", **how)
    ax.set_yticks(range(len(rows)), reversed(rows))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(xlim=(-reach, reach), ylim=(-0.6, y + 0.7), xlabel="distance from the old weight")
    ax.locator_params(axis="x", nbins=5)
    ax.grid(visible=False)
    return fig


def arrivals(sizes: Sequence, shares: dict, home: Sequence, guess: Guess) -> Figure:
    """The share of an update that survives, in %, by its size |dW| / |W|: {grid: shares}.

    A name with a comma, "NF4, …", is dashed: weights that are not on the grid. home: the adapter's
    size, and its share in NF4. guess: for bf16 at a size of 0.1%.
    """
    fig, ax = titled("Weights on a grid lose small updates; other weights keep them")
    for name, values in shares.items():
        color, off = GRIDS[name.partition(",")[0]], "," in name
        points = [*zip(sizes, values, strict=True), *([home] if name == "NF4" else [])]
        ax.plot(*zip(*sorted(points), strict=True), "o--" if off else "o-", color=color)
        at = next((i for i, value in enumerate(values) if value > 50), len(values) - 1)
        place = (sizes[0], 110) if off else (sizes[at], values[at] - 8)
        ax.annotate(name, place, (0 if off else 6, 0), color=color, **BESIDE)
    ax.axvline(home[0], color=INK, ls=":", lw=1.5)
    ax.annotate(f"{home[1]:.0f}% survives", home, (-6, 8), color=GRIDS["NF4"], ha="right", **BESIDE)
    ax.text(home[0], 110, " home's update", color=INK, va="center")
    ax.set(xscale="log", xlabel="size of the update, |ΔW| / |W|", xlim=(None, 2.5 * sizes[-1]))
    ax.set(ylabel="share of the update\nthat survives, %", ylim=(-5, 118))
    ax.set_xticks(sizes, [f"{100 * size:g}%" for size in sizes])
    ax.minorticks_off()
    guess.draw(ax)
    return fig


def merges(kls: dict, right: dict, runs: pd.DataFrame, guess: Guess) -> Figure:
    """Each merge: KL from the trained model (nats per token), and right answers of 60.

    kls: {merge: KL}; right: {merge: count}, and "as trained". runs: measured/merging.csv, a row per
    other seed. guess: for the merge into the original.
    """
    nearest, trained = min(kls, key=kls.get), right["as trained"]
    title = f"Closest to the trained model: {nearest}"
    if nearest == "dequantized, 16 bits" and abs(right[nearest] - trained) <= 2:
        title = "Merging into the dequantized base hardly changes the answers"
    fig, (left, other) = titled(title, 2, sharey=True)
    kls = {"as trained": 1e-9} | dict(sorted(kls.items(), key=lambda pair: pair[1]))
    roles = {name: "mistake" for name in kls if right[name] < trained / 2}
    roles |= {"as trained": "QLoRA", "no adapter": "base"}
    dots(left, kls, "KL from the trained model,\nnats per token", roles)
    left.texts[0].remove()  # a logarithmic axis has no 0
    left.text(1.2e-4, 0, "0: this is the trained model", va="center", color=INK, fontsize=9)
    left.set(xscale="log", xlim=(min(1e-4, kls[nearest] / 2), 60))
    left.set_xticks([1e-4, 1e-2, 1], ["0.0001", "0.01", "1"])
    counts, rings = {k: right[k] for k in kls}, {k: runs[f"{k}: right"] for k in kls}
    dots(other, counts, "right answers out of 60\n(ring: another seed)", roles, "{:.0f}", rings)
    other.set_xlim(-2, 63)
    guess.draw(other, "x")
    return fig


def _ways(ax: Axes, points: Points, apart: tuple[float, float]) -> None:
    """Draw a line per way, named at its end; "cat" shows its weights. apart: two adapters."""
    for way in dict.fromkeys(way for way, _ in points):
        weights = sorted((w for kind, w in points if kind == way), key=lambda w: w[1] / sum(w))
        color, lower = WAYS.get(way, INK), apart < points[way, weights[0]]
        below = way == "cat" or (way.startswith("TIES") and lower)  # on the side without lines
        ax.plot(*zip(*(points[way, w] for w in weights), strict=True), "o-", color=color)
        how = {"ha": "right", "va": "top"} if below else {"va": "bottom"}
        how |= {"textcoords": "offset points", "color": color, "fontsize": 9}
        for w in weights:
            text = [way] * (w == weights[-1])
            text += ["{:g} : {:g}".format(*w)] * (way == "cat" or len(weights) == 1)
            ax.annotate(", ".join(text), points[way, w], (-6, -4) if below else (6, 3), **how)
    ax.plot(*apart, "o", color=ROLES["base"], ms=10)
    ax.annotate("two adapters", apart, (10, 0), color=INK, **BESIDE)


def mixtures(found: Points, alone: tuple[float, float]) -> Figure:
    """Losses of mixtures on (home, tickets); alone: the loss of each adapter on its own task."""
    nearest = min(max(np.divide(losses, alone)) for losses in found.values())
    title = "No mixture does both jobs as well as two adapters"
    fig, ax = titled(title if nearest > 1.05 else "One mixture does both jobs", height=4)
    _ways(ax, found, alone)
    ax.set(xscale="log", yscale="log", xlabel="loss on home (nats per token)")
    ax.set(ylabel="loss on tickets (nats per token)")
    ticks, x, y = (0.1, 0.2, 0.5, 1, 2, 5), ax.get_xlim(), ax.get_ylim()
    ax.set(xticks=ticks, xticklabels=ticks, yticks=ticks, yticklabels=ticks)
    ax.set(xlim=(0.85 * x[0], x[1]), ylim=y)  # room for the labels
    ax.minorticks_off()
    return fig
