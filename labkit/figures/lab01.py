"""Figures of lab 1."""

from collections.abc import Sequence
from statistics import median as middle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib import cbook
from matplotlib.figure import Figure

from labkit.figures.forms import counted, dots, titled
from labkit.figures.guess import Guess
from labkit.plots import INK, PAPER, ROLES

SERIES = {"weights": ("base", "o"), "random": ("base", "_"), "update": ("full", "s")}


def photograph() -> torch.Tensor:
    """Grace Hopper, from matplotlib's sample data: gray, 0 black to 1 white, (300, 256)."""
    pixels = torch.tensor(plt.imread(cbook.get_sample_data("grace_hopper.jpg")) / 255.0)
    return torch.nn.functional.avg_pool2d(pixels.mean(-1)[None].float(), 2)[0]


def rank_grid(pictures: dict[int, torch.Tensor], errors: dict[int, float]) -> Figure:
    """Gray pictures in two rows, by rank, with their relative errors (0 to 1)."""
    good = min((r for r, error in errors.items() if error < 0.1), default=None)
    title = "No rank here has an error below a tenth"
    if good:
        title = f"At rank {good} and above, the error is below a tenth"
    fig, axes = titled(title, -(-len(pictures) // 2), width=9.5, height=6.0, n_rows=2)
    for ax, r in zip(axes.flat, pictures, strict=False):
        _picture(ax, pictures[r], f"r = {r} · error {errors[r]:.1%}")
    return fig


def one_picture(picture: torch.Tensor, title: str) -> Figure:
    """One gray picture under its title."""
    fig, ax = titled("", width=3.4, height=4.0)
    _picture(ax, picture, title)
    return fig


def _picture(ax, picture, title):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=10, weight="normal")
    ax.axis("off")


def error_and_cost(
    costs: Sequence[float], errors: dict[str, Sequence[float]], r_even: int, guess: Guess
) -> Figure:
    """Relative error against the numbers stored, both as shares: {"photograph", "noise": errors}.

    guess: the noise's error at a fifth of the numbers, in percent.
    """
    fig, ax = titled("A fifth of the numbers is enough for a photograph but not for noise")
    fifth = fifth_of(costs)
    for (name, values), role in zip(errors.items(), ("LoRA", "base"), strict=True):
        x, y = 100 * np.array(costs), 100 * np.array(values)
        ax.plot(x, y, color=ROLES[role])
        ax.plot(x[fifth], y[fifth], color=ROLES[role], marker="o")
        ax.annotate(f"{name} {y[fifth]:.0f}%", (x[fifth], y[fifth]), (6, 6), **_OFFSET)
    ax.axvline(100, color=INK, ls=":", lw=1.2)
    ax.text(101, 98, f" r = {r_even} is the last\n rank that saves", va="top", color=INK)
    ax.set(xlim=(0, 135), ylim=(0, 102), ylabel="relative error (%)")
    ax.set_xlabel("numbers stored (% of the matrix)")
    guess.draw(ax)
    return fig


_OFFSET = {"textcoords": "offset points", "color": INK, "bbox": PAPER}


def fifth_of(costs: Sequence[float]) -> int:
    """The index of the cost nearest to a fifth, in ascending costs."""
    return int(np.abs(np.array(costs) - 0.2).argmin())


def median(kinds: dict[str, list[float]]) -> float:
    """The median of all numbers in {kind: numbers}."""
    return middle(number for numbers in kinds.values() for number in numbers)


def energy_ranks(spread: dict[str, dict[str, list[float]]], guess: Guess) -> Figure:
    """Directions that have 90% of the energy, in %: {"weights", "random", …: {kind: percents}}.

    One dot per block; a random matrix is a dash. The guess is for the last series' median.
    """
    last = "update" if "update" in spread else "weights"
    what = {"weights": "weight matrix", "update": "update"}[last]
    title = f"A typical {what} needs {median(spread[last]):.0f}% of its directions"
    fig, ax = titled(f"{title} for nine tenths of its energy", height=3.6)
    for name, kinds in spread.items():
        role, marker = SERIES[name]
        for x, shares in enumerate(kinds.values()):
            places = x + (np.linspace(-0.25, 0.25, len(shares)) if len(shares) > 1 else np.zeros(1))
            size, color = 420 if marker == "_" else 18, ROLES[role]
            label = {"random": "a random matrix"}.get(name, name) if x == 0 else None
            ax.scatter(places, shares, size, color, marker, label=label)
    ax.set_xticks(range(len(kinds)), [kind.removesuffix("_proj") for kind in kinds])
    ax.set(ylabel="% of the directions", ylim=(0, 100), xlim=(-0.6, len(kinds) - 0.4))
    ax.set_xlabel("kind of matrix (one dot per block, first block on the left)")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=0.7)
    guess.draw(ax)
    return fig


def cuts(
    energy: dict[int, float], right: dict[int, int], full: int, n: int, guess: Guess
) -> Figure:
    """Energy (share) and right answers of `n` that remain after a cut to each rank.

    full: right answers of the uncut update. guess: the answers at rank 8.
    """
    ranks = sorted(energy)
    best = right.get(8, right[ranks[-1]])
    kept = 8 if 8 in right else ranks[-1]
    title = f"After a cut to rank {kept}, the model keeps {_share(best, full)} of its right answers"
    fig, (left, axis) = titled(title, 2)
    places = range(len(ranks))
    left.bar(places, [100 * energy[r] for r in ranks], 0.55, color=ROLES["full"])
    left.set(ylabel="energy kept (%)", ylim=(0, 105))
    counts = {f"{r}": right[r] for r in ranks}
    counted(axis, counts, n, roles=dict.fromkeys(counts, "full"), top=1.05 * full)
    axis.axhline(full, color=INK, ls=":", lw=1.5)
    axis.text(-0.45, full, "the whole update", va="bottom", color=INK, fontsize=9)
    guess.draw(axis)
    for ax in (left, axis):
        ax.set_xticks(places, ranks)
        ax.set_xlabel("rank of the cut")
        ax.grid(axis="x", visible=False)
    return fig


def _share(part, whole):
    share = part / whole if whole else 1.0
    return "none" if share == 0 else "all" if share >= 1 else "most" if share > 0.5 else "few"


def right_answers(right: dict[str, int], n: int) -> Figure:
    """Right answers of `n` by model, with 95% intervals: base, full, its cut, LoRA."""
    *_, cut, lora = right
    beats = "beats" if right[lora] > right[cut] else "doesn't beat"
    fig, ax = titled(f"At the same rank, LoRA {beats} the truncated update")
    roles = dict(zip(right, ("base", "full", "full", "LoRA"), strict=True))
    counted(ax, right, n, roles=roles)
    return fig


def overlap(
    shares: Sequence[float],
    own: Sequence[float],
    runs: pd.DataFrame,
    chance: Sequence[float],
    guess: Guess,
) -> Figure:
    """Median % of an update's energy in the top 8 output directions of the full one.

    shares: LoRA's, per matrix. own: the full update's. runs: measured/svd.csv, for runs on other
    batches.
    """
    lora, full = 100 * np.median(shares), 100 * np.median(own)
    measured = 100 * runs[runs.study == "overlap"].groupby("measure").value.mean()
    fig, ax = titled(f"{lora:.0f}% of LoRA's energy is in full fine-tuning's main directions")
    values = {
        "the full update itself": (full, *(100 * np.quantile(own, [0.25, 0.75]))),
        "LoRA": (lora, *(100 * np.quantile(shares, [0.25, 0.75]))),
        "LoRA,\nother batches": measured["LoRA in full, other seed"],
        "full fine-tuning,\nother batches": measured["full in full, other seed"],
        "chance": 100 * np.median(chance),
    }
    roles = dict.fromkeys(["the full update itself", "full fine-tuning,\nother batches"], "full")
    roles["chance"] = "base"
    dots(ax, values, "% of energy (line: middle half of matrices)", roles, "{:.0f}")
    ax.set_xlim(0, 100)
    guess.draw(ax, "x")
    return fig


def intrinsic(accuracies: dict[int, float], full: float) -> Figure:
    """Accuracy against the dimension of the subspace; full: with every parameter trained."""
    enough = [d for d, accuracy in accuracies.items() if accuracy >= 0.9 * full]
    best = f"{enough[0]} numbers reach" if enough else "No subspace here reaches"
    fig, ax = titled(f"{best} nine tenths of full training's accuracy")
    ax.plot(list(accuracies), list(accuracies.values()), color=ROLES["LoRA"], marker="o", ms=5)
    ax.axhline(full, color=ROLES["full"])
    ax.text(1, full, "all parameters trained", va="bottom", color=INK, fontsize=9)
    ax.axhline(0.1, color=INK, ls=":", lw=1.2)
    ax.text(60, 0.09, "guessing among ten intents", va="top", color=INK, fontsize=9)
    ax.set(xscale="log", xlabel="dimension d of the subspace", ylabel="accuracy", ylim=(0, 1.05))
    ax.set_xticks(list(accuracies), [str(d) for d in accuracies])
    ax.minorticks_off()
    return fig
