"""What a comparison says of a wrong number or tensor, and which misconception it names."""

import pytest
import torch

from labkit import contract
from labkit.checks.compare import (
    every,
    expect_close,
    expect_number,
    expect_numbers,
    expect_numbers_or_first,
    likeliest,
)
from labkit.contract import CheckFailed


@pytest.mark.parametrize(
    "got, word",
    [
        (None, "return"),
        (torch.ones(3, 2), "transposed"),
        (torch.full((2, 3), torch.nan), "NaN"),
        (torch.arange(6.0).view(2, 3) * 4, "4x"),
        (torch.arange(6.0).view(2, 3) * -1, "sign"),
        (torch.arange(6.0).view(2, 3) + 1, "yours"),
    ],
)
def test_expect_close_says_how_it_misses(got, word):
    with pytest.raises(CheckFailed, match=word):
        expect_close(got, torch.arange(6.0).view(2, 3), "f(x)")


def test_expect_close_takes_rounding_and_other_dtypes():
    wanted = torch.arange(6.0).view(2, 3)
    expect_close(wanted.double() + 1e-5, wanted, "f(x)")


@pytest.mark.parametrize(
    "got, wanted, word",
    [(torch.tensor(3.0), 3.0, "item"), ("3", 3, "text"), (3.0, 3, "int"), (4, 3, "wanted 3")],
)
def test_expect_number_says_how_it_misses(got, wanted, word):
    with pytest.raises(CheckFailed, match=word):
        expect_number(got, wanted, "f(x)")


def test_a_guess_has_to_explain_every_case_that_fails():
    cases = [("f(1)", 2.0, 1.0, {"doubled": 2.0, "plus 1": 2.0, "other": 2.0})]
    cases += [("f(5)", 5.0, 5.0, {"doubled": 10.0}), ("f(3)", 4.0, 3.0, {"doubled": 6.0})]
    with pytest.raises(CheckFailed, match=r"f\(1\) gave 2, wanted 1: plus 1$") as caught:
        expect_numbers(cases)
    assert not caught.value.bare
    with pytest.raises(CheckFailed, match=r"wanted 5$") as caught:
        expect_numbers([("f(5)", 7.0, 5.0, {"doubled": 10.0})])
    assert caught.value.bare


def test_a_guess_that_gives_the_right_numbers_too_comes_first():
    cases = [("f(1)", 2, 1, {"one more": 2, "doubled": 2})]
    cases += [("f(0)", 0, 0, {"one more": 1, "doubled": 0})]
    with pytest.raises(CheckFailed, match=r"gave 2, wanted 1: doubled$"):
        expect_numbers(cases)


def test_where_no_guess_gives_all_numbers_the_first_that_fails_is_told():
    cases = [("f(1)", 2, 1, {"one more": 2}), ("f(5)", 11, 5, {"one more": 6})]
    with pytest.raises(CheckFailed, match=r"wanted 1$"):
        expect_numbers(cases)
    with pytest.raises(CheckFailed, match=r"f\(1\) gave 2, wanted 1: one more$"):
        expect_numbers_or_first(cases)


@pytest.mark.parametrize(
    "got, word", [(41.2, "in percent"), (0.4, "is rounded"), (0.41, "is rounded"), (0.5, "wanted")]
)
def test_a_number_that_is_only_displayed_otherwise_is_told(got, word):
    with pytest.raises(CheckFailed, match=word) as caught:
        expect_number(got, 0.412, "f(x)")
    assert caught.value.bare


def test_every_case_is_judged_and_each_mistake_told_once(monkeypatch):
    def judge(n):
        if n:
            message = "the sign is wrong" if n < 3 else f"yours {n}, wanted 0"
            raise CheckFailed(f"f({n}): {message}", bare=n > 2)
        return n

    monkeypatch.setattr(contract.session, "faults", [])
    assert every(judge, [(0,), (4,), (1,), (2,)]) == [0]
    assert [str(fault) for fault in contract.session.faults] == ["f(1): the sign is wrong"]
    contract.session.faults.clear()
    assert every(judge, [(5,), (4,)]) == []
    assert [str(fault) for fault in contract.session.faults] == ["f(5): yours 5, wanted 0"]


def test_of_several_cases_the_one_that_names_a_mistake_is_told():
    with pytest.raises(CheckFailed, match=r"^named$"), likeliest() as case:
        for text, bare in (("numbers", True), ("named", False), ("another", False)):
            with case():
                raise CheckFailed(text, bare=bare)


@pytest.mark.parametrize("wanted", [3.0, 3])
def test_an_int_that_no_float_holds_is_a_wrong_number(wanted):
    with pytest.raises(CheckFailed, match=r"an int of 1329 bits, wanted 3"):
        expect_number(10**400, wanted, "f(x)", {"upside down": 0.3})


def test_a_guess_names_the_misconception():
    with pytest.raises(CheckFailed, match="not halved"):
        expect_number(4.0, 2.0, "f(x)", {"not halved": 4.0})
