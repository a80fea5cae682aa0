"""Figures of lab 6 about what a grid lets through, and what merges of QLoRA come to."""

import numpy as np

from labkit.plots import INK, PALETTE, figure, headed

COLOURS = {"bf16": PALETTE[0], "Q8_0": PALETTE[2], "Q4_0": PALETTE[4], "NF4": PALETTE[1]}
WAYS = {  # how it is merged -> colour, line, inside of a dot, where its name stands (points)
    "dequantised": (PALETTE[1], "-", PALETTE[1], 9),
    "dequantised, then NF4": (PALETTE[1], "--", "white", -16),
    "original": (PALETTE[0], "-", PALETTE[0], 9),
    "original, then NF4": (PALETTE[0], "--", "white", -21),
}
NEAR = 0.15  # nats: how far from zero the panel of losses reaches


def number_line(rows, step):
    """One weight on several grids, with the same `step` added to it.

    `rows` maps a grid to (its values near the weight, the weight, where the sum lands). The band
    is the dead zone, which rounds back to the weight; an arrow is the step, a ring the weight, a
    dot where the sum lands.
    """
    fig, ax = figure(height=0.75 * len(rows) + 1.2)
    reach = 12 * abs(step)
    for y, (name, (values, start, landed)) in zip(
        range(len(rows))[::-1], rows.items(), strict=True
    ):
        near = np.array(values) - start
        ticks = near[np.abs(near) <= reach]
        ax.vlines(ticks, y - 0.16, y + 0.16, color=INK, lw=0.8, alpha=0.45)
        low, high = _dead_zone(near, reach)
        ax.fill_between([low, high], y - 0.3, y + 0.3, color=COLOURS[name], alpha=0.25, lw=0)
        ax.plot(0, y, "o", color=COLOURS[name], ms=10, mfc="white", mew=2)
        style = {"arrowstyle": "->", "color": INK, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (step, y + 0.36), (0, y + 0.36), arrowprops=style)
        ax.plot(landed - start, y, "o", color=COLOURS[name], ms=5)
        ax.text(reach * 1.03, y, _told(step, near, landed - start), va="center", color=INK)
        if len(ticks) == 1 and (near > 0).any():
            further = f"the next value: {near[near > 0].min():.2g} →"
            ax.text(reach * 0.97, y, further, va="center", ha="right", color=INK, fontsize=9)
    ax.set_yticks(range(len(rows))[::-1], list(rows))
    ax.set(xlim=(-reach, reach), ylim=(-0.6, len(rows) - 0.35))
    ax.set(xlabel="distance from the weight (ring: before, arrow: the update, dot: after)")
    ax.locator_params(axis="x", nbins=5)
    ax.grid(visible=False)
    stay = [name for name, (_, start, landed) in rows.items() if landed == start]
    ax.set_title(
        f"The same update: in {' and in '.join(stay)} it snaps back"
        if stay
        else "The same update: on every grid it reaches another value"
    )
    return fig


def _dead_zone(near, reach):
    """Half way to the neighbours of 0 among the distances `near`, or the edge of the picture."""
    below, above = near[near < 0], near[near > 0]
    low = below.max() / 2 if len(below) else -reach
    return max(low, -reach), min(above.min() / 2 if len(above) else reach, reach)


def _told(step, near, moved):
    """How many of the grid's steps the update is, and what becomes of it, in words."""
    ahead = near[near * np.sign(step) > 0]
    size = abs(step) / np.abs(ahead).min() if len(ahead) else 0.0
    many = f"{size:.2g} steps of this grid" if size else "a small part of a step"
    return f"{many}:\n" + (f"moves {moved / step:.0%} as far" if moved else "snaps back")


def arrivals(sizes, on, beside, trained, guess):
    """The percentage of an update that arrives against |dW| / |W|, by grid: two panels.

    In the left one the weights lie on the grid before, in the right one beside it. A dotted line
    marks the update that was `trained`. `guess` is one of percent, in the left panel.
    """
    fig, axes = figure(2, width=9.5, height=3.5, sharey=True)
    for ax, curves, told in zip(axes, (on, beside), ("on the grid", "as in the base"), strict=True):
        for (name, shares), marker in zip(curves.items(), "oD^s", strict=True):
            ax.plot(sizes, shares, color=COLOURS[name], marker=marker, ms=5, label=name)
        ax.axhline(100, color=INK, lw=0.8)
        ax.axvline(trained, color=INK, ls=":", lw=1.5)
        ax.set(xscale="log", xlabel="size of the update, |ΔW| / |W|", title=f"weights {told}")
        ax.set_xticks(sizes, [f"{100 * size:g}%" for size in sizes])
        ax.minorticks_off()
        ax.text(trained, 104, " home", color=INK)
    every = [share for curves in (on, beside) for shares in curves.values() for share in shares]
    axes[0].set(ylabel="share of the update that arrives, %")
    axes[0].set_ylim(min(-8, 1.1 * min(every)), max(125, 1.05 * max(every)))
    axes[1].legend(loc="lower right")
    guess.draw(axes[0])
    small = sizes.index(1e-3)
    low, least = on["bf16"][small], on["NF4"][small]
    kept = f"{low:.0f}% arrives on bf16's grid and {least:.0f}% on NF4's;"
    off_it = f"in NF4 {beside['NF4'][small]:.0f}% where the weights lie off its grid"
    return headed(fig, f"Of an update of 0.1%, {kept}\n{off_it}")


def crossover(frame, guess):
    """KL from the trained model and the change of task loss against |dW| / |rounding error|.

    `frame` is measured/merges.csv, of which WAYS are drawn. Faint dots are seeds, large ones their
    means, bars in the right panel standard errors. `guess` is one of the change, in that panel.
    """
    fig, (left, right) = figure(2, width=10, height=4.4)
    fig.get_layout_engine().set(wspace=0.06)  # else the right axis' name touches the left panel
    for i, (way, (colour, line, inside, beside)) in enumerate(WAYS.items()):
        rows = frame[frame["way"] == way]
        by_length = rows.groupby("steps")[["to_error", "kl", "worse"]]
        means, errors = by_length.mean(), by_length.sem()
        style = {"color": colour, "marker": "o", "mfc": inside, "ms": 6}
        left.plot(means["to_error"], means["kl"], ls=line, **style)
        start, put = means.iloc[0][["to_error", "kl"]], {"textcoords": "offset points"}
        left.annotate(way, start, (-3, beside), color=colour, **put)
        shift = 1.07 ** (i - 1.5)  # the points of one length stand side by side
        x, off = shift * means["to_error"], means["worse"] > NEAR
        right.plot(shift * rows["to_error"], rows["worse"], ".", color=colour, ms=5, alpha=0.45)
        right.errorbar(x, means["worse"], errors["worse"], ls="", label=way, lw=1.5, **style)
        _above(right, x[off], means["worse"][off], colour)
    ratios = frame.groupby("steps")["to_error"].mean()
    for ax in (left, right):
        ax.set(xscale="log", xlabel="|update| / |NF4's rounding error|; below: training steps")
        ax.set_xticks(ratios, [f"{ratio:.2f}\n{n}" for n, ratio in ratios.items()])
        ax.minorticks_off()
    left.set(yscale="log", ylabel="KL from the trained model,\nnats a token", title="how close")
    right.axhline(0, color=INK, lw=0.8, zorder=1)
    right.set(ylim=(-NEAR, NEAR), title="how good at the task")
    right.set(ylabel="loss above the trained\nmodel's, nats a token")
    right.legend(loc="lower right", fontsize=9)
    guess.draw(right)
    return headed(fig, _verdict(frame))


def _above(ax, places, losses, colour):
    """The `losses` that lie above the picture as numbers at its upper edge."""
    style = {"transform": ax.get_xaxis_transform(), "color": colour, "va": "top", "fontsize": 9}
    for x, loss in zip(places, losses, strict=True):
        ax.text(x, 0.99, f"{loss:.1f} ↑", ha="center", **style)
    if len(losses):
        style["transform"] = ax.transAxes
        ax.text(0.99, 0.99, "(off the scale)", ha="right", **style)


def _verdict(frame):
    """Which base is nearest, and the loss of the original, at the shortest and the longest."""
    runs = frame.pivot_table(index=["steps", "seed"], columns="way", values=["kl", "worse"])
    nearer = (runs["kl"]["dequantised"] < runs["kl"]["original"]).all()
    told = "Closest at every length: the dequantised base" if nearer else "Closest: it depends"
    gaps = (runs["worse"]["original"] - runs["worse"]["dequantised"]).groupby("steps")
    ends = []
    for steps in (frame["steps"].min(), frame["steps"].max()):
        gap = gaps.get_group(steps)
        n = len(gap)
        error = f"± {gap.std() / n**0.5:.2f}" if n > 1 else "(one seed)"
        ends.append(f"{round(gap.mean(), 2) + 0.0:.2f} {error} after {steps} steps")
    return f"{told}.\nLoss of the original minus the dequantised: {ends[0]}, {ends[1]}"
