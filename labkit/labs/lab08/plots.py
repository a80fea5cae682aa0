"""Figures of lab 8."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from labkit.plots import INK, PALETTE, figure, headed, smooth, traced

CHOSEN, REJECTED = PALETTE[1:3]  # as in the panels that grow, where the loss has the first colour
RUNS = [PALETTE[0], PALETTE[3], PALETTE[4]]  # of DPO: as it should be, then those that are not
BEFORE = "#999999"  # the model that no run has trained yet


def gained(values, title):
    """What chosen and rejected answers gained since the start, nats, against the step."""
    fig, ax = figure(height=3.2)
    for colour, name in ((CHOSEN, "chosen"), (REJECTED, "rejected")):
        told = values[name]
        traced(ax, told, colour, 0.6)  # as in the panels that grow
        ax.annotate(f" {name}", (len(told), smooth(told, 0.6)[-1]), color=colour, va="center")
    ax.axhline(0, color=INK, lw=0.8)
    ax.set(xlabel="step", ylabel="log-probability gained, nats", xlim=(1, 1.18 * len(told)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set_title(title)
    return fig


def shares(groups, title, guess=None):
    """A row a name: percent of constraints followed, ± two standard errors; `{name: (n,)}`."""
    fig, ax = figure(height=0.55 * len(groups) + 1.2)
    places, names, furthest = np.arange(len(groups))[::-1], [], 50
    for y, colour, (name, hits) in zip(places, [BEFORE, *RUNS], groups.items(), strict=False):
        hits = 100 * np.asarray(hits)
        mean, error = hits.mean(), hits.std(ddof=1) / len(hits) ** 0.5
        ax.barh(y, mean, xerr=2 * error, color=colour, alpha=0.6, height=0.6, ecolor=INK)
        names.append(f"{name}: {mean:.0f}%")
        furthest = max(furthest, mean + 2 * error + 5)
    ax.set_yticks(places, names)
    label = f"constraints followed, % ± two standard errors, {len(hits)} instructions"
    ax.set(xlabel=label, xlim=(0, min(100, furthest)))
    ax.grid(axis="y", visible=False)
    ax.set_title(title)
    if guess:
        guess.draw(ax, "x")
    return fig


def losses(runs, title):
    """Loss against step of several runs, `{name: losses}`, with the loss of no learning.

    A run goes as far as another one that it can be compared with.
    """
    fig, ax = figure(height=3.2)
    last = sorted(map(len, runs.values()))[-2]
    for colour, (name, told) in zip(RUNS, runs.items(), strict=False):
        traced(ax, told[:last], colour, 0.6, label=name, marker="o", ms=4)
    ax.legend(fontsize=9, loc="lower left")
    ax.axhline(np.log(2), color=INK, lw=0.8, ls=":")
    ax.annotate("log 2 ", (1.1 * last, np.log(2)), ha="right", va="bottom", color=INK)
    ax.set(xlabel="step", ylabel="DPO loss, nats", xlim=(0.9, 1.1 * last))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title)
    return fig


def loss_title(runs):
    """A line a run: the mean loss of its last three steps, and of the first run's same steps.

    A run that has not moved from log 2 says so.
    """
    (first, longest), *others = runs.items()
    lines = []
    for name, losses in others:
        n, pair = len(losses), (losses[-3:], longest[: len(losses)][-3:])
        here, there = (np.mean(part) for part in pair)
        said = f"the loss is {here:.2f} by step {n} ({first}: {there:.2f})"
        if np.allclose(losses, np.log(2), rtol=0, atol=1e-3):
            said = f"the loss stays at log 2 in all {n} steps"
        lines.append(f"{name.capitalize()}: {said}")
    return "\n".join(lines)


def paid(runs, wanted, title):
    """A panel for each of `wanted`, the names of curves and their labels, by step.

    `runs` maps a name to the values of its curves.
    """
    fig, axes = figure(len(wanted), width=3.3 * len(wanted), height=3.2)
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
    told = f"chosen {chosen:+.1f} nats, rejected {rejected:+.1f}"
    if max(chosen, rejected) < 0:
        return f"Both became less likely: {told}"
    return f"They moved apart: {told}" if chosen > rejected else told.capitalize()


def hack_title(values, rewards):
    """What a hacked run was paid, and the honest reward on unseen commands; `rewards` by name."""
    pairs = np.convolve(values["reward"], [0.5, 0.5], "valid")  # a single step has more luck
    own = f"Paid a bonus: {pairs[0]:.2f} in the first two steps, {pairs.max():.2f} in the best two"
    before, after = rewards["warm start"], rewards["paid a bonus"]
    return f"{own};\nyour reward on unseen commands: {before:.2f} before, {after:.2f} after"


def by_rank(runs, start, title):
    """Reward and exact answers on unseen commands for each rank, a dot a seed, a line a mean.

    `runs` has rows of measured/rewards.csv; rank 0 is full fine-tuning, in a colour of its own.
    `start` is the pair before.
    """
    fig, axes = figure(2, width=9.0, height=3.2)
    ranks = sorted(set(runs["rank"]), key=lambda rank: rank or 1e9)
    told = {"reward": ("reward on unseen commands", 1), "exact": ("exact answers of 100", 100)}
    for ax, before, (column, (label, times)) in zip(axes, start, told.items(), strict=True):
        for x, rank in enumerate(ranks):
            colour = PALETTE[0 if rank else 2]
            part = times * runs.loc[runs["rank"] == rank, column]
            ax.plot(np.full(len(part), x), part, "o", color=colour, ms=8, alpha=0.7)
            ax.hlines(part.mean(), x - 0.3, x + 0.3, color=colour, lw=2.5)
        ax.axhline(before, color=INK, lw=0.8, ls=":")
        ax.annotate("start", (len(ranks) - 0.6, before), va="bottom", color=INK)
        ax.set_xticks(range(len(ranks)), [f"r={rank}" if rank else "full" for rank in ranks])
        ax.margins(y=0.12)
        ax.set(ylabel=label, xlim=(-0.5, len(ranks)))
        ax.set_xlabel("rank; a dot a seed, a line their mean")
    return headed(fig, title)


def rank_title(runs, start):
    """In how many runs the reward rose, and to which range of the ranks' means; exact answers."""
    means = runs.groupby("rank")[["reward", "exact"]].mean()
    (low, few), (high, many) = means.min(), means.max()
    rose = f"{sum(runs['reward'] > runs['before'])} of {len(runs)} runs"
    return (
        f"The reward rose in {rose}: from {start[0]:.2f} to means of {low:.2f} to {high:.2f};\n"
        f"exact answers: means of {100 * few:.0f} to {100 * many:.0f}, "
        f"{start[1]:.0f} at another start"
    )


def at_score(written, rewarded, title):
    """Two panels: KL from the start, and perplexity of everyday English, against the reward.

    Both have rows of measured/rewards.csv, a dot each; written answers with 0 steps are the start,
    the others have their steps beside them.
    """
    start, written = written[written["steps"] == 0], written[written["steps"] > 0]
    groups = [(f"rewards, rate {short(rate)}", part) for rate, part in by_rate(rewarded)]
    few, many = written["steps"].agg(["min", "max"])
    groups += [(f"written answers, {few} to {many} steps", written), ("start", start)]
    looks = [("o", PALETTE[0]), ("s", PALETTE[5]), ("D", PALETTE[1]), ("X", INK)]
    fig, axes = figure(2, width=9.0, height=3.4)
    told = {"kl": "KL from the start, nats a token", "perplexity": "perplexity, everyday English"}
    for ax, (column, label) in zip(axes, told.items(), strict=True):
        for (mark, colour), (name, runs) in zip(looks, groups, strict=True):
            ax.plot(runs["reward"], runs[column], mark, color=colour, ms=7, alpha=0.8, label=name)
        for steps, x, y in written[["steps", "reward", column]].itertuples(index=False):
            beside = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right"}
            ax.annotate(f"{steps:.0f}", (x, y), **beside, va="center", fontsize=8)
        ax.set(xlabel="reward on unseen commands", ylabel=label)
        ax.margins(x=0.08)
    axes[0].set_ylim(-0.02, 1.15 * rewarded["kl"].max())
    axes[1].legend(fontsize=9, loc="upper right")
    return headed(fig, title)


def by_rate(rewarded):
    """The learning rates and the rows of each, the largest first."""
    return sorted(rewarded.groupby("learning_rate"), reverse=True)


def short(rate):
    """A learning rate as one says it, such as 5e-4."""
    return f"{rate:.0e}".replace("e-0", "e-")


def score_title(written, rewarded):
    """KL and perplexity at the rewarded runs' mean reward: of each rate, and of written answers."""
    score = rewarded["reward"].mean()
    means = written.groupby("steps")[["reward", "kl", "perplexity"]].mean()
    near = means.loc[(means["reward"] - score).abs().idxmin()]
    parts = by_rate(rewarded)
    kls = " and ".join(f"{part['kl'].mean():.2f} (rate {short(rate)})" for rate, part in parts)
    worse = ", ".join(f"{part['perplexity'].mean():.1f}" for _, part in parts)
    return (
        f"At a reward of {score:.2f}: KL {kls} after rewards,\n"
        f"{near['kl']:.2f} after written answers; perplexity {worse} and {near['perplexity']:.1f}"
    )
