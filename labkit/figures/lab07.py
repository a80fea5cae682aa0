"""Figures of lab 7."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from labkit import measured
from labkit.figures.forms import dots, spread, titled, wilson
from labkit.figures.guess import Guess
from labkit.plots import BESIDE, ROLES, VARIANTS


def scores(right: dict[str, dict[str, int]], n: int) -> Figure:
    """Right answers of n, in %, of the lookup and of LoRA: {model: {part: count}}."""
    rows = {part: 100 * count / n for part, count in right["lookup"].items()}
    rows = dict(sorted(rows.items(), key=lambda row: (row[0] == "whole answer", row[1])))
    whole = 100 * right["LoRA"]["whole answer"] / n
    title = "LoRA gets most whole answers right; the lookup gets few"
    if whole <= 50 or rows["whole answer"] > 20:
        title = f"LoRA gets {whole:.0f}% of the whole answers right"
    fig, ax = titled(title, height=0.45 * len(rows) + 1)
    colors = {"lookup": "#777777", "LoRA": ROLES["LoRA"]}
    for y, (part, low) in enumerate(rows.items()):
        high = 100 * right["LoRA"][part] / n
        ax.plot([low, high], [y, y], color="#DDDDDD", lw=4, zorder=1)
        for (model, color), value, way in zip(colors.items(), (low, high), (-1, 1), strict=True):
            side = {"ha": "right" if way == (-1 if low <= high else 1) else "left", "color": color}
            away = -8 if side["ha"] == "right" else 8
            ax.plot(value, y, "o", ms=8, color=color)
            ax.annotate(f"{value:.0f}", (value, y), (away, 0), **side, **BESIDE)
            if y == 0:
                ax.annotate(model, (value, -0.6), (0, 0), ha="center", color=color, **BESIDE)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(-4, 106), ylim=(len(rows) - 0.5, -0.9), xlabel=f"right, % of {n} held-out rows")
    return fig


def asked(right: dict[str, int], n: int, guess: Guess) -> Figure:
    """Right answers of n by prompt, as in training first; rings are stored runs."""
    runs = measured.by_run("ship").loc["lab"]
    rest = {
        way: 100 * runs[f"asked: {way}"] / runs["n"] for way in right if f"asked: {way}" in runs
    }
    order = sorted(right, key=lambda way: -np.mean([100 * right[way] / n, *rest.get(way, ())]))
    trained, *_, worst = (100 * right[way] / n for way in order)
    title = "Some wrong prompts cost nothing, others nearly everything"
    if worst > 0.2 * trained:
        title = f"The worst prompt here leaves {worst:.0f}% of the answers right"
    fig, ax = titled(title, height=0.42 * len(right) + 1.2)
    roles = {way: "mistake" if right[way] < 0.9 * n * trained / 100 else "LoRA" for way in right}
    named = {"no generation prompt": "no generation prompt\n(a header counts as wrong)"}
    values = {named.get(way, way): 100 * right[way] / n for way in order}
    rest, roles = ({named.get(k, k): v for k, v in d.items()} for d in (rest, roles))
    dots(ax, values, "right answers, % (ring: another run, 105 rows)", roles, "{:.0f}", rest)
    ax.set_xlim(-4, 108)
    guess.draw(ax, "x")
    return fig


def files(made: dict[str, tuple[float, Sequence[bool]]], n: int, guess: Guess) -> Figure:
    """Each file: KL from the first model (nats per token), and which of n answers are right."""
    whole, eight, unmoved = (
        next((np.mean(hits) for name, (_, hits) in made.items() if name[:4] == start), 0)
        for start in ("fp32", "q8_0", "rows")
    )
    title = "One model, several files"
    if unmoved < 0.1 and eight >= whole > 0.5:
        title = "Q8_0 costs no right answers; the wrong row order costs nearly all"
    fig, (left, right) = titled(title, 2, height=0.4 * len(made) + 1.4, sharey=True)
    roles = {name: "mistake" if name == "rows not moved" else "LoRA" for name in made}
    kls = {name: kl or np.nan for name, (kl, _) in made.items()}  # zero isn't on a log axis
    dots(left, kls, "KL from the fp32 model,\nnats per token", roles)
    for text, kl in zip(left.texts, kls.values(), strict=True):
        number = np.format_float_positional(kl, 1, fractional=False, trim="-")
        text.set_text("" if np.isnan(kl) else number)
    left.set(xscale="log", xlim=(np.nanmin([*kls.values()]) / 5, 30 * made["rows not moved"][0]))
    shares = {name: tuple(100 * x / n for x in wilson(sum(made[name][1]), n)) for name in made}
    dots(right, shares, f"right answers, % of {n}\n(line: 95% interval)", roles, "{:.0f}")
    right.set_xlim(-8, 118)
    guess.draw(right, "x")
    return fig


def batches(sizes: Sequence[int], times: dict[str, Sequence[float]]) -> Figure:
    """Seconds of a layer's batch by its rows: {way: seconds}; drawn per row."""
    slow, fast = (times[way][sizes.index(64)] for way in ("one by one", "grouped"))
    quicker = f"For 64 rows, grouping is {slow / fast:.1f} times as fast as one by one"
    fig, ax = titled(quicker if fast < slow else "Here, grouping is slower than one by one")
    rows = {name: 1e6 * np.array(seconds) / np.array(sizes) for name, seconds in times.items()}
    ends = np.array([values[-1] for values in rows.values()])
    places = ends.min() * np.exp(spread(np.log(ends / ends.min()), 0.35, 99))
    for (name, values), place, color in zip(rows.items(), places, VARIANTS, strict=False):
        ax.plot(sizes, values, "o-", color=color)
        ax.annotate(f"{name}: {values[-1]:.2g}", (sizes[-1], place), (10, 0), color=color, **BESIDE)
    ax.set(xscale="log", yscale="log", xlabel="rows in the batch", ylabel="microseconds per row")
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.set_yticks([1, 10, 100], ["1", "10", "100"])
    ax.minorticks_off()
    return fig
