"""Hostile and broken submissions: their score, what they leave behind, and their neighbours."""

import pytest
from attack import ALL, ALWAYS, ATTACKS, WRONG
from forged import FORGED

from labkit.checks import lab02


def test_score(attack, result):
    """The points are those that the attack may have, and a row that is no grade says why."""
    row, _ = result
    lowest, highest = attack.earned
    told = {e["id"]: (e["status"], e["message"][:200]) for e in row["exercises"]}
    assert lowest <= row["earned"] <= highest, (attack.why, row["status"], row.get("reason"), told)
    assert row["earned"] == sum(e["earned"] for e in row["exercises"])
    assert row["status"] in attack.statuses, row.get("reason")
    if row["status"] != "graded":
        assert row["reason"].strip() and len(row["reason"]) < 1_000
    assert all(len(e["message"]) <= 4_000 for e in row["exercises"])
    assert not any(e["status"] == "passed" and e["earned"] != e["points"] for e in row["exercises"])


def test_nothing_outside_changed(attack, result):
    """No file, process, connection, nor note from an attack that saw the grader's own process."""
    _, group = result
    assert group.changed == []
    assert attack.name not in group.notes
    assert group.heard == group.running == []


def test_neighbours_stand(attack, result):
    """The solved one has all its points, the wrong one none, each in one row."""
    _, group = result
    for name in group.neighbours[attack.name]:
        (row,) = group.rows[name]
        assert row["status"] == "graded", row.get("reason")
        assert row["earned"] == (0 if "unsolved" in name else ALL), row["exercises"]


def test_no_row_is_lost_or_invented(graded, group):
    done = graded(group)
    names = {name for both in done.neighbours.values() for name in both}
    assert done.rows.keys() == names | set(done.paths.values())


def test_names_are_unique_and_those_that_got_through_are_there():
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names)) >= 60
    assert set(ALWAYS) <= set(names)


@pytest.mark.parametrize("place", ["html", "csv", "json"])
def test_reports_hold_no_code_of_a_submission(graded, group, place):
    """No script, no formula, no password file in any report."""
    for path in graded(group).out.rglob(f"*.{place}"):
        text = path.read_text(encoding="utf-8")
        assert "<script>evil" not in text or place != "html"
        assert "root:x:0" not in text
        cells = text.splitlines() if place == "csv" else []
        formulas = ("=", "+", "-", "@", '"=', '"+', '"-', '"@')
        assert not [cell for cell in cells if cell.startswith(formulas)]


def test_forged_probes_would_earn_points(monkeypatch, accepts):
    """Else the attacks that try to put them in place would fail for another reason."""
    fake, answers = {}, {}
    exec(FORGED, fake)
    exec("import torch\nfrom torch import nn\n" + "\n".join(WRONG.values()), answers)
    for name in vars(lab02.probes).keys() & fake.keys():
        monkeypatch.setattr(lab02.probes, name, fake[name])
    for check in (lab02.layer, lab02.gradients, lab02.injects, lab02.merges, lab02.round_trip):
        accepts(check, *(answers[name] for name in check.exercise["names"]))
