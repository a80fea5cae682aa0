"""The check of `kl_divergence`. The reference is the formula in fp64."""

import math

from labkit.checks.compare import ask, expect_number, expect_numbers, likeliest, randn
from labkit.checks.lab06 import changes, small
from labkit.checks.lab06 import divergences as guesses
from labkit.checks.laws import laws
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, generator, observe, part

OVERFLOWS = "exp of them overflows or a probability is 0: use log_softmax"
INFINITE = "where q's probability is 0 in fp32 its log is -inf, and torch.distributions' KL is "
INFINITE += "inf: sum exp(log p) * (log p - log q) yourself, both logs from log_softmax"


def expect_kl(kl_divergence):
    """Every part of the check."""
    rng, right = generator(), False
    other = generator()  # so that the inputs below stay as they were
    pair = (randn(6, 13, rng=other) * 2, randn(6, 13, rng=other) * 2)
    followed = laws(*changes.divergences(kl_divergence, *pair))
    with part(), simplest(small.divergences(kl_divergence)), followed:
        _expect_divergence(kl_divergence, rng)
        right = True
    with part():
        _expect_finite(kl_divergence, rng, right)
    if not right:
        return
    p = randn(64, 101, rng=rng) * 3
    q = p + 2e-2 * randn(64, 101, rng=rng)
    call = "kl_divergence of two that hardly differ"
    got, wanted = observe(kl_divergence, p, q), guesses.kl(p, q).mean().item()
    lost = "small numbers get lost: is it rounded, held away from 0, left out, or a little added?"
    expect_number(got, wanted, call, {lost: got} if isinstance(got, float) else {}, tol=5e-3)
    same = observe(kl_divergence, p, p)
    zero = isinstance(same, float | int) and abs(same) < 1e-5
    expect(zero, f"kl_divergence(p, p) gave {same!r}, wanted 0")


def _expect_divergence(kl_divergence, rng):
    cases, sizes = [], []
    with likeliest() as case:
        with case():
            for shape in ((9, 13), (2, 5, 31), (3, 2, 4, 13)):
                p, q = (randn(*shape, rng=rng) * 2 for _ in range(2))
                call = f"kl_divergence of logits of shape {tuple(shape)}"
                got, wanted = ask(call, kl_divergence, p, q), guesses.kl(p, q).mean().item()
                hint = "a logarithm of a negative number? F.kl_div takes logs of q first, and logs"
                told = f"{call} gave nan: {hint} of p with log_target=True alone"
                expect(not (isinstance(got, float) and math.isnan(got)), told)
                known = guesses.divergences(p, q) | guesses.rough(got, wanted)
                cases.append((call, got, wanted, known))
                sizes.append({"tokens": p[..., 0].numel(), "vocab": shape[-1], "n": shape[0]})
        with case():
            expect_numbers(cases, tol=1e-3, sizes=sizes)


def _finite_alone(kl_divergence, p, q):
    """Whether each token by itself has a finite number."""
    try:
        alone = [observe(kl_divergence, p[i : i + 1], q[i : i + 1]) for i in range(len(p))]
    except CheckFailed:
        return False
    return all(isinstance(kl, float) and math.isfinite(kl) for kl in alone)


def _expect_finite(kl_divergence, rng, right):
    for scale in (300.0, 1e4):
        p, q = (randn(9, 13, rng=rng) * scale for _ in range(2))
        call = f"kl_divergence of logits near {scale:g}"
        got = ask(call, kl_divergence, p, q)
        if not (right or isinstance(got, float)):
            return
        finite = not isinstance(got, float) or math.isfinite(got)
        if not finite:
            told = f"{call} gave {got!r}, and of each token alone a number: is the largest logit of"
            hint = "all taken off? A token that has lower ones is lost: take its own, dim=-1"
            expect(not _finite_alone(kl_divergence, p, q), f"{told} {hint}, or log_softmax")
        hint = INFINITE if isinstance(got, float) and math.isinf(got) else OVERFLOWS
        expect(finite, f"{call} gave {got!r}; {hint}")
        if right:
            wanted = guesses.kl(p, q).mean().item()
            left = "terms are left out whose probability is 0 in fp32, as nan_to_num does: they "
            left += "count, so take both logarithms from log_softmax"
            capped = "something caps a logarithm, such as an epsilon or a clamp, or a "
            capped += "probability that is 0 is left out: use log_softmax"
            known = {left: guesses.finite_alone(p, q)}
            known |= {capped: got if isinstance(got, float) else 0.0}
            expect_number(got, wanted, call, known, tol=1e-3)
