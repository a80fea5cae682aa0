"""Figures of lab 8."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from labkit.plots import INK, PALETTE, figure, headed, smooth, traced

CHOSEN, REJECTED = PALETTE[1:3]  # as in the panels that grow, where the loss has the first colour
RUNS = [PALETTE[0], PALETTE[3], PALETTE[4]]  # of DPO: as it should be, then those that are not
BEFORE = "#999999"  # the model that no run has trained yet
HONEST, HACKED = PALETTE[:2]  # of GRPO, by what is paid


def gained(values, title):
    """What chosen and rejected answers gained since the start, nats, against the step."""
    fig, ax = figure(height=3.2)
    steps = range(1, len(values["chosen"]) + 1)
    sides = [smooth(values[name], 0.6) for name in ("chosen", "rejected")]
    ax.fill_between(steps, *sides, color=REJECTED, alpha=0.12, lw=0)
    for colour, name, line in zip((CHOSEN, REJECTED), ("chosen", "rejected"), sides, strict=True):
        traced(ax, values[name], colour, 0.6)  # as in the panels that grow
        ax.annotate(f" {name}", (len(line), line[-1]), color=colour, va="center")
    margin = sides[0][-1] - sides[1][-1]
    middle = (len(steps), (sides[0][-1] + sides[1][-1]) / 2)
    ax.annotate(f" margin {margin:.0f} nats", middle, va="center", color=INK)
    ax.axhline(0, color=INK, lw=0.8)
    ax.set(
        xlabel="step (faint: each one; strong: running mean)",
        ylabel="log-probability gained, nats",
        xlim=(1, 1.25 * len(steps)),
    )
    ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10]).tick_values(1, len(steps))
    ax.set_xticks([tick for tick in ticks if 1 <= tick <= len(steps)])  # none beyond the last step
    ax.set_title(title)
    return fig


def shares(before, after, title, guess):
    """Left: percent of constraints followed before and after; right: what changed, by instruction.

    Both are shares `(n,)`, one an instruction; the same instructions, so that changes are paired.
    """
    fig, (left, right) = figure(2, width=9.0, height=2.6)
    before, after = (100 * np.asarray(part) for part in (before, after))
    means = [before.mean(), after.mean()]
    errors = [part.std(ddof=1) / len(part) ** 0.5 for part in (before, after)]
    bars = {"color": [BEFORE, RUNS[0]], "alpha": 0.6, "height": 0.6, "ecolor": INK, "capsize": 3}
    left.barh(["before", "after"], means, xerr=errors, **bars)
    for y, (mean, error) in enumerate(zip(means, errors, strict=True)):
        left.text(mean + error, y, f"  {mean:.0f}%", va="center", color=INK)
    left.set(xlabel=f"% followed, mean of {len(before)} instructions (line: std. error)")
    left.set_xlim(0, min(100, 1.8 * max(*means, 25)))
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    change = after - before
    sizes, counts = np.unique(change, return_counts=True)
    right.bar(sizes, counts, width=16, color=RUNS[0], alpha=0.6)
    error = change.std(ddof=1) / len(change) ** 0.5
    high = 1.15 * counts.max()
    right.errorbar(change.mean(), high, xerr=2 * error, fmt="|", ms=12, color=INK, capsize=3)
    beside = (change.mean() + 2 * error, high)
    right.annotate("  mean ± two standard errors", beside, va="center", color=INK, fontsize=9)
    right.axvline(0, color=INK, lw=0.8, ls=":")
    right.set(xlabel="change of an instruction's share, points", ylabel="instructions")
    right.set(xlim=(-110, 110), ylim=(0, 1.3 * counts.max()))
    ticks = MaxNLocator(integer=True).tick_values(0, counts.max())
    right.set_yticks([tick for tick in ticks if tick <= counts.max()])
    guess.draw(left, "x")
    return headed(fig, title)


def losses(runs, title):
    """Loss against step of several runs, `{name: losses}`, with the loss of no learning.

    A run goes as far as another one that it can be compared with. One that stays is dashed.
    """
    fig, ax = figure(height=3.2)
    last = sorted(map(len, runs.values()))[-2]
    for colour, (name, told) in zip(RUNS, runs.items(), strict=False):
        stays, told = _stays(told), told[:last]
        style = {"ls": "--", "zorder": 3} if stays else {"marker": "o", "ms": 4}
        traced(ax, told, colour, 0.6, **style)
        end, above = (len(told), smooth(told, 0.6)[-1]), (6, 9 if stays else 0)
        ax.annotate(name, end, above, textcoords="offset points", color=colour, va="center")
    ax.axhline(np.log(2), color=INK, lw=0.8, ls=":")
    ax.annotate("log 2 ", (1.25 * last, np.log(2)), ha="right", va="bottom", color=INK)
    ax.set(
        xlabel="step (faint: each one; strong: running mean)",
        ylabel="DPO loss, nats",
        xlim=(0.9, 1.25 * last),
    )
    ax.set_xticks(range(1, last + 1))
    return headed(fig, title)


def _stays(told):
    """Whether a DPO loss has not moved from that of no learning."""
    return np.allclose(told, np.log(2), rtol=0, atol=1e-3)


def loss_title(runs):
    """A line a run: the mean loss of its last three steps, and of the first run's same steps.

    A run that has not moved from log 2 says so.
    """
    (first, longest), *others = runs.items()
    lines = []
    for name, losses in others:
        n, pair = len(losses), (losses[-3:], longest[: len(losses)][-3:])
        here, there = (np.mean(part) for part in pair)
        way = "falls to" if here < np.log(2) else "is at"
        said = f"loss {way} {here:.2f} (mean of steps {n - 2} to {n}; {first}: {there:.2f})"
        if _stays(losses):
            said = f"loss stays at log 2 in all {n} steps"
        lines.append(f"{name.capitalize()}: {said}")
    return "\n".join(lines)


def clip_shape(epsilon):
    """GRPO's objective of one token against its ratio, for an advantage of 1 and of -1."""
    fig, axes = figure(2, width=9.0, height=3.0)
    ratio = np.linspace(0, 2, 201)
    told = {1: f"good answer: flat beyond {1 + epsilon:g}", -1: f"bad: flat below {1 - epsilon:g}"}
    for ax, (sign, name) in zip(axes, told.items(), strict=True):
        clipped = np.minimum(sign * ratio, sign * ratio.clip(1 - epsilon, 1 + epsilon))
        ax.plot(ratio, sign * ratio, color=INK, ls="--", lw=1, label="ratio times advantage")
        ax.plot(ratio, clipped, color=RUNS[0], lw=2.5, label="with the clip")
        ax.axvline(1, color=INK, lw=0.8, ls=":")
        ax.set(xlabel="ratio: probability now over then", ylabel="objective of a token")
        ax.set_title(f"advantage {sign}, {name}", fontsize=11)
    axes[0].legend(fontsize=9, loc="upper left")
    return headed(fig, "A token that has moved far enough the right way has no gradient")


def paid(hacked, table, title, guess):
    """What a hacked run is paid and worth, and the keys and right answers at the start and after.

    `hacked` has the run's curves by name. `table` has `keys` and `exact` (of 100) on unseen
    commands, of the start, of an honest run and of the hacked one; `guess` is one of keys.
    """
    fig, (pay, *others) = figure(3, width=10.0, height=3.3)
    traced(pay, hacked["reward"], HACKED, 0.6, label="paid, with the bonus")
    traced(pay, hacked["honest"], HACKED, 0.6, label="worth by your reward", ls="--")
    pay.set(xlabel="step", ylabel="a step's mean reward", ylim=(0, 1.35))
    pay.set_yticks(np.arange(0, 1.1, 0.25))
    pay.xaxis.set_major_locator(MaxNLocator(integer=True))
    pay.legend(fontsize=9, loc="upper left")
    names = ["start", "paid your\nreward", "paid\na bonus"]
    for ax, column, digits in zip(others, ("keys", "exact"), (1, 0), strict=True):
        values = list(table[column])
        ax.bar(names, values, color=[BEFORE, HONEST, HACKED], alpha=0.8, width=0.6)
        for x, value in enumerate(values):
            ax.text(x, value, f"{value:.{digits}f}", ha="center", va="bottom", color=INK)
        ax.set(ylim=(0, 1.25 * max(*values, 1)))
        ax.grid(axis="x", visible=False)
    others[0].set_ylabel("keys an answer names\n(100 unseen commands)")
    others[1].set_ylabel("exact answers of 100\n(one run each)")
    guess.draw(others[0], "y")
    return headed(fig, title)


def side_title(values):
    """What a DPO run's curves say of its two sides, in a line."""
    chosen, rejected = (smooth(values[name], 0.6)[-1] for name in ("chosen", "rejected"))
    told = f"chosen {chosen:+.1f} nats, rejected {rejected:+.1f}"
    if max(chosen, rejected) < 0:
        return f"Both became less likely: {told}"
    return f"They moved apart: {told}" if chosen > rejected else told.capitalize()


def hack_title(values, rewards):
    """What a hacked run was paid, and the honest reward on unseen commands; `rewards` by name."""
    first, last = (np.mean(part) for part in (values["reward"][:3], values["reward"][-3:]))
    before, after = rewards["warm start"], rewards["paid a bonus"]
    point = "Paid more, worth less" if last > first and after < before else "Paid a bonus"
    return (
        f"{point}: pay {first:.2f} → {last:.2f} (first and last three steps),\n"
        f"your reward on unseen commands {before:.2f} → {after:.2f}"
    )


def by_rank(runs, start, title):
    """Reward, intents and exact answers on unseen commands by rank: a dot a seed, a line a mean.

    `runs` has rows of measured/rewards.csv; rank 0 is full fine-tuning, in a colour of its own.
    `start` has the three before.
    """
    fig, axes = figure(3, width=10.0, height=3.4)
    ranks = sorted(set(runs["rank"]), key=lambda rank: rank or 1e9)
    told = {"reward": ("mean reward", 1)}
    told |= {"intent": ("right intents of 100", 100), "exact": ("exact answers of 100", 100)}
    for ax, before, (column, (label, times)) in zip(axes, start, told.items(), strict=True):
        for x, rank in enumerate(ranks):
            colour = PALETTE[0 if rank else 2]
            part = times * runs.loc[runs["rank"] == rank, column]
            ax.plot(np.full(len(part), x), part, "o", color=colour, ms=8, alpha=0.7)
            ax.hlines(part.mean(), x - 0.3, x + 0.3, color=colour, lw=2.5)
        ax.axhline(before, color=INK, lw=0.8, ls=":")
        ax.annotate("start", (len(ranks) - 0.55, before), va="bottom", color=INK)
        ax.set_xticks(range(len(ranks)), [rank or "full" for rank in ranks])
        ax.margins(y=0.12)
        ax.set(xlabel="rank", ylabel=label, xlim=(-0.5, len(ranks) + 0.4))
        ax.locator_params(axis="y", steps=[1, 2, 5, 10], nbins=9)
    every = "100 unseen commands; dot: one seed, line: mean of three; full: full fine-tuning"
    fig.supxlabel(every, fontsize=9)
    return headed(fig, title)


def rank_title(runs, start):
    """From the start to which range of the adapters' means the three went that `by_rank` draws."""
    adapters = runs[runs["rank"] > 0]
    means = adapters.groupby("rank")[["reward", "intent", "exact"]].mean()
    (low, *few), (high, *many) = means.min(), means.max()
    every = adapters["reward"].min() > start[0]
    where = "Reward rose in every adapter run" if every else "Reward after training"
    intents, exact = (
        f"{before:.0f} → {100 * least:.0f} to {100 * most:.0f}"
        for before, least, most in zip(start[1:], few, many, strict=True)
    )
    return (
        f"{where}: {start[0]:.2f} → {low:.2f} to {high:.2f} (means of a rank);\n"
        f"of 100 commands right intents {intents}, exact answers {exact}"
    )


def at_score(written, rewarded, title):
    """Two panels: KL from the start, and perplexity of everyday English, against the reward.

    Both have rows of measured/rewards.csv, a dot each; written answers with 0 steps are the start,
    the others have their number beside them, 16 a step.
    """
    start, written = written[written["steps"] == 0], written[written["steps"] > 0]
    few, many = written["steps"].agg(["min", "max"])
    groups = {"768 rewarded answers": rewarded}
    groups[f"{16 * few} to {16 * many} written answers"] = written
    groups["start"] = start
    looks = [("o", PALETTE[0]), ("D", PALETTE[1]), ("X", INK)]
    fig, axes = figure(2, width=9.0, height=4.0)
    told = {
        "kl": "KL from the start, nats a token",
        "perplexity": "perplexity of everyday English\n(higher: more forgotten)",
    }
    for ax, (column, label) in zip(axes, told.items(), strict=True):
        for (mark, colour), (name, runs) in zip(looks, groups.items(), strict=True):
            ax.plot(runs["reward"], runs[column], mark, color=colour, ms=7, alpha=0.8, label=name)
        for steps, x, y in written[["steps", "reward", column]].itertuples(index=False):
            beside = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right"}
            ax.annotate(f"{16 * steps:.0f}", (x, y), **beside, va="center", fontsize=8)
        ax.set(xlabel="mean reward on 100 unseen commands", ylabel=label)
        ax.margins(x=0.1, y=0.1)
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    return headed(fig, title)


def score_title(written, rewarded):
    """Reward, KL and perplexity after rewards, and after written answers of about that reward."""
    after = rewarded[["reward", "kl", "perplexity"]].mean()
    means = written.groupby("steps")[["reward", "kl", "perplexity"]].mean()
    near = means.loc[(means["reward"] - after["reward"]).abs().idxmin()]
    names = {"reward": "reward {:.2f} and {:.2f}", "kl": "KL {:.2f} and {:.2f}"}
    names["perplexity"] = "perplexity {:.1f} and {:.1f}"
    both = ", ".join(told.format(near[column], after[column]) for column, told in names.items())
    few = f"{16 * near.name:.0f} written answers teach about as much as 768 rewarded ones"
    return f"{few},\nmeans of three runs: {both}"
