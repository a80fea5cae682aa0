"""Figures of lab 4."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from labkit import measured
from labkit.figures.forms import dots, stacks, titled
from labkit.figures.guess import Guess
from labkit.plots import BESIDE, INK, ROLES, VARIANTS

FORMATS = {"NF4": ROLES["QLoRA"], "FP4": VARIANTS[1], "INT4": VARIANTS[2]}


def outlier(clean: torch.Tensor, spoiled: torch.Tensor, value: float) -> Figure:
    """The same numbers (n,) after rounding to 4 bits, without and with an outlier of `value`."""
    zeros = (spoiled == 0).float().mean().item()
    title = f"With one outlier, {zeros:.0%} of the other numbers become 0"
    fig, axes = titled(title, n_columns=2, height=3, sharey=True)
    panels = {"without an outlier": clean, f"with one outlier of {value:g}": spoiled}
    for ax, (name, numbers), role in zip(axes, panels.items(), ("LoRA", "mistake"), strict=True):
        levels, counts = np.unique(numbers.numpy().round(4), return_counts=True)
        ax.bar(levels, 100 * counts / counts.sum(), width=0.3, color=ROLES[role])
        ax.set(xlim=(-4, 4), ylim=(0, 102), xlabel="value after rounding")
        ax.set_title(name, fontsize=9.5, weight="normal", color=INK)
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("% of the numbers")
    return fig


def codebooks(books: dict[str, torch.Tensor], weights: torch.Tensor) -> Figure:
    """Each codebook's values, as high as the share of the weights (divided by absmax) near them."""
    fig, ax = titled("NF4 uses its sixteen values most evenly", height=4.4)
    counts, edges = np.histogram(weights.numpy(), 81, (-1, 1))
    ax.stairs(counts / counts.max(), edges, fill=True, color=INK, alpha=0.25)
    ax.text(0.42, 0.75, "weights of one layer,\ndivided by absmax", color=INK)
    for row, (name, book) in enumerate(books.items(), start=1):
        y, values, color = -0.7 * row, book.unique(), FORMATS.get(name, INK)
        codes = torch.bucketize(weights, (values[1:] + values[:-1]) / 2).flatten()
        shares = codes.bincount(minlength=len(values)) / len(codes)
        ax.vlines(values, y, y + 3.6 * shares, color=color, lw=5)
        ax.text(-1.06, y + 0.1, name, ha="right", color=color)
        ratio = f"most / least\nused: {shares.max() / shares.min():.0f}"
        ax.text(1.06, y + 0.05, ratio, color=color, fontsize=9)
    ax.set(yticks=[], xlim=(-1.03, 1.03), ylim=(y - 0.02, 1.05))
    ax.set_xlabel("value (height: the share of the weights rounded to it)")
    ax.spines["left"].set_visible(False)
    return fig


def added_loss(extra: dict[str, tuple[float, float, float]], guess: Guess) -> Figure:
    """The loss that each format adds: {"NF4", "NF4, blocks of 16", …: (nats, low, high)}."""
    rows = dict(sorted(extra.items(), key=lambda row: row[1]))
    *_, worst = rows
    title = f"{worst} adds the most loss"
    if worst == "INT4" and "NF4" in rows:
        title = f"INT4 adds {rows['INT4'][0] / rows['NF4'][0]:.1f} times as much loss as NF4"
    fig, ax = titled(title, height=0.45 * len(rows) + 1.4)
    colors = {name: FORMATS.get(name.split(",")[0], INK) for name in rows}
    label = "added loss, nats per token (default: blocks of 64; line: 95% interval)"
    dots(ax, rows, label, colors, "{:.2f}")
    ax.set_xlim(0, 1.12 * ax.get_xlim()[1])
    guess.draw(ax, "x")
    return fig


def block_sizes(points: dict[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Error against bits: {kind of scales: [(block, bits per weight, relative error), ...]}."""
    fig, ax = titled("Double quantization saves bits and costs almost no accuracy")
    color, arrow = FORMATS["NF4"], {"arrowstyle": "->", "shrinkA": 4, "shrinkB": 4}
    plain, double = (np.array(sorted(rows)) * [1, 1, 100] for rows in points.values())  # in %
    for (block, *start), (_, *end) in zip(plain, double, strict=True):
        ax.annotate("", end, start, arrowprops=arrow | {"color": color})
        ax.annotate(f"blocks of {block:.0f}", start, (9, 0), color=INK, **BESIDE)
        if block == 64:
            text, middle = f"−{start[0] - end[0]:.2f} bits", np.mean([start, end], axis=0)
            ax.annotate(text, middle, (0, 9), ha="center", color=color, **BESIDE)
    for name, rows, face in zip(points, (plain, double), ("white", color), strict=True):
        ax.plot(rows[:, 1], rows[:, 2], "o", color=color, mfc=face)
        ax.annotate(name, rows[0, 1:], (0, -13), ha="center", color=color, **BESIDE)
    ax.margins(x=0.2)
    ax.set(xlim=(3.94, None), ylim=(0.9 * plain[0, 2], 1.06 * plain[-1, 2]))
    ax.set(xlabel="bits per weight", ylabel="relative error of the weights (%)")
    return fig


def losses(runs: dict[str, Sequence[float]]) -> Figure:
    """How far QLoRA's training loss is above LoRA's: {name: losses in nats}, of both."""
    gap = np.subtract(runs["QLoRA"], runs["LoRA"])
    close = gap[-5:].mean() < 0.25 * gap[0]
    fig, ax = titled(f"QLoRA's loss {'comes close to' if close else 'stays above'} LoRA's")
    ax.bar(range(1, len(gap) + 1), gap, color=ROLES["QLoRA"])
    ax.axhline(0, color=INK, lw=1.2)
    text = f"LoRA's own loss goes\nfrom {runs['LoRA'][0]:.1f} to {runs['LoRA'][-1]:.1f}"
    ax.text(0.98, 0.9, text, transform=ax.transAxes, ha="right", va="top", color=INK)
    ax.set(xlabel="step", ylabel="QLoRA's loss minus LoRA's\n(nats per token, same batch)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="x", visible=False)
    return fig


def crossed(losses: dict[tuple[str, str], float]) -> Figure:
    """Held-out loss of each adapter on each base: {(method, base): nats per token}."""
    own = {"LoRA": "16 bits", "QLoRA": "NF4"}
    fit = all(losses[method, own[method]] <= loss for (method, _), loss in losses.items())
    title = "Each adapter is best on the base it was trained on"
    fig, ax = titled(title if fit else "One adapter is better on the other base")
    others, bases = measured.by_run("qlora").loc["crossing"], list(own.values())
    for method, base in own.items():
        rest = others[[f"{base} on {other}" for other in bases]]
        ax.plot([0, 1], rest.T, color=ROLES[method], lw=1, alpha=0.3)
        ax.plot([0, 1], [losses[method, base] for base in bases], "o-", color=ROLES[method])
    for (method, base), loss in losses.items():
        how = {"weight": "bold" if base == own[method] else None, "color": ROLES[method], **BESIDE}
        x, side = (1, "left") if base == "NF4" else (0, "right")
        ax.annotate(f"{method}'s {loss:.2f}", (x, loss), (20 * x - 10, 0), ha=side, **how)
    ax.set_xticks([0, 1], [f"on {base}" for base in bases])
    ax.set(xlim=(-0.3, 1.3), ylim=(0, 1.06 * ax.get_ylim()[1]))
    ax.set_xlabel("bold: the base that the adapter was trained on")
    ax.set_ylabel("held-out loss (nats per token)\n(faint: three other runs)")
    ax.grid(axis="x", visible=False)
    return fig


def step_memory(peaks: dict[str, dict[str, int]]) -> Figure:
    """Memory at the peak of a step: {method: {category: bytes}}, LoRA and QLoRA among them."""
    halved = 2 * sum(peaks["QLoRA"].values()) < sum(peaks["LoRA"].values())
    title = "QLoRA more than halves LoRA's peak: only the weights shrink"
    fig, ax = titled(title if halved else "QLoRA shrinks only the weights")
    stacks(ax, peaks, "peak memory of a step (GB)", "{:.1f}", unit=10**9)
    return fig


def fits(peaks: dict[str, dict[str, int]], card: float) -> Figure:
    """Memory at the peak of a step, {settings: {category: bytes}}, and 20% more; a card's GiB."""
    totals = np.array([sum(row.values()) for row in peaks.values()]) / 2**30
    n = sum(1.2 * totals < card)
    fig, ax = titled(f"{n} of {len(peaks)} settings fit with a margin of 20%")
    stacks(ax, peaks, "peak memory of a step (GiB; dotted: +20%)", "", unit=2**30)
    outline = {"facecolor": "none", "edgecolor": INK, "ls": ":"}
    ax.bar(range(len(peaks)), 0.2 * totals, 0.5, bottom=totals, **outline)
    ax.axhline(card, color=INK, lw=1.2, ls="--")
    ax.text(1, card, f" {card:g} GB", transform=ax.get_yaxis_transform(), va="center", color=INK)
    for x, total in enumerate(totals):
        ax.text(x, 0.5 * total, f"{total:.0f}", ha="center", va="center", color="white")
    ax.set_ylim(0, 1.28 * max(card, *totals))
    ax.tick_params(axis="x", labelsize=9)
    return fig
