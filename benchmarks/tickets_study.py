"""Compare methods for lab 5's 48-ticket case study, from counting words to full fine-tuning.

    python benchmarks/tickets_study.py cheap
    python benchmarks/tickets_study.py lora --seed 1 --rate 1e-3
    python benchmarks/tickets_study.py all --runs 1

Each run is a row of labkit/measured/tickets.csv. Finished runs are not repeated, so the script can
be stopped and called again. `cheap` runs the classifiers that need no language model, in seconds
each. `all` continues with missing runs of the trained methods, with three rates and three seeds
each, the middle rate and the first seed first. At one step per second, a LoRA run takes two minutes
on two cores.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import short
import studies
import torch
from transformers import PrinterCallback, TrainerCallback

from labkit import tasks
from labkit.tasks import tickets
from labkit.training import checkpoints, generation, hardware, lean, models
from labkit.training.arguments import lora

FOLDER = Path(__file__).parents[1] / "labkit" / "measured"
# the middle one first; the two others lie a half decade away
RATES = {
    "lora": (2e-3, 6e-4, 6e-3),
    "qlora": (2e-3, 6e-4, 6e-3),
    "full": (2e-4, 6e-5, 6e-4),
}
PROMPTED = ("zero-shot", "few-shot")
CHEAP = ("linear TF-IDF", "linear on characters")
STEPS, BATCH, RANK = 120, 8, 16  # one pass through the 960 tickets


class Clock(TrainerCallback):
    """Notes the seconds of each step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.begun)


def dtype():
    """What the machine multiplies in fast: a row says which it was."""
    return hardware.weights("cpu")


def base(method):
    """Model and tokenizer: fp32 for full, else as `dtype`; for qlora with the values of NF4."""
    model, tokenizer = models.load(dtype=torch.float32 if method == "full" else dtype())
    if method == "qlora":
        for module in model.get_decoder().modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = studies.nf4(module.weight.data, double_quant=True)
    return model, tokenizer


def trainer_of(method, seed, rate):
    """The trainer of a run, not yet started, and its tokenizer."""
    model, tokenizer = base(method)
    torch.manual_seed(seed)  # the draw of A
    full = method == "full"
    config = None if full else lora(RANK, 2 * RANK)
    wide = full and dtype() == torch.bfloat16
    args = short.arguments(rate, seed, STEPS, BATCH, use_cpu=True, bf16=wide)
    return lean.lean_trainer(model, tokenizer, tasks.load("tickets"), config, args), tokenizer


def tuned(method, seed, rate):
    """A trained model with its tokenizer, losses and median seconds a step."""
    trainer, tokenizer = trainer_of(method, seed, rate)
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    losses = checkpoints.losses(trainer.state.log_history)
    return trainer.model.eval(), tokenizer, losses, statistics.median(clock.seconds)


def few_shot(texts, train):
    """Messages that show one ticket of each category, the training split's first, as a talk."""
    shown = {row["category"]: row for row in reversed(list(train))}
    system = {"role": "system", "content": tickets.SYSTEM}
    talk = [message for row in shown.values() for message in row["messages"][1:]]
    asked = [f"{tickets.QUESTION}\n{text}" for text in texts]
    return [[system, *talk, {"role": "user", "content": text}] for text in asked]


def prompted(method, test):
    """The base model's answers to a prompt that names the categories or shows one of each."""
    model, tokenizer = base(method)
    if method == "zero-shot":
        asked = [tickets.zero_shot(text) for text in test["text"]]
    else:
        asked = few_shot(test["text"], tasks.load("tickets"))
    size = 64 if method == "zero-shot" else 16  # what was read of the examples is kept for each row
    return generation.answers(model, tokenizer, asked, max_new_tokens=10, batch_size=size)


def classified(method, test):
    """Categories from counted words or characters, and the numbers that the classifier keeps."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    characters = {"analyzer": "char_wb", "ngram_range": (2, 5)} if "char" in method else {}
    vectors = TfidfVectorizer(sublinear_tf=True, **characters)
    train = tasks.load("tickets")
    pipe = make_pipeline(vectors, LogisticRegression(C=10, max_iter=2000))
    pipe.fit(train["text"], train["category"])
    kept = len(vectors.vocabulary_) * len(tickets.CATEGORIES)
    return pipe.predict(test["text"]).tolist(), kept


def study(method, seed, rate):
    """The row of a run."""
    test, begun = tasks.load("tickets", "test"), time.perf_counter()
    losses, a_step, numbers = [], float("nan"), 0
    if method in CHEAP:
        answers, numbers = classified(method, test)
    elif method in PROMPTED:
        answers = prompted(method, test)
    else:
        model, tokenizer, losses, a_step = tuned(method, seed, rate)
        numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
        answers = generation.answers(model, tokenizer, test["messages"], max_new_tokens=10)
    answers = [" ".join(answer.split())[:40] for answer in answers]
    return {
        "method": method,
        "seed": seed,
        "learning_rate": rate,
        "steps": len(losses),
        "accuracy": tickets.accuracy(answers, test),
        "first_losses": " ".join(f"{loss:.3f}" for loss in losses[:30]),
        "last_loss": round(sum(losses[-10:]) / 10, 4) if losses else float("nan"),
        "seconds_a_step": round(a_step, 2),
        "numbers": numbers,
        "dtype": "" if method in CHEAP else str(dtype()).removeprefix("torch."),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def every_run():
    """(method, seed, rate) of the trained methods: middle rates first, and the first seed."""
    for seed, place in [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]:
        for method, rates in RATES.items():
            yield method, seed, rates[place]


def wanted(options):
    """The runs that the command asks for."""
    if options.method == "all":
        return every_run()
    if options.method == "cheap":
        return [(method, 0, float("nan")) for method in CHEAP]
    rate = options.rate or RATES.get(options.method, (float("nan"),))[0]
    return [(options.method, options.seed, rate)]


def there(method, seed, rate):
    """Whether the run's row is in the file."""
    rows = FOLDER / "tickets.csv"
    if not rows.exists():
        return False
    known = pd.read_csv(rows)
    same = known[(known["method"] == method) & (known["seed"] == seed)]
    return bool((same["learning_rate"].fillna(0) == (0 if rate != rate else rate)).any())


def add(row):
    """Add a run's row."""
    rows = FOLDER / "tickets.csv"
    known = pd.read_csv(rows) if rows.exists() else pd.DataFrame()  # another run may have ended
    pd.concat([known, pd.DataFrame([row])]).to_csv(rows, index=False, na_rep="nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=[*PROMPTED, *CHEAP, *RATES, "cheap", "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, help="learning rate; the middle one by default")
    parser.add_argument("--runs", type=int, default=100, help="at most so many")
    options = parser.parse_args()
    models.hush_libraries()
    runs = [run for run in wanted(options) if not there(*run)]
    for run in runs[: options.runs]:
        row = study(*run)
        print(row, flush=True)
        add(row)


if __name__ == "__main__":
    main()
