"""Studies of many runs: a row of a CSV file each, so that a study goes on where it stopped."""

import csv
from dataclasses import fields
from pathlib import Path


def done(path: Path, kind: type) -> set:
    """The runs, of the dataclass `kind`, whose rows are in the file."""
    if not path.exists():
        return set()
    kinds = {field.name: field.type for field in fields(kind)}
    with path.open(encoding="utf-8", newline="") as file:
        return {kind(**{k: t(row[k]) for k, t in kinds.items()}) for row in csv.DictReader(file)}


def append(path: Path, row: dict) -> None:
    """Add a row, below a header where the file is new, and print it."""
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)
