"""Figures in a notebook: sharp, as large as before, and with words for who can't see them."""

import io

import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from PIL import Image

from labkit.plots import alt_text, figure, headed


def test_a_figure_has_twice_the_resolution_and_says_its_point():
    formatters = InteractiveShell.instance().display_formatter.formatters
    fig, ax = figure(width=4, height=2)
    ax.set_title("Rank 8 keeps 54%\nof the energy", loc="left")
    shown = formatters["image/png"].lookup(fig)  # a terminal's shell doesn't call it
    data, told = shown(fig)
    width, height = Image.open(io.BytesIO(data)).size
    assert (told["width"], told["height"]) == (width // 2, height // 2)
    assert width == pytest.approx(2 * 4 * fig.dpi, rel=0.1)
    assert told["alt"] == "Rank 8 keeps 54% of the energy"


def test_what_a_figure_says_is_its_title_else_those_of_its_axes():
    fig, (left, right) = figure(2)
    left.set_title("one", loc="center")
    right.set_title("two", loc="left")
    assert alt_text(fig) == "one; two"
    assert alt_text(headed(fig, "both  of them")) == "both of them"
    assert alt_text(Figure()) == ""
