"""Plotting code shared by all labs: one style, live curves, a table of answers.

A figure's title states its message. Lab figures are in `labkit.figures.labNN`, memory figures in
`labkit.memory.plots`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.core.pylabtools import retina_figure
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from labkit.files import template

# Okabe and Ito's colors: distinguishable for color-blind readers and in gray print
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
INK = "#333333"
# The course's palette: a color means a role. Colorblind readers can distinguish these
ROLES = {
    "base": "#A6A6A6",
    "full": "#E69F00",
    "LoRA": "#0072B2",
    "QLoRA": "#00796B",
    "mistake": "#C62828",  # hatched, too
}
VARIANTS = ["#0072B2", "#7F7F00", "#332288", "#8C564B", "#000000"]  # settings of one method
PARTS = ["#999999", "#F0E442", "#6A3D9A", "#56B4E9", "#5C4033", "#DDDDDD"]  # of a stacked bar
BESIDE = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind text that crosses lines


def use_style() -> None:
    """Apply the labs' style to all later figures."""
    plt.rcParams.update(
        {
            "axes.axisbelow": True,  # no grid on bars
            "axes.edgecolor": INK,
            "axes.grid": True,
            "axes.labelcolor": INK,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "font.size": 10.5,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "lines.linewidth": 2,
        }
    )


def figure(
    n_columns: int = 1, width: float = 7.2, height: float = 3.6, n_rows: int = 1, **options
) -> tuple[Figure, Any]:
    """`(figure, axes)` with `n_columns` axes side by side; sizes in inches."""
    fig, axes = plt.subplots(n_rows, n_columns, figsize=(width, height), **options)
    plt.close(fig)  # else pyplot shows it again after the cell
    shell = get_ipython()
    if formatter := getattr(shell, "display_formatter", None):
        # set here, since the first figure loads pyplot's notebook backend, which sets its own
        formatter.formatters["image/png"].for_type(Figure, described)
    return fig, axes


def described(fig: Figure) -> tuple | None:
    """A figure for a notebook: a PNG at twice the resolution, with its size and alt text."""
    shown = retina_figure(fig)  # None without axes
    return shown and (shown[0], shown[1] | {"alt": alt_text(fig)})


def alt_text(fig: Figure) -> str:
    """A figure's alt text in one line: its title, or else the titles of its axes."""
    titles = [fig.get_suptitle()] if fig.get_suptitle() else [_title(ax) for ax in fig.axes]
    return " ".join("; ".join(filter(None, titles)).split())


def _title(ax):
    return next(filter(None, map(ax.get_title, ("left", "center", "right"))), "")


def headed(fig: Figure, title: str) -> Figure:
    """`fig` under a title that spans its axes."""
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=12)
    return fig


def growing(values: dict[str, Sequence[float]], steps: int, title: str, ylabel: str) -> Figure:
    """A figure of `values`, {name: numbers so far}, against the step; several are named.

    Positive numbers that differ more than tenfold, such as losses, have a logarithmic axis.
    """
    fig, ax = figure(height=2.2)
    points = {  # a value that wasn't measured at a step is None
        name: [(step, x) for step, x in enumerate(numbers, start=1) if x is not None]
        for name, numbers in values.items()
        if any(x is not None for x in numbers)
    }
    everything = [x for some in points.values() for _, x in some]
    if min(everything) > 0 and max(everything) > 10 * min(everything):
        ax.set_yscale("log")
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
        ax.minorticks_off()
    else:
        ax.axhline(0, color=INK, lw=0.6)  # so that a small change looks small
    lowest_first = sorted(points, key=lambda name: points[name][-1][1])
    for (name, some), color in zip(points.items(), PALETTE, strict=False):
        ax.plot(*zip(*some, strict=True), "o-", ms=4, color=color)
        if len(values) > 1:
            above = 11 * lowest_first.index(name) - 5.5 * (len(points) - 1)  # names don't overlap
            ax.annotate(name, some[-1], (6, above), color=color, **BESIDE)
        elif not any(x for _, x in some):
            ax.set_ylim(-0.2, 1)  # else the line is on the frame
            ax.text(0.5, 0.5, "0 in each step", transform=ax.transAxes, ha="center", color=INK)
    ax.set(xlim=(0.8, max(steps, 2) + 0.2), xlabel="step", ylabel=ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return headed(fig, title)


def compare_answers(
    questions: Sequence[str],
    wanted: Sequence[str] | None,
    answers: dict[str, Sequence[str]],
    rows: int = 8,
    right: Callable[[str, str], bool] = operator.eq,
) -> HTML:
    """An HTML table of {model: answers} to the first `rows` questions.

    Each answer is marked ✓ or ✗ by `right(answer, wanted)`; without `wanted` there are no marks.
    """
    columns = {"questions": questions, "wanted": wanted, "answers": answers, "is_right": right}
    return HTML(template("answers.html.j2").render(columns, n=min(rows, len(questions))))
