"""Probes for lab 7, which call the learner's code and return facts, `{noun: value}`.

A check compares all facts, and the learner sees the first wrong fact.
"""

import builtins
import copy
import functools
import random
from collections import Counter
from unittest import mock

import numpy as np
import torch

from labkit.probes import tiny
from labkit.probes.adapters import kind
from labkit.probes.watch import Filled, tensors

# --- 7.1 -----------------------------------------------------------------------------------

KEYS = ("truncated", "trains_on_nothing", "no_end")


@functools.cache
def chat_tokenizer(style):
    """A tokenizer with one token per word. A turn is `<role> <line> words <end> <line>`.

    A line break in a text is a token. In style "bos", template and tokenizer both add a <start>; in
    "endless", the template adds no <end>.
    """
    tokenizer = tiny.language_model(0)[1]
    special = ["<system>", "<user>", "<assistant>", "<line>", "\n"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    if style == "bos":
        tiny.add_start(tokenizer)
    end = "" if style == "endless" else "{{ eos_token }} "
    turns = "{% for m in messages %}<{{ m['role'] }}> <line> {{ m['content'] }} " + end
    turns += "<line> {% endfor %}{% if add_generation_prompt %}<assistant> <line>{% endif %}"
    tokenizer.chat_template = "{{ bos_token }} " * (style == "bos") + turns
    return tokenizer


def audited(audit, rows, max_length, style=""):
    """The three lists that `audit` returns, and whether it changes the tokenizer."""
    tokenizer = copy.deepcopy(chat_tokenizer(style))
    before, got = _settings(tokenizer), audit(rows, tokenizer, max_length)
    facts = {"the return value": kind(got)}
    if not isinstance(got, dict):
        return facts
    facts["the keys of the dict"] = [key for key in KEYS if key in got]
    values = {key: got[key] for key in KEYS if key in got}
    kinds = {kind(value) or "None" for value in values.values() if type(value) not in (list, tuple)}
    facts["each value of the dict"] = min(kinds) if kinds else "a list"
    facts |= {} if kinds else {f'"{key}"': list(value) for key, value in values.items()}
    stayed = _settings(tokenizer) == before
    return facts | {"the tokenizer": "left as it was" if stayed else "changed"}


def _settings(tokenizer):
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length
    facts = tokenizer.special_tokens_map, tokenizer.chat_template, len(tokenizer), *sides
    return (*map(str, facts), tokenizer("turn the lamp")["input_ids"])


# --- 7.2 -----------------------------------------------------------------------------------


def sides(split, rows, share, seed):
    """The row numbers of both sides, None for other items; or a description if not a pair."""
    got = split(rows, share, seed)
    if not isinstance(got, list | tuple) or len(got) != 2:
        many = isinstance(got, list | tuple)
        return f"a {type(got).__name__} of {len(got)}" if many else kind(got) or "None"
    if odd := [side for side in got if not isinstance(side, list | tuple)]:
        return f"a pair with {kind(odd[0]) or 'None'} in it"
    if any(isinstance(item, list | tuple) for side in got for item in side):
        return "two lists of lists"
    places = {row["source"]: i for i, row in enumerate(rows)}

    def number(item):
        i = places.get(item.get("source")) if isinstance(item, dict) else None
        return i if i is not None and item == rows[i] else None

    return [[number(item) for item in side] for side in got]


COUNTS = (  # 0 for right sides
    "the number of items that are not rows of the file",
    "the number of rows on neither side",
    "the number of rows that occur twice",
)


def described(sides, groups, share):
    """Facts about the two sides; `groups` has the prompt number of each row."""
    if isinstance(sides, str):
        return {"the return value": sides}
    (train, test), n = sides, len(groups)
    facts, known = {"the return value": "two lists of rows"}, Counter(train + test)
    odd, lost = known.pop(None, 0), n - len(known)
    counts = dict(zip(COUNTS, (odd, lost, sum(known.values()) - len(known)), strict=True))
    facts |= counts
    if any(counts.values()):
        return facts
    cut = len({groups[i] for i in train} & {groups[i] for i in test})
    facts["the number of prompts on both sides"] = ("0", "1", "2 or more")[min(cut, 2)]
    facts["the number of sides that have rows"] = bool(train) + bool(test)
    if not (train and test):
        return facts
    fits = abs(len(test) - share * n) <= max(Counter(groups).values())
    about = f"about {round(10 * len(test) / n) * 10}% of the rows"
    near = "a share that is off by more than the largest group"
    wrong = near if about == _about(share) else about
    return facts | {"the test side": _about(share) if fits else wrong}


def _about(share):
    return f"about {share:.0%} of the rows"


def fair(share):
    """The facts for a right split."""
    facts = {"the return value": "two lists of rows"} | dict.fromkeys(COUNTS, 0)
    facts |= {"the number of prompts on both sides": "0", "the number of sides that have rows": 2}
    return facts | {"the test side": _about(share)}


def divided(split, rows, groups, share, seeds):
    """The facts for the first wrong seed, or for the last seed if all are right."""
    for seed in seeds:
        facts = described(sides(split, rows, share, seed), groups, share)
        if facts != fair(share):
            break
    return facts


STABLE = {  # the facts for a right `split`
    "the global random numbers": "left alone",
    "the test rows of a second call": "the same",
    "the test rows of a second call with seed 0": "the same",
    "the test rows in another run of Python": "the same",
    "the test rows of the file in another order": "the same",
    "the test rows for another seed": "others",
}


def repeated(split, rows, share, orders):
    """Whether `split` repeats its test rows; `orders` are permutations of the rows."""

    def test(seed, rows=rows, salt=""):
        """The test rows; a salt changes hash(), as a new run of Python does."""
        own = builtins.hash
        with mock.patch.object(builtins, "hash", lambda x: own((salt, x)) if salt else own(x)):
            return {row["source"] for row in split(rows, share, seed)[1]}

    before, numpys = random.getstate(), np.random.get_state()
    random.seed("a state that no earlier call left")
    np.random.seed(20)
    mine = random.getstate(), np.random.get_state()[1].tolist()
    first = test(3)
    used = (random.getstate(), np.random.get_state()[1].tolist()) != mine
    random.setstate(before)
    np.random.set_state(numpys)
    pairs = [(test(i), test(i, [rows[k] for k in order])) for i, order in enumerate(orders)]
    stays = [len(a & b) / max(1, len(a | b)) for a, b in pairs]
    moved = "the same except for a few" if max(stays) > 0.6 else "others"
    values = (
        "used" if used else "left alone",
        _same(first == test(3)),
        _same(test(0) == test(0)),
        _same(first == test(3, salt="another run")),
        "the same" if min(stays) == 1 else moved,
        _same(first == test(4) == test(5)),
    )
    return dict(zip(STABLE, values, strict=True))


def _same(same):
    return "the same" if same else "others"


# --- 7.3 and 7.5 -----------------------------------------------------------------------------


def _tensor(got):
    if not isinstance(got, torch.Tensor):
        return {"the return value": kind(got)}
    facts = {"the return value": "a tensor", "its shape": str(tuple(got.shape))}
    return facts | {"its dtype": str(got.dtype)[6:], "the result": got}


def ordered(rotary_rows, w, n_heads):
    """The result of `rotary_rows`; a single column is shown as text."""
    facts = _tensor(rotary_rows(w, n_heads))
    if w.shape[1] == 1 and facts.get("its shape") == str(tuple(w.shape)):
        numbers = facts.pop("the result").flatten().tolist()
        facts["the order of the rows"] = " ".join(f"{number:g}" for number in numbers)
    return facts


def batched(batched_lora, x, A, B, scaling, index):
    """The result of `batched_lora`, with NaN wherever the function does not write."""
    with _Products():
        got = batched_lora(x, A, B, scaling, index)
    return _tensor(got)


PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "linear")}


class _Products(Filled):
    """Count operations, multiplications, and the elements of the largest tensor."""

    largest = multiplied = 0

    def seen(self, function, args, kwargs, out):
        for t in tensors(out):  # a view repeats numbers without storing them
            stored = t.untyped_storage().nbytes() // t.element_size()
            self.largest = max(self.largest, min(stored, t.numel()))
        name = function._schema.name
        if name in PRODUCTS:  # reduces the last axis of the second-to-last argument
            self.multiplied += out.numel() * args[-2].shape[-1]
        super().seen(function, args, kwargs, out)


def batched_work(batched_lora, x, A, B, scaling, index, size, name):
    """How much work `batched_lora` does; `name` has `size` elements."""
    with _Products() as work:
        batched_lora(x, A, B, scaling, index)
    pace = "a loop over rows" if work.calls >= max(200, len(x)) else "vectorized"
    large = "as large as that" if work.largest >= size else f"smaller than {name}"
    rows = work.multiplied / (A[0].numel() + B[0].numel())
    many = f"{rows:,.0f}" if rows > len(x) else f"at most {len(x)}"
    facts = {"the computation": pace, "the largest tensor": large}
    return facts | {"the number of rows in the products": many}
