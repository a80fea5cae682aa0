"""Lab 7's checks: stubs, wrong answers that learners give, right answers written differently."""

import copy
import functools
import hashlib
import itertools
import math
import random
import re
import time
from collections import Counter, defaultdict

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save

from labkit.checks import lab07 as check
from labkit.checks.lab07 import served
from labkit.labs.lab07 import fleet

# --- 7.1 -----------------------------------------------------------------------------------

KEYS = ("trains_on_nothing", "no_end", "truncated", "bad_roles", "duplicates")


def folded(text):
    return " ".join(text.casefold().split())


def roles_are_good(messages):
    roles = [m["role"] for m in messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return bool(roles) and roles == ["user", "assistant"] * (len(roles) // 2)


def audit(rows, tokenizer, max_length):
    counts, seen = dict.fromkeys(KEYS, 0), set()
    for row in rows:
        messages = row["messages"]
        if not roles_are_good(messages):
            counts["bad_roles"] += 1
            continue
        key = tuple((m["role"], folded(m["content"])) for m in messages)
        counts["duplicates"] += key in seen
        seen.add(key)
        render = functools.partial(tokenizer.apply_chat_template, return_dict=False)
        prompt, ids = render(messages[:-1], add_generation_prompt=True), render(messages)
        learned = ids[len(prompt) : max_length]
        counts["truncated"] += len(ids) > max_length
        if not learned or not messages[-1]["content"].strip():
            counts["trains_on_nothing"] += 1
        elif tokenizer.eos_token_id not in learned:
            counts["no_end"] += 1
    return counts


def audit_in_passes(rows, tokenizer, max_length):
    """One pass a fault, roles by a little machine."""

    def good(messages):
        expected = "user"
        for i, m in enumerate(messages):
            if i == 0 and m["role"] == "system":
                continue
            if m["role"] != expected:
                return False
            expected = "assistant" if expected == "user" else "user"
        return bool(messages) and messages[-1]["role"] == "assistant"

    fine = [row["messages"] for row in rows if good(row["messages"])]
    texts = [str([(m["role"], m["content"].lower().split()) for m in turns]) for turns in fine]
    nothing = no_end = truncated = 0
    for turns in fine:
        whole = tokenizer.apply_chat_template(turns)["input_ids"]
        start = len(
            tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"]
        )
        labels = ([-100] * start + whole[start:])[:max_length]
        empty = all(y == -100 for y in labels) or turns[-1]["content"].isspace()
        empty = empty or turns[-1]["content"] == ""
        nothing += empty
        no_end += not empty and all(y != tokenizer.eos_token_id for y in labels)
        truncated += len(whole) > max_length
    return {
        "trains_on_nothing": int(nothing),
        "no_end": int(no_end),
        "truncated": int(truncated),
        "bad_roles": len(rows) - len(fine),
        "duplicates": len(texts) - len(set(texts)),
    }


def audit_by_text(rows, tokenizer, max_length):
    """Rendered as text, then tokenized without special tokens of its own."""
    found, before = Counter({key: 0 for key in KEYS}), []
    for row in rows:
        messages = row["messages"]
        names = "".join(
            {"system": "s", "user": "u", "assistant": "a"}.get(m["role"], "x") for m in messages
        )
        if names.removeprefix("s").replace("ua", "") or "ua" not in names:
            found["bad_roles"] += 1
            continue
        if names.startswith("s") and "s" in names[1:]:
            found["bad_roles"] += 1
            continue
        plain = [{"role": m["role"], "content": folded(m["content"])} for m in messages]
        found["duplicates"] += plain in before
        before.append(plain)
        asked = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt, ids = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (asked, text))
        cut = ids[:max_length]
        found["truncated"] += len(cut) < len(ids)
        answer = cut[len(prompt) :]
        blank = messages[-1]["content"].strip() == ""
        found["trains_on_nothing"] += blank or len(answer) == 0
        found["no_end"] += not blank and len(answer) > 0 and tokenizer.eos_token_id not in answer
    return dict(found)


def audit_with_more(rows, tokenizer, max_length):
    """Another order of keys, and one of its own."""
    told = audit(rows, tokenizer, max_length)
    return {key: told[key] for key in sorted(told)} | {"rows": len(rows)}


def _audit(
    good=roles_are_good,
    key=lambda ms: tuple((m["role"], folded(m["content"])) for m in ms),
    prompt_options=None,
    over=lambda n, most: n > most,
    blank=lambda text: not text.strip(),
    end=lambda ids, learned, eos: eos not in learned,
    apart=True,
    go_on=False,
    ids_of=None,
    repeats=lambda key, seen: key in seen,
):
    """An audit with one of its parts written otherwise."""
    options = {"add_generation_prompt": True} if prompt_options is None else prompt_options

    def audited(rows, tokenizer, max_length):
        counts, seen = dict.fromkeys(KEYS, 0), []
        for row in rows:
            messages = row["messages"]
            if not good(messages):
                counts["bad_roles"] += 1
                if not go_on:
                    continue
            counts["duplicates"] += repeats(key(messages), seen)
            seen.append(key(messages))

            def render(some, **more):
                if ids_of:
                    return ids_of(tokenizer, some, **more)
                return tokenizer.apply_chat_template(some, return_dict=False, **more)

            prompt, ids = render(messages[:-1], **options), render(messages)
            learned = ids[len(prompt) : max_length]
            counts["truncated"] += over(len(ids), max_length)
            nothing = not learned or blank(messages[-1]["content"])
            counts["trains_on_nothing"] += nothing
            if end(ids[:max_length], learned, tokenizer.eos_token_id) and not (apart and nothing):
                counts["no_end"] += 1
        return counts

    return audited


def _starts_twice(tokenizer, messages, **more):
    text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    return tokenizer(text)["input_ids"]


def _all_of_a_kind(rows, tokenizer, max_length):
    """Counts every row that has a twin, the first one too."""
    told = audit(rows, tokenizer, max_length)
    good = [row["messages"] for row in rows if roles_are_good(row["messages"])]
    keys = [str([(m["role"], folded(m["content"])) for m in turns]) for turns in good]
    return told | {"duplicates": sum(n for n in Counter(keys).values() if n > 1)}


def _groups_alike(rows, tokenizer, max_length):
    """Counts what is repeated, and not how often."""
    told = audit(rows, tokenizer, max_length)
    good = [row["messages"] for row in rows if roles_are_good(row["messages"])]
    keys = [str([(m["role"], folded(m["content"])) for m in turns]) for turns in good]
    return told | {"duplicates": sum(n > 1 for n in Counter(keys).values())}


def _turns_in_any_order(rows, tokenizer, max_length):
    return _audit(key=lambda ms: sorted((m["role"], folded(m["content"])) for m in ms))(
        rows, tokenizer, max_length
    )


def _letters(rows, tokenizer, max_length):
    good = [row["messages"] for row in rows if roles_are_good(row["messages"])]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in good]
    told = audit(rows, tokenizer, max_length)
    return told | {"truncated": sum(len(text) > max_length for text in texts)}


def _audit_as_lists(rows, tokenizer, max_length):
    told = audit(rows, tokenizer, max_length)
    return {key: [0] * n for key, n in told.items()}


def _audit_strips(rows, tokenizer, max_length):
    for row in rows:
        for m in row["messages"]:
            m["content"] = folded(m["content"])
    return audit(rows, tokenizer, max_length)


def _audit_pads(rows, tokenizer, max_length):
    tokenizer.truncation_side = "left"
    return audit(rows, tokenizer, max_length)


def _last_two(messages):
    return [m["role"] for m in messages[-2:]] == ["user", "assistant"]


def _known_roles(messages):
    known = all(m["role"] in ("system", "user", "assistant") for m in messages)
    return known and len(messages) > 1 and messages[-1]["role"] == "assistant"


def _no_system(messages):
    roles = [m["role"] for m in messages]
    return bool(roles) and roles == ["user", "assistant"] * (len(roles) // 2)


def _one_turn(messages):
    roles = [m["role"] for m in messages]
    return roles in (["user", "assistant"], ["system", "user", "assistant"])


def _even_when_empty(messages):
    roles = [m["role"] for m in messages if m["role"] != "system"]
    return roles == ["user", "assistant"] * (len(roles) // 2)


def _one_fault_a_row(rows, tokenizer, max_length):
    """An `elif` for each fault, as if a row had one at most."""
    told, seen = dict.fromkeys(KEYS, 0), []
    for row in rows:
        one = audit([row], tokenizer, max_length)
        key = [(m["role"], folded(m["content"])) for m in row["messages"]]
        again = roles_are_good(row["messages"]) and key in seen
        fault = "duplicates" if again else next((key for key in KEYS if one[key]), None)
        if fault:
            told[fault] += 1
        seen.append(key)
    return told


def _answer_by_itself(tokenizer, messages, **more):
    """The prompt by the template, and behind it the answer's text without one."""
    if more:
        return tokenizer.apply_chat_template(messages, return_dict=False, **more)
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False
    )
    return prompt + tokenizer(messages[-1]["content"])["input_ids"]


def _pieces_joined(tokenizer, messages, **more):
    """Prompt, answer and end token: without the line break that the template writes behind it."""
    ids = _answer_by_itself(tokenizer, messages, **more)
    return ids if more else [*ids, tokenizer.eos_token_id]


def _cut_on_the_left(rows, tokenizer, max_length):
    """Keeps the last tokens of a row, so that no answer and no end is ever lost."""
    told, whole = audit(rows, tokenizer, max_length), audit(rows, tokenizer, 10**6)
    return told | {key: whole[key] for key in ("trains_on_nothing", "no_end")}


def _len_of_fields(tokenizer, messages, **more):
    """The dict of ids and mask, taken for the ids."""
    return tokenizer.apply_chat_template(messages, **more)


def _ends_with_a_cut(rows, tokenizer, max_length):
    """A row that is cut to nothing is not called truncated."""
    told, whole = audit(rows, tokenizer, max_length), 0
    for row in rows:
        one = audit([row], tokenizer, max_length)
        whole += one["truncated"] and not one["trains_on_nothing"]
    return told | {"truncated": whole}


def _blank_looked_at_no_further(rows, tokenizer, max_length):
    """A row that trains on nothing is never compared with others."""
    told = audit(rows, tokenizer, max_length)
    train = [row for row in rows if not audit([row], tokenizer, max_length)["trains_on_nothing"]]
    return told | {"duplicates": audit(train, tokenizer, max_length)["duplicates"]}


def _cut_behind_the_prompt(rows, tokenizer, max_length):
    """The prompt is taken off first, and what is left is cut."""
    told = audit(rows, tokenizer, 10**6)
    return told | {"truncated": audit(rows, tokenizer, max_length)["truncated"]}


def _prompt_that_just_fits(rows, tokenizer, max_length):
    """A prompt of max_length tokens does not train on nothing: it has no end."""
    told, one = audit(rows, tokenizer, max_length), audit(rows, tokenizer, max_length + 1)
    more = told["trains_on_nothing"] - one["trains_on_nothing"]
    return told | {
        "trains_on_nothing": one["trains_on_nothing"],
        "no_end": told["no_end"] + more,
    }


def _blank_and_cut_count_twice(rows, tokenizer, max_length):
    told = audit(rows, tokenizer, max_length)
    good = [row["messages"] for row in rows if roles_are_good(row["messages"])]
    for turns in good:
        prompt = tokenizer.apply_chat_template(
            turns[:-1], add_generation_prompt=True, return_dict=False
        )
        told["trains_on_nothing"] += len(prompt) >= max_length and not turns[-1]["content"].strip()
    return told


def _blank_anywhere(of):
    """Every message that `of` takes of a row has to say something."""

    def wrong(rows, tokenizer, max_length):
        told = audit(rows, tokenizer, max_length)
        for row in rows:
            one = audit([row], tokenizer, max_length)
            blank = any(not m["content"].strip() for m in of(row["messages"]))
            if not one["bad_roles"] and blank and not one["trains_on_nothing"]:
                told["trains_on_nothing"] += 1
                told["no_end"] -= one["no_end"]
        return told

    return wrong


def _answers_of(messages):
    return [m for m in messages if m["role"] == "assistant"]


def _first_answer_blank(rows, tokenizer, max_length):
    told = audit(rows, tokenizer, max_length)
    for row in rows if len(rows) > 1 else ():
        turns, one = row["messages"], audit([row], tokenizer, max_length)
        if not one["bad_roles"] and len(turns) > 3:
            last = not turns[-1]["content"].strip()
            told["trains_on_nothing"] += (not _answers_of(turns)[0]["content"].strip()) - last
    return told


def _pairs_by_zip(messages):
    roles = [m["role"] for m in messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    pairs = [*zip(roles[::2], roles[1::2], strict=False)]
    return bool(pairs) and all(pair == ("user", "assistant") for pair in pairs)


def _whoever_is_last(messages):
    roles = [m["role"] for m in messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return set(roles[::2]) == {"user"} and set(roles[1::2]) <= {"assistant"}


def _keeps_what_was_seen(rows, tokenizer, max_length, seen=[]):  # noqa: B006
    told = audit([*seen, *rows], tokenizer, max_length)["duplicates"]
    told -= audit(seen, tokenizer, max_length)["duplicates"]
    seen += rows
    return audit(rows, tokenizer, max_length) | {"duplicates": told}


AUDITS = [
    (_blank_anywhere(_answers_of), "a blank one before it is part of the prompt"),
    (_blank_anywhere(lambda messages: messages), "must not be blank: a question may be"),
    (_first_answer_blank, "and the first is looked at"),
    (_audit(good=_whoever_is_last), "the last message has to be the assistant's"),
    (_blank_and_cut_count_twice, "one `or`, not two ifs"),
    (
        _audit(end=lambda ids, learned, eos: bool(learned) and eos not in learned, apart=False),
        "a blank answer that is cut",
    ),
    (_audit(good=_pairs_by_zip), "pairs made by zip"),
    (_keeps_what_was_seen, "something is kept between calls"),
    (_blank_looked_at_no_further, "a row may have several faults"),
    (_cut_behind_the_prompt, "is cut on the right, before its prompt is taken off"),
    (_audit(ids_of=_len_of_fields), "counts its fields"),
    (_ends_with_a_cut, "in trains_on_nothing is not looked at for truncated"),
    (_one_fault_a_row, "a row may have several faults"),
    (_audit(ids_of=_answer_by_itself), "render the whole conversation"),
    (_audit(ids_of=_pieces_joined), "counts too: render all messages by the template, don't join"),
    (_cut_on_the_left, "cut on the right"),
    (
        _audit(go_on=True, good=lambda ms: ms[-1]["role"] == "assistant"),
        "count the row as bad_roles",
    ),
    (lambda r, t, m: {k: n / len(r) for k, n in audit(r, t, m).items()}, "not a share of the rows"),
    (_audit(prompt_options={}), '"trains_on_nothing" gave 1, wanted 2: the generation prompt'),
    (_prompt_that_just_fits, "wanted 1: a prompt of just max_length tokens leaves no label: >="),
    (_audit(repeats=lambda key, seen: seen[-1:] == [key]), "anywhere above"),
    (lambda r, t, m: {k: float(v) for k, v in audit(r, t, m).items()}, "is a float, wanted an int"),
    (_audit(over=lambda n, most: n >= most), "just max_length tokens"),
    (_audit(blank=lambda text: False), "blank answer"),
    (_audit(blank=lambda text: text == ""), "blank answer"),
    (
        _audit(end=lambda ids, learned, eos: eos not in ids),
        "each turn of the prompt has an end token",
    ),
    (_audit(end=lambda ids, learned, eos: eos not in learned[-1:]), "before the line break"),
    (_audit(apart=False), ("not counted in no_end as well", "counts as trains_on_nothing alone")),
    (_audit(key=lambda ms: str(ms)), "fold case and space"),
    (_audit(key=lambda ms: str(ms).lower()), "here case is folded, and space inside is not"),
    (_audit(key=lambda ms: str([m["content"].split() for m in ms])), "here space alone is folded"),
    (_audit(key=lambda ms: folded(ms[0]["content"])), ("answers differ", "all messages the same")),
    (_audit(key=lambda ms: folded(ms[-1]["content"])), "all messages the same"),
    (_audit(key=lambda ms: folded(" ".join(m["content"] for m in ms))), "one by one"),
    (_audit(ids_of=_starts_twice), "stands twice"),
    (
        _audit(key=lambda ms: str([folded(m["content"]) for m in ms[-2:]])),
        "the system messages differ",
    ),
    (_audit(good=_last_two), "count the row as bad_roles"),
    (_audit(good=lambda ms: True), ("count the row as bad_roles", "last message")),
    (_audit(good=_known_roles), "count the row as bad_roles"),
    (_audit(good=_no_system), "a system message may come first"),
    (_audit(good=_one_turn), 'audit of clean rows: "bad_roles" gave 1'),
    (_audit(good=_even_when_empty), "count the row as bad_roles"),
    (_all_of_a_kind, "the first of several equal rows is no duplicate"),
    (_groups_alike, "three equal rows have two"),
    (_turns_in_any_order, "the order of the turns"),
    (_letters, "not its letters"),
    (_audit_as_lists, "a count, not the rows"),
    (_audit_strips, "changes its input rows"),
    (_audit_pads, "changes the tokenizer"),
    (lambda r, t, m: None, "None"),
    (lambda r, t, m: dict.fromkeys(KEYS[:-1], 0), "lacks duplicates"),
    (lambda r, t, m: dict.fromkeys(KEYS, 0), '"trains_on_nothing" gave 0, wanted'),
]

# --- 7.2 -----------------------------------------------------------------------------------


def prompt_of(row):
    return folded(" ".join(m["content"] for m in row["messages"] if m["role"] == "user"))


def shuffled(rows, seed, key=prompt_of):
    """`{prompt: its rows}`, and the prompts in an order that depends on the seed alone."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    return groups, order


def split(rows, share, seed):
    (groups, order), train, test = shuffled(rows, seed), [], []
    for prompt in order:
        (test if len(test) < share * len(rows) else train).extend(groups[prompt])
    return train, test


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
    """torch's generator; sides as tuples of places in the file."""
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


def _split(key=prompt_of, order=sorted, chance=random.Random, size=None, turned=False):
    """A split with one of its parts written otherwise."""

    def divided(rows, share, seed):
        groups = defaultdict(list)
        for row in rows:
            groups[key(row)].append(row)
        names = order(groups)
        chance(seed).shuffle(names)
        train, test = [], []
        wanted = size(rows, groups, share) if size else share * len(rows)
        for name in names:
            (test if len(test) < wanted else train).extend(groups[name])
        return (test, train) if turned else (train, test)

    return divided


class _Still:
    def __init__(self, seed):
        pass

    def shuffle(self, names):
        pass


class _Global:
    def __init__(self, seed):
        random.seed(seed)

    def shuffle(self, names):
        random.shuffle(names)


class _NumpyGlobal(_Still):
    def __init__(self, seed):
        np.random.seed(seed)

    def shuffle(self, names):
        np.random.shuffle(names)


class _Seven(random.Random):
    def __init__(self, seed):
        super().__init__(7)


class _Clock(random.Random):
    def __init__(self, seed):
        super().__init__(time.perf_counter_ns())


def _by_rows(rows, share, seed):
    rows = sorted(rows, key=str)
    random.Random(seed).shuffle(rows)
    n = int(share * len(rows))
    return rows[n:], rows[:n]


def _by_coin(rows, share, seed):
    train, test = [], []
    for row in rows:
        luck = random.Random(f"{seed} {prompt_of(row)}").random()
        (test if luck < share / 2 else train).append(row)
    return train, test


def _by_own_hash(rows, share, seed):
    prompts = sorted({prompt_of(row) for row in rows}, key=lambda p: hash((seed, p)))
    sizes, test = Counter(map(prompt_of, rows)), set()
    for prompt in prompts:
        if sum(sizes[p] for p in test) < share * len(rows):
            test.add(prompt)
    return [r for r in rows if prompt_of(r) not in test], [r for r in rows if prompt_of(r) in test]


def _by_count_of_prompts(rows, share, seed):
    """The first prompts, a share of them, the rarest ones first: few rows."""
    sizes = Counter(map(prompt_of, rows))
    names = sorted(sizes, key=lambda p: (sizes[p], p))
    chosen = set(names[: int(share * len(names))])
    chosen = set(random.Random(seed).sample(sorted(chosen), len(chosen)))
    return [r for r in rows if prompt_of(r) not in chosen], [
        r for r in rows if prompt_of(r) in chosen
    ]


def _first_of_each(rows, share, seed):
    return split(list({prompt_of(row): row for row in rows}.values()), share, seed)


def _with_all_of_prompt(row):
    return folded(" ".join(m["content"] for m in row["messages"][:-1]))


def _lists_of_messages(rows, share, seed):
    train, test = split(rows, share, seed)
    return [row["messages"] for row in train], [row["messages"] for row in test]


def _three_sides(rows, share, seed):
    train, test = split(rows, share, seed)
    return train, test, []


def _train_keeps_all(rows, share, seed):
    return rows, split(rows, share, seed)[1]


def _marks_rows(rows, share, seed):
    for row in rows:
        row["key"] = prompt_of(row)
    train, test = split(rows, share, seed)
    for row in rows:
        del row["key"]
    rows.sort(key=str)
    return train, test


def _groups_cut(rows, share, seed):
    """Just the share of the rows, through the middle of a group."""
    ordered = sorted(rows, key=lambda row: (prompt_of(row), str(row)))
    n, start = round(share * len(rows)), 17 * seed % 40
    return ordered[:start] + ordered[start + n :], ordered[start : start + n]


def _by_opening(row):
    return folded(next(m["content"] for m in row["messages"] if m["role"] == "user"))


def _by_all_before(row):
    return folded(" ".join(m["content"] for m in row["messages"][:-1] if m["role"] != "system"))


def _by_last_turn(rows, share, seed):
    """Prompts by the last thing that the user says, and small groups first to fill the share."""
    groups, order = shuffled(rows, seed, lambda row: folded(row["messages"][-2]["content"]))
    room, test = share * len(rows), []
    for prompt in order:
        if len(test) + len(groups[prompt]) <= room:
            test += groups.pop(prompt)
    return [row for some in groups.values() for row in some], test


def _groups_whole(rows, share, seed):
    groups, order = shuffled(rows, seed)
    n = round(share * len(order))
    return [groups[prompt] for prompt in order[n:]], [groups[prompt] for prompt in order[:n]]


_KEPT = functools.cache(random.Random)  # one for all calls with a seed


def _messages_alone(rows, share, seed):
    return split([{"messages": row["messages"]} for row in rows], share, seed)


def _false_seed(seed):
    return random.Random(seed or None)


def _by_md5(rows, share, seed):
    """The seed is added to each key, and the order stays."""
    groups, _ = shuffled(rows, 0)
    place = {p: int(hashlib.md5(p.encode()).hexdigest(), 16) + seed for p in groups}
    train, test = [], []
    for prompt in sorted(groups, key=place.get):
        (test if len(test) < share * len(rows) else train).extend(groups[prompt])
    return train, test


def _share_of_train(rows, share, seed):
    (groups, order), train, test = shuffled(rows, seed), [], []
    for prompt in order:
        (test if len(test) < share * len(train) else train).extend(groups[prompt])
    return train, test


def _neighbours_alone(rows, share, seed):
    def said(row):
        return " ".join(m["content"] for m in row["messages"] if m["role"] == "user")

    ordered = sorted(rows, key=lambda row: (said(row), str(row)))
    groups = [list(some) for _, some in itertools.groupby(ordered, key=prompt_of)]
    random.Random(seed).shuffle(groups)
    train, test = [], []
    for some in groups:
        (test if len(test) < share * len(rows) else train).extend(some)
    return train, test


SPLITS = [
    (_split(chance=_false_seed), "`seed or None` is None"),
    (_by_md5, "it leaves their order"),
    (_share_of_train, "not the training rows alone"),
    (_split(size=lambda rows, groups, share: len(rows) / round(1 / share)), "1 / share is rounded"),
    (_neighbours_alone, "only neighbours are joined"),
    (_messages_alone, "hand rows on whole"),
    (_split(chance=_KEPT), "a new one in each call"),
    (_split(key=lambda row: folded(row["messages"][1]["content"])), "by their role"),
    (_by_last_turn, "that all end alike"),
    (_groups_whole, "extend() by a group"),
    (_split(key=_by_opening), "that all begin alike"),
    (_split(key=_by_all_before), "what was answered before does not count"),
    (_first_of_each, "one row of each prompt is left"),
    (
        _split(key=lambda row: prompt_of(row) + row["messages"][-1]["content"]),
        "whatever is answered",
    ),
    (_split(size=lambda rows, groups, share: 100 * share * len(rows)), "no percentage"),
    (_groups_cut, ("cut in two", "on both sides")),
    (_by_rows, "on both sides; "),
    (_split(key=lambda row: row["messages"][-2]["content"]), "two rows have one prompt"),
    (_split(key=lambda row: row["messages"][-2]["content"].lower()), "spaces inside of a prompt"),
    (
        _split(key=lambda row: tuple(row["messages"][-2]["content"].split())),
        "capitals in a prompt keep two rows apart",
    ),
    (_split(key=lambda row: row["messages"][-2]["content"].strip()), "two rows have one prompt"),
    (_split(key=_with_all_of_prompt), "the system message does not count"),
    (_split(order=list), "a dict's keys keep the order of the file"),
    (_split(order=lambda groups: sorted(groups, key=len)), "the file, and so do ties"),
    (_split(order=lambda groups: list(set(groups))), "as a set does: its order changes from run"),
    (_split(chance=_Still), "give the same test rows"),
    (_split(chance=_Seven), "give the same test rows"),
    (_split(chance=_Clock), "the second time"),
    (_split(chance=_Global), "random numbers, which all share"),
    (_split(turned=True), "turned round"),
    (_split(size=lambda rows, groups, share: 20), "the share is not used"),
    (_split(size=lambda rows, groups, share: share * len(groups)), "taken for that of the rows"),
    (_by_coin, "a coin for each misses it"),
    (_by_count_of_prompts, "here a part of the prompts"),
    (_split(size=lambda rows, groups, share: (1 - share) * len(rows)), "the training side's"),
    (_by_own_hash, "another run of Python"),
    (_first_of_each, "on neither side"),
    (_train_keeps_all, "there twice"),
    (_lists_of_messages, "not those of the file"),
    (_three_sides, "wanted two lists"),
    (_marks_rows, "changes its input rows"),
    (_split(chance=_NumpyGlobal), "random numbers, which all share"),
    (lambda rows, share, seed: split(rows, share, 0), "give the same test rows"),
    (lambda rows, share, seed: split(rows[:-3], share, seed), "on neither side"),
    (lambda rows, share, seed: None, "wanted two lists"),
    (lambda rows, share, seed: (rows, []), "the test side is empty"),
]

# --- 7.3 -----------------------------------------------------------------------------------


def rotary_rows(w, n_heads):
    d_out = w.shape[0]
    return w.reshape(n_heads, 2, d_out // n_heads // 2, -1).transpose(1, 2).reshape(w.shape)


def rows_by_index(w, n_heads):
    head = len(w) // n_heads
    order = [
        h * head + half * head // 2 + i
        for h in range(n_heads)
        for i in range(head // 2)
        for half in (0, 1)
    ]
    return w[order]


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


def rows_permuted(w, n_heads):
    return w.view(n_heads, 2, -1, w.shape[1]).permute(0, 2, 1, 3).contiguous().view_as(w)


def _numpy_rows(w, n_heads):
    return rotary_rows(w.float(), n_heads).numpy()


def _second_half_backwards(w, n_heads):
    first, second = w.reshape(n_heads, 2, -1, w.shape[1]).unbind(1)
    return torch.stack([first, second.flip(1)], 2).reshape(w.shape)


def _first_head_alone(w, n_heads):
    out, size = w.clone(), len(w) // n_heads
    out[:size] = rotary_rows(w[:size], 1)
    return out


def _order_alone(w, n_heads):
    return rotary_rows(torch.arange(len(w))[:, None], n_heads)[:, 0]


def _columns_moved(w, n):
    return w.reshape(len(w), n, 2, -1).transpose(2, 3).reshape(w.shape)


def _as_if_square(w, n):
    d_in = w.shape[1]
    return w.reshape(n, 2, -1, d_in).transpose(1, 2).reshape(d_in, d_in)


def _overwritten(w, n):
    out = w.clone()
    for head in out.chunk(n):
        first, second = head.chunk(2)
        head[0::2] = first
        head[1::2] = second
    return out


def _of_columns(w, n):
    """Heads by slices, of d_in / n_heads rows each."""
    head = w.shape[1] // n
    parts = [w[i * head : (i + 1) * head].unflatten(0, (2, -1)) for i in range(n)]
    return torch.cat([part.transpose(0, 1).flatten(0, 1) for part in parts])


ROWS = [
    (_of_columns, "d_in stands where d_out belongs"),
    (
        lambda w, n: w.reshape(-1, 2, w.shape[1] // n // 2, w.shape[1]).mT.reshape(w.shape),
        "sizes from w",
    ),
    (
        lambda w, n: (
            w.reshape(-1, 2, w.shape[1] // n // 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
        ),
        "d_in stands where d_out belongs",
    ),
    (
        lambda w, n: w.reshape(2, n, -1, w.shape[1]).permute(1, 2, 0, 3).reshape(w.shape),
        "the heads' axis stands before that of the halves",
    ),
    (
        lambda w, n: w.reshape(n, 2, w.shape[1] // n // 2, -1).transpose(1, 2).reshape(w.shape),
        "with d_out / n_heads / 2 in a half",
    ),
    (_overwritten, "read while it is overwritten"),
    (lambda w, n: rotary_rows(w[: len(w) // n], 1).repeat(n, 1), "all heads are head 0"),
    (lambda w, n: w if len(w) < w.shape[1] else rotary_rows(w, n), "and elsewhere rows do"),
    (_order_alone, "that is the order of the rows"),
    (lambda w, n: w.reshape(n, 2, -1, w.shape[1]).transpose(1, 2), "together again"),
    (lambda w, n: w.reshape(n, 2, -1).transpose(1, 2).reshape(w.shape), "single numbers"),
    (lambda w, n: w, "nothing moves"),
    (lambda w, n: w.clone(), "nothing moves"),
    (
        lambda w, n: torch.cat(w.reshape(n, -1, w.shape[1]).chunk(2, 1), 1).reshape(w.shape),
        "stacked on their own axis, or concatenated",
    ),
    (lambda w, n: w.reshape(n, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape), "other way"),
    (lambda w, n: rotary_rows(w, 1), "the halves are those of the whole matrix"),
    (lambda w, n: w.reshape(n, 2, -1, w.shape[1]).flip(1).reshape(w.shape), "change places"),
    (
        lambda w, n: w.reshape(n, 2, -1, w.shape[1]).flip(1).transpose(1, 2).reshape(w.shape),
        "second half comes first",
    ),
    (
        lambda w, n: w.reshape(n, -1, w.shape[1]).transpose(0, 1).reshape(w.shape),
        "heads themselves",
    ),
    (lambda w, n: w.reshape(n, 2, -1, w.shape[1]).transpose(0, 1).reshape(w.shape), "all heads"),
    (lambda w, n: rotary_rows(w, n).T, "shape"),
    (lambda w, n: rotary_rows(w.float(), n), "rows move, numbers stay"),
    (_numpy_rows, "rows move, numbers stay"),
    (lambda w, n: w.reshape(n, -1, w.shape[1]).flip(1).reshape(w.shape), "turned round"),
    (lambda w, n: w.reshape(n, 2, -1), "has shape"),
    (lambda w, n: rotary_rows(w, n).flatten(), "has shape"),
    (lambda w, n: rotary_rows(rotary_rows(w, n), n), "it is done twice"),
    (lambda w, n: w.reshape(n, -1, 2, w.shape[1]).flip(2).reshape(w.shape), "in a small case"),
    (lambda w, n: w[torch.arange(len(w)).roll(1)], "in another head"),
    (_second_half_backwards, "come one after the other from its second half"),
    (_first_head_alone, "each head is done alike"),
    (lambda w, n: rotary_rows(w, n) * torch.tensor([1, -1]).repeat(len(w) // 2)[:, None], "sign"),
    (lambda w, n: w[: len(w) // n], "the rows of one head come back"),
    (lambda w, n: w.reshape(n, 2, 32, -1).transpose(1, 2).reshape(w.shape), "sizes from w"),
    (lambda w, n: rotary_rows(w, n).tolist(), "a list"),
    (_columns_moved, "the columns move"),
    (
        lambda w, n: w.reshape(n, 2, -1, w.shape[0]).transpose(1, 2).reshape(w.shape),
        "d_out and d_in change places",
    ),
    (_as_if_square, "only in a square w is that right"),
    (lambda w, n: None, "None"),
    (lambda w, n: w.copy_(rotary_rows(w, n)), "changes its input w"),
]

# --- 7.4 -----------------------------------------------------------------------------------


def half_away(x):
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


def q8_0(w):
    blocks = w.float().reshape(-1, 32)
    d = blocks.abs().amax(1) / 127
    codes = half_away(torch.where(d[:, None] > 0, blocks / d[:, None], 0.0))
    return d.half(), codes.to(torch.int8)


def q8_by_inverse(w):
    blocks = w.to(torch.float32).flatten().unflatten(0, (-1, 32))
    scale = blocks.abs().max(dim=-1, keepdim=True).values / 127.0
    inverse = torch.nan_to_num(1 / scale, posinf=0.0)
    x = blocks * inverse
    return scale.squeeze(1).to(torch.float16), (x + 0.5 * x.sign()).trunc().char()


def q8_by_numpy(w):
    blocks = w.float().numpy().reshape(-1, 32)
    d = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    x = np.divide(blocks, d, out=np.zeros_like(blocks), where=d > 0)
    whole = np.trunc(x)
    codes = whole + np.trunc(2 * (x - whole))
    return torch.from_numpy(d[:, 0].astype(np.float16)), torch.from_numpy(codes.astype(np.int8))


def q8_by_gguf(w):
    data = gguf.quants.quantize(w.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    data = torch.from_numpy(data.copy()).view(-1, 34)
    return [data[:, :2].contiguous().view(torch.half).flatten(), data[:, 2:].view(torch.int8)]


def q8_in_double(w):
    blocks = w.double().reshape(-1, 32)
    top = torch.maximum(blocks.amax(1), -blocks.amin(1))
    d = (top.float() / 127).clamp_min(0)
    x = blocks / d.double().clamp_min(1e-30)[:, None]
    return d.to(torch.float16), (x.abs() + 0.5).floor().mul(x.sign()).to(torch.int8)


def _q8(
    top=lambda b: b.abs().amax(1),
    by=127,
    rounded=half_away,
    low=False,
    blocks=lambda w: w.float().reshape(-1, 32),
    kinds=(torch.float16, torch.int8),
):
    """A q8_0 with one of its parts written otherwise."""

    def quantized(w):
        some = blocks(w)
        d = top(some) / by
        used = d.half().float() if low else d
        codes = rounded(torch.where(used[:, None] != 0, some / used[:, None], 0.0))
        return d.to(kinds[0]), codes.to(kinds[1])

    return quantized


def _q8_nan(w):
    blocks = w.float().reshape(-1, 32)
    d = blocks.abs().amax(1) / 127
    return d.half(), half_away(blocks / d[:, None]).nan_to_num(7).to(torch.int8)


def _q8_eps(w):
    blocks = w.float().reshape(-1, 32)
    d = (blocks.abs().amax(1) / 127).clamp_min(1e-4)
    return d.half(), half_away(blocks / d[:, None]).to(torch.int8)


def _q8_clamped(w):
    """The largest size is kept above 1e-5, and stored so."""
    blocks = w.float().reshape(-1, 32)
    d = blocks.abs().amax(1).clamp(min=1e-5) / 127
    return d.half(), half_away(blocks / d[:, None]).to(torch.int8)


def _q8_more(w):
    """The scale is made a little larger, so that nothing is divided by 0."""
    blocks = w.float().reshape(-1, 32)
    d = blocks.abs().amax(1) / 127
    return d.half(), half_away(blocks / (d[:, None] + 1e-6)).to(torch.int8)


def _q8_rows(w):
    d = w.float().abs().amax(1, keepdim=True) / 127
    codes = half_away(torch.where(d > 0, w.float() / d, 0.0)).reshape(-1, 32)
    return d[:, 0].repeat_interleave(w.shape[1] // 32).half(), codes.to(torch.int8)


def _q8_whole(w):
    d = w.float().abs().max() / 127
    codes = half_away(w.float() / d).reshape(-1, 32)
    return d.expand(len(codes)).half(), codes.to(torch.int8)


def _q8_columns(w):
    scales, codes = q8_0(w)
    return scales, codes.reshape(-1, 32, 1)


def _q8_of(codes, top=lambda b: b.abs().amax(1), blocks=lambda w: w.float().reshape(-1, 32)):
    """A q8_0 whose codes are made of (blocks, scales)."""

    def quantized(w):
        d = top(blocks(w)) / 127
        return d.half(), codes(blocks(w), d[:, None]).nan_to_num(0).to(torch.int8)

    return quantized


def _q8_added(w):
    """A little is added to every scale."""
    blocks = w.float().reshape(-1, 32)
    d = blocks.abs().amax(1) / 127 + 1e-5
    return d.half(), half_away(blocks / d[:, None]).to(torch.int8)


def _q8_above(low):
    def wrong(w):
        blocks = w.float().reshape(-1, 32)
        d = blocks.abs().amax(1) / 127
        return d.half(), half_away(blocks / d.clamp_min(low)[:, None]).to(torch.int8)

    return wrong


def _q8_slabs(w):
    return q8_0(torch.cat(w.float().split(32, dim=1)))


def _q8_half_scales(w):
    return w.float().reshape(-1, 32).abs().amax(1).half() / 127, q8_0(w)[1]


EIGHTS = [
    (_q8(rounded=lambda x: (x + 1e-3 * x.sign()).round()), "takes up what is just below a half"),
    (_q8_slabs, "all rows' first blocks come first"),
    (_q8_half_scales, "the scale is computed in fp16"),
    (_q8_above(torch.finfo(torch.half).tiny), "is there a smallest one"),
    (_q8(rounded=lambda x: (x + 1e-6 * x.sign()).round()), "a nudge before rounding"),
    *[(_q8_above(low), f"kept above {low:.0g} here") for low in (1e-3, 1e-5, 1e-6)],
    (_q8(rounded=lambda x: x.sign() * x.abs().ceil()), "away from 0, whatever the fraction"),
    (_q8_clamped, "wanted 0: a least scale (clamp, eps)"),
    (_q8_added, "wanted 0: a least scale (clamp, eps)"),
    (_q8(rounded=lambda x: half_away(x).abs()), "the sign is lost"),
    (_q8(blocks=lambda w: w.half().float().reshape(-1, 32)), "weights themselves are rounded"),
    (_q8(rounded=lambda x: (x + 0.5).trunc()), "int(x + 0.5)"),
    (_q8(rounded=lambda x: half_away(x).clamp_max(126)), "127 is a code, too"),
    (lambda w: (q8_0(w)[0].flip(0), q8_0(w)[1]), "right scales, in another order"),
    (lambda w: (q8_0(w)[0], q8_0(w)[1].roll(1, 1)), "right codes, in another order"),
    (_q8(rounded=lambda x: x.sign() * (x.abs() + 0.5).ceil()), "one too far from 0"),
    (_q8_of(lambda b, d: half_away(b * d)), "*divided* by the scale"),
    (_q8_of(lambda b, d: half_away(b / d / 127)), "from -1 to 1"),
    (_q8(blocks=lambda w: w.float().reshape(32, -1).T), "reshape(-1, 32)"),
    (_q8(top=lambda b: b.abs().mean(1)), "mean of the sizes"),
    (lambda w: (q8_0(w)[0].reshape(len(w), -1), q8_0(w)[1]), "block after block"),
    (_q8_more, "is the scale made larger by something"),
    (_q8(by=128), "divided by 128"),
    (_q8(by=127.5), "127.5"),
    (_q8(by=255), "divided by 255"),
    (_q8(by=1), "a 127th of it"),
    (_q8(rounded=torch.round), "even neighbour"),
    (_q8(rounded=torch.trunc), "cuts the fraction off"),
    (_q8(rounded=torch.floor), "rounds down"),
    (_q8(rounded=lambda x: (x + 0.5).floor()), "negative side"),
    (_q8(low=True), "that fp16 has rounded"),
    (_q8(top=lambda b: b.amax(1)), "without abs()"),
    (_q8(top=lambda b: b.amax(1) - b.amin(1), by=255), "the range"),
    (_q8(top=lambda b: b.gather(1, b.abs().argmax(1, keepdim=True))[:, 0]), "keeps the sign"),
    (
        _q8(top=lambda b: -b.gather(1, b.abs().argmax(1, keepdim=True))[:, 0]),
        "turned round as in Q4_0",
    ),
    (_q8(kinds=(torch.float32, torch.int8)), "wanted float16"),
    (_q8(kinds=(torch.float16, torch.float32)), "wanted int8"),
    (_q8(kinds=(torch.float16, torch.uint8)), "wanted int8"),
    (_q8(kinds=(torch.bfloat16, torch.int8)), "wanted float16"),
    (_q8(by=7), "the largest size over 7, wanted over 127"),
    (_q8(by=126), "1.008 times the wanted"),
    (_q8(rounded=torch.ceil), "it rounds up"),
    (lambda w: (2 * q8_0(w)[0], q8_0(w)[1]), "2 times the wanted"),
    (lambda w: (q8_0(w)[0], -q8_0(w)[1]), "codes carry the sign"),
    (_q8_nan, "0 / 0 is no number"),
    (_q8_eps, "a least scale (clamp, eps)"),
    (_q8(top=lambda b: b.abs().amax(1).where(b.any(1), 127.0)), "another stand-in for 0"),
    (_q8_rows, "each row of w"),
    (_q8_whole, "the whole matrix"),
    (_q8_columns, "a row a block"),
    (_q8(blocks=lambda w: w.float().reshape(-1, 64)), "one for each 32 neighbours"),
    (lambda w: q8_0(w)[::-1], "turned round"),
    (lambda w: q8_0(w)[1], "wanted the pair"),
    (lambda w: (q8_0(w)[0][:, None], q8_0(w)[1]), "one number a block"),
    (
        lambda w: (
            127 / w.float().reshape(-1, 32).abs().amax(1).clamp_min(1e-9).clamp_max(6e4)
        ).half(),
        "pair",
    ),
    (lambda w: q8_0(w.mul_(1.5)), "changes its input w"),
    (lambda w: None, "pair"),
]

# --- 7.6 -----------------------------------------------------------------------------------


def batched_lora(x, A, B, scaling, index):
    chosen = index.clamp_min(0)
    low = torch.bmm(A[chosen], x[:, :, None])
    y = torch.bmm(B[chosen], low)[:, :, 0]
    return (y * (scaling[chosen] * (index >= 0))[:, None]).to(x.dtype)


def batched_by_einsum(x, A, B, scaling, index):
    low = torch.einsum("nd,nrd->nr", x, A[index])
    y = torch.einsum("nr,nor->no", low, B[index]) * scaling[index].unsqueeze(-1).to(x.dtype)
    return y.masked_fill((index == -1)[:, None], 0.0)


def batched_by_adapter(x, A, B, scaling, index):
    """A loop over adapters and not over rows."""
    y = x.new_zeros(len(x), B.shape[1])
    for k in range(len(A)):
        mine = index == k
        y[mine] = scaling[k] * (x[mine] @ A[k].T @ B[k].T)
    return y


def batched_by_mask(x, A, B, scaling, index):
    """All adapters at once, and what is not wanted set to zero in the narrow middle."""
    k, r, _ = A.shape
    low = (x @ A.flatten(0, 1).T).unflatten(1, (k, r))
    chosen = F.one_hot(index + 1, k + 1)[:, 1:] * scaling.to(low.dtype)
    return (low * chosen[:, :, None]).flatten(1) @ B.transpose(1, 2).flatten(0, 1)


def batched_with_zero(x, A, B, scaling, index):
    """A further adapter of zeros, which -1 finds."""
    A, B = (torch.cat([M, torch.zeros_like(M[:1])]) for M in (A, B))
    s = torch.cat([scaling, scaling.new_zeros(1)])
    low = (A[index] @ x.unsqueeze(-1)).squeeze(-1) * s[index, None]
    return (B[index] * low[:, None, :]).sum(-1).type_as(x)


def _as_scaled(x, A, B, scaling, index):
    """It comes back in what scaling makes of it."""
    y = torch.bmm(B[index], torch.bmm(A[index], x[:, :, None]))[:, :, 0]
    return y * (scaling[index] * (index >= 0))[:, None]


def _scaled_between(x, A, B, scaling, index):
    low = torch.bmm(A[index], x[:, :, None]) * (scaling[index] * (index >= 0))[:, None, None]
    return torch.bmm(B[index], low)[:, :, 0]


def _batched(wrap=False, scaled=lambda s, i: s[i], masked=True):
    def together(x, A, B, scaling, index):
        y = torch.bmm(B[index], torch.bmm(A[index], x[:, :, None]))[:, :, 0]
        y = y * scaled(scaling, index)[:, None]
        return y * (index >= 0)[:, None] if masked else y

    return together


def _in_a_loop(x, A, B, scaling, index):
    y = x.new_zeros(len(x), B.shape[1])
    for i, k in enumerate(index.tolist()):
        if k >= 0:
            y[i] = scaling[k] * (B[k] @ (A[k] @ x[i]))
    return y


def _in_a_list(x, A, B, scaling, index):
    zero = torch.zeros(B.shape[1])
    rows = [
        scaling[k] * (B[k] @ (A[k] @ v)) if k >= 0 else zero for v, k in zip(x, index, strict=True)
    ]
    return torch.stack(rows)


def _dense(x, A, B, scaling, index):
    W = (scaling[:, None, None] * B @ A)[index]
    return torch.einsum("noi,ni->no", W, x) * (index >= 0)[:, None]


def _dense_each(x, A, B, scaling, index):
    y = x.new_zeros(len(x), B.shape[1])
    for k in range(len(A)):
        y[index == k] = x[index == k] @ (scaling[k] * B[k] @ A[k]).T
    return y


def _grouped_only(x, A, B, scaling, index):
    parts = [scaling[k] * x[index == k] @ A[k].T @ B[k].T for k in range(len(A))]
    none = x.new_zeros(int((index < 0).sum()), B.shape[1])
    return torch.cat([none, *parts])


def _summed_over_all(x, A, B, scaling, index):
    low = torch.einsum("kri,ni->nr", A, x)
    return torch.einsum("kor,nr->no", B, low) * (scaling[index] * (index >= 0))[:, None]


def _the_next_one(x, A, B, scaling, index):
    return batched_lora(x, A, B, scaling, torch.where(index < 0, -1, (index + 1) % len(A)))


def _b_first(x, A, B, scaling, index):
    return torch.bmm(A[index].mT, torch.bmm(B[index].mT, x[:, :, None]))[:, :, 0]


def _squeezed(x, A, B, scaling, index):
    """Of one row the axis of the rows goes, too."""
    h = torch.bmm(A[index], x[:, :, None]).squeeze()
    y = torch.bmm(B[index], h[..., None]).squeeze(2) * scaling[index][:, None]
    return y * (index >= 0)[:, None]


def _ordered_twice(x, A, B, scaling, index):
    order = index.argsort(stable=True)
    return batched_lora(x[order], A, B, scaling, index[order])[order]


def _tiled(x, A, B, scaling, index):
    k, r, _ = A.shape
    chosen = (F.one_hot(index + 1, k + 1)[:, 1:] * scaling).repeat(1, r)
    return (x @ A.flatten(0, 1).T * chosen) @ B.transpose(1, 2).flatten(0, 1)


def _zeros_as_x(x, A, B, scaling, index):
    return torch.where(
        index[:, None] < 0, torch.zeros_like(x), batched_lora(x, A, B, scaling, index)
    )


BATCHES = [
    (_as_scaled, "wanted the dtype of x; scaling is in float32 there"),
    (_scaled_between, "x, A and B are in bfloat16: scaling is in float32 there"),
    (
        lambda x, A, B, s, i: batched_lora(x, A, B, s, i).float(),
        "wanted the dtype of x; torch.zeros and .float() give fp32",
    ),
    (_ordered_twice, "the right rows in another order"),
    (_tiled, "mixes ranks of several adapters"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i).squeeze(), "squeeze() without an axis"),
    (_zeros_as_x, "zeros are of the result's shape"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i) + x, "it is the update alone"),
    (_squeezed, "squeeze() without an axis"),
    (
        lambda x, A, B, s, i: batched_lora(x, A.reshape(4, 64, 3).mT, B, s, i),
        "A is reshaped where it has to be transposed",
    ),
    (_b_first, "x passes through A first"),
    (_summed_over_all, "are summed over all adapters"),
    (_the_next_one, "of the updates B A x, row 0"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s.mean().expand(4), i), "mean of the scalings"),
    (
        lambda x, A, B, s, i: batched_lora(x, A, B, s, i).masked_fill(i[:, None] < 0, math.nan),
        "are NaN; they get zeros",
    ),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, torch.where(i > 0, i, -1)), "adapter 0 is one"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i).relu(), "cut off"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i).abs(), "is not linear in x"),
    (lambda x, A, B, s, i: batched_lora(F.normalize(x), A, B, s, i), "is not linear in x"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i).cumsum(0), "each row stands for itself"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s * A.shape[1], i), "times the rank"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i) / x.shape[1] ** 0.5, "sqrt(d_in)"),
    (lambda x, A, B, s, i: torch.bmm(A[i], x[:, :, None])[:, :, 0], "that is A x"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i.abs()), "only they are wrong"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i)[i >= 0], "are left out"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i.sort().values), "index is sorted here"),
    (_batched(masked=False), "index -1 is the last adapter"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i.clamp_min(0)), "get the first adapter"),
    (_batched(scaled=lambda s, i: torch.ones(len(i))), "the scaling is missing"),
    (_batched(scaled=lambda s, i: torch.ones(len(i)), masked=False), "the scaling is missing"),
    (_batched(scaled=lambda s, i: s[0].expand(len(i))), "first adapter's scaling"),
    (_batched(scaled=lambda s, i: 1 / s[i]), "the scaling divides"),
    (_batched(scaled=lambda s, i: s[i] ** 2), "squared"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, 0 * i), "first adapter"),
    (
        lambda x, A, B, s, i: batched_lora(x, A, B, s, torch.where(i < 0, i, i[0] % 4)),
        "the first row's adapter",
    ),
    (lambda x, A, B, s, i: batched_lora(x, A[:1].expand_as(A), B, s, i), "A is the first"),
    (lambda x, A, B, s, i: batched_lora(x, A, B[:1].expand_as(B), s, i), "B is the first"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s.sqrt(), i), "the root of the scaling"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s / A.shape[1], i), "divided by the rank"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i.flip(0)), "in another order"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s.sum().expand(len(s)), i), "all the scalings"),
    (_in_a_loop, "no loop over rows"),
    (_in_a_list, "no loop over rows"),
    (_dense, "makes a tensor of"),
    (_dense_each, "never B @ A"),
    (_grouped_only, "put them back"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i).T, "has shape"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i)[:, :, None], "has shape"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i).double(), "bring it to that in the end"),
    (lambda x, A, B, s, i: batched_lora(x.mul_(2), A, B, s, i) / 2, "changes its input x"),
    (lambda x, A, B, s, i: batched_lora(x, A, B, s, i.clamp_(0)), ("changes its input", "first")),
    (lambda x, A, B, s, i: x, "has shape"),
    (lambda x, A, B, s, i: None, "None"),
    (
        lambda x, A, B, s, i: sum(batched_lora(x, A, B, s, 0 * i + k) for k in range(len(A))),
        "updates of all adapters",
    ),
]

# --- 7.5 -----------------------------------------------------------------------------------


def swap_cost(model, adapter_name):
    begun = time.perf_counter()
    model.set_adapter(adapter_name)
    seconds = time.perf_counter() - begun
    mine = [p for n, p in model.named_parameters() if f".{adapter_name}." in n]
    return {"seconds": seconds, "bytes": sum(p.nbytes for p in mine)}


def swap_by_state(model, adapter_name):
    start = time.time_ns()
    model.set_adapter(adapter_name)
    end = time.time_ns()
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    size = sum(t.numel() * t.element_size() for t in state.values())
    return {"bytes": size, "seconds": max(1, end - start) / 1e9, "name": adapter_name}


def swap_by_flags(model, adapter_name):
    begun = time.perf_counter()
    model.set_adapter(adapter_name)
    n = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return {"seconds": time.perf_counter() - begun, "bytes": n}


def swap_by_layers(model, adapter_name):
    """Bytes from the layers' own dicts."""
    begun = time.monotonic()
    model.set_adapter(adapter_name)
    seconds = time.monotonic() - begun
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    parts = [p.weight for m in layers for p in (m.lora_A[adapter_name], m.lora_B[adapter_name])]
    return dict(seconds=seconds, bytes=sum(p.numel() * p.itemsize for p in parts))


def _batch(model, prompts, side="left", **kwargs):
    kwargs |= {"return_tensors": "pt", "padding": True, "padding_side": side}
    return model.tokenizer(list(prompts), **{"add_special_tokens": False} | kwargs)


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


@back
def route_by_end(model, prompts, adapter_names):
    """All tokens decoded and cut at the first end token, by hand."""
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    texts = model.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])
    return [text.split(model.tokenizer.eos_token)[0].strip() for text in texts]


def _cut(model, out, n):
    return model.tokenizer.batch_decode(out[:, n:], skip_special_tokens=True)


def route(model, prompts, adapter_names):
    training = model.training
    model.eval()
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    model.train(training)
    return [text.strip() for text in _cut(model, out, batch["input_ids"].shape[1])]


ROUTED = {}


def route_recalled(model, prompts, adapter_names):
    """`route` that works an answer out once: beside a wrong swap it need only be right."""
    embedding = model.get_input_embeddings()
    key = (embedding.weight.sum().item(), *prompts, *adapter_names)
    if key not in ROUTED:
        ROUTED[key] = route(model, prompts, adapter_names)
    embedding(_batch(model, prompts)["input_ids"])  # where the check counts what comes at once
    return ROUTED[key]


@back
def route_by_side(model, prompts, adapter_names):
    tokenizer = model.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    batch = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    tokenizer.padding_side = side
    with torch.inference_mode():
        out = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            adapter_names=list(adapter_names),
            max_new_tokens=48,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.eos_token_id,
        )
    n = batch.input_ids.shape[-1]
    return [tokenizer.decode(row[n:], skip_special_tokens=True) for row in out]


def route_sorted(model, prompts, adapter_names):
    """Sorted by length before, put back after."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = route(model, [prompts[i] for i in order], [adapter_names[i] for i in order])
    return [text for _, text in sorted(zip(order, texts, strict=True))]


@back
def route_on_a_copy_of_the_tokenizer(model, prompts, adapter_names):
    """The model is large, its tokenizer is not."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    batch = tokenizer.pad({"input_ids": ids}, padding="longest", return_tensors="pt")
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    new = out[:, batch["input_ids"].size(1) :].tolist()
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]


@back
def route_by_text(model, prompts, adapter_names):
    """All decoded, and the prompt's letters cut off."""
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    texts = model.tokenizer.batch_decode(out, skip_special_tokens=True)
    return [text[len(prompt) :].strip() for text, prompt in zip(texts, prompts, strict=True)]


@back
def route_with_config(model, prompts, adapter_names):
    """The settings in a GenerationConfig, the padding by hand."""
    from transformers import GenerationConfig

    ids = [model.tokenizer.convert_tokens_to_ids(model.tokenizer.tokenize(p)) for p in prompts]
    n, pad = max(map(len, ids)), model.tokenizer.pad_token_id
    batch = {
        "input_ids": torch.tensor([[pad] * (n - len(x)) + x for x in ids]),
        "attention_mask": torch.tensor([[0] * (n - len(x)) + [1] * len(x) for x in ids]),
    }
    config = GenerationConfig(
        max_new_tokens=48, do_sample=False, eos_token_id=pad, pad_token_id=pad
    )
    out = model.generate(**batch, adapter_names=adapter_names, generation_config=config)
    return model.tokenizer.batch_decode(out[:, n:], skip_special_tokens=True)


@back
def _route_grouped(model, prompts, adapter_names):
    """One batch an adapter: the right answers, and the base runs once for each adapter."""
    told = [None] * len(prompts)
    for name in sorted(set(adapter_names)):
        chosen = [i for i, n in enumerate(adapter_names) if n == name]
        model.set_adapter(name)
        batch = _batch(model, [prompts[i] for i in chosen])
        out = model.generate(**batch, max_new_tokens=48, do_sample=False)
        for i, text in zip(chosen, _cut(model, out, batch.input_ids.shape[1]), strict=True):
            told[i] = text
    return told


@back
def route_padded_with_starts(model, prompts, adapter_names):
    """Any token will do where the mask hides it."""
    batch = _batch(model, prompts)
    ids = batch["input_ids"]
    ids[batch["attention_mask"] == 0] = model.tokenizer.bos_token_id
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    return _cut(model, out, ids.shape[1])


@back
def route_by_hand(model, prompts, adapter_names):
    """A greedy loop without a cache."""
    tokenizer = model.tokenizer
    batch = _batch(model, prompts)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    n, done = ids.shape[1], torch.zeros(len(ids), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(48):
            places = (mask.cumsum(-1) - 1).clamp_min(0)
            given = {"attention_mask": mask, "position_ids": places}
            out = model(input_ids=ids, **given, adapter_names=adapter_names)
            new = out.logits[:, -1].argmax(-1)
            new[done] = tokenizer.eos_token_id
            done |= new == tokenizer.eos_token_id
            ids = torch.cat([ids, new[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(new)[:, None]], 1)
    return tokenizer.batch_decode(ids[:, n:], skip_special_tokens=True)


def swap_by_words(model, adapter_name):
    """The name is one of the words between the dots."""
    begun = time.perf_counter_ns()
    model.set_adapter(adapter_name)
    seconds = (time.perf_counter_ns() - begun) / 1e9
    state = model.state_dict()
    return {
        "seconds": seconds,
        "bytes": sum(
            t.untyped_storage().nbytes() for n, t in state.items() if adapter_name in n.split(".")
        ),
    }


def _cost(size, switch=True):
    def wrong(model, adapter_name):
        begun = time.perf_counter()
        if switch:
            model.set_adapter(adapter_name)
        tensors = dict(model.named_parameters())
        return {"seconds": time.perf_counter() - begun, "bytes": size(tensors, adapter_name)}

    return wrong


def _sum(tensors, name, of=lambda p: p.nbytes, part="lora_"):
    return sum(of(p) for n, p in tensors.items() if part in n and name in n)


def _milliseconds(model, adapter_name):
    cost = swap_cost(model, adapter_name)
    return cost | {"seconds": 1000 * cost["seconds"] + 1000}


def _time_of_day(model, adapter_name):
    return swap_cost(model, adapter_name) | {"seconds": time.time()}


def _clock_stopped_early(model, adapter_name):
    begun = time.perf_counter()
    seconds = time.perf_counter() - begun
    return swap_cost(model, adapter_name) | {"seconds": seconds}


def _active_too_early(model, adapter_name):
    """The bytes are those of the adapter that was active before the switch."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return swap_cost(model, adapter_name) | {"bytes": trained}


def _swap_on_a_copy(model, adapter_name):
    return swap_cost(copy.deepcopy(model), adapter_name)


def _swap_and_eval(model, adapter_name):
    return swap_cost(model.eval(), adapter_name)


def _milliseconds_and_numbers(model, adapter_name):
    cost = _cost(lambda t, n: _sum(t, f".{n}.", lambda p: p.numel()))(model, adapter_name)
    return cost | {"seconds": 1000 * cost["seconds"] + 1000}


def _swap_and_merge(model, adapter_name):
    cost = swap_cost(model, adapter_name)
    model.merge_adapter()
    return cost


def _alone_in_the_model(model, adapter_name):
    told = swap_cost(model, adapter_name)
    for name in set(model.peft_config) - {adapter_name}:
        model.delete_adapter(name)
    return told


def _everything_trains(model, adapter_name):
    cost = swap_cost(model, adapter_name)
    model.requires_grad_(True)
    return cost


def _inner_model_alone(model, adapter_name):
    """The layers switch, and the PeftModel names the adapter of before."""
    begun = time.perf_counter()
    model.base_model.set_adapter(adapter_name)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "bytes": _sum(dict(model.named_parameters()), f".{adapter_name}.")}


def _of_q_proj(layer):
    return lambda t, n: (
        _sum(t, f"layers.{layer}.self_attn.q_proj.lora_A.{n}.")
        + _sum(t, f"layers.{layer}.self_attn.q_proj.lora_B.{n}.")
    )


def _switched_back(model, adapter_name):
    before = model.active_adapter
    told = swap_cost(model, adapter_name)
    model.set_adapter(before)
    return told


def _bytes_of_a_file(model, adapter_name):
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    return swap_cost(model, adapter_name) | {"bytes": len(save(state))}


def _named(*paths, also=None):
    """Sets the attribute `active_adapter` of parts of the model, as if that were the switch."""

    def wrong(model, adapter_name):
        begun = time.perf_counter()
        if also:
            also(model, adapter_name)
        for path in paths:
            model.get_submodule(path).active_adapter = adapter_name
        seconds = time.perf_counter() - begun
        mine = [p for n, p in model.named_parameters() if f".{adapter_name}." in n]
        return {"seconds": seconds, "bytes": sum(p.nbytes for p in mine)}

    return wrong


def _layers_of(model):
    return [m for m in model.modules() if isinstance(m, BaseTunerLayer)]


def _in_one_layer(model, adapter_name):
    _layers_of(model)[0].set_adapter(adapter_name)


def _in_the_layers(model, adapter_name):
    for layer in _layers_of(model):
        layer.set_adapter(adapter_name)


def _switched_off(model, adapter_name):
    model.set_adapter(adapter_name)
    model.base_model.disable_adapter_layers()


SWAPS = [
    (_named(""), "setting an attribute reaches no layer"),
    (_named("base_model"), "setting an attribute reaches no layer"),
    (_named("", "base_model"), "setting an attribute reaches no layer"),
    (_named("", "base_model", also=_in_one_layer), "the active adapter is home, sweet-home"),
    (_named("", also=_in_the_layers), "but model.base_model.active_adapter is 'sweet-home'"),
    (_named(also=_in_the_layers), "but model.active_adapter is 'sweet-home'"),
    (_named(also=_switched_off), "the layers are switched off"),
    (_bytes_of_a_file, "the size of a saved file"),
    (_switched_back, "and leave it so"),
    (_cost(lambda t, n: 2 * _sum(t, f".{n}.")), "each tensor counts once"),
    (_cost(lambda t, n: _sum(t, f".{n}.") // 1000), "in whole kB"),
    (_cost(lambda t, n: _sum(t, f".{n}.", lambda p: p.itemsize)), "for each tensor"),
    (lambda m, n: swap_cost(m, n) | {"seconds": "0.1"}, "a float"),
    (_cost(_of_q_proj(0)), "add up all layers"),
    (
        _cost(lambda t, n: _sum(t, f".{n}.") + _sum(t, "base_layer", part="")),
        "the layers' own weights are counted too",
    ),
    (_inner_model_alone, "but model.active_adapter is"),
    (_swap_and_merge, "changes more than the adapter: its weights"),
    (_cost(lambda t, n: _sum(t, f".{n}.") / 1e6), "in MB"),
    (_cost(lambda t, n: _sum(t, f".{n}.", lambda p: 1)), "counts the tensors"),
    (
        _cost(lambda t, n: sum(p.nbytes for k, p in t.items() if k.startswith(n))),
        "nothing is counted",
    ),
    (_swap_on_a_copy, "copies the whole model"),
    (_swap_and_eval, "changes more than the adapter: its training mode"),
    (_alone_in_the_model, "tickets taken out of the model"),
    (_milliseconds_and_numbers, "milliseconds"),
    (_milliseconds_and_numbers, "numbers, not bytes"),
    (_cost(lambda t, n: sum(p.nbytes for k, p in t.items() if f"{n}." in k)), "names end so"),
    (_cost(lambda t, n: sum(p.nbytes for k, p in t.items() if f".{n}" in k)), "names begin so"),
    (_milliseconds, "milliseconds"),
    (_time_of_day, "time of day"),
    (_clock_stopped_early, "two looks at the clock"),
    (_active_too_early, "bytes"),
    (_cost(lambda t, n: _sum(t, f".{n}."), switch=False), "set_adapter"),
    (_cost(lambda t, n: _sum(t, n)), "with both its dots"),
    (_cost(lambda t, n: _sum(t, "")), "all adapters"),
    (_cost(lambda t, n: sum(p.nbytes for p in t.values())), "whole model"),
    (_cost(lambda t, n: sum(p.nbytes for k, p in t.items() if "lora" not in k)), "base model"),
    (_cost(lambda t, n: _sum(t, f".{n}.", lambda p: p.numel())), "numbers, not bytes"),
    (_cost(lambda t, n: _sum(t, f".{n}.", lambda p: 4 * p.numel())), "4 bytes a number"),
    (_cost(lambda t, n: _sum(t, f".{n}.", part="lora_A")), "A alone"),
    (_cost(lambda t, n: _sum(t, f".{n}.", part="lora_B")), "B alone"),
    (lambda m, n: swap_cost(m, n)["seconds"], "must return"),
    (lambda m, n: swap_cost(m, n) | {"seconds": -1.0}, "positive"),
    (lambda m, n: swap_cost(m, n) | {"seconds": None}, "positive"),
    (lambda m, n: swap_cost(m, n) | {"bytes": 1e6}, "bytes"),
    (_everything_trains, "what of the base trains"),
]


def _route(side="left", masked=True, cut=True, names=lambda n: n, mode=False, **options):
    @back
    def wrong(model, prompts, adapter_names):
        model.train(mode)
        batch = _batch(model, prompts, side)
        if not masked:
            batch = {"input_ids": batch["input_ids"]}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        extra = {"adapter_names": names(adapter_names)} if names else {}
        settings = {"max_new_tokens": 48, "do_sample": False} | extra | options
        out = model.generate(**batch, **settings)
        return _cut(model, out, batch["input_ids"].shape[1] if cut else 0)

    return wrong


def _other_tokenizer(model, prompts, adapter_names):
    """A tokenizer from elsewhere, with more words than the model has."""
    ids = torch.full((len(prompts), 3), 40_000)
    return model.eval().generate(ids, adapter_names=adapter_names, max_new_tokens=48)


def _without_marks(model, prompts, adapter_names):
    return route(model, [p.replace("<end> ", "") for p in prompts], adapter_names)


def _one_by_one(model, prompts, adapter_names):
    return [route(model, [p], [n])[0] for p, n in zip(prompts, adapter_names, strict=True)]


def _not_put_back(model, prompts, adapter_names):
    order = sorted(range(len(prompts)), key=lambda i: adapter_names[i])
    return route(model, [prompts[i] for i in order], [adapter_names[i] for i in order])


def _dropout_alone(model, prompts, adapter_names):
    told = []
    for prompt, name in zip(prompts, adapter_names, strict=True):
        model.set_adapter(name)
        batch = _batch(model, [prompt])
        out = model.generate(**batch, max_new_tokens=48, do_sample=False)
        told += _cut(model, out, batch.input_ids.shape[1])
    return told


@back
def _with_special_tokens(model, prompts, adapter_names):
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    return model.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])


def _leaves_it_switched(model, prompts, adapter_names):
    texts = route(model, prompts, adapter_names)
    model.set_adapter(adapter_names[1])
    return texts


@back
def _cut_by_each_prompt(model, prompts, adapter_names):
    """Cut where the prompt would end without its padding."""
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    sizes = batch["attention_mask"].sum(1)
    rows = [row[n:] for row, n in zip(out, sizes, strict=True)]
    return model.tokenizer.batch_decode(rows, skip_special_tokens=True)


def _in_two_halves(model, prompts, adapter_names):
    half = len(prompts) // 2
    first = route(model, prompts[:half], adapter_names[:half])
    return first + route(model, prompts[half:], adapter_names[half:])


def _stays_in_eval(model, prompts, adapter_names):
    model.eval()
    return route(model, prompts, adapter_names)


_stays_in_eval.__name__ = "route"  # a changed input is told of a function by its own name


def _left_for_good(model, prompts, adapter_names):
    model.tokenizer.padding_side = "left"
    return route(model, prompts, adapter_names)


def _first_one_active(model, prompts, adapter_names):
    model.set_adapter(adapter_names[0])
    return route(model, prompts, adapter_names)


def _on_a_copy(model, prompts, adapter_names):
    return route(copy.deepcopy(model), prompts, adapter_names)


@back
def _cut_to_sixteen(model, prompts, adapter_names):
    batch = _batch(model, prompts, truncation=True, max_length=16)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    return _cut(model, out, batch["input_ids"].shape[1])


@back
def _new_pad_token(model, prompts, adapter_names):
    model.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return route(model, prompts, adapter_names)


@back
def _masked_by_pad(model, prompts, adapter_names):
    """The end of a turn is the padding token, and is masked inside the prompts."""
    ids = _batch(model, prompts)["input_ids"]
    given = {"attention_mask": (ids != model.tokenizer.pad_token_id).long()}
    settings = {"adapter_names": adapter_names, "max_new_tokens": 48, "do_sample": False}
    out = model.generate(input_ids=ids, **given, **settings)
    return _cut(model, out, ids.shape[1])


@back
def _cut_by_words(model, prompts, adapter_names):
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    texts = model.tokenizer.batch_decode(out, skip_special_tokens=True)
    return [" ".join(t.split()[len(p.split()) :]) for t, p in zip(texts, prompts, strict=True)]


@back
def _settings_left(model, prompts, adapter_names):
    model.generation_config.update(do_sample=False, max_new_tokens=48)
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names)
    return _cut(model, out, batch["input_ids"].shape[1])


def _both_wrong(model, prompts, adapter_names):
    """The mode is not given back, and the padding is on the wrong side."""
    model.eval()
    return _route(side="right")(model, prompts, adapter_names)


def _prompts_sorted_alone(model, prompts, adapter_names):
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = route(model, [prompts[i] for i in order], adapter_names)
    return [text for _, text in sorted(zip(order, texts, strict=True))]


@back
def _prompt_replaced(model, prompts, adapter_names):
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    pairs = zip(_cut(model, out, 0), prompts, strict=True)
    return [text.replace(prompt, "") for text, prompt in pairs]


@back
def _larger_model(model, prompts, adapter_names):
    model.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(model.tokenizer))
    return route(model, prompts, adapter_names)


def _always_trains(model, prompts, adapter_names):
    texts = route(model, prompts, adapter_names)
    model.train()
    return texts


def _dropout_off_for_good(model, prompts, adapter_names):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return route(model, prompts, adapter_names)


def _with_roles(model, prompts, adapter_names):
    return route(model, [f"user {p}" for p in prompts], adapter_names)


@back
def _masked_elsewhere(model, prompts, adapter_names):
    batch = _batch(model, prompts)
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    return _cut(model, out, batch["input_ids"].shape[1])


@back
def _left_to_the_model(model, prompts, adapter_names):
    """Says nothing of sampling, and the model's own settings ask for it."""
    batch = _batch(model, prompts)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48)
    return _cut(model, out, batch["input_ids"].shape[1])


def _first_lines(model, prompts, adapter_names):
    return [text.split("\n")[0] for text in route(model, prompts, adapter_names)]


@back
def _starts_doubled(model, prompts, adapter_names):
    batch = _batch(model, prompts, add_special_tokens=True)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    return _cut(model, out, batch["input_ids"].shape[1])


def _right_in_the_end(model, prompts, adapter_names):
    texts = route(model, prompts, adapter_names)
    model.tokenizer.padding_side = "right"
    return texts


def _sorted_pairs(model, prompts, adapter_names):
    names, prompts = zip(*sorted(zip(adapter_names, prompts, strict=True)), strict=True)
    return route(model, list(prompts), list(names))


@back
def _starts_taken_off(model, prompts, adapter_names):
    prompts = [p.removeprefix(model.tokenizer.bos_token) for p in prompts]
    batch = _batch(model, prompts, add_special_tokens=True)
    out = model.generate(**batch, adapter_names=adapter_names, max_new_tokens=48, do_sample=False)
    return _cut(model, out, batch["input_ids"].shape[1])


def _padding_left(model, prompts, adapter_names):
    model.generation_config.pad_token_id = model.tokenizer.pad_token_id
    return route(model, prompts, adapter_names)


ROUTES = [
    (_starts_taken_off, "take nothing off them"),
    (_padding_left, "generation_config.pad_token_id is"),
    (_starts_doubled, "the first token stands twice"),
    (_right_in_the_end, "tokenizer.padding_side is right, it was left"),
    (_sorted_pairs, "the answers are in another order"),
    (_first_lines, "only the first line of an answer is left"),
    (_left_to_the_model, "has to be told do_sample=False"),
    (_with_roles, "add nothing to them"),
    (_masked_elsewhere, "hides the other side"),
    (
        _route(names=lambda names: [*dict.fromkeys(names), *names][: len(names)]),
        "one name for each",
    ),
    (_without_marks, "special tokens inside a prompt stay"),
    (_route(names=lambda names: sorted(names, reverse=True)), "are in another order"),
    (_dropout_off_for_good, "dropout is 0.0, it was 0.5"),
    (_prompts_sorted_alone, "sorted without their names"),
    (_prompt_replaced, "the prompts are part of the answers"),
    (_larger_model, "len(tokenizer) is"),
    (_route(min_new_tokens=48), "min_new_tokens=48"),
    (_route(eos_token_id=None), "goes on after its end token"),
    (lambda m, p, n: [t.upper() for t in route(m, p, n)], "yours '"),
    (lambda m, p, n: [f"{t[:9]}{t[9:].upper()}" for t in route(m, p, n)], "equal up to letter"),
    (_stays_in_eval, "(it came in train mode and is left in eval mode); restore it"),
    (_left_for_good, "tokenizer.padding_side is left, it was right"),
    (_first_one_active, "its active adapter; restore it"),
    (_on_a_copy, "copies the whole model"),
    (_cut_to_sixteen, "no truncation"),
    (_new_pad_token, "pad with one that exists"),
    (_masked_by_pad, "hides tokens inside the prompts"),
    (route_by_text, "special tokens vanish in decoding"),
    (_cut_by_words, "special tokens vanish in decoding"),
    (_settings_left, "generation_config.do_sample is False"),
    (_both_wrong, "its training mode"),
    (_both_wrong, "padded on the right"),
    (_route(repetition_penalty=1.3), "repetition_penalty=1.3"),
    (_route(num_beams=3), "num_beams=3"),
    (_route(no_repeat_ngram_size=2), "no_repeat_ngram_size=2"),
    (_route_grouped, "at most 2 prompts at a time"),
    (_in_two_halves, "at most 3 prompts at a time"),
    (_with_special_tokens, "skip_special_tokens"),
    (_leaves_it_switched, "its active adapter"),
    (_cut_by_each_prompt, "a part of the prompt stands before"),
    (_route(max_new_tokens=None, max_length=48), "max_length counts the prompt, too"),
    (_route(side="right", names=None), ("is not what", "stands before")),
    (_route(side="right"), "padded on the right"),
    (_route(masked=False), "padding is read as text"),
    (_route(side="right", masked=False), ("padded on the right", "read as text")),
    (_route(cut=False), "part of the answers"),
    (_route(names=None), "home answered all"),
    (_route(names=lambda names: ["tickets"] * len(names)), "tickets answered all"),
    (_route(names=lambda names: ["__base__"] * len(names)), "base model answered"),
    (_route(names=lambda names: names[::-1]), "adapter_names are in another order"),
    (_route(mode=True), "training mode"),
    (_route(do_sample=True), "greedy"),
    (_route(max_new_tokens=5), "stops early"),
    (_route(max_new_tokens=60), "goes on"),
    (_one_by_one, "one prompt at a time"),
    (_other_tokenizer, "model.tokenizer"),
    (lambda m, p, n: tokenizer(p), "model.tokenizer"),  # noqa: F821
    (_dropout_alone, "where dropout draws by chance"),
    (_not_put_back, "another order"),
    (lambda m, p, n: route(m, p, n)[:-1], "gave 5 texts"),
    (lambda m, p, n: " ".join(route(m, p, n)), "list of texts"),
    (_always_trains, "its training mode"),
]

# --- the lists -----------------------------------------------------------------------------


def quiz():
    return {"q1": "c", "q2": "a", "q3": "d", "q4": "b"}


RIGHT = [
    *[(check.audits, f) for f in (audit, audit_in_passes, audit_by_text, audit_with_more)],
    *[(check.parts, f) for f in (split, split_by_hash, split_by_torch, split_by_numpy)],
    *[(check.orders, f) for f in (rotary_rows, rows_by_index, rows_by_stack, rows_in_place)],
    (check.orders, rows_permuted),
    *[(check.writes_q8, f) for f in (q8_0, q8_by_inverse, q8_by_numpy, q8_by_gguf, q8_in_double)],
    (check.serves, swap_cost, route),
    (check.serves, swap_by_state, route_by_side),
    (check.serves, swap_by_flags, route_sorted),
    (check.serves, swap_by_words, route_by_hand),
    (check.serves, swap_by_words, route_padded_with_starts),
    (check.serves, _named("", "base_model", also=_in_the_layers), route_recalled),
    (check.serves, swap_by_layers, route_on_a_copy_of_the_tokenizer),
    (check.serves, swap_cost, route_with_config),
    (check.serves, swap_cost, route_by_end),
    *[(check.batches, f) for f in (batched_lora, batched_by_einsum, batched_by_adapter)],
    *[(check.batches, f) for f in (batched_by_mask, batched_with_zero)],
    (check.quiz, quiz),
    (check.quiz, lambda: {"q4": "B", "q3": " D", "q1": "C", "q2": "a "}),
]
SEEDS = {"RIGHT": range(3)}
WRONG = [
    *[(check.audits, *case) for case in AUDITS],
    *[(check.parts, *case) for case in SPLITS],
    *[(check.orders, *case) for case in ROWS],
    *[(check.writes_q8, *case) for case in EIGHTS],
    *[(check.serves, f, route_recalled, word) for f, word in SWAPS],
    *[(check.serves, swap_cost, f, word) for f, word in ROUTES],
    (check.serves, _milliseconds, _route(side="right"), "milliseconds"),
    (check.serves, _milliseconds, _route(side="right"), "padded on the right"),
    *[(check.batches, *case) for case in BATCHES],
    (check.quiz, lambda: {"q1": "c", "q2": "a", "q3": "a", "q4": "b"}, "3 of 4"),
    (check.quiz, lambda: ["c", "a", "d", "b"], "dict"),
]


def _stub(*args, **kwargs):
    raise NotImplementedError


STUBS = [
    (check.audits, _stub),
    (check.parts, _stub),
    (check.orders, _stub),
    (check.writes_q8, _stub),
    (check.serves, _stub, _stub),
    (check.serves, swap_cost, _stub),
    (check.batches, _stub),
    (check.quiz, _stub),
]


def test_a_scale_has_a_range_where_its_ends_differ(rejects):
    told = re.findall("larger scale, (.*?) in the place of", rejects(check.writes_q8, _q8_rows))
    assert told and not any(len(set(one.split(" to "))) < len(one.split(" to ")) for one in told)


def test_a_mixed_batch_gives_different_answers():
    """The tiny adapters differ, else a wrong route could pass."""
    prompts = ("turn on the lamp", "the blue fan")
    names = (*fleet.ADAPTERS, "__base__")
    told = [tuple(served.answered_alone(7, prompts, (name,) * 2)) for name in names]
    assert len(set(told)) == len(names)


def test_what_is_kept_is_told_again_where_a_check_runs_again(rejects):
    def keeps(rows, tokenizer, max_length, seen=[]):  # noqa: B006
        return _keeps_what_was_seen(rows, tokenizer, max_length, seen)

    for _ in range(3):
        assert "something is kept between calls" in rejects(check.audits, keeps)


def test_what_follows_from_bad_roles_is_not_told(rejects):
    """A row that is taken for a good one counts elsewhere, too: only its roles are told."""
    assert "duplicates" not in rejects(check.audits, _audit(good=_whoever_is_last))


def test_a_swap_that_is_none_is_not_timed(rejects):
    """Where the layers stay as they are, nothing is said of the clock."""
    assert "clock" not in rejects(check.serves, _named(""), route_recalled)
