"""What was measured beforehand, and what a lab has measured already: both as plain tables.

Sweeps over many seeds take longer than a lab may. Their rows are CSV files beside this module,
each made by a script in benchmarks/ that can be run again: rank_sweep.csv by rank_sweep.py,
forgetting.csv by forgetting.py, where_loss.csv by where_loss.py, beside_rounding.csv by
beside_rounding.py, capacity.csv by capacity.py, variants.csv by variants.py, merges.csv by
merges.py, rewards.csv by rewards.py, preferences.csv by preferences.py, tickets.csv and
ticket_answers.csv by tickets_study.py.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING

from labkit.files import whole

if TYPE_CHECKING:
    from pandas import DataFrame

PACKAGES = ("lora-labs", "peft", "torch", "transformers", "trl")


def load(name: str) -> DataFrame:
    """The measured table `name` as a DataFrame: an empty cell is empty text, `nan` no number."""
    import pandas as pd

    with (resources.files(__package__) / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, na_values=["nan"])


def spread(frame: DataFrame) -> DataFrame:
    """Mean, lowest, highest and number of the losses of each learning rate, failures left out."""
    groups = frame.dropna(subset=["loss"]).groupby("learning_rate")["loss"]
    names = {"mean": "mean", "low": "min", "high": "max", "runs": "size"}
    return groups.agg(**names).reset_index()


def remember(measure: Callable[..., dict], **settings) -> dict:
    """`measure(**settings)`, a dict of plain data; the same settings again come from the cache.

    The cache is keyed by the function, all code that trains and judges, the settings and the
    versions of the libraries.
    """
    from labkit import download, fingerprint
    from labkit.training import hardware

    known = {
        "source": inspect.getsource(measure),
        "settings": settings,
        "device": hardware.device(),
        "rehearsal": hardware.rehearsal(),
    }
    digest = fingerprint.of(fingerprint.TRAINING + fingerprint.JUDGING, PACKAGES, known)[:16]
    path = download.cache_dir() / "measured" / f"{digest}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = measure(**settings)
    with whole(path) as part:
        part.write_text(json.dumps(found), encoding="utf-8")
    return found
