"""Lab 6's own experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/merging_lab.py

Each run adds rows to labkit/measured/merging.csv: study, setting, seed, measure, value. Call it
again after a stop: it skips the runs whose rows are there. The code is the lab's solution. The seed
draws A, and the order of the batches.

Both adapters are trained once per seed, on NF4.

`home`, merged in each way    KL from the trained model (nats per token), held-out loss, right
                              answers of 60.
each alone, and mixed         Right answers of 80 to each task.
"""

from pathlib import Path
from types import SimpleNamespace

import studies
from studies import LabRun

from labkit.training import hardware, models
from labkit.training.scoring import said

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "merging.csv"
STEPS = {"home": 50, "tickets": 20}
NAMES = [
    "train",
    "factors",
    "rows_of",
    "dequantized",
    "changed",
    "nf4",
    "kl_divergence",
    "both_tasks",
]
NAMES += [
    "original",
    "product",
    "combine_linear",
    "combine_cat",
    "recompress",
    "ties",
]


def every_run():
    """{run: the function that measures it and its arguments}."""
    return {LabRun("lab", "weights 0.7, density 0.5", seed): (both,) for seed in (1, 2, 3)}


def of_lab(seed):
    """The lab's functions by name, with a seed of their own."""
    device = hardware.device()
    here = SimpleNamespace(seed=seed, device=device, dtype=hardware.precision(device))
    lab = studies.of_lab("06_merging", *NAMES, lab=here)
    lab["tokenizer"] = models.load()[1]
    return lab


def both(lab, seed):
    """Trains the two adapters once, and measures merges and mixtures."""
    models_of = {task: lab["train"](task, n) for task, n in STEPS.items()}
    lab["pairs"] = {task: lab["factors"](model) for task, model in models_of.items()}
    return merges(lab, models_of["home"]) | mixtures(lab)


def merges(lab, trained):
    tokenizer, pairs, found = lab["tokenizer"], lab["pairs"]["home"], {}
    commands = lab["rows_of"]("home", "test", 60)
    share, loss, wanted = said(trained, tokenizer, commands)
    found |= {"as trained: right": 60 * share, "as trained: loss": loss}
    ways = {
        "dequantized, 16 bits": lab["dequantized"],
        "original, 16 bits": lab["original"],
        "dequantized, then NF4": lambda W, A, B: lab["nf4"](lab["dequantized"](W, A, B)),
        "original, then NF4": lambda W, A, B: lab["nf4"](lab["original"](W, A, B)),
        "no adapter": lambda W, A, B: lab["dequantized"](W, A, 0 * B),
    }
    for way, change in ways.items():
        share, loss, logits = said(lab["changed"](change, pairs), tokenizer, commands)
        found |= {f"{way}: right": 60 * share, f"{way}: loss": loss}
        found[f"{way}: KL"] = lab["kl_divergence"](wanted, logits)
    return found


def mixtures(lab):
    lab["held_out"] = {task: lab["rows_of"](task, "test", 80) for task in STEPS}
    product = lab["product"]

    def cat(pairs):
        return lab["combine_cat"](pairs, [0.7, 0.7])

    mixes = {
        "home alone": lambda *pairs: product(pairs[0]),
        "tickets alone": lambda *pairs: product(pairs[1]),
        "linear": lambda *pairs: product(lab["combine_linear"](pairs, [0.7, 0.7])),
        "cat": lambda *pairs: product(cat(pairs)),
        "cat, cut to r=8": lambda *pairs: product(lab["recompress"](*cat(pairs), 8)),
        "TIES": lambda *pairs: lab["ties"]([product(pair) for pair in pairs], 0.5),
    }
    found = {}
    for name, mix in mixes.items():
        right = lab["both_tasks"](mix)
        found |= {f"{name}: {task}": n for task, n in zip(STEPS, right, strict=True)}
    return found


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
