"""Audit a file: which rows would train wrongly, why, and how to fix them."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from labkit.data import across, faults, tokens
from labkit.data.meaning import MEANING
from labkit.data.shapes import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 512


@dataclass(frozen=True)
class Finding:
    """One finding: an id from `MEANING`, the affected lines, and a detail.

    `level` is "wrong" (the rows would train wrongly), "look" (they may be intended) or "note".
    """

    id: str
    lines: list[int]
    detail: str
    file: str

    @property
    def level(self) -> str:
        return MEANING[self.id].level

    def as_dict(self) -> dict:
        """The finding as plain data, including the number of rows, the meaning and the fix."""
        known = MEANING[self.id]
        return {
            "id": self.id,
            "level": known.level,
            "file": self.file,
            "count": len(self.lines),
            "lines": self.lines,
            "what": known.what,
            "detail": self.detail,
            "do": known.do,
        }


@dataclass(frozen=True)
class Audit:
    """The findings, worst first; tokens per row; and rows per answer if answers are labels."""

    rows: int
    findings: list[Finding]
    lengths: list[int]
    learned: int
    labels: dict[str, int]

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens per row before truncation: `min`, `median`, `max`; {} if no row was encoded."""
        if not self.lengths:
            return {}
        low, high = min(self.lengths), max(self.lengths)
        return {"min": low, "median": int(median(self.lengths)), "max": high}


def audit(
    examples: list[Example],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_length: int = MAX_LENGTH,
    ends: Iterable[int] = (),
    file: str = "",
    part: bool = False,
) -> Audit:
    """Audit the rows of one file.

    Without a tokenizer, tokens are not checked. `ends` are the tokens that end an answer. With
    `part`, the file is held out: it may be small and have a single answer.
    """
    found: dict[str, list] = {}
    lengths, learned = [], 0
    words = tokens.control_words(tokenizer) if tokenizer else []
    for example in examples:
        faulty = [(name, "") for name in faults.of(example, words)]
        if tokenizer and not any(MEANING[name].level == "wrong" for name, _ in faulty):
            more, encoded = _of_tokens(example, tokenizer, max_length, set(ends))
            faulty += more
            if encoded:
                lengths.append(len(encoded.input_ids))
                learned += len(encoded.cut(max_length).learned)
        for name, detail in faulty:
            found.setdefault(name, []).append((example.line, detail))
    if "cut" in found:
        found["cut"][0] = (found["cut"][0][0], f"--max-length {max(lengths)} would fit every row")
    findings = [
        Finding(name, [line for line, _ in rows], rows[0][1], file) for name, rows in found.items()
    ]
    for name, lines, detail in across.of(examples, part):
        findings.append(Finding(name, lines, detail, file))
    return Audit(len(examples), _ordered(findings), lengths, learned, across.labels(examples))


def leaks(train: list[Example], test: list[Example], file: str = "") -> list[Finding]:
    """Find test prompts also trained on, and test answers never trained on; lines of the test."""
    return _ordered([Finding(*found, file) for found in across.between(train, test)])


def _of_tokens(example, tokenizer, max_length, ends):
    """Check tokens: ([(id of a finding, detail)], the encoded example or None)."""
    try:
        whole = tokens.encode(example, tokenizer)
    except tokens.TemplateFault as error:
        return [("template", str(error))], None
    cut = whole.cut(max_length)
    if not cut.learned:
        return [("trains_on_nothing", "")], whole
    if len(whole.input_ids) > max_length:
        return [("cut", "")], whole
    return ([] if cut.ended(ends) else [("no_end", "")]), whole


def _ordered(findings):
    rank = list(MEANING)
    return sorted(findings, key=lambda finding: rank.index(finding.id))
