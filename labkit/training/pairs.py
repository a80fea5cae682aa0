"""Preference pairs as batches: what DPO needs besides a loss."""

import random

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from labkit.training import hardware, loop, packing


def batches(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, steps: int, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """`steps` batches of `size` pairs, shuffled anew each time through the data.

    `pairs` has the columns `prompt`, `chosen` and `rejected`, lists of messages. In a batch the
    chosen answers' rows come first, then the rejected ones', in the same order. A few batches in a
    rehearsal.
    """
    rows, rng, queue, made = pairs.to_list(), random.Random(seed), [], []
    size = min(size, len(rows))
    for _ in range(hardware.rehearsed("steps", steps)):
        if len(queue) < size:
            queue = rng.sample(rows, len(rows))
        some = [queue.pop() for _ in range(size)]
        texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in some]
        made.append(padded([loop.encode(tokenizer, messages) for messages in texts]))
    return made


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows of `input_ids` and `labels` -> `(b, n)` tensors of these and of `attention_mask`.

    Padding stands on the right; it is not attended to and has no labels.
    """
    filled = {"input_ids": 0, "labels": packing.IGNORED}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value
        )
        for name, value in filled.items()
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    seen = torch.arange(batch["labels"].shape[1]) < lengths[:, None]
    batch["attention_mask"] = seen.long()
    return {name: values.to(hardware.device()) for name, values in batch.items()}
