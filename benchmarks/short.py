"""The short runs of lab 5's studies: 24 steps of 4 `home` commands, scored on unseen commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit import tasks
from labkit.training import hardware

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig

STEPS, BATCH = 24, 4
PLACES = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "MLPs": ("gate_proj", "up_proj", "down_proj"),
}
PLACES["all-linear"] = PLACES["attention"] + PLACES["MLPs"]


def arguments(
    learning_rate: float, seed: int, steps: int = STEPS, batch: int = BATCH, **switches
) -> SFTConfig:
    """An SFTConfig: linear decay to zero, no warm-up, clipping at 1; `switches` are its own."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir="build/short",
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        seed=seed,
        report_to="none",
        **{"use_cpu": hardware.device() == "cpu", "bf16": False} | switches,
    )


def judged(n: int) -> Dataset:
    """The first n of the 100 unseen commands that runs are judged by."""
    return tasks.draw("home", "test", n)
