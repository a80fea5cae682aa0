"""Run lab 7's experiments with seeds that the lab doesn't use, for its evidence page.

    python benchmarks/ship_lab.py

Each run adds rows to labkit/measured/ship.csv: study, setting, seed, measure, value. After an
interruption, call the script again: it skips finished runs. The code is the lab's solution. The
seed determines the split, A and the order of the batches.

`score: part`    Right answers out of `n`, by part, for a lookup and for the adapter.
`asked: way`     Right answers out of `n` when prompted in other ways.
`file: kind`     Right answers out of `n` of the merged model as a file; its KL (nats per token).
"""

import json
from pathlib import Path

import studies
import torch
from datasets import Dataset
from studies import LabRun

from labkit import tasks
from labkit.ship import gguf
from labkit.training import generation, models
from labkit.training.scoring import said

OUT = Path(__file__).parents[1] / "labkit" / "measured" / "ship.csv"
PARTS = ("trade", "room", "apartment", "day", "time")
NAMES = ["audit", "split", "looked_up", "train_on", "parts_right", "otherwise", "asked_as"]
NAMES += ["merged", "unordered", "divergence"]


def of_lab(seed):
    """The lab's functions by name, with a seed of their own."""
    lab = studies.of_lab("07_ship", *NAMES, seed=seed)
    lab |= {"tokenizer": models.load()[1], "MAX_LENGTH": 128, "FIELDS": list(PARTS)}
    return lab


def shipped(lab, seed):
    """One adapter: its score, asked in other ways, and as files."""
    rows = [json.loads(line) for line in tasks.REPAIRS.read_text("utf-8").splitlines()]
    faults = lab["audit"](rows, lab["tokenizer"], 128).values()
    good = [row for i, row in enumerate(rows) if not any(i in numbers for numbers in faults)]
    train, test = lab["split"](good, 0.25, seed)
    lab["office"] = lab["train_on"](train, f"seed {seed}")
    lab["limit"], model = 24, lab["office"].model
    asked = [row["messages"] for row in test]
    wanted = [messages[-1]["content"] for messages in asked]
    told = {
        "lookup": [lab["looked_up"](row, train) for row in test],
        "LoRA": generation.answers(model, lab["tokenizer"], asked, 24),
    }
    found = {"n": len(wanted)}
    for name, answers in told.items():
        right = lab["parts_right"](answers, wanted)
        found |= {f"{name}: {part}": count for part, count in right.items()}
    for way in lab["otherwise"](asked[0]):
        answers = lab["asked_as"]([lab["otherwise"](messages)[way] for messages in asked])
        found[f"asked: {way}"] = sum(a == b for a, b in zip(answers, wanted, strict=True))
    return found | files(lab, asked)


def files(lab, asked):
    """{kind: right answers and KL} of the merged model, as it is read back from a file."""
    rows, tokenizer = Dataset.from_list([{"messages": m} for m in asked]), lab["tokenizer"]
    whole = lab["merged"]()
    right, _, exact = said(whole, tokenizer, rows)
    found, path = {"file: none, right": sum(right)}, Path("build/ship_lab.gguf")
    path.parent.mkdir(exist_ok=True)
    for kind in ("bf16", "q8_0", "q4_0"):
        read = models.load(dtype=torch.float32)[0]
        gguf.load_(read, gguf.write_model(whole, tokenizer, path, kind))
        found |= judged(lab, kind, read, rows, exact)
    return found | judged(lab, "rows not moved", lab["unordered"](whole), rows, exact)


def judged(lab, kind, model, rows, exact):
    """Right answers of a model, and its KL from the merged one."""
    right, _, logits = said(model, lab["tokenizer"], rows)
    kl = lab["divergence"](exact, logits)
    return {f"file: {kind}, right": sum(right), f"file: {kind}, KL": kl}


if __name__ == "__main__":
    runs = {LabRun("lab", "40 steps", seed): (shipped,) for seed in (1, 2, 3)}
    studies.of_labs(OUT, runs, of_lab)
