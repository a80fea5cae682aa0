"""`labkit grade --similar`: planted copies are found, independent answers are not."""

import random
import re

import classroom
from command import call
from submissions import START, notebook

from labkit.grading.after import similar
from labkit.grading.row import Row

LAB = "02_lora"
POOL = "07_ship"  # the tests of this lab have enough right answers to draw from


OWN = """
def lora_gradients(x, W, A, B, alpha, dY):
    scaled = alpha / len(A)
    flat = x.reshape(-1, x.shape[-1])
    rows = dY.reshape(-1, dY.shape[-1])
    left, right = rows @ B * scaled, flat @ A.T * scaled
    return left.T @ flat, rows.T @ right
"""


def test_copies_are_found_and_marked_and_answers_chosen_at_random_are_not_found():
    rng = random.Random(3)
    own = {f"own{i}": classroom.independent(POOL, rng) for i in range(12)}
    copies = {f"copy{i}": classroom.copied(own[f"own{i}"], rng) for i in range(2)}
    pairs = similar.pairs(POOL, own | copies)
    planted = {frozenset((f"own{i}", f"copy{i}")) for i in range(2)}
    assert {frozenset(pair.names) for pair in pairs} == planted
    for side in (side for pair in pairs for side in pair.sides):
        marked = re.findall(r"<mark>(.*?)</mark>", side, re.DOTALL)
        assert sum(map(len, marked)) > 0.6 * len(re.sub(r"</?mark>", "", side))


def test_what_the_course_gave_out_and_what_is_short_do_not_count():
    given = {"2.1": "def lora_forward(x, W, A, B, alpha):\n    return x @ W.T"}
    solved = {id: "\n\n".join(similar.reference.course_cells(LAB)) for id in ("2.1", "2.2", "2.3")}
    assert similar.pairs(LAB, {"a": given, "b": given}) == []
    assert similar.pairs(LAB, {"a": solved, "b": solved}) == []


def test_pages_are_without_scripts_and_what_learners_wrote_is_text(tmp_path):
    cell = f"<script>alert(1)</script> = 0\n{OWN}"
    cells = {id: cell.replace("gradients", id) for id in ("2.1", "2.2", "2.3")}
    rows = [Row(f"{name}<b>.ipynb", "graded", lab=LAB) for name in "ab"]
    (tmp_path / "similar").mkdir()
    (tmp_path / "similar" / "9.html").write_text("of an earlier call")
    assert len(similar.write(tmp_path, rows, {row.submission: cells for row in rows})) == 1
    pages = [(tmp_path / "similar.html"), *(tmp_path / "similar").iterdir()]
    assert [page.name for page in pages] == ["similar.html", "1.html"]
    for page in pages:
        text = page.read_text("utf-8")
        assert "<script" not in text and "<b>.ipynb" not in text and "default-src 'none'" in text


def test_the_command_lists_them(batch, capsys):
    batch({"a.ipynb": notebook(START), "b.ipynb": notebook(START)})
    assert call("grade", batch.folder, "--out", batch.out, "--similar") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "similar pairs: 0" in out and "similar.html" in out
