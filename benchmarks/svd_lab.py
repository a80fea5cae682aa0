"""Run lab 1's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/svd_lab.py home sgd  # without names: all studies

Each run adds rows to labkit/measured/svd.csv: study, setting, seed, measure, value. After an
interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines the batches and LoRA's A. Updates are saved in build/svd for the overlaps.

home     Full fine-tuning and LoRA: right answers out of 60, held-out loss, rank for 90% of energy.
cut      The full update cut to a rank: the same measures, and the share of energy that is left.
sgd      Full fine-tuning by SGD at rate 0.3, clipped: held-out loss, rank for 90% of the energy.
overlap  Median share of energy in the top 8 output directions of a full update, every fifth block.
"""

from pathlib import Path

import numpy as np
import studies
import torch
from peft import LoraConfig, get_peft_model
from studies import LabRun

from labkit import tasks
from labkit.training import loop, models

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "svd.csv"
KEPT = Path(__file__).parents[1] / "build" / "svd"
UNSEEN = tasks.draw("home", "test", 60)
SEEDS, RANKS, HOME = (1, 2, 3), (1, 8, 16, 64), tasks.load("home", "train")
RATES = {"LoRA": 5e-3, "full": 3e-4, "SGD": 0.3}


def every_run():
    """{run: the function that measures it and its arguments}, updates before their overlaps."""
    runs = {LabRun("home", "base", 0): (base,)}
    for seed in SEEDS:
        runs |= {LabRun("home", how, seed): (home, how) for how in ("LoRA", "full")}
        runs |= {LabRun("cut", f"rank {r}", seed): (cut, r) for r in RANKS}
    runs |= {LabRun("sgd", "rate 0.3", 1): (sgd,)}
    return runs | {LabRun("overlap", "top 8", seed): (overlap,) for seed in SEEDS}


def of_lab(seed):
    """The lab's functions by name; its seed and that of its batches are `seed`."""
    names = ["fine_tune", "judge", "energy_rank", "truncate_update", "energy_within"]
    lab = studies.of_lab("01_svd", *names, seed=seed)
    lab.update(unseen=UNSEEN, said={}, right={}, loss={})
    model, lab["tokenizer"] = models.load(dtype=torch.float32)
    start = {n: W.detach().clone() for n, W in model.named_parameters() if "_proj." in n}
    for name, W in model.named_parameters():
        W.requires_grad_(name in start)
    torch.manual_seed(seed)
    return lab | {"model": model, "start": start}


def judged(lab, model):
    """{measure: value} of a model's answers to the test commands."""
    lab["judge"]("it", model)
    return {"right": lab["right"]["it"], "held_out": lab["loss"]["it"]}


def base(lab, seed):
    return judged(lab, lab["model"])


def home(lab, seed, how):
    if how == "LoRA":
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(models.load()[0], config)
        lab["fine_tune"](model, how, RATES[how])
        layers = dict(model.get_base_model().named_modules())
        found = {
            n: layers[n.removesuffix(".weight")].get_delta_weight("default").detach()
            for n in lab["start"]
        }
    else:
        model = lab["model"]
        lab["fine_tune"](model, how, RATES[how])
        found = updates(lab)
    return judged(lab, model) | kept(lab, how, seed, found)


def updates(lab):
    """{name: what training changed in this matrix}."""
    start = lab["start"]
    return {n: W.detach() - start[n] for n, W in lab["model"].named_parameters() if n in start}


def kept(lab, how, seed, found):
    """Write the updates down; {measure: value} of their ranks."""
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.save(found, KEPT / f"{how} {seed}.pt")
    spectra = (torch.linalg.svdvals(update.float()) for update in found.values())
    return {"r90": np.median([lab["energy_rank"](s, 0.9) for s in spectra])}


def cut(lab, seed, r):
    found, start = torch.load(KEPT / f"full {seed}.pt"), lab["start"]
    parts = {n: lab["truncate_update"](start[n], start[n] + found[n], r) for n in start}
    with torch.no_grad():
        for n, W in lab["model"].named_parameters():
            if n in start:
                W.copy_(parts[n])
    left, whole = (
        sum(U.square().sum().item() for U in some)
        for some in ((parts[n] - start[n] for n in start), found.values())
    )
    return judged(lab, lab["model"]) | {"energy": left / whole}


def sgd(lab, seed, steps=50):
    model, batches = lab["model"], lab["loop"].batches(HOME, lab["tokenizer"], 16, steps)
    list(loop.train(model, batches, steps, RATES["SGD"], torch.optim.SGD))
    return judged(lab, model) | kept(lab, "sgd", seed, updates(lab))


def overlap(lab, seed):
    other = SEEDS[SEEDS.index(seed) - 1]
    pairs = {"LoRA in full": ("LoRA", seed), "LoRA in full, other seed": ("LoRA", other)}
    pairs |= {"full in full, other seed": ("full", other)}
    reference, shares = torch.load(KEPT / f"full {seed}.pt"), {}
    fifth = [n for n in lab["start"] if int(n.split(".")[2]) % 5 == 0]
    for measure, (how, of) in pairs.items():
        found = torch.load(KEPT / f"{how} {of}.pt")
        some = [lab["energy_within"](found[n].float(), reference[n], 8) for n in fifth]
        shares[measure] = np.median(some)
    return shares | {"chance": np.median([8 / len(lab["start"][n]) for n in fifth])}


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
