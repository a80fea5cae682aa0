"""Probes for lab 7."""

import builtins
import copy
import functools
import random
from collections import Counter
from unittest import mock

import numpy as np
import torch

from labkit.contract import kind
from labkit.probes import tiny
from labkit.probes.watch import Filled, tensors

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
    before, got = tiny.settings(tokenizer), audit(rows, tokenizer, max_length)
    facts = {"the return value": "a dict" if isinstance(got, dict) else kind(got)}
    if not isinstance(got, dict):
        return facts
    facts["the keys of the dict"] = [key for key in KEYS if key in got]
    values = {key: got[key] for key in KEYS if key in got}
    kinds = {kind(value) or "None" for value in values.values() if type(value) not in (list, tuple)}
    facts["each value of the dict"] = min(kinds) if kinds else "a list"
    facts |= {} if kinds else {f'"{key}"': list(value) for key, value in values.items()}
    stayed = tiny.settings(tokenizer) == before
    return facts | {"the tokenizer": "left as it was" if stayed else "changed"}


def sides(split, rows, share, seed):
    """The sources of both sides' rows, None for a changed row; or a description if not rows."""
    got = split(rows, share, seed)
    if not isinstance(got, list | tuple) or len(got) != 2:
        many = isinstance(got, list | tuple)
        return f"a {type(got).__name__} of {len(got)}" if many else kind(got) or "None"
    if odd := [side for side in got if not isinstance(side, list | tuple)]:
        return f"a pair with {kind(odd[0]) or 'None'} in it"
    if odd := [item for side in got for item in side if not isinstance(item, dict)]:
        return f"two lists of {type(odd[0]).__name__}s"
    known = {row["source"]: row for row in rows}  # in any order: `split` may have sorted them

    def source(item):
        return item["source"] if item == known.get(item.get("source")) else None

    return [[source(item) for item in side] for side in got]


COUNTS = (  # 0 for right sides
    "the number of changed rows",
    "the number of rows on neither side",
    "the number of rows that occur twice",
)


def described(sides, groups, share):
    """Facts about the two sides; `groups` maps the source of each row to its prompt's number."""
    if isinstance(sides, str):
        return {"the return value": sides}
    (train, test), n = sides, len(groups)
    facts, known = {"the return value": "two lists of rows"}, Counter(train + test)
    odd, lost = known.pop(None, 0), n - len(known)
    counts = dict(zip(COUNTS, (odd, lost, sum(known.values()) - len(known)), strict=True))
    facts |= counts
    if any(counts.values()):
        return facts
    cut = len({groups[source] for source in train} & {groups[source] for source in test})
    facts["the number of prompts on both sides"] = ("0", "1", "2 or more")[min(cut, 2)]
    facts["the rows"] = "on both sides" if train and test else "all on one side"
    fits = abs(len(test) - share * n) <= max(Counter(groups.values()).values())
    near = abs(len(test) / n - share) < 0.25
    wrong = "only on average" if near else f"about {round(10 * len(test) / n) * 10}%"
    return facts | {"the test side": fair(share)["the test side"] if fits else wrong}


def fair(share):
    """The facts for a right split."""
    facts = {"the return value": "two lists of rows"} | dict.fromkeys(COUNTS, 0)
    facts |= {"the number of prompts on both sides": "0", "the rows": "on both sides"}
    return facts | {"the test side": f"about {share:.0%} of the rows for every seed"}


def divided(split, rows, groups, share, seeds):
    """The facts for the first wrong seed, or for the last seed if all are right."""
    for seed in seeds:
        facts = described(sides(split, rows, share, seed), groups, share)
        if facts != fair(share):
            break
    return facts


SAME = ("different ones", "the same as before")
STABLE = {  # the facts for a right `split`
    "the global random numbers": "left alone",
    "the test rows of a second call": "the same as before",
    "the test rows of a second call with seed 0": "the same as before",
    "the test rows in another run of Python": "the same as before",
    "the test rows of the same file in another order": "the same as before",
    "the test rows for another seed": "different ones",
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
    try:
        first = test(3)
        used = (random.getstate(), np.random.get_state()[1].tolist()) != mine
    finally:
        random.setstate(before)
        np.random.set_state(numpys)
    pairs = [(test(i), test(i, [rows[k] for k in order])) for i, order in enumerate(orders)]
    stays = [len(a & b) / max(1, len(a | b)) for a, b in pairs]
    moved = "mostly the same" if max(stays) > 0.6 else SAME[0]
    values = (
        "used" if used else "left alone",
        SAME[first == test(3)],
        SAME[test(0) == test(0)],
        SAME[first == test(3, salt="another run")],
        SAME[1] if min(stays) == 1 else moved,
        SAME[first == test(4) == test(5)],
    )
    return dict(zip(STABLE, values, strict=True))


def _tensor(got, shape):
    """Facts about a result; about its numbers only if it has the right shape."""
    if not isinstance(got, torch.Tensor):
        return {"the return value": kind(got)}
    facts = {"the return value": "a tensor", "the result's shape": str(tuple(got.shape))}
    facts["the result's dtype"] = str(got.dtype)[6:]
    return facts | ({"the result": got} if got.shape == shape else {})


def ordered(rotary_rows, w, n_heads):
    """The result of `rotary_rows`; a single column is shown as text."""
    facts = _tensor(rotary_rows(w, n_heads), w.shape)
    if w.shape[1] == 1 and "the result" in facts:
        numbers = facts.pop("the result").flatten().tolist()
        facts["the order of the rows"] = " ".join(f"{number:g}" for number in numbers)
    return facts


def batched(batched_lora, x, A, B, scaling, index):
    """The result of `batched_lora`, with NaN wherever the function does not write."""
    with _Products():
        return _tensor(batched_lora(x, A, B, scaling, index), (len(x), B.shape[1]))


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
    large = "as large" if work.largest >= size else f"smaller than {name}"
    rows = work.multiplied / (A[0].numel() + B[0].numel())
    many = f"{rows:,.0f}" if rows > len(x) else f"at most {len(x)}"
    facts = {"the computation": pace, "the largest tensor": large}
    return facts | {"the number of rows in the products": many}
