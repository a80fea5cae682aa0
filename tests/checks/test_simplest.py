"""The smallest case in which an answer is wrong, and what is said of one that keeps something."""

import pytest

from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed


def _told(answer):
    """What is said of `answer` in the place of 2, where a check fails without naming a mistake."""
    with pytest.raises(CheckFailed) as caught, simplest([("f(1)", answer, 2.0, "1 + 1")]):
        raise CheckFailed("yours 1, wanted 2", bare=True)
    return str(caught.value)


@pytest.mark.parametrize("wrong", [3.0, float("nan"), [1.0, 2.0]])
def test_the_case_is_told_with_what_makes_it(wrong):
    assert _told(lambda: wrong).startswith("in a small case, f(1) gave")


def test_what_is_right_there_is_told_as_before():
    assert _told(lambda: 2.0) == "yours 1, wanted 2"


def test_an_answer_that_keeps_something_is_told_so():
    kept = []

    def answer():
        kept.append(1.0)
        return sum(kept) + 2

    assert _told(answer).startswith("f(1): asked the same twice, it gives two answers")
