"""Figures of lab 5 on ranks, alphas and learning rates."""

import matplotlib.pyplot as plt
import numpy as np

from labkit.plots import INK, PALETTE, figure, headed

MARKERS = "osD^v"
RANKS = {4: (PALETTE[0], "o"), 16: (PALETTE[1], "s"), 64: (PALETTE[2], "D")}  # in every figure
RULES = {"alpha = 32": (PALETTE[3], "o"), "alpha = 2r": (PALETTE[4], "s")}
LEFT = {"x": 0.02, "ha": "left"}  # where a guess's name stands instead of at the right
LOSS = "held-out loss (nats a token)"
UNBROKEN = (0.25, 1.2)  # losses that are shown: training that broke has some of up to 7


def counts(tables, model):
    """Trainable parameters of `model` against rank, log axes; `tables` maps a name to a
    `param_table`.
    """
    fig, ax = figure(height=3.4)
    for (name, table), colour, marker in zip(tables.items(), PALETTE, MARKERS, strict=False):
        ranks, numbers = table["rank"].to_numpy(), table["trainable"].to_numpy()
        ax.plot(ranks, numbers, color=colour, marker=marker, ms=5)
        ax.annotate(f"  {name}", (ranks[-1], numbers[-1]), color=colour, va="center")
    grown = {
        numbers[-1] / numbers[0] for numbers in (t["trainable"].array for t in tables.values())
    }
    ax.set(xscale="log", yscale="log", xlabel="rank r", ylabel="trainable parameters, millions")
    ax.set_xticks(ranks, [str(r) for r in ranks], minor=False)
    ax.set_xlim(None, ranks[-1] * 2)
    ax.set_xticks([], minor=True)
    millions = [2, 5, 10, 20, 50, 100, 200]
    ax.set_yticks([n * 1e6 for n in millions], [str(n) for n in millions])
    ax.set_yticks([], minor=True)
    factor = ", ".join(f"{x:.0f}" for x in sorted(grown))
    more = f"{ranks[-1] / ranks[0]:.0f} times the rank"
    ax.set_title(f"{model}: {more} trains {factor} times the parameters")
    return fig


def one_rate(frames, learning_rate):
    """Held-out loss against rank, one line a rule; `frames` maps a rule to a sweep's frame."""
    fig, ax = figure(height=3.2)
    spans = {}
    for name, frame in frames.items():
        (colour, marker), frame = RULES[name], frame.sort_values("rank")
        ax.plot(frame["rank"], frame["loss"], color=colour, marker=marker)
        last = (frame["rank"].iloc[-1], frame["loss"].iloc[-1])
        ax.annotate(f"  {name}", last, color=colour, va="center")
        spans[name] = frame["loss"].max() / frame["loss"].min()
    ranks = sorted(next(iter(frames.values()))["rank"])
    ax.set(xscale="log", xlabel="rank r", ylabel=LOSS, ylim=(0, None))
    ax.set_xticks(ranks, [str(r) for r in ranks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlim(None, ranks[-1] * 2.5)
    text = ", ".join(f"{span:.2f} with {name}" for name, span in spans.items())
    what = f"At learning rate {learning_rate:g} the ranks' losses differ"
    ax.set_title(f"{what}\nby a factor of {text}")
    return fig


def rate_curves(panels, title):
    """Held-out loss against learning rate, one panel a rule, one line a rank.

    `panels` maps a rule to {rank: frame with learning_rate, mean, low, high}. Error bars span the
    seeds, from the lowest to the highest.
    """
    fig, axes = figure(len(panels), width=3.1 * len(panels), height=3.7, sharex=True, sharey=True)
    for ax, (rule, lines) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        best = {}
        for aside, (rank, frame) in zip((0.93, 1, 1.07), lines.items(), strict=False):
            _with_bars(ax, frame, aside, *RANKS[rank], f"r={rank}")
            best[f"r={rank}"] = f"{frame.loc[frame['mean'].idxmin(), 'learning_rate']:g}"
        ax.set(xscale="log", yscale="log", xlabel="learning rate")
        told = ", ".join(f"{rank}: {rate}" for rank, rate in best.items())
        if len(set(best.values())) == 1:
            told = f"all ranks: {best[f'r={rank}']}"
        ax.set_title(f"{rule}; best rate\n{told}", fontsize=9)
        _plain_rates(ax)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel(LOSS)
    first.legend(loc="upper left")
    _plain_ticks(first)
    return headed(fig, title)


def _with_bars(ax, frame, aside, colour, marker, label):
    """Means with bars from lowest to highest, a little `aside` so that no bar hides another."""
    spread = np.array([frame["mean"] - frame["low"], frame["high"] - frame["mean"]])
    ax.errorbar(
        frame["learning_rate"] * aside,
        frame["mean"],
        spread.clip(0),
        color=colour,
        marker=marker,
        ms=5,
        capsize=3,
        lw=1.5,
        label=label,
    )


def _plain_ticks(ax):
    ticks = [0.25, 0.3, 0.4, 0.5, 0.7, 1]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(*UNBROKEN)


def _plain_rates(ax):
    """Learning rates in half decades as plain numbers."""
    low, high = ax.get_xlim()
    rates = [r for r in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1) if low <= r <= high]
    ax.set_xticks(rates, [f"{r:g}" for r in rates], fontsize=8.5)
    ax.set_xticks([], minor=True)


def first_steps(frame, guess):
    """The useful part and the size of a first step against rank, as multiples of the lowest rank's.

    `frame` has the columns rule, rank, useful, size, a row a rank of each rule.
    """
    fig, axes = figure(2, width=8.4, height=3.4, sharey=True)
    grown = {}
    for ax, part in zip(axes, ("useful", "size"), strict=True):
        for rule, rows in frame.groupby("rule", sort=False):
            colour, marker = RULES[rule]
            values = rows[part].to_numpy() / rows[part].iloc[0]
            ax.plot(rows["rank"], values, color=colour, marker=marker, ms=5, label=rule)
            grown[part, rule] = values[-1]
        _rank_axis(ax, rows["rank"])
        ax.set_yscale("log")
    factors = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32]
    low, high = rows["rank"].iloc[0], rows["rank"].iloc[-1]
    axes[0].set_yticks(factors, [f"x{x:g}" for x in factors])
    axes[0].set_yticks([], minor=True)
    axes[0].set(ylabel=f"multiple of the value at r={low}", ylim=(0.18, 24))
    axes[0].set_title("useful part", fontsize=11)
    axes[1].set_title("size: the norm of the step", fontsize=11)
    axes[0].legend(loc="lower left")
    text = ", ".join(_growth(grown["useful", rule], rule) for rule in frame["rule"].unique())
    name = guess.draw(axes[0])
    if name and guess.value > 2:
        name.set(**LEFT)  # on the right alpha = 2r's line ends at 16, a likely guess
    return headed(fig, f"From r={low} to r={high} the useful part of a first step\n{text}")


def _growth(factor, rule):
    """What becomes of a value that is multiplied by `factor`, in words."""
    same = abs(factor - 1) < 0.1
    return f"{'stays the same' if same else f'is multiplied by {factor:.0f}'} with {rule}"


def _rank_axis(ax, ranks):
    ax.set(xscale="log", xlabel="rank r")
    ax.set_xticks(list(ranks), [str(r) for r in ranks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlim(None, 1.3 * max(ranks))


def collapse(lines, full):
    """Loss against the learning rate, and against rate times alpha; `lines` maps (alpha, rank) to
    a frame with learning_rate, mean, low, high; `full` is such a frame of full fine-tuning.
    """
    fig, axes = figure(2, width=9.0, height=3.7, sharey=True)
    alphas = sorted({alpha for alpha, _ in lines})
    colours = dict(zip(alphas, plt.cm.viridis(np.linspace(0, 0.88, len(alphas))), strict=True))
    for (alpha, rank), frame in lines.items():
        marker = RANKS[rank][1]
        label = f"alpha {alpha}, r={rank}"
        for ax, factor in zip(axes, (1, alpha), strict=True):
            rate = frame["learning_rate"] * factor
            ax.plot(rate, frame["mean"], color=colours[alpha], marker=marker, ms=5, label=label)
    name = "full fine-tuning"
    axes[0].plot(full["learning_rate"], full["mean"], color=INK, ls=":", marker="^", label=name)
    axes[0].legend(fontsize=8.5, labelspacing=0.25)  # above the lines
    for ax, name in zip(axes, ("learning rate", "learning rate x alpha"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel=name)
    axes[0].set_ylabel(LOSS)
    _plain_ticks(axes[0])
    _plain_rates(axes[0])
    products = [0.01, 0.03, 0.1, 0.3, 1]
    axes[1].set_xticks(products, [f"{x:g}" for x in products], fontsize=8.5)
    axes[1].set_xticks([], minor=True)
    apart, together = (_spans(lines, by_alpha) for by_alpha in (False, True))
    title = f"The best rates span a factor of {apart:.0f}, rate x alpha only {together:.0f}"
    return headed(fig, title)


def _spans(lines, by_alpha):
    """The largest over the smallest best rate, times alpha or not."""
    best = [
        frame.loc[frame["mean"].idxmin(), "learning_rate"] * (alpha if by_alpha else 1)
        for (alpha, _), frame in lines.items()
    ]
    return max(best) / min(best)


def best_rates(best, full, guess):
    """The best learning rate against alpha, both log; bars reach half a step of the grid.

    `best` has the columns alpha, rank, learning_rate; `full` is full fine-tuning's best rate.
    """
    fig, ax = figure(height=3.7)
    step = 10**0.25
    for aside, (rank, rows) in zip((0.95, 1, 1.05), best.groupby("rank"), strict=False):
        colour, marker = RANKS[rank]
        rate = rows["learning_rate"].to_numpy()
        bars = [rate - rate / step, rate * step - rate]
        ax.errorbar(
            rows["alpha"] * aside,
            rate,
            bars,
            fmt=marker,
            color=colour,
            capsize=3,
            label=f"r={rank}",
        )
    alphas = np.array(sorted(best["alpha"].unique()), dtype=float)
    _power_laws(ax, alphas, best)
    ax.axhline(full, color="#999999", lw=1.2, ls=":", label=f"full fine-tuning: {full:g}")
    ax.axhspan(full / step, full * step, color="#999999", alpha=0.15)
    ax.set(xscale="log", yscale="log", xlabel="alpha", ylabel="best learning rate")
    ax.set_xticks(alphas, [f"{a:g}" for a in alphas], minor=False)
    ax.set_xticks([], minor=True)
    ticks = [t for t in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2) if t >= full / 2]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ends = [
        best.loc[best["alpha"] == alpha, "learning_rate"].mean() / full
        for alpha in (alphas[0], alphas[-1])
    ]
    products = best["alpha"] * best["learning_rate"]
    ax.set_title(
        f"LoRA's best rate is {ends[0]:.0f} times full fine-tuning's at alpha {alphas[0]:g}, "
        f"{ends[1]:.0f} times\nat alpha {alphas[-1]:g}; rate x alpha stays within a factor of "
        f"{products.max() / products.min():.0f}"
    )
    name = guess.draw(ax)
    if name and guess.value < 0.002:
        name.set(**LEFT)  # there the bars are high up
    return fig


def _power_laws(ax, alphas, best):
    """Two lines through the best rates: alpha to the power -1, and to a fitted one."""
    x, y = np.log(best["alpha"]), np.log(best["learning_rate"])
    product, (slope, start) = np.exp((x + y).mean()), np.polyfit(x, y, 1)
    fitted = np.exp(start) * alphas**slope
    ax.plot(alphas, product / alphas, color=INK, lw=1, label=f"rate x alpha = {product:.2g}")
    ax.plot(alphas, fitted, color=INK, lw=1, ls="--", label=f"fitted: rate ~ alpha^{slope:.2f}")


def overfitting(history, title):
    """Training and held-out loss against step, one colour a rank; columns as in overfit_gap."""
    fig, ax = figure(height=3.4)
    top = history.loc[history["step"] == history["step"].max(), "held_out_loss"].max()
    for rank, part in history.groupby("rank"):
        (colour, marker), part = RANKS[rank], part.sort_values("step")
        ax.plot(part["step"], part["held_out_loss"], color=colour, marker=marker, ms=4)
        ax.plot(part["step"], part["train_loss"], color=colour, ls=":", marker=marker, ms=4)
        last = part.iloc[-1]
        side = "bottom" if last["held_out_loss"] == top else "top"
        text = f"  r={rank}, held out"
        ax.annotate(text, (last["step"], last["held_out_loss"]), color=colour, va=side)
    ax.annotate("  training (dotted)", (last["step"], last["train_loss"]), color=INK, va="center")
    ax.set(xlabel="step", ylabel="loss (nats a token)")
    highest = history[["held_out_loss", "train_loss"]].to_numpy().max()
    ax.set_ylim(-0.04 * highest, 1.12 * highest)
    ax.set_xlim(None, 1.28 * history["step"].max())
    ax.set_xticks(sorted(history["step"].unique()))
    ax.set_title(title)
    return fig
