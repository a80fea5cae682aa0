"""Guesses: noted whatever is given, drawn where they belong, told beside what came out."""

import numpy as np
import pytest

import labkit
from labkit import plots
from labkit.figures import guess


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
    assert ("Replace None" if given in (None, ...) else "one number") in told
    assert told.count("\n") == 1


def test_the_result_stands_beside_the_guess(capsys):
    guess.noted("How many of 60?", 40).compare(np.float64(23))
    assert capsys.readouterr().out.endswith("You guessed 40; the result is 23.\n")
    guess.noted("And now?", None).compare(3)
    assert "guessed" not in capsys.readouterr().out


def picture(**settings):
    _, ax = plots.figure()
    ax.plot([0, 1], [0, 10])
    ax.set(**{"xlim": (0, 1), "ylim": (0, 10)} | settings)
    return ax


@pytest.mark.parametrize(("axis", "value", "text"), [("x", 0.5, "0.5"), ("y", 4.0, "4")])
def test_a_guess_is_a_line_in_the_picture_and_none_is_none(axis, value, text):
    ax = picture()
    guess.Guess("?").draw(ax)
    assert len(ax.lines) == 1 and not ax.texts
    guess.Guess("?", value).draw(ax, axis)
    assert set(ax.lines[-1].get_data()["xy".index(axis)]) == {value}
    assert [label.get_text() for label in ax.texts] == [f"your guess: {text}"]
    assert ax.get_xlim() == (0, 1) and ax.get_ylim() == (0, 10)
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("scale", "value", "low", "high"),
    [
        ("linear", 15, 0, 16.25),
        ("linear", -3, -3.5, 10),
        ("linear", 0.2, 0, 10),  # bars stand on zero
        ("linear", 500, 0, 10),
        ("log", 0.5, 0.01, 10),
        ("log", 0.003, 0.0021, 10),
        ("log", 1e-7, 0.01, 10),
        ("log", 0, 0.01, 10),
    ],
)
def test_the_picture_grows_for_a_guess_nearby_and_not_for_a_wild_one(scale, value, low, high):
    ax = picture(yscale=scale, ylim=(0 if scale == "linear" else 0.01, 10))
    guess.Guess("?", value).draw(ax)
    assert ax.get_ylim() == pytest.approx((low, high), rel=0.05)
    wild = not low <= value <= high
    assert len(ax.lines) == (1 if wild else 2)
    assert ("off the chart" in ax.texts[0].get_text()) == wild


def test_the_last_cell_sets_guesses_beside_results(monkeypatch):
    shown = []
    monkeypatch.setattr("labkit.lab.display", lambda data, **_: shown.append(data))
    lab, _ = labkit.start("02_lora")
    lab.score()
    assert "measured" not in shown.pop()["text/plain"]
    lab.predict("How many of 60?", 30)
    mine = lab.predict("How many of 60?", 40)  # the cell run again
    lab.predict("How many MB?", 1200)  # whose experiment was not run
    lab.predict("How much?", None).compare(2)
    mine.compare(23)
    lab.score()
    lines = shown.pop()["text/plain"].splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["guess", "measured"],
        ["40", "23", "How", "many", "of", "60?"],
    ]
