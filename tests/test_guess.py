"""Guesses: noted whatever is given, drawn where they belong, told beside what came out."""

import numpy as np
import pytest

import labkit
from labkit import guess, plots


@pytest.mark.parametrize(
    ("given", "value", "text"),
    [
        (40, 40, "40"),
        (0.05123, 0.05123, "0.0512"),
        (1234.5, 1234.5, "1,234"),
        (" 40 % ", 40, "40"),
        (True, 1, "1"),
        (np.float32(2), 2, "2"),
    ],
)
def test_a_number_is_a_guess_and_told_as_one_says_it(given, value, text, capsys):
    assert guess.noted("How many?", given).value == value
    assert capsys.readouterr().out.endswith(f"Your guess: {text}.\n")


@pytest.mark.parametrize(
    "given", [None, ..., "many", "", [1, 2], {}, float("nan"), "inf", object(), 1j]
)
def test_what_is_no_number_is_no_guess_and_no_error(given, capsys):
    assert guess.noted("How many?", given).value is None
    told = capsys.readouterr().out
    assert ("in place of None" if given in (None, ...) else "one number") in told
    assert told.count("\n") == 1


def test_the_result_stands_beside_the_guess(capsys):
    guess.noted("How many of 60?", 40).beside(np.float64(23))
    assert capsys.readouterr().out.endswith("You guessed 40; it is 23.\n")
    guess.noted("And now?", None).beside(3)
    assert "guessed" not in capsys.readouterr().out


def picture(**settings):
    """Axes from 0 to 1 and from 0 to 10, with one line."""
    _, ax = plots.figure()
    ax.plot([0, 1], [0, 10])
    ax.set(**{"xlim": (0, 1), "ylim": (0, 10)} | settings)
    return ax


@pytest.mark.parametrize(("axis", "value"), [("x", 0.5), ("y", 4.0)])
def test_a_guess_is_a_line_in_the_picture(axis, value):
    ax = picture()
    guess.Guess("?", value).draw(ax, axis)
    data = ax.lines[-1].get_xdata() if axis == "x" else ax.lines[-1].get_ydata()
    assert list(data) == [value, value]
    assert [text.get_text() for text in ax.texts] == [f"your guess: {guess.as_text(value)}"]
    assert ax.get_xlim() == (0, 1) and ax.get_ylim() == (0, 10)
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("value", "lower", "higher"),
    [(15, False, True), (-3, True, False), (0.2, False, False), (500, False, False)],
)
def test_the_picture_grows_for_a_guess_nearby_and_not_for_a_wild_one(value, lower, higher):
    ax = picture()
    guess.Guess("?", value).draw(ax)
    low, high = ax.get_ylim()
    assert (low < 0, high > 10) == (lower, higher)  # else bars stand on zero
    wild = value == 500
    assert low <= value <= high or wild
    assert len(ax.lines) == (1 if wild else 2)
    assert ("off the picture" in ax.texts[0].get_text()) == wild


def test_on_a_logarithmic_axis_a_picture_grows_by_factors():
    for value, low in [(0.5, 0.01), (0.003, 0.003), (1e-7, 0.01), (0, 0.01)]:
        ax = picture(yscale="log", ylim=(0.01, 10))
        guess.Guess("?", value).draw(ax)
        assert low / 2 < ax.get_ylim()[0] <= low * 1.001
        assert ("off the picture" in ax.texts[0].get_text()) == (value < 1e-5)


def test_without_a_guess_the_picture_stands_alone():
    ax = picture()
    guess.Guess("?").draw(ax)
    assert len(ax.lines) == 1 and not ax.texts


def test_the_last_cell_sets_guesses_beside_results(monkeypatch):
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
    assert [line.split() for line in lines[-2:]] == [
        ["guess", "measured"],
        ["40", "23", "How", "many", "of", "60?"],
    ]
