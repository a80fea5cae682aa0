"""The first page: its addresses, its labs, its answers, and its numbers.

Something measured each number in README: the run in docs/pictures/run.json, a file in
labkit/measured, or a table in docs. Where that says something else now, README is stale.
"""

import json
import re

import readme
from points import points

from labkit import measured
from labkit.course import claims, masters

ROOT = readme.ROOT
TEXT = (ROOT / "README.md").read_text("utf-8")
RUN = json.loads((readme.FOLDER / "run.json").read_text("utf-8"))
STEMS = [path.stem for path in masters.masters(ROOT)]
PROJECT = masters.project(ROOT)


def plain(text):
    return " ".join(text.replace("`", "").split())


def test_its_links_lead_somewhere_and_its_addresses_are_of_this_repository_and_version():
    address = PROJECT["urls"]["Repository"]
    assert f"git clone {address} && cd lora-labs\nmake lab " in TEXT
    cited = dict(re.findall(r"(?m)^([a-z-]+): (.+)$", (ROOT / "CITATION.cff").read_text("utf-8")))
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["repository-code"] == address
    (colab,) = re.findall(r"\[lab 1 in Colab\]\((.*?)\)", TEXT)
    assert f"]({colab})" in (ROOT / "notebooks" / f"{STEMS[0]}.ipynb").read_text("utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", TEXT):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_it_counts_the_claims_and_its_table_has_every_lab_by_its_title_and_stated_time():
    rows = re.findall(r"(?m)^\| \[(\d) · (.+?)\]\(notebooks/(.+?)\.ipynb\).*\| (\d+) \|$", TEXT)
    assert [stem for *_, stem, _ in rows] == STEMS
    for number, title, stem, minutes in rows:
        book = (ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8")
        assert f"# Lab {number} · {title}" in book and f"About {minutes} minutes" in book
    hours = round(sum(int(minutes) for *_, minutes in rows) / 60)
    assert f"about {hours} hours" in plain(TEXT)
    assert f"{len(claims.load())} such claims have a one-line answer" in TEXT


def test_it_is_short_and_its_first_screen_shows_what_one_gets():
    assert len(TEXT.replace("|", " ").split()) <= 900
    top = TEXT[: TEXT.index("\n## ")]
    assert len(top.splitlines()) <= 30 and "make lab" in top and "Colab" in top and "![" in top


def test_the_experiment_is_still_that_of_the_run():
    told = RUN["answers"]
    stale = "README shows an older lab: labkit run 2, then benchmarks/readme.py"
    assert readme.code_until(told["lab"], told["experiment"]) == told["code"], stale


def test_before_and_after_are_answers_of_that_run():
    top = TEXT[: TEXT.index("\n## ")]
    rows = re.findall(r"(?m)^\| ([a-z].*?) \| (.*?) \| `(\{.*?\})` \|$", top)
    known = {asked: (plain(base), tuned) for asked, base, tuned in RUN["answers"]["rows"]}
    assert len(rows) == 2
    for asked, base, tuned in rows:
        assert known[asked][1] == tuned and known[asked][0].startswith(plain(base).strip(" …"))
    before, after, of = re.search(r"(\d+) → (\d+) of (\d+)", RUN["answers"]["headline"]).groups()
    seconds = re.search(r"in (\d+) s", RUN["answers"]["headline"])[1]
    asked = f"Of {of} unseen commands, the base model gets {before} exactly right"
    few_shot = "(1 with 10 examples in the prompt)"
    result = f"With your LoRA, it gets **{after}**, after {seconds} s of training"
    assert f"{asked} {few_shot}. {result}" in plain(top)
    full = measured.by_run("lora")["right"]["home", "full"]
    assert len(full) == 3
    assert f"Full fine-tuning gets {min(full):.0f} to {max(full):.0f} (three seeds)" in plain(top)
    assert before == "0" and "1 with 10 examples in the prompt" in RUN["answers"]["headline"]


def test_what_it_says_of_a_cut_update_is_in_the_table():
    right = measured.by_run("svd")["right"]
    full, lora, cut = right["home", "full"], right["home", "LoRA"], right["cut", "rank 8"]
    assert len(full) == len(lora) == len(cut) == 3
    assert (cut < 0.5 * full).all() and (lora >= 0.85 * full).all()
    assert f"Full fine-tuning gets {full.mean():.0f} of 60" in plain(TEXT)
    assert f"update to rank 8, and {cut.mean():.0f} are left." in plain(TEXT)
    assert f"Yet LoRA, trained at rank 8, gets {lora.mean():.0f}." in plain(TEXT)


def test_what_it_says_of_merges_is_in_the_table():
    runs = measured.by_run("merging").loc["lab"]
    lost = runs["as trained: right"] - runs["original, 16 bits: right"]
    assert len(lost) == 3
    assert f"{min(lost):.0f} to {max(lost):.0f} fewer" in plain(TEXT)


def test_what_it_says_of_forgetting_is_in_the_table():
    runs = measured.by_run("distill_lab")[["intents", "home"]]
    before, after = (runs["intents"]["ways", way] for way in ("home alone", "distilled"))
    assert len(before) == len(after) == 3 and (after < 0.05 * before).all()
    assert f"distillation leave {min(after):.0f} to {max(after):.0f}, without" in plain(TEXT)
    lost = runs["home"]["ways", "home alone"] - runs["home"]["ways", "distilled"]
    assert (lost.abs() < 1).all() and "without losing commands" in plain(TEXT)
    assert f"answer {min(before):.0f} to {max(before):.0f} of 54 ordinary" in plain(TEXT)


def test_how_good_memory_is_stands_in_its_guide():
    guide = (ROOT / "docs" / "memory.md").read_text("utf-8")
    off = [-float(x) for x in re.findall(r"\| PEFT .*\| -([\d.]+)% \|", guide)]
    assert len(off) == 4 and f"0 to {-min(off):.0f}% below" in plain(TEXT)


def test_the_points_that_instructors_set_are_those_of_the_checks():
    *first, last = map(points, STEMS)
    told = f"{', '.join(map(str, first))} and {last} for labs 1 to {len(STEMS)}"
    assert told in plain((ROOT / "docs" / "instructor.md").read_text("utf-8"))
