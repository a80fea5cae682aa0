"""Fine-tune for the 48-ticket case study of lab 5: zero-shot, LoRA, QLoRA, full fine-tuning.

    python benchmarks/tickets_study.py lora --seed 0

One run an invocation, several minutes each on two cores. Its answers to the 288 test tickets
become a column of labkit/measured/ticket_answers.csv, its settings and figures a row of
labkit/measured/tickets.csv. A run whose row is there is not repeated.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from bitsandbytes import functional
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from labkit import tasks
from labkit.tasks import tickets
from labkit.training import generation, lean, models

FOLDER = Path(__file__).parents[1] / "labkit" / "measured"
RATES = {"lora": 2e-3, "qlora": 2e-3, "full": 2e-4}
STEPS, BATCH, RANK = 120, 8, 16  # one pass through the 960 tickets


class Clock(TrainerCallback):
    """Notes the seconds of each step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.begun)


def base(method):
    """Model and tokenizer: fp32 for full, bf16 otherwise; for qlora with the values of NF4."""
    model, tokenizer = models.load(dtype=torch.float32 if method == "full" else torch.bfloat16)
    if method == "qlora":
        for module in model.get_decoder().modules():
            if isinstance(module, torch.nn.Linear):
                round_to_nf4_(module.weight.data)
    return model, tokenizer


@torch.no_grad()
def round_to_nf4_(weight):
    """Quantise to NF4 with double quantisation and back, in place, as bitsandbytes does.

    A forward pass on these weights is QLoRA's, which dequantises at every step: on a CPU that
    takes many times as long. The memory is not saved here, and no memory is reported.
    """
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    weight.copy_(functional.dequantize_4bit(packed, state))


def trainer_of(method, seed, steps=STEPS):
    """The trainer of a run, not yet started, and its tokenizer."""
    model, tokenizer = base(method)
    torch.manual_seed(seed)  # the draw of A
    config = None
    if method != "full":
        config = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    args = SFTConfig(
        output_dir="build/tickets",
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATES[method],
        seed=seed,
        use_cpu=True,
        bf16=method == "full",
        report_to="none",
    )
    return lean.lean_trainer(model, tokenizer, tasks.load("tickets"), config, args), tokenizer


def tuned(method, seed):
    """A trained model with its tokenizer, losses and median seconds a step."""
    trainer, tokenizer = trainer_of(method, seed)
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model.eval(), tokenizer, losses, statistics.median(clock.seconds)


def study(method, seed):
    """Answers to every test ticket, and the row of figures."""
    test = tasks.load("tickets", "test")
    asked, losses, seconds = test["messages"], [], float("nan")
    if method == "zero-shot":
        model, tokenizer = base(method)
        asked = [tickets.zero_shot(text) for text in test["text"]]
    else:
        model, tokenizer, losses, seconds = tuned(method, seed)
    answers = generation.answers(model, tokenizer, asked, max_new_tokens=10)
    answers = [" ".join(answer.split())[:40] for answer in answers]
    row = {
        "method": method,
        "seed": seed,
        "learning_rate": RATES.get(method),
        "steps": len(losses),
        "accuracy": tickets.accuracy(answers, test),
        "first_losses": " ".join(f"{loss:.3f}" for loss in losses[:30]),
        "last_loss": round(sum(losses[-10:]) / 10, 4) if losses else float("nan"),
        "seconds_a_step": round(seconds, 2),
    }
    return answers, row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=["zero-shot", *RATES])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    models.hush_libraries()
    rows, answers = FOLDER / "tickets.csv", FOLDER / "ticket_answers.csv"
    known = pd.read_csv(rows) if rows.exists() else pd.DataFrame(columns=["method", "seed"])
    if ((known["method"] == options.method) & (known["seed"] == options.seed)).any():
        print("this run's row is there already")
        return
    told, row = study(options.method, options.seed)
    print(row, flush=True)
    known = pd.read_csv(rows) if rows.exists() else pd.DataFrame()  # another run may have ended
    pd.concat([known, pd.DataFrame([row])]).to_csv(rows, index=False, na_rep="nan")
    columns = pd.read_csv(answers, keep_default_na=False) if answers.exists() else pd.DataFrame()
    columns[f"{options.method} {options.seed}"] = told
    columns.to_csv(answers, index=False)


if __name__ == "__main__":
    main()
