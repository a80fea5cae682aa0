"""Run lab 9's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/distill_lab.py

Each run adds rows to labkit/measured/distill_lab.csv: study, setting, seed, measure, value. After
an interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines A, the order of the rows, and what is sampled in training.

ways    From one adapter trained on `home` alone, 8 steps with several methods. home: percentage of
        300 unseen commands answered right. intents: how many of 54 unseen instructions get a
        smart-home intent as an answer. kl: nats per token from the base, on the model's own answers
        to 27 of these.
"""

from functools import cache
from pathlib import Path

import studies
from studies import LabRun

from labkit.training import models

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "distill_lab.csv"
NAMES = ["adapted", "learn_home", "chats", "like_home", "marks", "sampler", "from_base"]
NAMES += ["distill", "apart"]
WAYS = {  # what `distill` is given
    "distilled": {},
    "no task batches": {"learned": ()},
    "weight 0.0": {"weight": 0.0},
    "written answers": {"learned": ("home", "chat"), "weight": 0.0},
    "the base's answers": {"sample": "base"},
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
    return lab["marks"](model, 300) | {"kl": lab["apart"](model)}


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), functions)
