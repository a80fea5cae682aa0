"""What exercise 2.9 expects of `scaling`: two factors, and which of them is the usual one."""

import math

from labkit.checks.compare import ask, draw, every, expect_kind, expect_numbers
from labkit.checks.lab02 import guesses
from labkit.contract import expect, observe, part


def expect_scaling(scaling, rng):
    """alpha / r without a word, alpha / sqrt(r) where it is asked for."""
    draws = [draw(low, 63, rng) for low in (33, 33, 3, 17)]
    cases = [(32, 16), (float(draws[0]), draws[2]), (draws[1], draws[3]), (3.5, draws[0])]
    plain, stable = (
        every(lambda *case, on=on: _asked(scaling, *case, on), cases) for on in (False, True)
    )
    pairs = [*zip(plain, stable, strict=False)]
    if pairs and all(_near(one[1], other[2]) for one, other in pairs):
        told = "rank_stabilized=True gives alpha / r, and without it sqrt(r) divides: swapped"
        expect(not all(_near(other[1], one[2]) for one, other in pairs), told)
        told = "without rank_stabilized=True sqrt(r) divides: its default is False, leave it there"
        off = observe(scaling, *cases[0], False)
        expect(not _near(off, plain[0][2]), told)
        told = "rank_stabilized=False gives alpha / sqrt(r), too: ask `if rank_stabilized:` "
        told += "(False is not None: `is not None` is true of it)"
        expect(not _near(off, stable[0][2]), told)
    for asked in (plain, stable):
        with part():
            expect_numbers(asked)


def _near(got, wanted):
    return type(got) in (int, float) and math.isclose(got, wanted, rel_tol=1e-4)


def _asked(scaling, alpha, r, stabilised):
    """What `expect_numbers` takes of one call."""
    call = f"scaling({alpha}, {r}{', rank_stabilized=True' if stabilised else ''})"
    got = ask(call, scaling, alpha, r, *([True] if stabilised else []))
    expect_kind(got, call)
    if stabilised:
        made = f"sqrt({r}) is {math.sqrt(r):.6g}"
        return call, got, alpha / math.sqrt(r), guesses.stabilised(alpha, r), made
    return call, got, alpha / r, guesses.factors(alpha, r) | guesses.powers(alpha, r, "alpha / r")
