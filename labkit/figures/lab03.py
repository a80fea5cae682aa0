"""Figures of lab 3."""

from collections.abc import Sequence
from html import escape

import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure

from labkit.figures.forms import bars, counted, curves, look, stacks, titled
from labkit.figures.guess import Guess
from labkit.plots import ROLES, VARIANTS

LOSS = "training loss (nats per token)"


def rates(runs: dict[float, Sequence[float]], guess: Guess) -> Figure:
    """Loss curves by learning rate: {rate: losses in nats}, newest last. guess: the first's end."""
    slow = runs.get(2e-5, (1, 0))
    title = "At TRL's default rate, the loss hardly falls"
    fig, ax = titled(title if slow[-1] > 0.9 * slow[0] else "Training loss by learning rate")
    names = [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in runs]
    names = [name + " (TRL's default)" * (name == "2e-5") for name in names]
    colors = [
        ROLES["mistake"] if rate == 2e-5 else VARIANTS[i % len(VARIANTS)]
        for i, rate in enumerate(runs)
    ]
    curves(ax, dict(zip(names, runs.values(), strict=True)), LOSS, colors=colors)
    guess.draw(ax)
    return fig


def targets(runs: dict[str, Sequence[float]]) -> Figure:
    """Loss curves by the layers that LoRA adapts, {targets: losses in nats}."""
    best = min(runs, key=lambda name: sum(runs[name]))
    title = "LoRA learns faster on all linear layers than on q and v"
    fig, ax = titled(title if list(runs) == ["q, v", best] else f"{best} learns fastest")
    curves(ax, runs, LOSS, colors=VARIANTS)
    return fig


def loss_tokens(tokens: Sequence[str], has_loss: Sequence[bool]) -> HTML:
    """The tokens of a row, with those that the loss counts marked."""
    spans = []
    for token, loss in zip(tokens, has_loss, strict=True):
        look = "background:#E69F00;color:#000;font-weight:bold" if loss else "opacity:0.65"
        text = escape(token).replace("\n", "⏎<br>")
        spans.append(f'<span style="{look};padding:1px 2px;margin-right:1px">{text}</span>')
    share = f"{sum(has_loss)} of {len(tokens)} tokens count toward the loss"
    return HTML(f"<p><b>{share}</b></p><p style='font-family:monospace'>{''.join(spans)}</p>")


def stops(counts: dict[str, int], last: dict[str, float], n: int) -> Figure:
    """The last loss of each run, in nats, and how many of `n` answers don't stop, by labels."""
    alike = max(last.values()) < 1.5 * min(last.values())
    title = "The loss doesn't show which model stops" if alike else "Stopping depends on the labels"
    fig, (left, right) = titled(title, 2)
    roles = {next(iter(counts)): "mistake"}
    bars(left, last, "final training loss\n(nats per labeled token)", roles, "{:.2f}")
    counted(right, counts, n, "answers that don't stop", roles, top=1.1 * n)
    return fig


def damage(lost: dict[int, dict[str, int]], n: int) -> Figure:
    """Rows of `n` that a cut damages, in %: {max_length: {what: rows}}, the worst damage first."""
    rows = {f"{at} tokens": {k: 100 * x / n for k, x in row.items()} for at, row in lost.items()}
    fig, ax = titled("Cut to 96 tokens, a tenth of the rows have no labels")
    stacks(ax, rows, f"damaged rows, % of {n}", "{:.0f}%")
    for part, how in zip(ax.containers, (look("mistake"), {"facecolor": "#F3C6C6"}), strict=False):
        for bar in part:
            bar.set(**how)
    return fig


def checkpointed(runs: dict[str, tuple[Sequence[float], float, Sequence[bool]]]) -> Figure:
    """Activations, last loss and trained B of {way: (losses, bytes at the peak, which B moved)}."""
    losses, peaks, moved = ({way: run[i] for way, run in runs.items()} for i in range(3))
    wrong = [way for way in runs if not all(moved[way])]
    title = "Checkpointing saves memory and trains every adapter"
    if wrong:
        title = f"“{wrong[0]}” saves memory but trains only the head's adapter"
    fig, axes = titled(title, 3)
    first, *later = losses["plain"]
    panels = {
        "activations\n(MB)": {way: peak / 1e6 for way, peak in peaks.items()},
        f"loss at step {1 + len(later)}\n({first:.2f} at step 1)": {k: losses[k][-1] for k in runs},
        f"trained B matrices\n(of {len(moved['plain'])})": {k: sum(moved[k]) for k in runs},
    }
    for ax, (label, values) in zip(axes, panels.items(), strict=True):
        bars(ax, values, label, {"plain": "base", "given": "mistake"})
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    return fig
