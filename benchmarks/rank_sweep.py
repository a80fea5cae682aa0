"""Train dozens of small models for lab 5: ranks, scalings, learning rates, seeds, variants.

    python benchmarks/rank_sweep.py --study rank --minutes 5

Each run is one row of labkit/measured/rank_sweep.csv. Finished runs are not repeated, so the script
can be stopped and called again. A failed run leaves a row with its error. Two runs train at a time,
one thread each, which on two cores is faster than one run at a time on two threads.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import short
import studies
import torch

from labkit.training.arguments import lora

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "rank_sweep.csv"
TARGETS = {"all-linear": "all-linear"} | {n: list(short.PLACES[n]) for n in ("attention", "MLPs")}
VARIANTS = {
    "": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "lora+": {},
}


@dataclass(frozen=True)
class Run:
    """One training run; `rank` and `alpha` are 0 for full fine-tuning."""

    study: str
    rank: int
    alpha: int
    learning_rate: float
    seed: int
    variant: str = ""
    targets: str = "all-linear"


def every_run():
    """Every run by study, the first seed first."""
    scalings = [(16, 32, "")]  # where the three rules agree: a factor of 2 before B A
    scalings += [(4, 32, ""), (64, 32, "")]  # alpha fixed
    scalings += [(4, 8, ""), (64, 128, "")]  # alpha = 2 r
    scalings += [(4, 8, "rslora"), (64, 8, "rslora")]  # 8 / sqrt(r)
    for seed in (0, 1, 2):
        for rate in (1e-3, 3e-3, 1e-2):
            for rank, alpha, variant in scalings:
                yield Run("rank", rank, alpha, rate, seed, variant)
            # equal parameters: r=4 on all linear layers costs as much
            yield Run("targets", 10, 32, rate, seed, targets="attention")
            yield Run("targets", 6, 32, rate, seed, targets="MLPs")
        yield Run("rank", 64, 128, 3e-4, seed)  # both ends of alpha = 2 r
        yield Run("rank", 4, 8, 3e-2, seed)
        for rate in (1e-4, 3e-4, 1e-3):
            yield Run("full", 0, 0, rate, seed)
        for rate in (3e-4, 1e-3, 3e-3):
            for variant in ("dora", "pissa", "lora+"):
                yield Run("variants", 16, 32, rate, seed, variant)


def train(run):
    """The row of one run: its settings, losses (nats a token), seconds and error, if any."""
    from labkit.training import models

    torch.set_num_threads(1)
    models.hush_libraries()
    begun = time.perf_counter()
    try:
        found = _losses(run) | {"error": ""}
    except Exception as error:
        found = {"loss": float("nan"), "train_loss": float("nan"), "error": str(error)[:200]}
    return asdict(run) | found | {"seconds": round(time.perf_counter() - begun, 1)}


def _losses(run):
    from transformers import PrinterCallback

    from labkit import tasks
    from labkit.training import checkpoints, lean, loop, models

    full = run.rank == 0
    model, tokenizer = models.load(dtype=torch.float32 if full else torch.bfloat16)
    torch.manual_seed(run.seed)  # the draw of A
    home = tasks.load("home").shuffle(seed=run.seed).select(range(short.STEPS * short.BATCH))
    where = {"target_modules": TARGETS[run.targets]} | VARIANTS[run.variant]
    config = None if full else lora(run.rank, run.alpha, **where)
    args = short.arguments(run.learning_rate, run.seed, use_cpu=True, bf16=full)
    trainer = lean.lean_trainer(model, tokenizer, home, config, args)
    if run.variant == "lora+":
        trainer.optimizer = studies.lora_plus(trainer.model, run.learning_rate)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = checkpoints.losses(trainer.state.log_history)
    loss = loop.held_out_loss(trainer.model, tokenizer, short.judged(100))
    return {"loss": round(loss, 4), "train_loss": round(sum(losses[-4:]) / 4, 4)}


if __name__ == "__main__":
    only = ("study", "seed", "learning_rate", "variant")
    studies.work_off(__doc__.splitlines()[0], every_run(), train, OUT, only, at_once=2)
