"""Figures of lab 8."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from labkit import measured
from labkit.figures.forms import RING, dots, mean_interval, titled, wilson
from labkit.figures.guess import Guess
from labkit.plots import INK, ROLES


def lengths(tokens: dict[str, Sequence[int]], guess: Guess | None = None, cap: int = 64) -> Figure:
    """Tokens per answer of each model: {model: lengths}, base model first; `cap` cuts them."""
    base, *_, last = tokens
    mean, low, high = mean_interval(np.subtract(tokens[last], tokens[base]))  # by instruction
    change = f"{abs(mean) / np.mean(tokens[base]):.0%} {'fewer' if mean < 0 else 'more'} tokens"
    change = change if low > 0 or high < 0 else "about as many tokens as before"
    fig, ax = titled(f"DPO ({last}): {change}, of at most {cap}", height=0.6 * len(tokens) + 1)
    for y, (name, found) in enumerate(tokens.items()):
        color = ROLES["base" if name == base else "LoRA"]
        ax.scatter(found, y + np.linspace(-0.25, 0.25, len(found)), 14, color, alpha=0.5, lw=0)
        ax.plot(np.mean(found), y, "|", ms=24, mew=2.5, color=INK)
        text = f"mean {np.mean(found):.0f}, {sum(n >= cap for n in found)} cut off"
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", color=INK)
    ax.set_yticks(range(len(tokens)), list(tokens))
    ax.set(xlim=(0, 1.03 * cap), ylim=(len(tokens) - 0.5, -0.5))
    ax.set_xlabel(f"tokens per answer, at most {cap} (dot: one answer, line: mean)")
    if guess is not None:
        guess.draw(ax, "x")
    return fig


def clip_shape(epsilon: float) -> Figure:
    """The objective of a token by its ratio, for an advantage of 1 and of -1."""
    fig, axes = titled("Clipping acts only in the intended direction", 2, 2.9, sharey=False)
    ratio = np.linspace(0, 2.5, 300)
    for ax, gain, kind in zip(axes, (1, -1), ("good", "bad"), strict=True):
        clipped = np.minimum(ratio * gain, ratio.clip(1 - epsilon, 1 + epsilon) * gain)
        ax.plot(ratio, ratio * gain, ls=":", color=INK)
        ax.plot(ratio, clipped, color=ROLES["LoRA"], lw=2.5)
        ax.axvline(1, color=INK, lw=0.8)
        ax.set_title(f"a {kind} answer's token, A = {gain}", fontsize=10.5, weight="normal")
    how = {"color": ROLES["LoRA"], "va": "top", "fontsize": 9.5}
    axes[0].text(1.3, 0.92 + epsilon, f"flat above {1 + epsilon:g}:\nno more push", **how)
    axes[1].text(-0.05, epsilon - 1.08, f"flat below {1 - epsilon:g}:\nno more push", **how)
    axes[0].text(2.15, 2.25, "without clipping", ha="right", color=INK, fontsize=9.5)
    axes[0].set_ylabel("objective")
    fig.supxlabel("ratio: times as likely as when sampled", fontsize=10.5, color=INK)
    return fig


def rewarded(found: dict[str, dict]) -> Figure:
    """Gains in reward and in right greedy answers; rings are the stored seeds' gains.

    found: {model: result of `marks`}, before and after, compared command by command.
    """
    runs, gains, others = measured.by_run("rewards_lab").loc["grpo"], {}, {}
    pair = [marks | {"right": 100 * np.equal(marks["greedy"], 1)} for marks in found.values()]
    for way in ("sampled", "greedy", "right"):
        before, after = (np.mean(np.split(np.array(m[way]), len(m["greedy"])), 1) for m in pair)
        form = "greedy: {:.0f} → {:.0f}" if way == "right" else way + ": {:.2f} → {:.2f}"
        label = form.format(before.mean(), after.mean())
        gains[label] = mean_interval(after - before)
        others[label] = sorted(runs[f"after: {way}"] - runs[f"before: {way}"])
    sampled, *greedy = (low > 0 and min(others[x]) > 0 for x, (_, low, _) in gains.items())
    title = "Sampled answers earn more after GRPO" if sampled else "GRPO brings no clear gain"
    title += "; greedy answers don't improve" if sampled and not any(greedy) else ""
    fig, (left, right) = titled(title, 2, 2.4)
    rows = list(gains)
    dots(left, {x: gains[x] for x in rows[:2]}, "gain in reward", None, "{:+.2f}")
    dots(right, {rows[2]: gains[rows[2]]}, "gain in right answers", None, "{:+.0f}")
    fig.supxlabel("100 commands (line: 95% interval, ring: other seed)", fontsize=10.5, color=INK)
    for ax, labels in ((left, rows[:2]), (right, rows[2:])):
        for y, label in enumerate(labels):
            down = 0.12 * np.arange(1, len(others[label]) + 1)  # else equal gains coincide
            ax.plot(others[label], y + down, **RING)
        ax.axvline(0, color=INK, lw=0.8)
        ax.margins(x=0.25)
    return fig


def hacked(found: dict[str, dict], guess: Guess) -> Figure:
    """Keys per answer and right answers of each model, on 100 commands, the newest model last."""
    first, *_, last = found
    counts = {name: wilson(marks["right"], 100) for name, marks in found.items()}
    keys = {name: mean_interval(marks["keys"]) for name, marks in found.items()}
    worse = counts[last][2] < max(count for count, _, _ in counts.values())
    title = f"{last}: {counts[last][0]} of 100 answers are right"
    if worse and "complete" in last and keys[last][1] > keys[first][0]:
        title = "Paid by the key, it names more keys, and fewer answers are right"
    fig, (left, right) = titled(title, 2, height=0.45 * len(found) + 1.3, sharey=True)
    roles = dict.fromkeys(found, "base") | {last: "mistake" if worse else "LoRA"}
    dots(left, keys, "keys per answer\n(line: 95% interval)", roles, "{:.1f}")
    left.set_xlim(-0.1, 1.2 * max(high for _, _, high in keys.values()) + 0.1)
    guess.draw(left, "x")
    dots(right, counts, "right answers of 100\n(line: 95% interval)", roles, "{:.0f}")
    right.set_xlim(-3, 1.2 * max(high for _, _, high in counts.values()))
    return fig
