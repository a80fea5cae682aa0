"""Figures of memory: stacked bars by category, and the timeline of a training step."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.memory.ledger import CATEGORIES
from labkit.memory.simulate import Simulation
from labkit.plots import INK, PALETTE, PAPER, figure, headed

COLORS = dict(zip(CATEGORIES, [*PALETTE[:5], "#999999"], strict=True))
HATCHES = dict(zip(CATEGORIES, ["", "//", "..", "\\\\", "xx", ""], strict=True))
GB = 10**9
Rows = dict[str, dict[str, int]]  # {label: {category: bytes}}, of `ledger.CATEGORIES`


def bars(rows: Rows, title: str, limit: float | None = None) -> Figure:
    """Draw a stacked bar per row, by category; `limit` (a card's bytes) is drawn as a line."""
    fig, ax = figure(height=1.2 + 0.5 * len(rows))
    draw_bars(ax, rows, limit)
    ax.set_title(title)
    return fig


def bars_and_timeline(
    rows: Rows, simulation: Simulation, title: str, limit: float | None = None
) -> Figure:
    """Draw `bars` next to a `Simulation`'s timeline, the figure of `labkit memory --plot`."""
    fig, axes = figure(2, width=12, height=3.8, width_ratios=(1, 1.3))
    draw_bars(axes[0], rows, limit)
    draw_timeline(axes[1], simulation)
    return headed(fig, title)


def draw_bars(ax: Axes, rows: Rows, limit: float | None = None) -> None:
    """Draw the bars into `ax`, with totals and a legend."""
    largest = max(limit or 0, *(sum(row.values()) for row in rows.values()))
    unit, size = ("GB", 10**9) if largest >= 2 * GB else ("MB", 10**6)
    left = np.zeros(len(rows))
    for category in CATEGORIES:
        widths = np.array([row.get(category, 0) / size for row in rows.values()])
        if widths.max() > 0.003 * largest / size:  # visible at this scale
            ax.barh(
                range(len(rows)),
                widths,
                left=left,
                color=COLORS[category],
                hatch=HATCHES[category],
                edgecolor="white",
                label=category,
            )
        left += widths
    how = {"textcoords": "offset points", "va": "center", "bbox": PAPER}  # over the card's line
    for i, total in enumerate(left):
        text = f"{total:.3g} {unit}" if total < 1000 else f"{total:,.0f} {unit}"
        ax.annotate(text, (total, i), (5, 0), **how)
    if limit:
        ax.axvline(limit / size, color=INK, ls="--", lw=1.2)
        ax.text(limit / size, -0.55, f" {limit / size:.0f} {unit} card", va="bottom", color=INK)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.4, -1 if limit else -0.6)  # the first row on top
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=f"{unit} at the peak of a step", xlim=(0, 1.22 * largest / size))
    ax.figure.legend(ncols=6, fontsize=9, loc="outside lower left", handlelength=1.6)


def draw_timeline(ax: Axes, simulation: Simulation) -> None:
    """Draw a `Simulation`'s timeline into `ax` as stacked areas, with the phases marked."""
    held, starts = _thinned(simulation.timeline)
    x, top, below = np.arange(len(held)), held.sum(axis=1).max() / GB, np.zeros(len(held))
    for name, mine in zip(CATEGORIES, held.T / GB, strict=True):
        if mine.max() > 0.003 * top:
            look = {"color": COLORS[name], "hatch": HATCHES[name], "ec": "white", "lw": 0}
            ax.fill_between(x, below, below + mine, **look)
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
