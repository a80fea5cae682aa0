"""A quiz: which letters are read, and that the first one counts."""

import pytest

import labkit
from labkit import contract
from labkit.checks import lab02 as check
from labkit.checks.quiz import read_key

RIGHT = {"q1": "b", "q2": "c", "q3": "a"}


def earned():
    return contract.session.records["2.8"]["earned"]


def answer(**letters):
    return lambda: RIGHT | letters


@pytest.mark.parametrize("said", ["b", "B", " B. ", "(b)", "b)", "[b]", "b.", "b:"])
def test_a_letter_is_read_however_it_is_written(said, accepts):
    accepts(check.quiz, answer(q1=said))


@pytest.mark.parametrize("said", ["e", "", None, "bc", "b or c", 2, ["b"], "?"])
def test_what_says_no_letter_is_no_answer_yet(said, rejects, accepts):
    assert "2 of 3 right\nq1 needs one of a, b, c, d" in rejects(check.quiz, answer(q1=said))
    assert earned() == 2
    accepts(check.quiz, answer())


def test_a_second_answer_is_explained_and_earns_nothing(rejects):
    reasons = read_key("02")["q1"]
    told = rejects(check.quiz, answer(q1="a"))
    assert f"q1 a, not quite: {reasons['a']}" in told and "first answer" not in told
    told = rejects(check.quiz, answer())
    assert f"q1 b, right: {reasons['b']} (your first answer, a, counts)" in told
    assert "2 of 3 right" in told and earned() == 2
    labkit.start("02_lora")  # which does not make a quiz new
    told = rejects(check.quiz, answer(q1="d"))
    assert f"q1 d, not quite: {reasons['d']} (your first answer, a, counts)" in told
    assert earned() == 2


def test_the_first_answer_counts_question_by_question(rejects, accepts):
    rejects(check.quiz, lambda: {"q1": "b"})
    rejects(check.quiz, lambda: {"q2": "c"})
    assert earned() == 2, "the right first answer of q1 counts though it is gone"
    accepts(check.quiz, answer(q1="a"))


def test_a_right_first_answer_stays_right(capsys):
    check.quiz(answer())
    check.quiz(answer(q2="a"))
    told = capsys.readouterr().out
    assert "q2 a, not quite" in told and "(your first answer, c, counts)" in told
    assert earned() == 3


def test_grading_knows_no_first_answer(rejects, accepts, monkeypatch):
    rejects(check.quiz, answer(q1="a"))
    monkeypatch.setattr(contract, "session", contract.Session(seed=7))
    accepts(check.quiz, answer())


def test_a_stub_keeps_no_letters(not_written, accepts):
    def quiz():
        raise NotImplementedError

    not_written(check.quiz, quiz)
    accepts(check.quiz, answer())
