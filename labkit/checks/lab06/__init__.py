"""Checks of lab 6. The reference is PEFT, or the sum of the updates written out.

What needs more than a page is in files of its own.
"""

import math

import torch
from peft import LoraConfig, get_peft_model  # here, or the first check waits for it

from labkit.checks.compare import (
    ask,
    expect_related,
    expect_shape,
    likeliest,
    randn,
)
from labkit.checks.compound import expect_terms
from labkit.checks.lab06 import changes, dequantized, guesses, small
from labkit.checks.lab06.arrives import expect_arrives
from labkit.checks.lab06.combine import expect_combined
from labkit.checks.lab06.dequantized import BLOCK
from labkit.checks.lab06.kl_divergence import expect_kl
from labkit.checks.laws import laws
from labkit.checks.quiz import judge
from labkit.checks.relations import close
from labkit.checks.simplest import simplest, unnamed
from labkit.contract import (
    CheckFailed,
    exercise,
    expect,
    generator,
    observe,
    part,
    sound,
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
ORDER = {
    "cannot be multiplied": "the update is B @ A, (d_out, r) times (r, d_in)",
    "size of tensor a": "W is (d_out, d_in), and so is its update, B @ A",
}


MASK = "torch takes a uint8 index for a mask: write codebook[W4.long()]"
RUNS = "weight i of the flat W4 belongs to absmax[i // 64]: runs go on across rows, and none "
RUNS += "starts anew with a row"
SHORTER = "the last block may be shorter than 64: use repeat_interleave, or pad"


@exercise("6.1", points=2)
def merges(merged_weight):
    """equals PEFT's merge_and_unload; in bf16 it is rounded once, at the end; W stays"""
    rng, r = generator(), 5  # 23 / r, cut, rounded or rooted, is each another number
    A, B = _factors(64, 96, r, rng)
    for dtype, alpha in ((torch.float32, 23), (torch.bfloat16, 23), (torch.float32, 3)):
        W = (randn(64, 96, rng=rng) * 4).to(dtype)
        call = f"merged_weight with W in {_kind(dtype)}, A and B in float32"
        call += f", alpha={alpha} and r={r}" * (alpha < r)
        got = ask("", probes.merged, merged_weight, W, A, B, alpha, hint=ORDER)
        expect_shape(got, W.shape, call)
        followed = laws(*changes.merges(merged_weight, A, B, alpha))
        with part(), simplest(small.merges(merged_weight)), followed:
            wanted = _peft_merged(W, A, B, alpha)
            if sound() or close(got, wanted, 1e-2):  # in 16 bits many wrong numbers look alike
                _expect_merged(got, W, A, B, alpha, call)
        with part():
            hint = "give back W's dtype, .to(W.dtype)"
            expect(got.dtype == dtype, f"{call} is in {_kind(got.dtype)}: {hint}")


def _kind(dtype):
    return str(dtype).removeprefix("torch.")


def _expect_merged(got, W, A, B, alpha, call):
    """The numbers of a merge; those in W's dtype are rounded once."""
    r, wanted = len(A), _peft_merged(W, A, B, alpha)
    known = guesses.merged(W.float(), alpha / r * B @ A, alpha, r)
    known["that is half of the sum: W stays whole, and the update is added"] = (
        W.float() + alpha / r * B @ A
    ) / 2
    for which, at in (("last", -1), ("first", 0)):
        one = f"only the {which} of the r products b a is added: add up all of them"
        known[one] = W.float() + alpha / r * torch.outer(B[:, at], A[at])
        left = f"the {which} of the r products b a is left out: add up all of them"
        known[left] = W.float() + alpha / r * (B @ A - torch.outer(B[:, at], A[at]))
    other = "W is scaled, and the update is not: alpha / r belongs to the update alone"
    known[other] = alpha / r * W.float() + B @ A
    known["alpha is divided by 4, whatever r is"] = W.float() + alpha / 4 * B @ A
    root = "the factor is sqrt(alpha / r): a root for each factor, or all of it for one"
    known[root] = W.float() + math.sqrt(alpha / r) * B @ A
    exact = W.dtype == got.dtype == torch.float32
    terms = {"W": (W.float(), 1.0), "B @ A": (B @ A, alpha / r)}
    with unnamed(lambda: expect_terms(got, terms, call)):
        expect_related(got, wanted, call, known, tol=1e-4 if exact else 1e-2)
    if W.dtype == got.dtype:
        differs = (got != wanted).double().mean().item()
        known = guesses.rounded(W, A, B, alpha)
        hint = next((told for told, guess in known.items() if torch.equal(got, guess)), ONCE)
        share = f"{differs:.0%} of the numbers differ from the fp32 sum, rounded once"
        expect(differs < 0.01 or W.dtype == torch.float32, f"{call}: {hint} ({share})")


@exercise("6.2", points=2)
def divergence(kl_divergence):
    """mean per token of KL(p||q) in nats, for any leading shape, and for logits of any size"""
    expect_kl(kl_divergence)


@exercise("6.3", points=2)
def survives(arrives):
    """1 where all is kept, 0 in the dead zone, else least squares' share of dW; in fp32"""
    expect_arrives(arrives)


def _quantized(shape, rng):
    """Codes, absmax and codebook of a random matrix, for a random codebook of 16 values."""
    n = math.prod(shape)
    inner = torch.rand(14, generator=rng) * 1.8 - 0.9
    codebook = torch.cat([torch.tensor([-1.0, 1.0]), inner]).sort().values
    blocks = randn(math.ceil(n / BLOCK), BLOCK, rng=rng) * 0.1
    wider = torch.arange(len(blocks)) % 2  # else the largest weight is absmax itself
    absmax = blocks.abs().amax(1) * (1 + wider * torch.rand(len(blocks), generator=rng))
    return dequantized.nearest(blocks, absmax, codebook).flatten()[:n], absmax, codebook


@exercise("6.4", points=3)
def merges_quantized(merge_quantized):
    """dequantises block by block, adds in fp32, and the update survives"""
    rng, r, alpha = generator(), 5, 29  # alpha over no other size is a factor of alpha / r
    shape, other = (24, 40), generator()  # so that the inputs below stay as they were
    several = changes.dequantized(
        merge_quantized, *_quantized(shape, other), *_factors(*shape, r, other), alpha, shape
    )
    followed = [laws(*one) for one in several]
    with (
        simplest(small.dequantized(merge_quantized)),
        followed[0],
        followed[1],
        likeliest() as case,
    ):
        for shape, alpha in (((24, 40), 29), ((7, 50), 3)):  # 3 is less than r
            with case():
                W4, absmax, codebook = _quantized(shape, rng)
                A, B = _factors(*shape, r, rng)
                B = B * 2e-4  # an update far below the grid's step, as real ones are
                call = f"merge_quantized for shape {shape}"
                args = (W4, absmax, codebook, A, B, alpha, shape)
                n = len(absmax)  # of which there is no other of this size here
                few = {f"dimension 0 with size {n};": RUNS, f"axis 0 with size {n};": RUNS}
                few |= {f"invalid for input of size {n};": RUNS}
                hint = ORDER | few | {"shape of the mask": MASK, "64]' is invalid": SHORTER}
                got = ask(call, probes.merged_quantized, merge_quantized, *args, hint=hint)
                _expect_dequantized(got, *args, call)


def _expect_dequantized(got, W4, absmax, codebook, A, B, alpha, shape, call):
    update, r = alpha / len(A) * B @ A, len(A)
    known = dequantized.quantized(W4, absmax, codebook, update, shape, r, alpha)
    base = (codebook[W4.long()] * dequantized.spread(absmax, len(W4))).reshape(shape)
    expect_shape(got, torch.Size(shape), call)
    try:
        expect_related(got, base + update, call, known, tol=2e-6)
    except CheckFailed as failure:
        said = any(message in str(failure) for message in ("holds NaN", *known))
        told = not said and dequantized.apart(got, W4, absmax, codebook, update, shape, alpha / r)
        raise CheckFailed(f"{call}: {told}") if told else failure from None
    single = got.dtype == torch.float32
    expect(single, f"{call} is in {_kind(got.dtype)}: return it in float32")


@exercise("6.5", points=3)
def combines(combine_linear, combine_cat):
    """cat is the weighted sum of the updates to 1e-5; linear is that sum plus cross terms"""
    return expect_combined(combine_linear, combine_cat)


SHAPES = {"layers.0.A": (2, 5), "layers.0.B": (4, 2), "norm": (3,)}


ASKED = {
    "it raised KeyError": "all have the same keys here, in another order: compare sets",
    "values to unpack": "there may be any number of states: go through all of them",
    "'NoneType'": "weights may be None: then all states count the same",
}


def _states(n, rng):
    return [{name: randn(*shape, rng=rng) for name, shape in SHAPES.items()} for _ in range(n)]


@exercise("6.6", points=2)
def mixes(soup):
    """the uniform and the weighted mean, key by key; a key that not all have is an error"""
    rng, works = generator(), 0
    followed = laws(*changes.soups(soup, _states(3, generator())))
    with part(), simplest(small.soups(soup)), followed, likeliest() as case:
        for n, weights in (
            (3, [0.5, 0.2, 0.3]),
            (5, None),
            (3, None),
            (2, None),
            (2, [0.75, 0.25]),
        ):
            states = _states(n, rng)
            shuffled = [dict(sorted(s.items(), reverse=i % 2 == 1)) for i, s in enumerate(states)]
            call = f"soup of {n} states" + (f" with weights {weights}" if weights else "")
            with case():
                got = ask(call, probes.souped, soup, shuffled, weights, hint=ASKED)
                works += 1
                _expect_soup(got, states, weights, call)
    names = list(SHAPES)
    others = [names[i] for i in torch.randperm(2, generator=rng).tolist()]
    with part(), likeliest() as case:
        for which, name, weights, other in (
            *((1, "norm", None, ""), (0, others[0], None, ""), (2, others[1], None, "")),
            *((0, others[1], [0.5, 0.2, 0.3], ""), (1, others[0], [0.5, 0.2, 0.3], "")),
            (2, others[0], None, "bias"),
        ):
            states = _states(3, rng)
            gone = states[which].pop(name)
            states[which] |= {other: gone} if other else {}
            if works < 4:  # it raised anyway
                break
            with case():
                told = observe(probes.soup_error, soup, states, weights)
                _expect_refusal(told, states, which, name, weights, other)


def _expect_refusal(told, states, which, name, weights, other):
    lacks = f"lacks the key {name}" + (f", and has {other} in its place" if other else "")
    given = " and weights are given" if weights else ""
    quiet = f"soup raises nothing when state {which} {lacks}{given}"
    hint = "compare the names, not how many there are" if other else ""
    hint = hint or guesses.without(told, states, name, weights)
    hint = hint or "look at the keys of all states"
    expect(isinstance(told, str), f"{quiet}: {hint}")
    named = f"when a state {lacks}, the error is {told!r}: the key's name is not in it"
    expect(name in told or (other and other in told), named)


def _expect_soup(got, states, weights, call):
    expect(isinstance(got, dict), f"{call} must return a dict of name to tensor")
    keys = set(states[0])
    expect(set(got) == keys, f"{call} has the keys {sorted(got)}, wanted {sorted(keys)}")
    parts = weights or [1 / len(states)] * len(states)
    for name in states[0]:
        wanted = sum(f * s[name] for f, s in zip(parts, states, strict=True))
        told = f"{call}: {name} is 0, the sum over nothing: a zip or other iterator is used up"
        nothing = type(got[name]) in (int, float) and got[name] == 0
        expect(not nothing, f"{told} after the first key; make it for each, or a list of it")
        told = f"{call}: {name} became one number; the mean runs over the states, each number apart"
        mine = getattr(got[name], "shape", None)
        expect(mine != (), told)
        shape, n = wanted.shape, len(states)
        joined = mine in ((n, *shape), (n * shape[0], *shape[1:]), (*shape[:-1], n * shape[-1]))
        told = f"{call}: {name} has shape {tuple(mine or ())}, that is all states side by side"
        expect(not joined, f"{told}; wanted is their mean, {tuple(shape)}")
        known, what = guesses.souped(states, name, parts), f"{call}: {name}"
        terms = {f"state {i}": (s[name], parts[i]) for i, s in enumerate(states)}
        with unnamed(lambda got=got[name], terms=terms, what=what: expect_terms(got, terms, what)):
            expect_related(got[name], wanted, what, known)
        kind = _kind(got[name].dtype)
        told = f"{call}: {name} is in {kind}, wanted float32, as in the states"
        expect(got[name].dtype == torch.float32, told)


@exercise("6.7", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "06")
