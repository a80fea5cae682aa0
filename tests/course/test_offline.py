"""Formulas in pages need no script and no network."""

import re
from pathlib import Path

import nbformat
import pytest

from labkit.course import pages

ROOT = Path(__file__).parents[2]


def test_a_formula_becomes_mathml():
    html = pages.to_html(r"The update is $\frac{\alpha}{r} B A$, so:" + "\n\n$$x < y$$\n")
    assert html.count("<math") == 2 and 'display="block"' in html
    assert "<mfrac>" in html and "&#x003B1;" in html  # alpha
    assert "$" not in html


def test_dollars_in_code_are_left_alone():
    html = pages.to_html("Say `$HOME/$USER` or\n\n```\necho $PATH $USER\n```\n")
    assert "<math" not in html and "$PATH $USER" in html


@pytest.mark.parametrize("path", sorted(ROOT.glob("solutions/*.ipynb")), ids=lambda p: p.stem)
def test_every_formula_of_the_labs_is_understood(path):
    cells = nbformat.read(path, 4).cells
    text = "\n".join(pages.to_html(c.source) for c in cells if c.cell_type == "markdown")
    assert "<math" in text
    without_code = re.sub(r"<(code|pre)\b.*?</\1>", "", text, flags=re.S)
    assert "$" not in without_code
    assert not re.findall(r"<m(?:i|text)>\\\w+</m", text)  # how it shows what it can't read
