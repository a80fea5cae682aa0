"""Checks of lab 2. The reference is the dense layer `W + (alpha / r) B A`, autograd, or torch."""

from dataclasses import replace

import torch

from labkit.checks.compare import (
    ask,
    close,
    draw,
    every,
    expect_close,
    expect_linear,
    expect_numbers,
    likeliest,
    randn,
)
from labkit.checks.compound import expect_factor
from labkit.checks.lab02 import counting, guesses, injection, linear, merging
from labkit.checks.lab02.layers import Layer
from labkit.checks.lab02.scaled import expect_scaling
from labkit.checks.quiz import judge
from labkit.contract import CheckFailed, exercise, expect, generator, observe, part
from labkit.labs.lab02 import models, probes


def _layer(d_out, d_in, r, alpha, rng):
    """A layer without bias."""
    W, A, B = (randn(*shape, rng=rng) for shape in ((d_out, d_in), (r, d_in), (d_out, r)))
    return Layer(W, None, A, B, alpha)


@exercise("2.1", points=2)
def matches_dense(lora_forward):
    """equals the dense formula for any leading shape, and never forms B @ A"""
    rng = generator()
    layer = _layer(7, 5, 3, 11.0, rng)  # here and below r does not divide alpha: // is not /
    cases = [(randn(*lead, 5, rng=rng), layer) for lead in [(4,), (2, 3), ()]]
    square = (randn(4, 6, rng=rng), _layer(6, 6, 6, 14.0, rng))  # lets what is transposed through
    thick = (randn(4, 4, rng=rng), _layer(5, 4, 6, 13.0, rng))  # r is the shorter side of neither
    if not every(lambda *case: _expect_forward(lora_forward, *case), [*cases, square, thick]):
        return
    with part():
        array = observe(probes.kind, lora_forward, *_asked(*cases[0])) == "ndarray"
        expect(not array, "lora_forward gave a NumPy array, wanted a tensor")
    with part():
        large = _layer(256, 384, 2, 10.0, rng)  # far larger than what Python makes meanwhile
        made = observe(probes.forward_work, lora_forward, *_asked(randn(1, 384), large))
        linear.expect_thin(made, "lora_forward")


def _asked(x, layer):
    """What `lora_forward` is given."""
    return x, layer.W, layer.A, layer.B, layer.alpha


def _expect_forward(lora_forward, x, layer):
    call = f"lora_forward with x of shape {tuple(x.shape)}"
    with linear.r_told(lora_forward):
        hint = "x @ W.T has the leading shape of x"
        if x.ndim == 2:
            hint = {"invalid for input": "x's leading shape stays, its last size becomes d_out"}
        got = ask(call, lora_forward, *_asked(x, layer), hint=hint)
        wanted = layer.dense(x)
        flat = isinstance(got, torch.Tensor) and got.numel() == wanted.numel()
        flat = flat and got.shape != wanted.shape[::-1]  # that is transposed
        lost = f"{call} has shape {tuple(getattr(got, 'shape', ()))}: x's leading shape is lost"
        expect(not flat or got.shape == wanted.shape, lost)
        try:
            expect_close(got, wanted, call, guesses.forward(x, layer))
        except CheckFailed as failure:
            if failure.bare and "rounding" not in str(failure):
                _expect_form(lora_forward, x, layer, call)
                _expect_halves(lora_forward, x, layer, call)
            raise


def _expect_form(lora_forward, x, layer, call):
    """Each row of x by itself, and twice the output for twice the x."""
    plain = observe(lora_forward, *_asked(x, layer))
    if x.ndim == 2:
        first = observe(lora_forward, *_asked(x[:1], layer))
        told = f"{call}: a row of it changes with the other rows; each goes through A and B alone"
        expect(close(first, plain[:1], 1e-3), told)
    linear.expect_zero(observe(lora_forward, *_asked(0 * x, layer)), call)
    expect_linear(call, lambda z: observe(lora_forward, *_asked(z, layer)), {"x": x})


def _expect_halves(lora_forward, x, layer, call):
    """The frozen part and the update, each by itself: which of them is wrong, and how."""

    def run(one):
        return observe(lora_forward, *_asked(x, one))

    with likeliest() as case:
        for name, left in (("B", "x @ W.T"), ("W", "the update")):
            one = replace(layer, **{name: 0 * getattr(layer, name)})
            told = f"{call} and {name} all zero, where {left} is left"
            with case():
                got = run(one)
                lost = name == "W" and not got.any()
                expect(not lost, f"{told}, nothing is: A reads x, and not what W has made of it")
                try:
                    expect_close(got, one.dense(x), told, guesses.forward(x, one))
                except CheckFailed as failure:
                    if failure.bare:
                        linear.expect_scaled(run, one, x, told)
                        empty = replace(one, W=0 * layer.W, B=0 * layer.B)
                        hint = "something is added that has no factor B"
                        expect(not run(empty).any(), f"{told}: {hint}")
                    raise


@exercise("2.2", points=3)
def layer(LoRALinear):
    """starts as the base layer, adds exactly the scaled update, trains A and B and nothing else"""
    rng = generator()
    one = _layer(48, 256, 5, 14.0, rng)
    one.bias, x = randn(48, rng=rng), randn(6, 256, rng=rng)
    linear.expect_layer(LoRALinear, one, x)


@exercise("2.3", points=3)
def gradients(lora_gradients):
    """equals autograd, and dA is zero while B is zero"""
    rng = generator()
    layer = _layer(7, 5, 3, 11.0, rng)
    x, dY = randn(6, 5, rng=rng), randn(6, 7, rng=rng)
    whole = 0
    for name in ("dA", "dB"):
        cases = [(name, one, x, dY) for one in (layer, replace(layer, B=layer.B * 0))]
        whole += len(every(lambda *case: _expect_gradient(lora_gradients, *case), cases))
    if whole == 4:
        layer = _layer(40, 30, 3, 7.0, rng)
        x, dY = randn(2, 30, rng=rng), randn(2, 40, rng=rng)
        _, calls = observe(probes.by_hand, lora_gradients, *_asked(x, layer), dY)
        hint = "no entry by entry, no small steps to try: the hint has the rule"
        expect(calls < 100, f"it takes {calls} operations, where four products do; {hint}")


def _expect_gradient(lora_gradients, name, layer, x, dY):
    with linear.r_told(lora_gradients):
        got = observe(probes.by_hand, lora_gradients, *_asked(x, layer), dY)
        expect(got != "autograd", "it calls autograd: by hand, please; the hint has the rule")
        pair = isinstance(got[0], list) and len(got[0]) == 2
        expect(pair, "lora_gradients must return the pair (dA, dB)")
        shapes = [getattr(part, "shape", None) for part in got[0]]
        told = "dB comes first: return the pair (dA, dB)"
        expect(shapes != [layer.B.shape, layer.A.shape], told)
        which = ("dA", "dB").index(name)
        told = f"{name} has the shape of W, as dYᵀ x has: A or B is missing from it"
        expect(shapes[which] != layer.W.shape, told)
        both = layer.gradients(lambda one: (one.dense(x) * dY).sum())
        right = both[which]
        known = guesses.gradient(right, layer, dY)
        known |= guesses.gradient_by_other_ways(name, x, layer, dY, both)
        where = "" if layer.B.any() else " when B is zero"
        if where and name == "dA" and isinstance(got[0][0], torch.Tensor):
            known["dA has the factor B, so it is zero here"] = got[0][which]
        if where and name == "dB":
            known = {"dB has the factor A and none of B, so it is not zero here": right * 0} | known
        try:
            expect_close(got[0][which], right, name + where, known)
        except CheckFailed as failure:
            if failure.bare:
                _expect_without(lora_gradients, which, x, layer, dY, right)
                sizes, mine = layer.sizes | {"n": len(x)}, got[0][which]
                asked, bare = ("alpha / r", layer.scaling), right / layer.scaling
                expect_factor(mine, bare, name + where, asked, sizes)
            raise


def _expect_without(lora_gradients, which, x, layer, dY, right):
    """What a wrong gradient takes in that it should not, or leaves out."""
    call, without = ("dA", "dB")[which], replace(layer, W=0 * layer.W)

    def one_alone(i):
        return observe(probes.by_hand, lora_gradients, *_asked(x[i], layer), dY[i])[0][which]

    whole = observe(probes.by_hand, lora_gradients, *_asked(x, layer), dY)[0][which]
    for i, name in ((slice(1), "first"), (slice(-1, None), "last")):
        expect(not close(whole, one_alone(i), 1e-3), f"{call}: only the {name} of n rows counts")
    for name, given, one, back in (
        ("W", x, without, dY),
        ("x", 0 * x, layer, dY),
        ("dY", x, layer, 0 * dY),
    ):
        got = observe(probes.by_hand, lora_gradients, *_asked(given, one), back)[0][which]
        if name == "W":
            told = f"{call} takes W in; it is made of x, dY, A and B"
            expect(not close(got, right, 1e-3), told)
        else:
            expect(not got.any(), f"{call} is not zero where {name} is; {name} is a factor of it")

    def run(x, dY):
        return observe(probes.by_hand, lora_gradients, *_asked(x, layer), dY)[0][which]

    expect_linear(call, run, {"x": x, "dY": dY})


@exercise("2.4", points=3, after="2.2")
def injects(inject):
    """replaces exactly the named projections in place, freezes the rest, adds the scaled update"""
    rng, r, alpha, asked = generator(), 3, 10, []
    inside = [[f"layers.{i}.attn.{kind}_proj" for i in range(2)] for kind in "qkv"]
    for targets, names in (
        (["q_proj", "v_proj"], inside[0] + inside[2]),
        (["k_proj", "out_proj"], [*inside[1], "out_proj"]),
        (["proj", "down_proj"], ["proj"]),  # rest.down_proj holds an nn.Linear
    ):
        with part():
            call, got = injection.expect_injected(inject, targets, names, r, alpha, rng)
            known = guesses.replaced(names, targets, r, got["modules"])
            if not got["shapes"].keys() >= set(names):
                break  # then the count is wrong, too
            exactly = got["shapes"].keys() == set(names)  # else the count is wrong, too
            if exactly and got["count"] != "a model":  # told already
                asked.append((call, got["count"], len(names), known))
    with part():
        expect_numbers(asked)


@exercise("2.5", points=1)
def counts(count_params):
    """counts 921,600 of 135,436,608 on the real model's shapes, tied weights once"""
    rng = generator()
    d, vocab = (draw(low, 39, rng) for low in (6, 11))
    model = models.partly_frozen(d, vocab)
    total = sum(p.numel() for p in model.parameters())  # torch lists a shared tensor once
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    where = "on a small model"
    known = guesses.counted(trainable, total, model.head.weight.numel(), model)
    right = counting.expect_counts(observe(models.counted, count_params, d, vocab), known, where)
    if right:
        where, tied = "SmolLM2 with r=16 on q and v", 28_311_552
        known = guesses.counted(921_600, 135_436_608, tied)
        counting.expect_counts(observe(models.counted_smollm2, count_params, 16), known, where)


@exercise("2.6", points=2)
def arithmetic(step_flops):
    """equals torch's own count of real layers' products, forward and backward"""
    counting.expect_flops(step_flops, generator())


@exercise("2.7", points=3, after="2.2")
def merges(merge_, unmerge_, LoRALinear):
    """W becomes W + (alpha / r) B A, the output stays, twice is once, and unmerging undoes it"""
    rng = generator()
    layer = _layer(7, 5, 3, 10.0, rng)
    layer.bias, x = randn(7, rng=rng), randn(4, 5, rng=rng)
    merging.expect_merging(merge_, unmerge_, LoRALinear, layer, x)


@exercise("2.8", points=3, after="2.2")
def round_trip(adapter_state, load_adapter_, LoRALinear):
    """holds A and B of every layer and nothing else; loads them back; says which key is wrong"""
    rng, r = generator(), 2
    A, B, x = (randn(*shape, rng=rng) for shape in ((r, 2 * r), (2 * r, r), (3, 2 * r)))
    tensors = injection.expect_state(adapter_state, LoRALinear, A, B, x)
    args = (adapter_state, load_adapter_, LoRALinear, A, B, x)
    injection.expect_loaded(injection.load(*args), tensors, A, B, x)
    names = list(tensors)
    late = names[draw(2, 5, rng)]  # not one of the first: some are copied
    sides = [("thin", names[3]), ("thin", names[4]), ("flat", names[4]), ("flat", names[5])]
    for cases in (
        [("missing", late)],
        [("extra", models.EXTRA)],
        [("turned", names[2])],
        sides,  # both of A and of B: some compare but one
    ):
        with part():
            for change, key in cases:
                told = observe(models.load_error, *args, change, key)
                injection.expect_refused(told, change, key)


@exercise("2.9", points=1)
def scales(scaling):
    """alpha / r, and alpha / sqrt(r) when rank-stabilised"""
    expect_scaling(scaling, generator())


@exercise("2.10", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "02")
