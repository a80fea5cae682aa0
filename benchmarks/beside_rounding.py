"""Adapters trained beside plain and beside rounded weights, each asked beside both, for lab 4.

    python benchmarks/beside_rounding.py

Each run is one row of labkit/measured/beside_rounding.csv. A run whose row is there is not
repeated, so the script can be stopped and called again. All train SmolLM2-135M on `home`, in fp32,
one thread; rounded means through bitsandbytes' NF4 with double quantization and back. A seed
decides the draw of A and the order of the batches; the held-out commands are the same for all.

none   no training: what the two bases lose by themselves.
plain  an adapter trained beside the weights as they are.
NF4    the same beside the rounded ones.
LoftQ  as NF4, from the best rank-r part of the rounding error instead of from zero.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import studies
import torch

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "beside_rounding.csv"
SETTINGS = {"steps": 20, "batch": 16, "rate": 2e-3, "rank": 8, "alpha": 16, "n": 60}


@dataclass(frozen=True)
class Run:
    """One training run, beside the weights that it names."""

    beside: str
    seed: int


def every_run():
    """Every run, the first seed first."""
    yield Run("none", 0)
    for seed in (0, 1, 2):
        for beside in ("plain", "NF4", "LoftQ"):
            yield Run(beside, seed)


def measure(run):
    """The row of one run: held-out losses in nats a token on either base, and its settings."""
    from peft import get_peft_model

    from labkit.measured import short
    from labkit.training import loop, models

    begun = time.perf_counter()
    torch.set_num_threads(1)
    model, tokenizer = models.load(dtype=torch.float32)
    torch.manual_seed(run.seed)  # the draw of A
    model = get_peft_model(model, short.lora(SETTINGS["rank"], SETTINGS["alpha"]))
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    plain = [layer.base_layer.weight.data for layer in layers]
    bases = {"plain": plain, "NF4": [studies.nf4(w, double_quant=True) for w in plain]}
    if run.beside == "LoftQ":
        for layer, w, w4 in zip(layers, plain, bases["NF4"], strict=True):
            start_at(layer, w - w4)
    if run.beside != "none":
        put(layers, bases["plain" if run.beside == "plain" else "NF4"])
        train(model, tokenizer, run.seed)
        print(f"  |dW| / |rounding error| {to_error(layers, bases):.3f}", flush=True)
    found, unseen = {}, short.judged(SETTINGS["n"])
    for name, weights in bases.items():
        put(layers, weights)
        found[f"on_{name}"] = round(loop.held_out_loss(model, tokenizer, unseen, autocast=False), 4)
    rest = SETTINGS | {"dtype": "float32", "seconds": round(time.perf_counter() - begun)}
    return asdict(run) | found | rest


def start_at(layer, error):
    """Let the adapter's update be the best rank-r part of `error`, halved between A and B."""
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    U, s, Vh = torch.linalg.svd(error / layer.scaling["default"], full_matrices=False)
    r, root = len(A), s.sqrt()
    A.data, B.data = root[:r, None] * Vh[:r], U[:, :r] * root[:r]


def put(layers, weights):
    """Give the frozen layers these weights."""
    for layer, w in zip(layers, weights, strict=True):
        layer.base_layer.weight.data = w


def to_error(layers, bases):
    """The size of the update beside that of the rounding error, over all layers together."""
    updates = [layer.get_delta_weight("default") for layer in layers]
    errors = [w4 - w for w, w4 in zip(bases["plain"], bases["NF4"], strict=True)]
    size, error = (sum(x.square().sum().item() for x in parts) for parts in (updates, errors))
    return (size / error) ** 0.5


def train(model, tokenizer, seed):
    """Train the adapter in place, as the lab does."""
    from labkit import tasks
    from labkit.training import loop

    trained = [p for p in model.parameters() if p.requires_grad]
    steps, rate = SETTINGS["steps"], SETTINGS["rate"]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.0)
    batches = loop.batches(tasks.load("home"), tokenizer, SETTINGS["batch"], steps, seed)
    model.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        loss = studies.step(model, batch, optimizer, trained)
        print(f"  step {step + 1}: {loss:.3f}", flush=True)


if __name__ == "__main__":
    studies.work_off(__doc__.splitlines()[0], every_run(), measure, OUT, ("seed",))
