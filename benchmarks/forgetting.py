"""Forgetting at equal task loss, three seeds of five methods, for lab 3's evidence page.

    python benchmarks/forgetting.py

Each run is one row of labkit/measured/forgetting.csv. A run whose row is there is not repeated, so
the script can be stopped and called again. All train SmolLM2-135M on `home`, in fp32, one thread.

forgetting  in fours, at a constant rate, until the loss on 32 held-out commands is at most TARGET.
            A step goes past it by a little, and not by the same for each method: `perplexity`, on
            everyday English, is read between the last two steps where the loss is TARGET.
            Then intruders (Shuttleworth et al. 2024), in every fifth layer.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import studies
import torch

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "forgetting.csv"
TARGET, LONGEST = 0.45, 80  # nats a token; steps
BATCH = 4
TOP, THRESHOLD = 10, 0.5  # as in `peft.tuners.lora.intruders`
NOTHING = {"change": 0.0, "intruders": 0, "looked_at": 0}


@dataclass(frozen=True)
class Run:
    """One training run; `rank` 0 is full fine-tuning."""

    study: str
    rank: int
    rate: float
    seed: int


def every_run():
    """Every run, the first seed first; alpha is 32 at every rank."""
    yield Run("base", 0, 0.0, 0)
    for seed in (0, 1, 2):
        for rank, rate in ((4, 2e-3), (64, 2e-3), (0, 3e-4)):
            yield Run("forgetting", rank, rate, seed)
    for seed in (0, 1, 2):  # a third of the rate
        yield Run("forgetting", 0, 1e-4, seed)
        yield Run("forgetting", 4, 7e-4, seed)


def measure(run):
    """The row of one run: its settings, steps, losses in nats a token, and what it changed."""
    from labkit import tasks
    from labkit.training import loop

    begun = time.perf_counter()
    torch.set_num_threads(1)
    model, tokenizer, trained = prepare(run)
    start, perplexity = weights(model), studies.of_lab("03_peft", "perplexity")["perplexity"]
    unseen = tasks.load("home", "test").shuffle(seed=1).select(range(32))

    def look():
        loss = loop.held_out_loss(model, tokenizer, unseen, autocast=False)
        told = perplexity(model.eval(), tokenizer, tasks.general())  # without dropout
        model.train()
        return loss, told

    found = dict(zip(("steps", "task_loss", "perplexity"), (0, *look()), strict=True))
    if run.study != "base":
        found |= until_target(run, model, tokenizer, trained, look)
    found |= changes(start, weights(model)) if run.study != "base" else NOTHING
    found = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    return asdict(run) | found | {"seconds": round(time.perf_counter() - begun)}


def prepare(run):
    """Model (training mode), tokenizer and the parameters that train."""
    from peft import get_peft_model

    from labkit.training import models
    from labkit.training.arguments import lora

    model, tokenizer = models.load(dtype=torch.float32)
    torch.manual_seed(run.seed)  # the draw of A
    if run.rank:
        model = get_peft_model(model, lora(run.rank, 32, lora_dropout=0.05))
        return model.train(), tokenizer, [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    trained = [m.weight.requires_grad_(True) for m in studies.linear(model).values()]
    return model.train(), tokenizer, trained


def weights(model):
    """{name: weight} of every fifth layer's matrices, an adapter's update added."""
    found = {}
    for name, module in studies.linear(model).items():
        if int(name.split(".")[2]) % 5 == 0:
            base = getattr(module, "base_layer", module)
            update = module.get_delta_weight(module.active_adapters[0]) if base is not module else 0
            found[name] = (base.weight + update).detach()
    return found


def until_target(run, model, tokenizer, trained, look):
    """Train until the held-out loss is at most TARGET: steps, and what was there at TARGET."""
    from labkit import tasks
    from labkit.training import loop

    optimizer = torch.optim.AdamW(trained, run.rate, weight_decay=0.0)
    batches = loop.batches(tasks.load("home"), tokenizer, BATCH, LONGEST, run.seed)
    before = look()
    for n, batch in enumerate(batches, 1):
        loss = studies.step(model, batch, optimizer, trained)
        print(f"  step {n}: {loss:.3f}", flush=True)
        if loss > 3 * TARGET:  # far from it yet
            continue
        now = look()
        if now[0] <= TARGET:
            losses, perplexities = zip(now, before, strict=True)
            there = float(np.interp(TARGET, losses, perplexities))
            return {"steps": n, "task_loss": TARGET, "perplexity": there}
        before = now
    raise RuntimeError(f"{run} did not reach {TARGET}")


def changes(before, after):
    """The update's size relative to the weights', and the intruders among the top directions."""
    squares = [((after[n] - w).square().sum(), w.square().sum()) for n, w in before.items()]
    update, weight = map(sum, zip(*squares, strict=True))
    found = sum(intruders(w, after[n]) for n, w in before.items())
    size = round(float((update / weight).sqrt()), 5)
    return {"change": size, "intruders": found, "looked_at": TOP * len(before)}


def intruders(W0, W1):
    """How many of the top left singular vectors of W1 are like none of W0's."""
    U0, U1 = (torch.linalg.svd(W, full_matrices=False).U for W in (W0, W1))
    return int(((U1[:, :TOP].T @ U0).abs().amax(1) < THRESHOLD).sum())


if __name__ == "__main__":
    studies.work_off(__doc__.splitlines()[0], every_run(), measure, OUT, ("study", "seed"))
