"""Fine-tune a model on your own data file or on a course task, on one device or several.

    labkit train mine.jsonl --out my-adapter
    python -m labkit.train --task home --rank 8 --steps 50
    accelerate launch --num_processes 4 -m labkit.train --task home --method qlora

TRL's trainer runs on accelerate: under `accelerate launch` each process takes its share of every
batch, and the reported loss is that of one process.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import typer

from labkit.errors import LabError


def train(
    file: Annotated[Path | None, typer.Argument(help="JSONL, CSV or Parquet; or --task.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The adapter's folder; with --task, a JSON file of losses.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Held-out rows; default: some of FILE.")] = None,
    model: Annotated[str, typer.Option(help="A name or folder; default by GPU memory.")] = "",
    method: Annotated[Literal["lora", "qlora"], typer.Option()] = "lora",
    rank: Annotated[int, typer.Option(min=1)] = 8,
    epochs: Annotated[
        int, typer.Option(min=0, help="Passes over FILE; 0 means 3, but at least 60 steps.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=0, help="0 means set by --epochs; 50 with --task.")] = 0,
    batch: Annotated[
        int, typer.Option(min=0, help="Rows per step, all processes; 0 means 8 (16 with --task).")
    ] = 0,
    learning_rate: Annotated[float, typer.Option(help="0 means 1e-3 (2e-3 with --task).")] = 0,
    max_length: Annotated[int, typer.Option(min=1, help="Maximum tokens per row of FILE.")] = 512,
    held_out: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share to hold out.")] = 0.2,
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Leave out rows that would go wrong in training.")
    ] = False,
    base_id: Annotated[str, typer.Option(help="The Hub id of a --model folder.")] = "",
    task: Annotated[str, typer.Option(help="Without FILE: home, chat or tickets.")] = "home",
    rows: Annotated[int, typer.Option(min=0, help="With --task: first N rows; 0: all.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "machine"], typer.Option(help="Dtype of weights in memory.")
    ] = "machine",
) -> None:
    """Train an adapter on FILE, score it on held-out rows, and write it to the folder --out.

    To resume an interrupted run, run the same command again.
    """
    given = dict(locals())
    if file:
        _file(given)
    else:
        given |= {
            "steps": steps or 50,
            "batch": batch or 16,
            "learning_rate": learning_rate or 2e-3,
        }
        _task(SimpleNamespace(**given))


def _file(given):
    if given["out"] is None:
        raise LabError(f"name the adapter's folder: labkit train {given['file']} --out my-adapter")
    from dataclasses import fields

    from labkit.own import run
    from labkit.own.settings import Asked

    chosen = {f.name: given[f.name] for f in fields(Asked) if given[f.name]}  # 0: Asked's default
    try:
        facts = run.train(Asked(**chosen))
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to resume", file=sys.stderr)
        raise
    if facts:
        from labkit.own import folder

        print(folder.table(facts["scores"]["table"]))
        print(given["out"])


def _task(asked):
    """Train on a course task; print the loss, the time and the adapter's folder."""
    import torch

    from labkit import tasks
    from labkit.training import arguments, finetuning, hardware, models

    state = hardware.processes()
    models.hush_libraries()
    with state.local_main_process_first():  # one process downloads for all
        data = tasks.load(asked.task)  # before the model: an unknown name fails at once
        name = asked.model or models.default()
        models.path(name)
    if asked.rows:
        data = data.select(range(min(asked.rows, len(data))))
    how = arguments.in_4_bits() if asked.method == "qlora" else {}
    base, tokenizer = models.load(name, dtype=getattr(torch, asked.dtype, None), **how)
    args = arguments.arguments(name, asked, state.num_processes, asked.steps)
    lora = arguments.lora(asked.rank, 2 * asked.rank)
    torch.manual_seed(args.seed)  # for the adapter's init; data follow `args.seed`
    title, begun = f"{asked.task} on {Path(name).name}", time.perf_counter()
    result = finetuning.finetune(base, tokenizer, data, lora, args, title, cache=False)
    if state.is_main_process:
        _report(result, args, state.num_processes, time.perf_counter() - begun, asked.out)


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
        typer.run(train)
    except (LabError, ValueError) as error:
        sys.exit(f"labkit: {error}")
