"""Figures of lab 2."""

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from labkit.memory.plots import COLOURS, HATCHES
from labkit.plots import INK, OVER_GUESS, PALETTE, figure, likely, smooth, weight_for


def thin_matrices(d_out, d_in, r):
    """W, B and A drawn to scale as rectangles; sizes in numbers."""
    fig, ax = figure(height=3.4)
    gap, share = 0.32 * d_in, r * (d_out + d_in) / (d_out * d_in)
    _box(ax, 0, 0, d_in, d_out, PALETTE[0], f"W\n{d_out} × {d_in}\n{d_out * d_in:,} frozen")
    left = d_in + gap
    _box(ax, left, 0, r, d_out, PALETTE[1])
    _box(ax, left + 2.2 * r, d_out - r, d_in, r, PALETTE[1])
    ax.text(d_in + gap / 2, d_out / 2, "+ (α/r) ·", ha="center", va="center", fontsize=13)
    ax.text(left + 1.6 * r, d_out / 2, f"B\n{d_out} × {r}\n{d_out * r:,} train", va="center")
    told = f"A\n{r} × {d_in}\n{r * d_in:,} train"
    ax.text(left + 2.2 * r + d_in / 2, d_out - 2 * r, told, ha="center", va="top")
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
    looks = (("A", "random", PALETTE[2], "o"), ("B", "zero", PALETTE[1], "s"))
    for name, start, colour, marker in looks:
        ax.plot(norms[name], color=colour, marker=marker, ms=4)
        end = (len(norms[name]) - 1, norms[name][-1])
        shift = (0, -18) if name == "B" else (0, 10)  # where the curve does not come by
        how = {"textcoords": "offset points", "ha": "right", "color": colour}
        ax.annotate(f"{name} ({start} at first)", end, shift, **how)
    ax.set(xlabel="step", ylabel="norm of the gradient", ylim=(-0.02 * max(norms["B"]), None))
    ax.set_title(f"At step 0 the gradient of A is {norms['A'][0]:.0f}: A has to wait for B")
    return fig


def right_answers(counts, n, guess):
    """Answers right to the letter, and with the right intent, of `n`.

    `counts` maps a model's name to these two; `guess` is of the last one's right answers.
    """
    fig, ax = figure(height=3.2)
    places = np.arange(len(counts))
    kinds = (("right to the letter", PALETTE[1]), ("right intent", PALETTE[5]))
    for k, (label, colour) in enumerate(kinds):
        heights = [pair[k] for pair in counts.values()]
        x = places + 0.36 * k - 0.18
        ax.bar(x, heights, 0.34, color=colour, label=label)
        low, high = (n * ends for ends in likely(np.array(heights) / n, n))
        ax.vlines(x, low, high, color=INK, lw=1.2)
        for place, top, height in zip(x, high, heights, strict=True):
            ax.text(place, top + 0.5, height, ha="center", color=INK)
    ax.set_xticks(places, list(counts))
    ax.set_ylabel(f"answers of {n}\n(line: 95% interval)")
    ax.set(ylim=(0, 1.12 * n), xlim=(-0.6, len(counts) - 0.1))
    ax.legend(loc="upper left", **OVER_GUESS)
    ax.grid(axis="x", visible=False)
    first, *_, last = [pair[0] for pair in counts.values()]
    ax.set_title(f"Right to the letter: {first} of {n} before, {last} after")
    guess.draw(ax)
    return fig


def loss_by_the_clock(curves):
    """Training loss against seconds; `curves` maps a name to an object with both.

    The running mean is that of the live curves, which show the same losses against the step.
    """
    fig, ax = figure(height=3.4)
    means = {name: smooth(c.losses, weight_for(len(c.losses))) for name, c in curves.items()}
    seconds = [curve.seconds[-1] for curve in curves.values()]
    at = min(seconds) / 4  # both curves fall: the lower one is named on its left, below
    heights = [np.interp(at, c.seconds, means[name]) for name, c in curves.items()]
    for (name, curve), colour, height in zip(curves.items(), PALETTE[1::-1], heights, strict=True):
        ax.plot(curve.seconds, curve.losses, color=colour, alpha=0.3, lw=1)
        ax.plot(curve.seconds, means[name], color=colour)
        lower = height == min(heights)
        shift, side = ((-6, -4), ("right", "top")) if lower else ((6, 4), ("left", "bottom"))
        how = {"textcoords": "offset points", "ha": side[0], "va": side[1], "color": colour}
        ax.annotate(name, (at, height), shift, **how)
        ax.plot(curve.seconds[-1], means[name][-1], "o", color=colour, zorder=5)
    ax.axvline(min(seconds), color=INK, lw=0.8, ls=":")
    ax.set(xlabel="seconds", ylabel="training loss (nats a token)", yscale="log")
    ax.margins(y=0.06)
    _plain_log(ax.yaxis)
    ax.set_xlim(0, 1.03 * max(seconds))
    told = "faint: each step\nstrong: running mean, as in the two curves above"
    ax.text(0.99, 0.97, told, transform=ax.transAxes, ha="right", va="top", color=INK, fontsize=9)
    steps = min(len(curve.losses) for curve in curves.values())
    ends = [
        f"{name} at {means[name][-1]:.2f} after {c.seconds[-1]:.0f} s" for name, c in curves.items()
    ]
    ax.set_title(f"{steps} steps: {', '.join(ends)}")
    return fig


def _plain_log(axis):
    """Ticks at 1, 2 and 5 times a power of ten, written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def step_shares(shares, guess):
    """LoRA's part of what full fine-tuning takes, a bar for each way to count; the clock last.

    `shares` maps the way to a share; `guess` is of the last one, in percent.
    """
    fig, ax = figure(height=3.2)
    percent = [100 * share for share in shares.values()]
    bars = ax.bar(list(shares), percent, width=0.5, color=PALETTE[1])
    ax.grid(axis="x", visible=False)
    told = [f"{value:.0f}%" for value in percent]
    ax.bar_label(bars, told, label_type="center", color="white", weight="bold")
    ax.axhline(100, color=INK, lw=1)
    ax.text(-0.57, 101, "full fine-tuning = 100%", color=INK, fontsize=9, va="bottom")
    ax.set(ylabel="% of full fine-tuning's", ylim=(0, max(115, 1.15 * max(percent))))
    ax.set_xlim(-0.6, len(shares) - 0.1)
    title = f"LoRA has {percent[1]:.0f}% of the arithmetic and takes {percent[-1]:.0f}% of the time"
    ax.set_title(title)
    guess.draw(ax)
    return fig


def memory(held, peaks, guess):
    """What stays between steps, and what is there at a step's peak, in percent of full's peak.

    Both map "LoRA" and "full" to bytes by category; `guess` is of LoRA's peak, in percent.
    """
    fig, ax = figure(height=4.1)
    half = held["LoRA"]["weights"] < 0.75 * held["full"]["weights"]
    base = "16-bit base" if half else "fp32 base"
    names = {"LoRA": f"LoRA\n({base})", "full": "full\n(fp32)"}
    bars = {}
    for told, parts in {"between steps,\nwith gradients": held, "at the peak": peaks}.items():
        bars |= {f"{name}\n{told}": parts[way] for way, name in names.items()}
    unit, floor = sum(peaks["full"].values()) / 100, np.zeros(len(bars))
    for part, colour in COLOURS.items():
        sizes = np.array([parts.get(part, 0) / unit for parts in bars.values()])
        if sizes.any():
            look = {"color": colour, "hatch": HATCHES[part], "edgecolor": "white", "linewidth": 0}
            ax.bar(list(bars), sizes, bottom=floor, width=0.55, label=part, **look)
        floor += sizes
    gigabytes = [f"{total * unit / 1e9:.2f}" for total in floor]
    for x, told in enumerate(gigabytes):
        ax.text(x, floor[x] + 1, f"{told} GB", ha="center", color=INK)
    ax.set(ylabel="% of full fine-tuning's peak", ylim=(0, 118), xlim=(-0.5, len(bars) + 0.15))
    to_gb = unit / 1e9
    side = ax.secondary_yaxis("right", functions=(lambda y: y * to_gb, lambda gb: gb / to_gb))
    side.set_ylabel("GB")
    ax.legend(loc="upper left", **OVER_GUESS)
    ax.grid(axis="x", visible=False)
    between, full_between, peak, full_peak = gigabytes
    ax.set_title(
        f"Between steps LoRA holds {between} GB, full fine-tuning {full_between} GB;\n"
        f"at the peak {peak} GB and {full_peak} GB: LoRA needs {floor[2]:.0f}%"
    )
    guess.draw(ax)
    return fig


def merge_rounding(gaps):
    """Histograms of |logit difference| on a log axis; `gaps` maps a name to a tensor.

    In this order: merged in fp32, unmerged in bf16, merged in bf16.
    """
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
    powers = range(-8, 2, 2)
    ax.set_xticks(powers, [f"$10^{{{power}}}$" for power in powers])
    ax.set(
        xlabel="|logit - that of the unmerged fp32 model|", ylabel="share of the logits", yticks=[]
    )
    merged32, plain16, merged16 = (f"{value:.2g}" for value in typical.values())
    ax.set_title(
        f"A merge in fp32 moves a typical logit by {merged32};\n"
        f"bf16 moves it by {plain16} unmerged and by {merged16} merged (medians)"
    )
    return fig


def undone(left, guess):
    """Share of weights that a merge and its undoing leave changed, and how far off they are.

    `left` maps a dtype to (share, |error| / |W|, |update| / |W|); `guess` is of the first share, in
    percent.
    """
    fig, ax = figure(height=3.4)
    percent = [100 * share for share, *_ in left.values()]
    names = [
        f"{name}\nrms error: {error / update if update else 0:.1g}\nof the update's rms"
        for name, (_, error, update) in left.items()
    ]
    bars = ax.bar(names, percent, width=0.45, color=PALETTE[1])
    ax.grid(axis="x", visible=False)
    ax.bar_label(bars, [f"{value:.2g}%" for value in percent], color=INK)
    high = 1.2 * max(*percent, min(guess.value or 0, 100))  # room for the guess beside small bars
    ax.set(
        ylabel="% of the adapted weights\nthat come back changed",
        ylim=(0, high),
        xlim=(-0.5, len(left)),
    )
    name = next(iter(left))
    ax.set_title(f"Merged and undone in {name}, {percent[0]:.2g}% of the weights come back wrong")
    guess.draw(ax)
    return fig


def update_sizes(ranks, rows):
    """Relative update size against rank on log axes; `rows` maps a scaling rule to sizes.

    The rules are alpha / r and alpha / sqrt(r). A band reaches from where independent signs in B A
    would take the first size to where signs that agree would.
    """
    fig, ax = figure(height=3.8)
    times = np.array(ranks) / ranks[0]
    looks = zip(rows.items(), (-1, -0.5), PALETTE[1:], "os", strict=False)
    for (name, sizes), power, colour, marker in looks:
        edges = [sizes[0] * times ** (power + growth) for growth in (0.5, 1)]
        ax.fill_between(ranks, *edges, color=colour, alpha=0.13, lw=0)
        ax.plot(ranks, sizes, color=colour, marker=marker)
        ax.annotate(f"  {name}", (ranks[-1], sizes[-1]), color=colour, va="center")
        for edge, signs, up in zip(edges, ("independent", "agree"), (-1, 1), strict=True):
            how = {"ha": "right", "va": "bottom" if up > 0 else "top", "fontsize": 9}
            how |= {"textcoords": "offset points", "color": colour}
            ax.annotate(f"signs {signs}", (ranks[-2], edge[-2]), (-6, 3 * up), **how)
    ax.set(
        xscale="log", yscale="log", xlabel="rank r", ylabel="|update| / |W|\n(mean over the layers)"
    )
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.xaxis.set_minor_locator(NullLocator())
    _plain_log(ax.yaxis)
    ax.set_xlim(None, ranks[-1] * 3)
    plain, stable = (sizes[-1] / sizes[0] for sizes in rows.values())
    ax.set_title(
        f"From r={ranks[0]} to r={ranks[-1]} the update's size is multiplied\n"
        f"by {plain:.2g} under alpha / r, by {stable:.2g} under alpha / sqrt(r)"
    )
    return fig
