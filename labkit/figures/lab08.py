"""Figures of lab 8."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from labkit.figures.forms import bars, counted, dots, mean_interval, titled, wilson
from labkit.guess import Guess
from labkit.plots import INK, ROLES


def lengths(tokens: dict[str, Sequence[int]], guess: Guess | None = None) -> Figure:
    """Tokens per answer of each model: {model: lengths}; the first one is the base model."""
    values = {name: mean_interval(found) for name, found in tokens.items()}
    base, *tuned = values
    change = values[tuned[-1]][0] / values[base][0] - 1
    title = f"DPO ({tuned[-1]}): answers {abs(change):.0%} {'shorter' if change < 0 else 'longer'}"
    fig, ax = titled(title, height=0.55 * len(values) + 1.2)
    dots(ax, values, "tokens per answer (line: 95% interval)", {base: "base"}, "{:.0f}")
    ax.set_xlim(0, None)
    if guess is not None:
        guess.draw(ax, "x")
    return fig


def clip_shape(epsilon: float) -> Figure:
    """The objective of a token by its ratio, for an advantage of 1 and of -1."""
    fig, axes = titled("The clip is one-sided, on the side that was asked for", 2, sharey=False)
    ratio = np.linspace(0, 2.5, 300)
    for ax, gain, role in zip(axes, (1, -1), ("LoRA", "mistake"), strict=True):
        clipped = np.minimum(ratio * gain, ratio.clip(1 - epsilon, 1 + epsilon) * gain)
        ax.plot(ratio, ratio * gain, ls=":", color=INK, label="not clipped")
        ax.plot(ratio, clipped, color=ROLES[role], lw=2.5, label="GRPO's objective")
        ax.axvline(1, color=INK, lw=0.8)
        ax.set(xlabel="ratio: new probability / old", title=f"advantage A = {gain}")
        ax.legend(loc="upper left" if gain > 0 else "lower left")
    axes[0].set_ylabel("objective")
    return fig


def rewarded(found: dict[str, dict], guess: Guess) -> Figure:
    """Rewards of sampled answers, and right intents of 100: {model: what `marks` gives}."""
    values = {name: _reward(marks) for name, marks in found.items()}
    before, *_, after = values.values()
    title = "GRPO raised the mean reward" if after[1] > before[2] else "No gain beyond noise here"
    fig, (left, other) = titled(title, 2, sharey=False)
    base = {next(iter(found)): "base"}
    bars(left, values, "mean reward of sampled answers\n(line: 95% interval)", base, "{:.2f}")
    intents = {name: marks["intents"] for name, marks in found.items()}
    counted(other, intents, 100, "right intents", base, guess=guess)
    return fig


def _reward(marks):
    """Mean reward and its 95% interval over commands, each the mean of its sampled answers."""
    return mean_interval(np.reshape(marks["rewards"], (100, -1)).mean(1))


def hacked(found: dict[str, dict], paid: Sequence[float], guess: Guess) -> Figure:
    """What the last model was paid in each step; keys and right answers of all, on 100 commands."""
    first, *_, last = found.values()
    worse = "fewer" if last["right"] < first["right"] else "no fewer"
    fig, (left, keys, right) = titled(
        f"The pay rises, and {worse} answers are right", 3, sharey=False
    )
    left.plot(range(1, len(paid) + 1), paid, "o-", color=ROLES["mistake"])
    left.set(xlabel="step", ylabel="mean reward paid", ylim=(0, 1))
    roles = {name: "mistake" for name in list(found)[2:]} | {next(iter(found)): "base"}
    dots(keys, {name: marks["keys"] for name, marks in found.items()}, "keys per answer", roles)
    keys.set_xlim(0, None)
    guess.draw(keys, "x")
    values = {name: wilson(marks["right"], 100) for name, marks in found.items()}
    dots(right, values, "right answers, of 100\n(line: 95% interval)", roles, "{:.0f}")
    right.set(xlim=(-2, None), yticklabels=[])
    return fig
