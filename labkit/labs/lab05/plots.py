"""Figures of lab 5 on ranks, alphas and learning rates."""

import numpy as np

from labkit.plots import INK, PALETTE, figure, headed

MARKERS = "osD^v"


def counts(tables):
    """Trainable parameters against rank on log axes; `tables` maps a name to a
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
    ax.set(xscale="log", yscale="log", xlabel="rank r", ylabel="trainable parameters")
    ax.set_xticks(ranks, [str(r) for r in ranks], minor=False)
    ax.set_xlim(None, ranks[-1] * 3)
    ax.set_xticks([], minor=True)
    factor = ", ".join(f"{x:.0f}" for x in sorted(grown))
    ax.set_title(
        f"{ranks[-1] / ranks[0]:.0f} times the rank, {factor} times the parameters: a line"
    )
    return fig


def one_rate(frames, learning_rate):
    """Held-out loss against rank, one line a rule; `frames` maps a rule to a sweep's frame."""
    fig, ax = figure(height=3.2)
    spans = {}
    for (name, frame), colour, marker in zip(frames.items(), PALETTE, MARKERS, strict=False):
        frame = frame.sort_values("rank")
        ax.plot(frame["rank"], frame["loss"], color=colour, marker=marker)
        last = (frame["rank"].iloc[-1], frame["loss"].iloc[-1])
        ax.annotate(f"  {name}", last, color=colour, va="center")
        spans[name] = frame["loss"].max() / frame["loss"].min()
    ranks = sorted(next(iter(frames.values()))["rank"])
    ax.set(xscale="log", xlabel="rank r", ylabel="held-out loss", ylim=(0, None))
    ax.set_xticks(ranks, [str(r) for r in ranks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlim(None, ranks[-1] * 3)
    text = "; ".join(f"{name}: x{span:.2f}" for name, span in spans.items())
    ax.set_title(f"Learning rate {learning_rate:g}, worst loss over best:\n{text}")
    return fig


def rate_curves(panels, title):
    """Held-out loss against learning rate, one panel a rule, one line a rank.

    `panels` maps a rule to {rank: frame with learning_rate, mean, low, high}. Error bars span the
    seeds, from the lowest to the highest.
    """
    fig, axes = figure(len(panels), width=2.6 * len(panels), height=3.5, sharey=True)
    for ax, (rule, lines) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for (rank, frame), colour, marker in zip(lines.items(), PALETTE, MARKERS, strict=False):
            _with_bars(ax, frame, colour, marker, f"r={rank}")
        ax.set(xscale="log", yscale="log", xlabel="learning rate")
        ax.set_title(rule, fontsize=11)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("held-out loss")
    first.legend()
    _plain_ticks(first)
    return headed(fig, title)


def _with_bars(ax, frame, colour, marker, label):
    spread = np.array([frame["mean"] - frame["low"], frame["high"] - frame["mean"]])
    ax.errorbar(
        frame["learning_rate"],
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
    ticks = [0.25, 0.3, 0.4, 0.5, 0.7, 1, 2, 4]
    low, high = ax.get_ylim()
    ticks = [t for t in ticks if low <= t <= high]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)


def first_steps(frame, guess):
    """The useful part and the size of a first step against rank, as multiples of the lowest rank's.

    `frame` has the columns rule, rank, useful, size, a row a rank of each rule.
    """
    fig, axes = figure(2, width=8.4, height=3.4, sharey=True)
    grown = {}
    for ax, part in zip(axes, ("useful", "size"), strict=True):
        for (rule, rows), colour, marker in zip(
            frame.groupby("rule", sort=False), PALETTE, MARKERS, strict=False
        ):
            values = rows[part].to_numpy() / rows[part].iloc[0]
            ax.plot(rows["rank"], values, color=colour, marker=marker, ms=5)
            side = "bottom" if values[-1] < 1 else "center"  # above the axis
            ax.annotate(f"  {rule}", (rows["rank"].iloc[-1], values[-1]), color=colour, va=side)
            grown[part, rule] = values[-1]
        _rank_axis(ax, rows["rank"])
        ax.set_ylim(0, None)
    axes[0].set_title("the useful part", fontsize=11)
    axes[1].set_title("the size", fontsize=11)
    low, high = rows["rank"].iloc[0], rows["rank"].iloc[-1]
    axes[0].set_ylabel(f"times that of r={low}")
    text = "; ".join(f"{rule} x{grown['useful', rule]:.1f}" for rule in frame["rule"].unique())
    guess.draw(axes[0])
    return headed(fig, f"Useful part of a first step, r={low} to r={high}: {text}")


def _rank_axis(ax, ranks):
    ax.set(xscale="log", xlabel="rank r")
    ax.set_xticks(list(ranks), [str(r) for r in ranks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlim(None, 4 * max(ranks))


def collapse(lines, full):
    """Loss against the learning rate, and against rate times alpha; `lines` maps (alpha, rank) to
    a frame with learning_rate, mean, low, high; `full` is such a frame of full fine-tuning.
    """
    fig, axes = figure(2, width=9.0, height=3.7, sharey=True)
    alphas = sorted({alpha for alpha, _ in lines})
    colours = dict(zip(alphas, PALETTE, strict=False))
    for (alpha, rank), frame in lines.items():
        marker = {4: "o", 16: "s", 64: "D"}.get(rank, "v")
        label = f"alpha {alpha}, r={rank}"
        for ax, factor in zip(axes, (1, alpha), strict=True):
            rate = frame["learning_rate"] * factor
            ax.plot(rate, frame["mean"], color=colours[alpha], marker=marker, ms=5, label=label)
    axes[0].plot(full["learning_rate"], full["mean"], color=INK, ls=":", marker="^", label="full")
    axes[0].legend(fontsize=8)
    for ax, name in zip(axes, ("learning rate", "learning rate x alpha"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel=name)
    axes[0].set_ylabel("held-out loss")
    _plain_ticks(axes[0])
    apart, together = (_spans(lines, by_alpha) for by_alpha in (False, True))
    title = f"Best rates span a factor of {apart:.0f}; rate x alpha a factor of {together:.1f}"
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
    for (rank, rows), colour, marker in zip(best.groupby("rank"), PALETTE, MARKERS, strict=False):
        aside = {4: 0.95, 16: 1.0, 64: 1.05}.get(rank, 1.0)
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
    guess.draw(ax)
    return fig


def _power_laws(ax, alphas, best):
    """Two lines through the best rates: alpha to the power -1, and to a fitted one."""
    x, y = np.log(best["alpha"]), np.log(best["learning_rate"])
    product, (slope, start) = np.exp((x + y).mean()), np.polyfit(x, y, 1)
    fitted = np.exp(start) * alphas**slope
    ax.plot(alphas, product / alphas, color=INK, lw=1, label=f"rate x alpha = {product:.2g}")
    ax.plot(alphas, fitted, color=INK, lw=1, ls="--", label=f"fitted: alpha^{slope:.2f}")


def overfitting(history, title):
    """Training and held-out loss against step, one colour a rank; columns as in overfit_gap."""
    fig, ax = figure(height=3.4)
    top = history.loc[history["step"] == history["step"].max(), "held_out_loss"].max()
    for (rank, part), colour, marker in zip(
        history.groupby("rank"), PALETTE, MARKERS, strict=False
    ):
        part = part.sort_values("step")
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
    ax.set_title(title)
    return fig
