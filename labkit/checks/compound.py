"""Mistakes that come two at a time: names for what no single guess gives.

- `combined` makes the guesses of choices that a learner makes one by one, wrong ones paired too;
- `then` names what is done to a number that a guess gives, or to the right one: squared, halved;
- `multiple` names what several right numbers are multiplied by: ln 2, sqrt(n);
"""

import itertools
import math
from collections.abc import Callable

AND = "; and "  # between two mistakes
RIGHT = "the number is right"  # among guesses, for `then`
FLOATS = {
    "then it is squared": lambda v: v * v,
    "then its root is taken": lambda v: v**0.5,
    "then it is taken from 1": lambda v: 1 - v,
    "then it is upside down": lambda v: 1 / v,
    "then its sign is turned": lambda v: -v,
    "then it is doubled": lambda v: 2 * v,
    "then it is halved": lambda v: v / 2,
    "then it is in percent": lambda v: 100 * v,
    "then it is in bits": lambda v: v / math.log(2),
    "then its logarithm is taken": math.log,
    "then exp of it is taken": math.exp,
    "then its sign is lost": abs,
    "then 1 is added": lambda v: v + 1,
    "then 1 is taken off": lambda v: v - 1,
    "then it is held below 1": lambda v: min(v, 1.0),
    "then it is held above 0": lambda v: max(v, 0.0),
}
INTS = {
    "then it is one too many": lambda v: v + 1,
    "then it is one too few": lambda v: v - 1,
    "then it is doubled": lambda v: 2 * v,
    "then it is halved": lambda v: v // 2,
}


def combined(of: Callable, *choices: dict, most: int = 2) -> dict:
    """`{what is wrong: of(*one value of each choice)}`, single mistakes first, then pairs.

    A choice is `{what is wrong with it: value}`, the right one under "".
    """
    found = {}
    for picked in itertools.product(*(choice.items() for choice in choices)):
        wrong = [message for message, _ in picked if message]
        if 0 < len(wrong) <= most:
            found[AND.join(wrong)] = len(wrong), of(*(value for _, value in picked))
    return {message: value for message, (_, value) in sorted(found.items(), key=_how_many)}


def _how_many(item):
    return item[1][0]


def then(told: list) -> str:
    """What explains all of `told`, `[(got, guesses)]`: a guess and one thing done to it; or ""."""
    whole = all(type(got) is int for got, _ in told)
    if len(told) < (4 if whole else 2):  # few numbers are soon right by accident
        return ""
    names = sorted(told[0][1], key=RIGHT.__ne__)
    for message in [m for m in names if all(m in guesses for _, guesses in told)]:
        for more, change in (INTS if whole else FLOATS).items():
            if all(_becomes(change, guesses[message], got) for got, guesses in told):
                return f"{message}{AND}{more}"
    return ""


def _becomes(change, guess, got):
    if type(got) is not type(guess):
        return False
    try:
        made = change(guess)
    except (ArithmeticError, ValueError):
        return False
    if type(got) is int:
        return made == got
    return type(made) is float and abs(got - made) <= 1e-4 * max(1e-6, abs(made))


FACTORS = {1 / math.log(10): "1 / ln 10, as of log10", 1.96: "1.96, as of an interval"}
FACTORS |= {math.log(2): "ln 2", 4 / 3: "4 / 3", 2 / 3: "2 / 3", 0.25: "a quarter"}
POWERS = {1: "{}", -1: "1 / {}", 0.5: "sqrt({})", -0.5: "1 / sqrt({})", 2: "{}²", -2: "1 / {}²"}


def multiple(pairs: list, sizes: list) -> tuple[str, bool]:
    """What all of `pairs`, `[(got, wanted)]`, are multiplied by, and whether that has a name.

    ("", False) where the factor is none of `FACTORS`, no power of one of `sizes`, one `{name:
    size}` a pair, or of two, and not the same for all.
    """
    floats = all(type(x) is float and 0 < abs(x) < math.inf for pair in pairs for x in pair)
    if len(pairs) < 2 or not floats:
        return "", False
    ratios = [got / wanted for got, wanted in pairs]
    told = "each time it is {} the wanted"
    shared = {name: [size[name] for size in sizes] for name in sizes[0]} if sizes else {}
    for count in (1, 2):
        for names in itertools.combinations(shared, count):
            for ups in itertools.product(POWERS, repeat=count):
                made = [
                    math.prod(map(pow, row, ups))
                    for row in zip(*map(shared.get, names), strict=True)
                ]
                differ = count == 1 or max(made) > 1.01 * min(made)  # else it is soon an accident
                fits = all(abs(r - m) < 1e-3 * m for r, m in zip(ratios, made, strict=True))
                if fits and differ:
                    text = [POWERS[up].format(n) for n, up in zip(names, ups, strict=True)]
                    return told.format(f"{' * '.join(text)} times"), True
    if max(ratios) - min(ratios) > 1e-3 * abs(ratios[0]):
        return "", False
    known = [name for factor, name in FACTORS.items() if abs(ratios[0] / factor - 1) < 1e-3]
    return told.format(f"{ratios[0]:.4g}x{f' ({known[0]})' if known else ''}"), bool(known)
