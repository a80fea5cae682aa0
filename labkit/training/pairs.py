"""Batch preference pairs for DPO."""

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from labkit.training import hardware, loop, packing


def batches(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, steps: int, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Make `steps` batches of `size` pairs, drawn by `loop.drawn`.

    `pairs` has the columns `prompt`, `chosen` and `rejected`, lists of messages. In a batch, the
    chosen answers come first, then the rejected answers in the same order.
    """
    made = []
    for some in loop.drawn(pairs.to_list(), size, steps, seed):
        texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in some]
        batch = packing.padded([loop.encode(tokenizer, messages) for messages in texts])
        made.append({name: values.to(hardware.device()) for name, values in batch.items()})
    return made
