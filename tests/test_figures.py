"""Figures: bars from zero, a color per role, intervals, guesses, and one sentence as the title."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from labkit.figures import forms, lab01, lab02, lab03
from labkit.guess import Guess
from labkit.plots import ROLES, alt_text

NO_GUESS = Guess("?")
FALLS, RISES = np.linspace(3, 0.5, 40), np.linspace(3, 11, 40)
PEAKS = {
    "full": {"weights": 5e8, "gradients": 5e8, "optimizer": 1e9},
    "LoRA": {"weights": 5e8, "gradients": 1e5, "optimizer": 2e5},
}
COSTS, ERRORS = [0.1, 0.2, 1.1], {"photograph": [0.3, 0.2, 0.1], "noise": [0.9, 0.8, 0.4]}
KINDS = {"q_proj": [100, 120], "up_proj": [300, 310]}
SHARES = pd.DataFrame(
    [
        ("overlap", "full in full, other seed", 0.3),
        ("overlap", "LoRA in full, other seed", 0.4),
    ],
    columns=["study", "measure", "value"],
)
FIGURES = {
    "rank_grid": lambda: lab01.rank_grid({r: torch.rand(4, 4) for r in (1, 5)}, {1: 0.3, 5: 0.05}),
    "error_and_cost": lambda: lab01.error_and_cost(COSTS, ERRORS, 10, NO_GUESS),
    "energy_ranks": lambda: lab01.energy_ranks({"weights": KINDS, "update": KINDS}, NO_GUESS),
    "cuts": lambda: lab01.cuts({1: 0.2, 8: 0.6}, {1: 0, 8: 20}, 39, 60, NO_GUESS),
    "who is right": lambda: lab01.right_answers({"base": 0, "full": 39, "cut": 20, "r": 37}, 60),
    "overlap": lambda: lab01.overlap([0.4, 0.5], [0.5, 0.5], SHARES, [0.01], NO_GUESS),
    "intrinsic": lambda: lab01.intrinsic({1: 0.1, 50: 0.8, 500: 0.95}, 0.97),
    "rates": lambda: lab03.rates({"2e-05": [4.3, 4.2], "0.002": [4.3, 0.2]}, NO_GUESS),
    "targets": lambda: lab03.targets({"q, v": FALLS, "all-linear": FALLS[::-1]}),
    "before and after": lambda: lab03.right_answers({"base": 0, "tuned": 32}, 60),
    "endless": lambda: lab03.endless({"given labels": 60, "your labels": 0}, 60, NO_GUESS),
    "reloaded": lambda: lab03.reloaded({"as trained": 32, "loaded": 4}, 60, NO_GUESS),
    "low_rank": lambda: lab02.low_rank(576, 576, 16),
    "one start": lambda: lab02.first_losses({"B = 0": FALLS}),
    "starts": lambda: lab02.first_losses({"B = 0": FALLS, "both random": RISES}),
    "one setting": lambda: lab02.turned({"r=8, alpha=16": FALLS}),
    "settings": lambda: lab02.turned({"r=8, alpha=16": RISES, "r=64, alpha=16": FALLS}),
    "right_answers": lambda: lab02.right_answers({"base": (0, 3), "LoRA": (37, 52)}, 60, NO_GUESS),
    "memory": lambda: lab02.memory(PEAKS, NO_GUESS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_one_sentence_with_at_most_one_number(name):
    fig = FIGURES[name]()
    fig.draw_without_rendering()
    title = alt_text(fig)
    assert title == fig.get_suptitle() != ""
    assert len(re.findall(r"(?<![\w.])\d[\d.,]*", re.sub("[AB] = 0", "", title))) <= 1


@pytest.mark.parametrize("name", ["right_answers", "memory", "cuts", "endless"])
def test_bars_begin_at_zero(name):
    assert all(ax.get_ylim()[0] == 0 for ax in FIGURES[name]().axes)


def test_a_bar_has_the_color_of_its_role_and_its_interval():
    _, ax = forms.titled("A title")
    roles = {"wrong": "mistake", "base": "base"}
    forms.bars(ax, {"base": 1, "mine": (2, 1.5, 2.5), "wrong": 3}, "n", roles)
    colors = [to_hex(patch.get_facecolor()).upper() for patch in ax.patches]
    assert colors == [ROLES["base"], ROLES["LoRA"], ROLES["mistake"]]
    assert [bool(patch.get_hatch()) for patch in ax.patches] == [False, False, True]
    (line,) = [bar[2][0] for bar in ax.containers if hasattr(bar, "has_yerr")]
    assert np.allclose(line.get_segments(), [[(1, 1.5), (1, 2.5)]])


def test_a_t_interval_is_known_from_a_table():
    half = 4.303 / 3**0.5  # t of 2 degrees of freedom
    assert forms.mean_interval([1, 2, 3]) == pytest.approx((2, 2 - half, 2 + half), rel=1e-3)


def test_a_guess_is_drawn_in_the_unit_of_the_axis_and_named_in_the_learner_s():
    ax = lab02.memory(PEAKS, Guess("In percent?", 30)).axes[0]
    assert np.allclose(ax.lines[-1].get_ydata(), 0.3 * 2)  # GB
    assert ax.texts[-1].get_text() == "your guess: 30%"
    assert not lab02.memory(PEAKS, NO_GUESS).axes[0].lines


def test_curves_accumulate_and_the_newest_is_strong():
    runs = {"one": FALLS, "two": RISES, "gone": [*FALLS[:9], float("nan")]}
    _, ax = forms.titled("A title")
    forms.curves(ax, runs, "loss")
    assert len(ax.lines) == 2 * len(runs)  # each step, and a mean
    widths = [line.get_linewidth() for line in ax.lines[1::2]]
    assert widths[0] == widths[1] < widths[2]
    assert [text.get_text().split(":")[0] for text in ax.texts] == list(runs)
    assert ax.texts[-1].get_text() == "gone: diverged"
    assert ax.get_ylim() == (0, pytest.approx(min(9, 1.05 * max(RISES))))


def test_names_at_the_ends_do_not_overlap():
    places = forms.spread([1, 1, 5, 9.9], gap=1, top=5)
    assert min(np.diff(sorted(places))) >= 1 and max(places) <= 5
