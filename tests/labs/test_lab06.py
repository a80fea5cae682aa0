"""Lab 6's checks: stubs, wrong answers that learners give, right answers written differently."""

import math

import answers_arrives
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from labkit.checks import lab06 as check
from labkit.probes import tiny

# --- right answers -------------------------------------------------------------------------


def merged_weight(W, A, B, alpha):
    return (W.float() + alpha / len(A) * (B.float() @ A.float())).to(W.dtype)


def merged_double(W, A, B, alpha):
    update = torch.einsum("or,ri->oi", B.double(), A.double()) * alpha / A.shape[0]
    return torch.add(W.double(), update).type_as(W)


def merged_promoted(W, A, B, alpha):
    return torch.addmm(W.to(A.dtype), B, A, alpha=alpha / A.size(0)).to(dtype=W.dtype)


def merged_in_place(W, A, B, alpha):
    out = W.clone()
    out += alpha / len(A) * B @ A  # what PEFT does: the addition promotes to fp32
    return out


def merged_by_transposes(W, A, B, alpha):
    """(AᵀBᵀ)ᵀ is BA."""
    return (W.float() + (A.T @ B.T).T * (alpha / A.shape[0])).to(W.dtype)


def merged_as_a_loop(W, A, B, alpha):
    """The sum of r outer products, as LoRA is sometimes introduced."""
    total = W.detach().clone().to(torch.float64)
    for a, b in zip(A, B.T, strict=True):
        total += torch.outer(b, a) * alpha / A.shape[0]
    return torch.nn.Parameter(total.to(W.dtype), requires_grad=False)


def merge_quantized(W4, absmax, codebook, A, B, alpha, shape):
    scales = absmax.repeat_interleave(64)[: len(W4)]
    W = (codebook[W4.long()] * scales).reshape(shape)
    return W + alpha / len(A) * B @ A


def quantized_padded(W4, absmax, codebook, A, B, alpha, shape):
    values = codebook[W4.int()]
    padded = torch.zeros(len(absmax) * 64)
    padded[: values.numel()] = values
    W = (padded.view(-1, 64) * absmax[:, None]).flatten()[: values.numel()].view(*shape)
    return W.add(B @ A, alpha=alpha / A.shape[0])


def quantized_by_index(W4, absmax, codebook, A, B, alpha, shape):
    places = torch.arange(W4.numel()) // 64
    W = torch.take(codebook, W4.to(torch.int64)) * absmax[places]
    return W.view(shape).float() + (B.float() @ A.float()) * (alpha / A.shape[0])


def quantized_by_select(W4, absmax, codebook, A, B, alpha, shape):
    flat = codebook.index_select(0, W4.long()).double()
    flat = flat * absmax.double().repeat_interleave(64).narrow(0, 0, len(W4))
    update = (alpha * B.double() @ A.double()) / A.shape[0]
    return (flat.view(shape) + update).float()


def quantized_in_pieces(W4, absmax, codebook, A, B, alpha, shape):
    runs = [codebook[c.long()] * m for c, m in zip(W4.split(64), absmax, strict=True)]
    return torch.cat(runs).reshape(shape) + (B @ A) * (alpha / len(A))


def quantized_to_size(W4, absmax, codebook, A, B, alpha, shape):
    """The shape is what `W.shape` is."""
    scales = absmax.repeat_interleave(64)[: shape.numel()]
    return (codebook[W4.long()] * scales).view(shape).addmm(B, A, alpha=alpha / len(A))


def combine_linear(adapters, weights):
    A = sum(math.sqrt(w) * A for (A, _), w in zip(adapters, weights, strict=True))
    B = sum(math.sqrt(w) * B for (_, B), w in zip(adapters, weights, strict=True))
    return A, B


def linear_stacked(adapters, weights):
    roots = torch.tensor(weights).sqrt()
    stack = [torch.stack(part) for part in zip(*adapters, strict=True)]
    return [torch.einsum("n,n...->...", roots, s) for s in stack]


def combine_cat(adapters, weights):
    A = torch.cat([w * A for (A, _), w in zip(adapters, weights, strict=True)])
    return A, torch.cat([B for _, B in adapters], dim=1)


def cat_on_b(adapters, weights):
    return (
        torch.vstack([A for A, _ in adapters]),
        torch.hstack([B * w for (_, B), w in zip(adapters, weights, strict=True)]),
    )


def cat_by_roots(adapters, weights):
    pairs = list(zip(adapters, weights, strict=True))
    A = torch.cat([A * math.sqrt(abs(w)) for (A, _), w in pairs], 0)
    return [A, torch.cat([B * math.copysign(math.sqrt(abs(w)), w) for (_, B), w in pairs], -1)]


def cat_into_zeros(adapters, weights):
    """Filled block by block, in double precision."""
    total = sum(A.shape[0] for A, _ in adapters)
    A = torch.zeros(total, adapters[0][0].shape[1], dtype=torch.float64)
    B = torch.zeros(adapters[0][1].shape[0], total, dtype=torch.float64)
    at = 0
    for (a, b), w in zip(adapters, weights, strict=True):
        A[at : at + len(a)], B[:, at : at + len(a)] = a, w * b
        at += len(a)
    return A, B


def cat_in_two_dtypes(adapters, weights):
    """The weights make A double; B stays float32."""
    A, B = cat_into_zeros(adapters, weights)
    return A, B.float()


def linear_in_two_dtypes(adapters, weights):
    A, B = combine_linear(adapters, weights)
    return A, B.double()


def linear_in_loop(adapters, weights):
    A, B = (torch.zeros_like(part) for part in adapters[0])
    for (a, b), w in zip(adapters, weights, strict=True):
        A += w**0.5 * a
        B += w**0.5 * b
    return A, B


def soup(states, weights=None):
    weights = weights or [1 / len(states)] * len(states)
    for state in states[1:]:
        if wrong := state.keys() ^ states[0].keys():
            raise KeyError(f"not in all states: {', '.join(wrong)}")
    pairs = list(zip(states, weights, strict=True))
    return {k: sum(w * s[k] for s, w in pairs) for k in states[0]}


def soup_normalised(states, weights=None):
    """Weights that are normalised first: the same for weights that sum to 1."""
    weights = torch.ones(len(states)) if weights is None else torch.tensor(weights)
    weights = weights / weights.sum()
    every = set().union(*states)
    for key in every:
        for state in states:
            assert key in state, key
    out = {}
    for key in every:
        stacked = torch.stack([s[key] for s in states])
        out[key] = torch.tensordot(weights, stacked, dims=1)
    return out


def soup_running(states, weights=None):
    names = sorted(states[0])
    for i, state in enumerate(states):
        if sorted(state) != names:
            raise ValueError(f"state {i} has {sorted(state)}, state 0 has {names}")
    out = {k: torch.zeros_like(v) for k, v in states[0].items()}
    for i, state in enumerate(states):
        for k in out:
            out[k] += state[k] * (1 / len(states) if weights is None else weights[i])
    return out


def soup_by_mean(states, weights=None):
    """The mean where no weights are given."""
    for key in {key for state in states for key in state}:
        for i, state in enumerate(states):
            if key not in state:
                raise ValueError(f"state {i} has no {key!r}")
    if weights is None:
        return {k: torch.stack([s[k] for s in states]).mean(dim=0) for k in states[-1]}
    return {
        k: torch.stack([s[k] * w for s, w in zip(states, weights, strict=True)]).sum(0)
        for k in states[0]
    }


def kl_divergence(logits_p, logits_q):
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


def kl_functional(logits_p, logits_q):
    p, q = (F.log_softmax(x.flatten(0, -2).double(), dim=-1) for x in (logits_p, logits_q))
    return float(F.kl_div(q, p, log_target=True, reduction="batchmean"))


def kl_by_logsumexp(logits_p, logits_q):
    log_p = logits_p - torch.logsumexp(logits_p, -1, keepdim=True)
    log_q = logits_q - torch.logsumexp(logits_q, -1, keepdim=True)
    each = torch.softmax(logits_p, -1).mul(log_p - log_q).sum(dim=-1)
    return each.sum().item() / each.numel()


def kl_as_xlogy(logits_p, logits_q):
    """F.kl_div takes a target that is a probability of zero; its logarithm is never asked for."""
    q, p = F.log_softmax(logits_q, dim=-1), F.softmax(logits_p, dim=-1)
    return F.kl_div(q, p, reduction="none").sum(-1).mean().item()


def kl_from_entropies(logits_p, logits_q):
    """Cross-entropy less entropy."""
    p, q = (x.double().reshape(-1, x.shape[-1]) for x in (logits_p, logits_q))
    target = p.softmax(1)
    return (F.cross_entropy(q, target) - F.cross_entropy(p, target)).item()


def quiz():
    return {"q1": "a", "q2": "d", "q3": "c"}


RIGHT = [
    *[(check.merges, f) for f in (merged_weight, merged_double, merged_promoted, merged_in_place)],
    *[(check.merges, f) for f in (merged_by_transposes, merged_as_a_loop)],
    *[(check.merges_quantized, f) for f in (merge_quantized, quantized_padded, quantized_by_index)],
    *[(check.merges_quantized, f) for f in (quantized_by_select, quantized_in_pieces)],
    (check.merges_quantized, quantized_to_size),
    (check.combines, combine_linear, combine_cat),
    (check.combines, linear_stacked, cat_on_b),
    (check.combines, combine_linear, cat_by_roots),
    (check.combines, linear_in_loop, cat_into_zeros),
    (check.combines, linear_in_two_dtypes, cat_in_two_dtypes),
    *[(check.mixes, f) for f in (soup, soup_normalised, soup_running, soup_by_mean)],
    *[(check.survives, f) for f in answers_arrives.RIGHT],
    *[(check.divergence, f) for f in (kl_divergence, kl_functional, kl_by_logsumexp)],
    *[(check.divergence, f) for f in (kl_as_xlogy, kl_from_entropies)],
    (check.quiz, quiz),
    (check.quiz, lambda: {"q3": " C", "q1": "(a)", "q2": "d "}),
]


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(
    "case",
    [
        (check.merges, merged_weight),
        (check.merges_quantized, merge_quantized),
        (check.combines, combine_linear, combine_cat),
        (check.divergence, kl_divergence),
        (check.divergence, kl_by_logsumexp),
        *[(check.survives, f) for f in answers_arrives.RIGHT],
    ],
    ids=lambda c: c[0].__name__,
)
def test_right_answers_pass_with_any_seed(case, seed, accepts, monkeypatch):
    from labkit import contract

    monkeypatch.setattr(contract.session, "seed", seed)
    accepts(*case)


# --- wrong answers, each with a word of the message that names what the learner thought -------


def _scaled(scale, keep=1.0):
    def wrong(W, A, B, alpha):
        return (keep * W.float() + scale(alpha, len(A)) * B @ A).to(W.dtype)

    return wrong


def _in_w_dtype(W, A, B, alpha):
    return W + (alpha / len(A) * B @ A).to(W.dtype)


def _all_in_w_dtype(W, A, B, alpha):
    return W + alpha / len(A) * B.to(W.dtype) @ A.to(W.dtype)


def _in_float_of_w(W, A, B, alpha):
    """In fp32 `W.float()` is W itself, so += writes into it."""
    total = W.float()
    total += alpha / len(A) * B @ A
    return total.to(W.dtype)


def _scaled_twice(W, A, B, alpha):
    s = alpha / len(A)
    return (W.float() + (s * B) @ (s * A)).to(W.dtype)


def _on_w(W, A, B, alpha):
    W += alpha / len(A) * B @ A
    return W


def _scales_b(W, A, B, alpha):
    B *= alpha / len(A)
    return (W.float() + B @ A).to(W.dtype)


def _last_product(W, A, B, alpha):
    for a, b in zip(A, B.T, strict=True):
        total = W.float() + alpha / len(A) * torch.outer(b, a)
    return total.to(W.dtype)


def _interpolated(W, A, B, alpha):
    share = alpha / len(A)
    return ((1 - share) * W.float() + share * B @ A).to(W.dtype)


def _factors_cast(W, A, B, alpha):
    """The sum is in fp32, the product in 16 bits."""
    update = B.to(W.dtype) @ A.to(W.dtype)
    return (W.float() + alpha / len(A) * update.float()).to(W.dtype)


def _without_the_last(W, A, B, alpha):
    return (W.float() + alpha / len(A) * B[:, :-1] @ A[:-1]).to(W.dtype)


MERGES = [
    (_scaled(lambda alpha, r: math.sqrt(alpha / r)), "the factor is sqrt(alpha / r)"),
    (_scaled(lambda alpha, r: round(alpha / r)), "alpha / r is rounded to a whole number"),
    (_scaled(lambda alpha, r: alpha / 16), "divided by 16, whatever r is"),
    (_interpolated, "in it W comes -3.6 times, wanted 1"),
    (_without_the_last, "the last of the r products b a is left out"),
    (lambda W, A, B, alpha: merged_weight(W, A, B, 16), "in it B @ A comes 3.2 times"),
    (lambda W, A, B, alpha: merged_weight(W, A, B, alpha) / 2, "half of the sum"),
    (_factors_cast, "the factors are cast first"),
    (lambda W, A, B, alpha: W + (alpha / len(A) * B @ A).to(W.dtype), "cast before the sum"),
    (lambda W, A, B, alpha: W + alpha / len(A) * A @ B, "the update is B @ A"),
    (
        lambda W, A, B, alpha: (alpha / len(A) * (W.float() + B @ A)).to(W.dtype),
        "the factor belongs to the update alone",
    ),
    (_last_product, "only the last of the r products"),
    (lambda W, A, B, alpha: merged_weight(W, A, B, alpha).bfloat16(), "give back W's dtype"),
    (lambda W, A, B, alpha: merged_weight(W, A, B, alpha).float().numpy(), "a NumPy array"),
    (_scales_b, "changes its input B"),
    (_scaled(lambda alpha, r: alpha), "not divided by r"),
    (_scaled(lambda alpha, r: 1.0), "scaling alpha / r is missing"),
    (_scaled(lambda alpha, r: r / alpha), "upside down"),
    (_scaled(lambda alpha, r: alpha / r**0.5), "rank-stabilised"),
    (_scaled(lambda alpha, r: 0.0), "update is missing"),
    (_scaled(lambda alpha, r: alpha / r, keep=0.0), "update alone"),
    (_scaled(lambda alpha, r: -alpha / r), "taken away"),
    (_scaled(lambda alpha, r: alpha // r), "drops the fraction"),
    (_scaled_twice, "comes twice"),
    (lambda W, A, B, alpha: _scaled(lambda a, r: a / A.shape[1])(W, A, B, alpha), "by d_in"),
    (lambda W, A, B, alpha: _scaled(lambda a, r: a / B.shape[0])(W, A, B, alpha), "by d_out"),
    (lambda W, A, B, alpha: W + alpha / len(A) * A.T @ B.T, "and so is its update, B @ A"),
    (lambda W, A, B, alpha: merged_weight(W, A, B, alpha).tolist(), "tensor"),
    (_in_float_of_w, "changes its input W in place"),
    (lambda W, A, B, alpha: W.float() + alpha / len(A) * B @ A, "W's dtype"),
    (lambda W, A, B, alpha: W + alpha / len(A) * A @ B, ("shapes", "RuntimeError")),
    (_in_w_dtype, "differ from the fp32 sum, rounded once"),
    (_all_in_w_dtype, ("differ from the fp32 sum, rounded once", "RuntimeError")),
    (_on_w, "changes its input W in place"),
    (lambda W, A, B, alpha: None, "None"),
    (lambda W, A, B, alpha: merged_weight(W, A, B, alpha).T, "transposed"),
]


def _dequantized(W4, absmax, codebook, shape):
    return (codebook[W4.long()] * absmax.repeat_interleave(64)[: len(W4)]).reshape(shape)


def _merge_then(change):
    def wrong(W4, absmax, codebook, A, B, alpha, shape):
        W = merge_quantized(W4, absmax, codebook, A, B, alpha, shape)
        return change(W, absmax, codebook)

    return wrong


def _requantize(W, absmax, codebook):
    n = W.numel()
    scales = absmax.repeat_interleave(64)[:n]
    codes = ((W.flatten() / scales)[:, None] - codebook).abs().argmin(-1)
    return (codebook[codes] * scales).reshape(W.shape)


def _requantize_anew(W, absmax, codebook):
    blocks = F.pad(W.flatten(), (0, -W.numel() % 64)).reshape(-1, 64)
    return _requantize(W, blocks.abs().amax(1), codebook)


def _with_base(base, scale=lambda alpha, r: alpha / r):
    def wrong(W4, absmax, codebook, A, B, alpha, shape):
        return base(W4, absmax, codebook, shape) + scale(alpha, len(A)) * B @ A

    return wrong


def _scaled_all(W4, absmax, codebook, A, B, alpha, shape):
    scales = absmax.repeat_interleave(64)[: len(W4)].reshape(shape)
    return (codebook[W4.long()].reshape(shape) + alpha / len(A) * B @ A) * scales


def _into_codes(W4, absmax, codebook, A, B, alpha, shape):
    """The update is added to the codes, where it rounds to nothing."""
    codes = (W4.reshape(shape) + alpha / len(A) * B @ A).round().clamp(0, 15)
    return _dequantized(codes.flatten(), absmax, codebook, shape)


def _sixteen_first(W4, absmax, codebook, A, B, alpha, shape):
    base = _dequantized(W4, absmax, codebook, shape).bfloat16()
    return base.float() + alpha / len(A) * B @ A


def _all_sixteen(W4, absmax, codebook, A, B, alpha, shape):
    base = _dequantized(W4, absmax, codebook, shape).bfloat16()
    return base.float() + (alpha / len(A) * B @ A).bfloat16().float()


def _unpacked(W4, absmax, codebook, A, B, alpha, shape):
    """The codes are taken for two to a byte."""
    codes = torch.stack([W4 >> 4, W4 & 15], dim=-1).flatten()
    return codebook[codes.long()].reshape(shape) + alpha / len(A) * B @ A


def _quantized_scales_b(W4, absmax, codebook, A, B, alpha, shape):
    B *= alpha / len(A)
    return merge_quantized(W4, absmax, codebook, A, B, len(A), shape)


def _codes_in_place(W4, absmax, codebook, A, B, alpha, shape):
    W = merge_quantized(W4, absmax, codebook, A, B, alpha, shape)
    W4.zero_()
    return W


def _base(values, scales):
    """A dequantised matrix of codebook values (of codes) and scales (of absmax)."""
    return _with_base(lambda W4, m, c, s: (values(W4, c) * scales(m)[: len(W4)]).reshape(s))


def _looked_up(W4, codebook):
    return codebook[W4.long()]


def _repeated(absmax):
    return absmax.repeat_interleave(64)


def _in_runs(run):
    """Weight k has the scale run(k, absmax, shape), the last one at most."""

    def base(W4, absmax, codebook, shape):
        k = torch.arange(len(W4))
        at = run(k, absmax, shape).clamp(max=len(absmax) - 1)
        return (codebook[W4.long()] * absmax[at]).reshape(shape)

    return base


def _runs_of_rows(k, absmax, shape):
    """Which run a weight is in if each row begins a new one."""
    return k // shape[1] * math.ceil(shape[1] / 64) + k % shape[1] // 64


def _by_index(run):
    return _with_base(
        lambda W4, m, c, s: (c[W4.long()] * m[run(torch.arange(len(W4)), m, s)]).view(s)
    )


def _last_run_stays_zero(W4, absmax, codebook, shape):
    W = _dequantized(W4, absmax, codebook, shape).flatten()
    W[len(W4) // 64 * 64 :] = 0
    return W.reshape(shape)


def _high_and_low(W4, codebook):
    return codebook[torch.stack([W4 >> 4, W4 & 15], dim=-1).flatten()[: len(W4)].long()]


def _update_in_16_bits(W4, absmax, codebook, A, B, alpha, shape):
    return _dequantized(W4, absmax, codebook, shape) + (alpha / len(A) * B @ A).bfloat16()


def _short_runs(W4, absmax, codebook, A, B, alpha, shape):
    scales = absmax.repeat_interleave(len(W4) // len(absmax))
    scales = F.pad(scales, (0, len(W4) - len(scales)), value=1.0)
    return (codebook[W4.long()] * scales).reshape(shape) + alpha / len(A) * B @ A


def _merged_twice(W4, absmax, codebook, A, B, alpha, shape):
    return merge_quantized(W4, absmax, codebook, A, B, 2 * alpha, shape)


def _codebook_in_16_bits(W4, absmax, codebook, A, B, alpha, shape):
    return merge_quantized(W4, absmax, codebook.bfloat16().float(), A, B, alpha, shape)


def _held_within_absmax(W4, absmax, codebook, A, B, alpha, shape):
    limit = _repeated(absmax)[: len(W4)].reshape(shape)
    return merge_quantized(W4, absmax, codebook, A, B, alpha, shape).clamp(-limit, limit)


QUANTIZED = [
    (_by_index(_runs_of_rows), "runs go on across rows"),
    (_by_index(lambda k, m, s: k // 32), "belongs to absmax[i // 64]"),
    (
        _with_base(lambda W4, m, c, s: c[W4.long()].view(s) * m.view(s[0], -1)),
        "runs go on across rows",
    ),
    (
        _with_base(lambda W4, m, c, s: torch.tensor(c.numpy()[W4] * m.numpy()[W4]).view(s)),
        "belongs to absmax[i // 64]",
    ),
    (_codebook_in_16_bits, "the codebook is rounded to 16 bits"),
    (
        lambda W4, m, c, A, B, alpha, s: _dequantized(W4, m, c, s) + alpha / A.shape[1] * B @ A,
        "divided by d_in",
    ),
    (_held_within_absmax, "the sum is held within absmax"),
    (
        _with_base(lambda W4, m, c, s: (c[W4.long()].view(-1, 64) * m[:, None]).view(s)),
        "the last block may be shorter than 64",
    ),
    (_base(_looked_up, lambda m: _repeated(m**2)), "absmax comes twice"),
    (_with_base(_in_runs(lambda k, m, s: k // math.ceil(len(k) / len(m)))), "shared out evenly"),
    (_with_base(_in_runs(lambda k, m, s: k // s[1])), "weight 40 of the flat W4 takes absmax[1]"),
    (_with_base(_in_runs(lambda k, m, s: k // 32)), "weight 32 of the flat W4 takes absmax[1]"),
    (_with_base(_in_runs(lambda k, m, s: (k + 1) // 64)), "weight 63 of the flat W4"),
    (
        _with_base(_in_runs(lambda k, m, s: k // s[1]), lambda alpha, r: 1.0),
        "weight 40 of the flat W4 takes absmax[1]",
    ),
    (_with_base(_last_run_stays_zero), "those from 320 to 349 are 0: the last run is shorter"),
    (_base(_high_and_low, _repeated), "nothing to unpack"),
    (_base(lambda W4, c: (W4.float() - 8) / 7, _repeated), "the codebook that is given"),
    (_base(lambda W4, c: c.flip(0)[W4.long()], _repeated), "the codebook is read from its end"),
    (_base(lambda W4, c: c.roll(1)[W4.long()], _repeated), "codes begin at 0"),
    (_short_runs, "takes absmax[1], wanted absmax[0]"),
    (_merged_twice, "it is added twice"),
    (_with_base(_dequantized, lambda alpha, r: 3 * alpha / r), "the update is in it 3 times"),
    (_with_base(_dequantized, lambda alpha, r: (alpha / r) ** 2), "comes twice"),
    (_update_in_16_bits, "the numbers of the update are rounded to 16 bits"),
    (_base(_looked_up, lambda m: 1 / _repeated(m)), "absmax divides"),
    (_base(_looked_up, lambda m: m.mean()[None].expand(10**4)), "one absmax is used for all"),
    (_base(lambda W4, c: (W4.float() - 8) / 8, _repeated), "spread evenly"),
    (_with_base(lambda *a: _dequantized(*a).half().float()), "rounded to fp16"),
    (_with_base(lambda W4, m, c, s: c[W4.long()] * _repeated(m)[: len(W4)]), "W4 is flat"),
    (
        _with_base(lambda W4, m, c, s: (c[W4.long()] * _repeated(m)).reshape(s)),
        "the last block may be shorter",
    ),
    (
        _with_base(lambda W4, m, c, s: c[W4.long()].reshape(s) * m[:, None]),
        "each entry of absmax is for 64 neighbours",
    ),
    (_merge_then(lambda W, *_: W.numpy()), "a NumPy array"),
    (_quantized_scales_b, "changes its input B"),
    (_codes_in_place, "changes its input W4"),
    (_merge_then(lambda W, *_: W.to(torch.complex64)), "complex numbers"),
    (_into_codes, "rounded away with the codes"),
    (_sixteen_first, "weights are rounded to 16 bits before the sum"),
    (_all_sixteen, "update and the weights are rounded to 16 bits"),
    (_unpacked, "nothing to unpack"),
    (_merge_then(lambda W, *_: W.double()), "float32"),
    (_with_base(_dequantized, lambda a, r: a // r), "drops the fraction"),
    (_with_base(_dequantized, lambda a, r: -a / r), "taken away"),
    (_merge_then(_requantize), "quantised again"),
    (_merge_then(_requantize_anew), "quantised again"),
    (_merge_then(lambda W, *_: W.bfloat16()), "bf16"),
    (_merge_then(lambda W, *_: W.half()), "fp16"),
    (_merge_then(lambda W, *_: W.flatten()), "shape"),
    (_with_base(_dequantized, lambda a, r: 0.0), "update is missing"),
    (_with_base(_dequantized, lambda a, r: a), "not divided by r"),
    (_with_base(_dequantized, lambda a, r: 1.0), "scaling alpha / r is missing"),
    (_with_base(lambda W4, m, c, s: c[W4.long()].reshape(s)), "absmax is missing"),
    (
        _with_base(lambda W4, m, c, s: (W4 * m.repeat_interleave(64)[: len(W4)]).reshape(s)),
        "look them up",
    ),
    (
        _with_base(lambda W4, m, c, s: (c[W4.long()] * m.repeat(64)[: len(W4)]).reshape(s)),
        "repeat_interleave, not repeat",
    ),
    (
        _with_base(lambda W4, m, c, s: _dequantized(W4, m, c, s[::-1]).T),
        "row by row",
    ),
    (_with_base(lambda W4, m, c, s: c[W4].reshape(s)), "W4.long()"),
    (
        _with_base(lambda W4, m, c, s: (c[W4.long()].reshape(-1, 64) * m[:, None]).reshape(s)),
        "it raised",
    ),
    (_scaled_all, "absmax scales the update"),
]


def _linear(on_a, on_b):
    def wrong(adapters, weights):
        pairs = list(zip(adapters, weights, strict=True))
        return sum(on_a(w) * A for (A, _), w in pairs), sum(on_b(w) * B for (_, B), w in pairs)

    return wrong


def _cat(on_a, on_b):
    def wrong(adapters, weights):
        pairs = list(zip(adapters, weights, strict=True))
        A = torch.cat([on_a(w) * A for (A, _), w in pairs])
        return A, torch.cat([on_b(w) * B for (_, B), w in pairs], dim=1)

    return wrong


def _one(w):
    return 1.0


def _root(w):
    return math.sqrt(abs(w))


def _dense(adapters, weights):
    update = sum(w * B @ A for (A, B), w in zip(adapters, weights, strict=True))
    return update, torch.eye(len(update))


def _apart(adapters, weights):
    return _cat(lambda w: w, _one)(adapters, weights)[0], torch.cat([B for _, B in adapters])


def _reversed_b(adapters, weights):
    A, _ = combine_cat(adapters, weights)
    return A, torch.cat([B for _, B in adapters[::-1]], dim=1)


def _normalised(adapters, weights):
    return combine_cat(adapters, [w / sum(weights) for w in weights])


def _linear_in_place(adapters, weights):
    A, B = adapters[0]
    A *= math.sqrt(weights[0])
    B *= math.sqrt(weights[0])
    for (a, b), w in zip(adapters[1:], weights[1:], strict=True):
        A += math.sqrt(w) * a
        B += math.sqrt(w) * b
    return A, B


def _cat_in_place(adapters, weights):
    for (A, _), w in zip(adapters, weights, strict=True):
        A *= w
    return torch.cat([A for A, _ in adapters]), torch.cat([B for _, B in adapters], dim=1)


def _linear_normalised(adapters, weights):
    return combine_linear(adapters, [w / sum(weights) for w in weights])


def _in_half(adapters, weights):
    """Right to three digits: not exact."""
    return tuple(part.bfloat16().float() for part in combine_cat(adapters, weights))


def _complex_roots(adapters, weights):
    return _cat(lambda w: w**0.5, lambda w: w**0.5)(adapters, weights)


def _without_zeros(adapters, weights):
    pairs = [(A, w * B) for (A, B), w in zip(adapters, weights, strict=True) if w]
    return torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs], 1)


def _without_the_zeros_of_w(adapters, weights):
    """All are stacked, and the weights of the columns are too few."""
    A, B = combine_cat(adapters, [1.0] * len(weights))
    pairs = zip(adapters, weights, strict=True)
    return A, B * torch.cat([torch.full((len(A),), w) for (A, _), w in pairs if w])


def _root_on_B(adapters, weights):
    pairs = zip(adapters, weights, strict=True)
    return sum(A for A, _ in adapters), sum(math.sqrt(w) * B for (_, B), w in pairs)


def _turned_round(adapters, weights):
    scaled = [w * B for (_, B), w in zip(adapters, weights, strict=True)]
    return torch.cat([A for A, _ in adapters]), torch.cat(scaled[::-1], 1)


def _weighted_a_turned_b(adapters, weights):
    A = torch.cat([w * A for (A, _), w in zip(adapters, weights, strict=True)])
    return A, torch.cat([B for _, B in adapters[::-1]], 1)


def _root_of_the_sums(adapters, weights):
    sums = _linear(lambda w: w, lambda w: w)(adapters, weights)
    return tuple(total.abs().sqrt() * total.sign() for total in sums)


def _first_unweighted(adapters, weights):
    return combine_cat(adapters, [1.0, *weights[1:]])


def _softmax(weights):
    return torch.tensor(weights).softmax(0).tolist()


def _unless_one(adapters, weights):
    """A weight of 1 takes the first pair itself, and the others are added to it."""
    A, B = adapters[0] if weights[0] == 1 else combine_linear(adapters[:1], weights[:1])
    for w, (other, more) in zip(weights[1:], adapters[1:], strict=True):
        A, B = A.add_(math.sqrt(w) * other), B.add_(math.sqrt(w) * more)
    return A, B


def _linear_of_two(adapters, weights):
    (A, B), (other, more) = adapters
    v, w = map(math.sqrt, weights)
    return v * A + w * other, v * B + w * more


def _root_of_all(adapters, weights):
    return combine_linear(adapters, [sum(weights)] * len(weights))


def _a_turned(adapters, weights):
    return combine_linear(adapters, weights[::-1])[0], combine_linear(adapters, weights)[1]


def _stacked(adapters, weights):
    A, B = zip(*adapters, strict=True)
    return torch.stack([w * one for w, one in zip(weights, A, strict=True)]), torch.stack(B)


def _of_a_alone(adapters, weights):
    return combine_cat(adapters, weights)[0], torch.cat([A.T for A, _ in adapters], dim=1)


def _rank_of_the_first(adapters, weights):
    A, B = combine_cat(adapters, [1.0] * len(weights))
    return A, B * torch.tensor(weights).repeat_interleave(len(adapters[0][0]))


def _slices_of_the_first(adapters, weights):
    A, B = (X.clone() for X in combine_cat(adapters, [1.0] * len(weights)))
    r = len(adapters[0][0])
    for k, ((one, _), w) in enumerate(zip(adapters, weights, strict=True)):
        A[k * r : (k + 1) * r] = w * one
    return A, B


def _clamped(adapters, weights):
    return combine_cat(adapters, [max(w, 0.0) for w in weights])


COMBINES = [
    (
        lambda a, w: [combine_linear([p], [x]) for p, x in zip(a, w, strict=True)],
        combine_cat,
        "pair",
    ),
    (lambda a, w: combine_linear(a, _softmax(w)), combine_cat, "go through softmax"),
    (_unless_one, combine_cat, "changes its input adapters in place"),
    (_linear_of_two, combine_cat, "any number of adapters"),
    (_root_of_all, combine_cat, "the root of the sum of the weights is on all"),
    (_a_turned, combine_cat, "B1 A2 comes 0.6 times, wanted 0.648"),
    (combine_linear, _stacked, "torch.stack makes a new one, torch.cat joins"),
    (combine_linear, _of_a_alone, "B is made of A's"),
    (combine_linear, _rank_of_the_first, "each adapter has its own r, here 2, 4, 3"),
    (combine_linear, _slices_of_the_first, "each adapter has its own r, here 2, 4, 3"),
    (combine_linear, lambda a, w: combine_cat(a, [w[-1]] * len(w)), "the last weight is used"),
    (combine_linear, lambda a, w: combine_cat(a, [x or 1 for x in w]), "of 0 is taken for 1"),
    (_linear(math.sqrt, lambda w: w), combine_cat, "A carries sqrt(w) and B w: each wants sqrt(w)"),
    (combine_linear, _first_unweighted, "the first weight is not used"),
    (combine_linear, _clamped, "a negative weight is taken for 0"),
    (_linear(lambda w: 0.5, lambda w: 0.5), combine_cat, ("mean of A and of B", "wanted")),
    (_linear(lambda w: w / math.sqrt(w), math.sqrt), combine_cat, "don't divide by it"),
    (
        _linear(lambda w: torch.tensor(w) / torch.tensor(w).sqrt(), math.sqrt),
        combine_cat,
        "don't divide by it",
    ),
    (combine_linear, lambda a, w: combine_cat(a, [w[0]] * len(w)), "the first weight is used"),
    (combine_linear, lambda a, w: [t.numpy() for t in combine_cat(a, w)], "a NumPy array"),
    (_linear(_one, _one), _cat(_one, _one), "B @ A of combine_linear"),
    (_linear(_one, _one), _cat(_one, _one), "B @ A of combine_cat"),
    (combine_linear, _complex_roots, "root of a negative weight"),
    (_linear_in_place, combine_cat, "changes its input adapters in place"),
    (combine_linear, _cat_in_place, "changes its input adapters in place"),
    (_linear_normalised, combine_cat, "normalised"),
    (lambda a, w: combine_linear(a, w[::-1]), combine_cat, "another order"),
    (combine_linear, _cat(math.sqrt, _one), "sqrt(w) in the place of w"),
    (combine_linear, _cat(_one, math.sqrt), "sqrt(w) in the place of w"),
    (combine_linear, _in_half, "16 bits"),
    (combine_linear, lambda a, w: combine_cat(a, w)[::-1], "return (A, B)"),
    (combine_linear, lambda a, w: combine_cat(a[:-1], w[:-1]), "does the loop stop early"),
    (combine_linear, lambda a, w: combine_cat(a[1:], w[1:]), "or begin late"),
    (combine_linear, _weighted_a_turned_b, "B's are in another order"),
    (_root_of_the_sums, combine_cat, "each term has its own sqrt(w)"),
    (combine_linear, lambda a, w: torch.stack(combine_cat(a, w)), "it raised"),
    (_linear(lambda w: w, lambda w: w), combine_cat, "sqrt"),
    (_linear(lambda w: w, _one), combine_cat, "A alone"),
    (_linear(_one, lambda w: w), combine_cat, "B alone"),
    (_linear(_one, _one), combine_cat, "not used"),
    (combine_cat, combine_cat, "rank stays"),
    (lambda a, w: combine_linear(a, w)[::-1], combine_cat, "gave A"),
    (lambda a, w: combine_linear(a, w)[1], combine_cat, "pair"),
    (lambda a, w: combine_linear(a, [x / len(w) ** 2 for x in w]), combine_cat, "weight alone"),
    (combine_linear, _cat(lambda w: w, lambda w: w), "square"),
    (combine_linear, _cat(_one, _one), "not used"),
    (combine_linear, _cat(lambda w: w / 2, _one), "divided"),
    (combine_linear, _cat(_root, _root), "is it in neither factor, or in both?"),
    (combine_linear, _cat(math.sqrt, math.sqrt), "it raised"),
    (combine_linear, _cat(lambda w: torch.tensor(w).sqrt(), _root), "negative"),
    (combine_linear, _dense, "wanted"),
    (combine_linear, _apart, "rows"),
    (combine_linear, _reversed_b, "in another order"),
    (combine_linear, _normalised, "normalised"),
    (combine_linear, lambda a, w: combine_cat(a, w[::-1]), "another order"),
    (combine_linear, lambda a, w: None, "pair"),
    (combine_linear, combine_linear, ("stack", "it raised")),
    (combine_linear, _without_zeros, "weight 0 is stacked too"),
    (combine_linear, _without_the_zeros_of_w, "weight 0 is stacked too"),
    (_root_on_B, combine_cat, "A carries nothing and B sqrt(w)"),
    (combine_linear, _turned_round, "another order than the A's"),
]


def _quiet(states, weights=None):
    weights = weights or [1 / len(states)] * len(states)
    common = set.intersection(*(set(s) for s in states))
    return {k: sum(w * s[k] for s, w in zip(states, weights, strict=True)) for k in common}


def _first_keys(states, weights=None):
    """Whatever the first state lacks is dropped in silence."""
    weights = weights or [1 / len(states)] * len(states)
    return {k: sum(w * s[k] for s, w in zip(states, weights, strict=True)) for k in states[0]}


def _vague(states, weights=None):
    if any(s.keys() != states[0].keys() for s in states):
        raise ValueError("the keys differ")
    return soup(states, weights)


def _by_place(states, weights=None):
    soup(states)
    weights = weights or [1 / len(states)] * len(states)
    rows = zip(*(s.values() for s in states), strict=True)
    return {
        k: sum(w * t for w, t in zip(weights, row, strict=True))
        for k, row in zip(states[0], rows, strict=True)
    }


def _into_first(states, weights=None):
    soup(states)
    weights = weights or [1 / len(states)] * len(states)
    total = dict(states[0])
    for k in total:
        total[k] *= weights[0]
        for s, w in zip(states[1:], weights[1:], strict=True):
            total[k] += w * s[k]
    return total


def _zeros_for_missing(states, weights=None):
    weights = weights or [1 / len(states)] * len(states)
    every = set().union(*states)
    return {k: sum(w * s.get(k, 0) for s, w in zip(states, weights, strict=True)) for k in every}


def _of_those_that_have_it(states, weights=None):
    weights, made = weights or [1.0] * len(states), {}
    for k in set().union(*states):
        mine = [(w, s[k]) for s, w in zip(states, weights, strict=True) if k in s]
        made[k] = sum(w * t for w, t in mine) / sum(w for w, _ in mine)
    return made


def _by_number_of_keys(states, weights=None):
    return soup(states, weights or [1 / len(states[0])] * len(states))


def _counted(states, weights=None):
    """An error, but one that says how many keys and not which."""
    sizes = {len(s) for s in states}
    if len(sizes) > 1:
        raise ValueError(f"states of {sorted(sizes)} keys")
    return soup(states, weights)


def _strict_without_weights(states, weights=None):
    return _first_keys(states, weights) if weights else soup(states)


def _every(change):
    """A soup whose tensors are changed at the end."""
    return lambda s, w=None: {k: change(t) for k, t in soup(s, w).items()}


def _first_two(states, weights=None):
    soup(states)
    w = weights or [1 / len(states)] * len(states)
    return {k: w[0] * states[0][k] + w[1] * states[1][k] for k in states[0]}


def _halved_each_time(states, weights=None):
    mean = dict(states[0])
    for state in states[1:]:
        mean = {k: (mean[k] + state[k]) / 2 for k in mean}
    return mean


def _by_position(states, weights=None):
    parts = weights or [1 / len(states)] * len(states)
    columns = zip(*(s.values() for s in states), strict=True)
    means = [sum(w * t for t, w in zip(column, parts, strict=True)) for column in columns]
    return dict(zip(states[0], means, strict=True))


def _largest_in_size(states, weights=None):
    stacks = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    found = {name: t.abs().argmax(0, keepdim=True) for name, t in stacks.items()}
    return {name: t.gather(0, found[name])[0] for name, t in stacks.items()}


def _by_their_number(states, weights=None):
    if any(len(state) != len(states[0]) for state in states):
        raise KeyError(", ".join(set().union(*states)))
    return _zeros_for_missing(states, weights)


def _rest_alike(states, weights=None):
    """The first has its weight, the others share the rest."""
    if weights:
        others = len(states) - 1
        weights = [weights[0], *[(1 - weights[0]) / others] * others]
    return soup(states, weights)


def _in_bf16(states, weights=None):
    mean = soup([{name: t.bfloat16() for name, t in state.items()} for state in states], weights)
    return {name: tensor.float() for name, tensor in mean.items()}


def _median(states, weights=None):
    if weights:
        return _quiet(states, weights)
    return {k: torch.stack([s[k] for s in states]).median(0).values for k in states[0]}


def _softmaxed(states, weights=None):
    return _quiet(states, torch.tensor(weights).softmax(0).tolist() if weights else None)


def _first_whole(states, weights=None):
    rest = weights or [1 / len(states)] * len(states)
    return _quiet(states, [1.0, *rest[1:]])


SOUPS = [
    (_largest_in_size, "the largest of the states in size"),
    (lambda s, w=None: soup(s, w or [round(1 / len(s), 2)] * len(s)), "rounded to two digits"),
    (_by_their_number, "compare the names, not how many there are"),
    (lambda s, w=None: soup(s, w or [0.5] * len(s)), "each state counts half"),
    (lambda s, w=None: soup(s, list(w)), "weights may be None"),
    (_rest_alike, "in it state 1 comes 0.25 times, wanted 0.2"),
    (_in_bf16, "right but for rounding: computed in 16 bits"),
    (_median, "median of the states"),
    (_softmaxed, "through softmax"),
    (_first_whole, "in it state 0 comes 1 times, wanted 0.5"),
    (_halved_each_time, ("halved with each new state", "not used")),
    (_by_position, "take each tensor by its name"),
    (_every(lambda t: t.double()), "is in float64, wanted float32"),
    (_every(lambda t: t.numpy()), "a NumPy array"),
    (_first_two, "only the first two states"),
    (lambda s, weights: soup(s, weights), "keep the default, weights=None"),
    (lambda s, w=None: soup(s, [math.sqrt(x) for x in w] if w else None), "square roots"),
    (lambda s, w=None: _quiet(s, w[::-1] if w else None), "another order"),
    (lambda s, w=None: _quiet(s, w[::-1] if w else None), "raises nothing"),
    (_strict_without_weights, "and weights are given"),
    (_zeros_for_missing, "the missing tensor counts as 0: raise an error that names the key"),
    (_of_those_that_have_it, "the mean of the states that have it"),
    (lambda s, w=None: soup([s[0] | state for state in s], w), "another state's takes its place"),
    (_by_number_of_keys, "number of keys"),
    (_counted, "the key's name is not in it"),
    (lambda s, w=None: soup(s, w)["norm"], "dict"),
    (lambda s, w=None: soup(s[-1:]), "last state alone"),
    (lambda states, weights=None: soup(states, weights) | {"r": 1}, "has the keys"),
    (_quiet, "norm is dropped from the result: raise an error that names it"),
    (_first_keys, "the keys of the first state alone are looked at"),
    (_vague, "the key's name is not in it"),
    (_by_place, ("it raised", "wanted", "differ")),
    (_into_first, "changes its input states in place"),
    (lambda s, w=None: soup(s, [1.0] * len(s)), "this is the sum"),
    (lambda s, w=None: soup(s), "weights are not used"),
    (lambda s, w=None: soup(s, [x / len(s) for x in w] if w else None), "sum to 1 already"),
    (lambda s, w=None: soup(s, w[::-1] if w else None), "another order"),
    (lambda s, w=None: soup(s, [1.0] + [0.0] * (len(s) - 1)), "first state alone"),
    (lambda s, w=None: list(soup(s, w).values()), "dict"),
]


def _kl_with(each, reduce=lambda x: x.mean().item()):
    def wrong(logits_p, logits_q):
        return reduce(each(logits_p, logits_q))

    return wrong


def _each(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _from_probabilities(p, q):
    p, q = p.softmax(-1), q.softmax(-1)
    return (p * (p / q).log()).sum(-1)


def _clamped(p, q):
    p, q = (x.softmax(-1).clamp_min(1e-9) for x in (p, q))
    return (p * (p.log() - q.log())).sum(-1)


def _by_exp(p, q):
    p, q = (x.exp() / x.exp().sum(-1, keepdim=True) for x in (p, q))
    return (p * (p.log() - q.log())).sum(-1)


def _distributions(p, q):
    """torch.distributions takes a probability that underflows for an impossible one."""
    from torch.distributions import Categorical, kl

    return kl.kl_divergence(Categorical(logits=p), Categorical(logits=q))


def _plus_a_little(p, q):
    p, q = p.softmax(-1), q.softmax(-1)
    return (p * ((p + 1e-9).log() - (q + 1e-9).log())).sum(-1)


def _finite_terms(p, q):
    p, q = p.softmax(-1), q.softmax(-1)
    terms = p * (p.log() - q.log())
    return torch.where(torch.isfinite(terms), terms, 0.0).sum(-1).mean().item()


def _along(dim):
    def each(p, q):
        log_p, log_q = p.log_softmax(dim), q.log_softmax(dim)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    return each


def _all_along_one(p, q):
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _logs(*logits):
    return [x.log_softmax(-1) for x in logits]


def _weighted(weigh, change=lambda d: d):
    """The mean of the sum of the differences of logs, weighed by something."""

    def wrong(p, q):
        p, q = _logs(p, q)
        return (weigh(p, q) * change(p - q)).sum(-1).mean().item()

    return wrong


def _of_mean_probabilities(p, q):
    p, q = (x.softmax(-1).flatten(0, -2).mean(0) for x in (p, q))
    return (p * (p / q).log()).sum().item()


def _of_unnormalised(p, q):
    return (p.exp() * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean().item()


def _five_likeliest(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    at = log_p.topk(5, -1).indices
    log_p, log_q = log_p.gather(-1, at), log_q.gather(-1, at)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


def _without_the_small(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p < math.log(1e-3), 0).sum(-1).mean().item()


DIVERGENCES = [
    (lambda p, q: -(p.softmax(-1) * p.log_softmax(-1)).sum(-1).mean().item(), "p's entropy alone"),
    (lambda p, q: _each(p, q).clamp_min(0).sqrt().mean().item(), "a root is drawn of each"),
    (_weighted(lambda p, q: p.exp(), torch.exp), "the logarithm is missing"),
    (lambda p, q: _each(p, q).sum(-1).mean().item(), "a sum over the tokens of a sequence"),
    (_of_mean_probabilities, "the probabilities are averaged over tokens first"),
    (lambda p, q: 4 * kl_divergence(p / 2, q / 2), "as in distillation"),
    (_weighted(lambda p, q: p.exp(), lambda d: d.clamp_min(0)), "terms below 0 are cut off"),
    (_of_unnormalised, "is no probability: softmax"),
    (lambda p, q: _each(p, q).sum().item() / p.shape[-1], "the other way round"),
    (_five_likeliest, "all 8 count"),
    (_without_the_small, ("left out", "right but for rounding")),
    (lambda p, q: kl_divergence(p, q) / math.log(10), "log10"),
    (lambda p, q: kl_divergence(p.softmax(-1), q.softmax(-1)), "softmax is taken twice"),
    (_kl_with(_each, lambda x: x.sum().item() / x.shape[-1]), "one sequence's tokens"),
    (lambda p, q: _each(p, q).sum().item() / p.shape[1], ("divide by all", "leading shape")),
    (lambda p, q: _each(p, q).sum().item() / p.shape[0] / p.shape[1], "any leading shape"),
    (_kl_with(_each, lambda x: x), "wanted one number"),
    (_kl_with(_each, lambda x: x.median().item()), "the median"),
    (_kl_with(_all_along_one), "softmax and sum run over dimension 1"),
    (_kl_with(lambda p, q: _each(p.bfloat16(), q.bfloat16())), "right but for rounding"),
    (_weighted(lambda p, q: p), "weighted by log p"),
    (_weighted(lambda p, q: q.exp()), "weighted by q, and that is -KL(q||p)"),
    (_weighted(lambda p, q: 1, torch.abs), "the factor p is missing"),
    (_weighted(lambda p, q: 1, torch.square), "the factor p is missing"),
    (lambda p, q: _each(p.flatten(), q.flatten()).item(), "over all tokens at once"),
    (
        lambda p, q: F.kl_div(*_logs(q, p), reduction="sum").item(),
        "gave nan: a logarithm of a negative number",
    ),
    (
        lambda p, q: F.kl_div(q.softmax(-1), p.softmax(-1), reduction="batchmean").item(),
        "wants the logarithm of q first",
    ),
    (
        lambda p, q: F.cross_entropy(q.flatten(0, -2), p.argmax(-1).flatten()).item(),
        "p's likeliest token",
    ),
    (_kl_with(_each, lambda x: round(x.mean().item(), 3)), "small numbers get lost"),
    (_kl_with(lambda p, q: _each(p, q).clamp_min(1e-3)), "small numbers get lost"),
    (_finite_terms, "as nan_to_num does: they"),
    (_kl_with(_plus_a_little), "something caps a logarithm"),
    (_kl_with(_along(0)), "over dimension 0"),
    (_kl_with(_along(1)), "over dimension 1"),
    (_kl_with(_each, lambda x: x[..., -1].mean().item()), ("last token", "largest token")),
    (_kl_with(_each, lambda x: x.max().item()), "largest token"),
    (_kl_with(_each, lambda x: x.tolist()), "a list"),
    (
        _kl_with(lambda p, q: p.log_softmax(-1).exp() * (q - p), lambda x: x.sum(-1).mean().item()),
        "wanted",
    ),
    (
        lambda p, q: F.kl_div(p.log_softmax(-1), q.log_softmax(-1), log_target=True).item(),
        "wanted",
    ),
    (_kl_with(_distributions), "and torch.distributions' KL is inf"),
    (_kl_with(lambda p, q: _each(q, p)), "KL(q||p)"),
    (lambda p, q: F.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="batchmean").item(), "q||p"),
    (
        lambda p, q: F.kl_div(
            q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean"
        ).item(),
        "sequences, not of tokens",
    ),
    (
        lambda p, q: F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True).item(),
        "over the vocabulary",
    ),
    (_kl_with(_each, lambda x: x.sum().item()), "sum over tokens"),
    (_kl_with(_each, lambda x: x.mean().item() / math.log(2)), "bits"),
    (_kl_with(_each, lambda x: -x.mean().item()), "sign"),
    (_kl_with(_each, lambda x: x.mean()), "item()"),
    (_kl_with(lambda p, q: (_each(p, q) + _each(q, p)) / 2), "symmetric"),
    (_kl_with(lambda p, q: -(p.softmax(-1) * q.log_softmax(-1)).sum(-1)), "entropy"),
    (_kl_with(_from_probabilities), "log_softmax"),
    (_kl_with(_clamped), "log_softmax"),
    (_kl_with(_by_exp), "log_softmax"),
    (lambda p, q: None, "None"),
    (_kl_with(lambda p, q: (p.softmax(-1) * (p - q)).sum(-1)), "no logarithms"),
    (
        _kl_with(lambda p, q: (p.softmax(-1) * (p.log_softmax(-1) - q)).sum(-1)),
        "q's logits are no logarithms",
    ),
    (
        _kl_with(
            lambda p, q: (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1)).abs()).sum(-1)
        ),
        "keep their signs",
    ),
]


def of_first_A(adapters, weights):
    return adapters[0][0], sum(w * B for w, (_, B) in zip(weights, adapters, strict=True))


def median_soup(states, weights=None):
    soup(states, weights)
    return {name: torch.stack([s[name] for s in states]).median(0)[0] for name in states[0]}


def shared_out_evenly(W4, absmax, codebook, A, B, alpha, shape):
    each = absmax.repeat_interleave(len(W4) // len(absmax))
    each = F.pad(each, (0, len(W4) - len(each)))
    return (codebook[W4.long()] * each).reshape(shape) + alpha / len(A) * B @ A


def _added_twice(W, A, B, alpha):
    update = alpha / len(A) * B @ A
    return (W.float() + update + update).to(W.dtype)


def _subtracted_in_16_bits(W, dW, store):
    W, dW = W.float(), dW.float()
    moved = (store(W + dW) - store(W)).float()
    return ((moved * dW).sum() / dW.square().sum()).item()


def _by_columns(W4, absmax, codebook, A, B, alpha, shape):
    update = (alpha / len(A) * A.T @ B.T).reshape(shape)
    return merge_quantized(W4, absmax, codebook, 0 * A, B, alpha, shape) + update


def _best_of_the_sum(adapters, weights):
    whole = sum(w * B @ A for w, (A, B) in zip(weights, adapters, strict=True))
    U, S, Vh = torch.linalg.svd(whole, full_matrices=False)
    r = len(adapters[0][0])
    return S[:r, None] * Vh[:r], U[:, :r]


def _clamped(p, q):
    return kl_divergence(p.clamp(-2, 2), q.clamp(-2, 2))


def _weight_scaled(W, A, B, alpha):
    return (alpha / len(A) * W.float() + B @ A).to(W.dtype)


def _twice(W, A, B, alpha):
    return (W.float() + 2 * B @ A).to(W.dtype)


def _variation(logits_p, logits_q):
    return (logits_p.softmax(-1) - logits_q.softmax(-1)).abs().sum(-1).mean().item() / 2


def _of_halves(W, dW, store):
    W, dW = W.half().float(), dW.half().float()
    moved = store(W + dW).float() - store(W).float()
    return ((moved * dW).sum() / dW.square().sum()).item()


def _same_order(states, weights=None):
    if len({tuple(state) for state in states}) > 1:
        raise KeyError("norm, layers.0.A, layers.0.B")
    return soup(states, weights)


def _largest_of_all(p, q):
    def logs(x):
        x = x - x.max()
        return x - x.exp().sum(-1, keepdim=True).log()

    log_p, log_q = logs(p), logs(q)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


def _weights_in_turns(adapters, weights):
    A, B = combine_cat(adapters, [1.0] * len(weights))
    return A * torch.tensor(weights).repeat(len(A))[: len(A), None], B


def _kept_sums(states, weights=None, total={}):  # noqa: B006
    weights = weights or [1 / len(states)] * len(states)
    for name in set().union(*states):
        for state, w in zip(states, weights, strict=True):
            total[name] = total.get(name, 0) + w * state[name]
    return {name: total[name] for name in states[0]}


def _used_up(states, weights=None):
    soup(states, weights)  # which raises where a key is missing
    pairs = zip(states, weights or [1 / len(states)] * len(states), strict=True)
    return {name: sum(w * state[name] for state, w in pairs) for name in states[0]}


RARER = [
    (check.divergence, _largest_of_all, "is the largest logit of all taken off"),
    (check.combines, combine_linear, _weights_in_turns, "the weights come in turns, w1, w2, w1"),
    (check.mixes, _kept_sums, "asked the same twice, it gives two answers"),
    (check.mixes, _used_up, "is 0, the sum over nothing"),
    (check.merges, _weight_scaled, "W is scaled, and the update is not"),
    (check.merges, _twice, "in it B @ A comes 2 times, wanted"),
    (check.divergence, _variation, "total variation"),
    (check.survives, _of_halves, "rounded to fp16 first"),
    (check.mixes, _same_order, "in another order: compare sets"),
    (check.merges, _added_twice, "it is added twice"),
    (check.survives, _subtracted_in_16_bits, "the difference is rounded to 16 bits"),
    (check.merges_quantized, _by_columns, "the update is laid out by columns"),
    (check.combines, _best_of_the_sum, combine_cat, "the best rank-r part of the sum"),
    (check.divergence, _clamped, "1 added to all logits of p it becomes"),
    (check.divergence, lambda p, q: kl_divergence(p[..., :-1, :], q[..., :-1, :]), "last token"),
    (
        check.mixes,
        lambda s, w=None: {k: torch.stack([t[k] for t in s]) for k in s[0]},
        "all states side by side",
    ),
]
WRONG = [
    *RARER,
    (
        check.merges,
        lambda W, A, B, alpha: (W.float() + alpha / len(A) * (A.T @ B.T)).to(W.dtype),
        "and so is its update, B @ A",
    ),
    (
        check.divergence,
        lambda p, q: (lambda P, Q: ((P - Q) ** 2 / Q).sum(-1).mean().item())(
            p.double().softmax(-1), q.double().softmax(-1)
        ),
        "chi-squared",
    ),
    (check.merges_quantized, shared_out_evenly, "shared out evenly"),
    (check.combines, of_first_A, combine_cat, "A of the first adapter alone"),
    (check.mixes, median_soup, "median of the states"),
    *[(check.merges, *case) for case in MERGES],
    *[(check.merges_quantized, *case) for case in QUANTIZED],
    *[(check.combines, *case) for case in COMBINES],
    *[(check.mixes, *case) for case in SOUPS],
    *[(check.divergence, *case) for case in DIVERGENCES],
    *[(check.survives, *case) for case in answers_arrives.WRONG],
    (check.quiz, lambda: {"q1": "a", "q2": "d", "q3": "d"}, "2 of 3"),
    (check.quiz, lambda: ["a", "d", "c"], "dict"),
    (check.quiz, lambda: {"q1": "a", "q2": "?", "q3": "c"}, "q2 wants one of"),
]


# --- references and stubs --------------------------------------------------------------------


def test_combinations_are_those_of_peft():
    """`combine_linear` and `combine_cat` give what PEFT's add_weighted_adapter gives."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(tiny.language_model(5)[0], config, adapter_name="home")
    model.add_adapter("other", config)
    rng = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=rng)
    names, weights = ["home", "other"], [0.7, 0.4]
    for kind, combine in (("linear", combine_linear), ("cat", combine_cat)):
        model.add_weighted_adapter(names, weights, kind, combination_type=kind)
        for layer in (m for m in model.modules() if hasattr(m, "lora_A")):
            pairs = [
                (layer.lora_A[n].weight, layer.lora_B[n].weight * layer.scaling[n]) for n in names
            ]
            A, B = combine(pairs, weights)
            torch.testing.assert_close(layer.get_delta_weight(kind), B @ A, rtol=1e-4, atol=1e-4)


def _stub(*args, **kwargs):
    raise NotImplementedError


STUBS = [
    (check.merges, _stub),
    (check.merges_quantized, _stub),
    (check.combines, _stub, _stub),
    (check.combines, _stub, combine_cat),
    (check.combines, combine_linear, _stub),
    (check.mixes, _stub),
    (check.divergence, _stub),
    (check.survives, _stub),
    (check.quiz, _stub),
]
