"""Every claim has a verdict, and every place that it names is really in the labs."""

import json
import re
from pathlib import Path

import pytest

from labkit import cli
from labkit.course import claims

ROOT = Path(__file__).parents[2]
CLAIMS = claims.load()


def places(page):
    """Headings and experiments of a lab or an evidence page, as they are written."""
    if page.startswith("evidence/"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        return set(re.findall(r"^## (.+)$", text, re.MULTILINE))
    text = (ROOT / "labs" / f"{page}.py").read_text(encoding="utf-8")
    headings = re.findall(r"^# #{2,3} (.+)$", text, re.MULTILINE)
    return set(headings) | set(re.findall(r'lab\.experiment\(\s*"([^"]+)"', text))


def test_all_claims_are_there_in_order():
    numbers = [int(claim.id.removeprefix("A")) for claim in CLAIMS]
    assert numbers == sorted(set(numbers)) and set(range(1, 37)) <= set(numbers)
    assert [claim.id for claim in claims.load(["a18", "A2"])] == ["A18", "A2"]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claim_says_what_is_right_and_where_it_is_measured(claim):
    assert claim.verdict in claims.VERDICTS
    assert claim.claim.endswith(".") and claim.right.endswith(".")
    for lab, cell in claim.where:
        written = places(lab)
        assert cell in written or any(p.startswith(f"{cell} ") for p in written), (lab, cell)


def test_the_command_prints_them_all(capsys):
    with pytest.raises(SystemExit):
        cli.main(["claims", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == len(CLAIMS)
    with pytest.raises(SystemExit):
        cli.main(["claims", "A1"])
    text = " ".join(capsys.readouterr().out.split())
    assert "A1 Full fine-tuning of 7B" in text and "04_qlora, What a step takes" in text
