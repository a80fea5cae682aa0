"""What an adapter on one matrix can store, by rank, for lab 5.

    python benchmarks/capacity.py --minutes 5

Each run is one row of labkit/measured/capacity.csv. A run whose row is there is not repeated, so
the script can be stopped and called again. one_matrix.py says what trains: random pairs, in one
matrix of the last layer, in fp32, one thread; n pairs in batches of a quarter of them.

The first seed takes every rate, the two others each setting's best one. Where rank binds, and at
both ends of the ranks of 250 pairs, there are more rates: the best ones lie inside.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import one_matrix
import pandas as pd
import studies
import torch

ROOT = Path(__file__).parents[1]
OUT = ROOT / "labkit" / "measured" / "capacity.csv"
KEYS = ROOT / "build" / "capacity.pt"  # what the frozen layers make of them
SIZES, RANKS, SEEDS = (250, 1000), (1, 2, 4, 8, 16, 32, 64), (0, 1, 2)
RATES, MORE = (1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1)
BOUND = {(250, 2), (1000, 1), (1000, 2), (1000, 4)}  # pairs and rank where not all of them fit


@dataclass(frozen=True)
class Run:
    """One training run."""

    study: str
    n: int
    rank: int
    batch: int
    learning_rate: float
    seed: int


def settings():
    """(study, n, rank, batch, rates) of each setting."""
    for n in SIZES:
        for rank in RANKS:
            ends = n == SIZES[0] and rank in (RANKS[0], RANKS[-1])
            higher = (*RATES, MORE[-1]) if (n, rank) in BOUND else RATES
            yield "rank", n, rank, n // 4, MORE if ends else higher


def missing(rows, sizes=SIZES):
    """The runs to do next: all of the first seed, then the others at each setting's best rate."""
    there = {Run(*(row[name] for name in Run.__annotations__)) for row in rows}
    asked = [setting for setting in settings() if setting[1] in sizes]
    first = [Run(*setting, rate, 0) for *setting, rates in asked for rate in rates]
    if wanted := [run for run in first if run not in there]:
        return wanted
    runs = []
    for *setting, _ in asked:
        same = [row for row in rows if list(row.values())[:4] == setting and row["seed"] == 0]
        best = max(same, key=lambda row: row["bits"])["learning_rate"]
        runs += [Run(*setting, best, seed) for seed in SEEDS[1:]]
    return [run for run in runs if run not in there]


def silent(items, label):
    """No progress line outside of a notebook."""
    return items


def measure(run, stage):
    """The row of one run: its settings, and what it holds."""
    begun = time.perf_counter()
    how = {k: v for k, v in asdict(run).items() if k != "study"}
    found = one_matrix.memorize(stage, **how, progress=silent)
    fixed = {"passes": one_matrix.PASSES, "alpha": one_matrix.ALPHA, "dtype": "float32"}
    return asdict(run) | fixed | found | {"seconds": round(time.perf_counter() - begun, 1)}


def hidden():
    """The Stage of all keys, computed once and kept."""
    if not KEYS.exists():
        KEYS.parent.mkdir(exist_ok=True)
        torch.save(tuple(one_matrix.stage(max(SIZES), silent)), KEYS)
    return one_matrix.Stage(*torch.load(KEYS))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="*", help="only these numbers of pairs")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after so many")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, stage = time.perf_counter(), hidden()
    while time.perf_counter() - begun < 60 * options.minutes:
        rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
        wanted = missing(rows, options.n or SIZES)
        if not wanted:
            break
        studies.append(options.out, measure(wanted[0], stage))


if __name__ == "__main__":
    main()
