"""Checks of lab 1. The reference is the projection on leading eigenvectors of W^T W or W W^T."""

import torch

from labkit.checks.compare import (
    ask,
    every,
    expect_close,
    expect_kind,
    expect_number,
    expect_numbers,
    randn,
)
from labkit.checks.lab01 import cuts, even, guesses, pairs
from labkit.checks.lab01.cuts import PLAIN, best, how_far
from labkit.checks.lab01.intruders import asked_intruders, intruder_cases
from labkit.checks.lab01.narrow import expect_narrow
from labkit.checks.lab01.subspaces import expect_point, expect_projected, expect_step
from labkit.checks.lab01.within import asked_within, expect_within, within_cases
from labkit.checks.quiz import judge
from labkit.contract import CheckFailed, exercise, expect, generator, observe, part
from labkit.labs.lab01 import probes


def _expect_tensor(call, f, *data):
    array = observe(probes.kind, f, *data) == "ndarray"
    expect(not array, f"{call} gave a NumPy array, wanted a tensor: torch.from_numpy() at the end")


@exercise("1.1", points=2)
def optimal(best_rank_r):
    """as near to W as rank r can be: square, tall, wide, rank-deficient, r beyond the rank"""
    rng = generator()
    cases = []
    shapes = [(6, 6, 4), (9, 8, 3), (8, 9, 3), (6, 6, 1)]  # the last r cut are not all but r - 1
    for d_out, d_in, r in [*shapes, (7, 4, 9), (4, 7, 9)]:
        cases.append((f"W of shape {(d_out, d_in)}", randn(d_out, d_in, rng=rng), r))
    cuts.expect_no_limit(best_rank_r, randn(8, 6, rng=rng))
    thin = randn(8, 2, rng=rng) @ randn(2, 6, rng=rng)
    cases += [("W of shape (8, 6) and rank 2", thin, r) for r in (2, 3, 6)]
    if len(every(lambda *case: _expect_cut(best_rank_r, *case), cases)) == len(cases):
        _expect_tensor("best_rank_r(W, 2)", best_rank_r, thin, 2)
        cuts.expect_tied(best_rank_r)
        for shape in ((5, 1), (1, 5)):
            W = randn(*shape, rng=rng)
            expect_narrow(f"best_rank_r(W, 1) for W of shape {shape}", W, best_rank_r, W, 1)


def _expect_cut(best_rank_r, name, W, r):
    call = f"best_rank_r(W, {r}) for {name}"
    beyond = r > min(W.shape)
    hint = cuts.advice(W.shape, cuts.BEYOND if beyond else cuts.SHAPES)
    got = ask(call, best_rank_r, W, r, hint=hint)
    if isinstance(got, list) and isinstance(got[0], torch.Tensor):
        raise CheckFailed(f"{call} gave {len(got)} things, wanted one matrix: multiply them out")
    if isinstance(got, torch.Tensor) and got.shape == W.shape[1:]:
        raise CheckFailed(f"{call} gave a vector, wanted a matrix: S is a vector, use U * S")
    if isinstance(got, torch.Tensor) and got.is_complex():
        raise CheckFailed(f"{call} holds complex numbers: those are eigenvalues; use linalg.svd")
    if isinstance(got, torch.Tensor) and got.shape != W.shape and r in got.shape:
        shape = f"has shape {tuple(got.shape)}, wanted {tuple(W.shape)}"
        raise CheckFailed(f"{call} {shape}: rank r is not fewer columns; multiply the factors out")
    expect(getattr(got, "itemsize", 4) > 2, f"{call} is in 16 bits, which round: leave W's dtype")
    known = {} if beyond or name.endswith("2") else cuts.cuts(W, r)
    try:
        expect_close(got, best(W, r), call, known, tol=1e-4)
    except CheckFailed as failure:
        if not failure.bare or PLAIN.search(str(failure)):
            raise
        raise CheckFailed(f"{call}: {how_far(got, W, r)}", bare=True) from None


@exercise("1.2", points=2)
def errors(relative_error):
    """equals |W - W_r| / |W|, from the singular values alone"""
    rng = generator()
    shapes = [(7, 5, 2), (5, 8, 3), (6, 6, 1)]
    cases = [(randn(*shape, rng=rng), r) for *shape, r in shapes]
    cases += [(scale * cases[0][0], r) for scale, r in ((1e-3, 2), (100, 3))]
    asked = every(lambda W, r: _asked_error(relative_error, W, r), cases)
    if len(asked) < len(cases):  # it raises, or gives no number: the rest would say no more
        return
    with part():
        share = "a part of |W| over |W| is between 0 and 1"
        with pairs.hinted(asked, 0, 1, share, (0, 3)):
            expect_numbers(asked)
        _expect_no_error(relative_error, cases[0][0], rng)
    with part():
        _expect_not_built(relative_error, randn(7, 5, rng=rng))


def _asked_error(relative_error, W, r):
    call = f"relative_error(W, {r}) for W of shape {tuple(W.shape)}"
    wanted = ((W.double() - best(W, r)).norm() / W.double().norm()).item()
    got = ask(call, relative_error, W, r, hint="|W|² is the sum of s²")
    if got != got:
        hint = "a root of something below zero? 1 - head can be; sum the tail"
        raise CheckFailed(f"{call} is NaN; {hint}")
    expect_kind(got, call)
    size = W.double().norm().item()
    made = f"here |W - W_r| is {wanted * size:.4g} and |W| {size:.4g}"
    return call, got, wanted, guesses.errors(W, r), made


def _expect_not_built(relative_error, W):
    made, left = observe(probes.matrices_made, relative_error, W, 2), W.double() - best(W, 2)
    forms = (best(W, 2), -best(W, 2), left, -left, left.square(), left.abs())
    builds = any(torch.allclose(m, form, atol=1e-3) for m in made for form in forms)
    hint = "the singular values that are cut off say it all: torch.linalg.svdvals(W)"
    expect(not builds, f"W_r or W - W_r is multiplied out; {hint}")


def _expect_no_error(relative_error, W, rng):
    """Zero, and never NaN, where nothing is left out; so many that rounding goes below zero."""
    cases = [(W, 9)]
    for n in range(300):
        r = 2 + n % 8
        cases.append((randn(40, r, rng=rng) @ randn(r, 20 + n % 10, rng=rng), r + 3 * (n % 2)))
    below = "1 - head / total can fall below zero by rounding"
    hint = f"no s[r] may be left, and {below}: sum the tail s[r:], or clamp"
    call = "relative_error(W, r) for an r at or beyond the rank of W"
    for got in ask(call, probes.each, relative_error, cases, hint=hint):
        expect(got == got, f"{call} is NaN; {hint}")
        if type(got) not in (int, float) or abs(got) > 2e-3:
            told = "nothing is left out there, s[r:] is empty (and s[-0:] is all of s)"
            expect_number(got, 0.0, call, {told: got})


@exercise("1.3", points=1)
def parameters(lora_params, break_even_rank):
    """131,072 for 4096 x 4096 at r=16, linear in r; the largest rank that still saves"""
    m, rank = torch.randint(20, 90, (2,), generator=generator()).tolist()
    shapes = [(m, 3 * m + 1), (3 * m + 1, m)]  # no common factor, so no rank breaks exactly even
    sizes = [(*shapes[0], rank), (*shapes[1], 3), (4096, 4096, 16), (3, 5, 7)]
    asked = every(lambda *size: _asked_count(lora_params, *size), sizes)
    with part(), pairs.as_sum(lora_params):
        expect_numbers(asked)
    even.expect_break_even(break_even_rank, shapes)


def _asked_count(lora_params, d_out, d_in, r):
    call = f"lora_params({d_out}, {d_in}, {r})"
    got = ask(call, lora_params, d_out, d_in, r)
    made = f"A holds {r} x {d_in} numbers, B {d_out} x {r}"
    return call, got, r * (d_out + d_in), guesses.parameters(d_out, d_in, r), made


@exercise("1.4", points=3)
def ranks(energy_rank, stable_rank):
    """squared singular values, the boundary included; the scale of W does not matter"""
    rng, cases = generator(), []
    for scale, times in ((1, ""), (100, " times 100")):
        s = (1 + 4 * torch.rand(40, generator=rng)).sort(descending=True).values
        name = f"s of 40 random values{times}"
        cases += [(scale * s, fraction, name) for fraction in (0.9, 0.6, 0.99)]
    flat = torch.tensor([8.0, 8.0, 8.0, 8.0, 0.0])
    cases += [(flat, f, "s = [8, 8, 8, 8, 0]") for f in (0.75, 0.25, 0.51, 1.0)]
    asked = every(lambda *case: _asked_energy(energy_rank, *case), cases)
    with part():
        expect_numbers(asked)
        if len(asked) == len(cases):
            _expect_no_eps(
                "energy_rank(1e-4 * s, 0.99)", energy_rank, s * 1e-4, 0.99, wanted=asked[5][2]
            )
            expect_narrow("energy_rank(s, 0.5) for s = [8]", 1, energy_rank, flat[:1], 0.5)
    W = randn(9, 5, rng=rng)
    named = {"W of shape (9, 5)": W, "7 * W.T": 7 * W.T, "identity": torch.eye(6)}
    asked = every(lambda name, M: _asked_stable(stable_rank, name, M), named.items())
    with part():
        if len(asked) == len(named):
            limits = "it is between 1 and the rank: |W|_2² is one of the squares in |W|_F²"
            with pairs.hinted(asked, 1, 6, limits, (0, 1)):
                expect_numbers(asked)
            _expect_no_eps("stable_rank(1e-4 * W)", stable_rank, 1e-4 * W, wanted=asked[0][2])


def _asked_energy(energy_rank, s, fraction, name):
    call = f"energy_rank(s, {fraction}) for {name}"
    got = ask(call, energy_rank, s, fraction, hint="the whole energy is the sum of s²")
    wanted, known = guesses.energy(s, fraction)
    less, held = (s[:n].square().sum() / s.square().sum() for n in (wanted - 1, wanted))
    made = f"the first {wanted} hold {held:.1%} of the energy, the first {wanted - 1} {less:.1%}"
    return call, got, wanted, known, made


def _asked_stable(stable_rank, name, M):
    call = f"stable_rank({name})"
    got = ask(call, stable_rank, M, hint="|W|_F² / |W|_2²")
    expect_kind(got, call)
    made = f"|W|_F² is {M.norm() ** 2:.4g} and |W|_2² {torch.linalg.norm(M, 2) ** 2:.4g}"
    return call, got, *guesses.stable(M), made


def _expect_no_eps(call, f, *data, wanted):
    """The number is as before for a small scale, where something that is added would show."""
    got = observe(f, *data)
    hint = "the scale must not matter: is something small (eps) added to a sum?"
    expect(abs(got - wanted) <= 1e-3 * wanted, f"{call} is another number than unscaled: {hint}")


@exercise("1.5", points=3, after="1.1")
def truncates(truncate_update, energy_within):
    """W0 plus the best rank-r part of W1 - W0; the energy of dW inside the reference's top k"""
    rng = generator()
    _expect_updates(truncate_update, rng)
    cases = within_cases(rng)
    asked = every(lambda *case: asked_within(energy_within, *case), cases)
    if len(asked) < len(cases):
        return
    with part():
        expect_within(asked)
        _, dW, reference, k = cases[0]
        call = f"energy_within(1e-4 * dW, reference, {k})"
        _expect_no_eps(call, energy_within, 1e-4 * dW, reference, k, wanted=asked[0][2])


def _expect_updates(truncate_update, rng):
    cases = []
    for d_out, d_in, r in [(6, 6, 4), (8, 5, 1), (6, 8, 4), (8, 5, 9)]:
        W0 = randn(d_out, d_in, rng=rng)
        cases.append((W0, W0 + 0.5 * randn(d_out, d_in, rng=rng), r))
    if len(every(lambda *case: _expect_truncated(truncate_update, *case), cases)) == len(cases):
        with part():
            _expect_tensor("truncate_update(W0, W1, 2)", truncate_update, *cases[0])
        W0, W1 = randn(2, 5, 1, rng=rng)
        call = "truncate_update(W0, W1, 1) for shape (5, 1)"
        expect_narrow(call, W1, truncate_update, W0, W1, 1)


def _expect_truncated(truncate_update, W0, W1, r):
    call = f"truncate_update(W0, W1, {r}) for shape {tuple(W0.shape)}"
    beyond = r > min(W0.shape)
    hint = cuts.advice(W0.shape, "is best_rank_r right?")
    got = ask(call, truncate_update, W0, W1, r, hint=hint)
    if beyond:
        expect_close(got, W1, f"{call}, beyond the rank (W1 is wanted)", tol=1e-3)
        return
    wanted, known = cuts.updates(W0, W1, r)
    try:
        expect_step(got, W0, wanted, call, known, cuts.cuts(W1 - W0, r))
    except CheckFailed as failure:
        if not failure.bare or PLAIN.search(str(failure)):
            raise
        told = how_far(got - W0, W1 - W0, r, "W1 - W0")
        raise CheckFailed(f"{call}, what is added to W0: {told}", bare=True) from None


@exercise("1.6", points=2)
def subspace(subspace_point, project_gradient):
    """theta0 at z = 0, theta0 + P z elsewhere, and autograd's gradient with respect to z"""
    rng, cases = generator(), []
    for D, d in [(6, 6), (11, 3)]:  # no root of D is d
        cases.append((randn(D, rng=rng), randn(D, d, rng=rng), randn(d, rng=rng)))
    theta0, P, z = (randn(*shape, rng=rng) for shape in ((5,), (5, 1), (1,)))
    if len(every(lambda *case: expect_point(subspace_point, *case), cases)) == len(cases):
        with part():
            _expect_tensor("subspace_point(theta0, P, z)", subspace_point, *cases[0])
        call = "subspace_point with P of shape (5, 1)"
        expect_narrow(call, theta0 + P @ z, subspace_point, theta0, P, z)
    if len(every(lambda *case: expect_projected(project_gradient, *case), cases)) == len(cases):
        with part():
            _expect_tensor("project_gradient(P, g)", project_gradient, *cases[0][1::-1])
        call = "project_gradient with P of shape (5, 1)"
        expect_narrow(call, P.T @ theta0, project_gradient, P, theta0)


@exercise("1.7", points=3)
def counts(intruders):
    """how many of W1's top k left directions W0 lacks; none for W1 = W0, all k for a new W1"""
    cases = intruder_cases(generator())
    asked = every(lambda *case: asked_intruders(intruders, *case), cases)
    if len(asked) == len(cases):
        expect_numbers(asked)
        rows, zeros = torch.arange(4.0, 0, -1).diag(), torch.zeros(4, 4)
        apart = torch.cat([rows, zeros]), torch.cat([zeros, rows])  # each cosine is exactly 0
        name = "two W without a row in common"
        expect_numbers([asked_intruders(intruders, name, *apart, 3, 0.0)])


@exercise("1.8", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "01")
