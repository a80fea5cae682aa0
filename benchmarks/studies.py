"""Studies of many runs: each run is a CSV row, so an interrupted study resumes where it stopped.

The module also has code that several studies share: a training step, the layers, NF4 and back.
"""

import argparse
import csv
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch


def done(path: Path, kind: type) -> set:
    """The runs, of the dataclass `kind`, whose rows are in the file."""
    if not path.exists():
        return set()
    kinds = {field.name: field.type for field in fields(kind)}
    with path.open(encoding="utf-8", newline="") as file:
        return {kind(**{k: t(row[k]) for k, t in kinds.items()}) for row in csv.DictReader(file)}


def append(path: Path, row: dict) -> None:
    """Add a row, below a header where the file is new, and print it."""
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


@dataclass(frozen=True)
class LabRun:
    """One run of a lab's own code; what no seed decides has seed 0."""

    study: str
    setting: str
    seed: int


def of_labs(out: Path, runs: dict, of_lab: Callable) -> None:
    """Measure the `runs`, {LabRun: (function, *arguments)}, whose rows are not in `out` yet.

    Each adds a row per measure. The command line may name studies; without names all run.
    """
    for run, (measure, *how) in runs.items():
        if run not in done(out, LabRun) and run.study in (sys.argv[1:] or [run.study]):
            for name, value in measure(of_lab(run.seed), run.seed, *how).items():
                append(out, asdict(run) | {"measure": name, "value": float(f"{value:.6g}")})


def note(path: str | None, found: object) -> None:
    """Write what was measured as JSON, where a file for it was named."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(found, indent=1), "utf-8")


def work_off(
    told: str,
    runs: Iterable,
    measure: Callable,
    out: Path,
    only: tuple[str, ...],
    at_once: int = 1,
) -> None:
    """Measure the `runs`, dataclasses of one kind, whose rows are not in a file yet.

    `only` are the fields by which the command line picks some of them; `told` is its help. Where
    several are measured at once, each is in a process of its own.
    """
    runs = list(runs)
    kinds = {field.name: field.type for field in fields(runs[0])}
    parser = argparse.ArgumentParser(description=told)
    for name in only:
        parser.add_argument(f"--{name}", type=kinds[name], nargs="*", help="only these")
    parser.add_argument("--runs", type=int, default=1000, help="at most so many")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    there = done(options.out, type(runs[0]))
    for name in only:
        chosen = getattr(options, name)
        runs = [run for run in runs if not chosen or getattr(run, name) in chosen]
    runs = [run for run in runs if run not in there][: options.runs]
    print(f"{len(there)} rows are there, {len(runs)} runs wanted", flush=True)
    in_time = partial(_in_time, time.time() + 60 * options.minutes, measure)
    spawn = multiprocessing.get_context("spawn")
    measured = map if at_once == 1 else spawn.Pool(at_once).imap_unordered
    for row in filter(None, measured(in_time, runs)):
        append(options.out, row)


def _in_time(end, measure, run):
    """The row of a run; None where it would begin after `end`."""
    if time.time() > end:
        return None
    print(run, flush=True)
    return measure(run)


def step(model, batch: dict, optimizer: torch.optim.Optimizer, trained: list) -> float:
    """One step on a packed batch, in the model's own precision, clipped at 1; the loss before."""
    from labkit.training import loop

    loss = loop.answer_loss(model, batch, autocast=False)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def lora_plus(model, rate: float) -> torch.optim.Optimizer:
    """AdamW without decay, in which B learns 16 times as fast as A."""
    from peft.optimizers import create_loraplus_optimizer

    how = {"lr": rate, "loraplus_lr_ratio": 16, "weight_decay": 0.0}
    return create_loraplus_optimizer(model, torch.optim.AdamW, **how)


def linear(model) -> dict[str, torch.nn.Module]:
    """{name in the plain model: module} of the 210 linear layers between embedding and head."""
    from short import PLACES

    parts = PLACES["all-linear"]
    found = {n: m for n, m in model.named_modules() if n.split(".")[-1] in parts}
    return {n.removeprefix("base_model.model."): m for n, m in found.items()}


def nf4(weight: torch.Tensor, double_quant: bool = False) -> torch.Tensor:
    """A matrix through bitsandbytes' NF4, in blocks of 64, and back.

    A forward pass on these values is QLoRA's, which dequantises at every step: on a CPU that takes
    many times as long. The memory is not saved here.
    """
    from bitsandbytes import functional as bnb

    how = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": double_quant}
    return bnb.dequantize_4bit(*bnb.quantize_4bit(weight, **how)).to(weight.dtype)


def of_lab(stem: str, *names: str, seed: int = 0) -> dict:
    """The namespace of a lab's solved notebook with `names` and all that these need.

    Its `lab`, and the batches of its `loop`, have the seed.
    """
    from labkit import reference
    from labkit.training import hardware, loop

    device = hardware.device()
    lab = SimpleNamespace(seed=seed, device=device, dtype=hardware.precision(device))
    batches = partial(loop.batches, seed=seed)

    cells = reference.code_cells(reference.solved_book(stem))
    space = {"lab": lab}
    exec("\n\n".join(reference.needed(cells, list(names))), space)
    space["loop"] = SimpleNamespace(**vars(loop) | {"batches": batches})
    return space
