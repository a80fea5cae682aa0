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
    gap = 0.4 * max(d_in, d_out)
    left = d_in + gap
    _box(ax, 0, 0, d_in, d_out, "base")
    _box(ax, left, 0, r, d_out, "LoRA")
    across = left + 3 * r
    _box(ax, across, d_out + 2 * r, d_in, r, "LoRA")
    how = {"fill": False, "ls": "--", "edgecolor": ROLES["LoRA"]}
    ax.add_patch(Rectangle((across, 0), d_in, d_out, **how))
    centered, middle = {"ha": "center", "va": "center", "color": INK}, across + d_in / 2
    ax.text(d_in / 2, d_out / 2, f"W\n{d_out} × {d_in}\n{d_out * d_in:,} frozen", **centered)
    ax.text(d_in + 0.45 * gap, d_out / 2, "+ (α/r) ·", fontsize=12, **centered)
    ax.text(middle, d_out / 2, f"BA\n{d_out} × {d_in}\nnever stored", **centered)
    named = {"ha": "center", "color": ROLES["LoRA"]}
    ax.text(left, -2 * r, f"B: {d_out} × {r}\n{d_out * r:,} trained", va="top", **named)
    ax.text(middle, d_out + 4 * r, f"A: {r} × {d_in}, {r * d_in:,} trained", va="bottom", **named)
    ax.set(xlim=(-10, across + d_in + 10), ylim=(-0.2 * d_out, 1.2 * d_out), aspect="equal")
    ax.axis("off")
    return fig


def _box(ax: Axes, x, y, width, height, role):
    ax.add_patch(Rectangle((x, y), width, height, facecolor=ROLES[role]))


STARTS = {"B = 0": ROLES["LoRA"], "A = 0": VARIANTS[1], "both random": ROLES["mistake"]}


def first_losses(runs: dict[str, Sequence[float]]) -> Figure:
    """Loss curves of the learner's initializations: {"B = 0, rate 0.01": losses}, newest last.

    A color per start; at other rates than the first, dashed.
    """
    starts, rates = zip(*(label.split(", ") for label in runs), strict=True)
    fast = [label for label, losses in runs.items() if max(losses[1:3]) < losses[0]]
    title = f"{len(fast)} of {len(runs)} settings learn right away"
    if len(fast) == 1:
        title = f"Only {fast[0]} learns right away"
    if len(runs) == 1 or not fast:
        label, losses = list(runs.items())[-1]
        title = _what_happened(label, losses)
    fig, ax = titled(title if len(set(rates)) > 1 else title.replace(f", {rates[0]}", ""))
    named = runs if len(set(rates)) > 1 else dict(zip(starts, runs.values(), strict=True))
    colors = [STARTS.get(start, "#888888") for start in starts]
    curves(ax, named, LOSS, top=20, colors=colors)
    for line, rate in zip(ax.lines, rates, strict=True):
        line.set_linestyle("-" if rate == rates[0] else "--")
    return fig


def _what_happened(label, losses):
    change = final(losses) / losses[0]
    does = "falls" if change < 0.9 else "rises" if change > 1.1 else "hardly changes"
    return f"With {label}, the loss {does}"


def turned(runs: dict[str, Sequence[float]]) -> Figure:
    """Loss curves of rank and alpha: {"r=8, alpha=16, rate 0.001": losses in nats}, newest last.

    A color per alpha and rate, a line style per rank.
    """
    pairs = [(a, b) for a, b in combinations(runs, 2) if _alpha(a) == _alpha(b)]
    gaps = [np.abs(np.subtract(runs[a], runs[b])).mean() for a, b in pairs]
    small = 0.1 * np.mean(next(iter(runs.values())))
    if len(runs) == 1:
        title = _what_happened("this setting", *runs.values())
    elif gaps and max(gaps) < small:
        title = "Curves with the same alpha nearly agree"
    else:
        title = "Rank and alpha change how fast the loss falls"
    fig, ax = titled(title)
    alphas = list(dict.fromkeys(map(_alpha, runs)))  # a color each
    colors = [VARIANTS[alphas.index(_alpha(label)) % len(VARIANTS)] for label in runs]
    curves(ax, runs, LOSS, colors=colors)
    ranks = list(dict.fromkeys(label.partition(",")[0] for label in runs))
    for line, label in zip(ax.lines, runs, strict=True):
        style = ranks.index(label.partition(",")[0])
        line.set_linestyle(("-", "--", ":", "-.")[style % 4])
    return fig


def _alpha(label):
    return label.partition("alpha=")[2]


def right_answers(counts: dict[str, tuple[int, int]], n: int, guess: Guess) -> Figure:
    """Answers of `n` that are exactly right, and those with the right intent (pale bars).

    counts: {model: (exact, intent)}, the trained one last. guess: its exact answers.
    """
    exact, _ = counts[list(counts)[-1]]
    title = f"{exact} of {n} answers match word for word"
    if exact > 3 * max(right for right, _ in list(counts.values())[:-1]):
        title = "LoRA learns the task; examples in the prompt don't teach it"
    fig, ax = titled(title)
    roles = dict.fromkeys(list(counts)[:-1], "base")
    for x, (label, (_, intent)) in enumerate(counts.items()):
        ax.bar(x, intent, 0.55, facecolor=ROLES[roles.get(label, "LoRA")], alpha=0.3)
        text = f"{intent} with the\nright intent" if intent else ""
        ax.text(x + 0.3, max(intent, 0.06 * n), text, va="center", fontsize=9, color=INK)
    exact = {label: right for label, (right, _) in counts.items()}
    counted(ax, exact, n, "answers that match", roles, 1.05 * n, guess)
    ax.set_xlim(-0.5, len(counts) - 0.1)
    return fig


def memory(peaks: dict[str, dict[str, int]], guess: Guess) -> Figure:
    """Memory at the peak of a training step: {method: {category: bytes}}.

    Full fine-tuning is first, LoRA at the same precision second. guess: in percent of the first.
    """
    full, lora, *_ = (sum(row.values()) for row in peaks.values())
    percent = f"{100 * lora / full:.0f}%"
    fig, ax = titled(f"At the same precision, LoRA's peak is {percent} of full fine-tuning's")
    in_gb = replace(guess, value=guess.value and guess.value * full / 100 / GB)
    stacks(ax, peaks, "GB at the peak of a step", "{:.2f}", in_gb, GB)
    if guess.value is not None:
        text = ax.texts[-1].get_text()
        ax.texts[-1].set_text(text.replace(as_text(in_gb.value), f"{as_text(guess.value)}%"))
    return fig
