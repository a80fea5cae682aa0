"""What exercise 4.4 expects of pack_nibbles and unpack_nibbles."""

import math

import torch

from labkit.checks.compare import ask, draw, expect_related, randn
from labkit.checks.lab04 import small
from labkit.checks.lab04.bnb import stored_codes
from labkit.checks.lab04.whole import blaming, expect_integers
from labkit.checks.simplest import simplest
from labkit.contract import expect, observe, part
from labkit.labs.lab04 import probes

ODD = "an odd number of codes: the last gets a byte of its own"
EVEN = "{} codes are pairs already: an even number needs no filler"
LOOPS = "it loops over the codes in Python; a small model has 106 million: all at once, by slices"


def expect_nibbles(pack_nibbles, unpack_nibbles, rng):
    """The bytes of bitsandbytes and its codes again; returns a note on the filler, or None."""
    note = None
    weights = [randn(n, rng=rng) for n in (192, 2 * draw(3, 20, rng) + 1, 1)]
    for w in weights:
        w[-1] = w[-1].abs()  # its code is not 0, which looks the same in either nibble
    cases = [stored_codes(w) for w in weights]
    each = torch.arange(256, dtype=torch.uint8)  # every byte there is
    cases.append((torch.stack([each >> 4, each & 15], 1).flatten().long(), each))
    with part(), simplest(small.packed(pack_nibbles)):
        for codes, stored in cases:
            n = len(codes)
            with blaming(ODD if n % 2 else ""):
                filled = {f"({n // 2 + 1}) must match": EVEN.format(n)}
                filled = {"must match the size": ODD} if n % 2 else filled
                got = ask("", probes.packed, pack_nibbles, codes.to(torch.uint8), hint=filled)
            _expect_bytes(got, stored, codes, f"pack_nibbles of {n} code{'s' if n > 1 else ''}")
            if n % 2 and got.flatten()[-1] != stored[-1]:
                note = "right; after an odd number of codes bitsandbytes fills with 7, its zero"
    with part(), simplest(small.unpacked(unpack_nibbles)):
        for _, stored in cases:
            _expect_unpacked(observe(probes.unpacked, unpack_nibbles, stored), stored)
    work = observe(probes.work_to_pack, pack_nibbles, unpack_nibbles)
    for name, (few, many) in zip(("pack_nibbles", "unpack_nibbles"), work, strict=True):
        with part():
            expect(many - few < probes.MORE_BLOCKS, f"{name}: {LOOPS}")
    return note


def _expect_bytes(got, stored, codes, call):
    expect(isinstance(got, torch.Tensor), f"{call} gave no tensor (is `return` missing?)")
    kind = str(got.dtype).removeprefix("torch.")
    expect(got.dtype == torch.uint8, f"{call} gave {kind}, wanted uint8: a byte is 8 bits")
    odd = len(codes) % 2
    alone = "an odd one gets a byte of its own" if odd else "an even number needs no filler"
    size = f"wanted {len(stored)}: two codes a byte, {alone}"
    every = got.numel() == len(codes) > 1
    size += ". A byte for each code? Pairs do not overlap" if every else ""
    expect(got.numel() == len(stored), f"{call} gave {got.numel()} bytes; {size}")
    wrong = packed_otherwise(torch.cat([codes, codes.new_full((odd,), 7)]))
    if odd:  # what fills the last byte is free
        low = got.flatten()[-1] & 15
        got, stored = (torch.cat([x[:-1], x[-1:] >> 4]) for x in (got.flatten(), stored))
        wrong = {message: torch.cat([x[:-1], x[-1:] >> 4]) for message, x in wrong.items()}
        if low == codes[-1]:
            hint = "the last of an odd number goes into the high nibble too; the low one is filler"
            wrong[hint] = torch.cat([stored[:-1], got[-1:]])
        for fill in (0, 7):
            row = torch.cat([codes.new_full((1,), fill), codes])
            bytes_ = row[::2] << 4 | row[1::2]
            told = f"the filler comes last, not first{' ' if fill == 7 else ''}"
            wrong[told] = torch.cat([bytes_[:-1], bytes_[-1:] >> 4])
        told = "the filler spills into the code beside it: it is to be below 16"
        wrong[told] = torch.cat([stored[:-1], stored[-1:] | 1])
    expect_related(got.flatten(), stored, call, wrong)


def _expect_unpacked(got, stored):
    call = f"unpack_nibbles of {len(stored)} byte{'s' if len(stored) > 1 else ''}"
    high, low = stored >> 4, stored & 15
    wrong = {
        "the high nibble comes first": torch.stack([low, high], 1).flatten(),
        **{
            f"all {one} nibbles come first here, then all {other} ones; "
            "the two codes of a byte are neighbours": torch.cat(halves)
            for one, other, *halves in (("high", "low", high, low), ("low", "high", low, high))
        },
        "the low nibble is the byte & 15": torch.stack([high, stored], 1).flatten(),
        "the high nibble is the byte >> 4": torch.stack([stored & 240, low], 1).flatten(),
        "the low nibble is the byte & 15, all four bits": torch.stack(
            [high, stored & 16], 1
        ).flatten(),
        "a nibble is four bits, & 15: 7 keeps three": torch.stack([high, stored & 7], 1).flatten(),
        "a nibble is a sixteenth, not a tenth": torch.stack(
            [stored // 10, stored % 10], 1
        ).flatten(),
        "the low nibble is what 16 leaves over, not 15": torch.stack(
            [high, stored % 15], 1
        ).flatten(),
        "both are the high nibble": torch.stack([high, high], 1).flatten(),
        "both are the low nibble": torch.stack([low, low], 1).flatten(),
    }
    n = 2 * len(stored)
    counts = {n - 1: "leave the filler on, even where it looks like one"}
    counts |= {4 * n: "these are bits, and a code has four of them"}
    counts |= {n // 2: "each byte holds two codes", n // 2 + 1: "each byte holds two codes"}
    broken = getattr(got, "is_floating_point", bool)() and not got.equal(got.round())
    kind = str(getattr(got, "dtype", "")).removeprefix("torch.")
    told = f"{call} gave {kind}, with fractions: / keeps the low nibble; >> 4, or .to(torch.uint8)"
    expect(not broken, told)
    got = expect_integers(got, n, call, -math.inf, math.inf, kind="uint8", counts=counts)
    if not (got >> 4 == 0).all():
        worst = int(got[(got - 7.5).abs().argmax()])
        signed = ": >> keeps a sign; stay with uint8, which has none" if worst < 0 else ""
        wrong[f"a code is 0 to 15, and this holds {worst}{signed}"] = got
    expect_related(got, torch.stack([high, low], 1).flatten(), call, wrong)


def packed_otherwise(codes):
    """Wrong bytes of an even number of codes."""
    first, second, half = codes[::2], codes[1::2], len(codes) // 2
    byte = codes.to(torch.uint8)
    bound = (byte[::2] << (4 + byte[1::2])).long()  # as torch has it, in 8 bits
    halves = codes[:half] << 4 | codes[half:]
    return {
        "the first code goes into the high nibble, as in bitsandbytes": first | second << 4,
        "neighbours share a byte, not the two halves of the list": halves,
        "the order is turned round: the first two codes make the first byte": (
            (first << 4 | second).flip(0)
        ),
        "the codes are read from the end: the first two make the first byte": (
            (second << 4 | first).flip(0)
        ),
        "pairs begin with the first code, not with the second": (second << 4 | first.roll(-1)),
        "| joins the two, * does not": (first << 4) * second & 255,
        "+ binds before <<: brackets": bound,
        "+ binds before << (and * before both): brackets": first << (4 + second) & 255,
        **{
            f"the first one has to move up by 4 bits, << 4, not by {k}{also}": join & 255
            for k in (1, 2, 3, 5, 6, 7)
            for also, join in (("", first << k | second), (" ", (first << k) + second))
        },
        "a nibble has 16 values: the first one moves up by << 4, times 16": (
            (15 * first + second) & 255
        ),
        "two of ten decimal digits are no nibbles: 16 * first + second": 10 * first + second,
        "this multiplies the two; move the first one up by 4 bits": first * second,
        "the first one has to move up by 4 bits: << 4": first | second,
        "the first one has to move up by 4 bits: << 4, and | joins them": first ^ second,
        "the first one is gone: up by 4 bits is << 4": second,
        "this adds the two; move the first one up by 4 bits": first + second,
        "& keeps the bits that both have, and there are none; join them by |": 0 * first,
        "both nibbles are the first code": first << 4 | first,
        "both nibbles are the second code": second << 4 | second,
        "the two are added, and the sum moves up: << 4 is for the first one alone": (
            (first + second) << 4 & 255
        ),
    }
