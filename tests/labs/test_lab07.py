"""Lab 7's checks: right answers written differently, and wrong ones that no row expresses."""

import copy
import functools
import hashlib
import itertools
import random
from collections import Counter, defaultdict

import numpy as np
import torch
import torch.nn.functional as F

from labkit import measured
from labkit.checks import lab07 as check

# --- 7.1 -----------------------------------------------------------------------------------


def audit_in_passes(rows, tokenizer, max_length):
    """One pass per fault, by labels as a trainer has them."""
    nothing, no_end, truncated = [], [], []
    for i, turns in enumerate(row["messages"] for row in rows):
        whole = tokenizer.apply_chat_template(turns)["input_ids"]
        asked = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"]
        labels = ([-100] * len(asked) + whole[len(asked) :])[:max_length]
        empty = all(y == -100 for y in labels) or turns[-1]["content"].isspace()
        empty = empty or turns[-1]["content"] == ""
        nothing += [i] if empty else []
        no_end += [i] if not empty and all(y != tokenizer.eos_token_id for y in labels) else []
        truncated += [i] if len(whole) > max_length else []
    return {"trains_on_nothing": nothing, "no_end": no_end, "truncated": truncated, "n": len(rows)}


def audit_by_text(rows, tokenizer, max_length):
    """Rendered as text, then tokenized without special tokens of its own."""
    found = defaultdict(tuple, no_end=(), trains_on_nothing=(), truncated=())
    for i, row in enumerate(rows):
        turns, render = row["messages"], tokenizer.apply_chat_template
        texts = (
            render(turns[:-1], tokenize=False, add_generation_prompt=True),
            render(turns, tokenize=False),
        )
        prompt, ids = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts)
        answer = ids[:max_length][len(prompt) :]
        blank = turns[-1]["content"].strip() == "" or len(answer) == 0
        if len(ids) - len(ids[:max_length]):
            found["truncated"] += (i,)
        if blank:
            found["trains_on_nothing"] += (i,)
        if not blank and answer.count(tokenizer.eos_token_id) == 0:
            found["no_end"] += (np.int64(i),)
    return found


def audit_by_slices(rows, tokenizer, max_length):
    """Each fault as a list of booleans of all rows."""
    render = functools.partial(tokenizer.apply_chat_template, return_dict=False)
    ids = [render(row["messages"]) for row in rows]
    starts = [len(render(row["messages"][:-1], add_generation_prompt=True)) for row in rows]
    learned = [set(one[start:max_length]) for one, start in zip(ids, starts, strict=True)]
    blank = [not row["messages"][-1]["content"].split() for row in rows]
    flags = {
        "truncated": [len(one) > max_length for one in ids],
        "trains_on_nothing": [not a or b for a, b in zip(learned, blank, strict=True)],
    }
    ends = [tokenizer.eos_token_id in some for some in learned]
    flags["no_end"] = [not (a or b) for a, b in zip(ends, flags["trains_on_nothing"], strict=True)]
    return {key: [i for i, flag in enumerate(some) if flag] for key, some in flags.items()}


# --- 7.2 -----------------------------------------------------------------------------------


def folded(text):
    return " ".join(text.casefold().split())


def prompt_of(row):
    return folded(" ".join(m["content"] for m in row["messages"] if m["role"] == "user"))


def split_by_hash(rows, share, seed):
    """Prompts in the order of a hash; the side is whichever is nearer to its share."""

    def place(prompt):
        return hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()

    ordered = sorted(rows, key=lambda row: (place(prompt_of(row)), str(row)))
    test = []
    for _, some in itertools.groupby(ordered, key=prompt_of):
        some = list(some)
        if len(test) + len(some) / 2 <= share * len(rows):
            test += some
        else:
            break
    chosen = {prompt_of(row) for row in test}
    return [row for row in rows if prompt_of(row) not in chosen], test


def split_by_torch(rows, share, seed):
    """torch's generator; groups are taken where there is room for them."""
    prompts = sorted({prompt_of(row) for row in rows})
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    sizes = Counter(map(prompt_of, rows))
    chosen, room = set(), round(share * len(rows))
    for i in order:
        if sizes[prompts[i]] <= room:
            chosen.add(prompts[i])
            room -= sizes[prompts[i]]
    train = [row for row in rows if prompt_of(row) not in chosen]
    return [train, [row for row in rows if prompt_of(row) in chosen]]


def split_by_numpy(rows, share, seed):
    def key(row):
        said = [m["content"] for m in row["messages"] if m["role"] == "user"]
        return tuple(" ".join(text.lower().split()) for text in said)

    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    names = sorted(groups)
    np.random.default_rng(seed).shuffle(names)
    ends = np.cumsum([len(groups[tuple(name)]) for name in names])
    n = int(np.searchsorted(ends, share * len(rows)))
    test = [row for name in names[:n] for row in groups[tuple(name)]]
    return tuple([[row for name in names[n:] for row in groups[tuple(name)]], test])


# --- 7.3 -----------------------------------------------------------------------------------


def rows_by_index(w, n_heads):
    head = len(w) // n_heads
    halves = range(head // 2)
    return w[[h * head + k * head // 2 + i for h in range(n_heads) for i in halves for k in (0, 1)]]


def rows_by_stack(w, n_heads):
    heads = []
    for one in w.chunk(n_heads):
        first, second = one.chunk(2)
        heads.append(torch.stack([first, second], dim=1).flatten(0, 1))
    return torch.cat(heads)


def rows_in_place(w, n_heads):
    out, size = torch.zeros_like(w), w.shape[0] // n_heads
    for h in range(n_heads):
        block = slice(h * size, (h + 1) * size)
        out[block][0::2] = w[block][: size // 2]
        out[block][1::2] = w[block][size // 2 :]
    return out


# --- 7.4 -----------------------------------------------------------------------------------


def left_padded(model, prompts):
    settings = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
    return model.tokenizer(list(prompts), add_special_tokens=False, **settings)


def back(route):
    """`route` in eval mode, and the mode of each part as before afterwards."""

    @functools.wraps(route)
    def given_back(model, *args):
        modes = [(module, module.training) for module in model.modules()]
        try:
            return route(model.eval(), *args)
        finally:
            for module, training in modes:
                module.training = training

    return given_back


GREEDY = {"max_new_tokens": 48, "do_sample": False}


@back
def route(model, prompts, adapter_names):
    """Any token will do for padding where the mask hides it."""
    batch = left_padded(model, prompts)
    batch["input_ids"][batch["attention_mask"] == 0] = model.tokenizer.bos_token_id
    out = model.generate(**batch, adapter_names=adapter_names, **GREEDY)
    new = out[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in model.tokenizer.batch_decode(new, skip_special_tokens=True)]


@back
def route_by_side(model, prompts, adapter_names):
    tokenizer = model.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    batch = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    tokenizer.padding_side = side
    with torch.inference_mode():
        out = model.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask.bool(),
            adapter_names=list(adapter_names),
            num_beams=1,
            pad_token_id=tokenizer.eos_token_id,
            return_dict_in_generate=True,
            **GREEDY,
        )
    new = out.sequences[:, batch.input_ids.shape[-1] :]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]


@back
def route_by_hand(model, prompts, adapter_names):
    """A greedy loop without a cache."""
    tokenizer = model.tokenizer
    batch = left_padded(model, prompts)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    n, done = ids.shape[1], torch.zeros(len(ids), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(48):
            places = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0), "attention_mask": mask}
            new = model(input_ids=ids, **places, adapter_names=adapter_names).logits[:, -1]
            new = new.argmax(-1).masked_fill(done, tokenizer.eos_token_id)
            done |= new == tokenizer.eos_token_id
            ids = torch.cat([ids, new[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(new)[:, None]], 1)
    return [*map(str.strip, tokenizer.batch_decode(ids[:, n:], skip_special_tokens=True))]


# --- 7.5 -----------------------------------------------------------------------------------


def batched_sorted(x, A, B, scaling, index):
    """Rows sorted by adapter, a product per run of them, and put back; in fp32."""
    order = index.argsort(stable=True)
    sizes = torch.bincount(index + 1, minlength=len(A) + 1).tolist()
    none, *runs = x[order].float().split(sizes)
    parts = [
        s * (run @ a.float().T) @ b.float().T
        for run, a, b, s in zip(runs, A, B, scaling, strict=True)
    ]
    y = torch.cat([none.new_zeros(len(none), B.shape[1]), *parts])
    return y[order.argsort()].to(x.dtype)


def batched_padded(x, A, B, scaling, index):
    """One padded batch (k, most rows, d), multiplied by bmm; places by a dict of lists."""
    places = defaultdict(list)
    for row, k in enumerate(index.tolist()):
        places[k].append(row)
    y = torch.zeros(len(x), B.shape[1]).to(x)
    ks = [k for k in places if k >= 0]
    if ks:
        padded = torch.nn.utils.rnn.pad_sequence([x[places[k]] for k in ks], batch_first=True)
        out = torch.einsum("knd,krd->knr", padded, A[ks]).bmm(B[ks].mT)
        for k, part in zip(ks, out, strict=True):
            y[places[k]] = (part[: len(places[k])] * scaling[k]).to(x.dtype)
    return y


def batched_added(x, A, B, scaling, index):
    """index_add_ of each adapter's rows; scaled before the products."""
    y = torch.zeros(len(x), B.size(1), dtype=x.dtype)
    for k in set(index.tolist()) - {-1}:
        rows = (index == k).nonzero().squeeze(1)
        update = F.linear(F.linear(x[rows] * scaling[k].to(x.dtype), A[k]), B[k])
        y.index_add_(0, rows, update)
    return y


RIGHT = [
    *((check.audits, f) for f in (audit_in_passes, audit_by_text, audit_by_slices)),
    *((check.parts, f) for f in (split_by_hash, split_by_torch, split_by_numpy)),
    *((check.orders, f) for f in (rows_by_index, rows_by_stack, rows_in_place)),
    *((check.routes, f) for f in (route, route_by_side, route_by_hand)),
    *((check.batches, f) for f in (batched_sorted, batched_padded, batched_added)),
]

# --- wrong answers, besides the rows of lab07.toml --------------------------------------------


def audit_from_the_left(rows, tokenizer, max_length):
    tokenizer.truncation_side = "left"
    return audit_by_slices(rows, tokenizer, max_length)


def split_by_coin(rows, share, seed):
    luck = {prompt: random.Random(f"{seed} {prompt}").random() for prompt in map(prompt_of, rows)}
    test = [row for row in rows if luck[prompt_of(row)] < share]
    return [row for row in rows if row not in test], test


def route_one_by_one(model, prompts, adapter_names):
    return [route(model, [p], [n])[0] for p, n in zip(prompts, adapter_names, strict=True)]


def route_not_put_back(model, prompts, adapter_names):
    order = sorted(range(len(prompts)), key=lambda i: adapter_names[i])
    return route(model, [prompts[i] for i in order], [adapter_names[i] for i in order])


def batched_by_mask(x, A, B, scaling, index):
    """All adapters at once, and what is not wanted set to zero in the narrow middle."""
    k, r, _ = A.shape
    low = (x @ A.flatten(0, 1).T).unflatten(1, (k, r))
    chosen = F.one_hot(index + 1, k + 1)[:, 1:] * scaling.to(low.dtype)
    return (low * chosen[:, :, None]).flatten(1) @ B.transpose(1, 2).flatten(0, 1)


WRONG = [
    (check.audits, audit_from_the_left, "the tokenizer should be left as it was"),
    (check.audits, lambda *data: {"truncated": [], "no_end": []}, "include trains_on_nothing"),
    (check.parts, split_by_coin, "about 50% of the rows for every seed, not only on average"),
    (check.parts, lambda rows, share, seed: (rows, []), "not all on one side"),
    (check.parts, lambda rows, *_: (rows, rows), "rows that occur twice should be 0, not 48"),
    (check.orders, lambda w, n: rows_by_stack(w, n).T, "'s shape should be (12, 1), not (1, 12)"),
    (check.routes, route_one_by_one, "the number of prompts in a batch should be 6, not 1"),
    (check.routes, route_not_put_back, "answer"),
    (check.routes, lambda *data: [f"{text}\n" for text in route(*data)], "strip() each answer"),
    (check.routes, lambda m, p, n: route(copy.deepcopy(m), p, n), "copies the whole model"),
    (check.batches, batched_by_mask, "rows in the products should be at most 8, not 32"),
]


def test_another_template_costs_nearly_all_answers_in_every_run():
    runs = measured.by_run("ship")
    assert (runs["asked: as in training"] >= 0.9 * runs["n"]).all()
    assert (runs["asked: Llama 2's template"] < 0.1 * runs["n"]).all()
