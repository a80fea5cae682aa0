"""Figures of lab 7."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from labkit.figures.forms import dots, heatmap, titled, wilson
from labkit.figures.guess import Guess
from labkit.plots import VARIANTS


def scores(right: dict[str, dict[str, int]], n: int) -> Figure:
    """Right answers of n, in %, by model and part: {model: {part: count}}; LoRA is the last."""
    *parts, whole = right["LoRA"]
    title = f"LoRA gets {right['LoRA'][whole] / n:.0%} of the answers right"
    fig, ax = titled(title, height=1 + 0.6 * len(right))
    cells = 100 / n * np.array([list(counts.values()) for counts in right.values()])
    heatmap(ax, cells, list(right), [*parts, whole], "right answers, %", "{:.0f}")
    return fig


def asked(right: dict[str, int], n: int, guess: Guess) -> Figure:
    """Right answers of n by way of asking, training's first; Llama 2's among them."""
    trained, *_ = right.values()
    share = right["Llama 2's template"] / n
    title = f"With Llama 2's template, {share:.0%} of the answers are right"
    fig, ax = titled(title, height=0.5 * len(right) + 1.2)
    roles = {way: "LoRA" if count >= 0.9 * trained else "mistake" for way, count in right.items()}
    values = {way: tuple(100 * x / n for x in wilson(count, n)) for way, count in right.items()}
    dots(ax, values, f"right answers, % of {n} (line: 95% interval)", roles, "{:.0f}%")
    ax.set_xlim(-5, 105)
    guess.draw(ax, "x")
    return fig


def files(made: dict[str, tuple[float, float]], n: int, guess: Guess) -> Figure:
    """Each file: KL from the first model (nats per token), and the share right of n answers."""
    useless = made["rows not moved"][1] == 0
    title = "If no rows are moved, no answer is right" if useless else "One model, several files"
    fig, (left, other) = titled(title, 2, sharey=False)
    roles = {name: "mistake" if name == "rows not moved" else "LoRA" for name in made}
    kls = {name: max(kl, 1e-7) for name, (kl, _) in made.items()}  # fp32 has 0
    dots(left, kls, "KL from the merged model,\nnats per token", roles, "{:.1g}")
    for text in left.texts:
        text.set_text(text.get_text().replace("1e-07", "0: the same"))
    left.set(xscale="log", xlim=(1e-8, 10 * max(kls.values())))
    left.xaxis.set_major_locator(LogLocator(numticks=5))
    values = {
        name: tuple(100 * x / n for x in wilson(n * share, n)) for name, (_, share) in made.items()
    }
    dots(other, values, f"right answers, % of {n}\n(line: 95% interval)", roles, "{:.0f}%")
    other.set(xlim=(-8, 108), yticklabels=[])
    guess.draw(other, "x")
    return fig


def batches(sizes: Sequence[int], times: dict[str, Sequence[float]]) -> Figure:
    """Seconds of a layer's batch by its rows: {way: seconds}; the title compares 64 rows."""
    slow, fast = (times[way][sizes.index(64)] for way in ("one by one", "grouped"))
    quicker = f"For 64 rows, grouping is {slow / fast:.0f} times as fast as one by one"
    fig, ax = titled(quicker if fast < slow else "Here, grouping is slower than one by one")
    for (name, seconds), color in zip(times.items(), VARIANTS, strict=False):
        ax.plot(sizes, 1000 * np.array(seconds), "o-", color=color, label=name)
    ax.legend()
    ax.set(xscale="log", yscale="log", xlabel="rows in the batch", ylabel="milliseconds")
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    return fig
