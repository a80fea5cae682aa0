"""Read, recognize and audit a file and its held-out companion, and report the findings."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.data import read, shapes
from labkit.data.audit import MAX_LENGTH, Audit, Finding, audit, leaks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 5  # line numbers shown per finding


@dataclass(frozen=True)
class Report:
    """The audit of a file, of its held-out companion (if any), and of both together."""

    file: Path
    shape: shapes.Shape
    examples: list[shapes.Example]
    audit: Audit
    max_length: int
    test: "Report | None" = None
    between: tuple[Finding, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """All findings in both files."""
        return [*self.audit.findings, *(self.test.findings if self.test else ()), *self.between]

    @property
    def wrong(self) -> list[Finding]:
        """The findings that would make training wrong."""
        return [finding for finding in self.findings if finding.level == "wrong"]

    def sound(self, more: Iterable[Finding] = ()) -> list[shapes.Example]:
        """The rows that neither the file's findings nor `more` call wrong."""
        found = [*self.audit.findings, *more]
        lines = {line for f in found if f.level == "wrong" for line in f.lines}
        return [example for example in self.examples if example.line not in lines]

    def sha256(self) -> str:
        """The SHA-256 of the file's bytes."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def summary(self) -> list[str]:
        """Describe the file in a few lines."""
        lines = [f"{self.file.name}: {self.audit.rows} rows, {self.shape}"]
        if size := self.audit.tokens:
            span = f"min {size['min']}, median {size['median']}, max {size['max']}"
            lines.append(f"tokens per row: {span}; cut at {self.max_length}")
            lines.append(f"tokens to learn: {self.audit.learned}")
        if counts := self.audit.labels:
            named = [f"{_short(label)} {n}" for label, n in list(counts.items())[:6]]
            more = f", and {len(counts) - 6} more" if len(counts) > 6 else ""
            lines.append(f"answers repeat; {len(counts)} are distinct: {', '.join(named)}{more}")
        return lines + (self.test.summary() if self.test else [])

    def line(self, finding: Finding) -> str:
        """Format a finding as one line: the number of rows, the fault, the line numbers."""
        n, what = len(finding.lines), finding.as_dict()["what"]
        named = ", ".join(map(str, finding.lines[:SHOWN]))
        more = f" and {n - SHOWN} more" if n > SHOWN else ""
        where = f"line{'s' if n > 1 else ''} {named}{more}"
        inside = f" in {finding.file}" if self.test else ""
        detail = f" ({finding.detail})" if finding.detail else ""
        return f"{n} x {what}: {where}{inside}{detail}"

    def as_dict(self) -> dict:
        """The report as plain data."""
        return {
            "file": str(self.file),
            "sha256": self.sha256(),
            "shape": self.shape.kind,
            "columns": self.shape.columns,
            "rows": self.audit.rows,
            "tokens": self.audit.tokens,
            "learned_tokens": self.audit.learned,
            "max_length": self.max_length,
            "labels": self.audit.labels,
            "findings": [finding.as_dict() for finding in self.findings],
            "wrong": bool(self.wrong),
            "test": self.test.as_dict() if self.test else None,
        }


def _short(text, most=24):
    return text if len(text) <= most else f"{text[:most].rstrip()}…"


def load(file: Path) -> tuple[shapes.Shape, list[shapes.Example]]:
    """Read a file and return its shape and its rows; LabError if it cannot be read."""
    records = read.rows(file)
    shape = shapes.recognise(records, str(file))
    return shape, shapes.examples(records, shape)


def of(
    file: Path,
    loaded: tuple[shapes.Shape, list[shapes.Example]],
    tokenizer: "PreTrainedTokenizerBase",
    ends: Iterable[int],
    max_length: int = MAX_LENGTH,
    test: Path | None = None,
) -> Report:
    """Report on a file that `load` has read; `tokenizer` needs a chat template."""
    shape, examples = loaded
    own = audit(examples, tokenizer, max_length, ends, file.name)
    if not test:
        return Report(file, shape, examples, own, max_length)
    kind, rows = load(test)
    other = audit(rows, tokenizer, max_length, ends, test.name, part=True)
    companion = Report(test, kind, rows, other, max_length)
    between = tuple(leaks(examples, rows, test.name))
    return Report(file, shape, examples, own, max_length, companion, between)
