"""Loss on the answer or on everything: what lab 3 trains once, for six seeds.

    OMP_NUM_THREADS=1 python benchmarks/where_loss.py

Each run is one row of labkit/measured/where_loss.csv: `loss` is the held-out loss of the answers to
60 commands, in nats a token, after 24 steps on four of 24 commands. A run whose row is there is not
repeated. Recipe and training are the lab's own, taken from its solved notebook.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import studies

from labkit import tasks
from labkit.training import models

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "where_loss.csv"


@dataclass(frozen=True)
class Run:
    """One training run; `loss_on` is "answer" or "everything"."""

    seed: int
    loss_on: str


def every_run():
    """Both ways of a seed before the next seed."""
    return [Run(seed, way) for seed in range(6) for way in ("answer", "everything")]


def measure(run):
    """The row of one run."""
    begun, lab = time.perf_counter(), studies.of_lab("03_peft", "answer_loss_after")
    lab["tokenizer"], lab["home"] = models.load()[1], tasks.load("home")
    lab["unseen"] = tasks.load("home", "test").shuffle(seed=1).select(range(60))
    loss = lab["answer_loss_after"](run.loss_on, run.seed)
    return asdict(run) | {"loss": round(loss, 4), "seconds": round(time.perf_counter() - begun)}


if __name__ == "__main__":
    models.hush_libraries()
    studies.work_off(__doc__.splitlines()[0], every_run(), measure, OUT, ("seed", "loss_on"))
