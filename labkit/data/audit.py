"""`audit`: what in a file would train wrongly, which rows, and what to do about it."""

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
    """What was found: an id of `MEANING`, in which lines, and what to do.

    `level` is "wrong" (training would be), "look" (it may be meant) or "note".
    """

    id: str
    lines: list[int]
    detail: str
    file: str

    @property
    def level(self) -> str:
        return MEANING[self.id].level

    def as_dict(self) -> dict:
        """Plain data, with its count, its meaning and what to do."""
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
    """Findings, the worst first; tokens a row; rows of each answer where answers are labels."""

    rows: int
    findings: list[Finding]
    lengths: list[int]
    learned: int
    labels: dict[str, int]

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens a row, uncut: `min`, `median`, `max`; empty where no row could be read."""
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
    """What is wrong with the rows of one file.

    Without a tokenizer, nothing is said of tokens. `ends` are the tokens that end an answer.
    A `part` is held out: it may be small, and have one answer alone.
    """
    found: dict[str, list] = {}
    lengths, learned = [], 0
    words = tokens.control_words(tokenizer) if tokenizer else []
    for example in examples:
        told = [(name, "") for name in faults.of(example, words)]
        if tokenizer and not any(MEANING[name].level == "wrong" for name, _ in told):
            more, encoded = _of_tokens(example, tokenizer, max_length, set(ends))
            told += more
            if encoded:
                lengths.append(len(encoded.input_ids))
                learned += len(encoded.cut(max_length).learned)
        for name, detail in told:
            found.setdefault(name, []).append((example.line, detail))
    if "cut" in found:
        found["cut"][0] = (found["cut"][0][0], f"--max-length {max(lengths)} would hold all")
    findings = [
        Finding(name, [line for line, _ in rows], rows[0][1], file) for name, rows in found.items()
    ]
    for name, lines, detail in across.of(examples, part):
        findings.append(Finding(name, lines, detail, file))
    return Audit(len(examples), _ordered(findings), lengths, learned, across.labels(examples))


def leaks(train: list[Example], test: list[Example], file: str = "") -> list[Finding]:
    """Prompts of the test that are trained on, and answers that are not; lines of the test."""
    return _ordered([Finding(*found, file) for found in across.between(train, test)])


def _of_tokens(example, tokenizer, max_length, ends):
    """([(id of a finding, a detail)], the example as tokens or None)."""
    try:
        whole = tokens.encode(example, tokenizer)
    except tokens.TemplateFault as error:
        return [("template", str(error))], None
    kept = whole.cut(max_length)
    if not kept.learned:
        return [("trains_on_nothing", "")], whole
    if len(whole.input_ids) > max_length:
        return [("cut", "")], whole
    return ([] if kept.ended(ends) else [("no_end", "")]), whole


def _ordered(findings):
    rank = list(MEANING)
    return sorted(findings, key=lambda finding: rank.index(finding.id))
