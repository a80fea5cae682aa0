"""Run lab 8's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/rewards_lab.py

Each run adds rows to labkit/measured/rewards_lab.csv: study, setting, seed, measure, value. After
an interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines A, the order of the pairs or prompts, and what is sampled in training.

dpo     Tokens per answer to 60 unseen instructions, and what either side has gained, in nats.
grpo    On 100 unseen commands, before and after: share of right intents among four sampled answers
        and one greedy answer, its gain and the gain's standard error over commands; greedy: share
        right, keys. `cool` is the share at the start when sampling at temperature 0.7.
"""

from functools import cache
from pathlib import Path

import numpy as np
import studies
from studies import LabRun

from labkit.training import models

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "rewards_lab.csv"
NAMES = ["pairs_of", "train_dpo", "lengths", "warm_start", "train_grpo", "marks"]
NAMES += ["right_intent", "sampled_intents"]


def every_run():
    """{run: the function that measures it and its arguments}."""
    runs = {LabRun("dpo", "shorter chosen", seed): (dpo, 0.1) for seed in (1, 2, 3)}
    runs |= {LabRun("dpo", "shorter chosen, beta 1", seed): (dpo, 1.0) for seed in (1, 2, 3)}
    for seed in (1, 2, 3):
        runs[LabRun("grpo", "paid right_intent", seed)] = (grpo,)
    return runs


@cache
def functions():
    """The lab's functions by name, and its model."""
    lab = studies.of_lab("08_rewards", *NAMES)
    lab["model"], lab["tokenizer"] = models.load()
    return lab


def dpo(lab, seed, beta):
    """Tokens per answer before and after, and the last five steps' mean gain of either side."""
    before = np.mean(lab["lengths"](lab["model"]))
    policy, curves = lab["train_dpo"](lab["pairs_of"]("shorter"), 5e-4, beta, seed=seed)
    gains = {side: np.mean(curves.values[side][-5:]) for side in ("chosen", "rejected")}
    return {"before": before, "after": np.mean(lab["lengths"](policy))} | gains


def grpo(lab, seed):
    """What rewards do to answers to unseen commands; all runs begin at the lab's warm start."""
    if "start" not in lab:
        lab["start"] = lab["warm_start"]()
        lab["before"] = lab["marks"](lab["start"])
        lab["cool"] = np.mean(lab["sampled_intents"](lab["start"], temperature=0.7))
    before = lab["before"]
    policy, _ = lab["train_grpo"](lab["right_intent"], seed=seed)
    after, found = lab["marks"](policy), {"cool": lab["cool"]}
    for name, marks in (("before", before), ("after", after)):
        found |= {f"{name}: {way}": np.mean(marks[way]) for way in marks}
    for way in ("sampled", "greedy"):
        gains = np.reshape(np.subtract(after[way], before[way]), (100, -1)).mean(1)
        found |= {f"{way}: gain": gains.mean(), f"{way}: error": gains.std(ddof=1) / 10}
    return found


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), lambda seed: functions())
