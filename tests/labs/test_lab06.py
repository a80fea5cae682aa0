"""Lab 6's checks: right answers written differently, and wrong ones that no row expresses."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from answers import solved
from small_llama import with_lora

from labkit.checks import lab06 as check
from labkit.probes import tiny

# --- right answers -------------------------------------------------------------------------


def merged_double(W, A, B, alpha):
    update = torch.einsum("or,ri->oi", B.double(), A.double()) * alpha / A.shape[0]
    return torch.add(W.double(), update).type_as(W)


def merged_in_place(W, A, B, alpha):
    out = W.clone()
    out += alpha / len(A) * B @ A  # what PEFT does: the addition promotes to fp32
    return out


def merged_as_a_loop(W, A, B, alpha):
    """The sum of r outer products, as LoRA is sometimes introduced."""
    total = W.detach().clone().to(torch.float64)
    for a, b in zip(A, B.T, strict=True):
        total += torch.outer(b, a) * alpha / A.shape[0]
    return torch.nn.Parameter(total.to(W.dtype), requires_grad=False)


def kl_functional(logits_p, logits_q):
    p, q = (F.log_softmax(x.flatten(0, -2).double(), dim=-1) for x in (logits_p, logits_q))
    return float(F.kl_div(q, p, log_target=True, reduction="batchmean"))


def kl_as_xlogy(logits_p, logits_q):
    """F.kl_div takes a target that is a probability of zero; its logarithm is never asked for."""
    q, p = F.log_softmax(logits_q, dim=-1), F.softmax(logits_p, dim=-1)
    return F.kl_div(q, p, reduction="none").sum(-1).mean().item()


def kl_from_entropies(logits_p, logits_q):
    """Cross-entropy less entropy."""
    p, q = (x.double().reshape(-1, x.shape[-1]) for x in (logits_p, logits_q))
    target = p.softmax(1)
    return (F.cross_entropy(q, target) - F.cross_entropy(p, target)).item()


def moved(W, dW, store):
    return store(W.float() + dW.float()).float() - store(W.float()).float()


def arrives_by_dot(W, dW, store):
    """In double precision, which a store takes as well."""
    d = dW.double().flatten()
    change = (store(W.double() + dW.double()).double() - store(W.double()).double()).flatten()
    return float(torch.dot(change, d) / d.norm() ** 2)


def arrives_by_cosine(W, dW, store):
    change, d = moved(W, dW, store).flatten(), dW.float().flatten()
    return (F.cosine_similarity(change, d, dim=0) * change.norm() / d.norm()).item()


def arrives_by_rows(W, dW, store):
    """Row by row, as long as blocks do not cross rows."""
    along = sum(
        (moved(w[None], d[None], store)[0] @ d.float()).item() for w, d in zip(W, dW, strict=True)
    )
    return along / dW.float().square().sum().item()


def quantized_padded(W4, absmax, codebook, A, B, alpha, shape):
    values = codebook[W4.int()]
    padded = torch.zeros(len(absmax) * 64)
    padded[: values.numel()] = values
    W = (padded.view(-1, 64) * absmax[:, None]).flatten()[: values.numel()].view(*shape)
    return W.add(B @ A, alpha=alpha / A.shape[0])


def quantized_in_pieces(W4, absmax, codebook, A, B, alpha, shape):
    runs = [codebook[c.long()] * m for c, m in zip(W4.split(64), absmax, strict=True)]
    return torch.cat(runs).reshape(shape) + (B @ A) * (alpha / len(A))


def quantized_to_size(W4, absmax, codebook, A, B, alpha, shape):
    """The shape is what `W.shape` is."""
    scales = absmax.repeat_interleave(64)[: shape.numel()]
    return (codebook[W4.long()] * scales).view(shape).addmm(B, A, alpha=alpha / len(A))


def linear_stacked(adapters, weights):
    roots = torch.tensor(weights).sqrt()
    stack = [torch.stack(part) for part in zip(*adapters, strict=True)]
    return [torch.einsum("n,n...->...", roots, s) for s in stack]


def linear_in_two_dtypes(adapters, weights):
    A, B = linear_stacked(adapters, weights)
    return A, B.double()


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


def recompress_by_svds(A, B, r):
    """Two thin SVDs instead of QRs."""
    U_B, S_B, V_B = torch.linalg.svd(B, full_matrices=False)
    U_A, S_A, V_A = torch.linalg.svd(A, full_matrices=False)
    U, S, Vh = torch.linalg.svd(S_B[:, None] * (V_B @ U_A) * S_A)
    return [S[:r].diag() @ Vh[:r] @ V_A, U_B @ U[:, :r]]


def recompress_in_numpy(A, B, r):
    (Q_B, R_B), (Q_A, R_A) = (np.linalg.qr(M.numpy()) for M in (B, A.T))
    U, S, Vh = np.linalg.svd(R_B @ R_A.T)
    factors = Vh[:r] @ Q_A.T, Q_B @ (U[:, :r] * S[:r])
    return tuple(map(torch.from_numpy, factors))


def recompress_by_projection(A, B, r):
    """B A projected on its first r left directions."""
    Q, R = torch.linalg.qr(B.double())
    U = Q @ torch.linalg.svd(R @ A.double(), full_matrices=False).U[:, :r]
    return (U.T @ B.double()) @ A.double(), U


def ties_by_threshold(updates, density):
    n = updates[0].numel()
    least = [u.abs().flatten().sort(descending=True).values[int(density * n) - 1] for u in updates]
    trimmed = torch.stack([u * (u.abs() >= t) for u, t in zip(updates, least, strict=True)])
    sign = trimmed.sum(dim=0).sign()
    sign[sign == 0] = 1
    mask = (trimmed * sign) > 0
    return torch.nan_to_num((trimmed * mask).sum(0) / mask.sum(0))


def ties_entry_by_entry(updates, density):
    trimmed = []
    for update in updates:
        numbers = update.double().flatten().tolist()
        order = sorted(range(len(numbers)), key=lambda i: -abs(numbers[i]))
        kept = set(order[: int(len(numbers) * density)])
        trimmed.append([x if i in kept else 0.0 for i, x in enumerate(numbers)])
    merged = []
    for values in zip(*trimmed, strict=True):
        sign = 1 if math.fsum(values) >= 0 else -1
        same = [x for x in values if x * sign > 0]
        merged.append(sum(same) / len(same) if same else 0.0)
    return torch.tensor(merged).reshape(updates[0].shape)


def ties_in_numpy(updates, density):
    rows = np.stack([update.numpy().ravel() for update in updates])
    cut = rows.shape[1] - int(density * rows.shape[1])
    np.put_along_axis(rows, np.abs(rows).argsort(1)[:, :cut], 0, axis=1)
    sign = np.where(rows.sum(0) < 0, -1, 1)
    rows[rows * sign <= 0] = np.nan
    counts = np.maximum((~np.isnan(rows)).sum(0), 1)
    return torch.from_numpy(np.nansum(rows, 0) / counts).view_as(updates[0])


RIGHT = [
    *((check.merges, f) for f in (merged_double, merged_in_place, merged_as_a_loop)),
    *((check.divergence, f) for f in (kl_functional, kl_as_xlogy, kl_from_entropies)),
    *((check.survives, f) for f in (arrives_by_dot, arrives_by_cosine, arrives_by_rows)),
    (check.merges_quantized, quantized_padded),
    (check.merges_quantized, quantized_in_pieces),
    (check.merges_quantized, quantized_to_size),
    (check.combines, linear_stacked, cat_on_b),
    (check.combines, linear_stacked, cat_by_roots),
    (check.combines, linear_in_two_dtypes, cat_into_zeros),
    (check.recompresses, recompress_by_svds),
    (check.recompresses, recompress_in_numpy),
    (check.recompresses, recompress_by_projection),
    *((check.merges_by_sign, f) for f in (ties_by_threshold, ties_entry_by_entry, ties_in_numpy)),
]

# --- wrong answers, besides the rows of lab06.toml --------------------------------------------


def kl_largest_of_all(logits_p, logits_q):
    """The largest logit of all tokens is subtracted, so a token that has lower ones underflows."""
    p, q = (x - x.max() for x in (logits_p, logits_q))
    p, q = (x - x.exp().sum(-1, keepdim=True).log() for x in (p, q))
    return (p.exp() * (p - q)).sum(-1).mean().item()


def arrives_by_what_moved(W, dW, store):
    """Right where anything moves."""
    change, d = moved(W, dW, store), dW.float()
    share = (change * d).sum() / change.square().sum()
    return (change.square().sum() / d.square().sum() * share).item()


def arrives_over_a_rounded_norm(W, dW, store):
    return ((moved(W, dW, store) * dW.float()).sum() / dW.norm().square()).item()


def quantized_anew(W4, absmax, codebook, A, B, alpha, shape):
    """The sum is rounded to the codebook again, with new scales."""
    W = quantized_in_pieces(W4, absmax, codebook, A, B, alpha, shape).flatten()
    scales = F.pad(W, (0, -len(W) % 64)).view(-1, 64).abs().amax(1).repeat_interleave(64)[: len(W)]
    codes = ((W / scales)[:, None] - codebook).abs().argmin(-1)
    return (codebook[codes] * scales).reshape(shape)


def linear_in_place(adapters, weights):
    A, B = adapters[0] if weights[0] == 1 else linear_stacked(adapters[:1], weights[:1])
    for w, (a, b) in zip(weights[1:], adapters[1:], strict=True):
        A, B = A.add_(math.sqrt(w) * a), B.add_(math.sqrt(w) * b)
    return A, B


def linear_of_two(adapters, weights):
    (A, B), (a, b) = adapters
    v, w = map(math.sqrt, weights)
    return v * A + w * a, v * B + w * b


def cat_of_given(adapters, weights):
    return adapters[0] if weights == [1.0] else cat_on_b(adapters, weights)


def recompress_dense_in_numpy(A, B, r):
    U, S, Vh = np.linalg.svd(B.numpy() @ A.numpy(), full_matrices=False)
    return torch.from_numpy(Vh[:r]), torch.from_numpy(U[:, :r] * S[:r])


def ties_of_the_largest(updates, density):
    """As a maximum by magnitude."""
    stacked = torch.stack([ties_by_threshold([update], density) for update in updates])
    return stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]


WRONG = [
    (check.merges, lambda *data: merged_double(*data).T, "should have shape (24, 40)"),
    (check.merges, lambda W, *data: merged_double(W, *data) if data[2] else W, "not an input"),
    (check.divergence, kl_largest_of_all, "near 300 (log_softmax needs no clamp"),
    (check.divergence, lambda *data: max(1e-3, kl_functional(*data)), "that hardly differ"),
    (check.divergence, lambda *data: round(kl_functional(*data), 3), "is it rounded?"),
    (check.survives, arrives_by_what_moved, "too short to move anything, the result should be 0"),
    (check.survives, arrives_over_a_rounded_norm, "in bfloat16 (convert both to fp32"),
    (check.merges_quantized, quantized_anew, "[[6.75, 0], [20, 14]], not"),
    (check.merges_quantized, lambda *data: quantized_padded(*data).double(), "not float64"),
    (check.combines, linear_in_place, cat_on_b, "a new tensor, not an input: w * A is new"),
    (check.combines, linear_of_two, cat_on_b, "too many values to unpack"),
    (check.combines, linear_stacked, cat_of_given, "should be a new tensor, not an input"),
    (check.combines, lambda a, w: linear_stacked(a, w) if any(w) else (0, 0), cat_on_b, "an int"),
    # the mistakes of both functions are shown
    (check.combines, lambda a, w: a, lambda a, w: None, "`return` is missing"),
    (check.recompresses, recompress_dense_in_numpy, "the largest tensor you create"),
    (check.recompresses, lambda A, B, r: (A, B), "the shape of A should be (1, 2), not (2, 2)"),
    (check.merges_by_sign, ties_of_the_largest, "not [["),
]


def test_combinations_are_those_of_peft():
    """The course's own `combine_linear` and `combine_cat`, and PEFT's add_weighted_adapter."""
    torch.manual_seed(3)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    model = with_lora(tiny.language_model(5)[0], ("home", "other"), **options)
    mine = solved("06_merging", "6.5")
    ours = {"linear": mine.combine_linear, "cat": mine.combine_cat}
    names, weights = ["home", "other"], [0.7, 0.4]
    for kind, combine in ours.items():
        model.add_weighted_adapter(names, weights, kind, combination_type=kind)
        for layer in (m for m in model.modules() if hasattr(m, "lora_A")):
            pairs = [
                (layer.lora_A[n].weight, layer.lora_B[n].weight * layer.scaling[n]) for n in names
            ]
            A, B = combine(pairs, weights)
            torch.testing.assert_close(layer.get_delta_weight(kind), B @ A, rtol=1e-4, atol=1e-4)
