"""Figures of lab 6 about what a grid lets through, and what merges of QLoRA come to."""

import numpy as np

from labkit.plots import INK, PALETTE, figure, headed

COLOURS = {"bf16": PALETTE[0], "Q8_0": PALETTE[2], "Q4_0": PALETTE[4], "NF4": PALETTE[1]}
WAYS = {  # how it is merged -> colour, line, marker
    "dequantised": (PALETTE[1], "-", "o"),
    "dequantised, then NF4": (PALETTE[1], "--", "s"),
    "dequantised, then Q4_0": (PALETTE[1], ":", "^"),
    "original": (PALETTE[0], "-", "o"),
    "original, then NF4": (PALETTE[0], "--", "s"),
    "original, then Q4_0": (PALETTE[0], ":", "^"),
}


LOSSES = (-0.1, -0.05, 0, 0.05, 0.1, 0.3, 1, 3)  # ticks
LINEAR = 0.15  # as far as this their axis is linear, beyond it logarithmic


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
        ax.set(xscale="log", xlabel="size of the update, |dW| / |W|", title=f"weights {told}")
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

    `frame` is measured/merges.csv; faint dots are seeds, lines their means, bars in the right panel
    standard errors. `guess` is one of the change, in the right panel.
    """
    fig, (left, right) = figure(2, width=10, height=4.8)
    fig.get_layout_engine().set(wspace=0.06)  # else the right axis' name touches the left panel
    for i, (way, (colour, line, marker)) in enumerate(WAYS.items()):
        rows = frame[frame["way"] == way]
        by_length = rows.groupby("steps")[["to_error", "kl", "worse"]]
        means, errors = by_length.mean(), by_length.sem()
        label = way + _fewer_seeds(rows, frame)
        for ax, column, beside in ((left, "kl", 1), (right, "worse", 1.03 ** (i - 2.5))):
            style = {"color": colour, "marker": marker}
            x = beside * means["to_error"]  # in the right panel side by side
            ax.plot(beside * rows["to_error"], rows[column], ls="", ms=3, alpha=0.4, **style)
            ax.plot(x, means[column], ls=line, ms=5, label=label, **style)
        right.errorbar(x, means["worse"], errors["worse"], ls="", color=colour, lw=1.2)
    ratios = frame.groupby("steps")["to_error"].mean()
    for ax in (left, right):
        ax.set(xscale="log", xlabel="|dW| / |rounding error of NF4|; below it: steps of training")
        ax.set_xticks(ratios, [f"{ratio:.2f}\n{n}" for n, ratio in ratios.items()])
        ax.minorticks_off()
    left.set(yscale="log", ylabel="KL from what was trained,\nnats a token", title="how close")
    right.set_yscale("symlog", linthresh=LINEAR, linscale=2)
    right.set_yticks(LOSSES, [f"{loss:g}" for loss in LOSSES])
    right.set_ylim(top=5)
    right.axhline(0, color=INK, lw=0.8)
    right.axhline(LINEAR, color=INK, lw=0.8, ls=":")
    told = {"transform": right.get_yaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 9}
    right.text(0.55, LINEAR, "↑ logarithmic", color=INK, **told)
    right.set(ylabel="loss above the trained\nmodel's, nats a token", title="how good at the task")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    guess.draw(right)
    return headed(fig, _verdict(frame))


def _fewer_seeds(rows, frame):
    """How many seeds `rows` have at their lengths, in words, where it is fewer than elsewhere."""
    own, most = (part.groupby("steps")["seed"].nunique() for part in (rows, frame))
    low, high = own.min(), own.max()
    if low >= most.min():
        return ""
    return f" ({low} to {high} seeds)" if low < high else f" ({low} seed{'s' * (low > 1)})"


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
