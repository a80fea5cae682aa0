"""Chart types shared by all labs' figures: bars, stacks, curves, dots, heatmap.

Each function draws into axes from `titled`. A color represents a role (`labkit.plots.ROLES`). A
value is a number, or `(number, low, high)` with the ends of its 95% interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labkit.figures.guess import Guess
from labkit.plots import (
    INK,
    PAPER,
    PARTS,
    ROLES,
    VARIANTS,
    figure,
    headed,
    likely,
    smooth,
    traced,
    weight_for,
)

STEP = "step (faint: each step's loss, solid: running mean)"
FEW = 20  # steps; a shorter run is drawn without a running mean
Value = float | tuple[float, float, float]


def titled(title: str, n_columns: int = 1, height: float = 3.4, **options) -> tuple[Figure, Any]:
    """Make a figure of notebook width, and its axes. title: one sentence, at most one number."""
    fig, axes = figure(n_columns, height=height, **options)
    return headed(fig, title), axes


def look(role: str) -> dict[str, str | None]:
    """matplotlib's fill options for a role's bar; a mistake is red and hatched."""
    hatch = "///" if role == "mistake" else None
    return {"facecolor": ROLES[role], "edgecolor": "white", "hatch": hatch}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of at least two values with the ends of its 95% t-interval: (mean, low, high)."""
    n = len(values)
    return t_interval(np.mean(values), np.std(values, ddof=1) / np.sqrt(n), n)


def t_interval(mean: float, error: float, n: int) -> tuple[float, float, float]:
    """The 95% t-interval of a mean of n values with a standard error: (mean, low, high)."""
    from scipy.special import stdtrit  # here: installed by "jupyter" and on Colab, not by labkit

    half = stdtrit(n - 1, 0.975) * error
    return mean, mean - half, mean + half


def wilson(count: float, n: int) -> tuple[float, float, float]:
    """A count out of `n`, with the ends of Wilson's 95% interval."""
    low, high = likely(count / n, n)
    return count, n * low, n * high


def pm(values: Sequence[float], digits: int = 3) -> str:
    """Format the mean and half-width of the 95% t-interval: "0.168 ± 0.039"."""
    mean, _, high = mean_interval(values)
    return f"{mean:.{digits}f} ± {high - mean:.{digits}f}"


def bars(
    ax: Axes,
    values: dict[str, Value],
    ylabel: str,
    roles: dict[str, str] | None = None,
    text: str = "{:.3g}",
    top: float = 0,
    guess: Guess | None = None,
) -> None:
    """Draw a bar per label, with its value above; `ylabel` says that lines are 95% intervals.

    roles: {label: role}, by default "LoRA". top: the axis reaches at least this far.
    """
    for x, (label, value) in enumerate(values.items()):
        height, low, high = _ends(value)
        ax.bar(x, height, 0.55, **look((roles or {}).get(label, "LoRA")))
        if high > low:
            ax.errorbar(x, height, [[height - low], [high - height]], color=INK, capsize=4, lw=1.2)
        _above(ax, x, high, text.format(height))
        top = max(top, 1.15 * high)
    _upright(ax, list(values), ylabel, top, guess)


def counted(
    ax: Axes,
    counts: dict[str, int],
    n: int,
    what: str = "right answers",
    roles: dict[str, str] | None = None,
    top: float = 0,
    guess: Guess | None = None,
) -> None:
    """Draw bars of counts out of `n` with Wilson's 95% intervals; `what` names what was counted."""
    values = {label: wilson(count, n) for label, count in counts.items()}
    bars(ax, values, f"{what}, of {n}\n(line: 95% interval)", roles, "{:.0f}", top, guess)


def stacks(
    ax: Axes,
    rows: dict[str, dict[str, float]],
    ylabel: str,
    text: str = "{:.3g}",
    guess: Guess | None = None,
) -> None:
    """Draw a stacked bar per row {category: value} with its total above, and a legend.

    Colors follow the order of the first row's categories; invisibly small categories are omitted.
    """
    x, floor = np.arange(len(rows)), np.zeros(len(rows))
    largest = max(sum(row.values()) for row in rows.values())
    for category, color in zip(next(iter(rows.values())), PARTS, strict=False):
        heights = np.array([row.get(category, 0) for row in rows.values()])
        if heights.max() > 0.003 * largest:
            how = {"color": color, "edgecolor": "white", "label": category}
            ax.bar(x, heights, 0.55, bottom=floor, **how)
        floor += heights
    for place, total in zip(x, floor, strict=True):
        _above(ax, place, total, text.format(total))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), reverse=True)  # in the order of the stack
    _upright(ax, list(rows), ylabel, 1.15 * largest, guess)


def _ends(value):
    """Expand a `Value` to (number, low, high); a single number is its own low and high."""
    return np.broadcast_to(np.asarray(value, dtype=float), 3)


def _above(ax, x, y, text, points=4):
    how = {"textcoords": "offset points", "ha": "center", "color": INK, "bbox": PAPER}
    ax.annotate(text, (x, y), (0, points), **how)


def _upright(ax, labels, ylabel, top, guess):
    """Set up the axes of bars: start at 0, and leave room for a guess's label on the right."""
    guessed = guess is not None and guess.value is not None
    ax.set_xticks(range(len(labels)), labels)
    ax.set(ylabel=ylabel, ylim=(0, top), xlim=(-0.5, len(labels) - (-0.1 if guessed else 0.5)))
    ax.grid(axis="x", visible=False)
    if guessed:
        guess.draw(ax)


def curves(
    ax: Axes,
    runs: dict[str, Sequence[float]],
    ylabel: str,
    top: float | None = None,
    colors: Sequence[str] = VARIANTS,
) -> None:
    """Plot losses by step, labeled at their ends; the last run is bold, earlier runs are thin.

    The axis ends at the largest value or at `top` (default: 3 times the smallest first loss), so a
    diverging run does not flatten the others.
    """
    top = top or 3 * np.nanmin([losses[0] for losses in runs.values()])
    top = min(top, 1.05 * max(map(np.nanmax, runs.values())))
    right = max(2, *(len(losses) for losses in runs.values()))
    for i, (label, losses) in enumerate(runs.items()):
        new = label == list(runs)[-1]
        width = {"lw": 2.6, "zorder": 3} if new else {"lw": 1.6}
        traced(ax, losses, colors[i % len(colors)], _weight(losses), **width)
    heights = spread([min(final(losses), top) for losses in runs.values()], 0.08 * top, top)
    for i, (label, height) in enumerate(zip(runs, heights, strict=True)):
        how = {"color": colors[i % len(colors)], "va": "center", "annotation_clip": False}
        weight = "bold" if label == list(runs)[-1] else None
        end = final(runs[label])
        text = f"{label}: {end:.2f}" if end < np.inf else f"{label}: diverged"
        ax.annotate(text, (right, height), (6, 0), textcoords="offset points", weight=weight, **how)
    ax.set(xlim=(1, right), ylim=(0, top), xlabel=STEP if right > FEW else "step", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def final(losses: Sequence[float]) -> float:
    """The running mean at the last step; infinite if the last loss is infinite or NaN."""
    ended = np.isfinite(losses[-1])
    return float(smooth(losses, _weight(losses))[-1]) if ended else float("inf")


def _weight(losses):
    return weight_for(len(losses)) if len(losses) > FEW else 0.0


def spread(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Move the heights, in order, to be `gap` apart and between 0 and `top`."""
    places = np.array(heights, dtype=float)
    order, floor, ceiling = np.argsort(places, kind="stable"), 0.0, top
    for i in order:
        places[i] = max(places[i], floor)
        floor = places[i] + gap
    for i in order[::-1]:
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places.tolist()


def dots(
    ax: Axes,
    values: dict[str, Value],
    xlabel: str,
    roles: dict[str, str] | None = None,
    text: str = "{:.2g}",
) -> None:
    """Draw a point per row with its 95% interval and its value above; the first row is on top."""
    for y, (label, value) in enumerate(values.items()):
        center, low, high = _ends(value)
        color = ROLES[(roles or {}).get(label, "LoRA")]
        ends = [[center - low], [high - center]] if high > low else None
        ax.errorbar(center, y, xerr=ends, capsize=4, fmt="o", ms=8, color=color)
        _above(ax, center, y, text.format(center), 8)
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xlabel=xlabel, ylim=(len(values) - 0.5, -0.6))
    ax.margins(x=0.1)


def heatmap(
    ax: Axes,
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    text: str = "{:.2g}",
) -> None:
    """Draw a matrix (len(rows), len(columns)) with its numbers; `label` names their unit."""
    matrix = np.asarray(matrix)
    image = ax.imshow(matrix, cmap="Blues", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        color = "white" if image.norm(value) > 0.6 else INK
        ax.text(j, i, text.format(value), ha="center", va="center", color=color)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label=label)
