"""Guesses: noted whatever is given, drawn where they belong, told beside what came out."""

import numpy as np
import pytest

import labkit
from labkit import guess, plots


@pytest.mark.parametrize(
    ("given", "value"),
    [(40, 40), (0.25, 0.25), ("40", 40), (" 40 % ", 40), (True, 1), (np.float32(2), 2)],
)
def test_a_number_is_a_guess(given, value, capsys):
    assert guess.noted("How many?", given).value == value
    assert capsys.readouterr().out.startswith("◆ How many? Your guess: ")


@pytest.mark.parametrize("given", ["many", "", [1, 2], {}, float("nan"), "inf", object(), 1j])
def test_what_is_no_number_is_left_out_and_said(given, capsys):
    assert guess.noted("How many?", given).value is None
    told = capsys.readouterr().out
    assert "one number" in told and told.count("\n") == 1


@pytest.mark.parametrize("given", [None, ...])
def test_no_guess_is_no_error(given, capsys):
    assert guess.noted("How many?", given).value is None
    assert "in place of None" in capsys.readouterr().out


def test_the_result_stands_beside_the_guess(capsys):
    noted = guess.noted("How many of 60?", 40)
    noted.beside(np.float64(23))
    assert capsys.readouterr().out.endswith("You guessed 40; it is 23.\n")
    guess.noted("And now?", None).beside(3)
    assert "guessed" not in capsys.readouterr().out


def picture(axis="y"):
    fig, ax = plots.figure()
    ax.plot([0, 1], [0, 10])
    ax.set(xlim=(0, 1), ylim=(0, 10))
    return fig, ax


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_guess_is_a_line_in_the_picture(axis):
    fig, ax = picture()
    value = {"x": 0.5, "y": 4.0}[axis]
    guess.Guess("?", value).draw(ax, axis)
    data = ax.lines[-1].get_xdata() if axis == "x" else ax.lines[-1].get_ydata()
    assert list(data) == [value, value]
    assert [text.get_text() for text in ax.texts] == [f"your guess: {guess.as_text(value)}"]
    assert ax.get_xlim() == (0, 1) and ax.get_ylim() == (0, 10)
    fig.draw_without_rendering()


def test_the_picture_grows_for_a_guess_nearby_and_not_for_a_wild_one():
    _, ax = picture()
    guess.Guess("?", 15).draw(ax)
    assert ax.get_ylim()[1] > 15
    _, ax = picture()
    guess.Guess("?", -3).draw(ax)
    assert ax.get_ylim()[0] < -3
    _, ax = picture()
    guess.Guess("?", 500).draw(ax)
    assert ax.get_ylim() == (0, 10) and len(ax.lines) == 1
    assert ax.texts[0].get_text() == "your guess: 500, off the picture"


def test_bars_stay_on_zero_for_a_small_guess():
    _, ax = picture()
    guess.Guess("?", 0.2).draw(ax)
    assert ax.get_ylim() == (0, 10)


def test_on_a_logarithmic_axis_a_picture_grows_by_factors():
    for value, low in [(0.5, 0.01), (0.003, 0.003), (1e-7, 0.01), (0, 0.01)]:
        fig, ax = picture()
        ax.set(yscale="log", ylim=(0.01, 10))
        guess.Guess("?", value).draw(ax)
        assert low / 2 < ax.get_ylim()[0] <= low * 1.001
        assert ("off the picture" in ax.texts[0].get_text()) == (value < 1e-5)
        fig.draw_without_rendering()


def test_without_a_guess_the_picture_stands_alone():
    _, ax = picture()
    guess.Guess("?").draw(ax)
    assert len(ax.lines) == 1 and not ax.texts


def test_the_last_cell_sets_guesses_beside_results(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("labkit.lab.display", lambda data, **_: shown.append(data))
    lab, _ = labkit.start("02_lora")
    lab.score()
    assert "measured" not in shown.pop()["text/plain"]
    lab.predict("How many of 60?", 30)
    mine = lab.predict("How many of 60?", 40)  # the cell run again
    lab.predict("How many MB?", 1200)  # whose experiment was not run
    lab.predict("How much?", None).beside(2)
    mine.beside(23)
    lab.score()
    lines = shown.pop()["text/plain"].splitlines()
    assert lines[-2:] == ["    guess  measured", "       40        23  How many of 60?"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(23, "23"), (0.05123, "0.0512"), (1234.5, "1,234"), (-7, "-7"), (99.96, "100")],
)
def test_numbers_are_told_as_one_says_them(value, text):
    assert guess.as_text(value) == text
