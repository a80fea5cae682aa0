"""Chart types shared by all labs' figures: bars, stacks, curves, dots.

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
from labkit.plots import BESIDE, INK, PARTS, ROLES, VARIANTS, figure, headed

RING = {"marker": "o", "ls": "", "ms": 5, "mfc": "none", "mec": "#777777"}  # another run
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
    from scipy.special import stdtrit  # here: installed by "jupyter" and on Colab, not by labkit

    n, mean = len(values), np.mean(values)
    half = stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def wilson(count: float, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """A count out of `n`, with the ends of Wilson's 95% interval; also valid at 0 of n."""
    share, far = count / n, z**2 / n
    half = np.sqrt(far * (share * (1 - share) + far / 4))
    low, high = ((share + far / 2 + side * half) / (1 + far) for side in (-1, 1))
    return count, n * min(low, share), n * max(high, share)  # at n of n, rounding ends below 1


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
    """Draw a bar per label, with its value; `ylabel` says that lines are 95% intervals.

    roles: {label: role}, by default "LoRA". top: the axis reaches at least this far.
    """
    for x, (label, value) in enumerate(values.items()):
        height, low, high = _ends(value)
        ax.bar(x, height, min(0.55, 0.2 * len(values)), **look((roles or {}).get(label, "LoRA")))
        if high > low:
            ax.errorbar(x, height, [[height - low], [high - height]], color=INK, lw=1.2)
        _above(ax, x, height, text.format(height), ha="right" if high > low else "center")
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
    unit: float = 1,
) -> None:
    """Draw a stacked bar per row {category: value}, in units, with its total above.

    `text` formats the total. Each category is named beside the bar where it is largest. Colors
    follow the order of the categories; invisibly small ones are omitted.
    """
    x, floor, names = np.arange(len(rows)), np.zeros(len(rows)), {}  # {bar: [(name, y)]}
    largest = max(sum(row.values()) for row in rows.values()) / unit
    categories = dict.fromkeys(category for row in rows.values() for category in row)
    for category, color in zip(categories, PARTS, strict=False):
        heights = np.array([row.get(category, 0) for row in rows.values()]) / unit
        if heights.max() > 0.003 * largest:
            ax.bar(x, heights, 0.5, bottom=floor, color=color, edgecolor="white", lw=0.4)
            at = int(heights.argmax())
            names.setdefault(at, []).append((category, floor[at] + heights[at] / 2))
        floor += heights
    for at, named in names.items():
        places = spread([y for _, y in named], 0.07 * largest, largest)
        for (category, _), y in zip(named, places, strict=True):
            ax.text(at + 0.28, y, category, va="center", color=INK, fontsize=9)
    for place, total in zip(x, floor, strict=True):
        _above(ax, place, total, text.format(total))
    _upright(ax, list(rows), ylabel, 1.15 * largest, guess)


def _ends(value):
    """Expand a `Value` to (number, low, high); a single number is its own low and high."""
    return np.broadcast_to(np.asarray(value, dtype=float), 3)


def _above(ax, x, y, text, ha="center", points=3):
    """Write `text` above (x, y), to the left of an interval if `ha` is "right"."""
    how = {"textcoords": "offset points", "ha": ha, "color": INK}
    ax.annotate(text, (x, y), (-4 if ha == "right" else 0, points), **how)


def _upright(ax, labels, ylabel, top, guess):
    """Set up the axes of bars: from 0, the unit on top, room for a guess's label on the right."""
    guessed = guess is not None and guess.value is not None
    ax.set_xticks(range(len(labels)), labels)
    ax.set_title(ylabel, fontsize=9.5, weight="normal", color=INK)
    ax.set(ylim=(0, top), xlim=(-0.5, len(labels) - (-0.1 if guessed else 0.5)))
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
    """Plot losses by step, labeled at their ends.

    The axis ends at the largest value or at `top` (default: 3 times the smallest first loss), so a
    diverging run does not flatten the others.
    """
    top = top or 3 * np.nanmin([losses[0] for losses in runs.values()])
    top = min(top, 1.05 * max(map(np.nanmax, runs.values())))
    right = max(2, *(len(losses) for losses in runs.values()))
    heights = spread([min(final(losses), top) for losses in runs.values()], 0.08 * top, top)
    for i, ((label, losses), height) in enumerate(zip(runs.items(), heights, strict=True)):
        color = colors[i % len(colors)]
        ax.plot(range(1, len(losses) + 1), losses, color=color)
        text = f"{label}: {final(losses):.2f}" if final(losses) < np.inf else f"{label}: diverged"
        ax.annotate(text, (right, height), (6, 0), color=color, **BESIDE)
    ax.set(xlim=(1, right), ylim=(0, top), xlabel="step", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def final(losses: Sequence[float]) -> float:
    """The last loss; infinite if it is NaN."""
    return float(losses[-1]) if np.isfinite(losses[-1]) else float("inf")


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
    others: dict[str, Sequence[float]] | None = None,
) -> None:
    """Draw a point per row with its 95% interval and its value; the first row is on top.

    roles: {label: role or color}. others: {label: values of other runs}, drawn as rings; `xlabel`
    says so.
    """
    for y, (label, value) in enumerate(values.items()):
        center, low, high = _ends(value)
        role, rest = (roles or {}).get(label, "LoRA"), list((others or {}).get(label, ()))
        color = ROLES.get(role, role)
        ends = [[center - low], [high - center]] if high > low else None
        ax.errorbar(center, y, xerr=ends, fmt="o", ms=8, color=color)
        ax.plot(rest, [y] * len(rest), **RING, zorder=5)
        if rest:
            _above(ax, center, y, text.format(center), points=7)
        else:
            ax.annotate(text.format(center), (max(center, high), y), (8, 0), color=INK, **BESIDE)
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xlabel=xlabel, ylim=(len(values) - 0.5, -0.5))
    ax.margins(x=0.12)
