"""Checks of lab 6. The reference is PEFT, or the sum of the updates written out."""

import math

import torch

from labkit.checks.compare import expect_close, expect_number, randn
from labkit.checks.quiz import judge
from labkit.grading.contract import exercise, expect, generator, observe
from labkit.probes import lab06 as probe

BLOCK = 64


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


def _merge_guesses(W, update, r, alpha):
    """What misconceptions about `W + (alpha / r) B A` give; `update` is the right one."""
    return {
        "alpha is not divided by r": W + r * update,
        "the scaling alpha / r is missing": W + update * r / alpha,
        "the scaling is r / alpha, upside down": W + update * (r / alpha) ** 2,
        "alpha is divided by sqrt(r): that is rank-stabilised LoRA": W + update * math.sqrt(r),
        "the update is missing": W,
        "this is the update alone: add it to W": update,
        "the update is taken away: a merge adds it": W - update,
    }


@exercise("6.1", points=2)
def merges(merged_weight):
    """equals PEFT's merge_and_unload; in bf16 it is rounded once, at the end; W stays"""
    rng, r, alpha = generator(), 3, 12
    A, B = _factors(64, 96, r, rng)
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        W = (randn(64, 96, rng=rng) * 4).to(dtype)
        call = f"merged_weight with W in {kind}, A and B in float32"
        got, told, after = observe(probe.merged, merged_weight, W, A, B, alpha)
        guesses = _merge_guesses(W.float(), alpha / r * B @ A, r, alpha)
        wanted = _peft_merged(W, A, B, alpha)
        rounding = 1e-4 if dtype == torch.float32 else 1e-2
        expect_close(got, wanted, call, guesses, tol=rounding)
        expect(
            torch.equal(after, W), f"{call} changed W itself; the next adapter needs it as it was"
        )
        hint = "give back W's dtype: .to(W.dtype)"
        expect(got.dtype == dtype, f"{call} is in {told.removeprefix('torch.')}; {hint}")
    differs = (got != wanted).double().mean().item()
    hint = "add the two in fp32, and cast the sum once"
    told = f"{call}: {differs:.0%} of the numbers are rounded otherwise than fp32 rounded once"
    expect(differs < 0.01, f"{told}; {hint}")


def _quantized(shape, rng):
    """Codes, absmax, codebook and the dequantised matrix, for a random codebook of 16 values."""
    n = math.prod(shape)
    inner = torch.rand(14, generator=rng) * 1.8 - 0.9
    codebook = torch.cat([torch.tensor([-1.0, 1.0]), inner]).sort().values
    blocks = randn(math.ceil(n / BLOCK), BLOCK, rng=rng) * 0.1
    absmax = blocks.abs().amax(1) * (1 + torch.rand(len(blocks), generator=rng))
    return _nearest(blocks, absmax, codebook).flatten()[:n], absmax, codebook


def _nearest(blocks, absmax, codebook):
    return (blocks[..., None] / absmax[:, None, None] - codebook).abs().argmin(-1).byte()


def _blocks(flat):
    """Numbers in rows of 64, the last one filled with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)


def _quantized_guesses(W4, absmax, codebook, update, shape, r, alpha):
    n, values = len(W4), codebook[W4.long()]
    scales = absmax.repeat_interleave(BLOCK)[:n]
    base = (values * scales).reshape(shape)
    added = _blocks((base + update).flatten())
    tiled = absmax.repeat(BLOCK)[:n]
    again = codebook[_nearest(added, absmax, codebook).long()] * absmax[:, None]
    top = added.abs().amax(1)
    anew = codebook[_nearest(added, top, codebook).long()] * top[:, None]
    flat = update.flatten()
    return _merge_guesses(base, update, r, alpha) | {
        "the sum was quantised again, and the update is lost": again.flatten()[:n].reshape(shape),
        "the sum was quantised again, with a new absmax": anew.flatten()[:n].reshape(shape),
        "the sum is rounded to bf16; add in fp32 and stay there": (base + update).bfloat16(),
        "the sum is rounded to fp16; add in fp32 and stay there": (base + update).half(),
        "absmax scales the update too": ((values + flat) * scales).reshape(shape),
        "absmax is missing: codebook values lie in [-1, 1]": values.reshape(shape) + update,
        "the codes are taken for numbers; look them up in codebook": (W4 * scales).reshape(shape)
        + update,
        "absmax belongs to blocks of 64 neighbours: repeat_interleave, not repeat": (
            values * tiled
        ).reshape(shape)
        + update,
        "the numbers are laid out by columns; W is stored row by row": (values * scales)
        .reshape(shape[1], shape[0])
        .T
        + update,
    }


@exercise("6.2", points=3)
def merges_quantized(merge_quantized):
    """dequantises block by block, adds in fp32, and the update survives"""
    rng, r, alpha = generator(), 3, 12
    for shape in ((24, 40), (7, 50)):
        W4, absmax, codebook = _quantized(shape, rng)
        A, B = _factors(*shape, r, rng)
        B = B * 2e-4  # an update far below the grid's step, as real ones are
        update = alpha / r * B @ A
        call = f"merge_quantized for shape {shape}"
        args = (W4, absmax, codebook, A, B, alpha, shape)
        got, kind = observe(probe.merged_quantized, merge_quantized, *args)
        guesses = _quantized_guesses(W4, absmax, codebook, update, shape, r, alpha)
        base = guesses["the update is missing"]
        expect_close(got, base + update, call, guesses, tol=2e-5)
        hint = "leave the result in fp32: in 16 bits part of the update is lost"
        expect(got.dtype == torch.float32, f"{call} is in {kind.removeprefix('torch.')}; {hint}")


def _pair(got, call):
    """A and B of what a combination returns."""
    pair = isinstance(got, list) and len(got) == 2
    expect(pair, f"{call} must return the pair (A, B)")
    for name, part in zip("AB", got, strict=True):
        matrix = isinstance(part, torch.Tensor) and part.dim() == 2
        expect(matrix, f"{call}: {name} must be a matrix")
    return got


def _summed(adapters, weights):
    """The wanted update: the weighted sum of the single ones."""
    return sum(w * B @ A for (A, B), w in zip(adapters, weights, strict=True))


def _crossed(adapters, weights_A, weights_B):
    """The product of weighted sums of the factors, cross terms included."""
    A = sum(w * A for (A, _), w in zip(adapters, weights_A, strict=True))
    B = sum(w * B for (_, B), w in zip(adapters, weights_B, strict=True))
    return B @ A


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
        _expect_linear(combine_linear, adapters, weights)
    wanted = _summed(adapters, weights)
    roots = [math.sqrt(w) for w in weights]
    off = (_crossed(adapters, roots, roots) - wanted).norm() / wanted.norm()
    return f"cat is exact to 1e-5; linear misses the sum of 3 random updates by {off:.0%} of it"


def _expect_cat(combine_cat, adapters, weights):
    ranks = [len(A) for A, _ in adapters]
    call = f"combine_cat of ranks {ranks} with weights {weights}"
    A, B = _pair(observe(combine_cat, adapters, weights), call)
    hint = "stack the A's as rows and the B's as columns"
    told = f"{call} gave A {tuple(A.shape)} and B {tuple(B.shape)}"
    total = sum(ranks)
    right = A.shape == (total, 40) and B.shape == (24, total)
    expect(right, f"{told}, wanted {(total, 40)} and {(24, total)}; {hint}")
    count, ones = len(weights), [1.0] * len(weights)
    guesses = {
        "both factors carry the weight, so the product has its square": _summed(
            adapters, [w * w for w in weights]
        ),
        "the weights are not used": _summed(adapters, ones),
        "divided by the number of adapters; the weights say it all": _summed(
            adapters, [w / count for w in weights]
        ),
        "the weights are normalised; take them as they are": _summed(
            adapters, [w / sum(weights) for w in weights]
        ),
        "both factors carry the sign of the weight, so a minus is lost": _summed(
            adapters, [abs(w) for w in weights]
        ),
        "the weights are in another order than the adapters": _summed(adapters, weights[::-1]),
    }
    hint = "a weight may be negative: no square root of it"
    expect(torch.isfinite(A).all() and torch.isfinite(B).all(), f"{call} holds NaN; {hint}")
    expect_close(B @ A, _summed(adapters, weights), f"B @ A of {call}", guesses, tol=1e-5)


def _expect_linear(combine_linear, adapters, weights):
    r, call = len(adapters[0][0]), f"combine_linear with weights {weights}"
    A, B = _pair(observe(combine_linear, adapters, weights), call)
    hint = "linear adds A to A and B to B, so the rank stays"
    told = f"{call} gave A {tuple(A.shape)} and B {tuple(B.shape)}"
    right = A.shape == (r, 40) and B.shape == (24, r)
    expect(right, f"{told}, wanted {(r, 40)} and {(24, r)}; {hint}")
    roots, ones = [math.sqrt(w) for w in weights], [1.0] * len(weights)
    mean = [math.sqrt(w) / len(weights) for w in weights]
    guesses = {
        "each factor carries w, so a term has w squared: give each sqrt(w)": _crossed(
            adapters, weights, weights
        ),
        "A alone is weighted: give each factor sqrt(w)": _crossed(adapters, weights, ones),
        "B alone is weighted: give each factor sqrt(w)": _crossed(adapters, ones, weights),
        "the weights are not used": _crossed(adapters, ones, ones),
        "divided by the number of adapters; the weights say it all": _crossed(adapters, mean, mean),
    }
    expect_close(B @ A, _crossed(adapters, roots, roots), f"B @ A of {call}", guesses)


def _states(n, rng):
    names = ("layers.0.A", "layers.0.B", "norm")
    shapes = ((2, 5), (4, 2), (3,))
    return [{k: randn(*s, rng=rng) for k, s in zip(names, shapes, strict=True)} for _ in range(n)]


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
    for which, change in ((1, "lacks"), (0, "lacks"), (2, "lacks")):
        states = _states(3, rng)
        states[which].pop("norm")
        told = observe(probe.soup_error, soup, states)
        expect(told is not None, f"soup says nothing when state {which} {change} the key norm")
        expect(
            "norm" in told,
            f"when a state {change} a key, the error is {told!r}: name the key, norm",
        )


def _expect_soup(got, states, weights, call):
    expect(isinstance(got, dict), f"{call} must return a dict of name to tensor")
    keys = set(states[0])
    expect(set(got) == keys, f"{call} has the keys {sorted(got)}, wanted {sorted(keys)}")
    n = len(states)
    parts = weights or [1 / n] * n

    def mixed(name, factors):
        return sum(f * s[name] for f, s in zip(factors, states, strict=True))

    for name in states[0]:
        guesses = {
            "this is the sum; divide it by the number of states": mixed(name, [1.0] * n),
            "divided by the number of states; the weights sum to 1 already": mixed(
                name, [w / n for w in parts]
            ),
            "the weights are not used": mixed(name, [1 / n] * n),
            "the weights are in another order than the states": mixed(name, parts[::-1]),
            "this is the first state alone": states[0][name],
            "this is the last state alone": states[-1][name],
        }
        expect_close(got[name], mixed(name, parts), f"{call}: {name}", guesses)


@exercise("6.5", points=4)
def serves(swap_cost, route):
    """a swap makes the adapter active and costs its bytes; a mixed batch answers as one by one"""
    rng = generator()
    seed = int(torch.randint(1, 10**6, (), generator=rng))
    for name in ("home", "tickets", "homely"):
        _expect_swap(swap_cost, seed, name)
    lengths, names = (5, 14, 3, 9, 7, 2), ("home", "tickets", "homely", "tickets", "home", "homely")
    prompts = tuple(probe.words(rng, n) for n in lengths)
    got = observe(probe.routed, route, seed, list(prompts), list(names))
    _expect_routed(got, seed, prompts, names)


def _expect_swap(swap_cost, seed, name):
    call = f'swap_cost(model, "{name}")'
    got = observe(probe.swapped, swap_cost, seed, name)
    cost, sizes = got["cost"], probe.adapter_bytes(seed)
    shaped = isinstance(cost, dict) and {"seconds", "bytes"} <= set(cost)
    expect(shaped, f'{call} must return {{"seconds": ..., "bytes": ...}}')
    active = ", ".join(got["active"])
    hint = "switch with model.set_adapter(adapter_name)"
    expect(got["active"] == [name], f"after {call} the active adapter is {active}; {hint}")
    both = sizes["bytes"]["home"] + sizes["bytes"]["homely"]
    guesses = {
        "this counts numbers, not bytes": sizes["numbers"][name],
        "this takes 4 bytes a number; ask each tensor: nbytes": 4 * sizes["numbers"][name],
        "these are the bytes of all adapters": sum(sizes["bytes"].values()),
        "these are the bytes of the whole model": sizes["model"],
        "these are the bytes of the base model; it stays where it is": sizes["base"],
        "homely counts as home too: look for .home. with its dots": both,
        "these are the bytes of A alone": sizes["half"][name],
        "these are the bytes of B alone": sizes["bytes"][name] - sizes["half"][name],
    }
    expect_number(cost["bytes"], sizes["bytes"][name], f'{call}["bytes"]', guesses)
    seconds = cost["seconds"]
    good = type(seconds) in (int, float) and 0 < seconds < 60
    expect(good, f'{call}["seconds"] is {seconds!r}, wanted the positive time of the switch')


def _expect_routed(got, seed, prompts, names):
    texts, call = got["texts"], f"route with {len(prompts)} prompts"
    listed = isinstance(texts, list) and all(isinstance(t, str) for t in texts)
    expect(listed, f"{call} must return a list of texts")
    expect(len(texts) == len(prompts), f"{call} gave {len(texts)} texts, wanted {len(prompts)}")
    mine = [" ".join(text.split()) for text in texts]
    wanted = _tidy(probe.answered_alone(seed, prompts, names))
    if mine != wanted:
        for message, guess in _route_guesses(seed, prompts, names, wanted):
            expect(mine != guess, f"{call}: {message}")
        i = next(i for i, (a, b) in enumerate(zip(mine, wanted, strict=True)) if a != b)
        both = f"yours {mine[i][:40]!r}, alone {wanted[i][:40]!r}"
        hint = "is it in eval mode, greedy, padded on the left, with the mask?"
        _expect_length(mine[i], wanted[i], call)
        expect(False, f"{call}: answer {i} is not what {names[i]} gives alone: {both}; {hint}")
    hint = "put them into one batch: generate takes adapter_names="
    expect(got["batch"] > 1, f"{call} answers one prompt at a time; {hint}")


def _tidy(texts):
    return [" ".join(text.split()) for text in texts]


def _expect_length(mine, wanted, call):
    limit = f"ask for max_new_tokens={probe.NEW_TOKENS}"
    early = wanted.startswith(mine) and mine != ""
    expect(not early, f"{call}: an answer stops early; {limit}")
    expect(not mine.startswith(wanted) or not wanted, f"{call}: an answer goes on; {limit}")


def _route_guesses(seed, prompts, names, wanted):
    """`(message, texts)` of the misconceptions, computed one after another."""
    whole = [f"{p} {w}" for p, w in zip(prompts, wanted, strict=True)]
    yield "the prompts are part of the answers: cut the first n tokens off", whole
    by_name = sorted(range(len(names)), key=lambda i: names[i])
    yield "the answers are in another order than the prompts", [wanted[i] for i in by_name]
    for name in probe.ADAPTERS:
        told = _tidy(probe.answered_alone(seed, prompts, (name,) * len(names)))
        yield f"{name} answered all of them: pass adapter_names= to generate", told
    base = _tidy(probe.answered_alone(seed, prompts, ("__base__",) * len(names)))
    yield "the base model answered all of them, without any adapter", base
    hint = "the answer continues the last token, so pad on the left"
    together = probe.answered_together
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
        expect_number(got, _kl(p, q).mean().item(), call, _kl_guesses(p, q), tol=1e-3)
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
        expect_number(got, _kl(p, q).mean().item(), f"{call} ({hint})", tol=1e-3)


def _kl(p, q):
    """KL(p||q) of each token, in nats."""
    log_p, log_q = (x.double().log_softmax(-1) for x in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _kl_guesses(p, q):
    each, back = _kl(p, q), _kl(q, p)
    n, vocab = each.numel(), p.shape[-1]
    mixed = 0.5 * (p.double().softmax(-1) + q.double().softmax(-1))
    log_p = p.double().log_softmax(-1)
    cross = -(log_p.exp() * q.double().log_softmax(-1)).sum(-1).mean().item()
    halves = 0.5 * (_kl(p, mixed.log()) + _kl(q, mixed.log())).mean().item()
    rows = {"this is KL(q||p); p is the first argument": back.mean().item()}
    if p.dim() == 3:
        rows["divided by the number of sequences, not of tokens"] = each.sum().item() / len(p)
    return rows | {
        "this is the sum over tokens; take the mean": each.sum().item(),
        "averaged over the vocabulary too: sum over it, then take the mean": each.mean().item()
        / vocab,
        "this is in bits; nats are wanted": each.mean().item() / math.log(2),
        "the sign is turned round": -each.mean().item(),
        "this is KL(q||p) with its sign turned round": -back.mean().item(),
        "this is the cross-entropy; the entropy of p is missing": cross,
        "this is symmetric; KL(p||q) alone is wanted": (0.5 * (each + back)).mean().item(),
        "this is the Jensen-Shannon divergence": halves,
        "this is the largest token's, not the mean": each.max().item(),
        "softmax of the logits is missing": (
            (p.double() * (p.double() - q.double())).sum() / n
        ).item(),
    }


@exercise("6.7", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "06")
