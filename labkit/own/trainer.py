"""Make a trainer for a file: the course's lean trainer if packing is exact, else TRL's."""

import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from labkit.memory.adapted import MAMBA
from labkit.training import arguments, lean, loop, packing

SECONDS = 10  # between lines of progress when stderr is a file


def trainer_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    rank: int,
    args: SFTConfig,
) -> SFTTrainer:
    """Make a trainer for a LoRA on rows of `input_ids` and `labels`, not yet started."""
    torch.manual_seed(args.seed)  # for the adapter's init; `args.seed` orders the rows
    # PEFT refuses these two in Mamba models, whose kernels read the weights and bypass adapters
    spared = ["out_proj", "conv1d"] if model.config.model_type in MAMBA else None
    lora = arguments.lora(rank, 2 * rank, exclude_modules=spared)
    dataset = Dataset.from_list(rows)
    how = ()
    if not packs(model, rows):
        how = PaddedTrainer, partial(packing.padded, pad=tokenizer.pad_token_id or 0)
    made = lean.lean_trainer(model, tokenizer, dataset, lora, args, *how)
    made.add_callback(Steps(made.accelerator.is_main_process))
    return made


class PaddedTrainer(SFTTrainer):
    """SFTTrainer on padded rows of any causal LM, with loss only on the learned tokens.

    SFTTrainer's own loss also computes the softmax and entropy of all prompts, which is slow.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum the learned tokens' losses and divide by their count in all accumulated batches."""
        logits, targets = _at_learned(model, inputs)
        total = F.cross_entropy(logits.float(), targets, reduction="sum")
        return lean.mean_loss(self, total, len(targets), num_items_in_batch)


@torch.no_grad()
def packs(model: PreTrainedModel, rows: list[dict]) -> bool:
    """Whether packing leaves the model's logits unchanged, tested on the two extreme lengths."""
    by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
    tested = [by_length[0], by_length[-1]]
    try:
        packed, _ = loop.answer_logits(model, packing.pack(tested))
    except Exception:  # each model without plain attention fails in its own way
        return False
    wanted, _ = padded_logits(model, tested)
    near = 1e-3 if model.dtype == torch.float32 else 3e-2
    return packed.shape == wanted.shape and bool((packed - wanted).norm() < near * wanted.norm())


def padded_logits(model: PreTrainedModel, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(k, vocab)` and targets `(k,)` at the k learned tokens of padded rows."""
    batch = packing.padded(rows)
    return _at_learned(model, {name: values.to(model.device) for name, values in batch.items()})


def _at_learned(model, batch):
    """Logits and targets at the learned tokens of a padded batch."""
    labels = batch["labels"][:, 1:]
    at = labels != packing.IGNORED
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits[:, :-1][at], labels[at]


class Steps(TrainerCallback):
    """Print progress and the time left."""

    def __init__(self, speaks: bool):
        self.speaks, self.first, self.begun, self.last_line = speaks, 0, 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.first, self.begun = state.global_step, time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        now, step, last = time.monotonic(), state.global_step, state.max_steps
        live = sys.stderr.isatty()
        due = live or step in (self.first + 1, last) or now - self.last_line > SECONDS
        if "loss" not in logs or not self.speaks or not due:
            return
        self.last_line = now
        left = (now - self.begun) / max(1, step - self.first) * (last - step)
        line = f"step {step}/{last} · loss {logs['loss']:.3f} · about {_span(left)} left"
        print(f"\r{line:<60}" if live else line, end="" if live and step < last else "\n",
              file=sys.stderr, flush=True)  # fmt: skip


def _span(seconds):
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
