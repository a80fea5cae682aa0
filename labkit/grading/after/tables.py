"""Another system's table: read it, find a column, fill in points, write it back."""

import codecs
import contextlib
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.row import Row

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def column(head: list[str], candidates: list[int], wanted: str | None, lab: str) -> int:
    """The index of the `wanted` column; without one, of the column whose title names the lab."""
    titles = {i: re.sub(r" \(\d+\)$", "", head[i]).strip().lower() for i in candidates}
    if wanted:
        found = [i for i in candidates if wanted.lower() in (titles[i], head[i].lower())]
    else:
        names = rf"\blab\W*0?{number_of(lab)}\b|\b{re.escape(lab)}\b"
        found = [i for i in candidates if re.search(names, titles[i])]
    if len(found) != 1:
        listed = ", ".join(repr(head[i]) for i in candidates)
        why = f"{wanted!r} is not one column here;" if wanted else f"which column is for {lab}?"
        raise LabError(f"{why} choose --column from {listed}")
    return found[0]


def points(row: Row, most: str) -> str:
    """The points, scaled to the system's maximum for this assignment, with 2 decimals."""
    top = number(most) or row.possible
    scaled = row.earned * top / row.possible if row.possible else 0
    text = f"{scaled:.2f}".rstrip("0").rstrip(".")
    return text.replace(".", ",") if "," in most else text


def put(line: list[str], at: int, text: str, name: str) -> list[str]:
    """Fill in a grade; return a line if it replaces a higher one, or is blocked.

    Text such as EX for excused stays. A grade that is lower than before is filled in.
    """
    before = line[at].strip()
    old, new = number(before), number(text)
    if before and old is None:
        return [f"{name} has {before!r}, which stays; graded {text}"]
    line[at] = text
    return [f"{name} had {before} and now gets {text}"] if before and new < old else []


def number_of(lab: str) -> str:
    """The "2" of "02_lora"."""
    return lab.partition("_")[0].lstrip("0")


def number(text: str) -> float | None:
    """The number in a text, with a decimal point or comma; else None."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None


def scale(rows: list[Row], most: str) -> list[str]:
    """A line that says how points are scaled; [] if they are not."""
    top = number(most)
    usual = Counter(row.possible for row in rows if row.possible).most_common(1)
    if not top or not usual or top == usual[0][0]:
        return []
    return [f"scaled: {usual[0][0]:g} points here are {top:g} there"]


@dataclass
class Table:
    """Complete rows of text, and the format in which to write them back."""

    rows: list[list[str]]
    separator: str
    encoding: str
    mark: bytes  # byte order mark before the text

    @property
    def text(self) -> str:
        """The rows as CSV."""
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=self.separator).writerows(self.rows)
        return out.getvalue()

    def data(self) -> bytes:
        """The file's bytes; characters that its encoding lacks become &#...;"""
        return self.mark + self.text.encode(self.encoding, "xmlcharrefreplace")


def read(path: Path) -> Table:
    """The table in a CSV file; LabError if it is not CSV."""
    data = path.read_bytes()
    if data[:2] == b"PK":
        raise LabError(f"{path} is an Excel workbook: save it as CSV and use that file")
    text, encoding, mark = _decoded(data)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise LabError(f"{path} is not CSV: {error}") from None
    if not rows:
        raise LabError(f"{path} is empty")
    width = max(len(row) for row in rows)
    full = [row + [""] * (width - len(row)) for row in rows]
    return Table(full, separator, encoding, mark)


def _decoded(data: bytes) -> tuple[str, str, bytes]:
    """(text, encoding, byte order mark). Excel writes UTF-16, or a Windows code page."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), encoding, mark
    for encoding in ("utf-8", "cp1252", "latin-1"):  # latin-1 preserves any bytes
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding), encoding, b""
