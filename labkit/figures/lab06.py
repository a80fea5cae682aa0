"""Figures of lab 6."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.figures.forms import dots, titled, wilson
from labkit.figures.guess import Guess
from labkit.plots import INK, ROLES, VARIANTS

GRIDS = dict(zip(("bf16", "Q8_0", "NF4"), VARIANTS, strict=False))


def number_line(rows: dict[str, tuple[Sequence[float], float, float]], update: float) -> Figure:
    """One weight on several grids: {grid: (values near it, the weight, the rounded sum)}.

    The band is the dead zone, the arrow the update, a ring the weight, a dot the rounded sum.
    """
    stay = [name for name, (_, start, landed) in rows.items() if landed == start]
    title = f"The same update is lost in {' and '.join(stay)}" if stay else "The update survives"
    fig, ax = titled(title, height=0.8 * len(rows) + 1.2)
    reach = 12 * abs(update)
    for y, (name, (values, start, landed)) in zip(
        reversed(range(len(rows))), rows.items(), strict=True
    ):
        near, color = np.array(values) - start, GRIDS[name]
        ax.vlines(near[np.abs(near) <= reach], y - 0.16, y + 0.16, color=INK, lw=0.8, alpha=0.45)
        ax.fill_between(_dead_zone(near, reach), y - 0.3, y + 0.3, color=color, alpha=0.25, lw=0)
        ax.plot(0, y, "o", color=color, ms=10, mfc="white", mew=2)
        style = {"arrowstyle": "->", "color": INK, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (update, y + 0.38), (0, y + 0.38), arrowprops=style)
        ax.plot(landed - start, y, "o", color=color, ms=5)
    ax.set_yticks(range(len(rows))[::-1], list(rows))
    ax.set(xlim=(-reach, reach), ylim=(-0.6, len(rows) - 0.3))
    ax.set_xlabel("distance from the old weight (ring: before, arrow: update, dot: after)")
    ax.locator_params(axis="x", nbins=5)
    ax.grid(visible=False)
    return fig


def _dead_zone(near, reach):
    """Halfway to the neighbors of 0 among the distances `near`, or the edge of the figure."""
    below, above = near[near < 0], near[near > 0]
    low = below.max() / 2 if len(below) else -reach
    return max(low, -reach), min(above.min() / 2 if len(above) else reach, reach)


def arrivals(
    sizes: Sequence[float], shares: dict[str, Sequence[float]], trained: float, guess: Guess
) -> Figure:
    """The share of an update that arrives, in %, by its size |dW| / |W|: {grid: shares}.

    A name with a comma, "NF4, original weights", is dashed: weights that are not on the grid.

    trained: the size of the adapter's own update. guess: for bf16 at a size of 0.1%.
    """
    fig, ax = titled("Weights on a grid lose small updates; weights between its values don't")
    for name, values in shares.items():
        line = "o--" if "," in name else "o-"
        ax.plot(sizes, values, line, color=GRIDS[name.partition(",")[0]])
    _named(ax, sizes, shares)
    ax.axvline(trained, color=INK, ls=":", lw=1.5)
    ax.text(trained, 112, " home", color=INK)
    ax.set(xscale="log", xlabel="size of the update, |ΔW| / |W|", xlim=(None, 2.5 * sizes[-1]))
    ax.set(ylabel="share of the update\nthat survives, %", ylim=(-5, 122))
    ax.set_xticks(sizes, [f"{100 * size:g}%" for size in sizes])
    ax.minorticks_off()
    guess.draw(ax)
    return fig


def _named(ax: Axes, sizes, shares):
    """Label each curve where it first exceeds half, so that labels don't overlap at the end."""
    for name, values in shares.items():
        at = next((i for i, value in enumerate(values) if value > 50), len(values) - 1)
        place = (sizes[at], values[at])
        color = GRIDS[name.partition(",")[0]]
        how = {"textcoords": "offset points", "color": color, "ha": "left", "va": "top"}
        ax.annotate(name, place, (6, -6), **how)


def merges(kls: dict[str, float], right: dict[str, int], n: int, guess: Guess) -> Figure:
    """Each merge: KL from the trained model (nats per token), and right answers of `n`.

    kls: {merge: KL}; right: the same, with the trained model first. guess: for the second merge.
    """
    nearest = min(kls, key=kls.get)
    fig, (left, other) = titled(f"Closest to the trained model: {nearest}", 2, sharey=False)
    trained, *_ = right.values()
    roles = {name: "mistake" for name in kls if right[name] < trained / 2}
    roles |= {nearest: "QLoRA", "no adapter": "base"}
    dots(left, kls, "KL from the trained model,\nnats per token", roles, "{:.2g}")
    left.set(xscale="log", xlim=(min(kls.values()) / 4, 10 * max(kls.values())))
    values = {name: wilson(count, n) for name, count in right.items()}
    dots(other, values, f"right answers, of {n}\n(line: 95% interval)", roles, "{:.0f}")
    other.set_xlim(-0.03 * n, 1.05 * n)
    guess.draw(other, "x")
    return fig


def mixtures(
    found: dict[tuple[str, tuple[float, float]], tuple[float, float]], alone: tuple[float, float]
) -> Figure:
    """Losses of mixtures on two tasks: {(way, weights): (home, tickets)}, a color per way.

    alone: the loss of each adapter on its own task.
    """
    nearest = min(max(np.divide(losses, alone)) for losses in found.values())
    title = "No mixture does both jobs as well as two adapters"
    fig, ax = titled(title if nearest > 1.05 else "One mixture does both jobs", height=4)
    for way, color in zip(dict.fromkeys(way for way, _ in found), VARIANTS, strict=False):
        weights = sorted((w for kind, w in found if kind == way), key=lambda w: w[1] / w[0])
        ax.plot(*zip(*(found[way, w] for w in weights), strict=True), "o-", color=color, label=way)
        for w in weights:
            below = color == VARIANTS[0]  # so that neighbors' labels don't overlap
            how = {"ha": "right", "va": "top"} if below else {"va": "bottom"}
            how |= {"textcoords": "offset points", "color": color, "fontsize": 9}
            text, place = "{:g} : {:g}".format(*w), (-6, -4) if below else (6, 3)
            ax.annotate(text, found[way, w], place, **how)
    ax.plot(*alone, "o", color=ROLES["base"], ms=10)
    ax.annotate("two adapters", alone, (10, 0), textcoords="offset points", color=INK, va="center")
    ax.set(xscale="log", yscale="log", xlabel="loss on home (nats per token)")
    ax.set(ylabel="loss on tickets (nats per token)")
    for axis, values in ((ax.xaxis, 0), (ax.yaxis, 1)):
        reach = [losses[values] for losses in (*found.values(), alone)]
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5) if 0.7 * min(reach) <= t <= 1.5 * max(reach)]
        axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_ticks([], minor=True)
    ax.legend(title="weights: home : tickets")
    return fig
