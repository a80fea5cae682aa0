"""Figures of memory: stacked bars by category, and the timeline of a training step."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.figures.forms import stacks, titled
from labkit.memory.ledger import CATEGORIES
from labkit.memory.simulate import Simulation
from labkit.plots import INK, PARTS

COLORS = dict(zip(CATEGORIES, PARTS, strict=True))
GB, PEAK = 10**9, "GB at the peak of a step"
Rows = dict[str, dict[str, int]]  # {label: {category: bytes}}, of `ledger.CATEGORIES`


def bars(rows: Rows, title: str) -> Figure:
    """Draw a stacked bar per row, by category."""
    fig, ax = titled(title)
    stacks(ax, rows, PEAK, unit=GB)
    return fig


def bars_and_timeline(
    rows: Rows, simulation: Simulation, title: str, limit: float | None = None
) -> Figure:
    """Draw `bars` next to a `Simulation`'s timeline, the figure of `labkit memory --plot`.

    `limit`, a card's bytes, is drawn as a line.
    """
    fig, (left, right) = titled(title, 2, width=12, height=3.8, width_ratios=(1, 1.3))
    stacks(left, rows, PEAK, unit=GB)
    if limit:
        left.axhline(limit / GB, color=INK, ls="--", lw=1.2)
        left.text(-0.45, limit / GB, f"{limit / GB:.0f} GB card", va="bottom", color=INK)
        left.set_ylim(0, max(left.get_ylim()[1], 1.1 * limit / GB))
    draw_timeline(right, simulation)
    return fig


def draw_timeline(ax: Axes, simulation: Simulation) -> None:
    """Draw a `Simulation`'s timeline into `ax` as stacked areas, with the phases marked."""
    held, starts = _thinned(simulation.timeline)
    x, top, below = np.arange(len(held)), held.sum(axis=1).max() / GB, np.zeros(len(held))
    for name, mine in zip(CATEGORIES, held.T / GB, strict=True):
        if mine.max() > 0.003 * top:
            ax.fill_between(x, below, below + mine, color=COLORS[name], lw=0)
            _name_area(ax, name, below, mine, top)
        below = below + mine
    for name, at in starts.items():
        ax.axvline(at, color=INK, lw=0.8)
        side = "left" if at < 0.9 * len(held) else "right"
        ax.annotate(f" {name} ", (at, 1.08 * top), ha=side, va="center", fontsize=9.5, color=INK)
    ax.set(xlim=(0, len(held) - 1), ylim=(0, 1.16 * top), ylabel="GB in use")
    ax.set(xlabel="allocations and frees, in order", xticks=[])


def _name_area(ax, name, below, mine, top):
    """Label an area at its thickest part, if the label fits."""
    thick = np.flatnonzero(mine >= 0.95 * mine.max())
    at = int(thick[len(thick) // 2])
    if mine[at] > 0.07 * top:
        spot = (at, below[at] + mine[at] / 2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
        ax.annotate(name, spot, ha="center", va="center", fontsize=9, bbox=box)


def _thinned(timeline, n=1500):
    """Keep about n samples, the highest of each interval, and return where the phases begin."""
    held = timeline.held
    every = max(1, len(held) // n)
    totals = held.sum(axis=1)
    picks = [i + int(np.argmax(totals[i : i + every])) for i in range(0, len(held), every)]
    return held[picks], {name: at // every for name, at in timeline.starts.items()}
