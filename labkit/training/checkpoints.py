"""Resume training from its last complete checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback


def train(
    trainer: Trainer, work: Path, parts: int, say: Callable[[str], None]
) -> tuple[PeftModel, list[float]]:
    """Train from the newest complete checkpoint in `work`; returns the bare model and all losses.

    `parts` evenly spaced checkpoints are saved. `say` receives a line when training resumes.
    """
    last, step = newest(work, trainer.accelerator.num_processes)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Saves(parts))
    if last:
        say(f"resuming after step {step} of {trainer.args.max_steps}")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model, losses(trainer.state.log_history)


class Saves(TrainerCallback):
    """Request a checkpoint after each of `parts` equal parts of the training, and at the end."""

    def __init__(self, parts: int):
        self.parts = parts

    def on_step_end(self, args, state, control, **kwargs):
        """Decide by step, not by the clock, since all processes have to agree."""
        step, last = state.global_step, state.max_steps
        control.should_save = step % max(1, last // self.parts) == 0 or step == last
        return control


def newest(work: Path, n_processes: int = 1) -> tuple[Path | None, int]:
    """Find the newest complete checkpoint and its step; (None, 0) if there is none.

    The trainer writes its state last, so a readable state means that the checkpoint is complete.
    """
    found = [(0, None)]
    for folder in work.glob("checkpoint-*"):
        try:
            step = json.loads((folder / "trainer_state.json").read_text("utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            continue
        if len(list(folder.glob("rng_state*.pth"))) >= n_processes:
            found.append((step, folder))
    step, folder = max(found, key=lambda pair: pair[0])
    return folder, step


def losses(log_history: list[dict]) -> list[float]:
    """The loss of each step in a trainer's log."""
    return [entry["loss"] for entry in log_history if "loss" in entry]


def losses_until(checkpoint: Path) -> list[float]:
    """The loss of each step up to a checkpoint."""
    return losses(json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"])
