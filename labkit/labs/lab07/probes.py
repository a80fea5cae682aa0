"""What runs beside the learner's code in lab 7, and brings plain data back to its checks."""

import builtins
import copy
import functools
import math
import random
from unittest import mock

import numpy as np
import torch
from transformers import BatchEncoding

from labkit.contract import CheckFailed, kept
from labkit.probes import tiny
from labkit.probes.watch import Watch, tensors

ROLES = ("system", "user", "assistant")
FIELDS = (
    "len() of what apply_chat_template returns counts its fields; the ids are its ['input_ids']"
)
TURNS = "conversation roles must alternate user and assistant"


@functools.cache
def chat_tokenizer(style):
    """A tokenizer, a word a token, with a chat template that refuses odd roles, as many do.

    A turn is `<role> <line> words <end> <line>`, and a line break in it is a token. `style` is
    "plain", or "bos": template and tokenizer both put a <start> first, or "endless": it writes no
    <end>.
    """
    tokenizer = tiny.language_model(0)[1]
    special = [f"<{role}>" for role in ROLES] + ["<line>", "\n"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    if style == "bos":
        tiny.add_start(tokenizer)
    end = "" if style == "endless" else "{{ eos_token }} "
    tokenizer.chat_template = (
        ("{{ bos_token }} " if style == "bos" else "")
        + "{% set ns = namespace(turn=0) %}{% for m in messages %}"
        + "{% if not (m['role'] == 'system' and loop.first) %}"
        + "{% if m['role'] != ('user', 'assistant')[ns.turn % 2] %}"
        + "{{ raise_exception('" + TURNS + "') }}{% endif %}{% set ns.turn = ns.turn + 1 %}"
        + "{% endif %}<{{ m['role'] }}> <line> {{ m['content'] }} " + end + "<line> "
        + "{% endfor %}{% if add_generation_prompt %}<assistant> <line>{% endif %}"
    )  # fmt: skip
    return tokenizer


def audited(audit, rows, max_length, style):
    """`audit(rows, tokenizer, max_length)` with a fresh copy of `chat_tokenizer(style)`."""
    tokenizer = copy.deepcopy(chat_tokenizer(style))
    before, rendered = _state(tokenizer), tokenizer.apply_chat_template

    def apply_chat_template(*args, **kwargs):
        made = rendered(*args, **kwargs)
        if type(made) is BatchEncoding:
            made.__class__ = _Fields
        return made

    tokenizer.apply_chat_template = apply_chat_template
    counts = kept(audit, rows, tokenizer, max_length)
    if _state(tokenizer) != before:
        raise CheckFailed("it changes the tokenizer, for everybody: leave it as it is")
    return counts


def _state(tokenizer):
    sides = tokenizer.padding_side, tokenizer.truncation_side
    told = tokenizer.special_tokens_map, tokenizer.chat_template, len(tokenizer), *sides
    return (*map(str, told), tokenizer("turn the lamp")["input_ids"])


def divided(split, rows, share, seed, salt=""):
    """What `split` returns, a list of each side if it is a pair; and whether it drew from `random`.

    With a salt the built-in `hash` gives other numbers, as it does for text from run to run.
    """
    own_hash = builtins.hash
    salted = mock.patch.object(
        builtins, "hash", lambda x: own_hash((salt, x)) if salt else own_hash(x)
    )
    before, other = random.getstate(), np.random.get_state()
    with salted:
        got = split(rows, share, seed)
    moved = [not np.array_equal(a, b) for a, b in zip(other, np.random.get_state(), strict=True)]
    touched = random.getstate() != before or any(moved)
    random.setstate(before)
    np.random.set_state(other)
    pair = isinstance(got, tuple | list) and len(got) == 2
    sides = [list(side) if isinstance(side, list | tuple) else None for side in got] if pair else []
    told = sides if pair and None not in sides else None
    kind = type(got).__name__
    if pair:
        kind += " of " + " and ".join(type(side).__name__ for side in got)
    return {"sides": told, "kind": kind, "touched": touched}


class _Fields(BatchEncoding):
    """What apply_chat_template returns, to a learner who takes it for the ids."""

    def __len__(self):
        raise CheckFailed(FIELDS)


class _Shapes(Watch):
    """Counts operations, and keeps the shapes of the tensors that they make."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def seen(self, function, args, kwargs, out):
        self.shapes += [list(t.shape) for t in tensors(out)]


def batched(batched_lora, x, A, B, scaling, index):
    """What it returns, its operations, and the shapes with d_out x d_in numbers or more."""
    with _Shapes() as seen:
        y = batched_lora(x, A, B, scaling, index)
    dense = A.shape[-1] * B.shape[1]
    large = [shape for shape in seen.shapes if math.prod(shape) >= dense]
    return {"y": y, "calls": seen.calls, "large": large}


def blocks(q8_0, w):
    """What `q8_0(w)` returns, its kinds told apart: `[scales, codes]` and their dtypes."""
    got = q8_0(w)
    pair = isinstance(got, tuple | list) and len(got) == 2
    if not pair:
        raise CheckFailed(f"q8_0 gave {type(got).__name__}, wanted the pair (scales, codes)")
    for name, part in zip(("scales", "codes"), got, strict=True):
        if not isinstance(part, torch.Tensor):
            raise CheckFailed(f"q8_0: {name} are a {type(part).__name__}, wanted a tensor")
    return {"pair": list(got), "kinds": [str(p.dtype).removeprefix("torch.") for p in got]}


def turned(rotary_rows, w, n_heads):
    """What it returns."""
    return rotary_rows(w, n_heads)
