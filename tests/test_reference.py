"""The course's own solutions, as source that works alone: tests/labs/test_mistakes.py judges it."""

import ast
import base64
import zlib
from pathlib import Path

from labkit import reference

ROOT = Path(__file__).parents[1]
STEMS = sorted(path.stem for path in (ROOT / "labs").glob("[0-9][0-9]_*.py"))


def test_it_holds_what_is_asked_for_and_no_more():
    text = reference.reference("02_lora", "2.4")
    body = [getattr(node, "name", "import") for node in ast.parse(text).body]
    assert body == ["import", "import", "import", "LoRALinear", "inject"]
    assert text.startswith("import math\nimport torch\nfrom torch import nn\n")
    assert "from trl import SFTConfig\n" in reference.reference("03_peft", "3.1")


def test_there_is_none_of_a_quiz_of_what_no_lab_has_and_without_solutions(monkeypatch, tmp_path):
    for stem in STEMS:
        (quiz,) = [c.exercise["id"] for c in reference.checks(stem) if c.exercise["name"] == "quiz"]
        assert reference.reference(stem, quiz) is None
    assert reference.reference("02_lora", "2.77") is None
    monkeypatch.setattr(reference, "__file__", str(tmp_path / "labkit/reference.py"))
    assert reference.reference("02_lora", "2.1") is None


def test_what_a_release_lends_has_no_quiz_and_cannot_be_read_at_a_glance():
    """That each exercise is in it, tests/course/test_release.py shows."""
    for stem in STEMS:
        solved, student = (ROOT / folder / f"{stem}.ipynb" for folder in ("solutions", "notebooks"))
        text = reference.packed(solved, student)
        assert any("def quiz" in cell for cell in reference.code_cells(solved))
        assert b"def " not in text and b"return" not in text
        assert b"quiz" not in zlib.decompress(base64.b64decode(text))


def test_cells_with_magics_are_read():
    cells = ["%matplotlib inline\nimport math", "!pip list", "def f(x):\n    return math.exp(x)"]
    assert reference.needed(cells, ["f"]) == ["import math", cells[2]]
