"""DPO of lab 8 with three seeds: which share of held-out constraints is followed, before and after.

    python benchmarks/preferences.py --seed 0

Each run is one row of labkit/measured/preferences.csv; a run whose row is there is not repeated.
Loop, loss and score are the lab's own, taken from its solved notebook. `pairs` is "right" or
"swapped", with chosen and rejected in each other's place.

Columns: `before` and `after`, shares of 16 sampled answers to each of 40 held-out instructions with
a constraint that follow it; `gain` and its standard error `error` over instructions; `chosen` and
`rejected`, nats gained since the start, the mean of the last five steps; `tokens_before` and
`tokens_after` an answer.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import studies
import torch

from labkit.tasks import chat
from labkit.training import models, pairs

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "preferences.csv"
NAMES = ("train_dpo", "followed", "unseen_instructions", "swapped", "adapted")
STEPS, SIZE, SAMPLES = 20, 6, 16


@dataclass(frozen=True)
class Run:
    """One DPO run."""

    pairs: str
    learning_rate: float
    seed: int


def every_run():
    """The right pairs first, with three seeds at two rates."""
    for seed in (0, 1, 2):
        yield Run("right", 5e-4, seed)
    for seed in (0, 1, 2):
        yield Run("right", 2e-4, seed)
    yield Run("right", 1e-3, 0)
    yield Run("swapped", 5e-4, 0)


@cache
def start():
    """The lab's names, the held-out instructions, and what the base follows of them."""
    lab = studies.of_lab("08_rewards", *NAMES)
    base, lab["tokenizer"] = models.load()
    unseen = lab["unseen_instructions"]()
    return lab, unseen, *lab["followed"](base, unseen, SAMPLES)


def measure(run):
    """The row of one run."""
    begun, (lab, unseen, before, tokens_before) = time.perf_counter(), start()
    policy = lab["adapted"](models.load()[0], seed=run.seed)
    batches = pairs.batches(chat.pairs(), lab["tokenizer"], SIZE, STEPS, run.seed)
    if run.pairs == "swapped":
        batches = [lab["swapped"](batch) for batch in batches]
    curves = lab["train_dpo"](policy, batches, run.learning_rate)
    after, tokens_after = lab["followed"](policy, unseen, SAMPLES)
    gain = after - before
    last = {
        name: torch.tensor(curves.values[name][-5:]).mean().item()
        for name in ("chosen", "rejected")
    }
    found = {
        "before": before.mean().item(),
        "after": after.mean().item(),
        "gain": gain.mean().item(),
        "error": (gain.std() / len(gain) ** 0.5).item(),
        **last,
        "tokens_before": tokens_before,
        "tokens_after": tokens_after,
    }
    rounded = {name: round(value, 4) for name, value in found.items()}
    told = " ".join(f"{value:.3f}" for value in curves.values["loss"])
    return vars(run) | rounded | {"seconds": round(time.perf_counter() - begun), "losses": told}


if __name__ == "__main__":
    models.hush_libraries()
    only = ("pairs", "learning_rate", "seed")
    studies.work_off(__doc__.splitlines()[0], every_run(), measure, OUT, only)
