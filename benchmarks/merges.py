"""Measure QLoRA merges after short and long training: lab 6's table, labkit/measured/merges.csv.

    python benchmarks/merges.py

For each seed, one adapter learns `home` on top of NF4 weights, at a constant rate, in fp32 on one
thread. After each of LENGTHS steps, the adapter is merged with every method, which adds a row per
method. Rows in the file are not measured again; training continues from the last saved state.

The base used in training has NF4's values in fp32, so its forward pass is the same as QLoRA's,
which dequantizes at every step. Ways to merge:

original           W + dW, stored in bf16
dequantised        NF4(W) + dW, the sum that was trained, stored in bf16
…, then NF4        either sum, rounded to NF4; for seed 0 also to GGUF's Q4_0 and Q8_0
no adapter         NF4(W) alone

`kl` is from the trained model (nats per answer token, on UNSEEN held-out commands). `loss` is the
task's loss, and `worse` is its difference from the trained model's loss, with the standard error
over commands. `arrives` is the share of dW in the stored weights: <stored - base, dW> / |dW|^2,
where the base is W or NF4(W) stored in the same way, over every third block. `to_error` is
|dW| / |NF4(W) - W| and `to_weight` is |dW| / |W|, over all 210 layers together.
"""

import argparse
import itertools
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import studies
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, quants

ROOT = Path(__file__).parents[1]
OUT, STATES = ROOT / "labkit" / "measured" / "merges.csv", ROOT / "build" / "merges"
LENGTHS = (8, 25, 60, 120, 240)  # steps
BATCH, RATE, RANK, ALPHA = 2, 2e-3, 16, 32
UNSEEN = 24  # held-out commands


@dataclass(frozen=True)
class Run:
    """One length of one seed's training."""

    seed: int
    steps: int


def gguf(name):
    """The function that rounds a matrix to the GGUF type `name` and back."""
    kind = GGMLQuantizationType[name]

    def stored(W):
        back = quants.dequantize(quants.quantize(W.float().numpy(), kind), kind)
        return torch.from_numpy(np.ascontiguousarray(back))

    return stored


STORES = {
    "bf16": lambda W: W.bfloat16().float(),
    "NF4": studies.nf4,
    "Q4_0": gguf("Q4_0"),
    "Q8_0": gguf("Q8_0"),
}


def prepare(seed):
    """A model of NF4's values with a LoRA, its tokenizer, and {name: the original weight}."""
    from peft import get_peft_model

    from labkit.training import models
    from labkit.training.arguments import lora

    model, tokenizer = models.load(dtype=torch.float32)
    original = {name: layer.weight.data.clone() for name, layer in studies.linear(model).items()}
    for layer in studies.linear(model).values():
        layer.weight.data = studies.nf4(layer.weight.data)
    torch.manual_seed(seed)  # the draw of A
    return get_peft_model(model, lora(RANK, ALPHA, lora_dropout=0.05)), tokenizer, original


def train(model, tokenizer, seed, first, last):
    """Steps `first` to `last` of a seed's training, in place; where `first` is not 1 it goes on."""
    from labkit import tasks
    from labkit.training import loop

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, weight_decay=0.0)
    state = STATES / f"seed{seed}.pt"
    if first > 1:
        resume(torch.load(state), trained, optimizer)
    batches = loop.batches(tasks.load("home"), tokenizer, BATCH, last, seed)
    model.train()
    for batch in itertools.islice(batches, first - 1, None):
        print(f"  {studies.step(model, batch, optimizer, trained):.3f}", end="", flush=True)
    print()
    STATES.mkdir(parents=True, exist_ok=True)
    parts = {"steps": last, "trained": [p.data for p in trained]}
    torch.save(parts | {"adam": optimizer.state_dict(), "dropout": torch.get_rng_state()}, state)


@torch.no_grad()
def resume(parts, trained, optimizer):
    """Put a stored state of training back."""
    for p, value in zip(trained, parts["trained"], strict=True):
        p.copy_(value)
    optimizer.load_state_dict(parts["adam"])
    torch.set_rng_state(parts["dropout"])


@torch.no_grad()
def answers(model, tokenizer):
    """Logits (k, vocab), targets (k,) and tokens of each answer, of the held-out commands."""
    from short import judged

    from labkit.training import loop

    parts = [
        (*loop.answer_logits(model.eval(), batch), lengths)
        for batch, lengths in loop.by_length(tokenizer, judged(UNSEEN), 16)
    ]
    logits, targets = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return logits, targets, [n for *_, lengths in parts for n in lengths]


def compared(found, trained):
    """KL from the trained model, task loss, its difference with a standard error, right answers."""
    (logits, targets, lengths), (wanted, *_) = found, trained
    log_p, log_q = wanted.log_softmax(-1), logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    loss, before = (F.cross_entropy(x, targets, reduction="none") for x in (logits, wanted))
    off, n = loss - before, len(targets)
    sums = torch.stack([part.sum() - len(part) * off.mean() for part in off.split(lengths)])
    hits = (logits.argmax(-1) == targets).split(lengths)
    right = sum(bool(hit[:-1].all()) for hit in hits)  # the last token, a newline, is never asked
    told = {"kl": kl, "loss": loss.mean().item(), "worse": off.mean().item()}
    told |= {"worse_se": sums.square().sum().sqrt().item() / n}
    return {name: float(f"{value:.4g}") for name, value in told.items()} | {"right": right}


@torch.no_grad()
def merges(model, tokenizer, original, stores):
    """Rows of one length: for each way to merge what came of it."""
    layers = studies.linear(model)
    dequantised = {name: layer.base_layer.weight.data for name, layer in layers.items()}
    updates = {name: layer.get_delta_weight("default") for name, layer in layers.items()}
    size, weight, error = (
        math.sqrt(sum(x.square().sum().item() for x in parts))
        for parts in (
            updates.values(),
            original.values(),
            [dequantised[name] - W for name, W in original.items()],
        )
    )
    sizes = {"to_error": round(size / error, 4), "to_weight": round(size / weight, 5)}
    trained = answers(model, tokenizer)
    rows = [{"way": "as trained", "arrives": 1.0} | sizes | compared(trained, trained)]
    bases = {"original": original, "dequantised": dequantised}
    with model.disable_adapter():
        rows.append(
            {"way": "no adapter", "arrives": 0.0}
            | sizes
            | compared(answers(model, tokenizer), trained)
        )
        for start, base in bases.items():
            for store in stores:
                way = start if store == "bf16" else f"{start}, then {store}"
                arrived = put(layers, base, updates, STORES[store])
                found = compared(answers(model, tokenizer), trained)
                rows.append({"way": way, "arrives": round(arrived, 4)} | sizes | found)
    for name, layer in layers.items():
        layer.base_layer.weight.data = dequantised[name]
    return rows


def put(layers, base, updates, store):
    """Put store(base + update) into the layers; the share of the update that arrives."""
    along = whole = 0.0
    for name, layer in layers.items():
        W, update = base[name], updates[name]
        layer.base_layer.weight.data = stored = store(W + update)
        if int(name.split(".")[2]) % 3 == 0:
            along += ((stored - store(W)) * update).sum().item()
            whole += update.square().sum().item()
    return along / whole


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=100, help="at most so many lengths")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    there = studies.done(options.out, Run)
    wanted = [Run(seed, n) for seed in options.seed for n in LENGTHS if Run(seed, n) not in there]
    how = {"batch": BATCH, "rate": RATE, "rank": RANK, "alpha": ALPHA, "dtype": "fp32"}
    for run in wanted[: options.runs]:
        begun = time.perf_counter()
        model, tokenizer, original = prepare(run.seed)
        train(model, tokenizer, run.seed, 1 + before(run), run.steps)
        print(f"{run}: trained in {time.perf_counter() - begun:.0f} s", flush=True)
        stores = STORES if run.seed == 0 else ("bf16", "NF4")
        for row in merges(model, tokenizer, original, stores):
            studies.append(options.out, asdict(run) | how | row)
        print(f"{run}: merged in {time.perf_counter() - begun:.0f} s", flush=True)


def before(run):
    """The steps of the run's training that are stored, and can be gone on from."""
    state = STATES / f"seed{run.seed}.pt"
    steps = torch.load(state)["steps"] if state.exists() else 0
    return steps if steps < run.steps else 0


if __name__ == "__main__":
    main()
