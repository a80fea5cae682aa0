"""What a model with three adapters answers and weighs: lab 7's reference for serving.

It is no probe: what runs beside the learner's code must not hold the answer.
"""

import functools
import sys

import torch
from safetensors.torch import save

from labkit.labs.lab07.fleet import ADAPTERS, NEW_TOKENS, tiny_served


def answered_alone(seed, prompts, adapter_names):
    """Each prompt's answer by itself, greedy, with its own adapter ("__base__" for none)."""
    pairs = zip(prompts, adapter_names, strict=True)
    return [_answer_alone(seed, prompt, name) for prompt, name in pairs]


@functools.lru_cache(256)
def _answer_alone(seed, prompt, name):
    model = _served(seed)
    if name == "__base__":
        with model.disable_adapter():
            return answered(model, [prompt])[0]
    model.set_adapter(name)
    return answered(model, [prompt])[0]


@functools.lru_cache(1)
def _served(seed):
    return tiny_served(seed).eval()


@functools.cache
def answered_together(seed, prompts, adapter_names, side, mask):
    """A mixed batch, with the padding on `side` and one of `masks`."""
    model = tiny_served(seed).eval()
    return answered(model, list(prompts), list(adapter_names), side, mask)


def masks(batch, pad):
    """Attention masks by name: the right one, and what is taken for it."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    others = {"none": torch.ones_like(mask), "not the pad token": (ids != pad).long()}
    others["turned round"] = mask.flip(1)
    return others | {"tokenizer's": mask}


@torch.no_grad()
def answered(model, prompts, adapter_names=None, side="left", mask="tokenizer's"):
    """Greedy answers to a batch, without the prompts."""
    padded = {"return_tensors": "pt", "padding": True, "padding_side": side}
    batch = model.tokenizer(list(prompts), **padded, add_special_tokens=False)
    ids = batch["input_ids"]
    extra = {} if adapter_names is None else {"adapter_names": adapter_names}
    out = model.generate(
        input_ids=ids,
        attention_mask=masks(batch, model.tokenizer.pad_token_id)[mask],
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        **extra,
    )
    return model.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


@functools.cache
def adapter_bytes(seed):
    """Bytes of each adapter by name, and what they are confused with, all from the tensors."""
    from peft import get_peft_model_state_dict as state

    model = tiny_served(seed, brief=True)

    def total(part, size=lambda p: p.nbytes):
        return sum(size(p) for name, p in model.named_parameters() if part(name))

    return {
        "bytes": {a: total(lambda n, a=a: f".{a}." in n) for a in ADAPTERS},
        "numbers": {a: total(lambda n, a=a: f".{a}." in n, torch.numel) for a in ADAPTERS},
        "half": {a: total(lambda n, a=a: f"lora_A.{a}." in n) for a in ADAPTERS},
        "first": {
            a: total(lambda n, a=a: f".{a}." in n and ".0.self_attn.q_proj." in n) for a in ADAPTERS
        },
        "beside": total(lambda n: "base_layer" in n),
        "file": {a: len(save(state(model, adapter_name=a), {"format": "pt"})) for a in ADAPTERS},
        "bare file": {a: len(save(state(model, adapter_name=a))) for a in ADAPTERS},
        "one": {a: total(lambda n, a=a: f".{a}." in n, lambda p: p.itemsize) for a in ADAPTERS},
        "tensors": total(lambda n: f".{ADAPTERS[0]}." in n, lambda p: 1),
        "objects": {a: total(lambda n, a=a: f".{a}." in n, sys.getsizeof) for a in ADAPTERS},
        "model": total(lambda n: True),
        "base": total(lambda n: "lora_" not in n),
    }
