"""Measure how many bits an adapter on one matrix stores, by rank, for lab 5's evidence page.

    python benchmarks/rank_lab.py

Each run adds rows to labkit/measured/rank.csv: study, setting, seed, measure, value. After an
interruption, call the script again: it skips finished runs. The code is the lab's `memorize`. The
seed determines A, the values and the order of the pairs. Unless a setting says otherwise: 1,000
pairs of 6 bits, 100 passes.

rates     Bits at each rank and learning rate, seed 0.
chosen    Bits at each rank's best rate in `rates`, with other seeds.
passes    Bits by number of pairs and of passes, each pass of four steps, at the lab's rate.
"""

from pathlib import Path

import pandas as pd
import studies
from studies import LabRun

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "rank.csv"
RANKS, RATES = (1, 2, 4, 8, 16), (0.01, 0.02, 0.04, 0.08, 0.16)
PASSES = [(r, n, passes) for r, n in ((1, 250), (1, 1000), (2, 250)) for passes in (100, 400)]


def bits(lab, seed, rank, rate=None):
    """What `memorize` gives; without a rate at the best one."""
    if rate is None:
        rows = pd.read_csv(OUT).query("study == 'rates'").set_index("setting")["value"]
        rate = max(RATES, key=lambda rate: rows[f"r={rank}, rate {rate:g}"])
    return {"bits": lab["memorize"](rank, 1000, learning_rate=rate, seed=seed)}


def longer(lab, seed, rank, n, passes):
    """What `memorize` gives after more passes."""
    return {"bits": lab["memorize"](rank, n, passes=passes, seed=seed)}


def every_run():
    """{run: the function that measures it and its arguments}, the rates first."""
    runs = {LabRun("rates", f"r={r}, rate {x:g}", 0): (bits, r, x) for r in RANKS for x in RATES}
    chosen = {LabRun("chosen", f"r={r}", seed): (bits, r) for r in RANKS for seed in (1, 2, 3)}
    more = {
        LabRun("passes", f"r={r}, {n} pairs, {passes} passes", seed): (longer, r, n, passes)
        for seed in (0, 1, 2)
        for r, n, passes in PASSES
    }
    return runs | chosen | more


def of_lab(seed):
    return studies.of_lab("05_rank", "memorize", seed=seed)


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
