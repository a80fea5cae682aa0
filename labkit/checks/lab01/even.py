"""What exercise 1.3 expects of `break_even_rank`, and what misconceptions give."""

import math

from labkit.checks.compare import ask, every, expect_number, expect_numbers
from labkit.contract import expect, observe, part
from labkit.labs.lab01 import probes

FLOATS = "a float falls just above or below a whole number there: stay with integers, * and //"
ALWAYS = "1 is taken off always: only where the quotient is whole do A and B store as many as W"


def expect_break_even(break_even_rank, shapes):
    """The `shapes` and all up to 12 x 12, on which some formulas alone are wrong; then floats."""
    shapes = [*shapes, (6, 3), (3, 6), (8, 3), (4096, 4096), (1536, 576), (1, 1)]
    asked, small = every(lambda *shape: _asked_rank(break_even_rank, *shape), shapes), []
    if len(asked) < len(shapes):
        with part():
            expect_numbers(asked)
        return
    with part():
        try:
            sides = range(1, 13)
            small = _cases(break_even_rank, [(o, i) for o in sides for i in sides])
        finally:  # a guess has to explain all that are wrong, so all are judged together
            expect_numbers(asked + [case for case in small if type(case[1]) is int])
        expect_numbers(small)
        for call, got, wanted, *_ in _cases(break_even_rank, [(98, 98), (576, 960)]):
            expect_number(got, wanted, call, {FLOATS: got})


def _cases(break_even_rank, shapes):
    """What `expect_numbers` takes of several shapes, asked at once."""
    several = observe(probes.each, break_even_rank, shapes)
    return [_rank_case(*shape, got) for shape, got in zip(shapes, several, strict=True)]


def _asked_rank(break_even_rank, d_out, d_in):
    wanted, _ = guesses(d_out, d_in)
    call = f"break_even_rank({d_out}, {d_in})"
    hint = "r (d_out + d_in) < d_out d_in" if wanted else "no rank saves: 0"
    got = ask(call, break_even_rank, d_out, d_in, hint=hint)
    expect(got is not None or wanted, f"{call} gave None, wanted 0: no rank saves")
    uneven = type(got) is float and not got.is_integer()
    expect(not uneven, f"{call} gave {got}: a rank is a whole number, round down")
    return _rank_case(d_out, d_in, got)


def _rank_case(d_out, d_in, got):
    """What `expect_numbers` takes of a break-even rank."""
    wanted, known = guesses(d_out, d_in)
    call = f"break_even_rank({d_out}, {d_in})"
    mine = int(got) if type(got) in (int, float) and abs(got) < 1e9 else wanted
    mine = mine if mine > wanted else mine + 1
    side = "too many" if mine > wanted + 1 else "too few: the largest that saves is asked"
    held = f"at r = {mine} A and B hold {mine * (d_out + d_in):,} numbers, W {d_out * d_in:,}"
    made = f"{side}: {held}" if mine != wanted + 1 else held
    return call, got, wanted, known, made


def guesses(d_out, d_in):
    """Wrong largest ranks; the right one is first, as `(rank, guesses)`."""
    wanted = (d_out * d_in - 1) // (d_out + d_in)
    return wanted, {
        "where A and B store as many as W nothing is saved, and strictly fewer is asked": (
            d_out * d_in // (d_out + d_in)
        ),
        "twice too many: that is the harmonic mean of the sides": 2
        * d_out
        * d_in
        // (d_out + d_in),
        "twice too many: that is the harmonic mean of the sides, less what is over": (
            (2 * d_out * d_in - 1) // (d_out + d_in)
        ),
        "it is rounded to the nearest: round down": round(d_out * d_in / (d_out + d_in)),
        "one too many: at that rank A and B store more than W, or as many": wanted + 1,
        "one too many: at that rank A and B store more than W": d_out * d_in // (d_out + d_in) + 1,
        "one too few where the quotient's fraction is below a half: only a whole one loses 1": max(
            0, math.floor(d_out * d_in / (d_out + d_in) - 0.5)
        ),
        "the search ends before the last rank that saves, and then gives 0": (
            wanted if wanted + 1 < min(d_out, d_in) else 0
        ),
        "one too few: at the next rank A and B still store fewer than W": wanted - 1,
        ALWAYS: max(0, d_out * d_in // (d_out + d_in) - 1),
        f"{ALWAYS}; and where no rank saves it is 0": d_out * d_in // (d_out + d_in) - 1,
        "never below 1: where no rank saves it is 0": max(1, wanted),
        "that is the full rank, where A and B store more than W": min(d_out, d_in),
        "one below the full rank, where A and B store more than W": min(d_out, d_in) - 1,
        "that is half of it: r counts for A and for B at once": d_out
        * d_in
        // (2 * (d_out + d_in)),
        "half of the root of d_out d_in takes W for square": (math.isqrt(d_out * d_in) // 2),
        "that is the root of d_out d_in; r (d_out + d_in) is what A and B hold": math.isqrt(
            d_out * d_in
        ),
    } | _halves(d_out, d_in)


def _halves(d_out, d_in):
    """Half of something that is the side of a square W."""
    sides = {"d_in": d_in, "d_out": d_out, "the mean side": (d_out + d_in) // 2}
    sides |= {"the shorter side": min(d_out, d_in), "the longer side": max(d_out, d_in)}
    guesses = {}
    others = {"d_in": "d_out", "d_out": "d_in"}
    others |= {"the shorter side": "the longer side", "the longer side": "the shorter side"}
    for name, side in sides.items():
        held = f", with 2 r times {others[name]} in A and B" if name in others else ""
        told = f"takes W for square{held}; they hold r (d_out + d_in)"
        guesses[f"half of {name} {told}"] = side // 2
        guesses[f"half of {name}, less one, {told}"] = side // 2 - 1
        guesses[f"that is half of {name}, which {told}"] = (side - 1) // 2
    return guesses
