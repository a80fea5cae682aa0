"""Make lab 8's preference pairs: the model's own answers on `chat`, ranked by its verifier.

    python benchmarks/preference_pairs.py

For each training instruction with a constraint, SAMPLES answers are sampled. An answer that follows
the constraint is chosen over an answer that does not, with at most PAIRS pairs per instruction. A
chosen answer ended by itself; a rejected answer may have been cut after TOKENS. Answers are saved
in build/ at once, so the script can be stopped and called again.
"""

import itertools
import json
import random
import time
from pathlib import Path

import torch

from labkit import tasks
from labkit.tasks import chat
from labkit.training import models, packing, rollouts

ROOT = Path(__file__).parents[1]
SAID = ROOT / "build" / "preference_answers.jsonl"
OUT = ROOT / "labkit" / "tasks" / "chat_pairs.jsonl"
SAMPLES, TEMPERATURE, TOKENS = 6, 0.7, 48
PAIRS = 3
AT_ONCE = 16  # instructions


def answer(rows: list[tuple[int, dict]]) -> None:
    """Ask the instructions, `(number, row)`, and append what was said to the file."""
    if not rows:
        return
    model, tokenizer = models.load()
    for start in range(0, len(rows), AT_ONCE):
        begun, part = time.perf_counter(), rows[start : start + AT_ONCE]
        chance = torch.Generator(model.device).manual_seed(part[0][0])
        asked = [row for _, row in part]
        answers = rollouts.sample(model, tokenizer, asked, SAMPLES, TOKENS, TEMPERATURE, chance)
        with SAID.open("a", encoding="utf-8") as file:
            for k, (number, row) in enumerate(part):
                told = answers[k * SAMPLES : (k + 1) * SAMPLES]
                file.write(json.dumps(judged(number, row, told)) + "\n")
        print(
            f"{start + len(part)} of {len(rows)}, {time.perf_counter() - begun:.0f} s", flush=True
        )


def judged(number: int, row: dict, answers: list[dict]) -> dict:
    """An instruction and its answers: the text, whether it ended, whether it follows."""
    said = [(a["text"], sum(y != packing.IGNORED for y in a["labels"]) < TOKENS) for a in answers]
    told = [[text, ended, chat.follows(row["check"], text)] for text, ended in said]
    prompt = row["messages"][0]["content"]
    return {"number": number, "check": row["check"], "prompt": prompt, "answers": told}


def pairs(record: dict) -> list[dict]:
    """The pairs of one instruction; which answers meet is drawn."""
    good = sorted({text for text, ended, follows in record["answers"] if ended and follows})
    bad = sorted({text for text, _, follows in record["answers"] if not follows})
    both = list(itertools.product(good, bad))
    met = random.Random(record["number"]).sample(both, min(len(both), PAIRS))
    how = {name: record[name] for name in ("check", "prompt")}
    return [how | {"chosen": chosen, "rejected": rejected} for chosen, rejected in met]


def main():
    SAID.parent.mkdir(exist_ok=True)
    there = {json.loads(line)["number"] for line in SAID.open()} if SAID.exists() else set()
    rows = [(i, row) for i, row in enumerate(tasks.load("chat")) if row["check"]]
    rows.sort(
        key=lambda pair: len(pair[1]["messages"][0]["content"])
    )  # alike in length: less padding
    answer([pair for pair in rows if pair[0] not in there])
    records = sorted(map(json.loads, SAID.open()), key=lambda record: record["number"])
    made = [pair for record in records for pair in pairs(record)]
    text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in made)
    OUT.write_text(text, encoding="utf-8")
    share = [follows for r in records for _, _, follows in r["answers"]]
    print(
        f"{len(made)} pairs of {len({p['prompt'] for p in made})} instructions of {len(records)};"
    )
    print(f"{sum(share) / len(share):.1%} of {len(share)} answers follow their constraint")


if __name__ == "__main__":
    main()
