"""Task `chat`: answers obey their checks, and the checks tell right from wrong."""

from collections import Counter

import pytest

from labkit import tasks
from labkit.tasks import chat


def test_chat_has_ten_categories_in_both_splits():
    prompts = []
    for split, size in (("train", 30), ("test", 6)):
        rows = tasks.load("chat", split)
        assert set(rows.column_names) == {"messages", "category", "check"}
        counts = Counter(rows["category"])
        assert len(counts) == 10 and set(counts.values()) == {size}
        assert {check.partition(":")[0] for check in rows["check"]} == {"", *chat.CHECKS}
        prompts += [messages[0]["content"] for messages in rows["messages"]]
    assert len(prompts) == len(set(prompts)) == 360


@pytest.mark.parametrize("role", (0, 1), ids=("prompts", "answers"))
def test_chat_has_no_near_duplicates_within_or_across_splits(too_alike, role):
    texts = [row["messages"][role]["content"] for part in tasks.SPLITS for row in chat.rows(part)]
    assert too_alike(texts) == []


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_chat_answers_obey_their_checks(split):
    for row in chat.rows(split):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert 0 < len(assistant["content"].split()) < 80
        if row["check"]:
            assert chat.follows(row["check"], assistant["content"]), assistant["content"]


CASES = {
    "bullets:2": ("- a\n- b", "- a\n- b\n- c"),
    "numbered:2": ("1. a\n2. b", "1. a\nb"),
    "lines:2": ("a\n\nb", "a"),
    "paragraphs:2": ("a\nb\n\nc", "a\nb"),
    "items:2": ("red wine, tea", "- red wine,\n- tea"),
    "sentences:2": ("It costs 3.50 today. Buy it!", "One. Two. Three."),
    "words:2": ("well-known fact", "a well-known fact"),
    "min_words:3": ("one two three", "one two"),
    "max_words:3": ("one two three", "one two three four"),
    "json": ('```json\n{"a": 1}\n```', "{'a': 1}"),
    "json_keys:b,a": ('{"a": 1, "b": 2}', '{"a": 1}'),
    "python": ("def f(x):\n    return x", "The function returns x."),
    "lowercase": ("all lower case.", "Not lower case."),
    "uppercase": ("LOUD, 2 TIMES", "Not loud"),
    "ends_with_question": ("Fine. And you? ", "And you? Fine."),
    "starts_with:Dear Ann": ("Dear Ann,\nhello", "Hello, Dear Ann"),
    "ends_with:Bye": ("See you. Bye", "Bye, see you"),
    "contains:however": ("However, no.", "whatsoever"),
    "avoids:very": ("Every one", "A Very good one"),
    "lacks:,": ("no comma", "one, two"),
    "number": ("-3.5", "3 apples"),
    "one_of:yes|no": ("yes", "yes, it is"),
}


@pytest.mark.parametrize("check", CASES)
def test_follows_tells_right_from_wrong(check):
    right, wrong = CASES[check]
    assert chat.follows(check, right) and not chat.follows(check, wrong)
    assert not chat.follows(check, "")


def test_every_check_is_tried_and_an_unknown_one_refused():
    assert {check.partition(":")[0] for check in CASES} == set(chat.CHECKS)
    with pytest.raises(ValueError, match="bullets"):
        chat.follows("rhymes", "text")


def test_pairs_are_of_training_instructions_and_the_chosen_answer_alone_follows():
    rows = chat.pairs()
    assert len(rows) == len({str(row) for row in rows}) == 182
    for row in rows:
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert chat.follows(row["check"], chosen) and not chat.follows(row["check"], rejected)
    asked = Counter((row["prompt"][0]["content"], row["check"]) for row in rows)
    known = {(row["messages"][0]["content"], row["check"]) for row in chat.rows("train")}
    assert set(asked) <= known and max(asked.values()) <= 3
