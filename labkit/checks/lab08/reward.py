"""What exercise 8.6 expects of `reward`: what it has to be for chosen answers, whatever formula."""

import json

import torch

from labkit.checks.compare import ask, draw, expect_kind, kind_of
from labkit.contract import expect, part, sound

WORDS = ("study", "hall", "attic", "lamp", "fan", "blue", "window", "garage", "porch", "heater")
KEYS = (
    "intent", "name", "area", "floor", "domain", "device_class", "state", "color", "brightness",
    "temperature", "volume_level", "item", "hours", "minutes", "seconds", "conversation_command",
)  # fmt: skip
NUMBERS = ("brightness", "temperature", "volume_level", "hours", "minutes", "seconds")
RAISES = "a model says all sorts of things: for what is no JSON object it is 0"
NESTED = {
    "unhashable": "a value may be a list or an object, and a set holds neither: put its JSON text "
    "there, json.dumps(value, sort_keys=True)"
}
GUESSED = "a guessed value pays; a key counts with its value alone"
EMPTY = "{} is a JSON object without keys: none is right, so it is 0"


def drawn(rng, n):
    """Wanted data of n keys, the intent and others: texts, and at least one number from two on."""
    others = [KEYS[1:][i] for i in torch.randperm(len(KEYS) - 1, generator=rng).tolist()]
    numbers = [key for key in others if key in NUMBERS]
    texts = [key for key in others if key not in NUMBERS]
    chosen = ["intent", *numbers[:1], *texts][:n]
    return {key: _value(key, rng) for key in chosen}


def _value(key, rng):
    if key == "intent":
        return f"HassTurn{('On', 'Off')[draw(0, 1, rng)]}"
    return draw(2, 90, rng) if key in NUMBERS else WORDS[draw(0, len(WORDS) - 1, rng)]


def wrong(value):
    """Another value of the same kind."""
    return value + 7 if isinstance(value, int) else f"{value} upstairs"


def text(data):
    """Compact JSON, as in the rows of `home`."""
    return json.dumps(data, separators=(",", ":"))


def expect_reward(reward, rng):
    """All that the text asks for, one property a part."""
    data = drawn(rng, 4)
    asked = _Asked(reward, data)
    with part():
        _expect_equal(asked, data)
    with part():
        _expect_no_object(asked, data)
    for expected in (_expect_nothing_right, _expect_more_for_right, _expect_less_for_extra):
        with part():
            expected(asked, data, rng)
    for expected in (_expect_wrong_values, _expect_kinds):
        with part():
            expected(asked, data)
    for n in (2, 4):
        with part():
            _expect_all_named(_Asked(reward, data := drawn(rng, n)), data, rng)


class _Asked:
    """`asked(answer, what)`: the reward, from 0 to 1, of an answer given as data or as text."""

    def __init__(self, reward, wanted):
        self.reward, self.wanted = reward, text(wanted)

    def __call__(self, answer, what):
        said = answer if isinstance(answer, str) else text(answer)
        call = f"reward of {what}, {_short(said)} for {self.wanted}"
        hint = {"it raised": RAISES} if isinstance(answer, str) else "" if answer else EMPTY
        if not isinstance(answer, str) and any(isinstance(v, list | dict) for v in answer.values()):
            hint = NESTED
        got = ask(call, self.reward, said, self.wanted, hint=hint)
        truth = f"{call} gave {kind_of(got)}, wanted a float from 0 to 1"
        expect(type(got) is not bool, truth)
        expect_kind(got, call)
        below = ", and what is taken away ends at 0: max(0.0, …)" if got < 0 else ""
        expect(0 <= got <= 1, f"{call} gave {got:.4g}: it lies outside of 0 to 1{below}")
        return got, call


def _short(said):
    """The text, if it is not every key there is; else its beginning and its end."""
    return f"{said[:70]} … {said[-30:]}" if len(said) > 110 else said or "''"


def _expect_equal(asked, data):
    """1 for the same text, and for the same data in another order with blanks."""
    got, call = asked(data, "the wanted text itself")
    expect(got == 1, f"{call} gave {got:.4g}, wanted 1")
    turned = dict(reversed(data.items()))
    for said, what in (
        (json.dumps(data), "equal data with blanks"),
        (text(turned), "equal data in another order of keys"),
        (f" {json.dumps(turned, indent=1)}\n", "equal data on several lines"),
    ):
        got, call = asked(said, what)
        hint = "compare what json.loads gives, not the texts"
        expect(got == 1, f"{call} gave {got:.4g}, wanted 1: {hint}")


def _expect_no_object(asked, data):
    """0 for texts that are no JSON object, also those that look like one."""
    whole = text(data)
    listed = {
        "a text that is no JSON": "I turned it on.",
        "an empty text": "",
        "JSON that is cut off": whole[:-1],
        "JSON with words behind it": f"{whole} I hope this helps",
        "JSON in a code fence": f"```json\n{whole}\n```",
        "a Python dict": str(data),
        "a list": text([data]),
        "a list of the keys": text(list(data)),
        "a number": "1",
        "null": "null",
        "true": "true",
        "a text in quotes": text(whole),
    }
    for what, said in listed.items():
        got, call = asked(said, what)
        hint = "it is no JSON object, as json.loads reads it"
        expect(got == 0, f"{call} gave {got:.4g}, wanted 0: {hint}")


def _expect_nothing_right(asked, data, rng):
    """0 for an object of which no key is right."""
    others = [key for key in KEYS if key not in data]
    for said, what in (
        ({}, "an empty object"),
        ({key: wrong(value) for key, value in data.items()}, "wanted keys, all values wrong"),
        ({key: _value(key, rng) for key in others[:3]}, "keys that nobody wants"),
        ({f"{key}_": value for key, value in data.items()}, "right values under other keys"),
    ):
        got, call = asked(said, what)
        hint = "a key alone is worth nothing, or naming keys pays" if "all values" in what else ""
        hint = (
            "valid JSON alone is worth nothing, or its form alone is learned" if not said else hint
        )
        expect(got == 0, f"{call} gave {got:.4g}, wanted 0: no key is right", hint=hint)


def _expect_more_for_right(asked, data, rng):
    """Each right key adds something, and all but one are not all."""
    order = [list(data)[i] for i in torch.randperm(len(data), generator=rng).tolist()]
    before = 0.0
    for n in range(1, len(data)):
        said = {key: data[key] for key in order[:n]}
        got, call = asked(said, f"{n} of {len(data)} keys, all right")
        told = f"{call} gave {got:.4g}"
        hint = "a right key earns something by itself, and none is a condition for others"
        expect(got > 0, f"{told}, wanted more than 0: {hint}")
        expect(got > before, f"{told}, no more than {n - 1} of them: each right key adds something")
        hint = got == 1 and _of_said(asked, said, data)
        expect(got < 1, f"{told}: {hint or '1 is for equal data alone, and keys are missing'}")
        before = got


def _of_said(asked, said, data):
    """Words where the reward is the share of right keys among those that were said; else ""."""
    other = next(key for key in KEYS if key not in data)
    got, _ = asked(said | {other: 1}, "the same and a key that nobody wants")
    told = "it is divided by the keys of the answer alone, and missing ones have to cost, too"
    return told if abs(got - len(said) / (len(said) + 1)) < 1e-6 else ""


def _expect_less_for_extra(asked, data, rng):
    """Each key too many costs something, of a whole answer and of a half."""
    others = [key for key in KEYS if key not in data]
    extra = {key: _value(key, rng) for key in others[:2]}
    half = dict(list(data.items())[: len(data) // 2])
    pays = "a key too many has to cost something, or naming every key pays"
    free = "a key too many is free as long as wanted ones are missing: it has to cost something "
    free += "there, too (is it divided by the larger number of keys?)"
    for said, what, cheap in (
        (data, "all keys right", pays),
        (half, "half of the keys right", free),
    ):
        before, _ = asked(said, what)
        for n in (1, 2):
            more = said | dict(list(extra.items())[:n])
            got, call = asked(more, f"{what} and {n} that nobody wants")
            told = f"{call} gave {got:.4g}, and without the last key {before:.4g}"
            expect(got < before or got == before == 0, f"{told}: {cheap}")
            before = got
    one = dict(list(extra.items())[:1])
    less, _ = asked(half | one, "half of the keys right and an extra one")
    got, call = asked(data | one, "all keys right and an extra one")
    expect(got >= less, f"{call} gave {got:.4g}, less than half of its right keys, {less:.4g}")
    got, call = asked(data | {others[0]: None}, "all keys right and an extra one that is null")
    hint = "the key is one too many, though .get gives None for a missing key as well"
    expect(got < 1, f"{call} gave {got:.4g}, wanted less than 1: {hint}")


def _expect_wrong_values(asked, data):
    """A wanted key with a wrong value earns no more than without it."""
    *most, last = data
    for keys, what in ((most, "all but one right"), (most[:1], "one key right")):
        right = {key: data[key] for key in keys}
        before, _ = asked(right, what)
        for given, kind in (
            (wrong(data[last]), "a wrong value"),
            ([data[last]], "a list of the right value"),
            ({}, "an empty object for a value"),
        ):
            got, call = asked(right | {last: given}, f"{what} and {kind}")
            told = f"{call} gave {got:.4g}, more than without that key, {before:.4g}"
            expect(got <= before, f"{told}: {GUESSED}")


def _expect_kinds(asked, data):
    """Values of another kind are other values: true, 1 and "1"; so are texts in other case."""
    number = next(key for key in data if key in NUMBERS)
    name = next(key for key in data if key not in NUMBERS and key != "intent")
    texts = "(is str() of both compared?)"
    listed = [
        ({number: 1}, {number: True}, "true in the place of 1", "in Python True == 1"),
        ({number: 0}, {number: False}, "false in the place of 0", "in Python False == 0"),
        ({number: True}, {number: 1}, "1 in the place of true", "in Python True == 1"),
        ({number: 12}, {number: "12"}, '"12" in the place of 12', f"a text is no number {texts}"),
        ({name: "12"}, {name: 12}, '12 in the place of "12"', f"a number is no text {texts}"),
        ({name: "study"}, {name: "Study"}, "Study in the place of study", "case counts in data"),
        ({name: "study"}, {name: "study "}, "a blank behind the value", "blanks count in a value"),
    ]
    for goal, given, what, why in listed:
        again = _Asked(asked.reward, data | goal)
        without = {key: value for key, value in data.items() if key not in given}
        before, _ = again(without, "the same without it")
        got, call = again(data | given, what)
        told = f"{call} gave {got:.4g}, without that key {before:.4g}"
        other, _ = again(data | {key: wrong(value) for key, value in goal.items()}, "another value")
        expect(got <= max(before, other), f"{told}: it counts as the right value; {why}")
        expect(got <= before or not sound(), f"{told}: {GUESSED}")


def _expect_all_named(asked, data, rng):
    """Every key there is, the wanted ones right, earns less than an honest half."""
    pairs, n = list(data.items()), len(data) // 2
    half = min(asked(dict(some), "an honest half")[0] for some in (pairs[:n], pairs[-n:]))
    every = {key: _value(key, rng) for key in KEYS} | data
    told = "an honest half gave 0: a right key earns something, and none is a condition for others"
    expect(half > 0, told)
    got, call = asked(every, f"every key there is, the {len(data)} wanted ones right")
    hint = "naming every key pays: divide by all keys named, or take more away for each extra one"
    expect(got < half, f"{call} gave {got:.4g}, an honest half {half:.4g}: {hint}")
