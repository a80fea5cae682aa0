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


def test_every_solution_is_the_courses_and_a_stub_is_not():
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        book = json.loads((ROOT / "notebooks" / path.name).read_text("utf-8"))
        stubs = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
        for cells, differ in (reference.solved_cells(path.stem), False), (stubs, True):
            named = [(name, cell) for cell in cells for name in reference.defined(cell)]
            assert any(own.is_own(path.stem, *one) for one in named) == differ, path.stem


def test_what_says_the_same_in_other_words_is_ones_own():
    assert not own.is_own("02_lora", "lora_forward", SOLVED)
    assert own.is_own("02_lora", "lora_forward", SOLVED.replace("A.shape[0]", "len(A)"))


UNREADABLE = ["def lora_forward(x, W:", "def other(): pass"]
UNREADABLE += ["def lora_forward(x, W):\n    return " + end for end in ("(" * 5000, "'\x00'")]
UNREADABLE += ["def lora_forward(x, W):\n    return " + "+".join("1" * 5000)]


@pytest.mark.parametrize("cell", UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_cannot_be_read_is_not_ones_own(cell):
    assert not own.is_own("02_lora", "lora_forward", cell)
    assert not own.is_own("99_none", "lora_forward", SOLVED.replace("A.shape[0]", "len(A)"))
