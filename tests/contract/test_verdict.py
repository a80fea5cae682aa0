"""The verdict: several faults at once, and what stands in for an exercise that is open."""

import numpy as np
import pytest

from labkit import contract
from labkit.contract import CheckFailed, exercise, expect, observe, part


def expect_number(got, wanted, call, product=None):
    """Raise CheckFailed unless they are equal; one that names the mistake for the product."""
    if got != wanted:
        named = ": that is the product" if got == product else ""
        raise CheckFailed(f"{call} gave {got}, wanted {wanted}{named}", bare=not named)


@exercise("99.1", points=2)
def doubles(double):
    """doubles"""
    expect_number(observe(double, 3), 6, "double(3)")


@exercise("99.2", points=3)
def sums(total):
    """sums"""
    with part():
        expect_number(observe(total, [1, 2]), 3, "total([1, 2])", 2)
    with part():
        expect_number(observe(total, [4, 5]), 9, "total([4, 5])", 20)
    with part():
        expect(observe(total, []) == 0, "the sum of nothing is 0")


def stub(*_):
    raise NotImplementedError


def test_all_faults_are_told_at_once_each_in_a_line_and_named_ones_come_first():
    with pytest.raises(CheckFailed) as caught:
        sums(lambda xs: 7)
    wanted = [
        "the sum of nothing is 0",
        "total([1, 2]) gave 7, wanted 3",
        "total([4, 5]) gave 7, wanted 9",
    ]
    assert str(caught.value) == "✗ 99.2 total: " + "\n".join(wanted)
    assert len(caught.value._render_traceback_()) == 3, "a notebook shows these lines and no others"
    assert contract.session.records["99.2"]["message"] == "\n".join(wanted)


def test_one_misconception_is_told_once(rejects):
    message = rejects(sums, lambda xs: int(np.prod(xs)) if xs else 0)
    assert message == "✗ 99.2 total: total([1, 2]) gave 2, wanted 3: that is the product"


def test_what_raises_everywhere_is_told_once(rejects):
    message = rejects(sums, lambda xs: xs.nothing)
    assert message.count("AttributeError") == 1


@exercise("99.4", points=2, after="99.1")
def quadrupled(quadruple):
    """quadruples"""
    expect_number(observe(quadruple, 3), 12, "quadruple(3)")


@exercise("99.5", points=2, after="99.1")
def applied(times, double):
    """doubles so many times"""
    expect_number(observe(lambda f, double: f(double, 3), times, double), 24, "times(double, 3)")


@pytest.fixture
def learner(monkeypatch):
    """A learner's names, and the course's own `double` at hand for where it is open."""
    space = {"__name__": "__main__"}
    exec("def quadruple(x):\n    return double(double(x))", space)
    monkeypatch.setattr(contract.session, "namespace", space)
    sources = {"99.1": "def double(x):\n    return 2 * x"}
    monkeypatch.setattr(contract.session, "reference", sources.get)
    return space


@exercise("99.7", points=2)
def both(first, second):
    """first and second"""
    for f in (first, second):
        with part():
            expect(observe(f, [1]) == 1, "of [1] it is not 1")


def test_of_several_objects_the_one_that_is_meant_is_named(rejects):
    """ "It raised" and "it changes its input" are said of the second, where it is the second."""
    changes = rejects(both, lambda xs: 1, lambda xs: xs.pop())
    assert changes.startswith("✗ 99.7 second: it changes its input")
    raises = rejects(both, lambda xs: 1, lambda xs: xs.nothing)
    assert raises.startswith("✗ 99.7 second: it raised AttributeError")
    assert rejects(both, lambda xs: xs.nothing, lambda xs: 1).startswith("✗ 99.7 first: it raised")


@pytest.mark.parametrize("double", [None, stub, lambda x: x], ids=["absent", "stub", "wrong"])
def test_an_open_exercise_is_stood_in_for(double, learner, capsys):
    if double:
        learner["double"] = double
    quadrupled(learner["quadruple"])
    assert "tested with the course's code for 99.1" in capsys.readouterr().out
    assert contract.session.records["99.4"]["earned"] == 2
    assert learner.get("double") is double, "what stood in is gone afterwards"


def test_what_stands_in_is_seen_by_an_answer_from_another_module(learner):
    elsewhere = {"double": lambda x: x}
    quadrupled(eval("lambda x: double(double(x))", elsewhere))
    assert contract.session.records["99.4"]["status"] == "passed" and elsewhere["double"](3) == 3


def test_what_stands_in_is_an_argument_too(learner):
    applied(lambda double, n: double(double(double(n))), contract.NotRun("double"))
    assert contract.session.records["99.5"]["status"] == "passed"


def test_what_stands_in_mends_no_answer_and_no_stub(learner, rejects, not_written):
    learner["double"] = stub
    told = rejects(quadrupled, eval("lambda x: double(x)", learner))
    assert "quadruple(3) gave 6, wanted 12 (tested with the course's code for 99.1" in told
    contract.session.records.clear()
    not_written(quadrupled, stub)


def test_what_stands_in_is_not_named_where_it_changes_nothing(learner, rejects):
    assert rejects(quadrupled, lambda x: 5) == "✗ 99.4 quadruple: quadruple(3) gave 5, wanted 12"
    learner["double"] = lambda x: 2 * x
    doubles(learner["double"])
    assert "course's code" not in rejects(quadrupled, lambda x: learner["double"](x))


def test_what_comes_later_does_not_stand_in(learner, rejects):
    contract.session.reference = {"99.4": "def quadruple(x):\n    return 4 * x"}.get
    told = rejects(doubles, eval("lambda x: quadruple(x / 2)", {"quadruple": stub} | learner))
    assert "course's code" not in told


def test_of_what_is_lent_only_what_there_is_stands_in(learner, monkeypatch):
    """An instructor's check in the place of the course's may name more than its solution has."""
    monkeypatch.setitem(contract.NAMES, "99.1", ["double", "half"])
    quadrupled(learner["quadruple"])
    assert contract.session.records["99.4"]["status"] == "passed"


def test_what_stands_in_shows_none_of_its_lines(learner, rejects):
    sources = {"99.1": "def double(x):\n    secret = x.nothing\n    return secret"}
    contract.session.reference = sources.get
    told = rejects(quadrupled, learner["quadruple"])
    assert "AttributeError" in told and "secret" not in told
