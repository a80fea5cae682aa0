"""A plain training loop for a CPU: packed rows, logits only at answers, suitable precision.

`benchmarks/train_step.py` compares a step with SFTTrainer's: the losses are equal.
"""

import functools
import random
from collections.abc import Iterable, Iterator, Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.data.tokens import learned
from labkit.training import fast, packing
from labkit.training.hardware import precision, rehearsed

Batch = dict[str, torch.Tensor]  # as `packing.pack` makes them


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> dict[str, list[int]]:
    """Encode a conversation as `input_ids` and `labels` of equal length; prompts have no labels.

    ValueError if the last message, which is the answer, is not the assistant's.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last message must be the assistant's: the model learns it")
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    prompt = prompt_ids(tokenizer, messages)
    return {"input_ids": ids, "labels": [packing.IGNORED] * len(prompt) + ids[len(prompt) :]}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    """The tokens after which the model answers; a trailing answer is dropped."""
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    found = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    return found["input_ids"]


def batches(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, steps: int, seed: int = 0
) -> Iterator[Batch]:
    """Yield `steps` batches of `size` conversations, `drawn` from the data, encoded on demand."""
    messages = dataset["messages"]
    row = functools.cache(lambda i: encode(tokenizer, messages[i]))
    places = drawn(range(len(messages)), size, steps, seed)
    return (packing.pack([row(i) for i in some]) for some in places)


def drawn(rows: Sequence, size: int, steps: int, seed: int = 0) -> Iterator[list]:
    """Yield `size` rows, `steps` times, reshuffled in each epoch; fewer in a rehearsal."""
    size, rng, queue = min(rehearsed("rows", size), len(rows)), random.Random(seed), []
    for _ in range(rehearsed("steps", steps)):
        if len(queue) < size:
            queue = rng.sample(rows, len(rows))
        yield [queue.pop() for _ in range(size)]


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(k, vocab)` and targets `(k,)` at the k answer tokens of a packed batch.

    If prompts were included, the head would take a fifth of a step: SmolLM2's has 49,152 columns.
    """
    hidden, head, targets = before_head(model, batch)
    return head(hidden), targets


def summed_loss(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, int]:
    """Sum the cross-entropy (nats) over a packed batch's answer tokens; return sum and count."""
    hidden, head, targets = before_head(model, batch)
    return fast.summed_loss(hidden, head, targets), len(targets)


def before_head(
    model: PreTrainedModel, batch: Batch
) -> tuple[torch.Tensor, torch.nn.Module, torch.Tensor]:
    """Hidden states `(k, d)` before a packed batch's k answer tokens, the head, and the tokens."""
    base = packing.base_of(model)
    hidden, targets = hidden_states(base, batch)[:-1], batch["labels"][0, 1:].to(base.device)
    answers = targets != packing.IGNORED
    return hidden[answers], base.get_output_embeddings(), targets[answers]


def hidden_states(base: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Compute the last hidden states `(N, d)` of a packed batch, on the model's device."""
    batch = {key: value.to(base.device) for key, value in batch.items()}
    with fast.layers(base):
        return packing.hidden_states(base.get_decoder(), batch)[0]


def answer_loss(model: PreTrainedModel, batch: Batch, autocast: bool | None = None) -> torch.Tensor:
    """Compute the mean cross-entropy (nats per token) of the answer tokens, a scalar tensor.

    An fp32 model (needed for full fine-tuning, since bf16 loses small updates) still multiplies in
    bf16 if the hardware supports that, unless `autocast=False`.
    """
    kind = model.device.type
    if autocast is None:
        autocast = model.dtype == torch.float32 and precision(kind) == torch.bfloat16
    with torch.autocast(kind, torch.bfloat16, enabled=autocast):
        total, count = summed_loss(model, batch)
    return total / count


def train(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    steps: int,
    learning_rate: float,
    make: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Iterator[float]:
    """Train all parameters that require grad in place; yield each step's loss in nats per token.

    This is lab 2's loop: no weight decay, linear decay of the rate to zero, clipping at 1.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = make(trainable, lr=learning_rate, weight_decay=0.0)
    model.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        loss = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def by_length(
    tokenizer: PreTrainedTokenizerBase, dataset: Dataset, size: int
) -> Iterator[tuple[Batch, list[int]]]:
    """Yield batches of `size` conversations, shortest first, and each answer's token count."""
    conversations = dataset["messages"][: rehearsed("rows", len(dataset))]
    rows = [encode(tokenizer, messages) for messages in conversations]
    rows.sort(key=lambda row: len(row["input_ids"]))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield packing.pack(part), [len(learned(row["labels"])) for row in part]


@torch.no_grad()
def held_out_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    size: int = 32,
    autocast: bool | None = None,
) -> float:
    """Mean loss (nats per answer token) in eval mode; `autocast` as in `answer_loss`."""
    was_training = model.training
    model.eval()
    total = count = 0
    for batch, lengths in by_length(tokenizer, dataset, size):
        total += answer_loss(model, batch, autocast).item() * sum(lengths)
        count += sum(lengths)
    model.train(was_training)
    return total / count
