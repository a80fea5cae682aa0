"""The course's own solutions, as source that works alone."""

import ast
import base64
import importlib
import zlib
from pathlib import Path

import pytest

from labkit import contract, reference

ROOT = Path(__file__).parents[1]
STEMS = sorted(path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py"))


def checks(stem):
    """The checks of a lab."""
    return contract.checks_of(importlib.import_module(f"labkit.checks.lab{stem[:2]}"))


CASES = [
    pytest.param(stem, check, id=check.exercise["id"])
    for stem in STEMS
    for check in checks(stem)
    if check.exercise["name"] != "quiz"
]


@pytest.fixture(params=["clone", "release"])
def course(request, monkeypatch, tmp_path):
    """labkit beside solutions/, then in a folder that has the packed ones and nothing else."""
    if request.param == "release":
        (tmp_path / "labkit/_lent").mkdir(parents=True)
        for stem in STEMS:
            books = (ROOT / folder / f"{stem}.ipynb" for folder in ("solutions", "notebooks"))
            (tmp_path / f"labkit/_lent/{stem}.b64").write_bytes(reference.packed(*books))
        monkeypatch.setattr(reference, "__file__", str(tmp_path / "labkit/reference.py"))


@pytest.mark.parametrize(("stem", "check"), CASES)
def test_it_works_alone_and_passes(stem, check, accepts):
    names = {}
    exec(reference.reference(stem, check.exercise["id"]), names)
    accepts(check, *(names[name] for name in check.exercise["names"]))


def test_it_holds_what_is_asked_for_and_no_more(course):
    for param in CASES:
        stem, check = param.values
        body = ast.parse(reference.reference(stem, check.exercise["id"])).body
        defined = {node.name for node in body if not isinstance(node, reference.IMPORTS)}
        assert defined >= set(check.exercise["names"]), check.exercise
    text = reference.reference("02_lora", "2.4")
    body = [getattr(node, "name", "import") for node in ast.parse(text).body]
    assert body == ["import", "import", "import", "LoRALinear", "inject"]
    assert text.startswith("import math\nimport torch\nfrom torch import nn\n")
    assert "from trl import SFTConfig\n" in reference.reference("03_peft", "3.1")


def test_there_is_none_of_a_quiz_and_of_what_no_lab_has(course):
    for stem in STEMS:
        last = checks(stem)[-1].exercise
        assert last["name"] == "quiz"
        assert reference.reference(stem, last["id"]) is None
    assert reference.reference("02_lora", "2.77") is None


def test_there_is_none_without_solutions(monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "__file__", str(tmp_path / "labkit/reference.py"))
    assert reference.reference("02_lora", "2.1") is None


def test_what_is_packed_has_no_quiz_and_cannot_be_read_at_a_glance():
    for stem in STEMS:
        solved, student = (ROOT / folder / f"{stem}.ipynb" for folder in ("solutions", "notebooks"))
        text = reference.packed(solved, student)
        assert any("def quiz" in cell for cell in reference.code_cells(solved))
        assert b"def " not in text and b"return" not in text
        assert b"quiz" not in zlib.decompress(base64.b64decode(text))


def test_cells_with_magics_are_read():
    cells = ["%matplotlib inline\nimport math", "!pip list", "def f(x):\n    return math.exp(x)"]
    assert reference.needed(cells, ["f"]) == ["import math", cells[2]]
