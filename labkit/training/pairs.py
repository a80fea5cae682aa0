"""Preference pairs as batches for DPO."""

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from labkit.training import hardware, loop, packing


def batches(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, steps: int, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """`steps` batches of `size` pairs, drawn as `loop.drawn` does.

    `pairs` has the columns `prompt`, `chosen` and `rejected`, lists of messages. In a batch the
    rows of the chosen answers come first, then the rejected ones in the same order.
    """
    made = []
    for some in loop.drawn(pairs.to_list(), size, steps, seed):
        texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in some]
        batch = packing.padded([loop.encode(tokenizer, messages) for messages in texts])
        made.append({name: values.to(hardware.device()) for name, values in batch.items()})
    return made
