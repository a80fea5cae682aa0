"""Tables with the results of studies that take too long for a lab.

Each table is a CSV file next to this module, made by a script in benchmarks/.
"""

from importlib import resources

import pandas as pd


def load(name: str) -> pd.DataFrame:
    """Load the table `name`: empty cells are empty text, `nan` is a missing number."""
    with (resources.files(__package__) / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, na_values=["nan"])


def by_run(name: str) -> pd.DataFrame:
    """Load a lab's own studies: one row per (study, setting, seed), one column per measure."""
    rows = load(name).set_index(["study", "setting", "seed", "measure"])["value"]
    return rows.unstack(sort=False).sort_index()
