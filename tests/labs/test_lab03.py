"""Lab 3's checks: right answers written differently, and wrong ones that no row expresses."""

import copy
import math
import textwrap
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from torch.utils.checkpoint import checkpoint
from trl import SFTConfig, SFTTrainer

from labkit.checks import lab03 as check

# --- 3.1 -----------------------------------------------------------------------------------


def lora_of(**changes):
    fields = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
    return LoraConfig(**fields | {"task_type": "CAUSAL_LM"} | changes)


def run(model, tokenizer, data, output_dir, rate, lora="", **changes):
    """Most settings are TRL's: checkpointing is on, and so are progress bars."""
    settings = {"learning_rate": rate, "num_train_epochs": 1, "bf16": False} | changes
    parts = {"args": SFTConfig(output_dir=output_dir, **settings), "processing_class": tokenizer}
    lora = lora_of() if lora == "" else lora
    trainer = SFTTrainer(model, train_dataset=data, peft_config=lora, **parts)
    trainer.train()
    trainer.save_model(output_dir)
    return trainer


def train_plainly(model, tokenizer, rows, *rest, split=lambda m: (m[:-1], m[-1:]), **changes):
    pairs = [dict(zip(("prompt", "completion"), split(m), strict=True)) for m in rows["messages"]]
    return run(model, tokenizer, Dataset.from_list(pairs), *rest, **changes)


train_never = mock.patch.object(SFTTrainer, "train", str)(train_plainly)
train_unsaved = mock.patch.object(SFTTrainer, "save_model", lambda *_, **__: None)(train_plainly)


def train_in_halves(*data):
    """Batches of 8 as two of 4."""
    return train_plainly(*data, per_device_train_batch_size=4, gradient_accumulation_steps=2)


def train_wrapped(model, tokenizer, rows, output_dir, rate):
    """The model has LoRA before the trainer gets it; steps, not epochs; another schedule."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = lora_of(target_modules=names, task_type=TaskType.CAUSAL_LM, lora_alpha=32.0)
    more = {"lr_scheduler_type": "cosine", "warmup_steps": 1, "max_length": None}
    more |= {"max_steps": math.ceil(len(rows) / 8), "lora": None}
    trainer = train_plainly(get_peft_model(model, lora), tokenizer, rows, "other", rate, **more)
    trainer.model.save_pretrained(output_dir)
    return trainer


def train_on_ids(model, tokenizer, rows, *rest, last=None):
    """Tokenized by hand: input_ids and labels."""
    data, template = [], partial(tokenizer.apply_chat_template, return_dict=False)
    for messages in rows["messages"]:
        prompt, ids = template(messages[:-1], add_generation_prompt=True), template(messages)
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        data.append({"input_ids": ids[:last], "labels": labels[:last]})
    return run(model, tokenizer, Dataset.from_list(data), *rest)


# --- 3.2 to 3.4 ----------------------------------------------------------------------------


def labels_in_loop(input_ids, attention_mask, prompt_lengths):
    labels = input_ids.clone()
    labels[attention_mask == 0] = -100
    for row in range(len(labels)):
        first = int(attention_mask[row].argmax())
        labels[row, first : first + int(prompt_lengths[row])] = -100
    return labels


def labels_by_index(input_ids, attention_mask, prompt_lengths):
    n = input_ids.shape[1]
    first = (attention_mask.cumsum(1) == 0).sum(1)  # padding on the left
    last = n - (attention_mask.flip(1).cumsum(1) == 0).sum(1)
    places = torch.arange(n).expand_as(input_ids)
    learned = (places >= (first + prompt_lengths)[:, None]) & (places < last[:, None])
    return torch.where(learned, input_ids, torch.full_like(input_ids, -100))


def render_from_dict(messages, tokenizer):
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return found["input_ids"]


def render_in_two_steps(messages, tokenizer):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def render_without_doubles(messages, tokenizer):
    """The given code, with both bugs fixed by hand."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    return ids[1:] if ids[:2] == 2 * [tokenizer.bos_token_id] else ids


def fit_by_room(prompt_ids, answer_ids, max_length):
    answer_ids = answer_ids[:max_length]
    room = max_length - len(answer_ids)
    prompt_ids = prompt_ids[-room:] if room else []
    return [*prompt_ids, *answer_ids], [-100 for _ in prompt_ids] + answer_ids


# --- 3.5 -----------------------------------------------------------------------------------


def checkpointing_by_lambda(model):
    for block in model.base_model.model.model.layers:
        inner = block.forward
        block.forward = lambda *args, inner=inner, **more: checkpoint(
            inner, *args, use_reentrant=False, **more
        )
    return model


def checkpointing_with_grads(model):
    """Reentrant, as the hunt begins."""

    def again(forward, x, **options):
        return checkpoint(partial(forward, **options), x, use_reentrant=True)

    for block in model.get_base_model().model.layers:
        block.forward = partial(again, block.forward)
    model.enable_input_require_grads()
    return model


def checkpointing_by_transformers(model):
    model.gradient_checkpointing_enable()
    return model


# --- 3.6 -----------------------------------------------------------------------------------


def _names(folder):
    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as saved:
        return set(saved.keys())


def load_and_compare(base, folder):
    model = PeftModel.from_pretrained(base, folder, adapter_name="home").train(False)
    own = get_peft_model_state_dict(model, adapter_name="home")
    assert set(own) == _names(folder), "other names"
    return model


def load_by_parts(base, folder):
    model = get_peft_model(base, PeftConfig.from_pretrained(folder))
    weights = load_peft_weights(str(folder))
    if sorted(get_peft_model_state_dict(model)) != sorted(weights):
        raise KeyError("names")
    set_peft_model_state_dict(model, weights)
    return model.eval().requires_grad_(False)


def load_by_result(base, folder):
    """PEFT says what was missing and what fits nowhere."""
    model = PeftModel(base, PeftConfig.from_pretrained(folder))
    found = model.load_adapter(folder, "default")
    if any("lora_" in key for key in [*found.missing_keys, *found.unexpected_keys]):
        raise RuntimeError(f"{found}")
    return model.requires_grad_(False).eval()


# --- 3.7 -----------------------------------------------------------------------------------


def _ids(tokenizer, text):
    return tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]


def _batch(tokenizer, texts):
    """Ids of a padded batch, and its labels."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    return batch, batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def perplexity_by_loss(model, tokenizer, texts):
    total = count = 0
    for text in texts:
        ids = _ids(tokenizer, text)
        n = ids.shape[1] - 1
        total, count = total + model(ids, labels=ids).loss.item() * n, count + n
    return math.exp(total / count)


def perplexity_in_batches(model, tokenizer, texts, size=8):
    total = count = 0
    for i in range(0, len(texts), size):
        batch, labels = _batch(tokenizer, texts[i : i + size])
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1].float().mT
        total += F.cross_entropy(logits, labels[:, 1:], reduction="sum").item()
        count += (labels[:, 1:] != -100).sum().item()
    return float(torch.tensor(total / count).exp())


def perplexity_left(model, tokenizer, texts):
    """Padded on the left, with a tokenizer of its own."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    batch, _ = _batch(tokenizer, texts)
    with torch.inference_mode():
        logp = model(**batch).logits.log_softmax(-1)[:, :-1]
    ids, keep = batch["input_ids"][:, 1:], batch["attention_mask"][:, :-1]
    picked = logp.gather(-1, ids[..., None])[..., 0]
    return math.exp(-(picked * keep).sum() / keep.sum())


RIGHT = [
    *((check.trains, f) for f in (train_in_halves, train_wrapped, train_on_ids)),
    *((check.end_trains, f) for f in (labels_in_loop, labels_by_index)),
    (check.prompt_opens_answer, render_from_dict),
    (check.prompt_opens_answer, render_in_two_steps),
    (check.prompt_opens_answer, render_without_doubles),
    (check.keeps_answer, fit_by_room),
    *((check.checkpoints, f) for f in (checkpointing_by_lambda, checkpointing_with_grads)),
    (check.checkpoints, checkpointing_by_transformers),
    *((check.loads_once, f) for f in (load_and_compare, load_by_parts, load_by_result)),
    (check.perplexity_weighs_tokens, perplexity_by_loss),
    (check.perplexity_weighs_tokens, perplexity_in_batches),
    (check.perplexity_weighs_tokens, perplexity_left),
]

# --- wrong answers, besides the rows of lab03.toml --------------------------------------------


def train_without_ends(*data):
    return train_on_ids(*data, last=-1)


def in_texts(messages):
    return "on", messages[-1]["content"]


def train_after(first, *data):
    trainer = first(*data)
    trainer.train()
    return trainer


def labels_by_the_first_row(input_ids, attention_mask, prompt_lengths):
    """Padding is where the first row has it; it may have none."""
    labels, left = input_ids.clone(), bool(attention_mask[0, 0] == 0)
    for row, mask, length in zip(labels, attention_mask, prompt_lengths, strict=True):
        start = int((mask == 0).sum()) if left else 0
        row[mask == 0] = -100
        row[start : start + int(length)] = -100
    return labels


def render_with_own_template(messages, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    return render_in_two_steps(messages, tokenizer)


def checkpointing_that_calls_itself(model):
    def again(*args, **more):
        return checkpoint(block.forward, *args, use_reentrant=False, **more)

    for block in model.get_base_model().model.layers:
        block.forward = again
    return model


def checkpointing_of_the_mlp(model):
    for block in model.get_base_model().model.layers:
        block.mlp.forward = partial(checkpoint, block.mlp.forward, use_reentrant=False)
    return model


def load_by_other_names(base, folder):
    model = PeftModel.from_pretrained(base, folder)
    assert {name for name in model.state_dict() if "lora_" in name} == _names(folder), "names"
    return model


def load_and_undo(base, folder):
    model = load_and_compare(base, folder)
    model.merge_adapter()
    model.unmerge_adapter()
    return model


def perplexity_in_train_mode(model, *rest):
    try:
        return perplexity_by_loss(model.train(), *rest)
    finally:
        model.eval()


def perplexity_that_pads_left(model, tokenizer, texts):
    tokenizer.padding_side = "left"
    return perplexity_by_loss(model, tokenizer, texts)


def perplexity_cut(model, tokenizer, texts):
    return perplexity_by_loss(model, partial(tokenizer, truncation=True), texts)


def perplexity_in_pieces(model, tokenizer, texts):
    return perplexity_by_loss(model, tokenizer, [p for t in texts for p in textwrap.wrap(t, 150)])


WRONG = [
    # what the probe says of settings and data, which no row can
    (check.trains, train_without_ends, "a row is cut, the model reads"),
    (check.trains, partial(train_plainly, max_length=16), "0, not 2 (a row is cut)"),
    (check.trains, partial(train_plainly, completion_only_loss=False), "completion_only_loss must"),
    (check.trains, run, "TRL trains on all of `messages`"),
    (check.trains, partial(train_plainly, split=in_texts), "lists of messages"),
    (check.trains, partial(train_plainly, split=lambda m: (m[:1], m[-1:])), "messages[:-1]"),
    (check.trains, partial(train_plainly, split=lambda m: (m[:1], m[1:])), "messages[-1:]"),
    (check.trains, partial(train_unsaved, save_strategy="no"), "not none: call trainer.save_model"),
    (check.trains, train_never, "[] (no step was run: call trainer.train())"),
    (check.trains, partial(train_after, train_never), "save_model() comes after train()"),
    (check.trains, partial(train_plainly, num_train_epochs=3), "three passes"),
    (check.end_trains, labels_by_the_first_row, "the first of which has no padding"),
    (check.end_trains, lambda *data: labels_in_loop(*data).float(), "should be int64, not float32"),
    (check.prompt_opens_answer, render_with_own_template, "the tokenizer should be left as it was"),
    (check.prompt_opens_answer, lambda m, t: [render_from_dict(m, t)], "not a list of lists"),
    (check.prompt_opens_answer, lambda m, t: m.pop() and [1], "changes its input"),
    (check.checkpoints, checkpointing_that_calls_itself, "sees only the last block"),
    (check.checkpoints, checkpointing_of_the_mlp, "blocks should include model.layers.0"),
    (check.loads_once, load_by_other_names, "), but this adapter fits: compare"),
    (check.loads_once, load_and_undo, "the base's weights should be left as they were"),
    (check.loads_once, lambda b, f: load_and_compare(copy.deepcopy(b), f), "`base` itself"),
    (check.perplexity_weighs_tokens, perplexity_in_train_mode, "in train mode, with dropout"),
    (check.perplexity_weighs_tokens, perplexity_cut, "cut after 1,024 tokens"),
    (check.perplexity_weighs_tokens, perplexity_in_pieces, "in pieces of at most"),
    (check.perplexity_weighs_tokens, perplexity_that_pads_left, "the tokenizer's settings"),
]

GIVEN = [
    (check.end_trains, "the end token has no label either"),
    (check.prompt_opens_answer, "the generation prompt is missing"),
    (check.keeps_answer, "the row is cut on the right"),
    (check.checkpoints, "only if the first block's input requires grad"),
    (check.loads_once, "the adapter is merged, then loaded again"),
]
