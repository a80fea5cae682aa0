"""Run lab 6's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/merging_lab.py

Each run adds rows to labkit/measured/merging.csv: study, setting, seed, measure, value. After an
interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines A and the order of the batches.

lab       `home` merged with each method: KL from the trained model (nats per token), held-out loss,
          right answers out of 60.
mixtures  `home` and `tickets` in one model: each task's held-out loss, right answers out of 80.
"""

from pathlib import Path

import studies
from studies import LabRun

from labkit import tasks
from labkit.training import models
from labkit.training.scoring import said, score

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "merging.csv"
STEPS = {"home": 50, "tickets": 20}
NAMES = ["OPTIONS", "train", "factors", "dequantized", "original", "nf4", "changed"]
NAMES += ["kl_divergence", "mixed", "losses"]
MIXES = [("cat", (1, 0)), ("cat", (0, 1))]  # each alone
MIXES += [(way, (1, w)) for way in ("cat", "linear") for w in (0.25, 0.5, 1)]
MIXES += [("cat, cut to r=8", (1, 0.5)), ("TIES 0.5", (1, 0.5)), ("TIES 0.5", (1, 1))]


def every_run():
    """{run: the function that measures it and its arguments}."""
    runs = {LabRun("lab", "one adapter", seed): (merges,) for seed in (1, 2, 3)}
    return runs | {LabRun("mixtures", "two adapters", seed): (mixtures,) for seed in (1, 2, 3)}


def of_lab(seed):
    """The lab's functions by name, with a seed of their own."""
    lab = studies.of_lab("06_merging", *NAMES, seed=seed)
    lab["tokenizer"] = models.load()[1]
    return lab


def merges(lab, seed):
    """{merge: right, loss and KL} of home's adapter."""
    trained = lab["train"]("home", STEPS["home"])
    factors = lab["factors"](trained)
    commands = tasks.draw("home", "test", 60)
    right, loss, wanted = said(trained, lab["tokenizer"], commands)
    found = {"as trained: right": sum(right), "as trained: loss": loss}
    nf4, dequantized, original = (lab[name] for name in ("nf4", "dequantized", "original"))
    ways = {
        "dequantized, 16 bits": dequantized,
        "original, 16 bits": original,
        "dequantized, then NF4": lambda *data: nf4(dequantized(*data)),
        "original, then NF4": lambda *data: nf4(original(*data)),
        "no adapter": lambda W, A, B: dequantized(W, A, 0 * B),
    }
    for way, change in ways.items():
        model = lab["changed"](change, factors)
        right, loss, logits = said(model, lab["tokenizer"], commands)
        found |= {f"{way}: right": sum(right), f"{way}: loss": loss}
        found[f"{way}: KL"] = lab["kl_divergence"](wanted, logits)
    return found


def mixtures(lab, seed):
    """{mixture: loss and right answers of each task}."""
    lab["pairs"] = {task: lab["factors"](lab["train"](task, n)) for task, n in STEPS.items()}
    tests = {task: tasks.draw(task, "test", 80, **more) for task, more in lab["OPTIONS"].items()}
    found = {}
    for way, weights in MIXES:
        name, model = "{} {:g}:{:g}".format(way, *weights), lab["mixed"](way, weights)
        for (task, rows), loss in zip(tests.items(), lab["losses"](way, weights), strict=True):
            found[f"{name}: {task} loss"] = loss
            found[f"{name}: {task} right"] = 80 * score(model, lab["tokenizer"], rows)[0]
    return found


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
