"""What exercise 7.1 expects of `audit`: rows with planted faults, a kind of fault at a time."""

import torch

from labkit.checks.compare import ask, draw, every, expect_numbers, kind_of
from labkit.checks.lab07 import miscounted
from labkit.checks.lab07.miscounted import TURN
from labkit.contract import expect, part, sound
from labkit.labs import tiny
from labkit.labs.lab07 import probes

KEYS = ("trains_on_nothing", "no_end", "truncated", "bad_roles", "duplicates")
words = tiny.words
LENGTH = 24  # max_length; the longest clean row has just so many tokens


def row(question, answer, system=None):
    """A row of messages."""
    turns = [("system", system)] * (system is not None)
    turns += [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def of_length(rng, prompt, answer=2):
    """A row: its prompt's tokens, `<assistant>` behind it included, and its answer's words."""
    return row(words(rng, prompt - TURN - 1), words(rng, answer))


def clean(rng, n=4):
    """Different rows without a fault: one has an earlier turn, and one is as long as may be."""
    rows = [of_length(rng, draw(8, 14, rng), draw(1, 3, rng)) for _ in range(n)]
    first = row(words(rng, 2), words(rng, 1), words(rng, 1))["messages"]
    rows.append({"messages": first + row(words(rng, 1), words(rng, 1))["messages"]})
    rows.append(of_length(rng, LENGTH - 2 - 2, 2))
    return rows


ENDS = "look for the end among the labels left by the cut: each turn of the prompt has one, too"


def faults(rng):
    """`{what the rows are: (rows, counts that are not zero, {wrong count's key: why})}`."""
    cut = "cut on the right at max_length, nothing of its answer is left"
    blank = "a blank answer teaches to say nothing: strip() it"
    mid = [of_length(rng, LENGTH - 3, 4), of_length(rng, LENGTH - 2, 2)]
    gone = [of_length(rng, LENGTH + n) for n in (1, 5)]
    opened = "the generation prompt belongs to the prompt: behind it no label is left (>=, not >)"
    line = [of_length(rng, LENGTH - 3, 2)]
    return {
        "whose prompt fills max_length": (
            gone,
            {"trains_on_nothing": 2, "truncated": 2},
            {"trains_on_nothing": cut, "no_end": "it trains on nothing, and counts there alone"},
        ),
        "whose prompt has just max_length tokens": (
            [of_length(rng, LENGTH)],
            {"trains_on_nothing": 1, "truncated": 1},
            {"trains_on_nothing": opened, "no_end": opened},
        ),
        "of two turns, whose last answer is cut off": _two_turns(rng, gone[0]),
        "of whose answer one token is left": (
            [of_length(rng, LENGTH - 1, 3)],
            {"no_end": 1, "truncated": 1},
            {"no_end": ENDS, "trains_on_nothing": "labels begin behind the generation prompt"},
        ),
        "whose answer is cut midway": (
            mid,
            {"no_end": 2, "truncated": 2},
            {"no_end": ENDS, "trains_on_nothing": "part of its answer is left, and trains"},
        ),
        "that lose just the line break behind the end": (
            line,
            {"truncated": 1},
            {"no_end": "its end token is left: look for it among the labels that are left"},
        ),
        "with a blank answer": (
            [row(words(rng, 4), blank) for blank in ("", "  ", "\n")],
            {"trains_on_nothing": 3},
            {"trains_on_nothing": blank, "no_end": "it counts as trains_on_nothing alone"},
        ),
        **_bad(rng),
        **_alike(rng),
        "that differ in their system messages alone": _but_for_systems(),
    }


def _two_turns(rng, last):
    """A row whose first answer is all there, before a turn of which no label is left."""
    turns = row(words(rng, 2), words(rng, 2))["messages"] + last["messages"]
    why = "the prompt is all messages but the last"
    counts = {"trains_on_nothing": 1, "truncated": 1}
    return [{"messages": turns}], counts, {"trains_on_nothing": why}


def _but_for_systems():
    rows = [row("turn the fan on", "blue", system) for system in ("hall", "attic", None)]
    why = "the system messages differ: a duplicate has *all* messages the same"
    return rows, {}, {"duplicates": why}


def _bad(rng):
    """Rows whose roles no template takes."""
    good = row(words(rng, 3), words(rng, 2))["messages"]
    system = {"role": "system", "content": words(rng, 2)}
    user, answer = good
    human = [{"role": "human", "content": words(rng, 3)}, {"role": "bot", "content": words(rng, 1)}]
    two, odd = "user and assistant take turns", "the roles are system, user and assistant"
    last = "the last message has to be the assistant's: it is what is learned"
    first = "the user begins"
    nothing = "there is nothing in it to learn"
    late = "a system message comes first or not at all"
    listed = {
        "with two user turns in a row": ([user, *good], two),
        "with two answers in a row": ([*good, answer], two),
        "that begin with the assistant": ([answer, *good], first),
        "that end with the user": ([*good, user], last),
        "with the roles human and bot": (human, odd),
        "with a system message in the middle": ([*good, system, *good], late),
        "of a system message alone": ([system], nothing),
        "without messages": ([], nothing),
    }
    elsewhere = "a row with bad roles counts there and nowhere else"
    why = {key: elsewhere for key in KEYS}
    return {
        what: ([{"messages": list(turns)}] * 2, {"bad_roles": 2}, why | {"bad_roles": hint})
        for what, (turns, hint) in listed.items()
    }


def _alike(rng):
    """Rows that repeat others, and rows that only look so."""
    (q1, a1), (q2, a2), (q3, a3), (q4, a4) = ((words(rng, 5), words(rng, 3)) for _ in range(4))
    same = "rows that repeat an earlier one count, and the first of them does not"
    folded = 'fold case and space before you compare: " ".join(text.casefold().split())'
    first, second = (row(words(rng, 1), word)["messages"] for word in ("turn", "lamp"))
    long = of_length(rng, LENGTH - 3, 4)
    return {
        "of which two repeat the first": (
            [row(q1, a1) for _ in range(3)],
            {"duplicates": 2},
            {"duplicates": same},
        ),
        "that are one in other case and spacing": (
            [row(q, a2) for q in (q2, q2.upper(), q2.title(), "  ".join(q2.split()) + "\n")],
            {"duplicates": 3},
            {"duplicates": folded},
        ),
        "with one question and two answers": (
            [row(q3, a3), row(q3, f"{a3} on")],
            {},
            {"duplicates": "the answers differ: a duplicate has all messages the same"},
        ),
        "with one answer to two questions": (
            [row(q4, a4), row(f"{q4} on", a4)],
            {},
            {"duplicates": "the questions differ: a duplicate has all messages the same"},
        ),
        "of two turns each, that come in another order": (
            [{"messages": first + second}, {"messages": second + first}],
            {},
            {"duplicates": "the order of the turns differs: compare them one by one"},
        ),
        "whose words are shared out to other turns": (
            [row("turn on", "the lamp"), row("turn", "on the lamp")],
            {},
            {"duplicates": "the messages differ: compare one by one, not their texts joined"},
        ),
        "that are one and cut midway": (
            [long, long],
            {"no_end": 2, "truncated": 2, "duplicates": 1},
            {key: "a row may have several faults, and counts in each" for key in KEYS},
        ),
    }


def expect_audit(audit, rng):
    """Each kind of fault is counted, clean rows have none, and a mixture has them all."""
    plain = clean(rng)
    _counts(audit, "audit of clean rows", plain, "plain")
    listed = faults(rng)
    told = every(
        lambda what, case: (what, case, _counts(audit, what, [*plain, *case[0]], "plain", case)),
        [("audit of clean rows", ([], {}, _CLEAN))]
        + [(f"audit of rows {what}", case) for what, case in listed.items()],
    )
    known = {key: _told_of(key, plain, told) for key in KEYS}
    with part():  # what is taken for a bad row is looked at no further
        expect_numbers([case for case in known["bad_roles"][2] if not case[2]])
    if sound() and not all(rules or right for rules, right, _ in known.values()):
        with part():
            _expect_each(plain, told)
    for key in KEYS if sound() else ():
        with part():
            expect_numbers(known[key][2])
    if sound():
        with part():
            endless = "the template writes no end token, so none of these rows has one to learn"
            why = {"no_end": endless}
            what = "of clean rows with a template that writes no end"
            _expect(audit, what, plain[:-1], {"no_end": len(plain) - 1}, why, "endless")
        with part():
            _expect_one_start(audit, rng)
    if sound():
        _expect_mixture(audit, plain, listed, rng)


def _expect_each(plain, told):
    """Raise CheckFailed where one fault of a row takes it out of the counts of others."""
    cases = [
        ([*plain, *rows][: len(plain) + (0 if "bad_roles" in counts else len(rows))], got)
        for _, (rows, counts, _), got in told
    ]
    guarded = miscounted.guarded([rows for rows, _ in cases], [got for _, got in cases], LENGTH)
    expect(not guarded, f"audit: {guarded}; a row may have several faults, and counts in each")


def _told_of(key, plain, told):
    """One count of all audits: mistaken rules that give each, whether all are right, the cases.

    A case is one of `expect_numbers`, with these rules as its guesses and a hint.
    """
    cases = []
    for call, (rows, counts, why), got in told:
        bad = len(rows) if "bad_roles" in counts else 0
        known = miscounted.guesses(key, [*plain, *rows], bad, LENGTH)
        wanted = counts.get(key, 0)
        hint = why.get(key) or (_MISSED[key] if got[key] < wanted else _CLEAN[key])
        cases.append((f'{call}: "{key}"', got[key], wanted, known, hint))
    rules = [m for m in cases[0][3] if all(got == known[m] for _, got, _, known, _ in cases)]
    right = all(got == wanted for _, got, wanted, *_ in cases)
    return rules, right, [(*case[:3], {m: case[3][m] for m in rules}, case[4]) for case in cases]


_CLEAN = {
    "no_end": "the end token stands before the line break: look among all labels, not at the last",
    "truncated": "one of them has just max_length tokens, and loses none",
    "trains_on_nothing": "labels begin where the answer does, behind the generation prompt",
    "bad_roles": "a system message may come first, and user and assistant may take several turns",
    "duplicates": "no two of them have the same messages",
}


_MISSED = {
    "trains_on_nothing": "what is left behind the prompt is what it trains on",
    "no_end": "look for the end among the labels: each turn of the prompt has one, too",
    "truncated": "the whole rendered row counts: prompt, answer, and the template's own tokens",
    "bad_roles": "a system message or none, then user and assistant in turn",
    "duplicates": "rows that repeat an earlier one count, whatever else is wrong with them",
}


def _expect_one_start(audit, rng):
    """A template that writes a BOS, and a tokenizer that puts one before any text."""
    rows = [of_length(rng, LENGTH - 1 - 4, 2), of_length(rng, LENGTH - 2, 2)]
    twice = "the first token stands twice: let apply_chat_template give the ids"
    told = "with a template that writes a BOS, of a row that just fits and one cut midway"
    _expect(audit, told, rows, {"truncated": 1, "no_end": 1}, {}, "bos", twice)


def _expect_mixture(audit, plain, listed, rng):
    rows, wanted = list(plain), dict.fromkeys(KEYS, 0)
    for some, counts, _ in listed.values():
        rows += some
        for key, n in counts.items():
            wanted[key] += n
    order = torch.randperm(len(rows), generator=rng).tolist()
    rows = [rows[i] for i in order]
    why = dict.fromkeys(KEYS, "each row is judged by itself, and the counts add up")
    why["duplicates"] = "the row that it repeats may stand anywhere above, not just before it"
    _expect(audit, f"of {len(rows)} mixed rows", rows, wanted, why, "plain")


def _expect(audit, told, rows, counts, why, style, more=""):
    """The five counts of an audit; the likeliest reason of the first that is wrong.

    `more` is the reason where more is counted than there is.
    """
    call = f"audit {told}"
    got = _counts(audit, call, rows, style)
    for key in KEYS:
        wanted = counts.get(key, 0)
        hint = why.get(key) or (_MISSED[key] if got[key] < wanted else more or _CLEAN[key])
        gave = f"{call}: {key} is {got[key]}, wanted {wanted}"
        expect(got[key] == wanted, gave, hint=hint)


def _counts(audit, call, rows, style, case=((), {}, {})):
    """What an audit of `rows` gives, after a look at its form; `case` tells what is planted."""
    reason = "bad_roles" in case[1] and case[2]["bad_roles"]
    hint = f"{reason}: count the row as bad_roles, and go on with the next" if reason else ""
    got = ask(call, probes.audited, audit, rows, LENGTH, style, hint=hint)
    expect(isinstance(got, dict), f"{call} gave {kind_of(got)}, wanted a dict of five counts")
    missing = [key for key in KEYS if key not in got]
    expect(not missing, f"{call}: the dict lacks {', '.join(missing)}")
    for key in KEYS:
        n = got[key]
        hint = ": a count, not the rows themselves" if isinstance(n, list | tuple | set) else ""
        hint = ": a count, not a share of the rows" if isinstance(n, float) else hint
        expect(type(n) is int, f"{call}: {key} is {kind_of(n)}, wanted an int{hint}")
    return got
