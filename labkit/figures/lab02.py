"""Figures of lab 2."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.figures.forms import counted, curves, final, stacks, titled
from labkit.figures.guess import Guess, as_text
from labkit.plots import INK, ROLES, VARIANTS

GB = 10**9
LOSS = "training loss (nats per token)"


def low_rank(d_out: int, d_in: int, r: int) -> Figure:
    """W, B and A as boxes drawn to scale, with their shapes and sizes."""
    share = r * (d_out + d_in) / (d_out * d_in)
    fig, ax = titled(f"B and A together have {share:.1%} as many parameters as W")
    gap = 0.32 * max(d_in, d_out)
    left = d_in + gap
    _box(ax, 0, 0, d_in, d_out, "base")
    _box(ax, left, 0, r, d_out, "LoRA")
    _box(ax, left + 2.2 * r, d_out - r, d_in, r, "LoRA")
    centered = {"ha": "center", "va": "center", "color": INK}
    ax.text(d_in / 2, d_out / 2, f"W\n{d_out} × {d_in}\n{d_out * d_in:,} frozen", **centered)
    ax.text(d_in + gap / 2, d_out / 2, "+ (α/r) ·", fontsize=13, **centered)
    ax.text(left + 1.6 * r, d_out / 2, f"B\n{d_out} × {r}\n{d_out * r:,} train", va="center")
    text = f"A\n{r} × {d_in}\n{r * d_in:,} train"
    ax.text(left + 2.2 * r + d_in / 2, d_out - 1.4 * r, text, ha="center", va="top")
    ax.set(xlim=(-10, left + 3 * r + d_in), ylim=(-10, d_out + 10), aspect="equal")
    ax.axis("off")
    return fig


def _box(ax: Axes, x, y, width, height, role):
    ax.add_patch(Rectangle((x, y), width, height, facecolor=ROLES[role]))


def first_losses(runs: dict[str, Sequence[float]]) -> Figure:
    """Loss curves of the learner's initializations: {start: losses in nats}, newest last."""
    ends = {label: final(losses) for label, losses in runs.items()}
    best = [label for label, end in ends.items() if end <= 1.1 * min(ends.values())]
    title = f"{' and '.join(best)} {'ends' if len(best) == 1 else 'end'} with the lowest loss"
    if len(runs) == 1:
        title = _what_happened(*runs, *runs.values())
    fig, ax = titled(title)
    curves(ax, runs, LOSS)
    return fig


def _what_happened(label, losses):
    change = final(losses) / losses[0]
    does = "falls" if change < 0.9 else "rises" if change > 1.1 else "hardly changes"
    return f"With {label}, the loss {does}"


def turned(runs: dict[str, Sequence[float]]) -> Figure:
    """Loss curves of rank and alpha: {"r=8, alpha=16": losses in nats}, newest last.

    A color per alpha; ranks other than the first are dashed.
    """
    pairs = [(a, b) for a, b in combinations(runs, 2) if _alpha(a) == _alpha(b)]
    gaps = [np.abs(np.subtract(runs[a], runs[b])).mean() for a, b in pairs]
    small = 0.1 * np.mean(next(iter(runs.values())))
    if len(runs) == 1:
        title = _what_happened("this setting", *runs.values())
    elif gaps and max(gaps) < small:
        title = "Curves with the same alpha agree"
    else:
        title = "Rank and alpha change how fast the loss falls"
    fig, ax = titled(title)
    alphas = list(dict.fromkeys(map(_alpha, runs)))  # a color each
    colors = [VARIANTS[alphas.index(_alpha(label)) % len(VARIANTS)] for label in runs]
    curves(ax, runs, LOSS, colors=colors)
    first = _rank(next(iter(runs)))
    for line, label in zip(ax.lines[1::2], runs, strict=True):  # the running means
        line.set_linestyle("-" if _rank(label) == first else "--")
    return fig


def _rank(label):
    return label.partition(",")[0]


def _alpha(label):
    return label.partition("alpha=")[2]


def right_answers(counts: dict[str, tuple[int, int]], n: int, guess: Guess) -> Figure:
    """Answers of `n` that are exactly right, and those with the right intent, with intervals.

    counts: {model: (exact, intent)}, the trained one last. guess: its exact answers.
    """
    *_, (exact, _) = counts.values()
    title = f"After training, {exact / n:.0%} of the answers match word for word"
    fig, axes = titled(title, n_columns=2, sharey=True)
    roles = dict.fromkeys(list(counts)[:-1], "base")
    for k, ax in enumerate(axes):
        some = {label: pair[k] for label, pair in counts.items()}
        counted(ax, some, n, "answers", roles, 1.1 * n, guess if k == 0 else None)
    axes[0].set(xlabel="word for word")
    axes[1].set(xlabel="right intent", ylabel="")
    return fig


def memory(peaks: dict[str, dict[str, int]], guess: Guess) -> Figure:
    """Memory at the peak of a training step: {method: {category: bytes}}.

    Full fine-tuning is first, LoRA at the same precision second. guess: in percent of the first.
    """
    rows = {label: {part: n / GB for part, n in row.items()} for label, row in peaks.items()}
    full, lora, *_ = (sum(row.values()) for row in rows.values())
    percent = f"{100 * lora / full:.0f}%"
    fig, ax = titled(f"At the same precision, LoRA's peak is {percent} of full fine-tuning's")
    in_gb = replace(guess, value=guess.value and guess.value * full / 100)
    stacks(ax, rows, "GB at the peak of a step", "{:.2f}", in_gb)
    if guess.value is not None:
        text = ax.texts[-1].get_text()
        ax.texts[-1].set_text(text.replace(as_text(in_gb.value), f"{as_text(guess.value)}%"))
    return fig
