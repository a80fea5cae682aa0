"""The first page: its addresses, its labs, its pictures."""

import re
import tomllib
from pathlib import Path

from labkit.course import masters

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")
STEMS = [path.stem for path in masters.masters(ROOT)]


def test_it_clones_what_pyproject_names():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert f"git clone {urls['Repository']} && cd lora-labs\nmake lab " in TEXT


def test_colab_opens_lab_1_as_its_own_badge_does():
    (address,) = re.findall(r"\[lab 1 in Colab\]\((.*?)\)", TEXT)
    assert f"]({address})" in (ROOT / "notebooks" / f"{STEMS[0]}.ipynb").read_text("utf-8")


def test_its_table_has_every_lab_by_its_title():
    rows = re.findall(r"(?m)^\| \[(\d) · (.+?)\]\(notebooks/(.+?)\.ipynb\)", TEXT)
    assert [stem for *_, stem in rows] == STEMS
    for number, title, stem in rows:
        assert f"# # Lab {number} · {title}\n" in (ROOT / "labs" / f"{stem}.py").read_text("utf-8")


def test_the_first_screen_ends_before_set_up():
    """What it is, what one gets, two lines to start, and Colab."""
    top = TEXT[: TEXT.index("\n## ")]
    assert len(top.splitlines()) <= 30 and "make lab" in top and "Colab" in top


def test_a_picture_has_words():
    for words, path in re.findall(r"!\[(.*?)\]\((.*?)\)", TEXT):
        assert len(words) > 20 and (ROOT / path).is_file()
