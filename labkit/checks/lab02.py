"""Checks of lab 2. The reference is the dense layer `W + (alpha / r) B A`, autograd, or torch."""

import math

import torch

from labkit.checks import guesses02 as guesses
from labkit.checks import layer02 as parts
from labkit.checks.compare import ask, expect_close, expect_number, randn
from labkit.checks.guesses02 import dense
from labkit.checks.quiz import judge
from labkit.grading.contract import exercise, expect, generator, observe
from labkit.probes import lab02 as probe


def _matrices(d_out, d_in, r, rng):
    return (randn(d_out, d_in, rng=rng), randn(r, d_in, rng=rng), randn(d_out, r, rng=rng))


@exercise("2.1", points=2)
def matches_dense(lora_forward):
    """equals the dense formula for any leading shape, and never forms B @ A"""
    rng = generator()
    alpha, r = 10.0, 3  # here and below r does not divide alpha: // is not /
    W, A, B = _matrices(7, 5, r, rng)
    for lead in [(4,), (2, 3), ()]:
        x = randn(*lead, 5, rng=rng)
        call = f"lora_forward with x of shape {tuple(x.shape)}"
        known = guesses.forward(x, W, A, B, alpha)
        wanted = dense(x, W, A, B, alpha / r)
        expect_close(ask(call, "", lora_forward, x, W, A, B, alpha), wanted, call, known)
    W, A, B = _matrices(256, 384, 2, rng)  # far larger than what Python itself makes meanwhile
    made = observe(probe.largest_new_tensor, lora_forward, randn(1, 384), W, A, B, alpha)
    hint = "compute x @ A.T first, then @ B.T: two thin products"
    expect(made < W.numel(), f"it makes a tensor of {made:,} numbers, as large as W; {hint}")


@exercise("2.2", points=4)
def layer(LoRALinear):
    """starts as the base layer, adds exactly the scaled update, trains A and B and nothing else"""
    rng, r, alpha = generator(), 5, 14.0
    W, A, B = _matrices(48, 256, r, rng)
    bias, x = randn(48, rng=rng), randn(6, 256, rng=rng)
    new = observe(probe.new_layer, LoRALinear, W, bias, r, alpha, x)
    parts.expect_start(new, x, W, bias, r, alpha)
    parts.expect_flags(new["flags"])
    parts.expect_forward(LoRALinear, x, W, bias, A, B, alpha)
    parts.expect_dropout(LoRALinear, x, W, bias, A, B, alpha)
    parts.expect_gradients(LoRALinear, x, W, bias, A, B, alpha)
    parts.expect_merged(LoRALinear, x, W, bias, A, B, alpha)
    parts.expect_kinds(LoRALinear, W, bias, r, alpha)


@exercise("2.3", points=3)
def gradients(lora_gradients):
    """equals autograd, and dA is zero while B is zero"""
    rng, alpha, r = generator(), 7.0, 3
    W, A, B = _matrices(7, 5, r, rng)
    x, dY = randn(6, 5, rng=rng), randn(6, 7, rng=rng)
    for start in (B, B * 0):
        got = observe(probe.by_hand, lora_gradients, x, W, A, start, alpha, dY)
        used = got if isinstance(got, str) else ""
        expect(not used, f"it calls autograd's {used}(): by hand, please; the hint has the rule")
        pair = isinstance(got, list) and len(got) == 2
        expect(pair, "lora_gradients must return the pair (dA, dB)")
        shapes = [getattr(part, "shape", None) for part in got]
        expect(shapes != [B.shape, A.shape], "dB comes first: return the pair (dA, dB)")
        wanted = _autograd(x, W, A, start, alpha, dY)
        for name, mine, theirs in zip(("dA", "dB"), got, wanted, strict=True):
            known = guesses.gradient(theirs, alpha, r, len(x))
            where = " when B is zero" if not start.any() else ""
            expect_close(mine, theirs, name + where, known)


def _autograd(x, W, A, B, alpha, dY):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    return torch.autograd.grad(dense(x, W, A, B, alpha / len(A)), (A, B), dY)


@exercise("2.4", points=3, after="2.2")
def injects(inject):
    """replaces exactly the named projections in place, freezes the rest, adds the scaled update"""
    rng, r, alpha = generator(), 3, 7.0
    weights = {name: randn(*p.shape, rng=rng) for name, p in probe._Model().named_parameters()}
    inside = [[f"layers.{i}.attn.{kind}_proj" for i in range(2)] for kind in "qkv"]
    for targets, names in (
        (["q_proj", "v_proj"], inside[0] + inside[2]),
        (["k_proj", "out_proj"], [*inside[1], "out_proj"]),
    ):
        factors = {name: (randn(r, 8, rng=rng), randn(8, r, rng=rng)) for name in names}
        call = f"inject(model, {targets}, r={r}, alpha={alpha})"
        hint = "a layer of the model itself has no dot in its name" if "out_proj" in names else ""
        got = ask(call, hint, probe.injected, inject, targets, r, alpha, weights, factors)
        _expect_names(set(got["shapes"]), set(names), call)
        module = got["count"] == "a model"
        expect(not module, f"{call} returned a model, wanted how many layers were replaced")
        expect_number(got["count"], len(names), f"the number that {call} returns")
        expect(all(s == [r, 8] for s in got["shapes"].values()), f"{call}: r is not passed on")
        _expect_outputs(got["y"], weights, factors, alpha, call)
        trains = {name for name, flag in got["flags"].items() if flag}
        adapters = {f"{name}.{part}" for name in names for part in "AB"}
        extra = sorted(trains - adapters)
        expect(not extra, f"after {call}, {', '.join(extra[:3])} still trains: freeze it all first")
        expect(trains == adapters, f"{call} froze A or B: freeze before you add the layers")


def _expect_outputs(outputs, weights, factors, alpha, call):
    """The model as it was with fresh layers, the dense formula's once A and B are set."""
    outputs = [y.double() if isinstance(y, torch.Tensor) else y for y in outputs]
    plain = _output(weights, factors, 0.0)
    hint = "a fresh LoRA layer must not change the model: is B zero, is the base layer kept?"
    same = isinstance(outputs[1], torch.Tensor) and outputs[1].shape == plain.shape
    same = same and torch.allclose(outputs[1], plain, rtol=1e-3, atol=1e-4)
    expect(same, f"{call} changed the output; {hint}")
    r = len(next(iter(factors.values()))[0])
    factor_of = {"alpha is not passed on: the factor is 1": 1.0} | guesses.factors(alpha, r)
    known = {message: _output(weights, factors, factor) for message, factor in factor_of.items()}
    known["the layers change nothing: their A and B are not in forward"] = plain
    wanted = _output(weights, factors, alpha / r)
    expect_close(outputs[2], wanted, f"after {call}, with A and B set, the output", known, 1e-3)


def _output(weights, factors, scale):
    """The small model's output, in fp64, with `scale` B A added to the weights in `factors`."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    for name, (A, B) in factors.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + scale * (B @ A).double()
    with torch.no_grad():
        return probe.small_model(weights, torch.double)(torch.arange(11))


def _expect_names(adapted, wanted, call):
    nested = [name for name in adapted if name.endswith(".base")]
    hint = "collect the modules in a list before you replace any"
    expect(not nested, f"{call} wrapped a wrapped layer ({', '.join(nested[:1])}); {hint}")
    near = sorted(adapted - wanted)
    hint = "compare the last part of the dotted name with ==, not `in` or endswith"
    expect(not near, f"{call} also replaced {', '.join(near[:2])}; {hint}")
    missing = sorted(wanted - adapted)
    hint = "set the new layer on its parent module: setattr(parent, name, layer)"
    top = "a layer of the model itself has no dot in its name, and the model is its parent"
    hint = top if missing == ["out_proj"] else hint
    expect(not missing, f"{call} left {', '.join(missing[:2])} as it was; {hint}")


@exercise("2.5", points=2)
def counts(count_params):
    """counts 921,600 of 135,436,608 on the real model's shapes, tied weights once"""
    rng = generator()
    d, vocab = (int(torch.randint(low, 40, (), generator=rng)) for low in (6, 11))
    model = probe.partly_frozen(d, vocab)
    every = list(model.parameters())  # torch lists a shared tensor once
    total = sum(p.numel() for p in every)
    trainable, head = sum(p.numel() for p in every if p.requires_grad), model.head.weight.numel()
    tied = {"the tied head is counted twice": total + head}
    got = observe(probe.counted, count_params, d, vocab)
    pair = isinstance(got, list) and len(got) == 2
    expect(pair, "count_params must return the pair (trainable, total)")
    swapped = {
        "this is the total: return (trainable, total) in this order": total,
        "the tied head is counted twice": trainable + head,
    }
    tensors = {"this counts tensors, not their numbers: use numel()": len(every)}
    expect_number(got[0], trainable, "trainable, on a small model", swapped)
    frozen = {
        "frozen parameters belong to the total": trainable,
        "what trains belongs to the total too": total - trainable,
    }
    expect_number(got[1], total, "the total, on a small model", tied | frozen | tensors)
    got = observe(probe.counted_smollm2, count_params, 16)
    expect_number(got[0], 921_600, "trainable, SmolLM2 with r=16 on q and v")
    tied = {"the tied embedding and head are counted twice": 135_436_608 + 28_311_552}
    expect_number(got[1], 135_436_608, "the total, SmolLM2 with r=16 on q and v", tied)


@exercise("2.6", points=3, after="2.2")
def merges(merge_, unmerge_, LoRALinear):
    """W becomes W + (alpha / r) B A, the output stays, twice is once, and unmerging undoes it"""
    rng, r, alpha = generator(), 3, 10.0
    W, A, B = _matrices(7, 5, r, rng)
    bias, x = randn(7, rng=rng), randn(4, 5, rng=rng)
    seen = observe(probe.merging, merge_, unmerge_, LoRALinear, W, bias, r, alpha, A, B, x)
    update = alpha / r * B @ A
    known = guesses.merged(W, update, alpha, r)
    eager = {"eval() has merged by itself; merge_ alone does": W + update}
    expect_close(seen["start"][0], W, "base.weight before merge_", eager, tol=1e-5)
    taken = {"a layer that was never merged has nothing to take away": W - update}
    expect_close(seen["fresh"][0], W, "base.weight after unmerge_ of a fresh layer", taken, 1e-5)
    twice = {"merging twice added the update twice: remember that it is merged": W + 2 * update}
    expect_close(seen["once"][0], W + update, "base.weight after merge_", known)
    expect_close(seen["twice"][0], W + update, "base.weight after merge_ twice", twice)
    below = {"unmerging twice took it away twice": W - update, "the update stays": W + update}
    expect_close(seen["back"][0], W, "base.weight after unmerge_", below, tol=1e-5)
    expect_close(seen["end"][0], W, "base.weight after unmerge_ twice", below, tol=1e-5)
    y = dense(x, W, A, B, alpha / r) + bias
    double = {
        "the update counts twice; forward must skip A and B while merged": y + x @ update.T,
        "the update is gone; nothing adds it now": x @ W.T + bias,
    }
    for name, when in (("once", "merge_"), ("twice", "merge_ twice")):
        expect_close(seen[name][1], y, f"the output after {when}", double)
    double = {"forward adds the update twice": y + x @ update.T}
    expect_close(seen["end"][1], y, "the output after unmerge_", double)
    hint = "change it under torch.no_grad()"
    expect(seen["leaf"] == [True, False], f"base.weight joined the autograd graph; {hint}")
    hint = "change base.weight in place; who holds the old Parameter would never know"
    expect(seen["same"], f"base.weight is another Parameter than before; {hint}")
    wanted = _square_gradients(x, W, bias, A, B, alpha)
    for name, mine, theirs in zip("AB", seen["grads"], wanted, strict=True):
        expect(mine is not None, f"after unmerge_, {name} gets no gradient any more")
        expect_close(mine, theirs, f"the gradient of {name} after unmerge_")
    stale = {
        "the update is the first merge's; A has changed since": W + update,
        "the second merge adds nothing: forget the first one in unmerge_": W,
    }
    call = "base.weight after merge_, unmerge_, a change of A, and merge_"
    expect_close(seen["anew"][0], W + 2 * update, call, stale)
    expect_close(seen["anew"][1], y + x @ update.T, "the output after that")
    expect_close(seen["undone"][0], W, f"{call}, unmerge_", tol=1e-5)


def _square_gradients(x, W, bias, A, B, alpha):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    loss = (dense(x, W, A, B, alpha / len(A)) + bias).square().sum()
    return torch.autograd.grad(loss, (A, B))


@exercise("2.7", points=3, after="2.2")
def round_trip(adapter_state, load_adapter_, LoRALinear):
    """holds A and B of every layer and nothing else; loads them back; says which key is wrong"""
    rng, r = generator(), 2
    A, B, x = (randn(*shape, rng=rng) for shape in ((r, 2 * r), (2 * r, r), (3, 2 * r)))
    state = observe(probe.state, adapter_state, LoRALinear, A, B, x)
    tensors = {}
    for i, layer in enumerate(probe.ADAPTED):
        trained = _trained(A + i, B - i, x)
        tensors |= {f"{layer}.{part}": t for part, t in zip("AB", trained, strict=True)}
    expect(isinstance(state, dict), "adapter_state must return a dict of name to tensor")
    hint = "A and B of three adapted layers are six"
    more = ", ".join(list(state)[:6])
    expect(len(state) == 6, f"the state holds {len(state)} tensors ({more}); {hint}")
    hint = f"wanted the layer's dotted name, then .A or .B: {', '.join(tensors)}"
    expect(state.keys() == tensors.keys(), f"the state has the names {more}; {hint}")
    for name, wanted in tensors.items():
        expect(
            _same(state[name], wanted), f"the state's {name} is not the {name[-1]} of that layer"
        )
    args = (adapter_state, load_adapter_, LoRALinear, A, B, x)
    loaded = observe(probe.round_trip, *args)
    for name, theirs in tensors.items():
        call = f"{name} after load_adapter_"
        known = {
            "still as before: copy into the parameter in place": _before(name, A, B, x),
            "it moves when the state is changed later: copy the numbers": theirs + 1,
        }
        expect_close(loaded["data"][name], theirs, call, known)
        hint = "copy into the old one, which an optimizer may hold"
        expect(name in loaded["same"], f"{call} is a new Parameter; {hint}")
        expect(name in loaded["trains"], f"{call} does not require grad any more")
    which = int(torch.randint(6, (), generator=rng))
    for change, key, missing in (
        ("missing", list(state)[which], which),
        ("extra", probe.EXTRA, None),
    ):
        told = observe(probe.load_error, *args, missing)
        expect(told is not None, f"load_adapter_ says nothing about a{_n(change)} key ({key})")
        error, kept = told
        expect(key in error, f"on a{_n(change)} key the error is {error!r}: name the key, {key}")
        hint = "compare all names before you copy"
        expect(kept, f"on a{_n(change)} key it raises, and has copied some already: {hint}")


def _trained(A, B, x):
    """A and B after the step that `probe.state` takes, by the dense formula in fp64."""
    A, B = (t.double().requires_grad_() for t in (A, B))
    dA, dB = torch.autograd.grad((x.double() @ (B @ A).T).square().mean(), (A, B))
    return [(t - 0.1 * d).detach().float() for t, d in ((A, dA), (B, dB))]


def _before(name, A, B, x):
    """A or B of the model that loads, as it was before."""
    i = probe.ADAPTED.index(name[:-2])
    return _trained(A * 0 + i, B * 0 - i, x)["AB".index(name[-1])]


def _same(got, wanted):
    """Equal but for rounding in fp32; one that went through 16 bits is not."""
    right = isinstance(got, torch.Tensor) and got.shape == wanted.shape
    return right and torch.allclose(got.float(), wanted, rtol=1e-5, atol=1e-5)


def _n(word):
    return f"n {word}" if word[0] in "aeiou" else f" {word}"


@exercise("2.8", points=1)
def scales(scaling):
    """alpha / r, and alpha / sqrt(r) when rank-stabilised"""
    rng = generator()
    draws = [int(torch.randint(low, 64, (), generator=rng)) for low in (33, 33, 3, 17)]
    for alpha, r in [(32, 16), (float(draws[0]), draws[2]), (draws[1], draws[3])]:
        known = guesses.factors(alpha, r)
        expect_number(observe(scaling, alpha, r), alpha / r, f"scaling({alpha}, {r})", known)
        call = f"scaling({alpha}, {r}, rank_stabilized=True)"
        plain = {"rank_stabilized changes nothing": alpha / r, "sqrt of all": (alpha / r) ** 0.5}
        got = observe(scaling, alpha, r, True)
        expect_number(got, alpha / math.sqrt(r), call, plain)


@exercise("2.9", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "02")
