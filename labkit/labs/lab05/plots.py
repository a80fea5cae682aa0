"""Figures of lab 5."""

import numpy as np

from labkit.plots.style import INK, PALETTE, figure, headed

MARKERS = "osD^v"


def counts(tables):
    """Trainable parameters against rank on log axes; `tables` maps a name to a param_table."""
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
    fig, axes = figure(len(panels), width=3.3 * len(panels), height=3.5, sharey=True)
    for ax, (rule, lines) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for (rank, frame), colour, marker in zip(lines.items(), PALETTE, MARKERS, strict=False):
            _with_bars(ax, frame, colour, marker, f"r={rank}")
        ax.set(xscale="log", yscale="log", xlabel="learning rate")
        ax.set_title(rule, fontsize=11)
        ax.legend()
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("held-out loss")
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


def rate_ratio(lines):
    """Loss against learning rate of LoRA and full fine-tuning; `lines` as a panel's by name."""
    fig, ax = figure(height=3.3)
    best = {}
    for (name, frame), colour, marker in zip(lines.items(), PALETTE[1::-1], MARKERS, strict=False):
        _with_bars(ax, frame, colour, marker, None)
        row = frame.loc[frame["mean"].idxmin()]
        best[name] = row["learning_rate"]
        place = (row["learning_rate"], row["mean"])
        text = f"{name}\nbest at {row['learning_rate']:g}"
        ax.annotate(
            text, place, (-20, 14), "data", "offset points", color=colour, va="bottom", ha="center"
        )
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="held-out loss")
    _plain_ticks(ax)
    first, second = best.values()
    ax.set_title(
        f"LoRA's best learning rate on this grid is {first / second:.0f} times full tuning's"
    )
    return fig


def dots(groups, title, xlabel, fmt="{:.2f}"):
    """One row a group: a dot a run, a bar for the mean; `groups` maps a label to a list."""
    fig, ax = figure(height=0.5 * len(groups) + 1.1)
    places = np.arange(len(groups))[::-1]
    for y, (values, colour) in zip(
        places, zip(groups.values(), _cycle(len(groups)), strict=True), strict=True
    ):
        mean = float(np.mean(values))
        ax.barh(y, mean, color=colour, alpha=0.35, height=0.6)
        aside = np.linspace(0.15, -0.15, len(values)) if len(values) > 1 else 0  # dots may coincide
        ax.plot(values, np.full(len(values), y) + aside, "o", color=colour, ms=6, mec="white")
        ax.text(max([mean, *values]), y, "  " + fmt.format(mean), va="center", color=INK)
    ax.set_yticks(places, list(groups))
    ax.set(xlabel=xlabel, xlim=(0, 1.18 * max(max(v) for v in groups.values())))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    return fig


def _cycle(n):
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def overlaps(panels, title):
    """Heatmaps of subspace similarity; `panels` maps a title to a frame, index i and columns j."""
    fig, axes = figure(len(panels), width=3.5 * len(panels), height=3.5)
    for ax, (name, frame) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        image = ax.imshow(frame, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
        ax.set_xticks(range(len(frame.columns)), frame.columns)
        ax.set_yticks(range(len(frame)), frame.index)
        ax.set(xlabel="j, directions of r=64")
        ax.set_title(name, fontsize=11)
        ax.grid(visible=False)
    np.atleast_1d(axes)[0].set_ylabel("i, directions of r=8")
    fig.colorbar(image, ax=axes, label="similarity")
    return headed(fig, title)


def front(frame, kept, title):
    """Loss against trainable parameters, rows of `kept` joined; columns label, trainable, loss."""
    fig, ax = figure(height=3.6)
    on_front = frame["label"].isin(kept["label"])
    for rows, colour, marker in (
        (frame[~on_front], "#999999", "s"),
        (frame[on_front], PALETTE[1], "o"),
    ):
        ax.plot(rows["trainable"], rows["loss"], marker, color=colour, ms=7)
    line = kept.sort_values("trainable")
    ax.plot(line["trainable"], line["loss"], color=PALETTE[1], lw=1.2)
    low = frame["trainable"] < 1.5 * frame["trainable"].min()  # several stand close together
    for _, row in frame.iterrows():
        place = (row["trainable"], row["loss"])
        under = low[row.name] and row["loss"] == frame["loss"][low].min()
        offset = (7, -14) if under else (7, 5)
        ax.annotate(row["label"], place, offset, textcoords="offset points", fontsize=9)
    ax.set(xscale="log", xlabel="trainable parameters (log)", ylabel="held-out loss")
    ax.set_xlim(None, 3 * frame["trainable"].max())
    ax.margins(y=0.15)
    ax.set_title(title)
    return fig


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


def confusion(table, title):
    """A square of counts by group: rows are true, columns are told; a DataFrame."""
    fig, ax = figure(width=6.4, height=4.6)
    values = table.to_numpy()
    shares = values / values.sum(axis=1, keepdims=True)
    ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (y, x), n in np.ndenumerate(values):
        if n:
            ax.text(x, y, n, ha="center", va="center", color="white" if shares[y, x] > 0.5 else INK)
    ax.set_xticks(range(len(table.columns)), table.columns, rotation=35, ha="right")
    ax.set_yticks(range(len(table)), table.index)
    ax.set(xlabel="group of the answer", ylabel="group of the ticket")
    ax.grid(visible=False)
    ax.set_title(title)
    return fig
