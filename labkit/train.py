"""Fine-tune a model on a task of the course, on one device or on many.

    python -m labkit.train --task home --rank 8 --steps 50
    accelerate launch --num_processes 4 -m labkit.train --task home --method qlora

The engine is `finetuning.finetune`, which is TRL's trainer on accelerate: under `accelerate launch`
each process takes its share of every batch, and the loss is that of one process.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from labkit.errors import LabError


def main(
    task: Annotated[str, typer.Option(help="home, chat or tickets")] = "home",
    model: Annotated[str, typer.Option(help="A name, or a folder; default by the card.")] = "",
    method: Annotated[Literal["lora", "qlora"], typer.Option()] = "lora",
    rank: Annotated[int, typer.Option(min=1)] = 8,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Rows a step, over all processes.")] = 16,
    rows: Annotated[int, typer.Option(min=0, help="Train on the first so many; 0: all.")] = 0,
    learning_rate: Annotated[float, typer.Option()] = 2e-3,
    seed: Annotated[int, typer.Option()] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "machine"], typer.Option(help="Of what rests in memory.")
    ] = "machine",
    out: Annotated[Path | None, typer.Option(help="Write losses and figures here, JSON.")] = None,
) -> None:
    """Train an adapter; its loss, the time and its folder are printed."""
    import torch
    from accelerate import PartialState

    from labkit import tasks
    from labkit.training import hardware, models

    if "LOCAL_RANK" not in os.environ:  # no launcher: one process, which Trainer would spread
        hardware.one_card()
    models.hush_libraries()
    state = PartialState(cpu=hardware.device() == "cpu")  # this process's card becomes "cuda"
    with state.local_main_process_first():  # one process fetches, the others find it
        name = model or models.default()
        models.path(name)
        data = tasks.load(task)
    if rows:
        data = data.select(range(min(rows, len(data))))
    how = _in_4_bits() if method == "qlora" else {}
    base, tokenizer = models.load(name, dtype=getattr(torch, dtype, None), **how)
    args = _arguments(name, method, batch, state.num_processes, steps, learning_rate, seed)
    begun = time.perf_counter()
    result = _finetune(base, tokenizer, data, rank, args, f"{task} on {Path(name).name}")
    if state.is_main_process:
        _report(result, args, state.num_processes, time.perf_counter() - begun, out)


def _in_4_bits():
    """How `from_pretrained` loads the base of a QLoRA on this process's device."""
    from labkit.memory.adapted import in_4_bits
    from labkit.memory.settings import Settings
    from labkit.training import hardware

    where = hardware.device()
    kind = str(hardware.precision(where)).removeprefix("torch.")
    settings = Settings(method="qlora", dtype=kind)
    return {"quantization_config": in_4_bits(settings), "device_map": {"": where}}


def _arguments(name, method, batch, n_processes, steps, learning_rate, seed):
    """An SFTConfig that makes `batch` rows of what processes and accumulated steps hold."""
    from trl import SFTConfig

    from labkit.training import hardware

    if batch % n_processes:
        raise LabError(f"a batch of {batch} rows is not to be shared by {n_processes} processes")
    share = batch // n_processes
    micro = hardware.micro_batch(name, method, share, n_processes)
    return SFTConfig(
        output_dir="build/train",
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=learning_rate,
        max_length=512,
        seed=seed,
        report_to="none",
        **hardware.flags(hardware.device()),
    )


def _finetune(base, tokenizer, data, rank, args, title):
    import torch
    from peft import LoraConfig

    from labkit.training import finetuning

    torch.manual_seed(args.seed)  # of the adapter's start; data follow `args.seed`
    where = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, **where)
    return finetuning.finetune(base, tokenizer, data, lora, args, title, cache=False)


def _report(result, args, n_processes, seconds, out):
    figures = {
        "losses": result.losses,
        "seconds": seconds,
        "processes": n_processes,
        "rows_a_process": args.per_device_train_batch_size,
        "accumulated": args.gradient_accumulation_steps,
        "adapter": str(result.folder),
    }
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    shape = f"{n_processes} x {figures['rows_a_process']} rows x {figures['accumulated']}"
    print(f"loss {result.losses[0]:.4f} → {result.losses[-1]:.4f}, {shape}, {seconds:.0f} s")
    print(result.folder)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (LabError, ValueError) as error:
        sys.exit(f"labkit: {error}")
