"""Whether an answer is the course's solution, word for word."""

import json
from pathlib import Path

import pytest

from labkit import reference
from labkit.grading.judge import own

ROOT = Path(__file__).parents[3]
SOLVED = """
%matplotlib inline

def lora_forward(x, W, A, B, alpha):
    'A docstring of its own.'

    # and a comment
    r = (A.shape[0])
    return x @ W.T + (alpha / r) * (x @ A.T) @ B.T
"""


def test_every_solution_is_the_courses_and_no_stub_is():
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        stubs = json.loads((ROOT / "notebooks" / path.name).read_text("utf-8"))["cells"]
        stubs = ["".join(cell["source"]) for cell in stubs if cell["cell_type"] == "code"]
        for cell in reference.solved_cells(path.stem):
            for name in reference.defined(cell):
                assert not own.is_own(path.stem, name, cell), (path.stem, name)
        both = reference.solved_cells(path.stem) + stubs
        names = {name for cell in stubs for name in reference.defined(cell)}
        assert any(own.is_own(path.stem, name, cell) for name in names for cell in both)


def test_what_says_the_same_in_other_words_is_ones_own():
    assert not own.is_own("02_lora", "lora_forward", SOLVED)
    assert own.is_own("02_lora", "lora_forward", SOLVED.replace("A.shape[0]", "len(A)"))


@pytest.mark.parametrize(
    "cell",
    [
        "def lora_forward(x, W:",
        "def other(): pass",
        "def lora_forward(x, W):\n    return " + "+".join("1" * 5000),
        "def lora_forward(x, W):\n    return " + "(" * 5000,
        "def lora_forward(x, W):\n    return '\x00'",
    ],
    ids=range(5),
)
def test_what_cannot_be_read_is_not_ones_own(cell):
    assert not own.is_own("02_lora", "lora_forward", cell)
    assert not own.is_own("99_none", "lora_forward", SOLVED.replace("A.shape[0]", "len(A)"))
