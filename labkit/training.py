"""Training on a CPU without waste: shared prefixes once, logits where answers are, right precision.

One step on 16 `home` commands costs about a quarter of a default SFTTrainer step on two cores
(`benchmarks/train_step.py`); the loss is the same number.
"""

import inspect
import random

import torch
import torch.nn.functional as F

from labkit.models import precision

IGNORED = -100  # the label of a token that is no part of the answer


def encode(tokenizer, messages):
    """A conversation as `input_ids` and `labels`, equally long lists; prompts have no labels.

    The last message is the answer. Raises ValueError when it is not the assistant's.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last message must be the assistant's: it is what is learned")
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]}


def collate(rows, pad_id=0):
    """Encoded rows -> a batch: `prefix_ids (1, p)` common to all, the rest `(b, n)` padded right.

    The p leading prompt tokens that every row shares (a system message) are computed once a batch.
    `attention_mask` is `(b, p + n)`.
    """
    p = _shared_prefix(rows)
    tails = [{key: row[key][p:] for key in ("input_ids", "labels")} for row in rows]
    n = max(len(tail["input_ids"]) for tail in tails)

    def padded(key, fill):
        return torch.tensor([tail[key] + [fill] * (n - len(tail[key])) for tail in tails])

    lengths = torch.tensor([p + len(tail["input_ids"]) for tail in tails])
    return {
        "prefix_ids": torch.tensor([rows[0]["input_ids"][:p]], dtype=torch.long),
        "input_ids": padded("input_ids", pad_id),
        "labels": padded("labels", IGNORED),
        "attention_mask": (torch.arange(p + n) < lengths[:, None]).long(),
    }


def _shared_prefix(rows):
    """How many leading tokens all rows share; it ends before the last token of any prompt."""
    ids = [row["input_ids"] for row in rows]
    prompts = [next((i for i, y in enumerate(row["labels"]) if y != IGNORED), 0) for row in rows]
    columns = zip(*ids, strict=False)
    same = next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, ids)))
    return max(0, min(same, min(prompts) - 1)) if len(rows) > 1 else 0


def batches(dataset, tokenizer, size, steps, seed=0):
    """Yield `steps` batches of `size` conversations, in a new order each time through the data.

    A batch holds examples of similar length, so little of it is padding: 1.3x faster on `home`.
    """
    rows = [encode(tokenizer, messages) for messages in dataset["messages"]]
    rng, queue = random.Random(seed), []
    for _ in range(steps):
        queue = queue or _epoch(rows, min(size, len(rows)), rng)
        yield collate(queue.pop(), tokenizer.pad_token_id)


def _epoch(rows, size, rng):
    """All full batches of one pass in random order, each sorted out of a pool of eight batches."""
    order, grouped = rng.sample(rows, len(rows)), []
    for start in range(0, len(order), 8 * size):
        pool = sorted(order[start : start + 8 * size], key=lambda row: len(row["input_ids"]))
        grouped += [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
    rng.shuffle(grouped)
    return grouped


def answer_logits(model, batch):
    """Logits `(k, vocab)` and targets `(k,)` at the k answer tokens of `batch`, nowhere else.

    The head is the widest product of a small model: 49,152 columns in SmolLM2, a fifth of a step
    when it is computed for prompts and padding too.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    batch = {key: value.to(base.device) for key, value in batch.items()}
    decoder, cache = base.get_decoder(), {}
    if batch["prefix_ids"].shape[1]:
        past = decoder(batch["prefix_ids"], use_cache=True).past_key_values
        past.batch_repeat_interleave(len(batch["input_ids"]))
        cache = {_cache_name(decoder): past}
    hidden = decoder(
        batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=bool(cache), **cache
    ).last_hidden_state  # (b, n, d)
    targets = batch["labels"][:, 1:]
    asked = targets != IGNORED
    return base.get_output_embeddings()(hidden[:, :-1][asked]), targets[asked]


def _cache_name(decoder):
    """transformers renames `past_key_values` to `cache`: the name this version takes."""
    known = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def answer_loss(model, batch, autocast=None):
    """Mean cross-entropy (nats a token) over the answer tokens of `batch`, a scalar tensor.

    A model kept in fp32 (full fine-tuning needs it: bf16 swallows small updates) still multiplies
    in bf16 where the hardware does, unless `autocast=False`.
    """
    kind = model.device.type
    if autocast is None:
        autocast = model.dtype == torch.float32 and precision(kind) == torch.bfloat16
    with torch.autocast(kind, torch.bfloat16, enabled=autocast):
        logits, targets = answer_logits(model, batch)
    return F.cross_entropy(logits.float(), targets)


@torch.no_grad()
def held_out_loss(model, tokenizer, dataset, size=32):
    """Mean loss (nats a token) over every answer token of `dataset`, in eval mode."""
    was_training = model.training
    model.eval()
    rows = [encode(tokenizer, messages) for messages in dataset["messages"]]
    rows.sort(key=lambda row: len(row["input_ids"]))
    total = count = 0
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], tokenizer.pad_token_id)
        tokens = int((batch["labels"] != IGNORED).sum())
        total += answer_loss(model, batch).item() * tokens
        count += tokens
    model.train(was_training)
    return total / count


def bytes_held(model, optimizer):
    """What stays in memory from step to step: bytes of weights, gradients and optimizer states.

    Gradients are counted where a parameter trains, whether or not they are set at the moment.
    """
    params = list(model.parameters())
    states = [t for state in optimizer.state.values() for t in state.values()]
    return {
        "weights": sum(p.nbytes for p in params),
        "gradients": sum(p.nbytes for p in params if p.requires_grad),
        "optimizer": sum(t.nbytes for t in states if isinstance(t, torch.Tensor)),
    }
