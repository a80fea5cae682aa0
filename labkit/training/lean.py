"""Make TRL's SFTTrainer fast on a CPU, as `finetune` runs it.

Batches have no padding and contain their common prefix once. Logits are computed only at answers,
nothing is checkpointed, and weights keep the model's precision. Rows, row order, optimizer,
schedule, clipping and loss are TRL's (`benchmarks/train_step.py` compares the two trainers).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from labkit.training import fast, hardware, loop, packing


def lean_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    peft_config: LoraConfig,
    args: SFTConfig,
    kind: type[SFTTrainer] | None = None,
    collator: Callable = packing.pack,
) -> SFTTrainer:
    """Make a trainer, by default `finetune`'s, not yet started; changes `model` in place."""
    chosen = settings(args, model)
    with packing.own_forward(model):  # SFTTrainer's would keep the model in memory
        trainer = (kind or LeanTrainer)(
            model=model,
            args=chosen,
            train_dataset=_rows(dataset, tokenizer),
            data_collator=collator,
            processing_class=tokenizer,
            peft_config=copy.deepcopy(peft_config),  # PEFT writes into it
        )
    if chosen.fp16:  # its gradient scaler needs fp32; TRL makes QLoRA's adapters bf16
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


class LeanTrainer(SFTTrainer):
    """SFTTrainer on batches from `packing.pack`: the same loss with less work."""

    def train(self, *args, **options):
        """Train as Trainer does, while the base model's forward returns `loop.summed_loss`."""
        base = packing.base_of(self.model)
        with packing.own_forward(base), fast.dropouts(self.model):
            base.forward = partial(_summed_loss, base)
            return super().train(*args, **options)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum the answer tokens' losses and divide by their count in all accumulated batches.

        Calls `model` itself, since its wrapper may autocast or sum gradients over processes.
        """
        if return_outputs:
            raise NotImplementedError("LeanTrainer computes no prompt logits to return")
        total, count = model(**inputs)
        return mean_loss(self, total, count, num_items_in_batch)


def mean_loss(
    trainer: SFTTrainer, total: torch.Tensor, count: int, of_all: int | torch.Tensor | None
) -> torch.Tensor:
    """Divide a batch's summed loss by its `count` of learned tokens, or by `of_all`.

    `of_all` is Trainer's count for an accumulated step over all processes, whose gradients are
    averaged.
    """
    if of_all is None:
        return total / count
    shared = trainer.args.average_tokens_across_devices
    return total / of_all * (trainer.accelerator.num_processes if shared else 1)


def _summed_loss(base, rows=None, **batch):
    """Use `loop.summed_loss` as the base model's forward; drops None arguments added by PEFT."""
    batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return loop.summed_loss(base, batch | {"rows": rows})


def settings(args: SFTConfig, model: PreTrainedModel) -> SFTConfig:
    """Copy an SFTConfig with the settings that `finetune` fixes."""
    known = {field.name for field in fields(args)}
    checkpointing = {"gradient_checkpointing", "activation_checkpointing"} & known
    return replace(
        args,
        max_steps=hardware.rehearsed("steps", args.max_steps),
        **dict.fromkeys(checkpointing, False),
        **mixed_precision(args, model),
        use_cpu=model.device.type == "cpu",
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def mixed_precision(args: SFTConfig, model: PreTrainedModel) -> dict[str, bool]:
    """Choose SFTConfig's `bf16` and `fp16` for `model`, whose weights keep their precision.

    Autocast helps only with fp32 weights, and only in a dtype that the hardware supports. fp16
    weights need the gradient scaler of `fp16=True`.
    """
    kind, whole = hardware.precision(model.device.type), model.dtype == torch.float32
    return {
        "bf16": bool(args.bf16) and whole and kind == torch.bfloat16,
        "fp16": model.dtype == torch.float16
        or (bool(args.fp16) and whole and kind == torch.float16),
    }


def _rows(dataset, tokenizer):
    """Encode conversations as ids and labels; TRL prepares prompt-completion datasets itself."""
    if "messages" not in dataset.column_names:
        return dataset
    return Dataset.from_list([loop.encode(tokenizer, m) for m in dataset["messages"]])
