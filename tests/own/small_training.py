"""A tiny model in a folder, and a file to train it on; what the tests and `killed.py` share."""

import json
import random

from labkit.probes import tiny


def write_model(folder, seed=0, dropout=0.0):
    """A folder with a random Llama of two layers and its tokenizer, which has no chat template."""
    model, tokenizer = tiny.language_model(seed)
    model.config.attention_dropout = dropout
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.repetition_penalty = 3.0  # no course answer uses it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(file, n=60, seed=0):
    """n questions of the tokenizer's words, each with one of three answers."""
    rng = random.Random(seed)
    rows, seen = [], set()
    while len(rows) < n:
        question = " ".join(rng.choices(tiny.WORDS[:12], k=rng.randint(4, 9)))
        if question not in seen:
            seen.add(question)
            rows.append({"question": question, "answer": ("on", "off", "blue now")[len(rows) % 3]})
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return file
