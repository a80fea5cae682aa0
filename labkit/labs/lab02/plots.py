"""Figures of lab 2."""

import numpy as np
from matplotlib.patches import Rectangle

from labkit.plots.style import INK, PALETTE, figure, smooth

PARTS = {"weights": PALETTE[0], "gradients": PALETTE[4], "optimizer": PALETTE[1]}


def thin_matrices(d_out, d_in, r):
    """W, B and A drawn to scale as rectangles; sizes in numbers."""
    fig, ax = figure(height=3.4)
    gap, share = 0.32 * d_in, r * (d_out + d_in) / (d_out * d_in)
    _box(ax, 0, 0, d_in, d_out, PALETTE[0], f"W\n{d_out} × {d_in}\n{d_out * d_in:,} frozen")
    left = d_in + gap
    _box(ax, left, 0, r, d_out, PALETTE[1])
    _box(ax, left + 2.2 * r, d_out - r, d_in, r, PALETTE[1])
    ax.text(d_in + gap / 2, d_out / 2, "+ (α/r) ·", ha="center", va="center", fontsize=13)
    ax.text(left + 1.6 * r, d_out / 2, f"B  {d_out} × {r}", va="center")
    ax.text(left + 2.2 * r + d_in / 2, d_out - 2 * r, f"A  {r} × {d_in}", ha="center", va="top")
    ax.set(xlim=(-10, left + 3 * r + d_in), ylim=(-10, d_out + 10), aspect="equal")
    ax.axis("off")
    ax.set_title(f"At r = {r} the two thin matrices hold {share:.1%} of W's numbers")
    return fig


def _box(ax, x, y, width, height, colour, label=""):
    ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, alpha=0.85))
    ax.text(x + width / 2, y + height / 2, label, ha="center", va="center", color="white")


def first_gradients(norms):
    """Gradient norms of A and B in the first steps; `norms` maps each name to a list."""
    fig, ax = figure(height=2.8)
    for name, colour, marker in (("A", PALETTE[0], "o"), ("B", PALETTE[1], "s")):
        ax.plot(norms[name], color=colour, marker=marker, ms=4)
        ax.annotate(f" {name}", (len(norms[name]) - 1, norms[name][-1]), color=colour, va="center")
    ax.set(xlabel="step", ylabel="gradient norm", ylim=(-0.02 * max(norms["B"]), None))
    ax.set_title(f"At step 0 the gradient of A is {norms['A'][0]:.0f}: A has to wait for B")
    return fig


def budget(curves, memory):
    """Loss against seconds, and bytes held by kind, for each run by name.

    `curves` maps a name to an object with `losses` and `seconds`; `memory` maps it to a dict of
    bytes for weights, gradients and optimizer.
    """
    fig, (left, right) = figure(2, width=9.5, height=3.6, width_ratios=(3, 2))
    seconds = [curve.seconds[-1] for curve in curves.values()]
    at = min(seconds) / 3  # both curves fall: the lower one is named on its left, below
    heights = [np.interp(at, c.seconds, smooth(c.losses)) for c in curves.values()]
    kinds = zip(curves.items(), PALETTE[1::-1], heights, strict=False)
    for (name, curve), colour, height in kinds:
        left.plot(curve.seconds, smooth(curve.losses), color=colour)
        lower = height == min(heights)
        shift, side = ((-6, -4), ("right", "top")) if lower else ((6, 4), ("left", "bottom"))
        how = {"textcoords": "offset points", "ha": side[0], "va": side[1], "color": colour}
        left.annotate(name, (at, height), shift, **how)
    left.set(xlabel="seconds", ylabel="training loss", yscale="log")
    left.set_xlim(0, 1.03 * max(seconds))
    left.set_title(f"LoRA takes {seconds[0] / seconds[1]:.0%} of the time …")
    _memory_bars(right, memory)
    totals = [sum(parts.values()) for parts in memory.values()]
    right.set_title(f"… and holds {totals[0] / totals[1]:.0%} of the bytes")
    return fig


def _memory_bars(ax, memory):
    floor = np.zeros(len(memory))
    for part, colour in PARTS.items():
        sizes = np.array([parts[part] / 1e9 for parts in memory.values()])
        ax.bar(list(memory), sizes, bottom=floor, color=colour, width=0.55, label=part)
        floor += sizes
    for x, total in enumerate(floor):
        ax.text(x, total, f"{total:.2f} GB", ha="center", va="bottom", color=INK)
    ax.set(ylabel="GB held between steps", ylim=(0, floor.max() * 1.15))
    ax.legend(loc="upper left")


def merge_rounding(gaps):
    """Histograms of |logit difference| on a log axis; `gaps` maps a name to a tensor."""
    fig, ax = figure(height=3)
    typical = {}
    for (name, gap), colour in zip(gaps.items(), PALETTE, strict=False):
        logs = np.log10(np.maximum(gap.abs().flatten().numpy(), 1e-8))
        typical[name] = 10 ** np.median(logs)
        ax.hist(logs, bins=80, range=(-8, 1), color=colour, histtype="stepfilled", alpha=0.3)
        ax.hist(logs, bins=80, range=(-8, 1), color=colour, histtype="step", lw=1.5)
        height = 0.85 - 0.2 * (list(gaps).index(name) % 2)  # in turns: two may lie on each other
        where = {"xycoords": ax.get_xaxis_transform(), "ha": "right", "va": "center"}
        ax.annotate(name, (np.median(logs) - 0.9, height), color=colour, **where)
    ax.set(xlabel="|difference of a logit|, power of ten", ylabel="logits", yticks=[])
    text = ", ".join(f"{value:.0e} ({name})" for name, value in typical.items())
    ax.set_title(f"Typical distance from the unmerged fp32 model:\n{text}")
    return fig


def update_sizes(ranks, rows):
    """Relative update size against rank on log axes; `rows` maps a scaling rule to sizes."""
    fig, ax = figure(height=3.2)
    for (name, sizes), colour, marker in zip(rows.items(), PALETTE, "os", strict=False):
        ax.plot(ranks, sizes, color=colour, marker=marker)
        ax.annotate(f"  {name}", (ranks[-1], sizes[-1]), color=colour, va="center")
    ax.set(xscale="log", yscale="log", xlabel="rank r", ylabel="|update| / |W|")
    ax.set_xticks(ranks, [str(r) for r in ranks], minor=False)
    ax.set_xlim(None, ranks[-1] * 3)
    plain, stable = (sizes[-1] / sizes[0] for sizes in rows.values())
    ax.set_title(
        f"From r={ranks[0]} to r={ranks[-1]} the update's size is multiplied\n"
        f"by {plain:.1f} under alpha / r, by {stable:.1f} under alpha / sqrt(r)"
    )
    return fig
