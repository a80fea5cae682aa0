"""Figures of lab 1."""

from collections.abc import Sequence
from statistics import median as middle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib import cbook
from matplotlib.figure import Figure

from labkit.figures.forms import RING, dots, titled
from labkit.figures.guess import Guess, as_text
from labkit.plots import BESIDE, INK, PAPER, ROLES


def photograph() -> torch.Tensor:
    """Grace Hopper, from matplotlib's sample data: gray, 0 black to 1 white, (300, 256)."""
    pixels = torch.tensor(plt.imread(cbook.get_sample_data("grace_hopper.jpg")) / 255.0)
    return torch.nn.functional.avg_pool2d(pixels.mean(-1)[None].float(), 2)[0]


def rank_grid(pictures: dict[int, torch.Tensor], errors: dict[int, float]) -> Figure:
    """Gray pictures in two rows, by rank, with their relative errors (0 to 1)."""
    good = min((r for r, error in errors.items() if error < 0.1), default=None)
    title = f"At rank {good} and above, the error is below a tenth"
    title = title if good else "No rank here has an error below a tenth"
    fig, axes = titled(title, -(-len(pictures) // 2), width=9.5, height=6.0, n_rows=2)
    for ax, r in zip(axes.flat, pictures, strict=False):
        _picture(ax, pictures[r], f"r = {r} · error {errors[r]:.0%}")
    return fig


def beside(picture: torch.Tensor, original: torch.Tensor, title: str) -> Figure:
    """One gray picture under its title, next to the original."""
    fig, (left, right) = titled("", 2, width=6.8, height=4.0)
    _picture(left, picture, title)
    _picture(right, original, "original")
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
    fifth = fifth_of(costs)
    times = errors["noise"][fifth] / errors["photograph"][fifth]
    fig, ax = titled(f"At a fifth of the storage, noise has {times:.0f} times the photo's error")
    for (name, values), role in zip(errors.items(), ("LoRA", "base"), strict=True):
        x, y = 100 * np.array(costs), 100 * np.array(values)
        ax.plot(x, y, color=ROLES[role])
        ax.plot(x[fifth], y[fifth], color=ROLES[role], marker="o")
        text, how = f"{name} {y[fifth]:.0f}%", {"color": INK, "bbox": PAPER, **BESIDE}
        ax.annotate(text, (x[fifth], y[fifth]), (6, 11), **how)
    ax.axvline(100, color=INK, ls=":", lw=1.2)
    ax.text(101, 98, f" r = {r_even}: last rank\n that saves space", va="top", color=INK)
    ax.set(xlim=(0, 135), ylim=(0, 102), ylabel="relative error (%)")
    ax.set_xlabel("numbers stored (% of the matrix)")
    guess.draw(ax)
    return fig


def fifth_of(costs: Sequence[float]) -> int:
    """The index of the cost nearest to a fifth, in ascending costs."""
    return int(np.abs(np.array(costs) - 0.2).argmin())


def median(kinds: dict[str, list[float]]) -> float:
    """The median of all numbers in {kind: numbers}."""
    return middle(number for numbers in kinds.values() for number in numbers)


def energy_ranks(
    weights: dict[str, list[float]], random: dict[str, list[float]], guess: Guess
) -> Figure:
    """Directions that have 90% of the energy, in %, by kind of matrix: {kind: percents}.

    One dot per block; random matrices of the same shapes are dashes. guess: the weights' median.
    """
    title = f"A typical weight matrix needs {median(weights):.0f}% of its directions"
    fig, ax = titled(title, height=3.6)
    for x, (shares, (chance,)) in enumerate(zip(weights.values(), random.values(), strict=True)):
        ax.scatter(x + np.linspace(-0.25, 0.25, len(shares)), shares, 18, ROLES["base"])
        ax.scatter(x, chance, 420, INK, "_")
    for name, kinds, color, y in (("weights", weights, "#777777", -6), ("random", random, INK, 0)):
        ax.annotate(name, (6.4, list(kinds.values())[-1][0]), (4, y), color=color, **BESIDE)
    ax.set_xticks(range(len(weights)), [kind.removesuffix("_proj") for kind in weights])
    ax.set(ylim=(0, 100), xlim=(-0.6, len(weights) - 0.6))
    ax.set_ylabel("% of directions that\nhold 90% of the energy")
    ax.set_xlabel("kind of matrix (one dot per block, first block on the left)")
    ax.grid(axis="x", visible=False)
    guess.draw(ax)
    return fig


def captured(spectra: dict[str, torch.Tensor], guess: Guess) -> Figure:
    """Energy (%) in the first directions (%): singular values (k,) by name, the update's last.

    guess: the percentage of directions that has 90% of the update's energy.
    """
    energy = {name: 100 * (s**2).cumsum(0) / (s**2).sum() for name, s in spectra.items()}
    fig, ax = titled(f"8 directions hold {energy['update'][7]:.0f}% of this update's energy")
    colors = (INK, "#777777", ROLES["full"])
    for (name, shares), color, down in zip(energy.items(), colors, (10, 24, 10), strict=True):
        x = 100 * np.arange(1, len(shares) + 1) / len(shares)
        ax.plot(x, shares, color=color)
        i = int((shares < 90).sum())
        ax.plot(x[i], shares[i], "o", color=color)
        ax.annotate(f"{name}: {x[i]:.0f}%", (x[i], shares[i]), (6, -down), color=color, **BESIDE)
    ax.plot(x[7], shares[7], "o", mfc="white", color=color)
    ax.axhline(90, color=INK, ls=":", lw=1.2)
    ax.set(xlim=(0, 100), ylim=(0, 102), ylabel="% of the energy (dotted: 90%)")
    ax.set_xlabel("% of the directions, largest first (circle: 8 directions)")
    guess.draw(ax, "x")
    return fig


def cuts(
    energy: dict[int, float],
    right: dict[int, int],
    full: int,
    runs: pd.DataFrame,
    guess: Guess,
    loras: dict[int, int] | None = None,
) -> Figure:
    """Energy (share) and right answers after a cut to each rank, in % of the whole update's.

    full: right answers of the uncut update; loras: those of LoRA, {rank: count}. runs:
    measured/svd.csv, for the seeds drawn as rings. guess: the answers at rank 8.
    """
    ranks, kept, scale = sorted(energy), 8 if 8 in right else max(right), 100 / max(full, 1)
    title = f"A cut to rank {kept} keeps {scale * right[kept]:.0f}% of the right answers"
    if both := sorted((loras or {}).keys() & right.keys()):
        beats = "beats" if all(loras[r] > right[r] for r in both) else "doesn't always beat"
        title = f"At the same rank, LoRA {beats} the truncated update"
    fig, ax = titled(title, height=3.6)
    named = {"color": ROLES["full"], "bbox": PAPER, **BESIDE}
    for name, values, how, y in (
        ("energy", [100 * energy[r] for r in ranks], {"ls": "--", "lw": 1.2}, -9),
        ("right answers", [scale * right[r] for r in ranks], {"marker": "o"}, 0),
    ):
        ax.plot(ranks, values, color=ROLES["full"], **how)
        ax.annotate(name, (ranks[-1], values[-1]), (8, y), **named)
    counts = runs[runs.measure == "right"].pivot_table("value", "setting", "seed")
    for setting, counted in (100 * counts / counts.loc["full"]).iterrows():
        if setting.startswith("rank") or (setting == "LoRA" and loras):
            x = 8 if setting == "LoRA" else int(setting.removeprefix("rank "))
            color = ROLES["LoRA" if setting == "LoRA" else "full"]
            ax.plot([x] * len(counted), counted, **RING | {"mec": color}, zorder=3)
    for r, count in (loras or {}).items():
        ax.plot(r, scale * count, "*", ms=15, color=ROLES["LoRA"], zorder=4)
        ax.annotate(f"LoRA, r = {r}", (r, scale * count), (9, 9), bbox=PAPER, **BESIDE)
    if not loras and guess.value is not None:
        place = (kept, scale * guess.value)
        ax.plot(*place, "x", ms=9, mew=2, color=INK, clip_on=False)
        ax.annotate(f"your guess: {as_text(guess.value)}", place, (8, 0), fontsize=9, **BESIDE)
    ax.axhline(100, color=INK, ls=":", lw=1.2)
    ax.set(xscale="log", ylim=(-3, None), xlabel="rank of the cut (ring: another seed)")
    ax.set(ylabel="relative to the full update (%)", xticks=ranks, xticklabels=ranks)
    ax.minorticks_off()
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
    fig, ax = titled("LoRA partly writes where full fine-tuning does")
    values = {
        "the full update\nitself": full,
        "LoRA": lora,
        "LoRA,\nother batches": measured["LoRA in full, other seed"],
        "full fine-tuning,\nother batches": measured["full in full, other seed"],
        "chance": 100 * np.median(chance),
    }
    roles = dict.fromkeys(["the full update\nitself", "full fine-tuning,\nother batches"], "full")
    roles["chance"] = "base"
    dots(ax, values, "% of energy in the full update's top 8 directions (median)", roles, "{:.2g}")
    ax.set_xlim(0, 100)
    guess.draw(ax, "x")
    return fig


def intrinsic(accuracies: dict[int, float], full: float, n_params: int) -> Figure:
    """Accuracy against the dimension of the subspace; full: with all `n_params` trained."""
    enough = [d for d, accuracy in accuracies.items() if accuracy >= 0.9 * full]
    best = "A few hundred numbers reach" if enough else "No subspace here reaches"
    fig, ax = titled(f"{best} 90% of full training's accuracy")
    dims, shares = list(accuracies), [100 * accuracy for accuracy in accuracies.values()]
    ax.plot(dims, shares, color=ROLES["LoRA"], marker="o", ms=5)
    ax.plot(n_params, 100 * full, "o", ms=8, color=ROLES["full"])
    ax.annotate(f"all {n_params:,}", (n_params, 100 * full), (-10, 0), ha="right", **BESIDE)
    for y, text in ((90 * full, "90% of full training"), (10, "guessing among ten intents")):
        ax.axhline(y, color=INK, ls=":", lw=1.2)
        ax.text(2 * n_params, y - 1, text, ha="right", va="top", color=INK, fontsize=9)
    ax.set(xscale="log", xlim=(0.8, 2 * n_params), ylim=(0, 105), ylabel="accuracy (%)")
    ax.set_xlabel("numbers trained, d")
    ticks = [1, 10, 100, 1000, 10000]
    ax.set_xticks(ticks, [f"{d:,}" for d in ticks])
    ax.minorticks_off()
    return fig
