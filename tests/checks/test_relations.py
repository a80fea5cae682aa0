"""A wrong tensor, or several wrong numbers, that no guess gives: what is said of them."""

import math

import pytest
import torch

from labkit.checks.compare import expect_numbers, expect_related
from labkit.checks.relations import relation
from labkit.contract import CheckFailed

W = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)) * 3
ONE = torch.eye(6)[:, :1]


@pytest.mark.parametrize(
    "got, words",
    [
        (W.T, "it is transposed"),
        (2 * W.T, "it is transposed, and it is 2x that"),
        (W.flip(0), "rows are in reverse order"),
        (W.roll(1, 1), "each column stands one place too late"),
        (W.abs(), "the signs are lost"),
        (W.clamp_min(0), "what is below 0 became 0"),
        (W.sign(), "these are the signs alone"),
        (W.square(), "it is squared"),
        (1 / W, "upside down"),
        (W.round(), "rounded to whole numbers"),
        (W.trunc(), "fractions are cut off"),
        (W.clamp(-1, 1), "what lies beyond -1 and 1 is cut off"),
        (W + 0.5, "each number is 0.5 too large"),
        (W - W.mean(1, keepdim=True), "its rows are less their means"),
        (torch.nn.functional.normalize(W), "rows are made of length 1"),
        (W * torch.arange(1.0, 7)[:, None], "each row has a factor of its own, from 2 to 6"),
        (W + torch.arange(6.0), "to each column a number of its own is added"),
        (W.flatten()[torch.randperm(36)].view(6, 6), "in another order"),
        (W * (1 - ONE), "right but for row 0 of 6; what is wrong is 0"),
        (W * ONE.T, "right in column 0 of 6 alone; what is wrong is 0"),
        (torch.where(W < 0, W - 1, W), "only the numbers that should be below 0 are wrong"),
        (0 * W, "all of it is 0"),
        (0 * W + 0.3, "all its numbers are the same, 0.3"),
    ],
)
def test_what_was_done_to_the_right_numbers_is_named(got, words):
    with pytest.raises(CheckFailed, match=words) as caught:
        expect_related(got, W, "f(x)")
    assert not caught.value.bare


def test_the_end_of_a_row_of_numbers_is_named():
    wanted = torch.arange(1.0, 21)
    got = torch.cat([wanted[:16], torch.zeros(4)])
    assert relation(got, wanted) == "right but for the last 4 of 20; what is wrong is 0"


@pytest.mark.parametrize(
    "got, wanted",
    [
        (torch.randn(6, 6, generator=torch.Generator().manual_seed(4)), W),
        (W[:2, :2].T, W[:2, :2]),  # few numbers
        (torch.eye(6), torch.ones(6, 6)),  # of equal ones
    ],
)
def test_where_nothing_relates_them_nothing_is_said(got, wanted):
    assert relation(got, wanted) == ""


N = (4, 9, 25)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v, n: v / n**0.5, r"it is 1 / sqrt\(n\) times the wanted"),
        (lambda v, n: v * n * n, "it is n² times the wanted"),
        (lambda v, n: v / math.log(10), r"it is 0.4343x \(1 / ln 10, as of log10\) the wanted"),
        (lambda v, n: v / math.log(2), "the number is right; and then it is in bits"),
        (lambda v, n: v * v, "the number is right; and then it is squared"),
        (lambda v, n: math.log(v), "right; and then its logarithm is taken"),
    ],
)
def test_what_was_done_to_right_numbers_is_named(change, words):
    rights = [1.3 + 0.1 * n for n in N]
    cases = [(f"f({n})", change(v, n), v, {}) for v, n in zip(rights, N, strict=True)]
    with pytest.raises(CheckFailed, match=words) as caught:
        expect_numbers(cases, sizes=[{"n": n} for n in N])
    assert not caught.value.bare


def test_a_factor_without_a_name_is_told_and_names_no_mistake():
    cases = [(f"f({v})", 1.7 * v, v, {}) for v in (1.1, 2.3, 4.2)]
    with pytest.raises(CheckFailed, match=r"each time it is 1\.7x the wanted") as caught:
        expect_numbers(cases, sizes=[{"n": n} for n in N])
    assert caught.value.bare
