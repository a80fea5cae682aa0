"""Run lab 3's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/peft_lab.py rates labels  # without names: all studies

Each run adds rows to labkit/measured/peft.csv: study, setting, seed, measure, value. After an
interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines the rows and LoRA's A.

rates          train_adapter, 12 steps at each rate: the loss of the last step.
labels         The given labels and the solution's: how many of 60 answers don't stop, last loss;
               texts that begin with an answer, with and without the line break that opens it.
checkpointing  Five steps: the B that moved, activations at the peak (bytes), the last loss.
"""

import tempfile
from pathlib import Path

import studies
import torch
from studies import LabRun

from labkit import tasks
from labkit.training import models

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "peft.csv"
HOME = tasks.load("home", "train")
UNSEEN = tasks.draw("home", "test", 60)
NAMES = ["train_adapter", "train_on", "continued", "endless", "given_labels"]
NAMES += ["answer_labels", "few_steps", "given_checkpointing", "with_checkpointing"]
RATES = (2e-5, 2e-3)
WAYS = ("plain", "given", "solution")


def every_run():
    """{run: the function that measures it and its arguments}."""
    runs = {}
    for seed in (1, 2, 3):
        runs |= {LabRun("rates", f"{rate:g}", seed): (rates, rate) for rate in RATES}
        runs |= {LabRun("labels", name, seed): (labels, name) for name in ("given", "solution")}
        runs |= {LabRun("checkpointing", way, seed): (checkpointing, way) for way in WAYS}
    return runs


def of_lab(seed):
    """The lab's functions by name; the seed also shuffles the rows."""
    lab = studies.of_lab("03_peft", *NAMES, seed=seed)
    lab.update(home=HOME.shuffle(seed=seed), unseen=UNSEEN, tokenizer=models.load()[1])
    torch.manual_seed(seed)
    return lab


def run_on(lab, n_rows, rate, folder):
    """The lab's train_adapter on some rows."""
    rows = lab["home"].select(range(n_rows))
    return lab["train_adapter"](models.load()[0], lab["tokenizer"], rows, folder, rate)


def rates(lab, seed, rate):
    with tempfile.TemporaryDirectory() as folder:
        history = run_on(lab, 96, rate, folder).state.log_history
    return {"last loss": [row["loss"] for row in history if "loss" in row][-1]}


def labels(lab, seed, name):
    run = lab["train_on"](lab["given_labels" if name == "given" else "answer_labels"])
    said = lab["continued"](run.model, "\n")
    unopened = lab["continued"](run.model, "")
    return {
        "unstopped": lab["endless"](said),
        "last loss": run.losses[-1],
        "opened": sum(text.startswith("{") for text in said),
        "opened without the line break": sum(text.startswith("{") for text in unopened),
    }


def checkpointing(lab, seed, way):
    with tempfile.TemporaryDirectory() as folder:
        trainer = run_on(lab, 8, 2e-3, folder)
        lab["eight_rows"] = next(iter(trainer.get_train_dataloader()))
    ways = {"plain": lambda model: model, "given": lab["given_checkpointing"]}
    losses, peak, moved = lab["few_steps"](ways.get(way, lab["with_checkpointing"]), 5)
    return {"moved": sum(moved), "B": len(moved), "activations": peak, "fifth loss": losses[-1]}


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
