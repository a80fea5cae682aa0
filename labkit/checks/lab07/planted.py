"""Rows for exercise 7.1: clean ones, and such with planted faults, a kind of fault at a time."""

from labkit.checks.compare import draw
from labkit.checks.lab07.miscounted import BLANK_ASKED, BLANK_BEFORE, FITS, OPENED, OPENING, TURN
from labkit.probes import tiny

KEYS = ("trains_on_nothing", "no_end", "truncated", "bad_roles", "duplicates")
words = tiny.words
LENGTH = 30  # max_length; the longest clean row has just so many tokens


def row(question, answer, system=None):
    """A row of messages."""
    turns = [("system", system)] * (system is not None)
    turns += [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def of_length(rng, prompt, answer=2):
    """A row: its prompt's tokens, the generation prompt included, and its answer's words."""
    return row(words(rng, prompt - TURN - OPENING), words(rng, answer))


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
    mid = [of_length(rng, LENGTH - 3, 4), of_length(rng, LENGTH - 2, 2)]
    gone = [of_length(rng, LENGTH + n) for n in (1, 5)]
    opened = f"{OPENED}; {FITS}"
    line = [of_length(rng, LENGTH - 3, 2)]
    return {
        "whose prompt fills max_length": (
            gone,
            {"trains_on_nothing": 2, "truncated": 2},
            {
                "trains_on_nothing": cut,
                "no_end": "it trains on nothing, and is not counted in no_end as well: elif",
            },
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
        **_blank(rng),
        **_blank_elsewhere(rng),
        **_bad(rng),
        **_repeated(rng),
        **_alike(rng),
    }


def _blank(rng):
    """Rows with a blank answer: whole, cut off, or cut midway, where it has many line breaks."""
    blank = "a blank answer teaches to say nothing: strip() it"
    question = of_length(rng, LENGTH - 4)["messages"][0]["content"]
    counts = {"trains_on_nothing": 1, "truncated": 1}
    why = {key: "it trains on nothing, and counts so once, and not as no_end" for key in counts}
    return {
        "with a blank answer": (
            [row(words(rng, 4), blank) for blank in ("", "  ", "\n")],
            {"trains_on_nothing": 3},
            {"trains_on_nothing": blank, "no_end": "it counts as trains_on_nothing alone"},
        ),
        "with a blank answer, cut off": ([of_length(rng, LENGTH + 1, 0)], counts, why),
        "with an answer of line breaks, cut midway": ([row(question, "\n" * 9)], counts, why),
    }


def _blank_elsewhere(rng):
    """Rows of which another message is blank than the last, and of two turns the last alone."""

    def turns(first, last):
        both = (row(words(rng, 2), answer)["messages"] for answer in (first, last))
        return [{"messages": [*next(both), *next(both)]}]

    last = "it is the last answer that is learned, and here it is blank"
    return {
        "of two turns, whose last answer is blank": (
            turns(words(rng, 1), " "),
            {"trains_on_nothing": 1},
            {"trains_on_nothing": last},
        ),
        "of two turns, whose first answer is blank": (
            turns(" ", words(rng, 1)),
            {},
            {"trains_on_nothing": BLANK_BEFORE},
        ),
        "with a blank question": (
            [row(" ", words(rng, 2))],
            {},
            {"trains_on_nothing": BLANK_ASKED},
        ),
    }


def _two_turns(rng, last):
    """A row whose first answer is all there, before a turn of which no label is left."""
    turns = row(words(rng, 2), words(rng, 2))["messages"] + last["messages"]
    why = "the prompt is all messages but the last"
    counts = {"trains_on_nothing": 1, "truncated": 1}
    return [{"messages": turns}], counts, {"trains_on_nothing": why}


def _bad(rng):
    """Rows whose roles no template takes."""
    good = row(words(rng, 3), words(rng, 2))["messages"]
    system = {"role": "system", "content": words(rng, 2)}
    user, answer = good
    human = [{"role": "human", "content": words(rng, 3)}, {"role": "bot", "content": words(rng, 1)}]
    two, odd = "user and assistant take turns", "the roles are system, user and assistant"
    over = "behind user and assistant one role is left over, which pairs made by zip do not have"
    last = "the last message has to be the assistant's: it is what is learned"
    first = "the user begins"
    nothing = "there is nothing in it to learn"
    late = "a system message comes first or not at all"
    listed = {
        "with two user turns in a row": ([user, *good], two),
        "with two answers in a row": ([*good, answer], over),
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


def _repeated(rng):
    """Rows that repeat others."""
    q1, a1, q2, a2 = (words(rng, n) for n in (5, 3, 5, 3))
    same = "rows that repeat an earlier one count, and the first of them does not"
    folded = 'fold case and space before you compare: " ".join(text.casefold().split())'
    long, blank = of_length(rng, LENGTH - 3, 4), row(words(rng, 6), " ")
    several = dict.fromkeys(KEYS, "a row may have several faults, and counts in each")
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
        "that are one and cut midway": (
            [long, long],
            {"no_end": 2, "truncated": 2, "duplicates": 1},
            several,
        ),
        "that are one and blank": (
            [blank, blank],
            {"trains_on_nothing": 2, "duplicates": 1},
            several,
        ),
    }


def _alike(rng):
    """Rows that only look as if they repeated others."""
    q1, a1, q2, a2 = (words(rng, n) for n in (5, 3, 5, 3))
    first, second = (row(words(rng, 1), word)["messages"] for word in ("turn", "lamp"))
    listed = {
        "with one question and two answers": (
            [row(q1, a1), row(q1, f"{a1} on")],
            "the answers differ: a duplicate has all messages the same",
        ),
        "with one answer to two questions": (
            [row(q2, a2), row(f"{q2} on", a2)],
            "the questions differ: a duplicate has all messages the same",
        ),
        "of two turns each, that come in another order": (
            [{"messages": first + second}, {"messages": second + first}],
            "the order of the turns differs: compare them one by one",
        ),
        "whose words are shared out to other turns": (
            [row("turn on", "the lamp"), row("turn", "on the lamp")],
            "the messages differ: compare one by one, not their texts joined",
        ),
        "that differ in their system messages alone": (
            [row("turn the fan on", "blue", system) for system in ("hall", "attic", None)],
            "the system messages differ: a duplicate has *all* messages the same",
        ),
    }
    return {what: (rows, {}, {"duplicates": why}) for what, (rows, why) in listed.items()}
