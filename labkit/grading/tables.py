"""A table that another system exported: read it, find a column, fill in points, write it back."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path

from labkit.errors import LabError


def column(head: list[str], candidates: list[int], wanted: str | None, lab: str) -> int:
    """Return where the wanted column is; without one, where the title names the lab."""
    titles = {i: re.sub(r" \(\d+\)$", "", head[i]).strip().lower() for i in candidates}
    if wanted:
        found = [i for i in candidates if wanted.lower() in (titles[i], head[i].lower())]
    else:
        names = rf"\blab\W*0?{number_of(lab)}\b|\b{re.escape(lab)}\b"
        found = [i for i in candidates if re.search(names, titles[i])]
    if len(found) != 1:
        listed = ", ".join(repr(head[i]) for i in candidates)
        raise LabError(f"say --column with the column that takes {wanted or lab}: {listed}")
    return found[0]


def points(row: dict, most: str) -> str:
    """Return the points, scaled to what the system gives for this assignment, with 2 decimals."""
    top = _number(most) or row["possible"]
    scaled = row["earned"] * top / row["possible"] if row["possible"] else 0
    text = f"{scaled:.2f}".rstrip("0").rstrip(".")
    return text.replace(".", ",") if "," in most else text


def put(line: list[str], at: int, text: str, name: str) -> list[str]:
    """Fill in a grade; a line where something else stood there that somebody may have written.

    What is no number, such as EX for excused, stays. A lower grade than before is filled in.
    """
    before = line[at].strip()
    old, new = _number(before), _number(text)
    if before and old is None:
        return [f"{name} has {before!r}, which stays; graded {text}"]
    line[at] = text
    return [f"{name} had {before}, and gets {text}"] if before and new < old else []


def number_of(lab: str) -> str:
    """Return "2" for "02_lora"."""
    return lab.partition("_")[0].lstrip("0")


def _number(text: str) -> float | None:
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None


def scale(rows: list[dict], most: str) -> list[str]:
    """Return a line where points are scaled."""
    top = _number(most)
    usual = Counter(row["possible"] for row in rows if row["possible"]).most_common(1)
    if not top or not usual or top == usual[0][0]:
        return []
    return [f"scaled: {usual[0][0]:g} points here are {top:g} there"]


def read(path: Path) -> tuple[list[list[str]], str]:
    """Return a CSV file as full rows of text, and its separator."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise LabError(f"{path} is not text in UTF-8: save it as CSV (UTF-8)") from None
    first = text.partition("\n")[0]
    separator = ";" if first.count(";") > first.count(",") else ","
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise LabError(f"{path} is not CSV: {error}") from None
    if not rows:
        raise LabError(f"{path} is empty")
    width = max(len(row) for row in rows)
    return [row + [""] * (width - len(row)) for row in rows], separator


def written(rows: list[list[str]], separator: str) -> str:
    """Return the rows as CSV."""
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator).writerows(rows)
    return out.getvalue()
