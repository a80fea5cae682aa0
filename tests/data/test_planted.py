"""Faults planted in a clean file are found, in their rows, and nothing else is."""

import copy

import pytest

from labkit import tasks
from labkit.data.meaning import MEANING

USER, ANSWER = 1, 2  # where they stand in a ticket's messages


def said(row, at, content):
    row[at] = row[at] | {"content": content}


def role(at, name):
    def plant(row):
        row[at]["role"] = name

    return plant


def content(at, value):
    return lambda row: said(row, at, value)


def more(at, text):
    return lambda row: said(row, at, row[at]["content"] + text)


PLANTED = [  # id of the finding, and what makes it of a good row
    ("empty_answer", content(ANSWER, "")),
    ("empty_answer", content(ANSWER, " \n ")),
    ("empty_prompt", content(USER, "\t")),
    ("not_text", content(ANSWER, None)),
    ("not_text", content(ANSWER, {"label": "refund"})),
    ("not_text", content(ANSWER, float("nan"))),
    ("not_text", content(USER, [{"type": "image", "url": "x.png"}])),
    ("number", content(ANSWER, 7)),
    ("unknown_role", role(USER, "customer")),
    ("unknown_role", role(USER, "User")),
    ("unknown_role", role(USER, None)),
    ("no_answer_last", lambda row: row.pop()),
    ("no_answer_last", lambda row: row.append({"role": "user", "content": "Thanks!"})),
    ("system_inside", lambda row: row.insert(2, {"role": "system", "content": "Be brief."})),
    ("same_role_twice", lambda row: row.insert(1, {"role": "user", "content": "Hello?"})),
    ("same_role_twice", lambda row: row.append({"role": "assistant", "content": "refund"})),
    ("answer_first", lambda row: row.insert(1, {"role": "assistant", "content": "Hi there."})),
    ("no_messages", lambda row: row.clear()),
    ("control_words", more(USER, "<|im_end|>")),
    ("damaged", more(USER, " cafÃ© donâ€™t")),
    ("damaged", more(USER, " caf\ufffd")),
    ("damaged", more(USER, " zero\u200bwidth")),
    ("damaged", more(USER, "\x00")),
    ("markup", more(USER, " fish &amp; chips")),
    ("markup", more(USER, " fish<br>chips")),
    ("says_nothing", content(ANSWER, "NaN")),
    ("says_nothing", content(ANSWER, "TODO")),
    ("says_nothing", content(ANSWER, "#REF!")),
    ("echo", lambda row: said(row, ANSWER, row[USER]["content"])),
    ("spaces", more(ANSWER, "\n")),
    ("spelling", lambda row: said(row, ANSWER, row[ANSWER]["content"].upper())),
    ("system_differs", content(0, "You are a pirate.")),
    ("system_differs", lambda row: row.pop(0)),
    ("trains_on_nothing", more(USER, " very" * 600)),
    ("cut", more(ANSWER, " very" * 600)),
    ("rare_label", content(ANSWER, "praise")),
    ("far_longer", more(ANSWER, " many words of other rows" * 84)),
]


@pytest.mark.parametrize(
    ("name", "plant"), PLANTED, ids=[f"{i}-{p[0]}" for i, p in enumerate(PLANTED)]
)
def test_a_planted_fault_is_found_in_its_rows_alone(clean, examined, name, plant):
    rows = copy.deepcopy(clean)
    for at in (3, 17):
        plant(rows[at])
    found = {f.id: f for f in examined([{"messages": row} for row in rows]).findings}
    assert name in found, f"found {sorted(found)}"
    assert found[name].lines == [4, 18]
    assert found[name].as_dict()["do"]
    # what follows from a fault may be told too, of the same rows
    assert all(set(f.lines) == {4, 18} for f in found.values()), found


def test_the_planted_faults_are_of_most_kinds():
    assert len({name for name, _ in PLANTED}) >= 20
    assert {name for name, _ in PLANTED} <= set(MEANING)


def test_a_clean_file_has_no_findings(clean, examined):
    found = examined([{"messages": row} for row in clean])
    assert found.findings == [] and not found.wrong
    assert list(found.audit.labels.values()) == [10] * 4
    assert found.audit.tokens["min"] < found.audit.tokens["median"] < found.audit.tokens["max"]


@pytest.mark.parametrize("task", tasks.NAMES)
def test_no_false_alarm_on_the_tasks_of_the_course(task, examined):
    parts = [tasks.load(task, part).select_columns("messages").to_list() for part in tasks.SPLITS]
    assert [f.as_dict() for f in examined(*parts).findings] == []


@pytest.mark.parametrize("fold", [str, str.upper, lambda text: f"  {text.replace(' ', '  ')} "])
def test_duplicates_and_leaks_are_found_with_case_and_spaces_folded(clean, examined, fold):
    again = copy.deepcopy(clean[5])
    said(again, USER, fold(again[USER]["content"]))
    found = examined([{"messages": row} for row in [*clean, again]]).findings
    assert [(f.id, f.level, f.lines) for f in found] == [("duplicate", "look", [41])]
    train, test = clean[:35], [*clean[35:], again]
    found = examined([{"messages": row} for row in train], [{"messages": row} for row in test])
    assert [(f.id, f.level, f.lines) for f in found.findings] == [("leak", "wrong", [6])]
    assert (
        found.findings[0].file == "test.jsonl"
        and "line 6 of the training" in found.findings[0].detail
    )


def test_different_answers_to_one_prompt_are_wrong(clean, examined):
    other = copy.deepcopy(clean[5])
    said(other, ANSWER, clean[15][ANSWER]["content"])
    found = examined([{"messages": row} for row in [*clean, other]]).findings
    assert [(f.id, f.level, f.lines) for f in found] == [("contradiction", "wrong", [6, 41])]


def test_a_sentence_that_comes_back_is_spelled_in_one_way(examined):
    answers = ["Dogs travel free, on a lead, on the outer deck.", "The last boat leaves at nine."]
    rows = [{"question": f"Question {n}?", "answer": answers[n % 2]} for n in range(24)]
    assert examined(rows).findings == [] and len(examined(rows).audit.labels) == 2
    rows[5]["answer"] = answers[1].upper()
    assert [(f.id, f.level, f.lines) for f in examined(rows).findings] == [
        ("spelling", "wrong", [6])
    ]


def test_labels_that_the_training_lacks_and_lopsided_ones(clean, examined):
    test = copy.deepcopy(clean[35:])
    said(test[2], ANSWER, "praise")
    rows = [{"messages": row} for row in clean[:35]]
    found = examined(rows, [{"messages": row} for row in test]).findings
    assert [(f.id, f.lines) for f in found] == [("unseen_label", [3])]
    lopsided = copy.deepcopy(clean)
    for row in lopsided[:37]:
        said(row, ANSWER, "refund_request")
    found = examined([{"messages": row} for row in lopsided])
    assert [(f.id, f.level, len(f.lines)) for f in found.findings] == [("imbalance", "look", 37)]
    for row in lopsided:
        said(row, ANSWER, "refund_request")
    assert [f.id for f in examined([{"messages": row} for row in lopsided]).wrong] == ["one_answer"]


def test_an_answer_unlike_all_others(examined):
    home = tasks.load("home", "train").select_columns("messages").to_list()[:60]
    said(home[7]["messages"], ANSWER, home[7]["messages"][ANSWER]["content"][:-3])
    assert [(f.id, f.lines) for f in examined(home).findings] == [("broken_json", [8])]
    asked = [f"Why is rule {n} there, and who made it?" for n in range(20)]
    rows = [
        {"question": q, "answer": f"It was made in {n}, by all of us."} for n, q in enumerate(asked)
    ]
    assert examined(rows).findings == []
    rows[9]["answer"] = "It was made in 9, by all of"
    assert [(f.id, f.lines) for f in examined(rows).findings] == [("unfinished", [10])]
    rows[12] = {"question": "Question", "answer": "answer "}
    (header,) = examined(rows).wrong
    assert (header.id, header.lines) == ("header", [13])
    del rows[4]["answer"], rows[12]
    assert [(f.id, f.lines) for f in examined(rows).wrong] == [("missing", [5])]
    assert "few_rows" in {f.id for f in examined(rows[:8]).findings}


def test_a_template_without_an_end_and_one_that_refuses(clean, read_with, tmp_path):
    from labkit.data import audit, shapes

    tokenizer, ends = copy.deepcopy(read_with[0]), read_with[1]
    examples = [shapes.Example(n, messages) for n, messages in enumerate(clean, start=1)]
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    assert [(f.id, len(f.lines)) for f in audit.audit(examples, tokenizer, 512, ends).findings] == [
        ("no_end", 40)
    ]
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    )
    (found,) = audit.audit(examples, tokenizer, 512, ends).findings
    assert (found.id, found.detail, len(found.lines)) == ("template", "no system here", 40)


def test_what_is_trained_on_a_text(examined):
    rows = [{"text": f"Page {n} of the book tells of number {n * n}."} for n in range(30)]
    assert examined(rows).findings == []
    rows[3]["text"], rows[9]["text"] = "  ", rows[8]["text"]
    assert [(f.id, f.lines) for f in examined(rows).findings] == [
        ("empty_text", [4]),
        ("duplicate", [10]),
    ]


def test_what_the_file_is_stands_above_the_findings(clean, examined):
    """Rows, their shape, tokens, and answers that come back: how many there are, and of what."""
    first, tokens, learned, answers = examined([{"messages": row} for row in clean]).summary()
    assert first == "mine.jsonl: 40 rows, chat (from messages)"
    assert tokens.startswith("tokens a row: min ") and tokens.endswith("; cut at 512")
    assert learned.startswith("tokens that are learned: ")
    assert answers.startswith("answers repeat, 4 different ones: ") and answers.count(" 10") == 4
