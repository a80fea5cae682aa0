"""The check of `combine_linear` and `combine_cat`. The reference is the sum of the updates."""

import math

import torch

from labkit.checks.compare import ask, expect_related, likeliest, randn
from labkit.checks.compound import expect_terms
from labkit.checks.lab06 import changes, guesses, small
from labkit.checks.lab06.stubs import unless_open
from labkit.checks.laws import laws
from labkit.checks.simplest import simplest, unnamed
from labkit.contract import expect, generator, part
from labkit.labs.lab06 import probes

LINEAR = [([3, 3], [0.6, 0.7]), ([4, 4, 4], [0.9, 0.0, 0.4]), ([3, 3], [1.0, 0.5])]
NO_ROOT = "a weight may be negative: put the whole w on one factor"
HINTS = {
    "division by zero": "a weight may be 0: don't divide by it",
    "nonnegative": NO_ROOT,
    "domain": NO_ROOT,
    "values to unpack": "there may be any number of adapters: go through all of them",
}
SIZES = ("must match", "cannot be multiplied", "is invalid for input", "broadcast", "equal size")


def expect_combined(combine_linear, combine_cat):
    """Every part of the check; its verdict in words."""
    rng, open_ones = generator(), []
    mixes = [([3, 3], [0.6, 0.7]), ([2, 4, 3], [1.5, -0.5, 0.7]), ([2, 3], [0.0, 1.2])]
    mixes = [(adapters_of(ranks, rng), weights) for ranks, weights in mixes]
    smaller = small.sums(combine_cat, "combine_cat", small.CAT)
    followed = laws(*changes.sums(combine_cat, "combine_cat", *mixes[1]))
    with part(), unless_open(open_ones), simplest(smaller), followed, likeliest() as case:
        for adapters, weights in mixes:
            with case():
                _expect_cat(combine_cat, adapters, weights)
    smaller = small.sums(combine_linear, "combine_linear", small.LINEAR)
    three = adapters_of([3, 3, 3], generator()), [0.9, 0.5, 0.4]
    followed = laws(*changes.sums(combine_linear, "combine_linear", *three))
    with part(), unless_open(open_ones), simplest(smaller), followed, likeliest() as case:
        for ranks, weights in LINEAR:
            adapters = adapters_of(ranks, rng)
            with case():
                _expect_linear(combine_linear, adapters, weights)
    if open_ones:
        raise open_ones[0]
    goal, roots = guesses.summed(adapters, weights), [math.sqrt(w) for w in weights]
    off = (guesses.crossed(adapters, roots, roots) - goal).norm() / goal.norm()
    return f"cat is exact to 1e-5; linear misses the sum of 2 random updates by {off:.0%} of it"


def _pair(got, call):
    """A and B of what a combination returns, in fp64: their dtypes may differ."""
    pair = isinstance(got, list) and len(got) == 2
    expect(pair, f"{call} must return the pair (A, B)")
    apart = "that is a pair for each adapter; one is wanted for all of them, (A, B)"
    expect(not any(isinstance(factor, list) for factor in got), f"{call}: {apart}")
    for name, factor in zip("AB", got, strict=True):
        axes = factor.dim() if isinstance(factor, torch.Tensor) else 0
        made = f", and has {axes} axes: torch.stack makes a new one, torch.cat joins" * (axes > 2)
        expect(axes == 2, f"{call}: {name} must be a matrix{made}")
        hint = "is it the root of a negative weight? Put the whole w on one factor"
        expect(not factor.is_complex(), f"{call}: {name} holds complex numbers; {hint}")
    return [factor.double() for factor in got]


def adapters_of(ranks, rng):
    return [(randn(r, 40, rng=rng), randn(24, r, rng=rng)) for r in ranks]


def _expect_cat(combine_cat, adapters, weights):
    ranks = [len(A) for A, _ in adapters]
    call = f"combine_cat of ranks {ranks} with weights {weights}"
    hint = "stack the A's as rows and the B's as columns"
    several = f"ranks may differ: each adapter has its own r, here {', '.join(map(str, ranks))}"
    if 0.0 in weights:
        hint = several = "an adapter of weight 0 is stacked too"
    errors = dict.fromkeys(SIZES, several) if len(set(ranks)) > 1 else {}
    A, B = _combined(combine_cat, adapters, weights, sum(ranks), call, hint, errors)
    expect(
        torch.isfinite(A).all() and torch.isfinite(B).all(),
        f"{call} holds NaN",
        hint="a weight may be negative: no square root of it",
    )
    wanted, known = guesses.summed(adapters, weights), guesses.concatenated(adapters, weights)
    with unnamed(lambda: expect_terms(B @ A, _terms(adapters, weights, 0), f"B @ A of {call}")):
        expect_related(B @ A, wanted, f"B @ A of {call}", known, tol=1e-5)


def _terms(adapters, weights, cross):
    """`{name: (B_i A_j, how often)}` of adapters of one rank, or of each alone; `cross`: 0 or 1."""
    found = {}
    for i, (A, B) in enumerate(adapters):
        found[f"B{i + 1} A{i + 1}"] = B @ A, weights[i]
        for j, (other, _) in enumerate(adapters):
            if i != j and len(other) == len(A):
                often = cross * math.sqrt(abs(weights[i] * weights[j]))
                found[f"B{i + 1} A{j + 1}"] = B @ other, often
    return found


def _expect_linear(combine_linear, adapters, weights):
    call = f"combine_linear with weights {weights}"
    hint = "linear adds A to A and B to B, so the rank stays"
    A, B = _combined(combine_linear, adapters, weights, len(adapters[0][0]), call, hint)
    finite = torch.isfinite(A).all() and torch.isfinite(B).all()
    expect(finite, f"{call} holds NaN or infinity; a weight may be 0: don't divide by it")
    roots = [math.sqrt(w) for w in weights]
    wanted = guesses.crossed(adapters, roots, roots)
    known, what = guesses.added(adapters, weights), f"B @ A of {call}"
    with unnamed(lambda: expect_terms(B @ A, _terms(adapters, weights, 1), what)):
        expect_related(B @ A, wanted, what, known)


def _combined(combine, adapters, weights, r, call, hint, errors=()):
    """The pair of rank r that `combine` returns; `errors` are hints to what it raises."""
    got = ask(call, probes.combined, combine, adapters, weights, hint=HINTS | dict(errors))
    A, B = _pair(got, call)
    told = f"{call} gave A {tuple(A.shape)} and B {tuple(B.shape)}"
    right = A.shape == (r, 40) and B.shape == (24, r)
    if A.shape == (24, r) and B.shape == (r, 40):
        hint = "the pair is turned round: return (A, B)"
    elif len(B) == 40:
        hint = "B is made of A's: a pair is (A, B)"
    elif not right and 0.0 not in weights and guesses.of_some(A, B, adapters, weights):
        hint = "not all adapters are in it: does the loop stop early, or begin late?"
    expect(right, f"{told}, wanted {(r, 40)} and {(24, r)}: {hint}")
    return A, B
