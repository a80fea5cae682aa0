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

import studies
from studies import LabRun

from labkit import tasks
from labkit.training import models
from labkit.training.scoring import said

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "merging.csv"
STEPS = {"home": 50, "tickets": 20}
NAMES = ["OPTIONS", "train", "factors", "dequantized", "original", "nf4", "changed"]
NAMES += ["kl_divergence", "mixtures", "both_tasks"]


def every_run():
    """{run: the function that measures it and its arguments}."""
    return {LabRun("lab", "weights 0.7, density 0.5", seed): (both,) for seed in (1, 2, 3)}


def of_lab(seed):
    """The lab's functions by name, with a seed of their own."""
    lab = studies.of_lab("06_merging", *NAMES, seed=seed)
    lab["tokenizer"] = models.load()[1]
    return lab


def both(lab, seed):
    """Trains the two adapters once, and measures merges and mixtures."""
    tuned = {task: lab["train"](task, n) for task, n in STEPS.items()}
    lab["pairs"] = {task: lab["factors"](model) for task, model in tuned.items()}
    return merges(lab, tuned["home"]) | mixtures(lab)


def merges(lab, trained):
    """{merge: right, loss and KL} of home's adapter."""
    commands = tasks.draw("home", "test", 60)
    share, loss, wanted = said(trained, lab["tokenizer"], commands)
    found = {"as trained: right": 60 * share, "as trained: loss": loss}
    nf4, dequantized, original = (lab[name] for name in ("nf4", "dequantized", "original"))
    ways = {
        "dequantized, 16 bits": dequantized,
        "original, 16 bits": original,
        "dequantized, then NF4": lambda *data: nf4(dequantized(*data)),
        "original, then NF4": lambda *data: nf4(original(*data)),
        "no adapter": lambda W, A, B: dequantized(W, A, 0 * B),
    }
    for way, change in ways.items():
        model = lab["changed"](change, lab["pairs"]["home"])
        share, loss, logits = said(model, lab["tokenizer"], commands)
        found |= {f"{way}: right": 60 * share, f"{way}: loss": loss}
        found[f"{way}: KL"] = lab["kl_divergence"](wanted, logits)
    return found


def mixtures(lab):
    """{mixture: right answers to each task}."""
    lab["held_out"] = {t: tasks.draw(t, "test", 80, **more) for t, more in lab["OPTIONS"].items()}
    found = {}
    for name, mix in lab["mixtures"]([0.7, 0.7], 0.5).items():
        right = lab["both_tasks"](mix)
        found |= {f"{name}: {task}": n for task, n in zip(STEPS, right, strict=True)}
    return found


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
