"""Train small models by the dozen for lab 5: ranks, scalings, learning rates, seeds, variants.

    python benchmarks/rank_sweep.py --study rank --minutes 5

Each run is one row of labkit/measured/rank_sweep.csv. A run whose row is there is not repeated, so
the script can be stopped and called again; one that fails leaves a row with its error. Runs go in
pairs, one thread each, which on two cores is quicker than one after the other on two threads.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import studies
import torch

from labkit.measured.short import BATCH, PLACES, STEPS

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "rank_sweep.csv"
TARGETS = {"all-linear": "all-linear"} | {n: list(PLACES[n]) for n in ("attention", "MLPs")}
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
    from labkit.training import lean, loop, models

    full = run.rank == 0
    model, tokenizer = models.load(dtype=torch.float32 if full else torch.bfloat16)
    torch.manual_seed(run.seed)  # the draw of A
    home = tasks.load("home").shuffle(seed=run.seed).select(range(STEPS * BATCH))
    config = None if full else lora(run)
    trainer = lean.lean_trainer(model, tokenizer, home, config, arguments(run))
    if run.variant == "lora+":
        trainer.optimizer = plus(trainer.model, run.learning_rate)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    unseen = tasks.load("home", "test").shuffle(seed=1).select(range(100))
    loss = loop.held_out_loss(trainer.model, tokenizer, unseen)
    return {"loss": round(loss, 4), "train_loss": round(sum(losses[-4:]) / 4, 4)}


def lora(run):
    """The LoraConfig of a run."""
    from peft import LoraConfig

    return LoraConfig(
        r=run.rank,
        lora_alpha=run.alpha,
        target_modules=TARGETS[run.targets],
        task_type="CAUSAL_LM",
        **VARIANTS[run.variant],
    )


def arguments(run):
    """The SFTConfig of a run: linear decay to zero, no warm-up, clipping at 1."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir="build/sweep",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=run.learning_rate,
        seed=run.seed,
        use_cpu=True,
        bf16=run.rank == 0,
        report_to="none",
    )


def plus(model, learning_rate):
    """LoRA+: B learns 16 times as fast as A."""
    from peft.optimizers import create_loraplus_optimizer

    return create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=learning_rate, loraplus_lr_ratio=16, weight_decay=0.0
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", nargs="*", help="rank, full, targets, variants; default all")
    parser.add_argument("--seed", type=int, nargs="*", help="only these")
    parser.add_argument("--rate", type=float, nargs="*", help="only these learning rates")
    parser.add_argument("--variant", nargs="*", help="only these; plain LoRA is ''")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after so many")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    there, begun = studies.done(options.out, Run), time.perf_counter()
    wanted = [
        run
        for run in every_run()
        if run not in there
        and run.study in (options.study or [run.study])
        and run.seed in (options.seed or [run.seed])
        and run.learning_rate in (options.rate or [run.learning_rate])
        and run.variant in (options.variant or [run.variant])
    ]
    print(f"{len(there)} rows are there, {len(wanted)} runs wanted", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        waiting = iter(wanted)
        running = set()
        while True:
            while len(running) < 2 and time.perf_counter() - begun < 60 * options.minutes:
                if (run := next(waiting, None)) is None:
                    break
                running.add(pool.submit(train, run))
            if not running:
                break
            finished = [future for future in running if future.done()]
            running -= set(finished)
            for future in finished:
                studies.append(options.out, future.result())
            time.sleep(0.2)


if __name__ == "__main__":
    main()
