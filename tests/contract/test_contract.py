"""The contract between checks and learners' code."""

import numpy as np
import pandas as pd
import pytest
import torch

from labkit import contract
from labkit.contract import CheckFailed, exercise, expect, generator, observe
from labkit.contract.hints import hint
from labkit.contract.plain import plain


@exercise("9.1", points=2)
def doubles(double):
    """doubles"""
    expect(observe(double, 3) == 6, "3 must give 6", earned=1)


def test_a_pass_earns_the_points(accepts):
    accepts(doubles, lambda x: 2 * x)


def test_a_failure_keeps_part_of_the_points_and_the_message():
    with pytest.raises(CheckFailed):
        doubles(lambda x: x)
    record = contract.session.records["9.1"]
    assert (record["status"], record["earned"]) == ("failed", 1)
    assert record["message"] == "3 must give 6"


def test_a_notebook_shows_the_message_and_nothing_else():
    with pytest.raises(CheckFailed) as caught:
        doubles(lambda x: x)
    (line,) = caught.value._render_traceback_()
    assert "✗ 9.1 double: 3 must give 6" in line


def test_stub_is_missing_not_wrong(not_written):
    def double(x):
        raise NotImplementedError

    not_written(doubles, double)


def test_torch_raising_not_implemented_is_a_failure(rejects):
    def double(x):
        raise NotImplementedError("no such kernel")

    assert "no such kernel" in rejects(doubles, double)


def test_an_error_names_the_line_of_the_cell(rejects):
    cell = compile("def double(x):\n    y = x\n    return y + 'a'\n", "<cell 3>", "exec")
    names = {}
    exec(cell, names)
    message = rejects(doubles, names["double"])
    assert "TypeError" in message and "line 3 of the cell" in message


def test_a_matrix_the_wrong_way_round_is_hinted_at(rejects):
    message = rejects(doubles, lambda x: torch.ones(2, 3) @ torch.ones(2, 3))
    assert "shapes cannot be multiplied" in message and "transpose" in message


def test_a_check_called_without_its_object_says_how():
    with pytest.raises(CheckFailed, match=r"called as check\.doubles\(double\)"):
        doubles()


def test_a_revealed_exercise_stays_revealed():
    record = {"id": "9.1", "name": "double", "points": 2, "earned": 0}
    contract.session.records["9.1"] = record | {"status": "revealed", "message": ""}
    doubles(lambda x: 2 * x)
    assert contract.session.records["9.1"]["status"] == "revealed"
    assert contract.session.records["9.1"]["earned"] == 0


def test_what_the_learner_changes_in_place_stays_outside():
    x = torch.ones(3)
    observe(lambda t: t.mul_(5), x)
    assert torch.equal(x, torch.ones(3))


def test_the_learners_random_numbers_leave_ours_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    observe(lambda: torch.randn(10))
    assert torch.equal(before, torch.get_rng_state())


def test_inputs_depend_on_seed_and_exercise(monkeypatch):
    monkeypatch.setattr(contract.session, "exercise", "1.1")
    first, again = (torch.rand(1, generator=generator()) for _ in range(2))
    assert first == again
    monkeypatch.setattr(contract.session, "seed", 1)
    assert first != torch.rand(1, generator=generator())
    monkeypatch.setattr(contract.session, "seed", 0)
    monkeypatch.setattr(contract.session, "exercise", "1.2")
    assert first != torch.rand(1, generator=generator())


def test_plain_data():
    tensor = torch.ones(2, requires_grad=True)
    got = plain({"a": (tensor, np.float32(2)), 3: np.arange(2), "f": pd.DataFrame({"r": [4, 8]})})
    assert not got["a"][0].requires_grad
    assert got["a"][1] == 2.0 and type(got["a"][1]) is float
    assert torch.equal(got["3"], torch.arange(2))
    assert got["f"] == {"r": [4, 8]}
    with pytest.raises(TypeError, match="a Linear"):
        plain(torch.nn.Linear(1, 1))


def test_a_hint_follows_the_message():
    with pytest.raises(CheckFailed, match=r"^A is wrong; is it transposed\?$"):
        expect(False, "A is wrong", hint="is it transposed?")
    with pytest.raises(CheckFailed, match=r"^A is wrong$"):
        expect(False, "A is wrong", hint="")
    expect(True, "A is wrong", hint="is it transposed?")


HINTED = {
    "NameError: name 'np' is not defined": "`import numpy as np` is missing",
    "NameError: name 'json' is not defined": "`import json` is missing",
    "NameError: name 'sqrt' is not defined": "it is math.sqrt",
    "NameError: name 'ranc' is not defined": "is it spelled the same",
    "ValueError: too many values to unpack (expected 2)": ".items()",
    "RuntimeError: size mismatch, got input (3), mat (3x11), vec (3)": "transpose",
    "RuntimeError: shape '[3, 2, 32, 20]' is invalid for input of size 600": "3 * 2 * 32 * 20 is "
    "3840",
    "RuntimeError: shape '[-1, 32]' is invalid for input of size 600": "into parts of 32",
}


@pytest.mark.parametrize("what", HINTED)
def test_an_exception_is_explained_whichever_check_met_it(what):
    assert HINTED[what] in hint(what)


def test_a_full_stop_of_an_exception_does_not_stand_before_what_is_said_of_it(rejects):
    message = rejects(doubles, lambda x: torch.ones(1, 2, 2) @ torch.ones(1, 3, 2))
    assert "[1, 3]; " in message or "[1, 2]; " in message


def test_what_an_exception_means_is_not_guessed():
    assert hint("OSError: the disk is full") == ""
