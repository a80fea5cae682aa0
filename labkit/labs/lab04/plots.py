"""Figures of lab 4."""

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from labkit.plots import INK, OVER_GUESS, PALETTE, PAPER, figure, smooth, traced, weight_for

BASES = {"plain": PALETTE[0], "NF4": PALETTE[1]}  # and LoRA, QLoRA
FORMATS = [BASES["NF4"], PALETTE[0], *PALETTE[2:]]  # NF4 comes first


def spoiled(clean, spoilt, outlier):
    """Histograms of the same numbers after 4-bit rounding, without and with one outlier."""
    fig, axes = figure(2, width=8.4, height=2.8, sharey=True)
    names = {"without an outlier": clean, f"beside one outlier of {outlier:g}": spoilt}
    for ax, (name, values), colour in zip(axes, names.items(), PALETTE, strict=False):
        levels, counts = np.unique(values.numpy().round(4), return_counts=True)
        share = counts / counts.sum()
        ax.bar(levels, share, width=0.3, color=colour)
        ax.set(xlim=(-6.5, 6.5), xlabel="value after rounding")
        zeros = share[np.abs(levels).argmin()]
        ax.set_title(f"{name}: {zeros:.1%} are 0,\n{len(levels)} values in use".capitalize())
    axes[0].set_ylabel("share of the numbers")
    axes[0].set_ylim(0, 1.02)
    return fig


def codebooks(books):
    """The values of each codebook as ticks under the normal density; `books` name -> tensor."""
    fig, ax = figure(height=3.4)
    x = np.linspace(-1, 1, 400)
    density = np.exp(-((x * 2.6) ** 2) / 2)  # a block of 64 normal numbers ends near 2.6 sigma
    ax.fill_between(x, density, color=INK, alpha=0.12)
    ax.text(0.5, 0.7, "normal weights of a\nblock, over its absmax", color=INK)
    near = {name: int((values.abs() < 0.6).sum()) for name, values in books.items()}
    for row, ((name, values), colour) in enumerate(zip(books.items(), FORMATS, strict=False)):
        y = -0.22 - 0.27 * row
        ax.vlines(values.numpy(), y - 0.09, y + 0.09, color=colour, lw=1.6)
        ax.text(-1.06, y, name, ha="right", va="center", color=colour)
        alike = int((values.abs() < 0.01).sum())
        told = f"{near[name]}" + (f" ({alike} near 0)" if alike > 1 else "")
        ax.text(1.06, y, told, va="center", color=colour)
    ax.text(1.06, 0.02, "values\nbetween the\ndotted lines", va="bottom", fontsize=9)
    ax.vlines((-0.6, 0.6), -0.4 - 0.27 * row, 0.3, color=INK, ls=":", lw=1.4)
    ax.set(
        yticks=[],
        xlabel="value, over the absmax",
        xlim=(-1.03, 1.03),
        ylim=(-0.4 - 0.27 * row, 1.05),
    )
    ax.spines["left"].set_visible(False)
    most = max(near, key=near.get)
    told = f"{near[most]} of its {len(books[most])} lie between -0.6 and 0.6"
    ax.set_title(f"{most} has the most values where most weights are:\n{told}")
    return fig


def errors(frame):
    """Relative error of each format (column) in each case (row), a line a format."""
    fig, ax = figure(height=3.4)
    y = np.arange(len(frame))[::-1]
    for name, colour, marker in zip(frame.columns, FORMATS, "osD^", strict=False):
        ax.plot(frame[name], y, color=colour, marker=marker, ms=8, ls="", label=name)
    ax.set_yticks(y, frame.index)
    ax.set(xlabel="relative error: root mean square of the error / of the numbers")
    ax.set_xlim(0, 1.05 * frame.to_numpy().max())
    ax.set_ylim(-0.5, len(frame) - 0.5)
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.98))
    best = frame.idxmin(axis=1)
    wins = int((best == frame.columns[0]).sum())
    ax.set_title(f"{frame.columns[0]} has the smallest error in {wins} of {len(frame)} cases")
    return fig


def code_use(shares, misses, guess):
    """How often each code is used, in percent; `shares` maps a codebook to (16,) numbers.

    `misses` are their relative errors; `guess` is of the first one's most used code.
    """
    fig, ax = figure(height=3.2)
    places = np.arange(16)
    for k, (name, share) in enumerate(shares.items()):
        label = f"{name}, error {misses[name]:.4f}"
        ax.bar(places + 0.4 * k - 0.2, share.numpy(), 0.38, color=FORMATS[k], label=label)
    ax.axhline(100 / 16, color=INK, lw=1)
    ax.text(-1.3, 100 / 16 + 0.1, "all alike", ha="left", va="bottom", color=INK, fontsize=9)
    ax.set_xlim(-1.4, 15.8)
    ax.set_xticks(places)
    top = max(share.max().item() for share in shares.values())
    ax.set(xlabel="code (0: the lowest value, 15: the highest)", ylim=(0, 1.3 * top))
    ax.set_ylabel("% of the numbers")
    ax.legend(loc="upper left", ncols=2, **OVER_GUESS)
    first = next(iter(shares))
    low, high = shares[first].min().item(), shares[first].max().item()
    ax.set_title(f"{first}'s codes serve {low:.1f}% to {high:.1f}% of normal numbers each")
    guess.draw(ax)
    return fig


def perplexities(rows, guess):
    """What each format adds to the loss; `guess` is of NF4's.

    `rows` maps a name to (nats a token, standard error, perplexity, bits, relative error).
    """
    fig, ax = figure(height=4)
    names = sorted(rows, key=lambda name: -rows[name][0])
    extra, spread, ppl, bits, miss = (np.array([rows[n][i] for n in names]) for i in range(5))
    colours = [BASES["NF4"] if name == "NF4" else PALETTE[5] for name in names]
    labels = [f"{n}, {b:g} bits" for n, b in zip(names, bits, strict=True)]
    ax.barh(labels, extra, xerr=spread, color=colours, height=0.6, ecolor=INK, capsize=3)
    told = [f"perplexity {p:.0f}, relative error {m:.3f}" for p, m in zip(ppl, miss, strict=True)]
    _beside(ax, told)
    ax.set(
        xlabel="added loss, nats a token (± standard error)", xlim=(0, 1.1 * (extra + spread).max())
    )
    told = {name: f"{gap:.2f} ± {error:.2f}" for name, (gap, error, *_) in rows.items()}
    ends = [f"{name} {told[name]}" for name in (names[-1], names[0]) if name != "NF4"]
    ax.set_title(f"NF4 adds {told['NF4']} nats a token to the loss,\n{', '.join(ends)}")
    guess.draw(ax, axis="x")
    return fig


def _beside(ax, texts):
    """Write a text to the right of each bar, outside the axes, where no guess can cross it."""
    for y, text in enumerate(texts):
        place = {"transform": ax.get_yaxis_transform(), "va": "center"}
        ax.text(1.03, y, text, color=INK, fontsize=9.5, **place)
    ax.grid(visible=False, axis="y")


def block_sizes(rows):
    """Error against bits a parameter; `rows` scales' kind -> list of (block, bits, error)."""
    fig, ax = figure(height=3.2)
    for (name, points), colour, marker in zip(rows.items(), PALETTE, "os", strict=False):
        _, bits, error = zip(*points, strict=True)
        ax.plot(bits, error, color=colour, marker=marker)
        shift, side = ((5, 4), "left") if marker == "o" else ((-7, -4), "right")
        for block, x, y in points:
            how = {"textcoords": "offset points", "ha": side, "fontsize": 9, "color": colour}
            ax.annotate(str(block), (x, y), shift, **how)
        ax.annotate(f"   {name}", (bits[0], error[0]), color=colour, va="top")
    ax.set(xlabel="bits a parameter (at each point: weights in a block)", ylabel="relative error")
    ax.set_xlim(3.9, 1.06 * max(bits for points in rows.values() for _, bits, _ in points))
    ax.margins(y=0.15)
    at_64 = [next(point for point in points if point[0] == 64) for points in rows.values()]
    pairs = zip(rows, at_64, strict=True)
    told = [f"with {name}: {bits:.3f} bits, error {error:.4f}" for name, (_, bits, error) in pairs]
    ax.set_title(f"Blocks of 64 {told[0]};\n{told[1]}")
    return fig


def losses(curves):
    """Training loss against step; `curves` name -> object with `losses` and `seconds`."""
    fig, ax = figure(height=3)
    colours, ends = BASES.values(), []
    for (name, curve), colour, style in zip(curves.items(), colours, ("-", "--"), strict=False):
        weight = weight_for(len(curve.losses))  # that of the live curves
        traced(ax, curve.losses, colour, weight, ls=style, label=name)
        ends.append(f"{name} {smooth(curve.losses, weight)[-1]:.2f}")
    ax.set(xlim=(1, len(curve.losses)), yscale="log", ylabel="training loss, nats a token")
    ax.set_xlabel("step (faint: each step; bold: running mean)")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    ax.set_title(f"Training loss at the end, running mean: {', '.join(ends)}")
    return fig


def crossed(start, end, costs, guess):
    """Held-out loss of each adapter on each base, and of none.

    `start` maps a base to a loss, `end` a pair (trained on, evaluated on) to one; `costs` maps what
    an adapter was trained on to what NF4 adds to its loss and the error of that; `guess` is of
    the adapter trained on NF4 and evaluated on the plain base.
    """
    fig, ax = figure(height=3.4)
    trained = list(dict.fromkeys(pair[0] for pair in end))
    places = np.arange(len(trained))
    for k, base in enumerate(start):
        heights = [end[name, base] for name in trained]
        label = f"evaluated on {base} (before training: {start[base]:.2f})"
        bars = ax.bar(places + 0.36 * k - 0.18, heights, 0.34, color=BASES[base], label=label)
        told = [f"{height:.3f}" for height in heights]
        ax.bar_label(bars, told, color=INK, padding=3, bbox=PAPER)  # a guess may cross it
    ax.set_xticks(places, [f"trained on {name}" for name in trained])
    ax.set(ylabel="held-out loss, nats a token", ylim=(0, 1.45 * max(end.values())))
    ax.set_xlim(-0.6, len(trained) - 0.4)
    ax.legend(loc="upper left", **OVER_GUESS)
    moved = [f"{costs[n][0]:+.2f} ± {costs[n][1]:.2f} if trained on {n}" for n in trained]
    ax.set_title(f"From the plain base to NF4 an adapter's loss changes by\n{', '.join(moved)}")
    guess.draw(ax)
    return fig


def on_each_base(losses, title):
    """Held-out losses on the plain base and on NF4, a line a seed.

    `losses` maps the base that an adapter was trained on to a pair: a loss a seed on either base.
    """
    fig, ax = figure(width=7.0, height=3.6)
    for trained, pair in losses.items():
        colour = BASES[trained]
        ax.plot([0, 1], np.array(pair), "o-", color=colour, alpha=0.65, ms=8, lw=1.5)
        for x, side, numbers in zip((0, 1), ("right", "left"), pair, strict=True):
            told = f"trained on {trained}:\nmean {np.mean(numbers):.3f}"
            beside = {"xytext": (20 * x - 10, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(told, (x, np.mean(numbers)), color=colour, ha=side, **beside)
    ax.set_xticks([0, 1], [f"evaluated on {base}" for base in losses])
    ax.set(xlim=(-0.6, 1.6), ylabel="held-out loss, nats a token")
    ax.set_title(title)
    return fig


def by_seed(rows, title):
    """Held-out losses, a column a row of `rows`, the dots of a seed joined by a line.

    `rows` maps a label to the base of the evaluation, which gives the colour, and a Series: a loss
    a seed.
    """
    fig, ax = figure(height=3.8)
    places = np.arange(len(rows))
    seeds = next(iter(rows.values()))[1].index
    apart = np.linspace(-0.05, 0.05, len(seeds))  # two seeds may have the same loss
    for seed, shift, marker in zip(seeds, apart, "os^", strict=True):
        losses = [numbers[seed] for _, numbers in rows.values()]
        ax.plot(places + shift, losses, color=INK, alpha=0.35, lw=1.2, zorder=1)
        for x, (base, _), y in zip(places + shift, rows.values(), losses, strict=True):
            ax.plot(x, y, marker, color=BASES[base], ms=8)
        beside = {"xytext": (12, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"seed {seed}", (places[-1] + apart[-1], losses[-1]), fontsize=9.5, **beside)
    means = [np.mean(numbers) for _, numbers in rows.values()]
    ax.hlines(means, places - 0.16, places + 0.16, color=INK, lw=2)
    ax.set_xticks(places, [f"{n}\nmean {m:.3f}" for n, m in zip(rows, means, strict=True)])
    ax.set(xlim=(-0.4, len(rows) - 0.4), ylabel="held-out loss, nats a token\n(bar: mean)")
    ax.grid(visible=False, axis="x")
    ax.set_title(title)
    return fig


def taken_back(rows, guess):
    """Share of NF4's added loss that a start takes back, in percent; `guess` is of LoftQ, r = 8.

    `rows` maps a start to (percent, standard error, relative error of the weights).
    """
    fig, ax = figure(height=2.9)
    names = list(rows)[::-1]
    share, spread, miss = (np.array([rows[name][i] for name in names]) for i in range(3))
    colours = [PALETTE[2] if name.startswith("LoftQ") else PALETTE[5] for name in names]
    ax.barh(names, share, xerr=spread, color=colours, height=0.6, ecolor=INK, capsize=3)
    ax.axvline(0, color=INK, lw=1)
    low, high = min(0, (share - spread).min()), max(10, (share + spread).max())
    _beside(ax, [f"relative error {far:.4f}" for far in miss])
    ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set(xlabel="% of the added loss taken back before training (± standard error)")
    loftq = {n.removeprefix("LoftQ, "): rows[n] for n in rows if n.startswith("LoftQ")}
    told = [f"{value:.0f} ± {error:.0f}% at {r}" for r, (value, error, _) in loftq.items()]
    ax.set_title(f"Of the loss that NF4 adds LoftQ takes back\n{', '.join(told)}")
    guess.draw(ax, axis="x")
    return fig


def step_times(seconds):
    """QLoRA's seconds minus LoRA's, a dot a batch; `seconds` size -> frame of LoRA, QLoRA."""
    fig, ax = figure(height=2.6)
    told, labels = [], []
    for y, (size, frame) in enumerate(seconds.items()):
        gaps = (frame["QLoRA"] - frame["LoRA"]).to_numpy()
        middle, whole = np.median(gaps), frame["LoRA"].median()
        ax.plot(gaps, np.full(len(gaps), y), "o", color=BASES["NF4"], alpha=0.6, ms=8)
        ax.plot(middle, y, "|", color=INK, ms=24, mew=2)
        labels.append(f"{size} command{'s' * (size > 1)} a step\n(LoRA: {whole:.2f} s)")
        told.append(f"{middle:+.2f} s ({middle / whole:+.0%}) with {size}")
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(ylim=(-0.6, len(labels) - 0.4), xlim=(min(0, ax.get_xlim()[0]), None))
    ax.set_xlabel("a step of QLoRA minus one of LoRA, seconds (dot: a batch, bar: median)")
    ax.grid(axis="y", visible=False)
    ax.set_title(f"A step of QLoRA against one of LoRA, median:\n{', '.join(told)}")
    return fig
