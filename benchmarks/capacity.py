"""How much an adapter can hold, and how large a batch may be: lab 5's small studies.

    python benchmarks/capacity.py --minutes 5

Each run is one row of labkit/measured/capacity.csv. A run whose row is there is not repeated, so
the script can be stopped and called again. labkit/measured/capacity.py says what is trained: random
pairs, in one matrix of the last layer, in fp32, one thread.

rank   n pairs at ranks 1 to 64, in batches of a quarter of them.
batch  250 pairs at rank 16 and by training the matrix itself (rank 0), in batches of 10 to 250: as
       many passes, so fewer steps where the batch is large.

The first seed takes every rate, the two others each setting's best one. At both ends of the ranks
of 250 pairs the rates go a half decade further to either side, and where rank binds to higher ones:
there the best ones lie inside.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import studies
import torch

from labkit.measured import capacity

ROOT = Path(__file__).parents[1]
OUT = ROOT / "labkit" / "measured" / "capacity.csv"
KEYS = ROOT / "build" / "capacity.pt"  # what the frozen layers make of them
SIZES, RANKS, SEEDS = (250, 1000), (1, 2, 4, 8, 16, 32, 64), (0, 1, 2)
RATES, MORE, DENSE = (1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1), (3e-4, 1e-3, 3e-3, 1e-2)
BOUND = {(250, 2), (1000, 1), (1000, 2), (1000, 4)}  # pairs and rank where not all of them fit


@dataclass(frozen=True)
class Run:
    """One training run; rank 0 trains the matrices themselves."""

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
    for batch in (10, 50, 250):
        yield "batch", 250, 16, batch, MORE
        yield "batch", 250, 0, batch, DENSE


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
    found = capacity.memorise(stage, **how, progress=silent)
    fixed = {"passes": capacity.PASSES, "alpha": capacity.ALPHA, "dtype": "float32"}
    return asdict(run) | fixed | found | {"seconds": round(time.perf_counter() - begun, 1)}


def hidden():
    """The Stage of all keys, computed once and kept."""
    if not KEYS.exists():
        KEYS.parent.mkdir(exist_ok=True)
        torch.save(tuple(capacity.stage(max(SIZES), silent)), KEYS)
    return capacity.Stage(*torch.load(KEYS))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", nargs="*", help="rank, batch; default both")
    parser.add_argument("--n", type=int, nargs="*", help="only these numbers of pairs")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after so many")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, stage = time.perf_counter(), hidden()
    while time.perf_counter() - begun < 60 * options.minutes:
        rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
        wanted = [
            run
            for run in missing(rows, options.n or SIZES)
            if run.study in (options.study or [run.study])
        ]
        if not wanted:
            break
        studies.append(options.out, measure(wanted[0], stage))


if __name__ == "__main__":
    main()
