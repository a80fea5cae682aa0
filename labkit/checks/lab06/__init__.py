"""Checks of lab 6. The reference is PEFT, or the sum of the updates written out.

Long, for seven exercises with a page each; what needs more than that is in files of its own.
"""

import contextlib
import math

import torch
from peft import LoraConfig, get_peft_model  # here, or the first check waits for it
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401 (for the probes)

from labkit.checks.compare import (
    ask,
    expect_close,
    expect_number,
    expect_numbers,
    expect_shape,
    likeliest,
    randn,
)
from labkit.checks.lab02.guesses import merged
from labkit.checks.lab06 import dequantized, guesses, routed, small
from labkit.checks.lab06.dequantized import BLOCK
from labkit.checks.quiz import judge
from labkit.checks.simplest import simplest
from labkit.contract import (
    CheckFailed,
    NotWritten,
    exercise,
    expect,
    generator,
    observe,
    part,
)
from labkit.labs.lab06 import probes


def _factors(d_out, d_in, r, rng):
    return randn(r, d_in, rng=rng), randn(d_out, r, rng=rng)


def _peft_merged(W, A, B, alpha):
    """The weight after PEFT's `merge_and_unload`, in the dtype of W."""
    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    config = LoraConfig(r=len(A), lora_alpha=alpha, target_modules=["0"])
    with torch.no_grad():
        linear.weight.copy_(W)
        model = get_peft_model(torch.nn.Sequential(linear), config)
        layer = model.base_model.model[0]
        layer.lora_A["default"].weight.copy_(A)
        layer.lora_B["default"].weight.copy_(B)
        return model.merge_and_unload()[0].weight.detach()


ONCE = "add the two in fp32, and cast the sum once"
ORDER = {"cannot be multiplied": "the update is B @ A, (d_out, r) times (r, d_in)"}


@exercise("6.1", points=2)
def merges(merged_weight):
    """equals PEFT's merge_and_unload; in bf16 it is rounded once, at the end; W stays"""
    rng, r, alpha = generator(), 4, 10
    A, B = _factors(64, 96, r, rng)
    for dtype in (torch.float32, torch.bfloat16):
        W = (randn(64, 96, rng=rng) * 4).to(dtype)
        call = f"merged_weight with W in {_kind(dtype)}, A and B in float32"
        got = ask("", probes.merged, merged_weight, W, A, B, alpha, hint=ORDER)
        expect_shape(got, W.shape, call)
        with part(), simplest(small.merges(merged_weight)):
            _expect_merged(got, W, A, B, alpha, call)
        with part():
            hint = "give back W's dtype, .to(W.dtype)"
            expect(got.dtype == dtype, f"{call} is in {_kind(got.dtype)}: {hint}")


def _kind(dtype):
    return str(dtype).removeprefix("torch.")


def _expect_merged(got, W, A, B, alpha, call):
    """The numbers of a merge; those in W's dtype are rounded once."""
    r, wanted = len(A), _peft_merged(W, A, B, alpha)
    known = merged(W.float(), alpha / r * B @ A, alpha, r)
    for which, at in (("last", -1), ("first", 0)):
        one = f"only the {which} of the r products b a is added: add up all of them"
        known[one] = W.float() + alpha / r * torch.outer(B[:, at], A[at])
    exact = W.dtype == got.dtype == torch.float32
    expect_close(got, wanted, call, known, tol=1e-4 if exact else 1e-2)
    if W.dtype == got.dtype:
        differs = (got != wanted).double().mean().item()
        known = guesses.rounded(W, A, B, alpha)
        hint = next((told for told, guess in known.items() if torch.equal(got, guess)), ONCE)
        told = f"{call}: {differs:.0%} of the numbers are rounded otherwise than fp32 rounded once"
        expect(differs < 0.01 or W.dtype == torch.float32, f"{told}: {hint}")


def _quantized(shape, rng):
    """Codes, absmax and codebook of a random matrix, for a random codebook of 16 values."""
    n = math.prod(shape)
    inner = torch.rand(14, generator=rng) * 1.8 - 0.9
    codebook = torch.cat([torch.tensor([-1.0, 1.0]), inner]).sort().values
    blocks = randn(math.ceil(n / BLOCK), BLOCK, rng=rng) * 0.1
    wider = torch.arange(len(blocks)) % 2  # else the largest weight is absmax itself
    absmax = blocks.abs().amax(1) * (1 + wider * torch.rand(len(blocks), generator=rng))
    return dequantized.nearest(blocks, absmax, codebook).flatten()[:n], absmax, codebook


@exercise("6.2", points=3)
def merges_quantized(merge_quantized):
    """dequantises block by block, adds in fp32, and the update survives"""
    rng, r, alpha = generator(), 4, 10
    with likeliest() as case:
        for shape in ((24, 40), (7, 50)):
            with case():
                W4, absmax, codebook = _quantized(shape, rng)
                A, B = _factors(*shape, r, rng)
                B = B * 2e-4  # an update far below the grid's step, as real ones are
                call = f"merge_quantized for shape {shape}"
                args = (W4, absmax, codebook, A, B, alpha, shape)
                got = ask(call, probes.merged_quantized, merge_quantized, *args, hint=ORDER)
                _expect_dequantized(got, *args, call)


def _expect_dequantized(got, W4, absmax, codebook, A, B, alpha, shape, call):
    update, r = alpha / len(A) * B @ A, len(A)
    known = dequantized.quantized(W4, absmax, codebook, update, shape, r, alpha)
    base = (codebook[W4.long()] * dequantized.spread(absmax, len(W4))).reshape(shape)
    try:
        expect_close(got, base + update, call, known, tol=2e-6)
    except CheckFailed as failure:
        told = failure.bare and dequantized.apart(
            got, W4, absmax, codebook, update, shape, alpha / r
        )
        raise CheckFailed(f"{call}: {told}") if told else failure from None
    single = got.dtype == torch.float32
    expect(single, f"{call} is in {_kind(got.dtype)}: return it in float32")


def _pair(got, call):
    """A and B of what a combination returns, in fp64: their dtypes may differ."""
    pair = isinstance(got, list) and len(got) == 2
    expect(pair, f"{call} must return the pair (A, B)")
    for name, factor in zip("AB", got, strict=True):
        matrix = isinstance(factor, torch.Tensor) and factor.dim() == 2
        expect(matrix, f"{call}: {name} must be a matrix")
        hint = "is it the root of a negative weight? Put the whole w on one factor"
        expect(not factor.is_complex(), f"{call}: {name} holds complex numbers; {hint}")
    return [factor.double() for factor in got]


def _adapters(ranks, rng):
    return [_factors(24, 40, r, rng) for r in ranks]


@exercise("6.3", points=3)
def combines(combine_linear, combine_cat):
    """cat is the weighted sum of the updates to 1e-5; linear is that sum plus cross terms"""
    rng, open_ones = generator(), []
    mixes = [([3, 3], [0.6, 0.4]), ([2, 4, 3], [1.5, -0.5, 0.7]), ([2, 3], [0.0, 1.2])]
    mixes = [(_adapters(ranks, rng), weights) for ranks, weights in mixes]
    smaller = small.sums(combine_cat, "combine_cat", small.CAT)
    with part(), unless_open(open_ones), simplest(smaller), likeliest() as case:
        for adapters, weights in mixes:
            with case():
                _expect_cat(combine_cat, adapters, weights)
    smaller = small.sums(combine_linear, "combine_linear", small.LINEAR)
    with part(), unless_open(open_ones), simplest(smaller), likeliest() as case:
        for ranks, weights in (([3, 3], [0.6, 0.4]), ([4, 4, 4], [0.9, 0.0, 0.4])):
            adapters = _adapters(ranks, rng)
            with case():
                _expect_linear(combine_linear, adapters, weights)
    if open_ones:
        raise open_ones[0]
    goal, roots = guesses.summed(adapters, weights), [math.sqrt(w) for w in weights]
    off = (guesses.crossed(adapters, roots, roots) - goal).norm() / goal.norm()
    return f"cat is exact to 1e-5; linear misses the sum of 2 random updates by {off:.0%} of it"


@contextlib.contextmanager
def unless_open(stubs):
    """A part of a check that goes on with others where this one's function is still a stub."""
    try:
        yield
    except NotWritten as stub:
        stubs.append(stub)


def _expect_cat(combine_cat, adapters, weights):
    ranks = [len(A) for A, _ in adapters]
    call = f"combine_cat of ranks {ranks} with weights {weights}"
    hint = "stack the A's as rows and the B's as columns"
    hint = "an adapter of weight 0 is stacked too" if 0.0 in weights else hint
    A, B = _combined(combine_cat, adapters, weights, sum(ranks), call, hint)
    expect(
        torch.isfinite(A).all() and torch.isfinite(B).all(),
        f"{call} holds NaN",
        hint="a weight may be negative: no square root of it",
    )
    wanted, known = guesses.summed(adapters, weights), guesses.concatenated(adapters, weights)
    expect_close(B @ A, wanted, f"B @ A of {call}", known, tol=1e-5)


def _expect_linear(combine_linear, adapters, weights):
    call = f"combine_linear with weights {weights}"
    hint = "linear adds A to A and B to B, so the rank stays"
    A, B = _combined(combine_linear, adapters, weights, len(adapters[0][0]), call, hint)
    finite = torch.isfinite(A).all() and torch.isfinite(B).all()
    expect(finite, f"{call} holds NaN or infinity; a weight may be 0: don't divide by it")
    roots = [math.sqrt(w) for w in weights]
    wanted = guesses.crossed(adapters, roots, roots)
    expect_close(B @ A, wanted, f"B @ A of {call}", guesses.added(adapters, weights))


def _combined(combine, adapters, weights, r, call, hint):
    """The pair of rank r that `combine` returns."""
    try:
        got = ask(call, probes.combined, combine, adapters, weights)
    except CheckFailed as failure:
        if "division by zero" in str(failure):
            raise CheckFailed(f"{failure}; a weight may be 0: don't divide by it") from None
        if "nonnegative" in str(failure) or "domain" in str(failure):
            root = "a weight may be negative: put the whole w on one factor"
            raise CheckFailed(f"{failure}; {root}") from None
        raise
    A, B = _pair(got, call)
    told = f"{call} gave A {tuple(A.shape)} and B {tuple(B.shape)}"
    right = A.shape == (r, 40) and B.shape == (24, r)
    if A.shape == (24, r) and B.shape == (r, 40):
        hint = "the pair is turned round: return (A, B)"
    elif not right and 0.0 not in weights and guesses.of_some(A, B, adapters, weights):
        hint = "not all adapters are in it: does the loop stop early, or begin late?"
    expect(right, f"{told}, wanted {(r, 40)} and {(24, r)}: {hint}")
    return A, B


SHAPES = {"layers.0.A": (2, 5), "layers.0.B": (4, 2), "norm": (3,)}


def _states(n, rng):
    return [{name: randn(*shape, rng=rng) for name, shape in SHAPES.items()} for _ in range(n)]


@exercise("6.4", points=2)
def mixes(soup):
    """the uniform and the weighted mean, key by key; a key that not all have is an error"""
    rng, works = generator(), 0
    with part(), simplest(small.soups(soup)), likeliest() as case:
        for n, weights in ((2, None), (3, None), (2, [0.75, 0.25]), (3, [0.5, 0.2, 0.3])):
            states = _states(n, rng)
            shuffled = [dict(sorted(s.items(), reverse=i % 2 == 1)) for i, s in enumerate(states)]
            call = f"soup of {n} states" + (f" with weights {weights}" if weights else "")
            with case():
                got = ask(call, probes.souped, soup, shuffled, weights)
                works += 1
                _expect_soup(got, states, weights, call)
    names = list(SHAPES)
    others = [names[i] for i in torch.randperm(2, generator=rng).tolist()]
    with part(), likeliest() as case:
        for which, name, weights in (
            *((1, "norm", None), (0, others[0], None), (2, others[1], None)),
            *((0, others[1], [0.5, 0.2, 0.3]), (1, others[0], [0.5, 0.2, 0.3])),
        ):
            states = _states(3, rng)
            states[which].pop(name)
            if works < 4:  # it raised anyway
                break
            with case():
                _expect_refusal(
                    observe(probes.soup_error, soup, states, weights), which, name, weights
                )


def _expect_refusal(told, which, name, weights):
    given = " and weights are given" if weights else ""
    quiet = f"soup raises nothing when state {which} lacks the key {name}{given}"
    expect(told is not None, f"{quiet}: look at the keys of all states, the first among them")
    named = f"when a state lacks the key {name}, the error is {told!r}: the key's name is not in it"
    expect(name in (told or ""), named)


def _expect_soup(got, states, weights, call):
    expect(isinstance(got, dict), f"{call} must return a dict of name to tensor")
    keys = set(states[0])
    expect(set(got) == keys, f"{call} has the keys {sorted(got)}, wanted {sorted(keys)}")
    parts = weights or [1 / len(states)] * len(states)
    for name in states[0]:
        wanted = sum(f * s[name] for f, s in zip(parts, states, strict=True))
        expect_close(got[name], wanted, f"{call}: {name}", guesses.souped(states, name, parts))
        kind = _kind(got[name].dtype)
        told = f"{call}: {name} is in {kind}, wanted float32, as in the states"
        expect(got[name].dtype == torch.float32, told)


@exercise("6.5", points=4)
def serves(swap_cost, route):
    """a swap makes the adapter active and costs its bytes; a mixed batch answers as one by one"""
    open_ones, (seed, prompts) = [], routed.asked(generator())
    with part(), unless_open(open_ones):
        routed.expect_swaps(swap_cost, seed)
    with part(), unless_open(open_ones):
        routed.expect_routed(route, seed, prompts)
    if open_ones:
        raise open_ones[0]


@exercise("6.6", points=2)
def divergence(kl_divergence):
    """mean per token of KL(p||q) in nats, for any leading shape, and for logits of any size"""
    rng, right = generator(), False
    with part(), simplest(small.divergences(kl_divergence)):
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
    cases = []
    with likeliest() as case:
        with case():
            for shape in ((9, 13), (2, 5, 13), (3, 2, 4, 13)):
                p, q = (randn(*shape, rng=rng) * 2 for _ in range(2))
                call = f"kl_divergence of logits of shape {tuple(shape)}"
                got, wanted = ask(call, kl_divergence, p, q), guesses.kl(p, q).mean().item()
                hint = "a logarithm of a negative number? F.kl_div takes logs of q first, and logs"
                told = f"{call} gave nan: {hint} of p with log_target=True alone"
                expect(not (isinstance(got, float) and math.isnan(got)), told)
                known = guesses.divergences(p, q) | guesses.rough(got, wanted)
                cases.append((call, got, wanted, known))
        with case():
            expect_numbers(cases, tol=1e-3)


def _expect_finite(kl_divergence, rng, right):
    for scale in (300.0, 1e4):
        p, q = (randn(9, 13, rng=rng) * scale for _ in range(2))
        call = f"kl_divergence of logits near {scale:g}"
        got = ask(call, kl_divergence, p, q)
        if not (right or isinstance(got, float)):
            return
        hint = "exp of them overflows or a probability is 0: use log_softmax"
        finite = not isinstance(got, float) or math.isfinite(got)
        expect(finite, f"{call} gave {got!r}; {hint}")
        if right:
            wanted = guesses.kl(p, q).mean().item()
            known = {hint: got if isinstance(got, float) else 0.0}
            expect_number(got, wanted, call, known, tol=1e-3)


@exercise("6.7", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "06")
