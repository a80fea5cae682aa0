"""Faults planted in a clean file are found, in their rows, and nothing else is."""

import copy

import pytest

from labkit import tasks
from labkit.data import audit, shapes

USER, ANSWER = 1, 2  # where they stand in a ticket's messages


def role(at, name):
    return lambda row: row[at].update(role=name)


def content(at, value):
    return lambda row: row[at].update(content=value)


def more(at, text):
    return lambda row: row[at].update(content=row[at]["content"] + text)


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
    ("echo", lambda row: row[ANSWER].update(content=row[USER]["content"])),
    ("spaces", more(ANSWER, "\n")),
    ("spelling", lambda row: row[ANSWER].update(content=row[ANSWER]["content"].upper())),
    ("system_differs", content(0, "You are a pirate.")),
    ("system_differs", lambda row: row.pop(0)),
    ("trains_on_nothing", more(USER, " very" * 600)),
    ("cut", more(ANSWER, " very" * 600)),
    ("rare_label", content(ANSWER, "praise")),
    ("far_longer", more(ANSWER, " many words of other rows" * 84)),
]


def told(report):
    return [(f.id, f.level, f.lines) for f in report.findings]


@pytest.mark.parametrize(
    ("name", "plant"), PLANTED, ids=[f"{i}-{p[0]}" for i, p in enumerate(PLANTED)]
)
def test_a_planted_fault_is_found_in_its_rows_alone(clean, examined, name, plant):
    rows = copy.deepcopy(clean)
    for at in (3, 17):
        plant(rows[at])
    found = {f.id: f for f in examined(rows).findings}
    assert name in found, f"found {sorted(found)}"
    assert found[name].lines == [4, 18]
    assert found[name].as_dict()["do"]
    # what follows from a fault may be told too, of the same rows
    assert all(set(f.lines) == {4, 18} for f in found.values()), found


def test_a_clean_file_has_no_findings(clean, examined):
    found = examined(clean)
    assert found.findings == [] and not found.wrong
    assert list(found.audit.labels.values()) == [10] * 4
    assert found.audit.tokens["min"] < found.audit.tokens["median"] < found.audit.tokens["max"]


@pytest.mark.parametrize("task", tasks.NAMES)
def test_no_false_alarm_on_the_tasks_of_the_course(task, examined):
    parts = [list(tasks.load(task, part)["messages"]) for part in tasks.SPLITS]
    assert told(examined(*parts)) == []


@pytest.mark.parametrize("fold", [str, str.upper, lambda text: f"  {text.replace(' ', '  ')} "])
def test_duplicates_and_leaks_are_found_with_case_and_spaces_folded(clean, examined, fold):
    again = copy.deepcopy(clean[5])
    again[USER]["content"] = fold(again[USER]["content"])
    assert told(examined([*clean, again])) == [("duplicate", "look", [41])]
    found = examined(clean[:35], [*clean[35:], again])
    assert told(found) == [("leak", "wrong", [6])]
    assert found.findings[0].file == "test.jsonl"
    assert "line 6 of the training" in found.findings[0].detail


def test_different_answers_to_one_prompt_are_wrong(clean, examined):
    other = copy.deepcopy(clean[5])
    other[ANSWER] = clean[15][ANSWER]
    assert told(examined([*clean, other])) == [("contradiction", "wrong", [6, 41])]
    other[0]["content"] = "Another system message may want another answer."
    assert told(examined([*clean, other])) == [("system_differs", "look", [41])]


def test_a_sentence_that_comes_back_is_spelled_in_one_way(examined):
    answers = ["Dogs travel free, on a lead, on the outer deck.", "The last boat leaves at nine."]
    rows = [{"question": f"Question {n}?", "answer": answers[n % 2]} for n in range(24)]
    assert told(examined(rows)) == [] and len(examined(rows).audit.labels) == 2
    rows[5]["answer"] = answers[1].upper()
    assert told(examined(rows)) == [("spelling", "wrong", [6])]


def test_labels_that_the_training_lacks_and_lopsided_ones(clean, examined):
    test = copy.deepcopy(clean[35:])
    test[2][ANSWER]["content"] = "praise"
    assert told(examined(clean[:35], test)) == [("unseen_label", "wrong", [3])]
    rows = copy.deepcopy(clean)
    for n, found in ((37, ("imbalance", "look")), (40, ("one_answer", "wrong"))):
        for row in rows[:n]:
            row[ANSWER]["content"] = "refund_request"
        assert told(examined(rows)) == [(*found, [*range(1, n + 1)])]


def test_an_answer_unlike_all_others(examined):
    home = tasks.load("home", "train")[:60]["messages"]
    home[7][ANSWER]["content"] = home[7][ANSWER]["content"][:-3]
    assert told(examined(home)) == [("broken_json", "wrong", [8])]
    rows = [
        {"question": f"Who made rule {n}?", "answer": f"It was made in {n}, by all of us."}
        for n in range(20)
    ]
    assert told(examined(rows)) == []
    rows[9]["answer"] = "It was made in 9, by all of"
    assert told(examined(rows)) == [("unfinished", "look", [10])]
    rows[12] = {"question": "Question", "answer": "answer "}
    assert [(f.id, f.lines) for f in examined(rows).wrong] == [("header", [13])]
    del rows[4]["answer"], rows[12]
    assert [(f.id, f.lines) for f in examined(rows).wrong] == [("missing", [5])]
    assert "few_rows" in {f.id for f in examined(rows[:8]).findings}


REFUSES = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}"


def test_a_template_without_an_end_and_one_that_refuses(clean, read_with):
    tokenizer, ends = copy.deepcopy(read_with[0]), read_with[1]
    examples = [shapes.Example(n, messages) for n, messages in enumerate(clean, start=1)]
    endless = tokenizer.chat_template.replace("<|im_end|>", "")
    for template, name in ((endless, "no_end"), (REFUSES, "template")):
        tokenizer.chat_template = template
        (found,) = audit.audit(examples, tokenizer, 512, ends).findings
        assert (found.id, len(found.lines)) == (name, 40)
    assert "no system here" in found.detail


def test_what_is_trained_on_a_text(examined):
    rows = [{"text": f"Page {n} of the book tells of number {n * n}."} for n in range(30)]
    assert told(examined(rows)) == []
    rows[3]["text"], rows[9]["text"] = "  ", rows[8]["text"]
    assert told(examined(rows)) == [("empty_text", "wrong", [4]), ("duplicate", "look", [10])]
