"""The split keeps prompts apart; baselines are what a reader would work out by hand."""

import random

import pytest

from labkit.data import baselines
from labkit.data.shapes import Example, folded
from labkit.data.split import split


def asked(question, answer="yes", line=0):
    turns = (("user", question), ("assistant", answer))
    return Example(line, [{"role": role, "content": content} for role, content in turns])


@pytest.fixture
def rows():
    """60 prompts, every third of them three times, in other letters."""
    texts = [f"What is {n} and {n + 1}?" for n in range(60)]
    texts += [t.upper() for t in texts[::3]] + [t.replace(" ", "  ") for t in texts[::3]]
    return [asked(text, str(n), n) for n, text in enumerate(texts)]


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_is_on_both_sides_and_none_is_lost(rows, seed):
    train, held = split(rows, 0.2, seed)
    assert not {folded(e.prompt) for e in train} & {folded(e.prompt) for e in held}
    assert sorted(e.line for e in train + held) == list(range(100))
    assert 20 <= len(held) <= 22


def test_the_order_of_rows_does_not_matter_and_the_seed_does(rows):
    mixed = random.Random(0).sample(rows, len(rows))
    lines = [
        {e.line for e in split(part, 0.2, seed)[1]}
        for part, seed in ((rows, 0), (mixed, 0), (rows, 1))
    ]
    assert lines[0] == lines[1] != lines[2]


def test_there_is_always_something_to_train_on():
    assert [len(part) for part in split([asked("a"), asked("b")], 0.9)] == [1, 1]
    assert [len(part) for part in split([asked("a"), asked("A")], 0.5)] == [2, 0]
    assert len(split([asked(str(n)) for n in range(5000)], 0.2)[1]) == 200


def test_baselines():
    train = [asked("Where is my parcel?", "late"), asked("I want my money back", "refund")]
    train += [asked("Money back please!", "refund"), asked("The app crashes", "crash")]
    new = [asked("where's the parcel"), asked("the app crashed again"), asked("give me money back")]
    assert baselines.most_frequent(train, new) == ["refund"] * 3
    assert baselines.nearest(train, new) == ["late", "crash", "refund"]
    assert baselines.overlap("a b", "A  c") == 0.5 and baselines.overlap("a", "") == 0.0
    assert baselines.right(" a\n", "a") and not baselines.right("A", "a")
