"""Figures of lab 8."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from labkit import measured
from labkit.figures.forms import dots, mean_interval, titled, wilson
from labkit.figures.guess import Guess
from labkit.plots import INK, ROLES


def lengths(tokens: dict[str, Sequence[int]], guess: Guess | None = None, cap: int = 64) -> Figure:
    """Tokens per answer of each model: {model: lengths}, base model first; `cap` cuts them."""
    base, *_, last = tokens
    mean, low, high = mean_interval(np.subtract(tokens[last], tokens[base]))  # by instruction
    change = f"{abs(mean) / np.mean(tokens[base]):.0%} {'fewer' if mean < 0 else 'more'} tokens"
    change = change if low > 0 or high < 0 else "about as many tokens as before"
    fig, ax = titled(f"DPO ({last}): {change}", height=0.6 * len(tokens) + 1)
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
    fig.supxlabel("ratio of probabilities: now / when sampled", fontsize=10.5, color=INK)
    return fig


def rewarded(found: dict[str, dict], cool: Sequence[float]) -> Figure:
    """Changes in right intents and right answers, in percentage points; rings are stored seeds'.

    found: {model: result of `marks`}, before and after, compared command by command. cool: right
    intents (0 or 1) of the first model's answers, sampled at temperature 0.7.
    """
    before, after = found.values()
    n = len(before["greedy"])
    runs, gains, others = measured.by_run("rewards_lab").loc["grpo"], {}, {}
    rows = [("sampled", "right intents, sampled"), ("greedy", "right intents, greedy")]
    for way, name in [*rows, ("right", "right answers, greedy")]:
        start, end = (_percent(marks[way], n) for marks in (before, after))
        label = f"{name}: {start.mean():.0f} → {end.mean():.0f}"
        gains[label] = mean_interval(end - start)
        others[label] = 100 * (runs[f"after: {way}"] - runs[f"before: {way}"])
    sampled, greedy, _ = (low > 0 and min(others[x]) > 0 for x, (_, low, _) in gains.items())
    title = "GRPO: more right intents in samples" if sampled else "GRPO gives no clear gain"
    title += ", not in greedy answers" if sampled and not greedy else ""
    start, end = _percent(before["sampled"], n), _percent(cool, n)
    control = f"temperature 0.7, no GRPO: {start.mean():.0f} → {end.mean():.0f}"
    gains[control] = mean_interval(end - start)
    fig, ax = titled(title, height=2.8)
    dots(ax, gains, "change, percentage points", {control: "base"}, "{:+.0f}", others)
    ax.axvline(0, color=INK, lw=0.8)
    fig.supxlabel("line: 95% interval, ring: other seed", fontsize=9.5, color=INK)
    return fig


def _percent(values, n):
    """Means by command, in percent: (n,)."""
    return 100 * np.mean(np.split(np.array(values, dtype=float), n), 1)


def hacked(found: dict[str, dict], guess: Guess) -> Figure:
    """Keys per answer and right answers of each model, on 100 commands, the newest model last."""
    first, *_, last = found
    counts = {name: wilson(sum(marks["right"]), 100) for name, marks in found.items()}
    keys = {name: mean_interval(marks["keys"]) for name, marks in found.items()}
    worse = counts[last][2] < max(count for count, _, _ in counts.values())
    title = f"{last}: {counts[last][0]} of 100 answers are right"
    if worse and "complete" in last and keys[last][1] > keys[first][0]:
        title = "Paid by the key, the model names more keys but is right less often"
    fig, (left, right) = titled(title, 2, height=0.45 * len(found) + 1.3, sharey=True)
    roles = dict.fromkeys(found, "base") | {last: "mistake" if worse else "LoRA"}
    dots(left, keys, "keys per answer\n(line: 95% interval)", roles, "{:.1f}")
    left.set_xlim(-0.1, 1.2 * max(high for _, _, high in keys.values()) + 0.1)
    guess.draw(left, "x")
    dots(right, counts, "right answers of 100\n(line: 95% interval)", roles, "{:.0f}")
    right.set_xlim(-3, 1.2 * max(high for _, _, high in counts.values()))
    return fig
