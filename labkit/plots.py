"""What all labs draw with: one look, curves that grow while a model trains, a table of answers.

A figure's title says what to see in it. A lab's own figures are in `labkit.figures.labNN`, those of
memory in `labkit.memory.plots`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.core.pylabtools import retina_figure
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colors: told apart by color-blind readers and in gray print
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
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind a text that lines cross
ANSWERS = Path(__file__).parent / "templates" / "answers.html.j2"


def use_style() -> None:
    """Set the labs' look for every figure that follows."""
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
    """A figure with `n_columns` axes side by side: `(figure, axes)`; inches."""
    fig, axes = plt.subplots(n_rows, n_columns, figsize=(width, height), **options)
    plt.close(fig)  # a cell displays the figure that it returns; pyplot would show it once more
    shell = get_ipython()
    if formatter := getattr(shell, "display_formatter", None):
        # here, since pyplot's backend for notebooks, which the first figure loads, sets its own
        formatter.formatters["image/png"].for_type(Figure, described)
    return fig, axes


def described(fig: Figure) -> tuple | None:
    """A figure as a notebook shows it: PNG at twice the resolution, and its size and alt text."""
    shown = retina_figure(fig)  # None where it has no axes
    return shown and (shown[0], shown[1] | {"alt": alt_text(fig)})


def alt_text(fig: Figure) -> str:
    """What a figure says, in one line: its title, else the titles of its axes."""
    titles = [fig.get_suptitle()] if fig.get_suptitle() else [_title(ax) for ax in fig.axes]
    return " ".join("; ".join(filter(None, titles)).split())


def _title(ax):
    return next(filter(None, map(ax.get_title, ("left", "center", "right"))), "")


def headed(fig: Figure, title: str) -> Figure:
    """`fig` under a title that spans its axes."""
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=12)
    return fig


def smooth(values: Sequence[float], weight: float = 0.8) -> np.ndarray:
    """Exponential moving average of `values`, corrected for its start; an array as long."""
    return pd.Series(values).ewm(alpha=1 - weight).mean().to_numpy()


def weight_for(steps: int) -> float:
    """The weight of `smooth` for a loss curve of so many steps: a mean lags behind a short run."""
    return 0.8 if steps > 60 else 0.4


def likely(shares: np.ndarray, n: int, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of shares of n, 95% with z = 1.96: (lower, upper); it holds at 0 of n."""
    far = z**2 / n
    half = np.sqrt(far * (shares * (1 - shares) + far / 4))
    return (shares + far / 2 - half) / (1 + far), (shares + far / 2 + half) / (1 + far)


def traced(ax: Axes, values: Sequence[float], color: str, weight: float = 0.8, **options) -> None:
    """Draw `values` against the step, faint, and their `smooth` line; `options` are the line's."""
    x = range(1, len(values) + 1)
    ax.plot(x, values, color=color, alpha=0.3, lw=1)
    ax.plot(x, smooth(values, weight), color=color, **options)


def growing_loss(losses: Sequence[float], steps: int, title: str) -> Figure:
    """Loss so far against step, with room for the `steps` to come; a figure, not yet shown."""
    fig, ax = figure(height=2.6)
    weight = weight_for(steps)
    traced(ax, losses, PALETTE[0], weight)
    ax.set(xlim=(1, max(steps, 2)), ylim=(0, None), xlabel="step", ylabel="loss (nats per token)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title(title + _way("loss", losses, steps, weight))
    ax.legend(["each step", "running mean"], fontsize=9, loc="upper right")
    return fig


def growing(
    values: dict[str, Sequence[float]],
    steps: int,
    title: str,
    labels: dict[str, str] | None = None,
) -> Figure:
    """A panel a name of `values`, its numbers so far against the step; a figure, not yet shown.

    An axis has its text in `labels`, else the name. At most three panels stand in a row, so that a
    narrow screen still shows their letters.
    """
    n_rows = -(-len(values) // 3)
    n_columns = -(-len(values) // n_rows)
    fig, axes = figure(n_columns, height=2.2 * n_rows, n_rows=n_rows, squeeze=False)
    for ax, color, (name, told) in zip(axes.flat, PALETTE, values.items(), strict=False):
        ax.axhline(0, color=INK, lw=0.6)  # in each panel, so that a small change looks small
        traced(ax, told, color, 0.6)
        ax.set(xlim=(1, max(steps, 2)), xlabel="step", ylabel=(labels or {}).get(name, name))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if not any(told):
            ax.set_ylim(-0.2, 1)  # or the line would lie on the frame
            ax.text(0.5, 0.5, "0 in each step", transform=ax.transAxes, ha="center", color=INK)
    axes.flat[0].legend(axes.flat[0].lines[1:3], ["each step", "running mean"], fontsize=8)
    for ax in axes.flat[len(values) :]:
        ax.remove()
    name, told = next(iter(values.items()))
    return headed(fig, title + _way(name, told, steps, 0.6))


def _way(name, values, steps, weight):
    """Where the `smooth` line of a quantity began and ended, once all steps are there."""
    if not 1 < steps <= len(values):
        return ""
    mean = smooth(values, weight)
    return f": {name} {mean[0]:.2f} → {mean[-1]:.2f} ({len(values)} steps, running mean)"


def compare_answers(
    questions: Sequence[str],
    wanted: Sequence[str] | None,
    answers: dict[str, Sequence[str]],
    rows: int = 8,
) -> HTML:
    """An HTML table: question, wanted answer, and what each model said, with ✓ or ✗.

    `answers` maps a model's name to its answers; pass `wanted=None` where nothing is right or
    wrong. Only the first `rows` questions are shown.
    """
    table = jinja2.Template(ANSWERS.read_text("utf-8"), autoescape=True)
    told = {"questions": questions, "wanted": wanted, "answers": answers}
    return HTML(table.render(told, n=min(rows, len(questions))))
