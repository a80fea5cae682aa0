"""Figures of lab 8."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from labkit.plots import INK, PALETTE, figure, headed, smooth, traced

PERCENT = "constraints followed, %"


def gained(values, title):
    """What chosen and rejected answers gained since the start, nats, against the step."""
    fig, ax = figure(height=3.2)
    for colour, name in zip((PALETTE[0], PALETTE[1]), ("chosen", "rejected"), strict=True):
        told = values[name]
        traced(ax, told, colour)
        ax.annotate(f" {name}", (len(told), smooth(told)[-1]), color=colour, va="center")
    ax.axhline(0, color=INK, lw=0.8)
    ax.set(xlabel="step", ylabel="log-probability gained, nats", xlim=(1, 1.18 * len(told)))
    ax.set_title(title)
    return fig


def shares(groups, title, guess=None):
    """A row a name: percent of constraints followed, with two standard errors; `{name: (n,)}`."""
    fig, ax = figure(height=0.55 * len(groups) + 1.2)
    places = np.arange(len(groups))[::-1]
    for y, colour, hits in zip(places, PALETTE, groups.values(), strict=False):
        hits = 100 * np.asarray(hits)
        mean, error = hits.mean(), hits.std(ddof=1) / len(hits) ** 0.5
        ax.barh(y, mean, xerr=2 * error, color=colour, alpha=0.6, height=0.6, ecolor=INK)
        ax.text(mean + 2 * error, y, f"  {mean:.0f}%", va="center", color=INK)
    ax.set_yticks(places, list(groups))
    ax.set(xlabel=f"{PERCENT}; bars of two standard errors", xlim=(0, 100))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    if guess:
        guess.draw(ax, "x")
    return fig


def losses(runs, title):
    """Loss against step of several runs, `{name: losses}`, with the loss of no learning."""
    fig, ax = figure(height=3.0)
    for colour, (name, told) in zip(PALETTE, runs.items(), strict=False):
        traced(ax, told, colour, 0.6, label=name)
    ax.legend(fontsize=9, loc="lower left")
    ax.axhline(np.log(2), color=INK, lw=0.8, ls=":")
    longest = max(map(len, runs.values()))
    ax.set(xlabel="step", ylabel="DPO loss, nats", xlim=(1, longest), ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title)
    return fig


def loss_title(runs):
    """A line a run: the mean loss of its last three steps, and of the first run's at that step."""
    (first, longest), *others = runs.items()
    lines = []
    for name, losses in others:
        n, pair = len(losses), (losses[-3:], longest[: len(losses)][-3:])
        here, there = (np.mean(part) for part in pair)
        lines.append(f"After {n} steps: {name} {here:.2f}, {first} {there:.2f}")
    return "\n".join(lines)


def paid(runs, wanted, title):
    """Two panels: what each run's own reward says, and what the honest one does, by step.

    `runs` maps a name to the values of its curves, `wanted` the panels' names to theirs.
    """
    fig, axes = figure(len(wanted), width=3.8 * len(wanted), height=3.1)
    for ax, (name, label) in zip(axes, wanted.items(), strict=True):
        for colour, (run, values) in zip(PALETTE, runs.items(), strict=False):
            traced(ax, values[name], colour, 0.6, label=run)
        ax.set(xlabel="step", ylabel=label, ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(fontsize=9)
    return headed(fig, title)


def side_title(values):
    """What a DPO run's curves say of its two sides, in a line."""
    chosen, rejected = (np.mean(values[name][-5:]) for name in ("chosen", "rejected"))
    if chosen < 0:
        return f"Chosen answers became less likely too, by {-chosen:.1f} nats"
    return f"Chosen {chosen:+.1f} nats, rejected {rejected:+.1f}"


def hack_title(paid, rewards):
    """What a hacked run earned by its own reward and by the honest one; `rewards` by name."""
    own = f"Its own reward went from {np.mean(paid[:2]):.2f} to {np.mean(paid[-2:]):.2f}"
    before, after = rewards["warm start"], rewards["paid a bonus"]
    return f"{own};\nthe honest one on unseen commands from {before:.2f} to {after:.2f}"


def by_rank(runs, title):
    """Held-out reward before and after for each rank, a dot a seed, and the paid reward by step.

    `runs` has rows of measured/rewards.csv; rank 0 is full fine-tuning.
    """
    fig, (left, right) = figure(2, width=9.0, height=3.2)
    ranks = sorted(set(runs["rank"]), key=lambda rank: rank or 1e9)
    names = [f"r={rank}" if rank else "full" for rank in ranks]
    for x, (rank, colour) in enumerate(zip(ranks, PALETTE, strict=False)):
        part = runs[runs["rank"] == rank]
        right.plot(np.full(len(part), x), part["reward"], "o", color=colour, ms=8)
        curves = [np.array(row.split(), float) for row in part["curve"]]
        mean = np.mean(curves, axis=0)
        steps = np.arange(1, len(mean) + 1)
        left.plot(steps, smooth(mean, 0.7), color=colour, label=names[x])
    right.axhline(runs["before"].mean(), color=INK, lw=0.8, ls=":")
    right.annotate("start", (len(ranks) - 0.6, runs["before"].mean()), va="bottom", color=INK)
    right.set_xticks(range(len(ranks)), names)
    top = 1.15 * runs["reward"].max()
    right.set(ylabel="reward on unseen commands", ylim=(0, top), xlim=(-0.5, len(ranks)))
    left.set(xlabel="step", ylabel="reward of the samples, smoothed", ylim=(0, None))
    left.legend(fontsize=9)
    return headed(fig, title)


def rank_title(runs):
    """The mean reward that each rank came to, in a line."""
    told = []
    for rank, part in sorted(runs.groupby("rank"), key=lambda pair: pair[0] or 1e9):
        told.append(f"{part['reward'].mean():.2f} {f'at r={rank}' if rank else 'in full'}")
    return f"Reward from {runs['before'].mean():.2f} to {', '.join(told)}"
