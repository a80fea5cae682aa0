"""Figures of lab 4."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from labkit.figures.forms import bars, curves, stacks, titled
from labkit.figures.guess import Guess
from labkit.plots import INK, ROLES, VARIANTS

GB = 10**9


def outlier(clean: torch.Tensor, spoiled: torch.Tensor, value: float) -> Figure:
    """The same numbers (n,) after rounding to 4 bits, without and with an outlier of `value`."""
    zeros = (spoiled == 0).float().mean().item()
    title = f"With one outlier, {zeros:.0%} of the other numbers become 0"
    fig, axes = titled(title, n_columns=2, height=3, sharey=True)
    panels = {"without an outlier": clean, f"with one outlier of {value:g}": spoiled}
    for ax, (name, numbers), role in zip(axes, panels.items(), ("LoRA", "mistake"), strict=True):
        levels, counts = np.unique(numbers.numpy().round(4), return_counts=True)
        ax.bar(levels, 100 * counts / counts.sum(), width=0.3, color=ROLES[role])
        ax.set(xlim=(-6.5, 6.5), ylim=(0, 102), xlabel=f"value after rounding\n({name})")
    axes[0].set_ylabel("% of the numbers")
    return fig


def codebooks(books: dict[str, torch.Tensor], weights: torch.Tensor) -> Figure:
    """The values of each codebook as ticks, below the histogram of weights divided by absmax."""
    fig, ax = titled(f"{next(iter(books))} has most of its values where most of the weights are")
    counts, edges = np.histogram(weights.numpy(), 81, (-1, 1))
    ax.stairs(counts / counts.max(), edges, fill=True, color=INK, alpha=0.25)
    ax.text(0.42, 0.75, "weights of one layer,\ndivided by absmax", color=INK)
    for row, (name, values) in enumerate(books.items()):
        y, color = -0.22 - 0.27 * row, ROLES["QLoRA"] if row == 0 else VARIANTS[row]
        ax.vlines(values.numpy(), y - 0.09, y + 0.09, color=color, lw=1.8)
        ax.text(-1.06, y, name, ha="right", va="center", color=color)
    ax.set(yticks=[], xlabel="value, divided by absmax", xlim=(-1.03, 1.03))
    ax.set_ylim(-0.4 - 0.27 * row, 1.05)
    ax.spines["left"].set_visible(False)
    return fig


def added_loss(extra: dict[str, tuple[float, float, float]], guess: Guess) -> Figure:
    """The loss that each format adds: {format: (nats per token, low, high)}."""
    most = max(extra, key=lambda name: extra[name][0]).replace("\n", ", ")
    fig, ax = titled(f"{most} adds the most loss")
    roles = {name: "QLoRA" if name.startswith("NF4") else "base" for name in extra}
    ylabel = "added loss, nats per token\n(line: 95% interval)"
    bars(ax, extra, ylabel, roles, "{:.2f}", guess=guess)
    return fig


def block_sizes(points: dict[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Error against bits: {kind of scales: [(block, bits per weight, relative error), ...]}."""
    fig, ax = titled("Double quantization saves bits and costs almost no accuracy")
    for (name, rows), color, marker in zip(points.items(), VARIANTS, "os", strict=False):
        _, bits, errors = zip(*sorted(rows), strict=True)
        ax.plot(bits, errors, color=color, marker=marker)
        shift, side = ((6, 4), "left") if marker == "o" else ((-7, -5), "right")
        for block, x, y in rows:
            how = {"textcoords": "offset points", "ha": side, "fontsize": 9, "color": color}
            ax.annotate(str(block), (x, y), shift, **how)
        how = {"textcoords": "offset points", "ha": "center", "va": "top", "color": color}
        ax.annotate(name, (bits[0], errors[0]), (0, -12), **how)
    ax.set(xlabel="bits per weight (labels: block size)", ylabel="relative error of the weights")
    ax.set_xlim(3.9, 1.06 * max(bits for rows in points.values() for _, bits, _ in rows))
    ax.margins(y=0.15)
    return fig


def losses(runs: dict[str, Sequence[float]]) -> Figure:
    """Training losses of LoRA and QLoRA: {name: losses in nats}."""
    gap, rest = (runs["QLoRA"][i] - runs["LoRA"][i] for i in (0, -1))
    then = "but comes close to LoRA" if rest < 0.5 * gap else "and stays behind LoRA"
    fig, ax = titled(f"QLoRA starts {gap:.1f} nats per token higher {then}")
    curves(ax, runs, "training loss (nats per token)", colors=[ROLES[name] for name in runs])
    return fig


def crossed(losses: dict[tuple[str, str], float]) -> Figure:
    """Held-out loss of each adapter on each base: {(method, base): nats per token}."""
    trained, bases = (list(dict.fromkeys(pair[i] for pair in losses)) for i in (0, 1))
    best = [min(bases, key=lambda base: losses[method, base]) for method in trained]
    title = "Each adapter is best on the base it was trained on"
    fig, ax = titled(title if best == bases else "One adapter is better on the other base")
    labels = {f"{method}'s adapter\non {base}": method for method, base in losses}
    values = dict(zip(labels, losses.values(), strict=True))
    bars(ax, values, "held-out loss (nats per token)", labels, "{:.2f}")
    return fig


def step_memory(peaks: dict[str, dict[str, int]]) -> Figure:
    """Memory at the peak of a step: {method: {category: bytes}}, LoRA and QLoRA among them."""
    rows = {name: {part: n / GB for part, n in peak.items()} for name, peak in peaks.items()}
    ratio = sum(rows["LoRA"].values()) / sum(rows["QLoRA"].values())
    fig, ax = titled(f"LoRA's peak memory is {ratio:.1f} times as high as QLoRA's")
    stacks(ax, rows, "peak memory of a step (GB)", "{:.1f}")
    return fig


def fits(peaks: dict[str, dict[str, int]], card: float) -> Figure:
    """Memory at the peak of a step by settings, {settings: {category: bytes}}, and a card's GiB.

    A line on each bar reaches 20% above it.
    """
    rows = {name: {part: n / 2**30 for part, n in peak.items()} for name, peak in peaks.items()}
    totals = [sum(row.values()) for row in rows.values()]
    most = [1.2 * total for total in totals]
    n = sum(peak < card for peak in most)
    fit = "fits" if n == 1 else "fit"
    fig, ax = titled(f"{n} of {len(rows)} settings safely {fit} on a {card} GB GPU")
    label = "peak memory of a step (GiB)\n(line: 20% above the simulation)"
    stacks(ax, rows, label, "")
    for x, (total, peak) in enumerate(zip(totals, most, strict=True)):
        ax.errorbar(x, total, [[0], [peak - total]], color=INK, capsize=4, lw=1.2)
        ax.text(x + 0.04, total, f" {total:.0f}", va="bottom", color=INK)
    ax.set_ylim(0, 1.08 * max(card, *most))
    ax.axhline(card, color=INK, lw=1.2, ls="--")
    ax.text(0.5, card, f"{card:g} GB", ha="center", va="bottom", color=INK)
    return fig
