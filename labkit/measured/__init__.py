"""Runs that were made in advance, as plain tables.

Studies with many seeds take longer than a lab may. Their rows are CSV files next to this module,
each made by a script of benchmarks/ that can be run again.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def load(name: str) -> DataFrame:
    """The measured table `name` as a DataFrame: an empty cell is empty text, `nan` no number."""
    import pandas as pd

    with (resources.files(__package__) / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, na_values=["nan"])


def by_run(name: str) -> DataFrame:
    """A lab's own studies: a row per (study, setting, seed), a column per measure."""
    rows = load(name).set_index(["study", "setting", "seed", "measure"])["value"]
    return rows.unstack(sort=False).sort_index()
