"""The claims that the course tests, each with its verdict and where it is measured."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from rich.console import Console
from rich.text import Text

from labkit.errors import LabError

VERDICTS = ("holds", "corrected", "depends", "not testable here")


@dataclass(frozen=True)
class Claim:
    """A common claim, its verdict from `VERDICTS`, what is right, and where it is measured.

    where: (lab or evidence page, heading or experiment) pairs, such as ("evidence/02_lora",
    "Seeds"); empty if the course does not measure it.
    """

    id: str
    claim: str
    verdict: str
    right: str
    where: tuple = ()


def load(ids: Sequence[str] = ()) -> list[Claim]:
    """All claims, or those of `ids` ("A3", "a3"); LabError for an unknown one."""
    text = (resources.files(__package__) / "claims.toml").read_text(encoding="utf-8")
    found = {
        name: Claim(id=name, **fields | {"where": tuple(map(tuple, fields.get("where", ())))})
        for name, fields in tomllib.loads(text).items()
    }
    for name in ids:
        if name.upper() not in found:
            raise LabError(f"there is no claim {name!r}, only A1 to {list(found)[-1]}")
    return [found[name.upper()] for name in ids] if ids else list(found.values())


def show(claims: list[Claim], console: Console) -> None:
    """Print each claim, what is right, and where the course measures it."""
    for claim in claims:
        console.print(Text.assemble((f"{claim.id} ", "bold"), claim.claim))
        console.print(Text.assemble((f"   {claim.verdict}: ", "yellow"), claim.right))
        places = "; ".join(f"{lab}, {cell}" for lab, cell in claim.where)
        console.print(Text(f"   {places or 'not measured in this course'}", "dim"))
