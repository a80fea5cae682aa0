"""The first page: its addresses, its labs, its pictures, and its numbers.

A number stands in README because something measured it: the run that docs/pictures/run.json tells
of, a file in labkit/measured, or a table in docs. Where that says something else now, README is
stale.
"""

import importlib
import json
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import readme

from labkit import contract
from labkit.course import claims, masters

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")
RUN = json.loads((readme.FOLDER / "run.json").read_text("utf-8"))
STEMS = [path.stem for path in masters.masters(ROOT)]


def test_it_clones_what_pyproject_names():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert f"git clone {urls['Repository']} && cd lora-labs\nmake lab " in TEXT


def test_who_cites_it_names_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    cited = dict(re.findall(r"(?m)^([a-z-]+): (.+)$", (ROOT / "CITATION.cff").read_text("utf-8")))
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["repository-code"] == project["urls"]["Repository"]


def test_colab_opens_lab_1_as_its_own_badge_does():
    (address,) = re.findall(r"\[lab 1 in Colab\]\((.*?)\)", TEXT)
    assert f"]({address})" in (ROOT / "notebooks" / f"{STEMS[0]}.ipynb").read_text("utf-8")


def test_its_table_has_every_lab_by_its_title_and_the_time_that_it_states():
    rows = re.findall(r"(?m)^\| \[(\d) · (.+?)\]\(notebooks/(.+?)\.ipynb\).*\| (\d+) \|$", TEXT)
    assert [stem for *_, stem, _ in rows] == STEMS
    for number, title, stem, minutes in rows:
        book = (ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8")
        assert f"# Lab {number} · {title}" in book and f"About {minutes} minutes" in book
    hours = round(sum(int(minutes) for *_, minutes in rows) / 60)
    assert f"all nine about {hours} hours" in plain(TEXT)


def test_it_is_short_and_its_first_screen_shows_what_one_gets():
    assert len(TEXT.replace("|", " ").split()) <= 900
    top = TEXT[: TEXT.index("\n## ")]
    assert len(top.splitlines()) <= 30 and "make lab" in top and "Colab" in top and "![" in top


def test_it_counts_the_claims():
    assert f"lists {len(claims.load())} such claims" in TEXT


def plain(text):
    return " ".join(text.replace("`", "").split())


@pytest.mark.parametrize("name", readme.SHOWN)
def test_a_picture_says_what_it_says_in_the_run_that_made_it(name):
    told = RUN["pictures"][name]
    shown = re.findall(r"!\[(.*?)\]\(docs/pictures/(.*?)\)", TEXT)
    words = {path: alt for alt, path in shown}
    assert words.keys() == readme.SHOWN.keys()
    assert len(words[name]) > 20 and (readme.FOLDER / name).is_file()
    assert plain(words[name]) == plain(told["title"]), "README's words are not the picture's title"


def test_what_it_says_of_a_cut_update_is_in_the_table():
    table = pd.read_csv(ROOT / "labkit" / "measured" / "svd.csv")
    found = table.pivot_table(index=["study", "setting", "seed"], columns="measure", values="value")
    full, lora, cut = (
        found.loc[place] for place in (("home", "full"), ("home", "LoRA"), ("cut", "rank 8"))
    )
    assert (cut["right"] < 0.5 * full["right"]).all() and "most of the right answers" in plain(TEXT)
    assert (lora["right"] >= 0.85 * full["right"]).all() and "answers almost as well" in plain(TEXT)
    assert len(full) == len(lora) == len(cut) == 3


@pytest.mark.parametrize(
    "told", [*RUN["pictures"].values(), RUN["answers"]], ids=lambda told: told["experiment"]
)
def test_the_experiments_are_still_those_of_the_run(told):
    stale = f"""README shows an older lab: labkit run {told["lab"][:2]}, then
        python benchmarks/readme.py build"""
    assert readme.code_until(told["lab"], told["experiment"]) == told["code"], plain(stale)


def test_before_and_after_are_answers_of_that_run():
    top = TEXT[: TEXT.index("\n## ")]
    rows = re.findall(r"(?m)^\| ([a-z].*?) \| (.*?) \| `(\{.*?\})` \|$", top)
    known = {asked: (plain(base), tuned) for asked, base, tuned in RUN["answers"]["rows"]}
    assert len(rows) == 2
    for asked, base, tuned in rows:
        assert known[asked][1] == tuned and known[asked][0].startswith(plain(base).strip(" …"))
    before, after, of = re.search(r"(\d+) → (\d+) of (\d+)", RUN["answers"]["headline"]).groups()
    seconds = re.search(r"in (\d+) s", RUN["answers"]["headline"])[1]
    assert f"{after} of {of} unseen commands" in plain(top) and f"{seconds} s" in top
    assert before == "0" and "the base model none" in plain(top)


def test_what_it_says_of_merges_is_in_the_table():
    rows = pd.read_csv(ROOT / "labkit" / "measured" / "merging.csv")
    right = rows.pivot_table(index="seed", columns="measure", values="value")
    lost = right["as trained: right"] - right["original, 16 bits: right"]
    assert sorted(set(lost.round())) == [9, 10] and len(lost) == 3
    assert "it loses nine or ten of 60 right answers in each of three seeds" in plain(TEXT)


def test_what_it_says_of_rates_and_templates_is_in_the_tables():
    """The rates are those of claim A24, whose evidence page computes them."""
    right = next(claim.right for claim in claims.load() if claim.id == "A24")
    assert "about 30 at 8, 10 at 32, 3 at 128" in right
    assert "At alpha 8 it is about 30 times" in plain(TEXT) and "alpha 128 three times" in plain(
        TEXT
    )
    rows = pd.read_csv(ROOT / "labkit" / "measured" / "ship.csv")
    runs = rows.pivot_table(index="seed", columns="measure", values="value")
    trained, other = runs["asked: as in training"], runs["asked: Llama 2's template"]
    assert (trained >= 0.9 * runs["n"]).all() and "nine of ten answers right" in plain(TEXT)
    assert (other < 0.1 * runs["n"]).all() and "Llama 2's, fewer than one." in plain(TEXT)


def test_how_good_memory_is_stands_in_its_guide():
    guide = (ROOT / "docs" / "memory.md").read_text("utf-8")
    assert "within 0.01% of our CPU" in plain(TEXT) and "within 0.01% of `track()`" in guide
    off = [-float(x) for x in re.findall(r"\| PEFT .*\| -([\d.]+)% \|", guide)]
    assert len(off) == 4 and f"0 to {-min(off):.0f}% below" in TEXT


def test_the_points_that_instructors_set_are_those_of_the_checks():
    rooms = [importlib.import_module(f"labkit.checks.lab{n:02}") for n in range(1, 9)]
    points = [sum(c.exercise["points"] for c in contract.checks_of(room)) for room in rooms]
    told = ", ".join(map(str, points[:-1])) + f" and {points[-1]} for labs 1 to 8"
    assert told in plain((ROOT / "docs" / "instructor.md").read_text("utf-8"))
