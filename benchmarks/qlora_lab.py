"""Run lab 4's experiments with data and seeds that the lab doesn't use, for its evidence page.

    python benchmarks/qlora_lab.py formats crossing  # without names: all studies

Each run adds rows to labkit/measured/qlora.csv: study, setting, seed, measure, value. After an
interruption, call the script again: it skips finished runs. The code is the lab's solution.

formats   A codebook and a block size: added loss in nats per token with its 95% interval, and the
          same relative to NF4 in blocks of 64. The seed picks the texts: 120 that the lab reads (0)
          or 120 others (1).
crossing  LoRA and QLoRA trained and evaluated on each base, and both bases before training:
          held-out loss. The seed determines A and the order of the batches.
time      Seconds per forward and backward step, by commands per step: medians of 9.
"""

import time
from pathlib import Path
from statistics import median

import studies
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from studies import LabRun

from labkit import tasks
from labkit.training import hardware, loop

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "qlora.csv"
NAMES = ["text_losses", "added", "round_trip", "nf4_codebook", "kept", "linear", "model"]
NAMES += ["tokenizer", "adapted", "load_base", "train", "home", "unseen"]
FORMATS = [("NF4", 64), ("INT4", 64), ("FP4", 64), ("NF4", 16), ("NF4", 1024)]
BASES = {"16 bits": False, "NF4": True}


def every_run():
    """{run: the function that measures it and its arguments}."""
    runs = {}
    for seed in (0, 1):
        runs |= {LabRun("formats", f"{book} {n}", seed): (formats, book, n) for book, n in FORMATS}
    for seed in (1, 2, 3):
        runs[LabRun("crossing", "20 steps", seed)] = (crossing,)
    return runs | {LabRun("time", f"{n} commands", 0): (seconds, n) for n in (1, 16)}


def of_lab(seed):
    """The lab's functions by name, with a seed of their own."""
    return studies.of_lab("04_qlora", *NAMES, seed=seed)


def formats(lab, seed, book, block):
    """Rounds the model with one format, and reads the texts of the seed."""
    from bitsandbytes import functional as bnb

    chat = tasks.load("chat").select(range(120 * seed, 120 * (seed + 1)))["messages"]
    lines = ["\n".join(message["content"] for message in row) for row in chat]
    lab["texts"] = lab["tokenizer"](lines)["input_ids"]
    n_tokens = torch.tensor([len(ids) - 1 for ids in lab["texts"]])
    books = {"NF4": lab["nf4_codebook"](), "INT4": torch.linspace(-1, 1, 15)}
    books["FP4"] = bnb.get_4bit_type("fp4", device="cpu").sort().values
    before = lab["text_losses"](lab["model"])
    losses = {}
    for name, n in [("NF4", 64), (book, block)]:
        for layer, w in zip(lab["linear"], lab["kept"], strict=True):
            layer.weight.data = lab["round_trip"](w, books[name], n).to(w)
        losses[name, n] = lab["text_losses"](lab["model"])
    found = {"tokens": n_tokens.sum().item()}
    others = {"added": before, "above NF4 64": losses["NF4", 64]}
    for what, other in others.items():
        ends = lab["added"](losses[book, block], other, n_tokens)
        found |= dict(zip((what, f"{what}, low", f"{what}, high"), ends, strict=True))
    return found


def crossing(lab, seed):
    """Trains both adapters, and evaluates each on both bases."""
    tokenizer, unseen, found = lab["tokenizer"], lab["unseen"], {}
    for base, packed in BASES.items():
        untrained = lab["load_base"](packed)
        found[f"untrained on {base}"] = loop.held_out_loss(untrained, tokenizer, unseen)
        tuned = lab["adapted"](packed)
        lab["train"](tuned, base)
        adapter = get_peft_model_state_dict(tuned)
        for other, packed_too in BASES.items():
            here = lab["adapted"](packed_too)
            set_peft_model_state_dict(here, adapter)
            found[f"{base} on {other}"] = loop.held_out_loss(here, tokenizer, unseen)
    return found


def seconds(lab, seed, commands):
    """LoRA and QLoRA take turns on the same batches."""
    tuned = {"LoRA": lab["adapted"](False), "QLoRA": lab["adapted"](True)}
    spent = {name: [] for name in tuned}
    for batch in loop.batches(lab["home"], lab["tokenizer"], commands, 10):
        for name, model in tuned.items():
            begun = time.perf_counter()
            loop.answer_loss(model, batch).backward()
            hardware.wait()
            spent[name].append(time.perf_counter() - begun)
            model.zero_grad()
    return {name: median(times[1:]) for name, times in spent.items()}


if __name__ == "__main__":
    studies.of_labs(OUT, every_run(), of_lab)
