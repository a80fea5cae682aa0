"""Compare LoRA's variants fairly for lab 5: each at its own best learning rate, three seeds.

    python benchmarks/variants.py --runs 10

Each run is one row of labkit/measured/variants.csv. Finished runs are not repeated, so the script
can be stopped and called again. A failed run leaves a row with its error. All runs train
SmolLM2-135M on `home`, 24 steps of 4 commands, in fp32 on one thread: all linear layers, the same
number of parameters as LoRA at r=16 (unless VARIANTS says otherwise), linear decay without warm-up,
clipping at 1. The score is the loss on 100 unseen commands.

The first seed tries five rates half a decade apart, and more while the best rate is at an end. The
other seeds use the first seed's best rate. Then all three try a rate halfway between two of them,
FINER, where a parabola through the first seed's best rate and its neighbors is lowest well off the
best rate. Finally, the other seeds try the neighbors.
"""

import argparse
import csv
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import studies
import torch
from short import BATCH, STEPS, judged

from labkit.training.arguments import lora

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "variants.csv"
RANK, ALPHA, SEEDS = 16, 32, (0, 1, 2)
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
# method: (the lowest of its five rates, LoraConfig's switches)
LORA = {
    "lora": (3e-4, {}),
    "rslora": (1e-4, {"use_rslora": True}),
    "dora": (3e-4, {"use_dora": True}),
    "pissa": (1e-4, {"init_lora_weights": "pissa"}),
    "olora": (1e-4, {"init_lora_weights": "olora"}),
    "orthogonal": (3e-4, {"init_lora_weights": "orthogonal"}),
    "lora+": (1e-4, {}),
    "lora-fa": (3e-4, {}),
}
LOWEST = {method: lowest for method, (lowest, _) in LORA.items()} | {"miss": 1e-4, "full": 3e-5}
# halfway to the neighbour towards which a parabola over log rate of the first seed is lowest, where
# that lies a third of a step or more off the best
FINER = [("lora", 1.7e-3), ("rslora", 1.7e-3), ("pissa", 5.5e-4), ("olora", 1.7e-4)]
FINER += [("lora-fa", 5.5e-3), ("full", 1.7e-4)]
FINER += [("lora", 5.5e-3)]  # the other side, too: every method is compared with this one


@dataclass(frozen=True)
class Run:
    """One training run."""

    method: str
    learning_rate: float
    seed: int


def wanted(rows):
    """The runs that `rows` lack, in the order in which to do them."""
    tried = {
        Run(row["method"], float(row["learning_rate"]), int(row["seed"])): float(row["loss"])
        for row in rows
    }
    first = [Run(method, rate, 0) for method in LOWEST for rate in five(method)]
    if missing := [run for run in first if run not in tried]:
        return sorted(missing, key=from_middle)
    runs = [(1, seed, Run(*at, seed)) for seed in SEEDS for at in FINER]
    for method in LOWEST:
        losses = {
            r.learning_rate: x
            for r, x in tried.items()
            if (r.method, r.seed) == (method, 0) and r.learning_rate in LADDER
        }
        rate = min((r for r in losses if losses[r] == losses[r]), key=losses.get)  # NaN: it failed
        seeds = SEEDS if min(losses) < rate < max(losses) else SEEDS[:1]
        at = LADDER.index(rate)
        rates = [rate, *LADDER[max(at - 1, 0) : at], *LADDER[at + 1 : at + 2]]
        runs += [
            (2 * (n > 0), seed, Run(method, r, seed)) for seed in seeds for n, r in enumerate(rates)
        ]
    missing = [turn for turn in runs if turn[2] not in tried]
    return [run for *_, run in sorted(missing, key=lambda turn: turn[:2])]


def five(method):
    """The five rates that a method begins with."""
    lowest = LADDER.index(LOWEST[method])
    return LADDER[lowest : lowest + 5]


def from_middle(run):
    """How far a run is from the middle of its method's five rates, in half decades."""
    return abs(LADDER.index(run.learning_rate) - LADDER.index(five(run.method)[2]))


def measure(run):
    """The row of one run: settings, losses in nats a token, seconds, and its error, if any."""
    begun = time.perf_counter()
    try:
        found = losses(run) | {"error": ""}
    except Exception as error:
        found = {"loss": float("nan"), "train_loss": float("nan"), "trainable": 0}
        found |= {"error": str(error)[:200]}
    settings = {"rank": RANK, "alpha": ALPHA, "dtype": "float32", "steps": STEPS, "batch": BATCH}
    seconds = {"seconds": round(time.perf_counter() - begun, 1)}
    return {"study": "variants"} | asdict(run) | settings | found | seconds


def losses(run):
    """Loss on unseen commands, mean of the last four batches' losses, trained parameters."""
    from labkit import tasks
    from labkit.training import loop, models

    base, tokenizer = models.load(dtype=torch.float32)
    torch.manual_seed(run.seed)  # the draw of A
    model = adapted(base, run.method).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(run, model, trained)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / STEPS)
    home = tasks.load("home").shuffle(seed=run.seed).select(range(STEPS * BATCH))
    seen = []
    for batch in loop.batches(home, tokenizer, BATCH, STEPS, run.seed):
        seen.append(studies.step(model, batch, optimizer, trained))
        decay.step()
    loss = loop.held_out_loss(model, tokenizer, judged(100), autocast=False)
    return {
        "loss": round(loss, 4),
        "train_loss": round(sum(seen[-4:]) / 4, 4),
        "trainable": sum(p.numel() for p in trained),
    }


def adapted(base, method):
    """`base` with the method's adapters; `full` trains every weight."""
    from peft import MissConfig, get_peft_model

    if method == "full":
        return base.requires_grad_(True)
    if method == "miss":  # r=32 trains as many parameters as LoRA does at r=16
        config = MissConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(base, config)
    return get_peft_model(base, lora(RANK, ALPHA, **LORA[method][1]))


def optimizer_of(run, model, trained):
    """AdamW without decay; LoRA+ lets B learn 16 times as fast, LoRA-FA holds A still."""
    from peft.optimizers import create_lorafa_optimizer

    rate = run.learning_rate
    if run.method == "lora+":
        return studies.lora_plus(model, rate)
    if run.method == "lora-fa":
        return create_lorafa_optimizer(model, RANK, ALPHA, rate)
    return torch.optim.AdamW(trained, rate, weight_decay=0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="at most so many")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for _ in range(options.runs):
        rows = []
        if options.out.exists():
            with options.out.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        runs = wanted(rows)
        if not runs:
            break
        studies.append(options.out, measure(runs[0]))


if __name__ == "__main__":
    main()
