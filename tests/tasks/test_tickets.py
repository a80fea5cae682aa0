"""Task `tickets`: read as a person would read them; scoring tells right answers from wrong."""

import json
import re
from collections import Counter

import datasets
import pytest

from labkit import tasks
from labkit.tasks import tickets

LINES = [json.loads(line) for line in tickets.FILE.read_text(encoding="utf-8").splitlines()]
STYLES = {
    "train": {"plain": 8, "rude": 3, "misspelt": 4, "long": 2, "two_issue": 3},
    "test": {"plain": 2, "rude": 1, "misspelt": 1, "long": 1, "two_issue": 1},
}


def spoken(text):
    """The words of a text in lower case, one blank between them and at both ends."""
    return f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} "


def wordings(category):
    """How a ticket could spell its label: "customs fees", "customsfees", "custom fee"."""
    words = category.split("_")
    singular = [word.removesuffix("s") for word in words]
    forms = {form.join(some) for form in (" ", "") for some in (words, singular)}
    return forms | ({"charge back", "charged back"} if category == "chargeback" else set())


def test_every_category_has_its_share_of_splits_and_styles():
    found = Counter((line["category"], line["split"], line["style"]) for line in LINES)
    assert found == {
        (category, split, style): n
        for category in tickets.CATEGORIES
        for split, styles in STYLES.items()
        for style, n in styles.items()
    }


def test_no_near_duplicates_within_or_across_splits(too_alike):
    assert too_alike([line["text"] for line in LINES]) == []


def test_texts_are_clean_and_as_long_as_their_style():
    for line in LINES:
        text = line["text"]
        assert text.isascii() and text == " ".join(text.split()), text
        assert not re.search(r"\S@\S|https?:|www\.|\d{6}", text), "an address or number: " + text
        shortest, longest = (60, 110) if line["style"] == "long" else (8, 45)
        assert shortest <= len(text.split()) <= longest, text


def test_no_ticket_spells_its_label():
    for line in LINES:
        said = spoken(line["text"])
        assert not [form for form in wordings(line["category"]) if f" {form} " in said], said


@pytest.mark.parametrize(("split", "size"), [("train", 960), ("test", 288)])
def test_load_gives_the_columns(split, size):
    loaded = tasks.load("tickets", split)
    assert isinstance(loaded, datasets.Dataset) and len(loaded) == size
    assert set(loaded.column_names) == {"messages", "category", "group", "style", "text"}
    places = [tickets.CATEGORIES.index(category) for category in loaded["category"]]
    assert places == sorted(places)
    for row in loaded:
        said = {"system": tickets.SYSTEM, "user": f"{tickets.QUESTION}\n{row['text']}"}
        said["assistant"] = row["category"]
        assert {turn["role"]: turn["content"] for turn in row["messages"]} == said
        assert row["category"] in tickets.GROUPS[row["group"]]


def test_some_groups_can_be_taken():
    loaded = tasks.load("tickets", "test", groups=["returns", "orders"])
    assert set(loaded["group"]) == {"orders", "returns"} and len(loaded) == 60
    with pytest.raises(ValueError, match="billing, subscription"):
        tasks.load("tickets", groups=["returns", "sales"])


def test_the_zero_shot_prompt_lists_the_categories():
    system, user = tickets.zero_shot("Where is my lamp?")
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].endswith("Where is my lamp?")
    assert all(category in user["content"] for category in tickets.CATEGORIES)


RIGHT = ["app_crash", " App_Crash\n"]
WRONG = ["slow_app", "I cannot tell.", "", "other", "app", "app crash", "app_crash slow_app"]


def test_accuracy_counts_names_whatever_their_case():
    answers = RIGHT + WRONG
    rows = [{"category": "app_crash"}] * len(answers)
    assert tickets.hits(answers, rows) == [True] * len(RIGHT) + [False] * len(WRONG)
    assert tickets.accuracy(answers, rows) == len(RIGHT) / len(rows)
    for one_more in ((answers[1:], rows), ([], [])):
        with pytest.raises(ValueError):
            tickets.accuracy(*one_more)
