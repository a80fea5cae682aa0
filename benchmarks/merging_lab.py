"""Lab 6's own experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/merging_lab.py  # or some of: merges mixtures

Each run adds rows to labkit/measured/merging.csv: study, setting, seed, measure, value. Call it
again after a stop: it skips the runs whose rows are there. The code is the lab's solution. The seed
draws A, and the order of the batches.

merges     `home`, trained on NF4 and merged in each way: KL from the trained model (nats per
           token), held-out loss, right answers of 60.
mixtures   `home` and `tickets`, each alone and mixed: right answers of 80 to each task.
"""

from pathlib import Path
from types import SimpleNamespace

import studies
from studies import LabRun

from labkit.training import hardware, models
from labkit.training.scoring import said

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "merging.csv"
STEPS = {"home": 30, "tickets": 20}
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
    "dequantized_nf4",
    "product",
    "combine_linear",
    "combine_cat",
    "recompress",
    "ties",
]


def every_run():
    """{run: the function that measures it and its arguments}."""
    runs = {}
    for seed in (1, 2, 3):
        runs[LabRun("merges", "30 steps", seed)] = (merges,)
        runs[LabRun("mixtures", "weights 1, density 0.5", seed)] = (mixtures,)
    return runs


def of_lab(seed):
    """The lab's functions by name, with a seed of their own."""
    device = hardware.device()
    here = SimpleNamespace(seed=seed, device=device, dtype=hardware.precision(device))
    lab = studies.of_lab("06_merging", *NAMES, lab=here)
    lab["tokenizer"] = models.load()[1]
    return lab


def merges(lab, seed):
    tokenizer, found = lab["tokenizer"], {}
    commands, trained = lab["rows_of"]("home", "test", 60), lab["train"]("home", 30)
    pairs = lab["factors"](trained)
    share, loss, wanted = said(trained, tokenizer, commands)
    found |= {"as trained: right": 60 * share, "as trained: loss": loss}
    ways = {
        "dequantized, 16 bits": lab["dequantized"],
        "original, 16 bits": lab["original"],
        "dequantized, then NF4": lab["dequantized_nf4"],
        "original, then NF4": lambda W, A, B: lab["nf4"](lab["original"](W, A, B)),
        "no adapter": lambda W, A, B: lab["dequantized"](W, A, 0 * B),
    }
    for way, change in ways.items():
        share, loss, logits = said(lab["changed"](change, pairs), tokenizer, commands)
        found |= {f"{way}: right": 60 * share, f"{way}: loss": loss}
        found[f"{way}: KL"] = lab["kl_divergence"](wanted, logits)
    return found


def mixtures(lab, seed):
    lab["pairs"] = {task: lab["factors"](lab["train"](task, n)) for task, n in STEPS.items()}
    lab["held_out"] = {task: lab["rows_of"](task, "test", 80) for task in STEPS}
    product, cat = lab["product"], lambda both: lab["combine_cat"](both, [1, 1])
    mixes = {
        "home alone": lambda *both: product(both[0]),
        "tickets alone": lambda *both: product(both[1]),
        "linear": lambda *both: product(lab["combine_linear"](both, [1, 1])),
        "cat": lambda *both: product(cat(both)),
        "cat, cut to r=8": lambda *both: product(lab["recompress"](*cat(both), 8)),
        "TIES": lambda *both: lab["ties"]([product(pair) for pair in both], 0.5),
    }
    found = {}
    for name, mix in mixes.items():
        right = lab["both_tasks"](mix)
        found |= {f"{name}: {task}": n for task, n in zip(STEPS, right, strict=True)}
    return found


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
