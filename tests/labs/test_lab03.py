"""Lab 3's checks: stubs, wrong answers that learners give, right answers written differently."""

import ast
import contextlib
import copy
import dataclasses
import json
import math
import os
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

from labkit import contract
from labkit.checks import lab03 as check
from labkit.labs.lab03 import probes

# --- right answers -------------------------------------------------------------------------


def config_of(**changes):
    """A `lora_config` with some fields changed: values, or functions of (r, targets)."""

    def lora_config(r, targets):
        fields = {"r": r, "lora_alpha": 2 * r, "lora_dropout": 0.05, "bias": "none"}
        fields |= {"target_modules": targets, "task_type": "CAUSAL_LM"}
        new = {k: v(r, targets) if callable(v) else v for k, v in changes.items()}
        return LoraConfig(**fields | new)

    return lora_config


def config_briefly(r, targets):
    return LoraConfig(TaskType.CAUSAL_LM, r=r, target_modules=targets, lora_alpha=r + r) or None


def config_in_steps(r, targets):
    config = LoraConfig(r=r, lora_alpha=2.0 * r, lora_dropout=1 / 20, task_type=TaskType.CAUSAL_LM)
    config.target_modules = targets if isinstance(targets, str) else set(targets)
    return config


def config_replaced(r, targets):
    plain = LoraConfig("CAUSAL_LM", target_modules=targets, lora_dropout=5e-2, bias="none")
    return dataclasses.replace(plain, r=r, lora_alpha=r << 1)


def config_tuple(r, targets):
    targets = targets if isinstance(targets, str) else tuple(targets)
    return config_of(target_modules=targets)(r, targets)


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


def to_prompt_completion(example):
    return {"prompt": example["messages"][:-1], "completion": [example["messages"][-1]]}


def prompt_unpacked(example):
    *prompt, answer = example["messages"]
    return dict(prompt=tuple(prompt), completion=(answer,))


def prompt_kept(example):
    example["prompt"] = [dict(m) for m in example["messages"][:-1]]
    example["completion"] = example["messages"][-1:]
    return example


def prompt_popped_copy(example):
    messages = list(example.pop("messages"))
    example["messages"] = messages[:]
    answer = messages.pop()
    return {**example, "prompt": messages, "completion": [answer]}


def prompt_taken_out(example):
    messages = example.pop("messages")
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def prompt_exchanged(example):
    example["prompt"], example["completion"] = example["messages"][:-1], example["messages"][-1:]
    del example["messages"]
    return example


def sft_of(**changes):
    """An `sft_config` with some fields changed: values, or functions of the device."""

    def sft_config(output_dir, device):
        fields = {"output_dir": output_dir, "use_cpu": device == "cpu", "learning_rate": 2e-4}
        fields |= {"bf16": device == "a100", "fp16": device == "t4", "max_length": 512}
        new = {k: v(device) if callable(v) else v for k, v in changes.items()}
        return SFTConfig(**fields | new)

    return sft_config


def sft_by_table(output_dir, device):
    kinds = {"cpu": {"use_cpu": True, "bf16": False}, "t4": {"fp16": True}, "a100": {"bf16": True}}
    more = {"learning_rate": 1e-3, "warmup_steps": 0.1, "max_length": 512}
    return SFTConfig(output_dir, **more, **kinds[device])


def sft_from_path(output_dir, device):
    make = sft_of(gradient_checkpointing=False, report_to=[], packing=False)
    return make(Path(output_dir), device)


def sft_dotted(output_dir, device):
    return sft_of()(f"./{output_dir}/", device)


def sft_set_later(output_dir, device):
    config = SFTConfig(output_dir, use_cpu=device == "cpu", bf16=False, max_length=512)
    config.learning_rate, config.bf16, config.fp16 = 5e-3, device == "a100", device == "t4"
    return config


def sft_absolute(output_dir, device):
    return sft_of(completion_only_loss=True)(os.path.abspath(output_dir), device)


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
    return tokenizer(text, return_tensors="pt")["input_ids"]


def perplexity_padded(model, tokenizer, texts):
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    total, count = _nll(model, batch["input_ids"], labels)
    return float(torch.tensor(total / count).exp())


def perplexity_left(model, tokenizer, texts):
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        logp = model(**batch).logits.log_softmax(-1)[:, :-1]
    ids, keep = batch["input_ids"][:, 1:], batch["attention_mask"][:, :-1]
    picked = logp.gather(-1, ids[..., None])[..., 0]
    return math.exp(-(picked * keep).sum() / keep.sum())


def perplexity_in_batches(model, tokenizer, texts):
    total = count = 0
    for i in range(0, len(texts), 8):
        batch = tokenizer(texts[i : i + 8], return_tensors="pt", padding=True, truncation=True)
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
    batch = tokenizer(texts, return_tensors="pt", padding=True)
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


def adapter_bytes(folder):
    return (folder / "adapter_model.safetensors").stat().st_size


def bytes_os(folder):
    return os.path.getsize(os.path.join(folder, "adapter_model.safetensors"))


def bytes_read(folder):
    return sum(len(path.read_bytes()) for path in Path(str(folder)).glob("*.safetensors"))


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
    model = PeftModel.from_pretrained(base, f"{folder}", adapter_name="home", is_trainable=True)
    return model.train(False)


def quiz():
    return {"q1": "c", "q2": "d", "q3": "b"}


RIGHT = [
    (check.config, config_of()),
    (check.config, config_in_steps),
    (check.config, config_tuple),
    (check.config, config_of(init_lora_weights=True, inference_mode=False)),
    (check.config, config_replaced),
    (check.counts, count_by_names),
    (check.counts, count_in_tensors),
    (check.counts, count_lora_params),
    (check.counts, count_in_loop),
    (check.counts, count_with_tensors),
    (check.prompt_completion, to_prompt_completion),
    (check.prompt_completion, prompt_unpacked),
    (check.prompt_completion, prompt_kept),
    (check.prompt_completion, prompt_popped_copy),
    (check.prompt_completion, prompt_taken_out),
    (check.prompt_completion, prompt_exchanged),
    (check.sft, sft_of()),
    (check.sft, sft_by_table),
    (check.sft, sft_from_path),
    (check.sft, sft_dotted),
    (check.sft, sft_absolute),
    (check.sft, sft_set_later),
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
    (check.adapter_folder, adapter_bytes, load_tuned),
    (check.adapter_folder, bytes_os, load_by_parts),
    (check.adapter_folder, bytes_read, load_named),
    (check.adapter_folder, bytes_os, load_in_steps),
    (check.quiz, quiz),
    (check.quiz, lambda: {"q3": " B", "q1": "C", "q2": "d "}),
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


def _letters(r, targets):
    return list(targets)


def _later_layers(r, targets):
    targets.append("k_proj")
    return config_of()(r, targets)


CONFIGS = [
    (config_of(lora_alpha=lambda r, t: r + 2), "that is r + 2"),
    (config_of(target_modules=lambda r, t: t.split("-") if t == "all-linear" else t), "as it is"),
    (config_of(targets=["q_proj"]), "PEFT's names: r, target_modules, lora_alpha, lora_dropout"),
    (config_of(alpha=2), "PEFT's names"),
    (config_of(task_type="causal_lm"), 'here it is "CAUSAL_LM"'),
    (config_of(lora_alpha=lambda r, t: r, lora_dropout=0.0), "rank itself"),
    (config_of(lora_alpha=lambda r, t: r, lora_dropout=0.0), "pass lora_dropout"),
    (config_of(r=16), "the same for every r: pass r on"),
    (config_of(r=lambda r, t: 2 * r, lora_alpha=lambda r, t: r), "alpha is what doubles"),
    (config_of(lora_alpha=lambda r, t: r / 2), "half the rank"),
    (config_of(lora_dropout=5), "not in percent"),
    (config_of(bias=None), "the word, in quotes"),
    (config_of(target_modules=lambda r, t: "|".join(t)), "read as a pattern"),
    (config_of(target_modules=None), "not set"),
    (lambda r, targets: LoraConfig, "brackets"),
    (_later_layers, "changes its input targets"),
    (config_briefly, "lora_dropout"),
    (config_of(lora_alpha=32), ("lora_alpha gave 32", "the same for every r")),
    (config_of(lora_alpha=lambda r, t: r), "rank itself"),
    (config_of(r=8), "r gave 8"),
    (config_of(lora_dropout=0.0), "pass lora_dropout"),
    (config_of(bias="all"), 'wanted "none"'),
    (config_of(task_type=None), "language model"),
    (config_of(target_modules=["q_proj", "v_proj"]), "not passed on"),
    (config_of(target_modules=_letters), "letters"),
    (config_of(target_modules=lambda r, t: [t]), "a list inside another"),
    (config_of(target_modules=lambda r, t: [t] if isinstance(t, str) else t), "list around it"),
    (config_of(use_rslora=True), "sets use_rslora=True too"),
    (config_of(use_dora=True), "sets use_dora=True too"),
    (config_of(modules_to_save=["lm_head"]), "sets modules_to_save=['lm_head'] too"),
    (config_of(inference_mode=True), "sets inference_mode=True too"),
    (config_of(alpha_pattern={"q_proj": 1}), "sets alpha_pattern"),
    (config_of(init_lora_weights="pissa"), "sets init_lora_weights=pissa too"),
    (lambda r, targets: {"r": r}, "gave a dict"),
    (lambda r, targets: None, "return"),
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


COUNTS = [
    (_kinds, "names that end alike"),
    (lambda s, r: count_lora_params(dict(list(s.items())[:-1]), r), "last matrix is left out"),
    (_wide_alone, "k and v are left out"),
    (lambda shapes, r: count_lora_params(shapes, r) + len(shapes), "one more a matrix"),
    (lambda shapes, r: sum(r * (o + i) // 2 for o, i in shapes.values()), "half of it"),
    (lambda s, r: sum(r * (o + i) + o for o, i in s.values()), "a bias is counted too"),
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
    (_last_alone, "last matrix alone"),
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
    (lambda shapes, r: r * sum(next(iter(shapes.values()))), "one matrix"),
    (lambda shapes, r: float(count_lora_params(shapes, r)), "int"),
    (lambda shapes, r: print(end=""), "return"),
]


def _split(cut):
    """An answer from `cut(messages) -> (prompt, completion)`."""
    return lambda e: dict(zip(("prompt", "completion"), cut(e["messages"]), strict=True))


def _text(messages):
    return "\n".join(m["content"] for m in messages)


def _said(message, form):
    return message | {"content": form.format(message["content"])}


PROMPTS = [
    (_split(lambda m: (m[-2::-1], m[-1:])), "not in the order"),
    (_split(lambda m: ([*m[:-1], m[-1] | {"content": ""}], m[-1:])), "holds a message that"),
    (
        _split(lambda m: ([x | {"content": x["content"].strip()} for x in m[:-1]], m[-1:])),
        "as they",
    ),
    (_split(lambda m: (m[:-1], [m[-1] | {"content": m[-1]["content"].lower()}])), "as they are"),
    (_split(lambda m: (m[-1:], m[:-1])), "includes the answer"),
    (_split(lambda m: ([m[:-1]], [m[-1:]])), "list of messages"),
    (_split(lambda m: (m[1:-1], m[-1:])), "system message and earlier turns included"),
    (lambda e: {"prompts": e["messages"][:-1]}, "it has prompts"),
    (lambda e: {"prompt": e[:-1], "completion": e[-1:]}, 'slice example["messages"]'),
    (lambda e: {"prompt": e["messages"][:-1], "completion": [e["messages"].pop()]}, "pop()"),
    (_split(lambda m: (m[:-1], m[-1]["content"])), "completion of user, assistant is text"),
    (_split(lambda m: (_text(m[:-1]), m[-1:])), "chat template"),
    (_split(lambda m: (_text(m[:-1]), _text(m[-1:]))), "chat template"),
    (_split(lambda m: (m[:-1], m[-1])), "put it in a list"),
    (_split(lambda m: (m[:-1], m)), "whole conversation"),
    (_split(lambda m: (m, m[-1:])), "includes the answer"),
    (_split(lambda m: (m[-2:-1], m[-1:])), "system message and earlier turns"),
    (_split(lambda m: ([t for t in m if t["role"] != "assistant"], m[-1:])), "earlier turns"),
    (_split(lambda m: (m[:-1], [t for t in m if t["role"] == "assistant"])), "every answer"),
    (_split(lambda m: (m[:1], m[1:])), "completion of system, user, assistant is user, assistant"),
    (_split(lambda m: (m[:-1], [next(t for t in m if t["role"] == "assistant")])), "first answer"),
    (_split(lambda m: (m[:-1], [m[-1]["content"]])), "list of messages"),
    (
        _split(lambda m: (m[:-1], [_said(m[-1], " {}")])),
        "completion of user, assistant: a message's",
    ),
    (
        _split(lambda m: ([_said(t, "{}\n") for t in m[:-1]], m[-1:])),
        "prompt of user, assistant: a",
    ),
    (lambda e: {"completion": [e["messages"].pop()], "prompt": e["messages"]}, "pop"),
    (lambda e: (e["messages"][:-1], e["messages"][-1:]), "must return"),
    (lambda e: {"messages": e["messages"]}, "must return"),
    (lambda e: None, "must return"),
]


def _by_hardware(output_dir, device):
    return sft_of(use_cpu=not torch.cuda.is_available(), bf16=False)(output_dir, device)


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
    (lambda o, d: SFTConfig, "brackets"),
    (sft_of(use_cpu=False), "use_cpu=True"),
    (sft_of(use_cpu=True), "idle"),
    (lambda o, d: SFTConfig(o, learning_rate=2e-4), "use_cpu=True, bf16=False"),
    (lambda o, d: SFTConfig(o, learning_rate=2e-4, use_cpu=d == "cpu"), "say bf16=False"),
    (sft_of(bf16=lambda d: d != "cpu", fp16=False), "T4 has no bf16"),
    (sft_of(bf16=False, fp16=lambda d: d == "a100"), "fp32"),
    (sft_of(bf16=False, fp16=lambda d: d != "cpu"), "no gradient scaler"),
    (sft_of(learning_rate=2e-5), "full fine-tuning"),
    (sft_of(learning_rate=0.2), "too large"),
    (sft_of(max_length=None), "memory"),
    (sft_of(max_length=8), "is 8, wanted 512"),
    (sft_of(max_length=1024), "wanted 512; 1024 is TRL's default"),
    (sft_of(max_length="512"), "is '512', wanted 512"),
    (lambda o, d: SFTConfig(o, learning_rate=2e-4, use_cpu=True, bf16=False), "TRL's default"),
    (sft_of(learning_rate="2e-4"), "without quotes"),
    (sft_of(max_seq_length=512), "max_length now"),
    (sft_of(warmup_ratio=0.1), "warmup_steps now"),
    (sft_of(torch_dtype="float32"), "dtype now"),
    (sft_of(tokenizer=None), "processing_class"),
    (sft_of(nonsense=1), "unexpected keyword argument 'nonsense'"),
    (sft_of(completion_only_loss=False), "prompt too"),
    (sft_of(output_dir="here"), "pass it on"),
    (lambda o, d: {"output_dir": o}, "gave a dict"),
    (lambda o, d: None, "return"),
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
    (_train_left_on, "leaves model changed: its training mode"),
    (_grad_left_off, "gradients switched off"),
    (_seeds, "seeds torch's random numbers"),
    (_bos_first, "BOS stands before each text"),
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


def _sizes(folder):
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def _numbers(folder):
    return sum(t.numel() for t in load_peft_weights(str(folder)).values())


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
    (
        lambda f: len((f / "adapter_model.safetensors").read_text(errors="ignore")),
        load_tuned,
        "characters of text",
    ),
    (adapter_bytes, _merged_in_place, "merges the adapter into the base's weights"),
    (lambda f: adapter_bytes(f) // 1024, load_tuned, "whole kilobytes"),
    (lambda f: (f / "adapter_model.safetensors").stat(), load_tuned, "take .st_size"),
    (adapter_bytes, _copies, "on another model than `base`"),
    (adapter_bytes, _from_the_hub, "a base of its own; put the adapter on `base`"),
    (adapter_bytes, _by_auto, "a base of its own; put the adapter on `base`"),
    (adapter_bytes, _merged_and_kept, "was the adapter merged"),
    (adapter_bytes, _base_changed, ("wanted", "not the base model's")),
    (adapter_bytes, _switched_off, "switched off"),
    (adapter_bytes, lambda b, f: PeftModel.from_pretrained(f, b), "base comes first"),
    (adapter_bytes, lambda b, f: load_tuned(b, f).eval, "brackets"),
    (lambda f: f.stat().st_size, load_tuned, "folder's own entry"),
    (lambda f: os.path.getsize(f + "/adapter_model.safetensors"), load_tuned, "folder / name"),
    (lambda f: (f / "adapter_model.bin").stat().st_size, load_tuned, "adapter_model.safetensors"),
    (lambda f: sum(p.stat().st_size for p in f.glob("adapter*")), load_tuned, "no weights"),
    (lambda f: adapter_bytes(f) / 2**20, load_tuned, "MiB"),
    (lambda f: 8 * adapter_bytes(f), load_tuned, "bits"),
    (lambda f: len(os.listdir(f)), load_tuned, "count of files"),
    (
        lambda f: adapter_bytes(f) / 1000,
        lambda b, f: load_tuned(b, f).train(),
        "thousands of bytes",
    ),
    (lambda f: adapter_bytes(f) / 1000, lambda b, f: load_tuned(b, f).train(), "train mode"),
    (lambda f: sum(_sizes(f).values()), load_tuned, "whole folder"),
    (lambda f: _sizes(f)["adapter_config.json"], load_tuned, "adapter_config.json"),
    (lambda f: _sizes(f)["optimizer.pt"], load_tuned, "optimizer.pt"),
    (lambda f: adapter_bytes(f) / 1024, load_tuned, "kilobytes"),
    (lambda f: adapter_bytes(f) / 1e6, load_tuned, "megabytes"),
    (_numbers, load_tuned, "not bytes"),
    (lambda f: 4 * _numbers(f), load_tuned, "header"),
    (adapter_bytes, _fresh, "isn't loaded"),
    (adapter_bytes, lambda b, f: load_tuned(b, f).train(), "train mode"),
    (adapter_bytes, lambda b, f: PeftModel.from_pretrained(b, f, is_trainable=True), "train mode"),
    (adapter_bytes, lambda b, f: load_tuned(b, f).merge_and_unload(), "merged"),
    (adapter_bytes, lambda b, f: b, "never adapted"),
    (adapter_bytes, _no_return, "return"),
    (lambda f: None, load_tuned, "return"),
]

WRONG = [
    *[(check.config, *case) for case in CONFIGS],
    *[(check.counts, *case) for case in COUNTS],
    *[(check.prompt_completion, *case) for case in PROMPTS],
    *[(check.sft, *case) for case in SFTS],
    *[(check.matches, *case) for case in MATCHES],
    *[(check.perplexity_weighs_tokens, *case) for case in PERPLEXITIES],
    *[(check.adapter_folder, *case) for case in ADAPTERS],
    (check.quiz, lambda: {"q1": "c", "q2": "d", "q3": "a"}, "2 of 3"),
    (check.quiz, lambda: {"q1": "a", "q2": "d", "q3": "b"}, "d_in + d_out"),
    (check.quiz, lambda: ["c", "d", "b"], "dict"),
    (check.quiz, lambda: {"q1": "c", "q2": "e", "q3": "b"}, "q2 wants one of"),
]


def test_all_that_is_wrong_is_told_at_once(rejects):
    message = rejects(check.config, config_of(lora_alpha=1, lora_dropout=0.0, bias="all"))
    assert all(word in message for word in ("same for every r", "pass lora_dropout", "bias is"))
    assert message.count("lora_alpha") == 1 or "write 2 * r" in message
    message = rejects(check.sft, sft_of(max_length=1024, learning_rate=2e-5, use_cpu=False))
    assert all(word in message for word in ("1024 is TRL's", "full fine-tuning", "use_cpu=True"))


def test_a_quiz_keeps_the_points_of_the_right_letters(rejects):
    rejects(check.quiz, lambda: {"q1": "c", "q2": "d", "q3": "a"})
    assert contract.session.records["3.8"]["earned"] == 2


# --- stubs ---------------------------------------------------------------------------------


def _stub(*args, **kwargs):
    raise NotImplementedError


STUBS = [
    (check.config, _stub),
    (check.counts, _stub),
    (check.prompt_completion, _stub),
    (check.sft, _stub),
    (check.matches, _stub),
    (check.perplexity_weighs_tokens, _stub),
    (check.adapter_folder, _stub, _stub),
    (check.adapter_folder, adapter_bytes, _stub),
    (check.adapter_folder, _stub, load_tuned),
    (check.quiz, _stub),
]


def test_a_count_is_no_other_mistake_by_accident(rejects, monkeypatch):
    """Here the first matrix counts as much as all B do, and the second call tells them apart."""
    monkeypatch.setattr(contract.session, "seed", 3)
    assert "one matrix" in rejects(check.counts, lambda s, r: r * sum(next(iter(s.values()))))
