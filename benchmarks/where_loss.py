"""Compare loss on the answer with loss on everything, six seeds each, for lab 3's evidence page.

    OMP_NUM_THREADS=1 python benchmarks/where_loss.py

Each run is one row of labkit/measured/where_loss.csv: `loss` is the held-out loss of the answers to
60 commands, in nats per token, after 24 steps on four of 24 commands. Finished runs are not
repeated.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import studies
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig

from labkit import tasks
from labkit.training import finetuning, loop, models

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
    begun, home = time.perf_counter(), tasks.load("home")
    model, tokenizer = models.load()
    rows = [loop.encode(tokenizer, messages) for messages in home["messages"][:24]]
    if run.loss_on == "everything":
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    how = {"max_steps": 24, "per_device_train_batch_size": 4, "learning_rate": 2e-3}
    args = SFTConfig("build/where", seed=run.seed, bf16=False, max_length=512, **how)
    torch.manual_seed(run.seed)  # the draw of A
    tuned = finetuning.finetune(model, tokenizer, Dataset.from_list(rows), lora, args)
    unseen = tasks.draw("home", "test", 60)
    loss = loop.held_out_loss(tuned.model, tokenizer, unseen)
    return asdict(run) | {"loss": round(loss, 4), "seconds": round(time.perf_counter() - begun)}


if __name__ == "__main__":
    models.hush_libraries()
    studies.work_off(__doc__.splitlines()[0], every_run(), measure, OUT, ("seed", "loss_on"))
