"""The contract between checks and learners' code."""

import numpy as np
import pandas as pd
import pytest
import torch

from labkit import contract
from labkit.contract import CheckFailed, exercise, expect, generator, observe
from labkit.contract.calls import plain
from labkit.contract.hints import hint


@exercise("99.1", points=2)
def doubles(double):
    """doubles"""
    expect(observe(double, 3) == 6, "3 must give 6", earned=1)


def test_a_failure_keeps_part_of_the_points_and_the_message(rejects):
    assert rejects(doubles, lambda x: x) == "✗ 99.1 double: 3 must give 6"
    record = contract.session.records["99.1"]
    assert (record["status"], record["earned"]) == ("failed", 1)
    assert record["message"] == "3 must give 6"


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


def test_a_check_called_without_its_object_says_how():
    with pytest.raises(CheckFailed, match=r"Call this check as check\.doubles\(double\)"):
        doubles()


def test_inputs_depend_on_seed_and_exercise(monkeypatch):
    def drawn(seed, exercise):
        monkeypatch.setattr(contract.session, "seed", seed)
        monkeypatch.setattr(contract.session, "exercise", exercise)
        return torch.rand(1, generator=generator()).item()

    assert drawn(0, "1.1") == drawn(0, "1.1")
    assert len({drawn(0, "1.1"), drawn(1, "1.1"), drawn(0, "1.2")}) == 3


def test_plain_data():
    tensor = torch.ones(2, requires_grad=True)
    got = plain({"a": (tensor, np.float32(2)), 3: np.arange(2), "f": pd.DataFrame({"r": [4, 8]})})
    assert not got["a"][0].requires_grad
    assert got["a"][1] == 2.0 and type(got["a"][1]) is float
    assert torch.equal(got["3"], torch.arange(2))
    assert got["f"] == {"r": [4, 8]}
    with pytest.raises(TypeError, match="a Linear"):
        plain(torch.nn.Linear(1, 1))


HINTED = {
    "NameError: name 'np' is not defined": "`import numpy as np` is missing",
    "NameError: name 'json' is not defined": "`import json` is missing",
    "NameError: name 'sqrt' is not defined": "math.sqrt",
    "NameError: name 'ranc' is not defined": "spelled",
    "ValueError: too many values to unpack (expected 2)": ".items()",
    "RuntimeError: size mismatch, got input (3), mat (3x11), vec (3)": "transpose",
    "RuntimeError: shape '[3, 2, 32, 20]' is invalid for input of size 600": "is 3840",
    "RuntimeError: shape '[-1, 32]' is invalid for input of size 600": "into parts of 32",
    "OSError: the disk is full": "",  # what it means is not guessed
}


@pytest.mark.parametrize("what", HINTED)
def test_an_exception_is_explained_whichever_check_met_it(what):
    assert HINTED[what] in hint(what) and bool(HINTED[what]) == bool(hint(what))


def test_a_full_stop_of_an_exception_does_not_stand_before_what_is_said_of_it(rejects):
    message = rejects(doubles, lambda x: torch.ones(1, 2, 2) @ torch.ones(1, 3, 2))
    assert "[1, 3]; " in message or "[1, 2]; " in message
