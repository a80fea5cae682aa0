"""Every claim has a verdict; that each place it names is there, test_book.py shows."""

import json

from command import call

from labkit.course import claims

CLAIMS = claims.load()


def test_all_claims_are_there_in_order_each_with_a_verdict():
    numbers = [int(claim.id.removeprefix("A")) for claim in CLAIMS]
    assert numbers == sorted(set(numbers)) and set(range(1, 37)) <= set(numbers)
    assert {claim.verdict for claim in CLAIMS} <= set(claims.VERDICTS)
    assert [claim.id for claim in claims.load(["a18", "A2"])] == ["A18", "A2"]


def test_the_command_prints_them_all(capsys):
    assert call("claims", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == len(CLAIMS)
    assert call("claims", "A1") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("A1 ") and "04_qlora, What a step takes" in text
