"""Lab 3's checks: stubs, wrong answers that learners give, right answers written differently."""

import ast
import contextlib
import copy
import dataclasses
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from labkit import contract, measured
from labkit.checks import lab03 as check
from labkit.labs.lab03 import probes, tables

# --- right answers -------------------------------------------------------------------------


def lora_of(**changes):
    """A LoraConfig as it is wanted, with some fields changed."""
    fields = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none"}
    fields |= {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**fields | changes)


def with_lora(**changes):
    """A `recipe` whose LoraConfig has some fields changed."""
    return lambda output_dir, device: (lora_of(**changes), sft_of()(output_dir, device)[1])


def count_lora_params(shapes, r):
    return sum(r * (d_out + d_in) for d_out, d_in in shapes.values())


def count_in_loop(shapes, r):
    total = 0
    for d_out, d_in in shapes.values():
        total += r * d_in + d_out * r
    return total


def count_with_tensors(shapes, r):
    return int(r * torch.tensor(list(shapes.values())).sum().item())


def count_by_names(shapes, r):
    return r * sum(shapes[name][0] + shapes[name][1] for name in shapes)


def count_in_tensors(shapes, r):
    """The numbers of A and of B, of matrices that have shapes alone."""
    A = sum(torch.empty(r, d_in, device="meta").numel() for _, d_in in shapes.values())
    return A + sum(torch.empty(d_out, r, device="meta").numel() for d_out, _ in shapes.values())


def sft_of(**changes):
    """A `recipe` with some fields of the SFTConfig changed: values, or functions of the device."""

    def recipe(output_dir, device):
        fields = {"output_dir": output_dir, "use_cpu": device == "cpu", "learning_rate": 2e-4}
        fields |= {"bf16": device == "a100", "fp16": device == "t4", "max_length": 512}
        new = {k: v(device) if callable(v) else v for k, v in changes.items()}
        return lora_of(), SFTConfig(**fields | new)

    return recipe


def recipe_by_table(output_dir, device):
    kinds = {"cpu": {"use_cpu": True, "bf16": False}, "t4": {"fp16": True}, "a100": {"bf16": True}}
    more = {"learning_rate": 1e-3, "warmup_steps": 0.1, "max_length": 512}
    lora = LoraConfig(TaskType.CAUSAL_LM, r=16, target_modules="all-linear", lora_alpha=2 * 16.0)
    lora.lora_dropout = 1 / 20
    return [lora, SFTConfig(output_dir, **more, **kinds[device])]


def recipe_from_path(output_dir, device):
    make = sft_of(gradient_checkpointing=False, report_to=[], packing=False)
    return make(Path(output_dir), device)


def recipe_dotted(output_dir, device):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return lora_of(target_modules=names), sft_of()(f"./{output_dir}/", device)[1]


def recipe_set_later(output_dir, device):
    config = SFTConfig(output_dir, use_cpu=device == "cpu", bf16=False, max_length=512)
    config.learning_rate, config.bf16, config.fp16 = 5e-3, device == "a100", device == "t4"
    return dataclasses.replace(lora_of(r=4), r=16), config


def recipe_absolute(output_dir, device):
    return sft_of(completion_only_loss=True)(os.path.abspath(output_dir), device)


def answer_labels(input_ids, attention_mask, prompt_lengths):
    place = attention_mask.cumsum(1)
    asked = (place > prompt_lengths[:, None]) & (attention_mask == 1)
    return input_ids.masked_fill(~asked, -100)


def labels_in_loop(input_ids, attention_mask, prompt_lengths):
    labels = input_ids.clone()
    labels[attention_mask == 0] = -100
    for row in range(len(labels)):
        first = int(attention_mask[row].argmax())
        labels[row, first : first + int(prompt_lengths[row])] = -100
    return labels


def labels_from_lists(input_ids, attention_mask, prompt_lengths):
    rows = []
    lists = input_ids.tolist(), attention_mask.tolist(), prompt_lengths.tolist()
    for ids, mask, length in zip(*lists, strict=True):
        seen, row = 0, []
        for token, real in zip(ids, mask, strict=True):
            seen += real
            row.append(token if real and seen > length else -100)
        rows.append(row)
    return torch.tensor(rows)


def labels_by_index(input_ids, attention_mask, prompt_lengths):
    n = input_ids.shape[1]
    first = (attention_mask.cumsum(1) == 0).sum(1)  # padding on the left
    last = n - (attention_mask.flip(1).cumsum(1) == 0).sum(1)
    places = torch.arange(n).expand_as(input_ids)
    asked = (places >= (first + prompt_lengths)[:, None]) & (places < last[:, None])
    return torch.where(asked, input_ids, torch.full_like(input_ids, -100))


def labels_multiplied(input_ids, attention_mask, prompt_lengths):
    keep = (attention_mask.cumsum(1) > prompt_lengths.unsqueeze(1)).long() * attention_mask
    return input_ids * keep - 100 * (1 - keep)


def render_prompt(messages, tokenizer):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def render_from_dict(messages, tokenizer):
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return found["input_ids"]


def render_in_two_steps(messages, tokenizer):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def render_encoded(messages, tokenizer):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=1)
    return tokenizer.encode(text, add_special_tokens=False)


def render_from_tensor(messages, tokenizer):
    batch = tokenizer.apply_chat_template(
        [messages], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return batch["input_ids"][0].tolist()


def render_without_doubles(messages, tokenizer):
    """As it is given, mended by hand."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    return ids[1:] if ids[:2] == 2 * [tokenizer.bos_token_id] else ids


def fit(prompt_ids, answer_ids, max_length):
    answer = answer_ids[:max_length]
    prompt = prompt_ids[max(0, len(prompt_ids) + len(answer) - max_length) :]
    return prompt + answer, [-100] * len(prompt) + answer


def fit_by_room(prompt_ids, answer_ids, max_length):
    answer_ids = answer_ids[:max_length]
    room = max_length - len(answer_ids)
    prompt_ids = prompt_ids[-room:] if room else []
    return [*prompt_ids, *answer_ids], [-100 for _ in prompt_ids] + answer_ids


def fit_from_the_end(prompt_ids, answer_ids, max_length):
    if len(answer_ids) >= max_length:
        return answer_ids[:max_length], answer_ids[:max_length]
    ids = (prompt_ids + answer_ids)[-max_length:]
    return ids, ([-100] * len(prompt_ids) + answer_ids)[-max_length:]


def fit_by_popping(prompt_ids, answer_ids, max_length):
    prompt, answer = list(prompt_ids), list(answer_ids)
    while len(prompt) + len(answer) > max_length:
        prompt.pop(0) if prompt else answer.pop()
    return [prompt + answer, len(prompt) * [-100] + answer]


def fit_with_tensors(prompt_ids, answer_ids, max_length):
    answer = torch.tensor(answer_ids)[:max_length]
    cut = max(len(prompt_ids) + len(answer) - max_length, 0)
    prompt = torch.tensor(prompt_ids, dtype=torch.long)[cut:]
    labels = torch.cat([torch.full_like(prompt, -100), answer])
    return torch.cat([prompt, answer]).tolist(), labels.tolist()


def exact_match(predictions, references):
    hits = 0
    for prediction, reference in zip(predictions, references, strict=True):
        with contextlib.suppress(json.JSONDecodeError):
            hits += _sorted(prediction) == _sorted(reference)
    return hits / len(references)


def _sorted(text):
    return json.dumps(json.loads(text), sort_keys=True)


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return object()


def _typed_outside(p, r):
    data = _parsed(p)
    return type(data) is dict and data == _parsed(r)


def match_by_helper(predictions, references):
    """== alone takes True for 1; the type of each value settles it."""

    def same(a, b):
        if type(a) is not type(b):
            return False
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        return all(map(same, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b

    pairs = zip(predictions, references, strict=True)
    return sum([same(_parsed(p), _parsed(r)) for p, r in pairs]) / len(references)


def match_frozen(predictions, references):
    def freeze(x):
        if isinstance(x, dict):
            return frozenset((k, freeze(v)) for k, v in x.items())
        return tuple(map(freeze, x)) if isinstance(x, list) else (type(x), x)

    pairs = zip(predictions, references, strict=True)
    return sum(freeze(_parsed(p)) == freeze(_parsed(r)) for p, r in pairs) / len(references)


def match_canonical(predictions, references):
    def canon(text):
        try:
            return json.dumps(json.loads(text), sort_keys=True)
        except Exception:
            return None

    pairs = zip(predictions, references, strict=True)
    return torch.tensor([float(canon(p) == canon(r)) for p, r in pairs]).mean().item()


def _nll(model, ids, labels):
    """Summed loss and number of predictions, labels of -100 left out."""
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].float()
    labels = labels[:, 1:]
    total = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="sum")
    return total.item(), (labels != -100).sum().item()


def perplexity(model, tokenizer, texts):
    pairs = [_nll(model, ids, ids) for ids in (_ids(tokenizer, text) for text in texts)]
    return math.exp(sum(t for t, _ in pairs) / sum(n for _, n in pairs))


def _ids(tokenizer, text):
    return tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]


def perplexity_padded(model, tokenizer, texts):
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    total, count = _nll(model, batch["input_ids"], labels)
    return float(torch.tensor(total / count).exp())


def perplexity_left(model, tokenizer, texts):
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        logp = model(**batch).logits.log_softmax(-1)[:, :-1]
    ids, keep = batch["input_ids"][:, 1:], batch["attention_mask"][:, :-1]
    picked = logp.gather(-1, ids[..., None])[..., 0]
    return math.exp(-(picked * keep).sum() / keep.sum())


def perplexity_in_batches(model, tokenizer, texts):
    total = count = 0
    for i in range(0, len(texts), 8):
        some = texts[i : i + 8]
        batch = tokenizer(some, return_tensors="pt", padding=True, add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss, n = _nll(model, batch["input_ids"], labels)
        total, count = total + loss, count + n
    return math.exp(total / count)


def perplexity_by_loss(model, tokenizer, texts):
    total = count = 0
    for text in texts:
        ids = _ids(tokenizer, text)
        n = ids.shape[1] - 1
        total, count = total + model(ids, labels=ids).loss.item() * n, count + n
    return math.exp(total / count)


def perplexity_masked(model, tokenizer, texts):
    """Sets eval mode, as many do; one batch, predictions picked by the mask."""
    model.eval()
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    ids, keep = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].bool()
    return float(F.cross_entropy(logits[keep], ids[keep]).exp())


def perplexity_without_the_last(model, tokenizer, texts):
    """The model never reads the last token, which predicts nothing."""
    losses = []
    for text in texts:
        ids = _ids(tokenizer, text)
        with torch.inference_mode():
            logits = model(input_ids=ids[:, :-1]).logits[0].double()
        losses += (-logits.log_softmax(-1).gather(1, ids[0, 1:, None])).flatten().tolist()
    return math.exp(sum(losses) / len(losses))


def load_tuned(base, folder):
    return PeftModel.from_pretrained(base, folder).eval()


def load_by_parts(base, folder):
    model = get_peft_model(base, PeftConfig.from_pretrained(folder))
    set_peft_model_state_dict(model, load_peft_weights(str(folder)))
    model.eval()
    return model


def load_in_steps(base, folder):
    model = PeftModel(base, PeftConfig.from_pretrained(folder))
    model.load_adapter(folder, "default")
    return model.eval()


def load_named(base, folder):
    model = PeftModel.from_pretrained(base, f"{folder}", adapter_name="home")
    return model.train(False)


def load_frozen(base, folder):
    """Trainable at first, as the given code has it; then it is not."""
    model = PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    return model.requires_grad_(False)


def quiz():
    return {"q1": "d", "q2": "b", "q3": "a", "q4": "c"}


RIGHT = [
    (check.configs, sft_of()),
    (check.configs, recipe_by_table),
    (check.configs, recipe_from_path),
    (check.configs, recipe_dotted),
    (check.configs, recipe_absolute),
    (check.configs, recipe_set_later),
    (check.counts, count_by_names),
    (check.counts, count_in_tensors),
    (check.counts, count_lora_params),
    (check.counts, count_in_loop),
    (check.counts, count_with_tensors),
    (check.end_trains, answer_labels),
    (check.end_trains, labels_in_loop),
    (check.end_trains, labels_from_lists),
    (check.end_trains, labels_by_index),
    (check.end_trains, labels_multiplied),
    (check.prompt_opens_answer, render_prompt),
    (check.prompt_opens_answer, render_from_dict),
    (check.prompt_opens_answer, render_in_two_steps),
    (check.prompt_opens_answer, render_encoded),
    (check.prompt_opens_answer, render_from_tensor),
    (check.prompt_opens_answer, render_without_doubles),
    (check.keeps_answer, fit),
    (check.keeps_answer, fit_by_room),
    (check.keeps_answer, fit_from_the_end),
    (check.keeps_answer, fit_by_popping),
    (check.keeps_answer, fit_with_tensors),
    (check.matches, exact_match),
    (check.matches, match_by_helper),
    (check.matches, match_canonical),
    (check.matches, match_frozen),
    (check.perplexity_weighs_tokens, perplexity),
    (check.perplexity_weighs_tokens, perplexity_padded),
    (check.perplexity_weighs_tokens, perplexity_left),
    (check.perplexity_weighs_tokens, perplexity_by_loss),
    (check.perplexity_weighs_tokens, perplexity_in_batches),
    (check.perplexity_weighs_tokens, perplexity_masked),
    (check.perplexity_weighs_tokens, perplexity_without_the_last),
    (check.loads_once, load_tuned),
    (check.loads_once, load_by_parts),
    (check.loads_once, load_named),
    (check.loads_once, load_in_steps),
    (check.loads_once, load_frozen),
    (check.quiz, quiz),
    (check.quiz, lambda: {"q4": "C", "q3": " A", "q1": "D", "q2": "b "}),
]


@pytest.mark.parametrize(
    ("model", "targets", "count"),
    [
        ("SmolLM2-135M", ("q_proj", "v_proj"), 921_600),
        ("Llama-2-7B", ("q_proj", "v_proj"), 8_388_608),
        ("Llama-3.1-8B", ("q_proj", "k_proj", "v_proj", "o_proj"), 13_631_488),
        ("Llama-3.1-8B", "all-linear", 41_943_040),
    ],
)
def test_peft_counts_what_is_published(model, targets, count):
    assert probes.peft_count(model, targets)[1] == count


# --- wrong answers, each with a word of the message that names what the learner thought -------


def _pair_of(change):
    """A recipe whose pair is changed: `change(lora, sft)`."""
    return lambda output_dir, device: change(*sft_of()(output_dir, device))


LORAS = [
    (with_lora(targets=["q_proj"]), "PEFT's names: r, target_modules, lora_alpha, lora_dropout"),
    (with_lora(alpha=2), "PEFT's names"),
    (with_lora(task_type="causal_lm"), 'here it is "CAUSAL_LM"'),
    (with_lora(lora_alpha=16, lora_dropout=0.0), "rank itself"),
    (with_lora(lora_alpha=16, lora_dropout=0.0), "pass lora_dropout"),
    (with_lora(lora_alpha=8), "pass lora_alpha, twice the rank"),
    (with_lora(lora_alpha=64), "four times the rank"),
    (with_lora(lora_alpha=18), "that is r + 2"),
    (with_lora(r=8), "8 is PEFT's default: pass r=16"),
    (with_lora(r=32, lora_alpha=64), "r gave 32, wanted 16"),
    (with_lora(lora_dropout=5), "not in percent"),
    (with_lora(bias=None), "the word, in quotes"),
    (with_lora(bias="all"), "all biases would train"),
    (with_lora(task_type=None), "language model"),
    (with_lora(target_modules=None), "PEFT would take q and v"),
    (with_lora(target_modules=["all-linear"]), "the name of one layer"),
    (with_lora(target_modules=list("all-linear")), "letters"),
    (with_lora(target_modules="all_linear"), 'spelled "all-linear"'),
    (with_lora(target_modules=".*_proj"), "read as a pattern"),
    (with_lora(target_modules=["q_proj", "v_proj"]), "it leaves out down_proj"),
    (with_lora(target_modules=["gate_proj", "up_proj", "down_proj"]), "leaves out k_proj, o_proj"),
    (with_lora(use_rslora=True), "sets use_rslora=True too"),
    (with_lora(use_dora=True), "sets use_dora=True too"),
    (with_lora(modules_to_save=["lm_head"]), "sets modules_to_save=['lm_head'] too"),
    (with_lora(inference_mode=True), "sets inference_mode=True too"),
    (with_lora(init_lora_weights="pissa"), "sets init_lora_weights=pissa too"),
    (_pair_of(lambda lora, sft: (sft, lora)), "turned round"),
    (_pair_of(lambda lora, sft: lora), "an SFTConfig belongs to it"),
    (_pair_of(lambda lora, sft: sft), "its LoraConfig too"),
    (_pair_of(lambda lora, sft: (lora, lora)), "of one kind"),
    (_pair_of(lambda lora, sft: (LoraConfig, sft)), "brackets"),
    (_pair_of(lambda lora, sft: {"lora": lora, "sft": sft}), "gave a dict"),
    (_pair_of(lambda lora, sft: (lora, sft, sft)), "gave 3 things"),
    (_pair_of(lambda lora, sft: None), "return"),
    (
        lambda o, d: (lora_of(r=16 if d == "cpu" else 8), sft_of()(o, d)[1]),
        "depends on the device",
    ),
]


def _last_alone(shapes, r):
    for d_out, d_in in shapes.values():
        total = 0
        total += r * (d_out + d_in)
    return total


def _kinds(shapes, r):
    """One matrix for each last part of a name."""
    return count_lora_params({name.split(".")[-1]: shape for name, shape in shapes.items()}, r)


def _wide_alone(shapes, r):
    narrow = ("k_proj", "v_proj")
    return count_lora_params({n: s for n, s in shapes.items() if not n.endswith(narrow)}, r)


def _one_a_for(*readers):
    """A count in which the matrices of a layer that end in `readers` have one A together."""

    def wrong(shapes, r):
        inputs, total = set(), 0
        for name, (d_out, d_in) in shapes.items():
            layer, _, last = name.rpartition(".")
            read = layer, "x" if last in readers else last
            total += r * (d_out + d_in * (read not in inputs))
            inputs.add(read)
        return total

    return wrong


def _of_names(counts):
    """A count of the matrices whose names it likes."""
    return lambda s, r: count_lora_params({n: pair for n, pair in s.items() if counts(n)}, r)


COUNTS = [
    (_kinds, "names that end alike"),
    (_one_a_for("q_proj", "k_proj", "v_proj"), "also where q, k and v read the same input"),
    (
        _one_a_for("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
        "also where q, k and v, or gate and up, read the same input",
    ),
    (lambda s, r: count_lora_params(dict(list(s.items())[:-1]), r), "last matrix is left out"),
    (_wide_alone, "k and v are left out"),
    (_of_names(lambda name: "head" not in name), "lm_head left out: all that"),
    (_of_names(lambda name: "proj" in name), "h.0.attn.c_attn, lm_head left out: all that"),
    (_of_names(lambda name: "mlp" not in name), "layers.1.mlp.up_proj left out: all that"),
    (_of_names(lambda name: "q_proj" in name or "v_proj" in name), "only q and v are counted"),
    (lambda shapes, r: count_lora_params(shapes, r) + len(shapes), "one more a matrix"),
    (lambda shapes, r: sum(r * (o + i) // 2 for o, i in shapes.values()), "half of it"),
    (lambda s, r: sum(r * (o + i) + o for o, i in s.values()), "a bias is counted too"),
    (lambda s, r: sum(r * (o + i) + o + r for o, i in s.values()), "a bias of A and one of B"),
    (
        lambda s, r: sum(r * (o + i + 1) for o, i in s.values()),
        "r singular values a matrix are counted too",
    ),
    (lambda s, r: sum(r * (o + i + r) for o, i in s.values()), "nothing stands between"),
    (lambda s, r: sum(min(r, o, i) * (o + i) for o, i in s.values()), "a side of the matrix"),
    (lambda shapes, r: sum(4 * (o + i) for o, i in shapes.values()), "for r=4, whatever r is"),
    (lambda shapes, r: 4 * count_lora_params(shapes, r), "these are bytes"),
    (lambda shapes, r: sum(r * o + i for o, i in shapes.values()), "brackets"),
    (lambda shapes, r: sum(o + r * i for o, i in shapes.values()), "brackets"),
    (lambda shapes, r: sum(r * (o + i + o * i // r) for o, i in shapes.values()), "wanted"),
    (lambda shapes, r: sum(r * (o + i) + o * i for o, i in shapes.values()), "dense weights"),
    (lambda shapes, r: sum(r * (o + i) - r * r for o, i in shapes.values()), "share none"),
    (lambda shapes, r: count_lora_params(shapes, r) / 1e6, "millions"),
    (lambda shapes, r: r * sum(map(sum, set(shapes.values()))), "equal shapes"),
    (lambda shapes, r: r * len(shapes) * sum(next(iter(shapes.values()))), "like the first"),
    (lambda shapes, r: sum(r * (o + i) for o, i in shapes), "shapes.values()"),
    (lambda shapes, r: sum(r * (o + i) for o, i in shapes.items()), "(name, (d_out, d_in))"),
    (lambda shapes, r: sum(r * sum(s.shape) for s in shapes.values()), "pairs (d_out, d_in)"),
    (_last_alone, "last matrix alone: sum over shapes (is it `=` where `+=` is meant?)"),
    (lambda shapes, r: sum(r * o * i for o, i in shapes.values()), "don't multiply"),
    (lambda shapes, r: sum(o * i for o, i in shapes.values()), "dense"),
    (lambda shapes, r: sum(r * i for o, i in shapes.values()), "A only"),
    (lambda shapes, r: sum(r * o for o, i in shapes.values()), "B only"),
    (lambda shapes, r: sum(2 * r * o for o, i in shapes.values()), "square"),
    (lambda shapes, r: sum(2 * r * i for o, i in shapes.values()), "square"),
    (lambda shapes, r: sum(o + i for o, i in shapes.values()), "r is missing"),
    (lambda shapes, r: sum(16 * (o + i) for o, i in shapes.values()), "wanted"),
    (lambda shapes, r: 2 * count_lora_params(shapes, r), "twice as much"),
    (lambda shapes, r: r * count_lora_params(shapes, r), "quadratically"),
    (
        lambda shapes, r: r * sum(next(iter(shapes.values()))),
        "first matrix alone: sum over shapes (is `return` inside the loop?)",
    ),
    (lambda shapes, r: float(count_lora_params(shapes, r)), "int"),
    (lambda shapes, r: print(end=""), "return"),
]


# --- 3.3


def labels_given(input_ids, attention_mask, prompt_lengths):
    """What the hunt begins with."""
    labels = input_ids.clone()
    labels[labels == 2] = -100
    for row, length in zip(labels, prompt_lengths, strict=True):
        row[:length] = -100
    return labels


def _side_of_the_first_row(input_ids, attention_mask, prompt_lengths):
    """Padding is taken to stand where the first row has it; it may have none."""
    labels = input_ids.clone()
    left = bool(attention_mask[0, 0] == 0)
    for row, mask, length in zip(labels, attention_mask, prompt_lengths, strict=True):
        start = int((mask == 0).sum()) if left else 0
        row[mask == 0] = -100
        row[start : start + int(length)] = -100
    return labels


def _labels(change):
    """`answer_labels` after `change(labels, ids, mask, prompts)` of the right ones."""

    def wrong(input_ids, attention_mask, prompt_lengths):
        right = answer_labels(input_ids, attention_mask, prompt_lengths)
        return change(right, input_ids, attention_mask, prompt_lengths)

    return wrong


def _in_place(input_ids, attention_mask, prompt_lengths):
    input_ids[answer_labels(input_ids, attention_mask, prompt_lengths) == -100] = -100
    return input_ids


def _from_the_left(input_ids, attention_mask, prompt_lengths):
    places = torch.arange(input_ids.shape[1])
    asked = (places >= prompt_lengths[:, None]) & (attention_mask == 1)
    return input_ids.masked_fill(~asked, -100)


def _from_the_left_padded(input_ids, attention_mask, prompt_lengths):
    places = torch.arange(input_ids.shape[1])
    return input_ids.masked_fill(places < prompt_lengths[:, None], -100)


def _by_id(right, ids, mask, prompts):
    return right.masked_fill(ids == 2, -100)


def _one_length(input_ids, attention_mask, prompt_lengths):
    alike = prompt_lengths[:1].expand_as(prompt_lengths)
    return answer_labels(input_ids, attention_mask, alike)


def _shifted(right, ids, mask, prompts):
    moved = torch.full_like(right, -100)
    moved[:, :-1] = right[:, 1:]
    return moved


def _no_last(right, ids, mask, prompts):
    keep = right.clone()
    for row in keep:
        row[(row != -100).nonzero()[-1]] = -100
    return keep


def _last_alone_trains(right, ids, mask, prompts):
    return torch.where(_no_last(right, ids, mask, prompts) == right, -100, right)


def _first_padding(right, ids, mask, prompts):
    for row in range(len(ids)):
        behind = int((right[row] != -100).nonzero()[-1]) + 1
        if behind < ids.shape[1]:
            right[row, behind] = ids[row, behind]
    return right


def _to_first_end(right, ids, mask, prompts):
    ends = (right == 2).long()
    return right.masked_fill(ends.cumsum(1) - ends > 0, -100)


def _by_id_but_last(right, ids, mask, prompts):
    last = _last_alone_trains(right, ids, mask, prompts)
    return torch.where(last != -100, last, right.masked_fill(ids == 2, -100))


LABELS = [
    (labels_given, "attention_mask is 0, whatever its id"),
    (labels_given, "padding on the left moves the prompt"),
    (_labels(_by_id), "nothing teaches the model to stop"),
    (_from_the_left, "count real tokens, attention_mask.cumsum(1)"),
    (_from_the_left_padded, "padding has labels"),
    (_in_place, "changes its input input_ids"),
    (_one_length, "one row's prompt length is taken for all"),
    (_side_of_the_first_row, "the first of which has no padding"),
    (lambda i, m, p: answer_labels(i, m, p.max().expand_as(p)), "longest prompt is taken for all"),
    (lambda i, m, p: answer_labels(i, m, p - 1), "the last token of the prompt has a label"),
    (lambda i, m, p: answer_labels(i, m, p + 1), "the first token of the answer has no label"),
    (lambda i, m, p: i.masked_fill(m == 0, -100), "the prompt has labels"),
    (lambda i, m, p: i.clone(), "the prompt has labels"),
    (_labels(lambda x, i, m, p: torch.where((x == -100) & (m == 1), i, -100)), "turned round"),
    (_labels(lambda x, i, m, p: x.clamp(min=0)), "0 is a token"),
    (_labels(lambda x, i, m, p: x.clamp(min=-1)), "-1 is an error"),
    (_labels(_shifted), "the model shifts the labels itself"),
    (_labels(_no_last), "it says where to stop"),
    (_labels(_last_alone_trains), "only the last token has a label"),
    (_labels(lambda x, i, m, p: x != -100), "true and false"),
    (_labels(lambda x, i, m, p: (x != -100).long()), "not 1 and 0"),
    (_labels(lambda x, i, m, p: x.float()), "token ids, and these are floats"),
    (_labels(lambda x, i, m, p: x.int()), "keep the dtype of input_ids"),
    (_labels(lambda x, i, m, p: x.tolist()), "wanted a tensor"),
    (_labels(lambda x, i, m, p: x[:, 1:]), "has shape"),
    (_labels(lambda x, i, m, p: torch.full_like(x, -100)), "all labels are -100"),
    (_labels(lambda x, i, m, p: torch.where(m == 1, x, i)), "padding has labels"),
    (lambda i, m, p: answer_labels(i, m, p[0]), ("one a row", "prompt_lengths[:, None]")),
    (lambda i, m, p: i.masked_fill(torch.arange(i.shape[1]) < p, -100), "prompt_lengths[:, None]"),
    (_labels(_first_padding), "the first padding behind an answer has a label"),
    (
        _labels(lambda x, i, m, p: torch.where((i == 2) & (m == 1), i, x)),
        "end tokens of the prompt",
    ),
    (_labels(_to_first_end), "what follows the answer's end token"),
    (_labels(_by_id_but_last), "an end has a label only where it is a row's last"),
    (_labels(lambda x, i, m, p: x * m), "padding's labels are 0"),
    (lambda i, m, p: answer_labels(i, m, p.flip(0)), "not in one order"),
    (lambda i, m, p: print(end=""), "return"),
]

# --- 3.4


def render_given(messages, tokenizer):
    """What the hunt begins with."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text)["input_ids"]


def _templated(*, strip=False, **how):
    """A render_prompt that goes through text, with these arguments of the tokenizer."""

    def wrong(messages, tokenizer):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(text.replace(tokenizer.bos_token, "") if strip else text, **how).input_ids

    return wrong


def _rendered(change):
    """A render_prompt of `change(messages)`."""
    return lambda messages, tokenizer: render_prompt(change(messages), tokenizer)


def _by_hand(messages, tokenizer):
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return tokenizer(text + "<|im_start|>assistant\n")["input_ids"]


def _own_bos_off(messages, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    return _templated()(messages, tokenizer)


def _texts_alone(messages, tokenizer):
    return tokenizer(" ".join(m["content"] for m in messages))["input_ids"]


def _asked_twice(messages, tokenizer):
    return render_prompt(messages, tokenizer) + render_prompt(messages, tokenizer)[-1:]


def _empty_answer(messages, tokenizer):
    return tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": ""}], return_dict=False
    )


def _users(messages):
    return [m for m in messages if m["role"] == "user"]


RENDERED = [
    (render_given, "it does not end in the generation prompt"),
    (render_given, "two BOS stand in front"),
    (_templated(), "two BOS stand in front"),
    (
        lambda m, t: t.apply_chat_template(m, return_dict=False),
        "the model goes on as the user: add_generation_prompt=True",
    ),
    (_templated(strip=True, add_special_tokens=False), "the BOS that the template writes is gone"),
    (lambda m, t: render_prompt(m, t)[1:], "its first token is gone, and that is no BOS here"),
    (lambda m, t: [t.bos_token_id, *render_prompt(m, t)], "two BOS stand in front"),
    (lambda m, t: [t.bos_token_id, *render_prompt(m, t)], "a BOS stands in front that this"),
    (lambda m, t: [*render_prompt(m, t), t.eos_token_id], "an end token stands behind it"),
    (_empty_answer, "that of an empty assistant message, which the template closes: add neither"),
    (_rendered(lambda m: m[:-1]), "the user's last one too, which messages[:-1] takes off"),
    (_rendered(lambda m: m[:-1]), "the last message is missing: here it is the user's"),
    (_asked_twice, "the generation prompt stands there twice"),
    (_rendered(lambda m: m[-1:]), "the last message alone is rendered"),
    (_rendered(lambda m: m[1:] if m[0]["role"] == "system" else m), "the system message is"),
    (_rendered(lambda m: m[:-1] or m), "the last message is missing"),
    (_rendered(_users), "only the user's messages are rendered"),
    (_rendered(lambda m: m[::-1]), "turned round"),
    (_rendered(lambda m: m[:1]), "the first message alone is rendered"),
    (_by_hand, "another model's template"),
    (_texts_alone, "without roles and ends"),
    (_own_bos_off, "it changes the tokenizer"),
    (lambda m, t: t.apply_chat_template(m, add_generation_prompt=True), 'take its ["input_ids"]'),
    (
        lambda m, t: t.apply_chat_template(m, add_generation_prompt=True, tokenize=False),
        "gave text",
    ),
    (lambda m, t: [render_prompt(m, t)], "a list inside a list"),
    (lambda m, t: torch.tensor(render_prompt(m, t)), "gave a tensor"),
    (lambda m, t: t.convert_ids_to_tokens(render_prompt(m, t)), "tokens as text"),
    (lambda m, t: m.append({"role": "user", "content": "now"}) or render_prompt(m, t), "changes"),
    (lambda m, t: render_prompt(m, t)[::-1], "the ids are turned round"),
    (lambda m, t: render_prompt(m, t) + [t.pad_token_id] * 3, "padding stands behind it"),
    (lambda m, t: [i for i in render_prompt(m, t) if i != t.eos_token_id], "roles or ends"),
    (
        lambda m, t: t.apply_chat_template(m, continue_final_message=True, return_dict=False),
        "the last message is left open",
    ),
    (_rendered(lambda m: [{"role": "system", "content": "turn"}, *m]), "that is no message"),
    (lambda m, t: None, "return"),
]

# --- 3.5


def fit_given(prompt_ids, answer_ids, max_length):
    """What the hunt begins with."""
    input_ids = prompt_ids + answer_ids
    labels = [-100] * len(prompt_ids) + answer_ids
    return input_ids[:max_length], labels[:max_length]


def _fit(change):
    """`fit` after `change(prompt, answer, n, ids, labels)` of the right pair."""

    def wrong(prompt_ids, answer_ids, max_length):
        right = fit(prompt_ids, answer_ids, max_length)
        return change(prompt_ids, answer_ids, max_length, *right)

    return wrong


def _prompt_behind(p, a, n, ids, labels):
    room = max(0, n - len(a))
    return p[:room] + a[:n], [-100] * len(p[:room]) + a[:n]


def _all_by_zero(p, a, n, ids, labels):
    a = a[:n]
    p = p[-(n - len(a)) :]
    return p + a, [-100] * len(p) + a


def _end_put_back(p, a, n, ids, labels):
    if len(a) <= n:
        return ids, labels
    return [*a[: n - 1], a[-1]], [*a[: n - 1], a[-1]]


def _appends(prompt_ids, answer_ids, max_length):
    prompt_ids += answer_ids
    return fit(prompt_ids[: -len(answer_ids)], answer_ids, max_length)


def _one_less(p, a, n, ids, labels):
    return fit(p, a, max(len(a[:n]), n - 1))


def _both_from_the_left(p, a, n, ids, labels):
    return (p + a)[-n:], ([-100] * len(p) + a)[-n:]


def _no_end(p, a, n, ids, labels):
    return ids, [*labels[:-1], -100]


def _no_labels_if_cut(p, a, n, ids, labels):
    return ids, labels if len(a) <= n else [-100] * n


def _padded(p, a, n, ids, labels):
    return ids + [2] * (n - len(ids)), labels + [-100] * (n - len(ids))


def _first_token_kept(p, a, n, ids, labels):
    return (p[:1] + ids[1:] if labels[0] == -100 else ids), labels


def _halves(p, a, n, ids, labels):
    p = p[-(n // 2) :]
    return p + a[: n - len(p)], [-100] * len(p) + a[: n - len(p)]


def _cut_where(too_long, kept):
    """A fit that cuts an answer to `kept(n)` tokens where `too_long(its length, n)`."""

    def wrong(prompt_ids, answer_ids, max_length):
        answer, n = answer_ids, max_length
        answer = answer[: kept(n)] if too_long(len(answer), n) else answer
        room = n - len(answer)
        prompt = prompt_ids[-room:] if room else []
        return prompt + answer, [-100] * len(prompt) + answer

    return wrong


def _ends_at_once(p, a, n, ids, labels):
    return (ids[: n - 1], labels[: n - 1]) if len(a) >= n else (ids, labels)


def _labels_uncut(p, a, n, ids, labels):
    return ids, ([-100] * len(p) + a[:n])[: len(ids)]


def _no_end_where_cut(p, a, n, ids, labels):
    """What it takes for a cut answer is any row that is cut."""
    return (ids, labels) if len(p + a) <= n else fit(p, a[:-1], n)


def _no_end_and_no_more(p, a, n, ids, labels):
    whole = len(p + a) <= n or len(a) > n
    return (ids, labels) if whole else (ids[:-1], labels[:-1])


FITTED = [
    (_fit(_no_end_where_cut), "taken off though only the prompt was cut"),
    (_fit(_no_end_and_no_more), "itself is cut, and its place is left empty"),
    (_fit(_ends_at_once), "an answer of exactly max_length fits whole, its end token too"),
    (_fit(_ends_at_once), "keeps its first max_length tokens, not max_length - 1"),
    (_cut_where(int.__ge__, lambda n: n - 1), "exactly max_length fits whole, its end token too"),
    (_cut_where(int.__gt__, lambda n: n - 1), "and no token of the prompt has room"),
    (_fit(_labels_uncut), "the prompt is cut, but its labels are not, so the answer's labels"),
    (fit_given, "the prompt fills the row, and it trains on nothing"),
    (fit_given, "the answer loses its end"),
    (_fit(_prompt_behind), "the prompt loses its end, where the question is"),
    (_fit(_all_by_zero), "[-0:] is the whole list"),
    (_fit(_both_from_the_left), "keeps its head, not its tail"),
    (_fit(_end_put_back), "it teaches to stop midway"),
    (_fit(_one_less), "one token less than max_length"),
    (lambda p, a, n: fit(p, a, n + 1), ("one token more", "nothing is cut")),
    (_fit(lambda p, a, n, ids, labels: (ids, ids)), "the prompt has labels"),
    (_fit(lambda p, a, n, ids, labels: (ids, [-100] * len(ids))), "no token has a label"),
    (_fit(_no_end), "it says where to stop"),
    (_fit(lambda p, a, n, ids, labels: (p + a, [-100] * len(p) + a)), "nothing is cut"),
    (_fit(lambda p, a, n, ids, labels: (a[:n], a[:n])), "the prompt is left out"),
    (_fit(lambda p, a, n, ids, labels: (ids, labels) if len(a) < n else ([], [])), "is dropped"),
    (_fit(lambda p, a, n, ids, labels: (ids, [-100] * len(p) + a)), "every token has a label"),
    (_fit(lambda p, a, n, ids, labels: ids), "wanted the pair"),
    (
        _fit(lambda p, a, n, ids, labels: {"input_ids": ids, "labels": labels}),
        "gave a dict, wanted the pair",
    ),
    (
        _fit(lambda p, a, n, ids, labels: (torch.tensor(ids), torch.tensor(labels))),
        "plain lists",
    ),
    (_fit(lambda p, a, n, ids, labels: (labels, ids)), "turned round"),
    (_fit(lambda p, a, n, ids, labels: (ids, [y if y > 0 else 0 for y in labels])), "own id"),
    (_appends, "changes its input prompt_ids"),
    (_fit(_no_labels_if_cut), "its head is worth learning"),
    (_fit(_padded), "it is padded; that is for later"),
    (_fit(_first_token_kept), "the prompt's first token stays"),
    (_fit(_halves), "the prompt lost 2 tokens that had room"),
    (lambda p, a, n: print(end=""), "return"),
]


def _by_hardware(output_dir, device):
    return sft_of(use_cpu=not torch.cuda.is_available(), bf16=False)(output_dir, device)


def _by_this_machine(output_dir, device):
    gpu = torch.cuda.is_available()
    return sft_of(use_cpu=not gpu, bf16=gpu, fp16=False)(output_dir, device)


def _sft(make):
    """A recipe with the SFTConfig of `make(output_dir, device)`."""
    return lambda output_dir, device: (lora_of(), make(output_dir, device))


SFTS = [
    (lambda o, d: sft_of(use_cpu=False, bf16=True, fp16=False)(o, d), "always true?"),
    (lambda o, d: sft_of(use_cpu=True, bf16=False, fp16=False)(o, d), "use_cpu on every device"),
    (sft_of(bf16=lambda d: d == "A100"), '"a100" spelled otherwise'),
    (sft_of(assistant_only_loss=True), "assistant_only_loss=True"),
    (_by_hardware, "go by `device`"),
    (sft_of(learning_rate=2e-5, max_length=1024), "full fine-tuning"),
    (sft_of(learning_rate=2e-5, max_length=1024), "1024 is TRL's default"),
    (sft_of(no_cuda=True), "use_cpu now"),
    (sft_of(peft_config=None), "goes to SFTTrainer"),
    (sft_of(use_cpu=False), "use_cpu=True"),
    (sft_of(use_cpu=True), "idle"),
    (_sft(lambda o, d: SFTConfig(o, learning_rate=2e-4)), "use_cpu=True, bf16=False"),
    (
        _sft(lambda o, d: SFTConfig(o, learning_rate=2e-4, use_cpu=d == "cpu")),
        "say bf16=False",
    ),
    (
        sft_of(bf16=lambda d: d != "cpu", fp16=False),
        "raised ValueError: it asks for bf16, and a T4",
    ),
    (sft_of(bf16=lambda d: d != "cpu"), "it asks for bf16, and a T4 has no bf16"),
    (sft_of(bf16=False, fp16=lambda d: d == "a100"), "fp32"),
    (sft_of(bf16=False, fp16=lambda d: d != "cpu"), "no gradient scaler"),
    (sft_of(learning_rate=2e-5), "full fine-tuning"),
    (sft_of(learning_rate=2e-5), "near 3e-3 in runs as short as these"),
    (sft_of(learning_rate=0.2), "too large"),
    (sft_of(max_length=None), "memory"),
    (sft_of(max_length=8), "is 8, wanted 512"),
    (sft_of(max_length=1024), "wanted 512; 1024 is TRL's default"),
    (sft_of(max_length="512"), "is '512', wanted 512"),
    (
        _sft(lambda o, d: SFTConfig(o, learning_rate=2e-4, use_cpu=True, bf16=False)),
        "TRL's default",
    ),
    (sft_of(learning_rate="2e-4"), "without quotes"),
    (sft_of(max_seq_length=512), "max_length now"),
    (sft_of(warmup_ratio=0.1), "warmup_steps now"),
    (sft_of(torch_dtype="float32"), "dtype now"),
    (sft_of(tokenizer=None), "processing_class"),
    (sft_of(nonsense=1), "unexpected keyword argument 'nonsense'"),
    (sft_of(completion_only_loss=False), "prompt too"),
    (sft_of(output_dir="here"), "pass it on"),
    (_sft(lambda o, d: {"output_dir": o}), "gave a dict"),
]


def _match(same, divide=None):
    """An exact_match by `same(prediction, reference)`."""

    def wrong(predictions, references):
        hits = sum(same(p, r) for p, r in zip(predictions, references, strict=True))
        return hits / (divide or len)(references)

    return wrong


def _of_valid(predictions, references):
    pairs = [(p, r) for p, r in zip(predictions, references, strict=True) if _is_json(p)]
    return exact_match(*zip(*pairs, strict=True))


def _is_json(text):
    try:
        return json.loads(text) is not None
    except ValueError:
        return False


def _keys(p, r):
    return (
        _is_json(p)
        and isinstance(json.loads(p), dict)
        and json.loads(p).keys() == json.loads(r).keys()
    )


def _python(p, r):
    try:
        return ast.literal_eval(p.replace("true", "True").strip()) == json.loads(r)
    except (ValueError, SyntaxError):
        return False


def _unsorted(p, r):
    def sort(x):
        if isinstance(x, dict):
            return {k: sort(v) for k, v in x.items()}
        return sorted(map(str, x)) if isinstance(x, list) else x

    return _is_json(p) and sort(json.loads(p)) == sort(json.loads(r))


def _subset(p, r):
    mine = json.loads(p) if _is_json(p) else {}
    return isinstance(mine, dict) and all(mine.get(k) == v for k, v in json.loads(r).items())


def _skip_errors(p, r):
    try:
        return json.loads(p) == json.loads(r)
    except ValueError:
        return True


def _whole_try(predictions, references):
    hits = 0
    try:
        for p, r in zip(predictions, references, strict=True):
            hits += json.loads(p) == json.loads(r)
    except ValueError:
        pass
    return hits / len(references)


def _until_bad(predictions, references):
    hits = 0
    for p, r in zip(predictions, references, strict=True):
        if not _is_json(p):
            break
        hits += json.loads(p) == json.loads(r)
    return hits / len(references)


def _any_reference(predictions, references):
    wanted = [json.loads(r) for r in references]
    return sum(_parsed(p) in wanted for p in predictions) / len(wanted)


def _texts(p, r):
    def flat(x):
        if isinstance(x, dict):
            return {k: flat(v) for k, v in x.items()}
        return [flat(v) for v in x] if isinstance(x, list) else str(x)

    return _is_json(p) and flat(json.loads(p)) == flat(json.loads(r))


def _reads_fields(p, r):
    mine, theirs = _parsed(p), json.loads(r)
    return type(mine) is not object and mine.get("intent") == theirs["intent"] and mine == theirs


def _stops_at_a_bad_one(predictions, references):
    hits = 0
    for p, r in zip(predictions, references, strict=True):
        if not _is_json(p):
            return 0.0
        hits += _parsed(p) == _parsed(r)
    return hits / len(references)


def _field_names(text):
    data = json.loads(text)
    return data.keys() if isinstance(data, dict) else None


def _evaluated(prediction, reference):
    try:
        return eval(prediction) == eval(reference)
    except Exception:
        return False


def _first_object(text):
    return _parsed(text[text.find("{") : text.rfind("}") + 1])


def _share_of_fields(p, r):
    mine, theirs = json.loads(p) if _valid(p) else {}, json.loads(r)
    return sum(mine.get(k) == v for k, v in theirs.items()) / len(theirs)


def _with_stand_in(value):
    """An exact_match that puts `value` in the place of what is no JSON."""

    def text(said):
        return json.dumps(json.loads(said) if _valid(said) else value, sort_keys=True)

    return _match(lambda p, r: text(p) == text(r))


def _valid(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


MATCHES = [
    (
        lambda p, r: (len(r) * exact_match(p, r) + 1) / (len(r) + 1),
        "right pairs / all pairs, 4 / 6",
    ),
    (_match(_share_of_fields), "all of it or nothing"),
    (_with_stand_in(None), "what stands for no JSON"),
    (_with_stand_in({}), "what stands for no JSON"),
    (_match(lambda p, r: _is_json(p) and exact_match([p], [r])), "null is data"),
    (_match(lambda p, r: _valid(p) and json.dumps(json.loads(p)) == r), "sort_keys=True"),
    (lambda p, r: round(exact_match(p, r), 2), "that is rounded"),
    (lambda p, r: math.ceil(10 * exact_match(p, r)) / 10, "gave 0.7, wanted 0.666667"),
    (
        _match(lambda p, r: _is_json(p) and _field_names(p) == _field_names(r)),
        "keys compared without their",
    ),
    (_match(_evaluated), "eval instead of json.loads"),
    (_match(lambda p, r: _parsed(p.strip("`\n ").removeprefix("json")) == _parsed(r)), "around it"),
    (_stops_at_a_bad_one, "go on with the next one"),
    (lambda p, r: exact_match(p, r) // 1, "//"),
    (lambda p, r: round(exact_match(p, r)), "round()"),
    (lambda p, r: float(_parsed(p[0]) == _parsed(r[0])), "a return inside the loop"),
    (_match(lambda p, r: _first_object(p) == _first_object(r)), "text around it"),
    (_match(lambda p, r: eval(p) == eval(r)), "json.loads instead of eval"),
    (lambda p, r: float(json.loads(p) == json.loads(r)), "one text"),
    (_match(lambda p, r: sorted(p) == sorted(r)), "compare text"),
    (_match(lambda p, r: _is_json(p) and json.loads(p).keys() and exact_match([p], [r])), "null"),
    (_whole_try, "ends the count"),
    (_until_bad, "ends the count"),
    (_any_reference, "its own reference"),
    (_match(lambda p, r: _parsed(p.lower()) == _parsed(r.lower())), "capitals are data"),
    (_match(lambda p, r: _parsed(p.replace(" ", "")) == _parsed(r.replace(" ", ""))), "inside"),
    (_match(_texts), "a text is no number"),
    (_match(_reads_fields), "]): it raised AttributeError"),
    (_match(lambda p, r: _parsed(p) == _parsed(r)), "true is not 1"),
    (_match(_typed_outside), "true is not 1, inside of slots, too"),
    (_match(lambda p, r: p == r), "compare text"),
    (_match(lambda p, r: p.strip() == r.strip()), "compare text"),
    (_match(lambda p, r: sorted(p.split()) == sorted(r.split())), "compare text"),
    (_match(lambda p, r: json.loads(p) == json.loads(r)), "catch json.JSONDecodeError"),
    (_match(lambda p, r: exact_match([p], [r]), divide=lambda refs: 1), "number of matches"),
    (lambda p, r: 100 * exact_match(p, r), "percent"),
    (lambda p, r: 1 - exact_match(p, r), "wrong ones"),
    (_of_valid, "not absent"),
    (_match(_skip_errors), "counts as right"),
    (_match(_keys), "wanted 0.6"),
    (_match(_unsorted), "order in a list"),
    (_match(_subset), "one key more"),
    (_match(_python), "not JSON"),
    (_match(lambda p, r: exact_match([p], [r]) or r in p), "text around it"),
    (lambda p, r: print(end=""), "return"),
    (lambda p, r: torch.tensor(exact_match(p, r)), "item"),
]


def _means(model, tokenizer, texts):
    pairs = [_nll(model, ids, ids) for ids in (_ids(tokenizer, text) for text in texts)]
    return torch.tensor([t / n for t, n in pairs]), torch.tensor([float(n) for _, n in pairs])


def _mean_of_perplexities(*args):
    return _means(*args)[0].exp().mean().item()


def _mean_of_losses(*args):
    return _means(*args)[0].mean().exp().item()


def _tokens_not_predictions(*args):
    means, n = _means(*args)
    return ((means * (n + 1)).sum() / (n + 1).sum()).exp().item()


def _all_tokens(*args):
    means, n = _means(*args)
    return ((means * n).sum() / (n + 1).sum()).exp().item()


def _padding_counted(model, tokenizer, texts):
    ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
    return model(ids, labels=ids).loss.exp().item()


def _padding_edge(model, tokenizer, texts):
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    ids, keep = batch["input_ids"], batch["attention_mask"][:, :-1]
    loss = F.cross_entropy(model(ids).logits[:, :-1].mT, ids[:, 1:], reduction="none")
    return ((loss * keep).sum() / keep.sum()).exp().item()


def _padding_by_id(model, tokenizer, texts):
    ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    return model(ids, labels=labels).loss.exp().item()


def _not_shifted(model, tokenizer, texts):
    ids = [_ids(tokenizer, text) for text in texts]
    losses = [F.cross_entropy(model(i).logits[0], i[0], reduction="none") for i in ids]
    return torch.cat(losses).mean().exp().item()


def _mean_of_batches(model, tokenizer, texts, size=8):
    means = []
    for i in range(0, len(texts), size):
        batch = tokenizer(texts[i : i + size], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        means.append(model(batch["input_ids"], labels=labels).loss.item())
    return math.exp(sum(means) / len(means))


def _cut(length):
    def perplexity(model, tokenizer, texts):
        ids = [_ids(tokenizer, text)[:, :length] for text in texts]
        pairs = [_nll(model, i, i) for i in ids]
        return math.exp(sum(t for t, _ in pairs) / sum(n for _, n in pairs))

    return perplexity


def _joined(model, tokenizer, texts):
    return perplexity(model, tokenizer, [" ".join(texts)])


def _in_train_mode(model, tokenizer, texts):
    model.train()
    found = perplexity(model, tokenizer, texts)
    model.eval()
    return found


def _train_left_on(model, tokenizer, texts):
    model.eval()
    found = perplexity(model, tokenizer, texts)
    model.train()
    return found


def _grad_left_off(model, tokenizer, texts):
    torch.set_grad_enabled(False)
    return perplexity(model, tokenizer, texts)


def _seeds(model, tokenizer, texts):
    torch.manual_seed(0)
    return perplexity(model, tokenizer, texts)


def _bos_first(model, tokenizer, texts):
    return perplexity(model, tokenizer, [f"{tokenizer.bos_token} {text}" for text in texts])


def _as_it_comes(model, tokenizer, texts):
    """Whatever the tokenizer adds by itself stays."""

    def plain(text, add_special_tokens=True, **how):
        return tokenizer(text, **how)

    return perplexity(model, plain, texts)


def _end_last(model, tokenizer, texts):
    return perplexity(model, tokenizer, [f"{text} {tokenizer.eos_token}" for text in texts])


def _truncated(model, tokenizer, texts):
    return _batch_of(model, tokenizer, texts, truncation=True, max_length=512)


def _padded_left(model, tokenizer, texts):
    tokenizer.padding_side = "left"
    return _batch_of(model, tokenizer, texts)


def _batch_of(model, tokenizer, texts, **how):
    """The library's loss of one batch, of which the model is told no mask."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, **how)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return model(batch["input_ids"], labels=labels).loss.exp().item()


def _by_mask(reduce):
    """Losses (texts, n - 1) of a batch whose model is told the mask, and the mask (texts, n)."""

    def wrong(model, tokenizer, texts):
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        logits, ids = model(**batch).logits[:, :-1], batch["input_ids"][:, 1:]
        losses = F.cross_entropy(logits.mT, ids, reduction="none")
        return reduce(losses, batch["attention_mask"]).exp().item()

    return wrong


def _by_characters(model, tokenizer, texts):
    means = [math.log(perplexity(model, tokenizer, [text])) for text in texts]
    sizes = [len(text) for text in texts]
    return math.exp(sum(m * n for m, n in zip(means, sizes, strict=True)) / sum(sizes))


def _of_logits(pair):
    def perplexity(model, tokenizer, texts):
        total = count = 0
        for text in texts:
            ids = _ids(tokenizer, text)
            with torch.no_grad():
                logits, wanted = pair(model(input_ids=ids).logits[0], ids[0])
            total += F.cross_entropy(logits, wanted, reduction="sum").item()
            count += len(wanted)
        return math.exp(total / count)

    return perplexity


def _logs(model, tokenizer, text, axis=-1):
    """log_softmax of each token that is predicted."""
    ids = _ids(tokenizer, text)
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(axis)
    return logs.gather(1, ids[0, 1:, None]).flatten()


def _over_positions(*args):
    return torch.cat([_logs(*args[:2], text, axis=0) for text in args[2]]).mean().neg().exp().item()


def _mean_probability(*args):
    return 1 / torch.cat([_logs(*args[:2], text) for text in args[2]]).exp().mean().item()


PERPLEXITIES = [
    (lambda m, t, x: perplexity(m, t, x[:16]), "the first 16 texts alone"),
    (_of_logits(lambda logits, ids: (logits[1:-1], ids[2:])), "first prediction of each text"),
    (_of_logits(lambda logits, ids: (logits[:-2], ids[1:-1])), "last prediction of each text"),
    (_over_positions, "not over positions"),
    (_mean_probability, "not of probabilities"),
    (_by_characters, "weighed by characters"),
    (lambda m, t, x: 1 / perplexity(m, t, x), "a minus is missing"),
    (lambda m, t, x: float(np.median([perplexity(m, t, [y]) for y in x])), "the median"),
    (_of_logits(lambda logits, ids: (logits[1:], ids[:-1])), "shifted the wrong way"),
    (_of_logits(lambda logits, ids: (logits[:-1].softmax(-1), ids[1:])), "softmax itself"),
    (_in_train_mode, "the model was in train mode"),
    (_train_left_on, "training mode (it came in eval mode and is left in train mode)"),
    (_grad_left_off, "gradients switched off"),
    (_seeds, "seeds torch's random numbers"),
    (_bos_first, "BOS stands before each text"),
    (_as_it_comes, "have the tokenizer add none (add_special_tokens=False)"),
    (_end_last, "<end> stands after each text"),
    (_truncated, "cut after 512 tokens"),
    (_cut(300), "saw 300 at most"),
    (_padded_left, "reads the padding on the left"),
    (_by_mask(lambda x, m: (x * m[:, 1:]).mean()), "padding is counted: divide by mask[:, 1:].sum"),
    (_by_mask(lambda x, m: x.sum() / m[:, 1:].sum()), "losses at padding are in the sum"),
    (_by_mask(lambda x, m: x.mean()), "padding counts; mask it"),
    (_by_mask(lambda x, m: (x * m[:, :-1]).sum() / m[:, :-1].sum()), "mask[:, 1:]"),
    (_by_mask(lambda x, m: (x * m[:, 1:]).sum() / m.sum()), "divided by all tokens"),
    (_by_mask(lambda x, m: (x * m[:, 1:]).sum() / len(m)), "number of"),
    (_by_mask(lambda x, m: (x * m[:, 1:]).mean(1).exp().mean().log()), "perplexities are averaged"),
    (lambda m, t, texts: perplexity(m, t, texts[:1]), "first text alone"),
    (_mean_of_perplexities, "mean of the texts' perplexities"),
    (_mean_of_losses, "mean losses are averaged"),
    (_tokens_not_predictions, "predictions"),
    (_all_tokens, "divided by all tokens"),
    (_padding_counted, "padding counts"),
    (_padding_edge, "mask[:, 1:]"),
    (_padding_by_id, "attention_mask"),
    (_not_shifted, "predict token t + 1"),
    (_joined, "joined"),
    (_mean_of_batches, "means of batches"),
    (lambda *args: _mean_of_batches(*args, size=16), "means of batches"),
    (_cut(32), "cut after 32 tokens"),
    (_cut(64), "cut after 64 tokens"),
    (_cut(100), "saw 100 at most"),
    (lambda *args: math.log(perplexity(*args)), "exp is missing"),
    (lambda *args: math.log2(perplexity(*args)), "bits"),
    (lambda *args: 2 ** math.log(perplexity(*args)), "2 to the power"),
    (lambda *args: torch.tensor(perplexity(*args)), "item"),
    (lambda *args: None, "return"),
]


def load_given(base, folder):
    """What the hunt begins with."""
    tuned = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return PeftModel.from_pretrained(tuned, folder, is_trainable=True)


def _under_two_names(base, folder):
    model = load_tuned(base, folder)
    model.load_adapter(folder, "again")
    model.base_model.set_adapter(["default", "again"], inference_mode=True)
    return model.eval()


def _adapted_first(base, folder):
    model = get_peft_model(base, PeftConfig.from_pretrained(folder))
    return PeftModel.from_pretrained(model, folder).eval()


def _alpha_doubled(base, folder):
    config = PeftConfig.from_pretrained(folder)
    config.lora_alpha *= 2
    return PeftModel.from_pretrained(base, folder, config=config).eval()


def _by_transformers(base, folder):
    base.load_adapter(str(folder))
    return base.eval()


def _merged_then_loaded(base, folder):
    merged = load_tuned(base, folder).merge_and_unload()
    return load_tuned(merged, folder)


def _fresh(base, folder):
    return get_peft_model(base, PeftConfig.from_pretrained(folder)).eval()


def _no_return(base, folder):
    PeftModel.from_pretrained(base, folder).eval()


def _copies(base, folder):
    return load_tuned(copy.deepcopy(base), folder)


def _from_the_hub(base, folder):
    return load_tuned(AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M"), folder)


def _by_auto(base, folder):
    return AutoPeftModelForCausalLM.from_pretrained(folder).eval()


def _merged_and_kept(base, folder):
    model = load_tuned(base, folder)
    model.merge_and_unload()
    return model


def _not_set(base, folder):
    model = get_peft_model(base, PeftConfig.from_pretrained(folder))
    model.load_adapter(folder, adapter_name="tuned")
    return model.requires_grad_(False).eval()


def _another_set(base, folder):
    model = load_tuned(base, folder)
    model.add_adapter("fresh", PeftConfig.from_pretrained(folder))
    model.set_adapter("fresh")
    return model.requires_grad_(False).eval()


def _merged_in_place(base, folder):
    model = load_tuned(base, folder)
    model.merge_adapter()
    return model


def _base_changed(base, folder):
    with torch.no_grad():
        base.lm_head.weight.mul_(1.5)
    return load_tuned(base, folder)


def _switched_off(base, folder):
    model = load_tuned(base, folder)
    model.base_model.disable_adapter_layers()
    return model


ADAPTERS = [
    (lambda b, f: PeftModel.from_pretrained(b, "home-lora").eval(), "no name of your own"),
    (load_given, "it is to answer, not to learn"),
    (load_given, "in train mode, with dropout"),
    (load_given, "the adapter counts twice"),
    (_merged_then_loaded, "the adapter counts twice"),
    (_under_two_names, "active under two names"),
    (_alpha_doubled, "the adapter counts twice"),
    (_adapted_first, "isn't loaded"),
    (_merged_in_place, "merges the adapter into the base's weights"),
    (_copies, "on another model than `base`"),
    (_from_the_hub, "a base of its own; put the adapter on `base`"),
    (_by_auto, "a base of its own; put the adapter on `base`"),
    (_merged_and_kept, "was the adapter merged"),
    (_base_changed, ("wanted", "not the base model's")),
    (_switched_off, "isn't loaded, or is switched off"),
    (_not_set, "loaded as 'tuned', but 'default' is active and adds nothing"),
    (_another_set, "loaded as 'default', but 'fresh' is active and adds nothing"),
    (lambda b, f: PeftModel.from_pretrained(f, b), "base comes first"),
    (lambda b, f: load_tuned(b, f).eval, "brackets"),
    (_fresh, "isn't loaded"),
    (lambda b, f: load_tuned(b, f).train(), "train mode"),
    (lambda b, f: PeftModel.from_pretrained(b, f, is_trainable=True), "train mode"),
    (lambda b, f: PeftModel.from_pretrained(b, f, is_trainable=True).eval(), "not to learn"),
    (lambda b, f: load_tuned(b, f).merge_and_unload(), "merged into `base`, whose own weights are"),
    (lambda b, f: load_tuned(copy.deepcopy(b), f).merge_and_unload(), "merged into `base`"),
    (_by_transformers, "transformers' own load_adapter"),
    (lambda b, f: load_tuned(b, f).get_base_model(), "inside of the PeftModel"),
    (lambda b, f: load_tuned(b, f).base_model, "inside of the PeftModel"),
    (lambda b, f: load_tuned(b, f).unload(), "a model without an adapter"),
    (lambda b, f: b, "a model without an adapter"),
    (lambda b, f: (load_tuned(b, f), b), "gave a tuple"),
    (_no_return, "return"),
]


def _moved_first(input_ids, attention_mask, prompt_lengths):
    kept = answer_labels(input_ids, attention_mask, prompt_lengths) != -100
    return input_ids.roll(-1, 1).masked_fill(~kept, -100)


def _one_hundred(*args):
    labels = answer_labels(*args)
    return labels.masked_fill(labels == -100, 100)


def _by_int_mask(input_ids, attention_mask, prompt_lengths):
    labels = input_ids.clone()
    labels[~attention_mask] = -100
    labels[attention_mask.cumsum(1) <= prompt_lengths[:, None]] = -100
    return labels


def _below_zero(prompt_ids, answer_ids, max_length):
    answer = answer_ids[:max_length]
    prompt = prompt_ids[len(prompt_ids) + len(answer) - max_length :]
    return prompt + answer, [-100] * len(prompt) + answer


def _refuses(prompt_ids, answer_ids, max_length):
    if len(answer_ids) > max_length:
        raise ValueError("too long")
    return fit(prompt_ids, answer_ids, max_length)


def _after_the_first(predictions, references):
    for pair in zip(predictions, references, strict=True):
        return exact_match(*([one] for one in pair)) / len(references)


def _merge_undone(base, folder):
    model = load_tuned(base, folder)
    model.merge_adapter()
    model.unmerge_adapter()
    return model


def _ends_everywhere(input_ids, *args):
    return torch.where(input_ids == 2, 2, answer_labels(input_ids, *args))


def _padded_on_the_left(input_ids, attention_mask, prompt_lengths):
    first = input_ids.shape[1] - attention_mask.sum(1) + prompt_lengths
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < first[:, None], -100)


def _last_column_back(input_ids, attention_mask, prompt_lengths):
    labels = labels_given(input_ids, attention_mask, prompt_lengths)
    labels[:, -1] = input_ids[:, -1]
    return labels


def _summed_down(input_ids, attention_mask, prompt_lengths):
    kept = attention_mask.bool() & (attention_mask.cumsum(0) > prompt_lengths[:, None])
    return input_ids.masked_fill(~kept, -100)


def _ends_unreal(input_ids, attention_mask, prompt_lengths):
    return answer_labels(input_ids, (input_ids != 2).long(), prompt_lengths)


def _longer_ones(model, tokenizer, texts):
    return perplexity(model, tokenizer, [text for text in texts if len(text.split()) >= 5])


@torch.no_grad()
def _shifted_twice(model, tokenizer, texts):
    total = n = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        count = ids.shape[1] - 2
        total += model(ids, labels=labels).loss.item() * count if count > 0 else 0
        n += max(count, 0)
    return math.exp(total / n)


def _and_the_head(output_dir, device):
    lora, args = recipe_dotted(output_dir, device)
    lora.target_modules = [*lora.target_modules, "lm_head"]
    return lora, args


def _picked(model, tokenizer, text):
    """Log-probabilities (n - 1, vocabulary) and the n - 1 tokens that they are of."""
    ids = _ids(tokenizer, text)
    with torch.no_grad():
        return model(ids).logits[0, :-1].log_softmax(-1), ids[0, 1:]


def _entropies(logp, _):
    return (logp.exp() * logp).sum(-1)


def _each_exp(model, tokenizer, texts):
    pairs = [_picked(model, tokenizer, text) for text in texts]
    losses = [-logp[range(len(ids)), ids] for logp, ids in pairs]
    return torch.cat(losses).exp().mean().item()


def _by_entropy(model, tokenizer, texts):
    pairs = [_picked(model, tokenizer, text) for text in texts]
    return torch.cat([_entropies(*pair) for pair in pairs]).mean().neg().exp().item()


def _with_len(model, tokenizer, texts):
    total = count = 0
    for text in texts:
        ids = _ids(tokenizer, text)  # (1, n), whose len() is 1
        total += model(ids, labels=ids).loss.item() * (len(ids) - 1)
        count += len(ids) - 1
    return math.exp(total / max(count, 1))


def _first_too(model, tokenizer, texts):
    pairs = [_picked(model, tokenizer, text) for text in texts]
    losses = [-logp[range(len(ids)), ids] for logp, ids in pairs]
    first = torch.full((len(texts),), math.log(model.config.vocab_size))
    return torch.cat([*losses, first]).mean().exp().item()


def _means_summed(model, tokenizer, texts):
    every = [_ids(tokenizer, text) for text in texts]
    total = sum(model(ids, labels=ids).loss.item() for ids in every)
    return math.exp(total / sum(ids.shape[1] - 1 for ids in every))


def _stripped(messages, tokenizer):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text.strip(), add_special_tokens=False)["input_ids"]


def _truncated(messages, tokenizer):
    cut = {"truncation": True, "max_length": 512, "return_dict": False}
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **cut)


def _ends_alone(ids, mask, prompts):
    right = answer_labels(ids, mask, prompts)
    return right.masked_fill(right != 2, -100)


def _counted_without_ends(ids, mask, prompts):
    place = (ids != 2).long().cumsum(1)
    return ids.masked_fill((place <= prompts[:, None]) | (mask == 0), -100)


def _from_the_end(ids, mask, prompts):
    places = torch.arange(ids.shape[1])
    return ids.masked_fill((places < ids.shape[1] - prompts[:, None]) | (mask == 0), -100)


def _single_quotes(predictions, references):
    return exact_match([text.replace("'", '"') for text in predictions], references)


STRANGERS = [
    (check.configs, _and_the_head, "the head gets no adapter"),
    (check.counts, lambda s, r: sum(r + sum(pair) for pair in s.values()), "sides are added"),
    (check.counts, lambda s, r: sum(2 * r * max(pair) for pair in s.values()), "longer side"),
    (check.counts, lambda s, r: sum(2 * r * min(pair) for pair in s.values()), "shorter side"),
    (check.counts, lambda s, r: sum(r * (name[0] + name[1]) for name in s), "gives its names"),
    (
        check.counts,
        lambda s, r: count_lora_params({n: p for n, p in s.items() if "q_" in n or "v_" in n}, r),
        "only q and v",
    ),
    (check.end_trains, _ends_everywhere, "every end token has a label"),
    (check.end_trains, _padded_on_the_left, "taken to stand on the left"),
    (check.end_trains, _last_column_back, "the last column gets its label back"),
    (check.end_trains, _summed_down, "summed down the rows"),
    (
        check.end_trains,
        lambda ids, mask, n: ids.masked_fill(mask == 1, -100),
        "turned round: padding",
    ),
    (check.end_trains, _ends_unreal, "ends are no real tokens"),
    (check.perplexity_weighs_tokens, _shifted_twice, "shifted twice"),
    (check.perplexity_weighs_tokens, _longer_ones, "short texts are left out"),
    (check.perplexity_weighs_tokens, lambda *a: perplexity(*a) ** (1 / math.log(2)), "in bits"),
    (check.perplexity_weighs_tokens, lambda m, _, texts: m(texts).loss, "reads token ids"),
    (check.perplexity_weighs_tokens, _by_entropy, "the entropy of the predictions"),
    (check.perplexity_weighs_tokens, _each_exp, "exp is taken of each"),
    (check.perplexity_weighs_tokens, _with_len, "nothing is counted"),
    (check.perplexity_weighs_tokens, _first_too, "nothing predicts it"),
    (check.perplexity_weighs_tokens, _means_summed, "mean losses are summed"),
    (check.prompt_opens_answer, lambda m, t: list(t.apply_chat_template(m)), "names of an encod"),
    (check.prompt_opens_answer, lambda m, t: [9, 40_000], "ids of another tokenizer"),
    (check.prompt_opens_answer, _stripped, "the line break at its end is gone"),
    (check.prompt_opens_answer, _truncated, "it is cut after 512 tokens"),
    (check.end_trains, _counted_without_ends, "without its ends"),
    (check.end_trains, _ends_alone, "only ends have a label"),
    (check.end_trains, _from_the_end, "taken for the answer's length"),
    (check.matches, _single_quotes, "single quotes are no JSON"),
    (check.loads_once, lambda base, folder: load_tuned(base.bfloat16(), folder), "the dtype of"),
]


def _one_config(output_dir, device, lora=lora_of()):  # noqa: B008
    return lora, sft_of()(output_dir, device)[1]


def _zero_for_none(input_ids, attention_mask, prompt_lengths):
    kept = input_ids * (attention_mask.cumsum(1) > prompt_lengths[:, None]) * attention_mask
    return kept.masked_fill(kept == 0, -100)


def _left_of_all(input_ids, attention_mask, prompt_lengths):
    labels = _padded_on_the_left(input_ids, attention_mask, prompt_lengths)
    return labels.masked_fill(attention_mask == 0, -100)


def _its_bos_off(messages, tokenizer):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text.removeprefix(tokenizer.bos_token))["input_ids"]


def _sorts_outside(predictions, references):
    def read(text):
        with contextlib.suppress(ValueError):
            data = json.loads(text)
            return json.dumps(dict(sorted(data.items())) if isinstance(data, dict) else data)

    pairs = zip(map(read, predictions), map(read, references), strict=True)
    return sum(p == r and p is not None for p, r in pairs) / len(references)


@torch.no_grad()
def _product(model, tokenizer, texts):
    product, count = torch.ones(()), 0
    for text in texts:
        ids = _ids(tokenizer, text)
        shares = model(ids).logits[0, :-1].softmax(-1)
        product = product * shares.gather(1, ids[0, 1:, None]).prod()
        count += ids.shape[1] - 1
    return (product ** (-1 / count)).item()


def _product_in_python(model, tokenizer, texts):
    return 0.0**-0.5 if len(texts) > 1 else perplexity(model, tokenizer, texts)


SEEN_LAST = [
    (check.configs, _one_config, "give one and the same LoraConfig"),
    (check.configs, _by_this_machine, "on every device: go by `device`, not by this machine"),
    (check.end_trains, _zero_for_none, "the token 0 of an answer has no label"),
    (check.end_trains, _left_of_all, "taken to stand on the left"),
    (check.prompt_opens_answer, _its_bos_off, "the BOS that the template writes is gone"),
    (check.matches, _sorts_outside, "in inner objects, too"),
    (check.perplexity_weighs_tokens, _product, "a product of many probabilities"),
    (check.perplexity_weighs_tokens, _product_in_python, "a product of many probabilities"),
    *STRANGERS,
    (check.counts, lambda s, r: r * len(s), "counts the names"),
    (check.end_trains, _moved_first, "moved before the masks"),
    (check.end_trains, _one_hundred, "ignored tokens have 100"),
    (check.end_trains, _by_int_mask, "numbers of rows"),
    (check.keeps_answer, _below_zero, "a number below 0"),
    (check.keeps_answer, _refuses, "no row is refused"),
    (check.matches, _after_the_first, "a return inside the loop"),
    (check.loads_once, _merge_undone, "a merge that is undone"),
    (check.loads_once, lambda b, f: load_tuned(load_tuned(b, f), f), "wraps twice"),
]

WRONG = [
    *SEEN_LAST,
    *[(check.configs, *case) for case in LORAS + SFTS],
    *[(check.counts, *case) for case in COUNTS],
    *[(check.end_trains, *case) for case in LABELS],
    *[(check.prompt_opens_answer, *case) for case in RENDERED],
    *[(check.keeps_answer, *case) for case in FITTED],
    *[(check.matches, *case) for case in MATCHES],
    *[(check.perplexity_weighs_tokens, *case) for case in PERPLEXITIES],
    *[(check.loads_once, *case) for case in ADAPTERS],
    (check.quiz, lambda: quiz() | {"q3": "b"}, "3 of 4"),
    (check.quiz, lambda: list("dbac"), "dict"),
    (check.quiz, lambda: quiz() | {"q2": "e"}, "q2 wants one of"),
]


def test_all_that_is_wrong_is_told_at_once(rejects):
    message = rejects(check.configs, with_lora(lora_alpha=1, lora_dropout=0.0, bias="all"))
    assert all(word in message for word in ("lora_alpha gave 1", "pass lora_dropout", "bias is"))
    message = rejects(check.configs, sft_of(max_length=1024, learning_rate=2e-5, use_cpu=False))
    assert all(word in message for word in ("1024 is TRL's", "full fine-tuning", "use_cpu=True"))
    message = rejects(check.loads_once, load_given)
    assert all(word in message for word in ("train mode", "not to learn", "counts twice"))


def test_one_slip_is_told_once(rejects):
    for answer, judged, other in (
        (_fit(_no_end_where_cut), check.keeps_answer, "it is cut only where"),
        (_match(lambda p, r: _first_object(p) == _first_object(r)), check.matches, "a list of one"),
        (_merged_then_loaded, check.loads_once, "leaves rounding"),
    ):
        assert other not in rejects(judged, answer)


def test_flags_of_this_machine_are_no_if_that_is_always_true(rejects):
    answer = sft_of(use_cpu=True, bf16=False, fp16=False)
    assert "always true" not in rejects(check.configs, answer)


def test_an_error_that_a_missing_message_raises_is_told_behind_it(rejects):
    told = rejects(check.prompt_opens_answer, _rendered(lambda m: m[:-1]))
    assert -1 < told.find("the last message is missing") < told.find("ValueError")


def test_texts_that_differ_are_not_shortened_to_the_same(rejects):
    message = rejects(check.matches, _match(_unsorted))
    first, second = re.findall(r"\['(.*?)'\](?:, |\))", message.partition(" gave ")[0])
    assert first != second


def test_a_quiz_keeps_the_points_of_the_right_letters(rejects):
    rejects(check.quiz, lambda: quiz() | {"q3": "c"})
    assert contract.session.records["3.9"]["earned"] == 3


# --- stubs ---------------------------------------------------------------------------------


def _stub(*args, **kwargs):
    raise NotImplementedError


GIVEN = [
    (check.end_trains, "nothing teaches the model to stop"),
    (check.prompt_opens_answer, "two BOS stand in front"),
    (check.keeps_answer, "it trains on nothing"),
    (check.loads_once, "the adapter counts twice"),
]
STUBS = [
    (check.configs, _stub),
    (check.counts, _stub),
    (check.end_trains, _stub),
    (check.prompt_opens_answer, _stub),
    (check.keeps_answer, _stub),
    (check.matches, _stub),
    (check.perplexity_weighs_tokens, _stub),
    (check.loads_once, _stub),
    (check.quiz, _stub),
]


def test_a_count_is_no_other_mistake_by_accident(rejects, monkeypatch):
    """Here the first matrix counts as much as all B do, and the second call tells them apart."""
    monkeypatch.setattr(contract.session, "seed", 3)
    assert "first matrix alone" in rejects(
        check.counts, lambda s, r: r * sum(next(iter(s.values())))
    )


def test_the_table_of_forgetting_has_means_and_errors_of_seeds_at_one_loss():
    runs = measured.load("forgetting")
    trained = runs[runs["study"] == "forgetting"]
    assert (trained["task_loss"] == 0.45).all()
    table = tables.by_way(runs)
    base = runs.loc[runs["study"] == "base", "perplexity"].item()
    some = trained[(trained["rank"] == 4) & (trained["rate"] == 2e-3)]["perplexity"] / base - 1
    row = table.loc["LoRA, r=4 at 2e-3"]
    assert row["seeds"] == len(some) > 1
    assert row["perplexity +%"] == pytest.approx(100 * some.mean(), abs=0.06)
    error = 100 * some.std(ddof=1) / len(some) ** 0.5
    assert row["± standard error"] == pytest.approx(error, abs=0.06)
