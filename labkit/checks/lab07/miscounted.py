"""What mistaken rules count in rows of exercise 7.1, told from the lengths of their turns.

A word or line break is a token, and a turn has four more: its role, a line, the end, a line.
"""

import itertools
from collections import Counter
from typing import NamedTuple

TURN = 4  # tokens of a turn besides its words
OPENING = 2  # of these stand before the words: the generation prompt
OPENED = "the generation prompt belongs to the prompt: behind it no label is left"
FITS = "a prompt of just max_length tokens leaves no label: >=, not >"
BLANK_BEFORE = "only the last answer is learned: a blank one before it is part of the prompt"
BLANK_ASKED = "it is the last answer that must not be blank: a question may be"


class Facts(NamedTuple):
    """Of a rendered row: tokens of its prompt, of all, and before its first answer; its texts.

    `ends` are the places of the end tokens.
    """

    prompt: int
    whole: int
    ends: list
    opening: int
    texts: list
    roles: list

    @property
    def blank(self):
        """Whether it answers nothing."""
        return not self.texts[-1].strip()


def facts(row: dict) -> Facts:
    """The Facts of a row with good roles; what opens the answer is of the prompt."""
    texts = [m["content"] for m in row["messages"]]
    sizes = list(itertools.accumulate(_tokens(text) + TURN for text in texts))
    roles = [m["role"] for m in row["messages"]]
    before = [0, *sizes]  # tokens before each turn
    opening = before[roles.index("assistant")] + OPENING
    return Facts(before[-2] + OPENING, sizes[-1], [n - 2 for n in sizes], opening, texts, roles)


def _tokens(text):
    return len(text.split()) + text.count("\n")


def guesses(key: str, rows: list, bad: int, length: int) -> dict:
    """`{message: count}` of what mistaken rules count under `key`; the last `bad` have bad roles.

    A row's Facts say what they count: rows are not rendered here.
    """
    good = [facts(row) for row in rows[: len(rows) - bad]]
    if key == "duplicates":
        return _alike(good) | _repeated(rows, good)
    rules = {"trains_on_nothing": _nothing, "no_end": _no_end, "truncated": _truncated}
    listed = rules[key](length) if key in rules else {}
    return {message: sum(map(rule, good)) for message, rule in listed.items()}


FAULTS = ("duplicates", "trains_on_nothing", "truncated", "no_end")
ALONE = {(1, 3)}  # what trains on nothing has no end, and counts as the first alone


def guarded(cases: list, counts: list, length: int) -> str:
    """Which fault takes a row out of which other count, where that gives all `counts`; else "".

    `cases` are lists of rows with good roles, `counts` what was counted of each.
    """
    flags = [_flags(rows, length) for rows in cases]
    mine = [[count[key] for key in FAULTS] for count in counts]

    def gives(pairs):
        return [_counted(some, pairs) for some in flags] == mine

    return "" if gives(ALONE) else next((told for told, pairs in _guards() if gives(pairs)), "")


def _flags(rows, length):
    """Of each row whether it has each of the FAULTS, by itself."""
    flags, seen = [], []
    for row in rows:
        f = facts(row)
        key = [(m["role"], _folded(m["content"])) for m in row["messages"]]
        lost = f.prompt >= length or f.ends[-1] >= length
        flags.append((key in seen, f.prompt >= length or f.blank, f.whole > length, lost))
        seen.append(key)
    return flags


def _guards():
    """`(what it is, {(fault, what it hides)})`: one `continue`, then chains of `elif`."""
    for i, name in enumerate(FAULTS):
        others = {(i, k) for k in range(len(FAULTS)) if k != i}
        yield f"a row that counts in {name} is looked at no further", others | ALONE
        for k, other in enumerate(FAULTS):
            if i != k and (i, k) != (1, 3):
                yield f"a row that counts in {name} is not looked at for {other}", {(i, k)} | ALONE
    for n in (2, 3, 4):
        for chain in itertools.permutations(range(len(FAULTS)), n):
            listed = ", ".join(FAULTS[i] for i in chain)
            yield (
                f"of {listed} a row counts in the first alone",
                {
                    *itertools.combinations(chain, 2),
                    *ALONE,
                },
            )


def _counted(flags, pairs):
    """How often each fault counts where the first of each pair hides the second."""
    return [
        sum(row[k] and not any(row[i] for i, other in pairs if other == k) for row in flags)
        for k in range(len(FAULTS))
    ]


def _nothing(n):
    return {
        OPENED: lambda f: f.prompt - OPENING >= n or f.blank,
        FITS: lambda f: f.prompt > n or f.blank,
        "a blank answer teaches to say nothing: strip() it": lambda f: f.prompt >= n,
        "the whole row is cut on the right, before its prompt is taken off: behind a prompt of "
        "max_length tokens no label is left": (lambda f: f.blank),
        "the prompt is all messages but the last, earlier answers among them": (
            lambda f: f.opening >= n or f.blank
        ),
        "a row that is cut but keeps part of its answer trains on that": (
            lambda f: f.whole > n or f.blank
        ),
        "an answer that has lost its end still trains: it counts as no_end": (
            lambda f: f.ends[-1] >= n or f.blank
        ),
        "a blank answer of which nothing is left counts once: one `or`, not two ifs": (
            lambda f: (f.prompt >= n) + f.blank
        ),
        "an answer of blanks alone is blank, too: strip() it": (
            lambda f: f.prompt >= n or not f.texts[-1]
        ),
        BLANK_BEFORE: lambda f: f.prompt >= n or not all(map(str.strip, _of(f, "assistant"))),
        "it is the last answer that is learned, and the first is looked at": (
            lambda f: f.prompt >= n or not _of(f, "assistant")[0].strip()
        ),
        BLANK_ASKED: lambda f: f.prompt >= n or not all(map(str.strip, f.texts)),
    }


def _no_end(n):
    def something(f):
        return f.prompt < n and not f.blank

    return {
        "look for the end in ids[len(prompt):max_length], what the cut leaves of the answer: "
        "each turn of the prompt has an end token, too": lambda f: False,
        "a row that trains on nothing is not counted in no_end as well: elif": (
            lambda f: f.prompt >= n or f.ends[-1] >= n
        ),
        OPENED: lambda f: f.prompt - OPENING < n <= f.ends[-1] and not f.blank,
        FITS: lambda f: f.prompt <= n <= f.ends[-1] and not f.blank,
        "the end token stands before the line break: look among all labels, not at the last": (
            lambda f: something(f) and min(f.whole, n) - 1 != f.ends[-1]
        ),
        "no end is ever found: the template writes one, eos_token_id; render the whole "
        "conversation": something,
        "no end is ever found, in rows that train on nothing neither; these count there alone": (
            lambda f: True
        ),
        "a row that loses the line break alone still has its end": (
            lambda f: something(f) and f.whole > n
        ),
        "a row whose end is the last token that stays has it: the end lies at max_length - 1": (
            lambda f: something(f) and f.ends[-1] >= n - 1
        ),
        "a blank answer that is cut counts in trains_on_nothing alone: here it has no end, too": (
            lambda f: f.prompt < n <= f.ends[-1]
        ),
        "a cut row has no end here unless it is lost before: blank and cut are two things": (
            lambda f: f.ends[-1] >= n
        ),
    }


def _truncated(n):
    return {
        "a row of just max_length tokens loses none: >, not >=": lambda f: f.whole >= n,
        "the whole row counts, not its prompt alone": lambda f: f.prompt > n,
        "the whole row counts, not its answer alone": lambda f: f.whole - f.prompt > n,
        "the template's own tokens count too: render the row, and count its ids": (
            lambda f: sum(map(_tokens, f.texts)) > n
        ),
        "count the tokens of the rendered row, not its letters": lambda f: True,
        "the end that the template writes behind the answer counts too": lambda f: f.whole - 2 > n,
        "the line break behind the end counts too: render all messages by the template, don't join "
        "the pieces yourself (or is the last id cut off?)": lambda f: f.whole - 1 > n,
        "the generation prompt is no part of the whole conversation": lambda f: (
            f.whole + OPENING > n
        ),
        "nothing counts as truncated": lambda f: False,
    }


def _folded(text):
    return " ".join(text.casefold().split())


def _alike(good):
    """What is counted where something else than all messages, folded, is compared."""
    fold = 'fold case and space before you compare: " ".join(text.casefold().split())'
    all_same = "a duplicate has all messages the same"
    keys = {
        fold: lambda f: (*f.roles, *f.texts),
        f"{fold}; here case is folded, and space inside is not": lambda f: tuple(
            t.strip().casefold() for t in f.texts
        ),
        f"{fold}; here space alone is folded": lambda f: tuple(
            " ".join(t.split()) for t in f.texts
        ),
        f"the answers differ: {all_same}, and not the prompt alone": (
            lambda f: (*f.roles[:-1], *map(_folded, f.texts[:-1]))
        ),
        f"the answers differ: {all_same}, and not what the user says": (
            lambda f: _folded(" ".join(_of(f, "user")))
        ),
        f"the questions differ: {all_same}, and not the answer alone": (
            lambda f: _folded(f.texts[-1])
        ),
        "the system messages differ: a duplicate has *all* messages the same": (
            lambda f: tuple(map(_folded, f.texts[f.roles[0] == "system" :]))
        ),
        "the order of the turns differs: compare them one by one": (
            lambda f: frozenset(map(_folded, f.texts))
        ),
        "the messages differ: compare one by one, not their texts joined": (
            lambda f: _folded(" ".join(f.texts))
        ),
    }
    return {text: len(good) - len(set(map(key, good))) for text, key in keys.items()}


def _of(f, role):
    return [text for one, text in zip(f.roles, f.texts, strict=True) if one == role]


def _repeated(rows, good):
    """What is counted where the same rows are found, and counted in another way."""

    def keys(some):
        return [tuple((m["role"], _folded(m["content"])) for m in row["messages"]) for row in some]

    mine, sizes = keys(rows[: len(good)]), Counter(keys(rows[: len(good)])).values()
    return {
        "the first of several equal rows is no duplicate, only those that repeat it are": sum(
            n for n in sizes if n > 1
        ),
        "each row that repeats an earlier one counts: three equal rows have two": sum(
            n > 1 for n in sizes
        ),
        "each row counts once, not each pair of equal rows": sum(n * (n - 1) // 2 for n in sizes),
        "a row with bad roles counts there and nowhere else": len(rows) - len(set(keys(rows))),
        "the row that it repeats may stand anywhere above, not just before it": sum(
            a == b for a, b in itertools.pairwise(mine)
        ),
        "that is how many different rows there are": len(set(mine)),
        "nothing counts as a duplicate": 0,
    }
