"""Checks of lab 6. The reference is PEFT, or the sum of the updates written out."""

import math

import torch

from labkit.checks import guesses06 as guesses
from labkit.checks import served06 as served
from labkit.checks.compare import expect_close, expect_number, expect_unchanged, randn
from labkit.checks.guesses02 import merged
from labkit.checks.guesses06 import BLOCK
from labkit.checks.quiz import judge
from labkit.grading.contract import exercise, expect, generator, observe
from labkit.probes import lab06 as probe

QUICKEST = 5e-6  # seconds; set_adapter takes 4e-4 on the tiny model, two looks at a clock 2e-7


def _factors(d_out, d_in, r, rng):
    return randn(r, d_in, rng=rng), randn(d_out, r, rng=rng)


def _peft_merged(W, A, B, alpha):
    """The weight after PEFT's `merge_and_unload`, in the dtype of W."""
    from peft import LoraConfig, get_peft_model

    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    config = LoraConfig(r=len(A), lora_alpha=alpha, target_modules=["0"])
    with torch.no_grad():
        linear.weight.copy_(W)
        model = get_peft_model(torch.nn.Sequential(linear), config)
        layer = model.base_model.model[0]
        layer.lora_A["default"].weight.copy_(A)
        layer.lora_B["default"].weight.copy_(B)
        return model.merge_and_unload()[0].weight.detach()


@exercise("6.1", points=2)
def merges(merged_weight):
    """equals PEFT's merge_and_unload; in bf16 it is rounded once, at the end; W stays"""
    rng, r, alpha = generator(), 4, 10
    A, B = _factors(64, 96, r, rng)
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        W = (randn(64, 96, rng=rng) * 4).to(dtype)
        call = f"merged_weight with W in {kind}, A and B in float32"
        got, told, after, *factors = observe(probe.merged, merged_weight, W, A, B, alpha)
        known = merged(W.float(), alpha / r * B @ A, alpha, r)
        wanted = _peft_merged(W, A, B, alpha)
        rounding = 1e-4 if dtype == torch.float32 else 1e-2
        expect_close(got, wanted, call, known, tol=rounding)
        expect(
            torch.equal(after, W), f"{call} changed W itself; the next adapter needs it as it was"
        )
        hint = "give back W's dtype: .to(W.dtype)"
        expect(got.dtype == dtype, f"{call} is in {told.removeprefix('torch.')}; {hint}")
        for name, before, now in zip("AB", (A, B), factors, strict=True):
            expect_unchanged(now, before, call, name)
    differs = (got != wanted).double().mean().item()
    hint = "add the two in fp32, and cast the sum once"
    told = f"{call}: {differs:.0%} of the numbers are rounded otherwise than fp32 rounded once"
    expect(differs < 0.01, f"{told}; {hint}")


def _quantized(shape, rng):
    """Codes, absmax and codebook of a random matrix, for a random codebook of 16 values."""
    n = math.prod(shape)
    inner = torch.rand(14, generator=rng) * 1.8 - 0.9
    codebook = torch.cat([torch.tensor([-1.0, 1.0]), inner]).sort().values
    blocks = randn(math.ceil(n / BLOCK), BLOCK, rng=rng) * 0.1
    absmax = blocks.abs().amax(1) * (1 + torch.rand(len(blocks), generator=rng))
    return guesses.nearest(blocks, absmax, codebook).flatten()[:n], absmax, codebook


@exercise("6.2", points=3)
def merges_quantized(merge_quantized):
    """dequantises block by block, adds in fp32, and the update survives"""
    rng, r, alpha = generator(), 4, 10
    for shape in ((24, 40), (7, 50)):
        W4, absmax, codebook = _quantized(shape, rng)
        A, B = _factors(*shape, r, rng)
        B = B * 2e-4  # an update far below the grid's step, as real ones are
        update = alpha / r * B @ A
        call = f"merge_quantized for shape {shape}"
        args = (W4, absmax, codebook, A, B, alpha, shape)
        got, kind, *after = observe(probe.merged_quantized, merge_quantized, *args)
        known = guesses.quantized(W4, absmax, codebook, update, shape, r, alpha)
        scales = absmax.repeat_interleave(BLOCK)[: len(W4)]
        base = (codebook[W4.long()] * scales).reshape(shape)
        expect_close(got, base + update, call, known, tol=2e-5)
        single = got.dtype == torch.float32
        expect(single, f"{call} is in {kind.removeprefix('torch.')}; return it in float32")
        names = ("W4", "absmax", "codebook", "A", "B")
        for name, before, now in zip(names, args, after, strict=False):
            expect_unchanged(now, before, call, name)


def _pair(got, call):
    """A and B of what a combination returns, in fp64: their dtypes may differ."""
    pair = isinstance(got, list) and len(got) == 2
    expect(pair, f"{call} must return the pair (A, B)")
    for name, part in zip("AB", got, strict=True):
        matrix = isinstance(part, torch.Tensor) and part.dim() == 2
        expect(matrix, f"{call}: {name} must be a matrix")
        hint = "is it the root of a negative weight? Put the whole w on one factor"
        expect(not part.is_complex(), f"{call}: {name} holds complex numbers; {hint}")
    return [part.double() for part in got]


def _adapters(ranks, rng):
    return [_factors(24, 40, r, rng) for r in ranks]


@exercise("6.3", points=3)
def combines(combine_linear, combine_cat):
    """cat is the weighted sum of the updates to 1e-5; linear is that sum plus cross terms"""
    rng = generator()
    for ranks, weights in (([3, 3], [0.6, 0.4]), ([2, 4, 3], [1.5, -0.5, 0.7])):
        _expect_cat(combine_cat, _adapters(ranks, rng), weights)
    for ranks, weights in (([3, 3], [0.6, 0.4]), ([4, 4, 4], [0.9, 0.1, 0.4])):
        adapters = _adapters(ranks, rng)
        wanted = _expect_linear(combine_linear, adapters, weights)
    goal = guesses.summed(adapters, weights)
    off = (wanted - goal).norm() / goal.norm()
    return f"cat is exact to 1e-5; linear misses the sum of 3 random updates by {off:.0%} of it"


def _expect_cat(combine_cat, adapters, weights):
    ranks = [len(A) for A, _ in adapters]
    call = f"combine_cat of ranks {ranks} with weights {weights}"
    hint = "stack the A's as rows and the B's as columns"
    A, B = _combined(combine_cat, adapters, weights, sum(ranks), call, hint)
    hint = "a weight may be negative: no square root of it"
    expect(torch.isfinite(A).all() and torch.isfinite(B).all(), f"{call} holds NaN; {hint}")
    wanted, known = guesses.summed(adapters, weights), guesses.concatenated(adapters, weights)
    expect_close(B @ A, wanted, f"B @ A of {call}", known, tol=1e-5)


def _expect_linear(combine_linear, adapters, weights):
    """The wanted product, which `combine_linear` gave."""
    call = f"combine_linear with weights {weights}"
    hint = "linear adds A to A and B to B, so the rank stays"
    A, B = _combined(combine_linear, adapters, weights, len(adapters[0][0]), call, hint)
    roots = [math.sqrt(w) for w in weights]
    wanted = guesses.crossed(adapters, roots, roots)
    expect_close(B @ A, wanted, f"B @ A of {call}", guesses.added(adapters, weights))
    return wanted


def _combined(combine, adapters, weights, r, call, hint):
    """The pair of rank r that `combine` returns; the adapters must be as they were."""
    pair, after = observe(probe.combined, combine, adapters, weights)
    A, B = _pair(pair, call)
    told = f"{call} gave A {tuple(A.shape)} and B {tuple(B.shape)}"
    right = A.shape == (r, 40) and B.shape == (24, r)
    expect(right, f"{told}, wanted {(r, 40)} and {(24, r)}; {hint}")
    parts = zip(adapters, after, strict=True)
    same = all(torch.equal(a, b) for old, new in parts for a, b in zip(old, new, strict=True))
    expect(same, f"{call} changed the adapters it was given: make new tensors, no *= on theirs")
    return A, B


SHAPES = {"layers.0.A": (2, 5), "layers.0.B": (4, 2), "norm": (3,)}


def _states(n, rng):
    return [{name: randn(*shape, rng=rng) for name, shape in SHAPES.items()} for _ in range(n)]


@exercise("6.4", points=2)
def mixes(soup):
    """the uniform and the weighted mean, key by key; a key that not all have is an error"""
    rng = generator()
    for n, weights in ((2, None), (3, None), (2, [0.75, 0.25]), (3, [0.5, 0.2, 0.3])):
        states = _states(n, rng)
        shuffled = [dict(sorted(s.items(), reverse=i % 2 == 1)) for i, s in enumerate(states)]
        call = f"soup of {n} states" + (f" with weights {weights}" if weights else "")
        got, after = observe(probe.souped, soup, shuffled, weights)
        _expect_soup(got, states, weights, call)
        same = all(torch.equal(a[k], s[k]) for a, s in zip(after, states, strict=True) for k in s)
        expect(same, f"{call} changed the states it was given: make new tensors, no += on theirs")
    names = list(SHAPES)
    others = [names[i] for i in torch.randperm(2, generator=rng).tolist()]
    for which, name, weights in (
        *((1, "norm", None), (0, others[0], None), (2, others[1], None)),
        *((0, others[1], [0.5, 0.2, 0.3]), (1, others[0], [0.5, 0.2, 0.3])),
    ):
        states = _states(3, rng)
        states[which].pop(name)
        told = observe(probe.soup_error, soup, states, weights)
        given = " and weights are given" * bool(weights)
        expect(
            told is not None, f"soup says nothing when state {which} lacks the key {name}{given}"
        )
        expect(name in told, f"when a state lacks a key, the error is {told!r}: name {name} in it")


def _expect_soup(got, states, weights, call):
    expect(isinstance(got, dict), f"{call} must return a dict of name to tensor")
    keys = set(states[0])
    expect(set(got) == keys, f"{call} has the keys {sorted(got)}, wanted {sorted(keys)}")
    parts = weights or [1 / len(states)] * len(states)
    for name in states[0]:
        wanted = sum(f * s[name] for f, s in zip(parts, states, strict=True))
        known = guesses.souped(states, name, parts)
        expect_close(got[name], wanted, f"{call}: {name}", known)


@exercise("6.5", points=4)
def serves(swap_cost, route):
    """a swap makes the adapter active and costs its bytes; a mixed batch answers as one by one"""
    rng = generator()
    lengths, names = (5, 14, 3, 9, 7, 2), ("home", "tickets", "homely", "tickets", "home", "homely")
    prompts = tuple(probe.words(rng, n) for n in lengths)
    seed = _long_winded(prompts, names, rng)
    for name in ("home", "tickets", "homely"):
        _expect_swap(swap_cost, seed, name)
    got = observe(probe.routed, route, seed, list(prompts), list(names))
    _expect_routed(got, seed, prompts, names)


def _long_winded(prompts, names, rng):
    """The seed of a model that ends some answers itself and others not: the limit has to show."""
    for _ in range(20):
        seed = int(torch.randint(1, 10**6, (), generator=rng))
        sizes = [len(text.split()) for text in served.answered_alone(seed, prompts, names)]
        if min(sizes) < max(sizes) == probe.NEW_TOKENS:
            break
    return seed


def _expect_swap(swap_cost, seed, name):
    call = f'swap_cost(model, "{name}")'
    got = observe(probe.swapped, swap_cost, seed, name)
    cost, sizes = got["cost"], served.adapter_bytes(seed)
    shaped = isinstance(cost, dict) and {"seconds", "bytes"} <= set(cost)
    expect(shaped, f'{call} must return {{"seconds": ..., "bytes": ...}}')
    active = ", ".join(got["active"])
    hint = "switch with model.set_adapter(adapter_name)"
    expect(got["active"] == [name], f"after {call} the active adapter is {active}; {hint}")
    both = sizes["bytes"]["home"] + sizes["bytes"]["homely"]
    known = {
        "this counts numbers, not bytes": sizes["numbers"][name],
        "this takes 4 bytes a number; ask each tensor: nbytes": 4 * sizes["numbers"][name],
        "these are the bytes of all adapters": sum(sizes["bytes"].values()),
        "these are the bytes of the whole model": sizes["model"],
        "these are the bytes of the base model; it stays where it is": sizes["base"],
        "homely counts as home too: look for .home. with its dots": both,
        "these are the bytes of A alone": sizes["half"][name],
        "these are the bytes of B alone": sizes["bytes"][name] - sizes["half"][name],
    }
    expect_number(cost["bytes"], sizes["bytes"][name], f'{call}["bytes"]', known)
    seconds, took = cost["seconds"], got["took"]
    told = f'{call}["seconds"] is {seconds!r}'
    good = type(seconds) in (int, float) and seconds > 0
    expect(good, f"{told}, wanted the positive time of the switch")
    hint = "is it in milliseconds, or a time of day?"
    expect(seconds <= took + 1e-3, f"{told}, more than the {took:.2g} s of the whole call; {hint}")
    hint = "the switch lies between the two looks at the clock"
    expect(seconds > QUICKEST, f"{told}, less than any switch takes; {hint}")


def _expect_routed(got, seed, prompts, names):
    texts, call = got["texts"], f"route with {len(prompts)} prompts"
    listed = isinstance(texts, list) and all(isinstance(t, str) for t in texts)
    expect(listed, f"{call} must return a list of texts")
    expect(len(texts) == len(prompts), f"{call} gave {len(texts)} texts, wanted {len(prompts)}")
    hint = "decode with skip_special_tokens=True"
    expect(not any("<end>" in t for t in texts), f"{call}: special tokens in the answers; {hint}")
    mine = _tidy(texts)
    wanted = _tidy(served.answered_alone(seed, prompts, names))
    if mine != wanted:
        for message, guess in _route_guesses(seed, prompts, names, wanted):
            expect(mine != guess, f"{call}: {message}")
        i = next(i for i, (a, b) in enumerate(zip(mine, wanted, strict=True)) if a != b)
        both = f"yours {mine[i][:40]!r}, alone {wanted[i][:40]!r}"
        hint = "is it in eval mode, greedy, padded on the left, with the mask?"
        _expect_length(mine[i], wanted[i], call)
        expect(False, f"{call}: answer {i} is not what {names[i]} gives alone: {both}; {hint}")
    n, hint = got["batch"], "put them all into one batch: generate takes adapter_names="
    slow = "one prompt at a time" if n == 1 else f"at most {n} prompts at a time"
    expect(n >= len(prompts), f"{call} answers {slow}; {hint}")
    active = ", ".join(got["active"])
    hint = "with adapter_names= nothing has to be switched"
    expect(got["active"] == ["home"], f"{call} leaves {active} active, it was home; {hint}")


def _tidy(texts):
    return [" ".join(text.split()) for text in texts]


def _expect_length(mine, wanted, call):
    limit = f"ask for max_new_tokens={probe.NEW_TOKENS}"
    early = wanted.startswith(mine) and mine != ""
    expect(not early, f"{call}: an answer stops early; {limit}")
    cut = len(wanted.split()) == probe.NEW_TOKENS  # another one has ended by itself
    expect(not (cut and mine.startswith(wanted)), f"{call}: an answer goes on; {limit}")


def _route_guesses(seed, prompts, names, wanted):
    """`(message, texts)` of the misconceptions, computed one after another."""
    whole = _tidy(f"{p} {w}" for p, w in zip(prompts, wanted, strict=True))
    yield "the prompts are part of the answers: cut the first n tokens off", whole
    by_name = sorted(range(len(names)), key=lambda i: names[i])
    yield "the answers are in another order than the prompts", [wanted[i] for i in by_name]
    for name in probe.ADAPTERS:
        told = _tidy(served.answered_alone(seed, prompts, (name,) * len(names)))
        yield f"{name} answered all of them: pass adapter_names= to generate", told
    base = _tidy(served.answered_alone(seed, prompts, ("__base__",) * len(names)))
    yield "the base model answered all of them, without any adapter", base
    hint = "the answer continues the last token, so pad on the left"
    together = served.answered_together
    yield f"padded on the right; {hint}", _tidy(together(seed, prompts, names, "right", True))
    hint = "pass attention_mask to generate"
    yield (
        f"the padding is read as text; {hint}",
        _tidy(together(seed, prompts, names, "left", False)),
    )
    hint = "padding_side='left', and the attention mask goes to generate too"
    told = _tidy(together(seed, prompts, names, "right", False))
    yield f"padded on the right, and the padding is read as text; {hint}", told


@exercise("6.6", points=2)
def divergence(kl_divergence):
    """mean per token of KL(p||q) in nats, for any leading shape, and for logits of any size"""
    rng = generator()
    for shape in ((9, 13), (2, 5, 13)):
        p, q = (randn(*shape, rng=rng) * 2 for _ in range(2))
        call = f"kl_divergence of logits of shape {tuple(shape)}"
        got = observe(kl_divergence, p, q)
        wanted = guesses.kl(p, q).mean().item()
        expect_number(got, wanted, call, guesses.divergences(p, q), tol=1e-3)
    p = randn(64, 13, rng=rng) * 2
    q = p + 2e-2 * randn(64, 13, rng=rng)
    call = "kl_divergence of two that hardly differ"
    wanted = guesses.kl(p, q).mean().item()
    expect_number(observe(kl_divergence, p, q), wanted, call, guesses.divergences(p, q), tol=5e-3)
    same = observe(kl_divergence, p, p)
    zero = isinstance(same, float | int) and abs(same) < 1e-5
    expect(zero, f"kl_divergence(p, p) gave {same!r}, wanted 0")
    for scale in (300.0, 1e4):
        p, q = (randn(9, 13, rng=rng) * scale for _ in range(2))
        call = f"kl_divergence of logits near {scale:g}"
        got = observe(kl_divergence, p, q)
        hint = "exp of them overflows or a probability is 0: use log_softmax"
        finite = isinstance(got, float) and math.isfinite(got)
        expect(finite, f"{call} gave {got!r}; {hint}")
        expect_number(got, guesses.kl(p, q).mean().item(), f"{call} ({hint})", tol=1e-3)


@exercise("6.7", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "06")
