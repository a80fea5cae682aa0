"""Figures of lab 5 on what adapters hold, on places, variants and tickets."""

import numpy as np

from labkit.plots import INK, PALETTE, PAPER, figure, headed

ASIDE = {"textcoords": "offset points", "color": INK, "fontsize": 9}
SEEDS = "os^"


def losses(groups, title, marked=()):
    """Held-out losses, one row a group: a mark for each seed, a bar and a number for the mean.

    `groups` maps a label to the losses of seeds 0, 1, 2; the `marked` ones have another colour.
    """
    fig, ax = figure(height=0.5 * len(groups) + 1.4)
    places = np.arange(len(groups))[::-1]
    for y, (name, values) in zip(places, groups.items(), strict=True):
        mean, colour = float(np.mean(values)), PALETTE[name in marked]
        ax.barh(y, mean, color=colour, alpha=0.3, height=0.6)
        rows = zip(values, (0.16, 0, -0.16), SEEDS, strict=False)
        for k, (value, aside, marker) in enumerate(rows):
            label = f"seed {k}" if y == 0 else None
            ax.plot(value, y + aside, marker, color=colour, ms=6, mec="white", label=label)
        ax.text(0, y, f" {mean:.3f}", va="center", color=INK)
    ax.set_yticks(places, list(groups))
    ax.set(xlabel="held-out loss (nats a token); bar and number: mean of the seeds")
    ax.set_xlim(0, 1.14 * max(max(v) for v in groups.values()))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    _seed_legend(fig)
    return fig


def differences(table, base, title, chance):
    """Each method's difference from `base` in percent, a bar as long as `chance` makes one.

    `table` is one of `tables.against`, `chance` that of `tables.chance`; behind a method's name
    stands its mean loss.
    """
    base_loss = table.loc[table["method"] == base, "loss"].item()
    rows = table.assign(chance=chance)[table["method"] != base].iloc[::-1].reset_index(drop=True)
    fig, ax = figure(height=0.4 * len(rows) + 1.5)
    for y, row in rows.iterrows():
        beyond = abs(row["difference_percent"]) > row["chance"]
        style = {"color": PALETTE[int(beyond)], "capsize": 3, "ms": 7, "lw": 1.5}
        ax.errorbar(row["difference_percent"], y, xerr=row["chance"], fmt="o", **style)
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(rows.index, [f"{r.method}  {r.loss:.3f}" for r in rows.itertuples()])
    many = (rows["chance"] / rows["error_percent"]).median()
    ax.set_xlabel(
        f"held-out loss against {base}'s {base_loss:.3f}, seed by seed, %\n(left is better)"
    )
    ax.plot(
        [], [], color=PALETTE[0], lw=1.5, label=f"{many:.1f} standard errors: within, chance may do"
    )
    ax.plot([], [], color=PALETTE[1], lw=1.5, label="beyond chance")
    fig.legend(loc="outside lower center", ncols=2, fontsize=9)
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    return fig


def overlaps(panels, title, marked):
    """Heatmaps of subspace similarity, one below the other over the same j.

    `panels` maps a title to a frame, index i and columns j; in the cells i = j = 1 and i = j =
    `marked` stand their numbers. The scale ends at the largest value of all.
    """
    n, top = len(panels), max(frame.to_numpy().max() for frame in panels.values())
    fig, axes = figure(width=5.6, height=1.2 + 1.9 * n, n_rows=n, sharex=True, squeeze=False)
    for (ax,), (name, frame) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(frame, vmin=0, vmax=top, cmap="cividis", aspect="auto", origin="lower")
        for k in (1, marked):
            value, place = frame.loc[k, k], (frame.columns.get_loc(k), frame.index.get_loc(k))
            how = {"color": INK if value > 0.45 * top else "white", "fontsize": 10, "va": "center"}
            ax.text(*place, f"{value:.2f}", ha="center", **how)
        ax.set_xticks(range(len(frame.columns)), frame.columns)
        ax.set_yticks(range(len(frame)), frame.index)
        ax.set_ylabel("top i of r=8")
        ax.set_title(name, fontsize=11)
        ax.grid(visible=False)
    ax.set_xlabel("top j directions of r=64 (not evenly spaced)")
    fig.colorbar(image, ax=axes, label="similarity φ(i, j): 1 where one span holds the other")
    return headed(fig, title)


def confusion(table, title):
    """A square of counts by group: rows are true, columns are told; a DataFrame."""
    fig, ax = figure(width=6.4, height=4.6)
    values = table.to_numpy()
    shares = values / values.sum(axis=1, keepdims=True)
    ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (y, x), n in np.ndenumerate(values):
        if n:
            ax.text(x, y, n, ha="center", va="center", color="white" if shares[y, x] > 0.6 else INK)
    ax.set_xticks(range(len(table.columns)), table.columns, rotation=35, ha="right")
    ax.set_yticks(range(len(table)), table.index)
    ax.set(xlabel="group of the answer (colour: share of a row)", ylabel="group of the ticket")
    ax.grid(visible=False)
    ax.set_title(title)
    return fig


def capacity(runs, bits_each, guess):
    """Bits held against rank, a line for each number of pairs and a dot for each seed.

    `runs` has the columns n, rank, seed, trainable, bits, right, at each rank's best rate.
    """
    fig, ax = figure(height=4.0)
    needed = {}
    for (n, part), colour in zip(runs.groupby("n"), PALETTE, strict=False):
        mean = part.groupby("rank")[["bits", "right"]].mean()
        ax.plot(mean.index, mean["bits"], color=colour)
        ax.plot(part["rank"], part["bits"], "o", color=colour, ms=5, mec="white")
        ax.axhline(n * bits_each, color=colour, lw=1, ls=":")
        there = f"all of {n:,} pairs: {n * bits_each:,.0f} bits"
        place, how = (runs["rank"].max(), n * bits_each), ASIDE | {"color": colour, "ha": "right"}
        ax.annotate(there, place, (0, 4), **how)
        known = mean.index[mean["right"] >= 0.9]
        needed[n] = f"r={known[0]}" if len(known) else "none of them"
        for rank, (bits, _) in mean[mean["right"] < 0.99].iterrows():
            how["ha"] = "right" if rank == 1 else "left"  # right of r=1 the lines lie
            ax.annotate(f"{bits:,.0f}", (rank, bits), (-8, -3) if rank == 1 else (8, -10), **how)
    ranks = sorted(runs["rank"].unique())
    _most(ax, runs, ranks, 1.15 * bits_each * runs["n"].max())
    ax.set(xscale="log", yscale="log", xlabel="rank r", ylabel="bits held")
    ax.set_xticks(ranks, [str(r) for r in ranks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlim(0.7 * ranks[0], None)
    ticks = [250, 500, 1000, 2000, 4000, 8000]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    ax.set_yticks([], minor=True)
    ax.set_ylim(0.8 * runs["bits"].min(), 1.6 * bits_each * runs["n"].max())
    told = "; ".join(f"{n:,} pairs: {rank}" for n, rank in needed.items())
    ax.set_title(f"The lowest rank that gets 9 of 10 values right:\n{told}")
    if name := guess.draw(ax, "x"):
        name.set(y=0.01, va="bottom")  # at the top it would lie over the lines
    return fig


def _most(ax, runs, ranks, top):
    """A line, up to `top`: what ranks hold if each number holds as much as in the best run."""
    a_number = (runs["bits"] / runs["trainable"]).max()
    line = a_number * (runs["trainable"] / runs["rank"]).iloc[0] * np.array(ranks)
    ax.plot(ranks, np.where(line < top, line, np.nan), color=INK, lw=1)
    place, how = (ranks[1], line[1]), ASIDE | {"ha": "right"}
    ax.annotate(f"{a_number:.1f} bits a number", place, (-4, 8), **how)


def batches(runs, bits_each):
    """Share of the bits held against the learning rate, a line a batch: LoRA, the matrix itself.

    `runs` has the columns rank (0 for the matrix), batch, learning_rate, n, bits, a row a run.
    """
    runs = runs.assign(share=100 * runs["bits"] / (runs["n"] * bits_each))
    ranks = sorted(runs["rank"].unique(), reverse=True)
    fig, axes = figure(len(ranks), width=8.6, height=3.5, sharey=True)
    told = []
    for ax, rank in zip(np.atleast_1d(axes), ranks, strict=True):
        name = f"LoRA, r={rank}" if rank else "the matrix itself"
        by_batch = runs[runs["rank"] == rank].groupby("batch")
        for (batch, part), colour, mark in zip(by_batch, PALETTE, "osD^", strict=False):
            mean = part.groupby("learning_rate")["share"].mean()
            ax.plot(mean.index, mean, color=colour, marker=mark, ms=6, label=f"batch {batch}")
        told.append(f"{name}, {mean.max():.0f}%")
        ax.set(xscale="log", xlabel="learning rate", ylim=(-3, 105))
        rates = sorted(runs.loc[runs["rank"] == rank, "learning_rate"].unique())
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.set_xticks([], minor=True)
        ax.set_title(name, fontsize=11)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("bits held, % of all\n(most points: one seed)")
    first.legend(loc="lower left", fontsize=9)
    fewer = "In larger batches fewer of these rates suffice. At the best rate"
    title = f"{fewer}\nbatches of {batch} hold, of all bits: {'; '.join(told)}"
    return headed(fig, title)


def ladder(table, title, guess):
    """Accuracy in %, one row a method, the best on top: a mark for each seed, a bar for the mean.

    The black bar is a standard error of 288 tickets. `table` has the columns method, seed,
    accuracy, numbers: what the method keeps for the task.
    """
    methods = table.groupby("method")[["accuracy", "numbers"]].mean().sort_values("accuracy")
    fig, ax = figure(height=0.5 * len(methods) + 1.4)
    for y, (name, (mean, _)) in enumerate(methods.iterrows()):
        error = 100 * (mean / 100 * (1 - mean / 100) / 288) ** 0.5
        ax.barh(y, mean, color=PALETTE[0], alpha=0.3, height=0.6)
        if error:  # at 0 right the formula gives 0, which nobody should read as certain
            ax.errorbar(mean, y, xerr=error, color=INK, lw=1, capsize=3)
        part = table[table["method"] == name]
        for seed, value in zip(part["seed"], part["accuracy"], strict=True):
            aside = 0.16 * (1 - seed) if len(part) > 1 else 0
            label = f"seed {seed}" if name == methods.index[-1] else None
            how = {"color": PALETTE[0], "ms": 6, "mec": "white", "label": label}
            ax.plot(value, y + aside, SEEDS[seed], **how)
        end = (max(mean + error, part["accuracy"].max()), y)
        ax.annotate(
            f"{mean:.1f}%", end, (8, 0), va="center", bbox=PAPER, **ASIDE | {"fontsize": 10}
        )
    kept = [f"{n / 1e6:.1f} million numbers" if n else "keeps nothing" for n in methods["numbers"]]
    labels = [f"{name}\n{told}" for name, told in zip(methods.index, kept, strict=True)]
    ax.set_yticks(range(len(methods)), labels, fontsize=9)
    ax.set(xlabel="right of 288 tickets, % (black: standard error of one score)")
    ax.set_xlim(-0.5, 1.2 * table["accuracy"].max())
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    if told := guess.draw(ax, "x"):
        told.set(y=0.01, va="bottom")  # beside the shortest bars
    _seed_legend(fig)
    return fig


def _seed_legend(fig):
    """The marks of the seeds, below the axes."""
    marks = fig.legend(loc="outside lower right", ncols=len(SEEDS), fontsize=9)
    for mark in marks.legend_handles:
        mark.set_color(INK)
