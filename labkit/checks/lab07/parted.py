"""What exercise 7.2 expects of `split`: two sides without a prompt in common."""

import functools
import json
from collections import Counter

import torch

from labkit.checks.compare import ask, draw
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab07 import probes
from labkit.probes import tiny

SPLIT = {
    "unhashable type": "a row is a dict: group rows by a text, the folded prompt",
    "not supported between": "rows are dicts and have no order: sort the prompts, which are texts",
    "string indices": "a row is a dict with messages, a list of dicts",
    "larger than population": "share is the part of the rows that goes to the test side",
}
PROMPT = 'two rows have one prompt if their user says the same: " ".join(text.casefold().split())'
BEFORE, AFTER = "good morning", "thank you"  # what other turns say, in words of no question
ALIKE = {  # how rows of many prompts are alike
    "begin": lambda row: asked(row)[0] == BEFORE,
    "end": lambda row: asked(row)[-1] == AFTER,
}


def asked(row):
    """A row's prompt, folded: what its user says."""
    texts = (m["content"] for m in row["messages"] if m["role"] == "user")
    return tuple(" ".join(text.casefold().split()) for text in texts)


def variants(question, rng):
    """The same prompt, in other case and spacing, and as it is."""
    one = question.split()
    return [
        question,
        question.upper(),
        question,  # without a system message, as the first
        "  ".join(one),
        "\t".join(one).title(),
        question,  # with one
    ]


def rows_of(rng, n=96):
    """Different rows of n prompts, one to six rows each; some have a system message or two turns.

    All that begin so, or end so, have that turn in common; it is answered in two ways.
    """
    rows, seen = [], set()
    while len(seen) < n:
        question, kind = tiny.words(rng, 3, 6), len(seen) % 3
        if question in seen:
            continue
        seen.add(question)
        size = (1, 1, 1, 2, 2, 3, 6)[draw(0, 6, rng)]
        for k, text in enumerate(variants(question, rng)[:size]):
            said = {0: [BEFORE, text], 1: [text, AFTER], 2: [text]}[kind]
            turns = [("system", "Home.")] * (k % 2)
            for one in said[:-1]:
                turns += [("user", one), ("assistant", ("Hello.", "Yes?")[k % 3 == 2])]
            turns += [("user", said[-1]), ("assistant", f"{tiny.words(rng, 2)} {len(rows)}")]
            messages = [{"role": r, "content": c} for r, c in turns]
            rows.append({"messages": messages, "source": f"mail {len(rows)}"})
    order = torch.randperm(len(rows), generator=rng).tolist()
    return [rows[i] for i in order]


def expect_split(split, rng):
    """All rows on one side each, no prompt on both, the share kept, the same sides every time."""
    rows = rows_of(rng)
    call = "split(rows, 0.25, seed=3)"
    first = _sides(split, rows, 0.25, 3, call)
    with part():
        _expect_apart(first, call, functools.partial(_joined, split))
    with part():
        if all(first):
            _expect_alike(split, rows)
        if not _cut(first):  # else the sizes say nothing of the share
            _expect_share(split, rows)
    with part():
        _expect_same(split, rows, first, rng)
    with part():
        others = [_sides(split, rows, 0.25, seed, f"split(rows, 0.25, {seed})") for seed in (4, 5)]
        alike = all(_bag(other[1]) == _bag(first[1]) for other in others)
        hint = "seed chooses: random.Random(seed), or a hash of seed and prompt together "
        hint += "(added to the hash of each prompt it leaves their order)"
        expect(not alike, f"seeds 3, 4 and 5 give the same test rows; {hint}")


def _sides(split, rows, share, seed, call, salt=""):
    """The two lists, after a look at their form and at whether each row is there once."""
    got = ask(call, probes.divided, split, rows, share, seed, salt, hint=SPLIT)
    kind, sides = got["kind"], got["sides"]
    expect(sides is not None, f"{call} gave {kind}, wanted two lists of rows, (train, test)")
    parts = [part for side in sides for part in side if isinstance(part, list)]
    whole = any(isinstance(row, dict) and "messages" in row for part in parts for row in part)
    told = f"{call}: the sides hold lists of rows, and not the rows"
    expect(not whole, f"{told}: extend() by a group, where append() puts it in as one")
    both, wanted = _bag(sides[0] + sides[1]), _bag(rows)
    lost, new = (wanted - both).total(), (both - wanted).total()
    if lost and not new:
        kept = {asked(row) for side in sides for row in side}
        alone = all(asked(row) in kept for row in rows) and len(kept) == len(rows) - lost
        hint = "here one row of each prompt is left: all of a group go to its side" * alone
        told = f"{call}: {lost} of {len(rows)} rows are on neither side"
        raise CheckFailed(f"{told}; {hint or 'lose none'}")
    doubled = new and all(row in wanted for row in both)
    expect(not doubled, f"{call}: {new} rows are there twice; each has one side")
    told = f"{call}: {new} rows are not those of the file"
    expect(not new, told, hint="hand rows on whole, as they are")
    hint = "random.Random(seed) has numbers of its own"
    expect(not got["touched"], f"{call} uses the global random numbers, which all share; {hint}")
    return sides


def _bag(rows):
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


def _cut(sides):
    """The prompts on both sides."""
    train, test = ({asked(row) for row in side} for side in sides)
    return train & test


def _expect_apart(sides, call, joined=lambda: False):
    """No prompt on both sides; `joined()` tells whether one stays whole where rows are sorted."""
    expect(sides[0], f"{call}: the training side is empty")
    expect(sides[1], f"{call}: the test side is empty")
    shared = _cut(sides)
    hint = "a group is cut in two: one that does not fit in half goes to one side whole"
    if len(shared) > 1:
        hint = _parted_by(*sides)
    if hint.endswith(PROMPT) and joined():
        hint = "only neighbours are joined, as itertools.groupby does it: sort rows by the same "
        hint += "key first, the folded prompt"
    expect(not shared, f"{call}: {len(shared)} prompts are on both sides; {hint}")


def _parted_by(train, test):
    """What rows of one prompt that lie on both sides differ in: all that alone parts some."""
    pairs = [(r["messages"], s["messages"]) for r in train for s in test if asked(r) == asked(s)]
    parts = {
        "the system message does not count": lambda m: [x for x in m if x["role"] == "system"],
        "what was answered before does not count": (
            lambda m: [x for x in m[:-1] if x["role"] == "assistant"]
        ),
        PROMPT: lambda m: [x["content"] for x in m if x["role"] == "user"],
    }
    differ = [[text for text, of in parts.items() if of(r) != of(s)] for r, s in pairs]
    if [] in differ:
        if all("user" in (r[0]["role"], s[0]["role"]) for r, s in pairs):
            by_role = "find the user's messages by their role"
            return f"{by_role}: not all rows begin with a system message"
        return "rows with one prompt go to one side, all of them, whatever is answered"
    alone = [text for text in parts if [text] in differ]
    unfolded = _unfolded(pairs) if alone == [PROMPT] else ""
    return unfolded + "; ".join(alone or min(differ, key=len))


def _unfolded(pairs):
    """What all texts that should be one prompt differ in, spaces or capitals; "" if in both."""
    texts = [
        ["\n".join(m["content"] for m in row if m["role"] == "user") for row in pair]
        for pair in pairs
    ]
    spaces = all(a.casefold() != b.casefold() for a, b in texts)
    capitals = all(a.split() != b.split() for a, b in texts)
    if spaces == capitals:
        return ""
    return f"{'spaces inside of' if spaces else 'capitals in'} a prompt keep two rows apart: "


def _joined(split):
    """Whether a prompt stays whole where its rows are neighbours, sorted as they are written."""
    texts = [*map(str, range(24)), *variants("turn on", None)]
    turns = [[("user", text), ("assistant", f"{i}")] for i, text in enumerate(texts)]
    rows = [{"messages": [{"role": r, "content": c} for r, c in some]} for some in turns]
    try:
        return not any(_cut(_sides(split, rows, 0.5, seed, "")) for seed in range(6))
    except CheckFailed:
        return False


def _expect_alike(split, rows):
    """A file of rows that all begin alike, or end alike, has two sides like any other."""
    for how, of in ALIKE.items():
        some = [row for row in rows if of(row)]
        call = f"split of {len(some)} rows that all {how} alike, share 0.25, seed 0"
        n = len(_sides(split, some, 0.25, 0, call)[1])
        told = f"{call}: {n} are test rows; all are on one side"
        expect(0 < n < len(some), f"{told}, but a prompt is all that its user says")


def _expect_share(split, rows):
    """The test side has its share of the rows, to within the largest group."""
    n, groups = len(rows), Counter(map(asked, rows)).values()
    different, largest = len(groups), max(groups)
    sizes, prompts = [], []  # and by how much the share of the prompts is off
    for share in (0.1, 0.25, 0.6):
        for seed in range(4):
            call = f"split of {n} rows, share {share}, seed {seed}"
            sides = _sides(split, rows, share, seed, call)
            if sound():
                _expect_apart(sides, call)
            test = sides[1]
            sizes.append((call, share, len(test)))
            prompts.append(len(set(map(asked, test))) / different - share)
    off = [(call, share, got) for call, share, got in sizes if abs(got - share * n) > largest]
    if not off:
        return
    call, share, got = off[0]
    told = f"{call}: {got} test rows, wanted {share * n:.0f} (± {largest}, the largest group)"
    by_share = [(share, size) for _, share, size in sizes]
    hint = _of_sizes(by_share, n, different, largest)
    if not hint and max(map(abs, prompts)) <= 1.01 / different:
        hint = ", and here a part of the prompts: add group after group until it is full"
    spans = [[size for part_of, size in by_share if part_of == share] for share, _ in by_share]
    chance = any(max(span) - min(span) > largest for span in spans)
    coin = "; a coin for each misses it" * chance
    hint = hint or f": add group after group until it is full{coin}"
    raise CheckFailed(f"{told}; share is the test side's part of the rows{hint}")


def _of_sizes(sizes, n, different, largest):
    """What `(share, test rows)` of several splits are taken for, behind "part of the rows"; ""."""
    numbers = [size for _, size in sizes]
    if all(size == n for size in numbers):
        return ", a number from 0 to 1 and no percentage: here all rows are test rows"
    if all(size <= 3 for size in numbers):
        return ", a number from 0 to 1: here it is hardly used"
    known = {
        ", so they are turned round, or it is taken for the training side's": lambda s: 1 - s,
        ", and here the share is not used": lambda s: numbers[0] / n,
        ", which are all rows, and not the training rows alone": lambda s: s / (1 + s),
        ", and 1 / share is rounded here to a whole number: compare with share * len(rows)": (
            lambda s: 1 / round(1 / s)
        ),
        ", and the number of the prompts is taken for that of the rows": (
            lambda s: s * different / n
        ),
    }
    for hint, part_of in known.items():
        if all(abs(size - part_of(share) * n) <= largest for share, size in sizes):
            return hint
    return ""


def _expect_same(split, rows, first, rng):
    """The same call gives the same rows; so does another order, and another run of Python."""
    call = "split(rows, 0.25, seed=3)"
    again = _sides(split, rows, 0.25, 3, call)
    told = f"{call} gives other test rows the second time"
    hint = "all chance comes from random.Random(seed), a new one in each call"
    expect(_bag(again[1]) == _bag(first[1]), f"{told}; {hint}")
    zero = [_sides(split, rows, 0.25, 0, "split(rows, 0.25, seed=0)")[1] for _ in range(2)]
    told = "split(rows, 0.25, seed=0) gives other test rows the second time"
    hint = "seed 3 does not: 0 is a seed like others, but false, and `seed or None` is None"
    expect(_bag(zero[0]) == _bag(zero[1]), f"{told}; {hint}")
    other = _sides(split, rows, 0.25, 3, call, salt="another run")
    told = f"{call} gives other test rows in another run of Python"
    hint = "hash() of a text changes from run to run: hashlib.sha256 does not"
    expect(_bag(other[1]) == _bag(first[1]), f"{told}; {hint}")
    _expect_still(split, rows, first, call, rng)


def _expect_still(split, rows, first, call, rng):
    """The same test rows whatever the order of the file; with a set, other ones for a part.

    What moves in a set's order are texts that collide in it, and few of them change sides: so each
    order has a seed of its own.
    """
    same = []  # the share of test rows that stay, of each order
    for seed in range(3, 15):
        told = call.replace("seed=3", f"seed={seed}")
        order = torch.randperm(len(rows), generator=rng).tolist()
        before = _sides(split, rows, 0.25, seed, told) if same else first
        moved = _sides(split, [rows[i] for i in order], 0.25, seed, told)
        cut = _cut(before)  # told already: rows of these prompts may move
        halves = cut and cut | _cut(moved)
        a, b = (_bag([r for r in side[1] if asked(r) not in halves]) for side in (before, moved))
        same.append((a & b).total() / max(1, (a | b).total()) if a != b else 1)
    told = f"{call} gives other test rows when the file is in another order"
    why = ": a dict's keys keep the order of the file, and so do ties"
    if max(same) > 0.6:  # else all of them are drawn anew
        told += ", as a set does: its order changes from run to run of Python, too"
        why = ""
    hint = "sort the prompts themselves before you shuffle them, and nothing else decides"
    expect(min(same) == 1, f"{told}; {hint}{why}")
