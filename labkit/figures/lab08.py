"""Figures of lab 8."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from labkit.figures.forms import dots, mean_interval, titled, wilson
from labkit.figures.guess import Guess
from labkit.plots import INK, ROLES

WAYS = ("sampled", "greedy")


def lengths(tokens: dict[str, Sequence[int]], guess: Guess | None = None, cap: int = 64) -> Figure:
    """Tokens per answer of each model: {model: lengths}, base model first; `cap` cuts them."""
    values = {name: mean_interval(found) for name, found in tokens.items()}
    base, *tuned = values
    change = values[tuned[-1]][0] / values[base][0] - 1
    change_in_words = f"{abs(change):.0%} {'shorter' if change < 0 else 'longer'}"
    least = "at least " if change > 0 and max(tokens[tuned[-1]]) >= cap else ""
    title = f"DPO ({tuned[-1]}): answers are {least}{change_in_words}"
    fig, ax = titled(title, height=0.55 * len(values) + 1.2)
    dots(ax, values, "tokens per answer (line: 95% interval)", {base: "base"}, "{:.0f}")
    ax.axvline(cap, color=INK, ls=":", lw=1)
    ax.text(cap, 0, " cut here", color=INK)
    ax.set_xlim(0, 1.15 * cap)
    if guess is not None:
        guess.draw(ax, "x")
    return fig


def clip_shape(epsilon: float) -> Figure:
    """The objective of a token by its ratio, for an advantage of 1 and of -1."""
    fig, axes = titled("Clipping acts only in the rewarded direction", 2, sharey=False)
    ratio = np.linspace(0, 2.5, 300)
    for ax, gain in zip(axes, (1, -1), strict=True):
        clipped = np.minimum(ratio * gain, ratio.clip(1 - epsilon, 1 + epsilon) * gain)
        ax.plot(ratio, ratio * gain, ls=":", color=INK, label="without clipping")
        ax.plot(ratio, clipped, color=ROLES["LoRA"], lw=2.5, label="GRPO's objective")
        ax.axvline(1 + gain * epsilon, color=INK, lw=0.8)
        ax.set_xlabel(f"ratio, for an advantage of {gain}")
        ax.legend(loc="upper left" if gain > 0 else "lower left")
    axes[0].set_ylabel("objective")
    return fig


def rewarded(found: dict[str, dict]) -> Figure:
    """What GRPO gained, sampled and greedy, and right answers of 100: {model: result of `marks`}.

    Two models, compared command by command.
    """
    before, after = found.values()
    gains = {}
    for way in WAYS:
        pair = [_by_command(marks, way) for marks in (before, after)]
        label = f"{way}: {pair[0].mean():.2f} → {pair[1].mean():.2f}"
        gains[label] = mean_interval(pair[1] - pair[0])
    gained = [label.split(":")[0] for label, (_, low, _) in gains.items() if low > 0]
    title = "GRPO brings no clear gain"
    if gained:
        title = f"With GRPO, {' and '.join(gained)} rewards rise"
        title += "" if after["right"] > before["right"] else ", but not the number right"
    fig, (left, other) = titled(title, 2, sharey=False, height=2.4)
    dots(left, gains, "reward gained\n(line: 95% interval)", text="{:+.2f}")
    left.axvline(0, color=INK, lw=0.8)
    shown = {name: wilson(marks["right"], 100) for name, marks in found.items()}
    roles = {next(iter(found)): "base"}
    dots(other, shown, "right greedy answers out of 100\n(line: 95% interval)", roles, "{:.0f}")
    other.set_xlim(0, None)
    other.yaxis.tick_right()
    return fig


def _by_command(marks, way):
    """Rewards (100,) of the commands, each the mean of its answers."""
    return np.reshape(marks[way], (len(marks["greedy"]), -1)).mean(1)


def hacked(found: dict[str, dict], paid: Sequence[float], guess: Guess) -> Figure:
    """The last model's mean pay per step; keys and right answers of all, on 100 commands."""
    last = list(found.values())[-1]
    best = max(marks["right"] for marks in found.values())
    worse = wilson(last["right"], 100)[2] < best and np.mean(paid[-3:]) > np.mean(paid[:3])
    title = "The reward paid rises, but fewer answers are right" if worse else "A different reward"
    fig, (left, keys, right) = titled(title, 3, sharey=False)
    left.plot(range(1, len(paid) + 1), paid, "o-", color=ROLES["mistake" if worse else "LoRA"])
    left.set(xlabel="step", ylabel="mean reward paid", ylim=(0, 1))
    roles = dict.fromkeys(found, "LoRA") | {next(iter(found)): "base"}
    roles |= {list(found)[-1]: "mistake"} if worse else {}
    dots(keys, {name: marks["keys"] for name, marks in found.items()}, "keys per answer", roles)
    keys.set(xlim=(0, None), yticklabels=[])
    guess.draw(keys, "x")
    values = {name: wilson(marks["right"], 100) for name, marks in found.items()}
    dots(right, values, "right answers out of 100\n(line: 95% interval)", roles, "{:.0f}")
    right.set_xlim(-2, None)
    right.yaxis.tick_right()
    return fig
