"""Figures: bars from zero, a color per role, intervals, guesses, and curves that accumulate."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from labkit.figures import forms, lab02
from labkit.figures.guess import Guess
from labkit.plots import ROLES


def test_a_bar_begins_at_zero_and_has_the_color_of_its_role_and_its_interval():
    _, ax = forms.titled("A title")
    roles = {"wrong": "mistake", "base": "base"}
    forms.bars(ax, {"base": 1, "mine": (2, 1.5, 2.5), "wrong": 3}, "n", roles)
    assert ax.get_ylim()[0] == 0
    colors = [to_hex(patch.get_facecolor()).upper() for patch in ax.patches]
    assert colors == [ROLES["base"], ROLES["LoRA"], ROLES["mistake"]]
    assert [bool(patch.get_hatch()) for patch in ax.patches] == [False, False, True]
    (line,) = [bar[2][0] for bar in ax.containers if hasattr(bar, "has_yerr")]
    assert np.allclose(line.get_segments(), [[(1, 1.5), (1, 2.5)]])


@pytest.mark.parametrize("n", [12, 60, 100])
def test_all_or_none_of_n_is_drawn_although_rounding_moves_the_interval(n):
    for draw in (forms.bars, forms.dots):
        _, ax = forms.titled("A title")
        draw(ax, {"all": forms.wilson(n, n), "none": forms.wilson(0, n)}, "n")


def test_a_t_interval_is_known_from_a_table():
    half = 4.303 / 3**0.5  # t of 2 degrees of freedom
    assert forms.mean_interval([1, 2, 3]) == pytest.approx((2, 2 - half, 2 + half), rel=1e-3)


def test_a_guess_is_drawn_in_the_unit_of_the_axis_and_named_in_the_learner_s():
    peaks = {"full": {"weights": 1e9, "optimizer": 1e9}, "LoRA": {"weights": 5e8}}
    ax = lab02.memory(peaks, Guess("In percent?", 30)).axes[0]
    assert np.allclose(ax.lines[-1].get_ydata(), 0.3 * 2)  # GB
    assert ax.texts[-1].get_text() == "your guess: 30%"
    assert not lab02.memory(peaks, Guess("?")).axes[0].lines


def test_curves_accumulate_and_names_do_not_overlap():
    falls, rises = np.linspace(3, 0.5, 40), np.linspace(3, 11, 40)
    runs = {"one": falls, "two": rises, "gone": [*falls[:9], float("nan")]}
    _, ax = forms.titled("A title")
    forms.curves(ax, runs, "loss")
    assert len(ax.lines) == len(runs)
    assert [text.get_text().split(":")[0] for text in ax.texts] == list(runs)
    assert ax.texts[-1].get_text() == "gone: diverged"
    assert ax.get_ylim() == (0, pytest.approx(9))
    ends = sorted(text.xy[1] for text in ax.texts)
    assert min(np.diff(ends)) >= 0.7 and ends[-1] <= 9
