"""Run lab 2's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/lora_lab.py step  # without names: all studies

Each run adds rows to labkit/measured/lora.csv: study, setting, seed, measure, value. After an
interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines A, B and the batches. A final loss is that of
the last step.

home     LoRA and full fine-tuning on the same batches: right answers out of 60, held-out loss; the
         share of weights that a merge and unmerge_ change in bf16.
ranks    The lab's short runs at several ranks and alphas: final training loss, held-out loss.
starts   Four starts at the lab's rate, and two of them at half the rate: first and final loss.
step     Peak bytes by category and FLOPs of a step.
"""

from pathlib import Path

import studies
import torch
from short import PLACES
from studies import LabRun

from labkit import tasks
from labkit.figures.forms import final
from labkit.training import generation, loop, models

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "lora.csv"
FP32, BF16 = torch.float32, torch.bfloat16
EVERYTHING, HOME = list(PLACES["all-linear"]), tasks.load("home", "train")
UNSEEN = tasks.draw("home", "test", 60)
RATES, SIZES = {"LoRA": 5e-3, "full": 3e-4}, (8, 32)  # commands in a step
RANKS = [(r, alpha) for alpha in (16, 128) for r in (1, 8, 64)]
STARTS = [("B = 0", 1e-2), ("A = 0", 1e-2), ("both random", 1e-2), ("both zero", 1e-2)]
STARTS += [("B = 0", 5e-3), ("A = 0", 5e-3)]
KINDS = {"full fp32": (False, FP32), "LoRA fp32": (True, FP32), "LoRA bf16 base": (True, BF16)}


def every_run():
    """{run: the function that measures it and its arguments}."""
    runs = {LabRun("home", "base", 0): (home, "base")}
    runs |= {LabRun("home", how, seed): (home, how) for seed in (1, 2, 3) for how in RATES}
    for seed in (1, 2, 3):
        runs |= {LabRun("ranks", f"r={r}, alpha={a}", seed): (ranks, r, a) for r, a in RANKS}
        runs |= {
            LabRun("starts", f"{how}, rate {x:g}", seed): (starts, how, x) for how, x in STARTS
        }
    runs |= {LabRun("step", f"{k}, {n}", 1): (step, *KINDS[k], n) for k in KINDS for n in SIZES}
    return runs


def of_lab(seed):
    """The lab's functions by name; its seed and that of its batches are `seed`."""
    names = ["first_steps", "measure", "merged", "right"]
    lab = studies.of_lab("02_lora", "inject", "train", "unmerge_", *names, seed=seed)
    lab.update(home=HOME, unseen=UNSEEN, everything=EVERYTHING, tokenizer=models.load()[1])
    return lab


def trained(lab, seed, how, size, steps, r=8, alpha=16, rate=None):
    """A model (eval mode) trained on `home` by LoRA or full fine-tuning, and {measure: loss}."""
    torch.manual_seed(seed)
    model, tokenizer = models.load(dtype=FP32 if how == "full" else None)
    found = {}
    if how == "LoRA":
        lab["inject"](model, EVERYTHING, r, alpha)
    if how != "base":
        batches = lab["loop"].batches(HOME, tokenizer, size, steps)
        found["final"] = final(list(lab["train"](model, batches, steps, rate or RATES[how])))
    return model.eval(), found | {"held_out": loop.held_out_loss(model, tokenizer, UNSEEN)}


def home(lab, seed, how):
    model, found = trained(lab, seed, how, 16, 50)
    answers = generation.answers(model, lab["tokenizer"], UNSEEN["messages"])
    found["right"], found["intents"] = lab["right"](answers)
    found["json"] = sum(a.startswith('{"') and a.endswith("}") for a in answers)
    return found | merging(lab, model) if how == "LoRA" else found


@torch.no_grad()
def merging(lab, model):
    """After merge_ and unmerge_ in bf16: the share of weights that differ, and how far."""
    both = (model.modules(), lab["merged"](model).modules())
    old, new = ([m for m in some if isinstance(m, lab["LoRALinear"])] for some in both)
    list(map(lab["unmerge_"], new))
    weights = [a.base.weight.float() for a in old]
    gaps = [b.base.weight.float() - w for b, w in zip(new, weights, strict=True)]
    updates = [a.scaling * a.B @ a.A for a in old]
    gap, update = (sum(t.square().sum() for t in x) for x in (gaps, updates))
    changed = sum((g != 0).sum() for g in gaps) / sum(g.numel() for g in gaps)
    return {"not_restored": changed, "error_to_update": (gap / update).sqrt()}


def ranks(lab, seed, r, alpha):
    return trained(lab, seed, "LoRA", 8, 12, r, alpha, rate=1e-3)[1]


def starts(lab, seed, start, rate):
    losses = lab["first_steps"](start, rate)
    return {"first": losses[0], "final": final(losses)}


def step(lab, seed, with_lora, dtype, commands):
    flops, peak = lab["measure"](with_lora, dtype, commands)
    return {"flops": flops, "peak": sum(peak.values()), **peak}


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
