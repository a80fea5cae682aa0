"""The engine: what equals what, which mistake a learner hears, and in which words."""

import math
import time

import pytest
import torch

from labkit import contract
from labkit.checks import engine
from labkit.checks.engine import Raised, expect_right, same
from labkit.contract import exercise

SOLUTION = "def area(a, b):\n    c = 1.0\n    return {'the area': a * b, 'the sum': a + b}\n"
ROWS = {
    "a * b": {"a + b": "the sides are added", "a": "b is missing"},
    "a + b": {"a - b": "the sides are subtracted"},
    "c = 1.0": {"c = 1 / 0": "1 / 0 is not a number"},
}
CASES = {"for a = 2, b = 3": (2.0, 3.0), "for a = 5, b = 1": (5.0, 1.0)}


def right(a, b):
    return {"the area": a * b, "the sum": a + b}


@exercise("98.1", points=1)
def areas(area):
    """right areas"""
    expect_right(area, CASES, right)


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setattr(engine, "mistakes", lambda id: ROWS)
    contract.session.reference = lambda id: SOLUTION


@pytest.mark.parametrize(
    ("area", "said"),
    [
        (lambda a, b: right(a, b) | {"the area": a + b}, "not 5: the sides are added"),
        (lambda a, b: {"the area": a, "the sum": a - b}, "not 2: b is missing"),  # two mistakes
        (lambda a, b: right(a, b) | {"the sum": a - b}, "the sum should be 5, not -1: the sides"),
        (lambda a, b: right(a, b) | {"x": 1 / 0}, "division by zero"),
        (lambda a, b: right(a, b) | {"the area": a * b if a < 3 else 0.0}, "for a = 5, b = 1, the"),
        (lambda a, b: right(a, b) | {"the area": math.nan}, "the area should be 6, not NaN"),
        (lambda a, b: None, "for a = 2, b = 3, the area should be a float, not None"),
    ],
)
def test_the_row_that_gives_the_same_is_heard(area, said, rejects):
    assert said in rejects(areas, area)


def test_without_solutions_the_failing_case_is_shown(rejects):
    contract.session.reference = None
    message = rejects(areas, lambda a, b: right(a, b) | {"the area": a + b})
    assert message == "✗ 98.1 area: for a = 2, b = 3, the area should be 6, not 5"


def test_a_search_that_takes_too_long_ends(rejects, monkeypatch):
    many = {f"{i} * a": "no message" for i in range(10_000)}
    monkeypatch.setattr(engine, "mistakes", lambda id: {"a * b": many})
    monkeypatch.setattr(engine, "SECONDS", 0.1)
    begun = time.process_time()
    assert "no message" not in rejects(areas, lambda a, b: right(a, b) | {"the area": -1.0})
    assert time.process_time() - begun < 1.0  # all rows would take several


@pytest.mark.parametrize(
    ("got", "wanted", "alike"),
    [
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]), True),
        (torch.tensor([1.0, 0.0]), torch.tensor([1.0, math.nan]), False),
        (torch.tensor([[1.0]]), torch.tensor([1.0]), False),
        (torch.tensor([1.00001]), torch.tensor([1.0]), True),
        (torch.zeros(0), torch.zeros(0), True),
        (math.nan, 1.0, False),
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (3, 3.0, False),
        (True, 1, False),
        ({"a": [1, 2.0]}, {"a": [1, 2.0]}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        (Raised("it raised E: x (line 3 of the cell: `a`)"), Raised("it raised E: x"), True),
        (Raised("it raised E: y"), Raised("it raised E: x"), False),
        (None, Raised("it raised E: x"), False),
    ],
)
def test_what_equals_what(got, wanted, alike):
    assert same(got, wanted, 1e-4) == alike


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: -x, "has the wrong sign"),
        (lambda x: x.T, "should have shape (2, 3), not (3, 2): is something transposed?"),
        (lambda x: 3 * x, "is 3 times as large as it should be"),
        (lambda x: x * torch.nan, "contains NaN or infinity"),
        (lambda x: x + 0j, "should contain real numbers, not complex ones"),
        (lambda x: x.tolist(), "should be a tensor, not a list"),
    ],
)
def test_what_was_done_to_the_right_numbers_is_said(change, said, rejects):
    x, contract.session.reference = torch.linspace(-1, 2.3, 6).view(2, 3), None

    @exercise("98.2", points=1)
    def check(f):
        """right numbers"""
        expect_right(f, {"for x": (x,)}, lambda x: x)

    assert said in rejects(check, change)
