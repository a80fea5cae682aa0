"""What exercise 7.1 expects of `audit`: the counts of planted faults, a kind at a time."""

import torch

from labkit.checks.compare import ask, every, expect_numbers, kind_of
from labkit.checks.lab07 import miscounted
from labkit.checks.lab07.planted import KEYS, LENGTH, clean, faults, of_length
from labkit.contract import expect, part, sound
from labkit.labs.lab07 import probes


def expect_audit(audit, rng):
    """Each kind of fault is counted, clean rows have none, and a mixture has them all."""
    plain = clean(rng)
    call = "audit of clean rows"
    once, twice = (_counts(audit, call, plain, "plain") for _ in range(2))
    hint = "something is kept between calls, as a default argument such as seen=set() is"
    for key in KEYS:
        moved = f"{key} is {once[key]} at first and {twice[key]} when asked again"
        expect(once[key] == twice[key], f"{call}: {moved}; {hint}")
    if once["duplicates"] == len(plain):  # kept from an earlier run of this check, perhaps
        rng_of_now = torch.Generator()
        rng_of_now.seed()
        new = _counts(audit, call, clean(rng_of_now), "plain")["duplicates"]
        expect(new, f"{call}: all are duplicates, and of new ones none: {hint}")
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
            expect_numbers(_beside(key, known[key][2], told))
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


def _beside(key, cases, told):
    """The cases of a count; of others than bad_roles those in which bad_roles is right."""
    right = [got["bad_roles"] == counts.get("bad_roles", 0) for _, (_, counts, _), got in told]
    return [c for c, fine in zip(cases, right, strict=True) if fine or key == "bad_roles"]


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
