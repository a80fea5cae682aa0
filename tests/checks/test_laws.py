"""An answer that no guess gives: which law of the right one it breaks."""

import pytest

from labkit.checks.laws import laws
from labkit.contract import CheckFailed


def _told(answer, failure):
    """What is said of `answer(a, b)` in the place of a * b, where a check fails with `failure`."""
    changed = {
        "with a twice as large": ((2.0 * 3, 5.0), 2),
        "with b twice as large": ((3.0, 2.0 * 5), 2),
        "with a and b exchanged": ((5.0, 3.0), 1),
    }
    with pytest.raises(CheckFailed) as caught, laws("f", answer, (3.0, 5.0), changed):
        raise failure
    return str(caught.value), caught.value.bare


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda a, b: b, "f: with a twice as large it stays as it was, and should become 2x"),
        (lambda a, b: a * b * b, "with b twice as large it becomes 4x as large, and should become"),
        (lambda a, b: a + b, "with a twice as large it becomes 1.38x as large"),
    ],
)
def test_the_first_law_that_is_broken_is_told(answer, words):
    told, bare = _told(answer, CheckFailed("yours 1, wanted 2", bare=True))
    assert words in told and not bare


def test_what_breaks_no_law_or_has_a_name_is_told_as_before():
    numbers, named = CheckFailed("yours 1, wanted 2", bare=True), CheckFailed("the sign")
    assert _told(lambda a, b: 7 * a * b, numbers) == ("yours 1, wanted 2", True)
    assert _told(lambda a, b: b, named) == ("the sign", False)


def test_what_is_kept_from_call_to_call_is_told_first():
    def answer(a, b, total={}):  # noqa: B006
        total["sum"] = total.get("sum", 0) + a * b
        return total["sum"]

    told, bare = _told(answer, CheckFailed("yours 1, wanted 2", bare=True))
    assert told.startswith("f: asked the same twice, it gives two answers") and not bare


def test_an_answer_that_does_not_run_there_breaks_none():
    def answer(a, b):
        raise CheckFailed("it raised")

    assert _told(answer, CheckFailed("yours 1", bare=True)) == ("yours 1", True)
