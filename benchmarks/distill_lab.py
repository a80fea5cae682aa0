"""Run lab 9's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/distill_lab.py

Each run adds rows to labkit/measured/distill_lab.csv: study, setting, seed, measure, value. After
an interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines A, the order of the rows, and what is sampled in training.

ways    From one adapter trained on `home` alone, 8 steps with several methods. home: right answers
        to 100 unseen commands. json: how many of 60 unseen instructions get unwanted JSON answers.
        kl: nats per token from the base, on the model's own answers to these instructions.
"""

from functools import cache
from pathlib import Path

import studies
from studies import LabRun

from labkit import tasks
from labkit.training import fast, models, trees

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "distill_lab.csv"
NAMES = ["adapted", "learn_home", "marks", "sampler", "from_base", "distill", "drift"]
WAYS = {  # what `distill` is given
    "its own answers": {},
    "the base's answers": {"sample": "base"},
    "written answers, cross-entropy": {"learned": ("home", "chat"), "weight": 0.0},
    "home alone, 8 steps more": {"weight": 0.0},
    "without home": {"learned": ()},
}


def every_run():
    """{run: the function that measures it and its arguments}."""
    runs = {}
    for seed in (1, 2, 3):
        runs[LabRun("ways", "home alone", seed)] = (start_alone,)
        runs |= {LabRun("ways", way, seed): (onward, how) for way, how in WAYS.items()}
    return runs


@cache
def functions(seed):
    """The lab's functions by name, its model, and an adapter trained on `home` alone."""
    lab = studies.of_lab("09_distill", *NAMES, seed=seed)
    lab["base"], lab["tokenizer"] = models.load()
    lab["tuned"] = lab["learn_home"](lab["adapted"](lab["base"], seed=seed))
    return lab


def start_alone(lab, seed):
    """What the adapter for `home` can do, and how far it is from its base."""
    return measured(lab, lab["tuned"])


def onward(lab, seed, how):
    """The same after `distill` in one of the ways."""
    sample = lab["sampler"](seed=seed)
    if how.get("sample") == "base":
        sample = lab["from_base"](sample)
    how = {key: value for key, value in how.items() if key != "sample"}
    return measured(lab, lab["distill"](lab["tuned"], "study", sample, seed=seed, **how))


def measured(lab, model):
    """Its marks, and its KL from the base."""
    answers = lab["sampler"]()(model, tasks.load("chat", "test").to_list())
    with fast.layers(model), trees.forward(model):
        return lab["marks"](model) | {"kl": lab["drift"](model, answers)}


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), functions)
