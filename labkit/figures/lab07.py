"""Figures of lab 7."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from labkit.figures.forms import bars, dots, heatmap, titled, wilson
from labkit.guess import Guess
from labkit.plots import VARIANTS


def leaks(leaked: dict[str, tuple[int, int]], guess: Guess) -> Figure:
    """% of the test rows whose question stands in training: {split: (such rows, test rows)}."""
    shares = {}
    for name, (count, n) in leaked.items():
        _, low, high = wilson(count, n)
        shares[name] = [100 * x / n for x in (count, low, high)]
    *_, last = leaked.values()
    fig, ax = titled("No leak in your split" if last[0] == 0 else "Your split leaks")
    roles = {name: "mistake" if count else "LoRA" for name, (count, _) in leaked.items()}
    label = "test rows that are also in training, %\n(line: 95% interval)"
    bars(ax, shares, label, roles, "{:.0f}%", 10, guess)
    return fig


def scores(right: dict[str, dict[str, int]], n: int) -> Figure:
    """Right answers of n, in %, by model and part: {model: {part: count}}; LoRA is the last."""
    *parts, whole = right["LoRA"]
    title = f"LoRA gets {right['LoRA'][whole] / n:.0%} of the answers right"
    fig, ax = titled(title, height=1 + 0.6 * len(right))
    cells = 100 / n * np.array([list(counts.values()) for counts in right.values()])
    heatmap(ax, cells, list(right), [*parts, whole], "right, %", "{:.0f}")
    return fig


def asked(right: dict[str, int], n: int, guess: Guess) -> Figure:
    """Right answers of n by way of asking; the first way is the one of training."""
    fig, ax = titled("One adapter, asked in other ways", height=0.5 * len(right) + 1.2)
    trained, *_ = right
    roles = {way: "LoRA" if way == trained else "mistake" for way in right}
    values = {way: tuple(100 * x / n for x in wilson(count, n)) for way, count in right.items()}
    dots(ax, values, f"right, % of {n} answers (line: 95% interval)", roles, "{:.0f}%")
    ax.set_xlim(-5, 105)
    guess.draw(ax, "x")
    return fig


def files(made: dict[str, tuple[float, float]], n: int, guess: Guess) -> Figure:
    """Each file: KL from the first model (nats per token), and the share right of n answers."""
    _, *rest = made
    title = "The coarser the format, the further from the model"
    fig, (left, other) = titled(title, 2, sharey=False)
    roles = {name: "mistake" if name == "rows not moved" else "LoRA" for name in made}
    kls = {name: made[name][0] for name in rest}
    dots(left, kls, "KL from the merged model,\nnats per token", roles, "{:.1g}")
    left.set(xscale="log", xlim=(min(kls.values()) / 10, 10 * max(kls.values())))
    left.xaxis.set_major_locator(LogLocator(numticks=5))
    values = {
        name: tuple(100 * x / n for x in wilson(n * share, n)) for name, (_, share) in made.items()
    }
    dots(other, values, f"right, % of {n} answers\n(line: 95% interval)", roles, "{:.0f}%")
    other.set_xlim(-8, 108)
    guess.draw(other, "x")
    return fig


def batches(sizes: Sequence[int], times: dict[str, Sequence[float]]) -> Figure:
    """Seconds of a layer's batch by its rows: {way: seconds}; the title is about the last size."""
    slow, fast = times["one by one"][-1], times["grouped"][-1]
    quicker = f"Grouped, {sizes[-1]} rows are {slow / fast:.0f} times as fast as one by one"
    fig, ax = titled(quicker if fast < slow else "Grouped is slower than one by one here")
    for (name, seconds), color in zip(times.items(), VARIANTS, strict=False):
        ax.plot(sizes, 1000 * np.array(seconds), "o-", color=color)
        place = (sizes[-1], 1000 * seconds[-1])
        how = {"textcoords": "offset points", "color": color, "va": "center"}
        ax.annotate(name, place, (8, 0), annotation_clip=False, **how)
    ax.set(xscale="log", yscale="log", xlabel="rows in the batch", ylabel="milliseconds")
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    return fig
