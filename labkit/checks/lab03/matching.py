"""What exercise 3.6 expects of `exact_match`: shares first, then each kind of difference alone."""

import itertools
import json

import torch

from labkit.checks.compare import ask, draw, expect_number
from labkit.contract import part, sound
from labkit.labs.lab03 import probes
from labkit.probes import tiny


def expect_matches(exact_match, rng):
    """The share of right ones, invalid ones among them; then case by case what is equal."""
    commands = [_command(rng) for _ in range(6)]
    right = [json.dumps(c) for c in commands]
    other = [json.dumps(c | {"intent": "HassNevermind"}) for c in commands]
    _expect_share(exact_match, right[:4] + other[4:], right, 4 / 6, "4 right", SHARES)
    with part():
        bad = [right[0], "I can't", other[2], "", *right[4:]]
        _expect_share(exact_match, bad, right, 0.5, "3 right, 2 no JSON", INVALID)
    with part():
        hint = {"compare each prediction with its own reference": 1.0}
        turned = right[1:] + right[:1]
        _expect_share(exact_match, right, turned, 0.0, "each the reference of another", hint)
    _expect_each(exact_match, commands[0], rng)
    if sound():  # else it fails for another reason
        _expect_no_stand_in(exact_match)


SHARES = {
    "this is the number of matches": 4,
    "this is in percent; a share is from 0 to 1": 400 / 6,
    "this is the share of wrong ones": 2 / 6,
    "a return inside the loop ends it after the first pair": 1 / 6,
    "an answer of which a part is right is wrong: all of it or nothing": 5 / 6,
    "an answer that is right but for one field is wrong: all of it or nothing": (4 + 2 * 4 / 5) / 6,
    "no pair counts: does `except` catch an error of right ones (eval instead of json.loads, "
    "a set of lists), or does all(), //, round() or a return inside the loop end it early?": 0.0,
    "every pair counts: are keys compared without their values, or does any(), round() or "
    "a return inside the loop end it early?": 1.0,
}
INVALID = {
    "divide by all of them: invalid ones are wrong, not absent": 3 / 4,
    "an invalid prediction counts as right": 5 / 6,
    "an invalid prediction ends the count; go on with the next one": 1 / 6,
    "an invalid prediction makes all of it 0; go on with the next one": 0.0,
    "this is the number of matches": 3,
}


def _expect_no_stand_in(exact_match):
    """What is no JSON equals none of the values that people put in its place; null is a value."""
    with part():
        references = ["null", "{}", "[]", '""', "false", '"I can"']
        got = ask("", probes.matched, exact_match, ["I can"] * 6, references, hint=PARSED)
        call = f"exact_match of 6 times 'I can', no JSON, and {', '.join(references)}"
        told = "what stands for no JSON must equal no reference: count it as wrong at once"
        expect_number(got, 0.0, call, {told: got})
    with part():
        got = ask("", probes.matched, exact_match, ["null"], ["null"], hint=PARSED)
        told = "null is data: None stands for it, and so not for what is no JSON"
        expect_number(got, 1.0, "exact_match(['null'], ['null'])", {told: 0.0})


def _expect_share(exact_match, predictions, references, wanted, what, known):
    n = len(references)
    call = f"exact_match of {n} predictions, {what}"
    got = ask(call, probes.matched, exact_match, predictions, references, hint=PARSED)
    told = f"right pairs / all pairs, {wanted * n:.0f} / {n}"
    rounded = type(got) is float and got in [round(wanted, digits) for digits in range(1, 6)]
    expect_number(got, wanted, call, known if rounded else known | {told: got})


PARSED = {
    "name 'true' is not defined": "JSON is no Python: json.loads instead of eval",
    "the JSON object must be str": "json.loads takes one text: go through the lists in pairs",
    **dict.fromkeys(
        ("has no attribute", "subscriptable", "indices must be", "not iterable", "KeyError"),
        "a prediction may be null, a number or a list: JSON too, and another answer",
    ),
}


def _expect_each(exact_match, data, rng):
    """Each case alone, in no order that could be learned by heart; all that fail are told."""
    cases, text, told = _match_cases(data), json.dumps(data), {}
    calls = [f"exact_match([{_short(case[0], text)}], [{_short(text, case[0])}])" for case in cases]
    for i in torch.randperm(len(cases), generator=rng).tolist():
        with part():
            told[i] = ask(calls[i], probes.matched, exact_match, [cases[i][0]], [text], hint=PARSED)
    ones = {i for i, got in told.items() if type(got) in (int, float) and got == 1}
    fished = any(cases[i][2] == WHOLE for i in ones)
    for i, (_, wanted, why) in enumerate(cases):
        with part():
            if i in told and not (fished and why == LISTED):  # it takes the object out of any text
                expect_number(told[i], float(wanted), calls[i], {why: 1.0 - wanted})


def _short(text, other):
    """A text, of a long one what stands around its first difference to the other."""
    if len(text) < 95:
        return repr(text)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    start = max(0, min(len(list(same)) - 45, len(text) - 90))
    shown = text[start : start + 90]
    shown = f"… {shown}" if start else shown
    return repr(shown if text.endswith(shown[-50:]) else f"{shown} …")


WHOLE = "all of the prediction must be JSON; text around it, or `in`, is not enough"
LISTED = "a list of one answer is another answer"


def _command(rng):
    """A command as data, of a shape like the answers of `home`, with two names in a list."""
    names = [tiny.WORDS[i] for i in torch.randperm(len(tiny.WORDS), generator=rng)[:2]]
    slots = {"brightness": draw(2, 99, rng), "rooms": names, "dim": True}
    slots["area"] = f"{tiny.words(rng, 1, 1).title()} {tiny.words(rng, 1, 1)}"
    return {"intent": f"Hass{tiny.words(rng, 1, 1).title()}", "slots": slots}


def _match_cases(data):
    """`(prediction, is it right?, what a wrong verdict means)` for the reference `data`."""
    slots, text = data["slots"], json.dumps(data)
    turned = {"slots": slots, "intent": data["intent"]}
    inside = data | {"slots": dict(reversed(slots.items()))}
    more, less = data | {"area": "hall"}, {"intent": data["intent"]}
    lists = data | {"slots": slots | {"rooms": slots["rooms"][::-1]}}
    values = data | {"slots": slots | {"brightness": 1}}
    small, joined = (slots["area"].lower(), slots["area"].replace(" ", ""))
    sort = "compare parsed data, or json.dumps(…, sort_keys=True) of all of it, no text"
    keys = f"order of keys is not data: {sort}"
    python = "true is not 1, inside of slots, too, though Python's == says so: compare "
    python += "json.dumps(…, sort_keys=True)"
    spaces = "spaces outside of strings are not data: parse both, don't compare text"
    return [
        (json.dumps(turned), True, keys),
        (json.dumps(inside), True, f"order of keys is not data, in inner objects, too: {sort}"),
        (f" \n{json.dumps(data, indent=2)}\n", True, spaces),
        (json.dumps(data, separators=(",", ":")), True, spaces),
        (json.dumps(values), False, "same keys, other values: compare the parsed data with =="),
        (_with(data, area=small), False, "capitals are data: lower() is too much"),
        (_with(data, area=joined), False, "spaces inside of strings are data"),
        (_with(data, brightness=str(slots["brightness"])), False, "a text is no number in JSON"),
        (_with(data, dim=1), False, python),
        (json.dumps(lists), False, "the order in a list is data"),
        (json.dumps(more), False, "one key more is another answer"),
        (json.dumps(less), False, "one key less is another answer"),
        (f"Sure! {text}", False, WHOLE),
        (f"{text} {text}", False, WHOLE),
        (f"```json\n{text}\n```", False, WHOLE),
        (str(data), False, "single quotes and True are Python, not JSON: use json.loads"),
        (text.replace('"', "'"), False, "single quotes are no JSON: take the text as it is"),
        (text[:-3], False, "half an answer is no JSON, so it is wrong"),
        ("", False, "text that is no JSON is wrong"),
        ("null", False, "null is JSON, and another answer"),
        (f"[{text}]", False, LISTED),
    ]


def _with(data, **slots):
    return json.dumps(data | {"slots": data["slots"] | slots})
