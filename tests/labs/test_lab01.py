"""Lab 1's checks: stubs, wrong answers that learners give, right answers written differently."""

import math

import numpy as np
import peft
import torch
import torch.nn.functional as F
from peft.tuners.lora.intruders import reduce_intruder_dimension

from labkit import contract
from labkit.checks import lab01 as check
from labkit.checks.lab01.intruders import asked_intruders, intruder_cases

SIDES = [(20, 12), (12, 24), (24, 16)]  # of the layers of a small model
svd, svdvals = torch.linalg.svd, torch.linalg.svdvals

SEEDS = {"RIGHT": range(4), "WRONG": range(2)}

# --- right answers -------------------------------------------------------------------------


def best_rank_r(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return U[:, :r] @ torch.diag(S[:r]) @ Vh[:r]


def best_by_masking(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    S[r:] = 0
    return torch.einsum("ik,k,kj->ij", U, S, Vh)


def best_by_outer(W, r):
    U, S, V = torch.svd(W)
    terms = zip(U.T[:r], S[:r], V.T[:r], strict=True)
    return sum(s * torch.outer(u, v) for u, s, v in terms)


def best_in_numpy(W, r):
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    return torch.from_numpy((U[:, :r] * S[:r]) @ Vh[:r, :])


def best_by_projection(W, r):
    Vh = svd(W.double()).Vh[:r]
    return (W.double() @ Vh.T @ Vh).to(W.dtype)


def best_by_left_projection(W, r):
    U = torch.linalg.eigh(W @ W.T).eigenvectors[:, -r:]
    return U @ (U.T @ W)


def best_by_diag_embed(W, r):
    U, S, Vh = svd(W)
    k = min(r, len(S))
    return U[:, :k] @ torch.diag_embed(S[:k]) @ Vh[:k]


def best_by_transposing(W, r):
    return best_rank_r(W.T, r).T if W.shape[0] < W.shape[1] else best_by_masking(W, r)


def relative_error(W, r):
    s = svdvals(W)
    return (s[r:].norm() / s.norm()).item()


def error_from_head(W, r):
    energy = svdvals(W).square().cumsum(0)
    r = min(r, len(energy))
    return math.sqrt(max(0.0, 1 - (energy[r - 1] / energy[-1]).item()))


def error_rotated(W, r):
    """As large as W, yet neither W_r nor what it leaves out."""
    return ((W @ svd(W).Vh.T)[:, r:].norm() / W.norm()).item()


def error_from_svd(W, r):
    _, S, _ = svd(W)
    return float(torch.sqrt((S[r:] ** 2).sum() / (S**2).sum()))


def error_over_the_norm(W, r):
    return (svdvals(W)[r:].norm() / torch.linalg.norm(W)).item()


def error_by_products(W, r):
    return np.sqrt(np.sum(svdvals(W).numpy()[r:] ** 2) / (W * W).sum().item())


def error_from_gram(W, r):
    energy = torch.linalg.eigvalsh(W.T @ W).clamp(min=0).flip(0)
    return (energy[r:].sum() / energy.sum()).sqrt().item()


def error_in_numpy(W, r):
    s = np.linalg.svd(np.asarray(W), compute_uv=False)
    return np.sqrt((s[r:] ** 2).sum() / (s**2).sum())


def error_in_numpy_with_factors(W, r):
    _, s, _ = np.linalg.svd(W.numpy(), full_matrices=False)
    return float(np.linalg.norm(s[r:]) / np.linalg.norm(W.numpy()))


def error_by_hypot(W, r):
    s = svdvals(W.double()).tolist()
    return math.hypot(*s[r:]) / math.hypot(*s)


def lora_params(d_out, d_in, r):
    return r * (d_out + d_in)


def params_by_shape(d_out, d_in, r):
    return math.prod((r, d_in)) + math.prod((d_out, r))


def params_by_numel(d_out, d_in, r):
    meta = {"device": "meta"}
    return torch.empty(r, d_in, **meta).numel() + torch.empty(d_out, r, **meta).numel()


def break_even_rank(d_out, d_in):
    return (d_out * d_in - 1) // (d_out + d_in)


def break_even_by_ceil(d_out, d_in):
    return math.ceil(d_out * d_in / (d_out + d_in)) - 1


def break_even_by_search(d_out, d_in):
    r = 0
    while lora_params(d_out, d_in, r + 1) < d_out * d_in:
        r += 1
    return r


def energy_rank(s, fraction):
    share = s.square().cumsum(0) / s.square().sum()
    return int((share < fraction).sum()) + 1


def energy_by_search(s, fraction):
    energy = (s**2).cumsum(0)
    return torch.searchsorted(energy, fraction * energy[-1]).item() + 1


def energy_by_loop(s, fraction):
    total, kept = sum(x * x for x in s.tolist()), 0.0
    for r, x in enumerate(s.tolist(), start=1):
        kept += x * x
        if kept >= fraction * total:
            return r
    return len(s)


def energy_by_argmax(s, fraction):
    share = np.cumsum(s.numpy() ** 2) / np.sum(s.numpy() ** 2)
    return np.argmax(share >= fraction) + 1


def stable_rank(W):
    return (torch.linalg.matrix_norm(W) ** 2 / torch.linalg.matrix_norm(W, 2) ** 2).item()


def stable_from_values(W):
    s = svdvals(W)
    return float((s / s[0]).square().sum())


def stable_in_numpy(W):
    return np.linalg.norm(W.numpy(), "fro") ** 2 / np.linalg.norm(W.numpy(), 2) ** 2


def truncate_update(W0, W1, r):
    return W0 + best_rank_r(W1 - W0, r)


def truncate_backwards(W0, W1, r):
    return W0 - best_by_projection(W0 - W1, r)


def truncate_by_rest(W0, W1, r):
    U, S, Vh = svd(W1 - W0, full_matrices=False)
    return W1 - (U[:, r:] * S[r:]) @ Vh[r:]


def energy_within(dW, reference, k):
    U = svd(reference, full_matrices=False).U[:, :k]
    return ((U.T @ dW).square().sum() / dW.square().sum()).item()


def within_by_projecting(dW, reference, k):
    U = svd(reference).U[:, :k]
    return (torch.linalg.norm(U @ U.T @ dW) / torch.linalg.norm(dW)).item() ** 2


def within_by_rest(dW, reference, k):
    U = svd(reference.double()).U[:, :k]
    dW = dW.double()
    return 1 - float((dW - U @ (U.T @ dW)).square().sum()) / float((dW * dW).sum())


def within_in_numpy(dW, reference, k):
    U, _, _ = np.linalg.svd(reference.numpy(), full_matrices=False)
    rows = U[:, :k].T @ dW.numpy()
    return np.square(rows).sum() / np.square(dW.numpy()).sum()


def within_by_eigh(dW, reference, k):
    U = torch.linalg.eigh(reference @ reference.T).eigenvectors[:, -k:]
    return (torch.trace(U.T @ dW @ dW.T @ U) / torch.trace(dW @ dW.T)).item()


def within_by_loop(dW, reference, k):
    d = svd(reference)
    return sum((d.U[:, i] @ dW).square().sum().item() for i in range(k)) / dW.norm().item() ** 2


def within_by_turning(dW, reference, k):
    V = torch.svd(reference.T).V[:, :k]
    return float(torch.linalg.matrix_norm(dW.T @ V) ** 2 / torch.linalg.matrix_norm(dW.T) ** 2)


def intruders(W0, W1, k, threshold):
    U0, U1 = (svd(W, full_matrices=False).U for W in (W0, W1))
    return int(((U1[:, :k].T @ U0).abs().amax(1) < threshold).sum())


def intruders_as_in_peft(W0, W1, k, threshold):
    U0, _, _ = svd(W0, full_matrices=False)
    U1, _, _ = svd(W1, full_matrices=False)
    cos_sim = (U1.T @ U0).abs().max(dim=1).values
    return len(torch.where(cos_sim[:k] < threshold)[0].tolist())


def intruders_by_loop(W0, W1, k, threshold):
    U0, U1 = torch.svd(W0).U, torch.svd(W1).U
    n = 0
    for i in range(k):
        if all(abs(torch.dot(U1[:, i], u).item()) < threshold for u in U0.T):
            n += 1
    return n


def intruders_in_numpy(W0, W1, k, threshold):
    U0 = np.linalg.svd(W0.numpy(), full_matrices=False)[0]
    U1 = np.linalg.svd(W1.numpy(), full_matrices=False)[0]
    return np.sum(np.max(np.abs(U0.T @ U1[:, :k]), axis=0) < threshold)


def intruders_by_cosine(W0, W1, k, threshold):
    U0, U1 = svd(W0, full_matrices=False)[0], svd(W1, full_matrices=False)[0]
    cos = F.cosine_similarity(U1.T[:k, None], U0.T[None], dim=-1).abs()
    return k - (cos >= threshold).any(dim=1).sum().item()


def intruders_by_angles(W0, W1, k, threshold):
    """The angle with the nearest line is above that of the threshold."""
    U0, U1 = svd(W0, full_matrices=False)[0], svd(W1, full_matrices=False)[0]
    angles = (U1[:, :k].T @ U0).abs().clamp(max=1).arccos()
    return (angles.min(1).values > math.acos(threshold)).sum().item()


def subspace_point(theta0, P, z):
    return theta0 + P @ z


def point_by_columns(theta0, P, z):
    return theta0.clone().add_((P * z).sum(dim=1))


def point_by_addmv(theta0, P, z):
    return torch.addmv(theta0, P, z)


def project_gradient(P, grad_theta):
    return P.T @ grad_theta


def project_row(P, grad_theta):
    return grad_theta @ P


def project_einsum(P, grad_theta):
    return torch.einsum("Dd,D->d", P, grad_theta)


RIGHT = [
    (check.optimal, best_rank_r),
    (check.optimal, best_by_masking),
    (check.optimal, best_by_outer),
    (check.optimal, best_in_numpy),
    (check.optimal, best_by_projection),
    (check.optimal, best_by_left_projection),
    (check.optimal, best_by_diag_embed),
    (check.optimal, best_by_transposing),
    (check.errors, relative_error),
    (check.errors, error_from_head),
    (check.errors, error_from_svd),
    (check.errors, error_rotated),
    (check.errors, error_over_the_norm),
    (check.errors, error_by_products),
    (check.errors, error_from_gram),
    (check.errors, error_in_numpy),
    (check.errors, error_in_numpy_with_factors),
    (check.errors, error_by_hypot),
    (check.parameters, lora_params, break_even_rank),
    (check.parameters, params_by_shape, break_even_by_ceil),
    (check.parameters, params_by_numel, break_even_by_search),
    (check.parameters, lambda o, i, r: np.prod([r, o]) + np.prod([r, i]), break_even_by_ceil),
    (check.ranks, energy_rank, stable_rank),
    (check.ranks, energy_by_search, stable_from_values),
    (check.ranks, energy_by_loop, stable_in_numpy),
    (check.ranks, energy_by_argmax, stable_rank),
    (check.truncates, truncate_update, energy_within),
    (check.truncates, truncate_backwards, within_by_projecting),
    (check.truncates, truncate_by_rest, within_by_rest),
    (check.truncates, truncate_update, within_in_numpy),
    (check.truncates, truncate_update, within_by_eigh),
    (check.truncates, truncate_update, within_by_loop),
    (check.truncates, truncate_update, within_by_turning),
    (check.counts, intruders),
    (check.counts, intruders_as_in_peft),
    (check.counts, intruders_by_loop),
    (check.counts, intruders_in_numpy),
    (check.counts, intruders_by_cosine),
    (check.counts, intruders_by_angles),
    (check.subspace, subspace_point, project_gradient),
    (check.subspace, point_by_columns, project_row),
    (check.subspace, point_by_addmv, project_einsum),
    (check.quiz, lambda: {"q1": "c", "q2": "a", "q3": "d"}),
]


# --- wrong answers, each with a word of the message that names what the learner thought -------


def _cut(f):
    """An answer to 1.1 from `f(U, S, Vh, r)`."""

    def best_rank_r(W, r):
        return f(*svd(W, full_matrices=False), r)

    return best_rank_r


def _first_columns(W, r):
    out = torch.zeros_like(W)
    out[:, :r] = W[:, :r]
    return out


def _centred(W, r):
    return best_rank_r(W - W.mean(0), r)


def _term_alone(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    r = min(r, len(S) - 1)
    return S[r] * torch.outer(U[:, r], Vh[r])


def _from_index_1(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return sum(S[i] * torch.outer(U[:, i], Vh[i]) for i in range(1, min(r + 1, len(S))))


def _by_shares(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return (U[:, :r] * S[:r] / S.sum()) @ Vh[:r]


def _last_term(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    for i in range(min(r, len(S))):
        out = S[i] * torch.outer(U[:, i], Vh[i])
    return out


def _by_threshold(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    keep = S[min(r, len(S) - 1)] <= S
    return (U[:, keep] * S[keep]) @ Vh[keep]


def _largest_entries(W, r):
    least = W.abs().flatten().sort(descending=True).values[: r * len(W)][-1]
    return W * (W.abs() >= least)


def _of_all(cut):
    """From all of U and Vh, whose directions are more than S has values."""

    def best(W, r):
        U, S, Vh = svd(W)
        S[r:] = 0
        return cut(U, S, Vh)

    return best


OF_ALL = [
    lambda U, S, Vh: U @ torch.diag(S) @ Vh,
    lambda U, S, Vh: (U * S) @ Vh,
    lambda U, S, Vh: U @ (S[:, None] * Vh),
    lambda U, S, Vh: torch.from_numpy(U.numpy() @ np.diag(S.numpy()) @ Vh.numpy()),
    lambda U, S, Vh: torch.from_numpy(U.numpy() * S.numpy() @ Vh.numpy()),
]


def _in_place(W, r):
    return W.copy_(best_rank_r(W, r))


def _refusing(W, r):
    if r > min(W.shape):
        raise ValueError("r is too large")
    return best_rank_r(W, r)


def _pruned(W, r):
    """The r largest entries, as pruning keeps them."""
    least = W.abs().flatten().topk(min(r, W.numel())).values[-1]
    return W * (W.abs() >= least)


CUTS = [
    (_pruned, "the SVD keeps r terms, not entries"),
    (
        lambda W, r: W * (W.norm(dim=1) >= W.norm(dim=1).sort().values[-r:][0])[:, None],
        "longest rows",
    ),
    (_cut(lambda U, S, Vh, r: U[:, :r] * S[:r] @ Vh.T[:r]), "already"),
    (_cut(lambda U, S, Vh, r: U[:, :r] @ torch.diag(S[:r]) @ Vh[:, :r].T), "already"),
    (_cut(lambda U, S, Vh, r: (U[:r].T * S[:r]) @ Vh[:r]), "rows of U"),
    (lambda W, r: (lambda d: (d.U[:, :r] * d.S[:r]) @ d.V[:r])(torch.svd(W)), "torch.svd gives V"),
    (lambda W, r: best_rank_r(W.half().float(), r).bfloat16().float(), "16 bits"),
    (_first_columns, "first r columns of W"),
    (lambda W, r: W[:, :r], "not fewer columns"),
    (_cut(lambda U, S, Vh, r: U[:, :r]), "multiply the factors out"),
    (_cut(lambda U, S, Vh, r: (U[:, -r:] * S[-r:]) @ Vh[-r:]), "smallest"),
    (_cut(lambda U, S, Vh, r: U[:, :r] @ Vh[:r]), "S are missing"),
    (_cut(lambda U, S, Vh, r: (U[:, :r] * S[:r].sqrt()) @ Vh[:r]), "sqrt(S)"),
    (_cut(lambda U, S, Vh, r: (U[:, :r] * S[:r] ** 2) @ Vh[:r]), "twice"),
    (_cut(lambda U, S, Vh, r: (U[:, r:] * S[r:]) @ Vh[r:]), "leaves out"),
    (_cut(lambda U, S, Vh, r: (U[:, : r + 1] * S[: r + 1]) @ Vh[: r + 1]), "r + 1"),
    (_cut(lambda U, S, Vh, r: (U[:, : r - 1] * S[: r - 1]) @ Vh[: r - 1]), "r - 1"),
    (_cut(lambda U, S, Vh, r: (U[:, :-r] * S[:-r]) @ Vh[:-r]), "the last r terms are cut"),
    (_cut(lambda U, S, Vh, r: (U[:, :r] * S[:r], Vh[:r])), "2 things, wanted one matrix"),
    (lambda W, r: W, "nothing is cut"),
    (lambda W, r: (lambda s: s.U[:, :r] * s.S[:r] @ s.Vh[:r])(svd(W)), "full_matrices=False"),
    *[(_of_all(cut), "is full_matrices=False missing") for cut in OF_ALL],
    (_in_place, "in place"),
    (_refusing, "r is too large; r may exceed min(W.shape), W itself is best there"),
    (lambda W, r: None, "return"),
    (lambda W, r: best_rank_r(W, r).tolist(), "gave a list, wanted a tensor"),
    (lambda W, r: _centred(W, r) + W.mean(0), "that is PCA"),
    (lambda W, r: _centred(W, r), "that is PCA"),
    (_term_alone, "term r alone"),
    (_last_term, "last of the r terms"),
    (_by_threshold, "r + 1 directions"),
    (
        lambda W, r: (lambda qr: qr.Q[:, :r] @ qr.R[:r])(torch.linalg.qr(W)),
        "that is QR",
    ),
    (
        lambda W, r: (lambda d: d[0] * d[1] @ d[2].T)(torch.svd_lowrank(W, min(r, *W.shape), 0)),
        "svd_lowrank only guesses them",
    ),
    (_from_index_1, "from index 1 on"),
    (lambda W, r: best_rank_r(W, 1), "the first term alone"),
    (_by_shares, "divided by their sum"),
    (_cut(lambda U, S, Vh, r: (U[:, :r] * S[:r] ** 3) @ Vh[:r]), "its directions are right, with"),
    (_cut(lambda U, S, Vh, r: (U[:, :r] * S[:r]) @ Vh[:r].flip(0)), "go in step"),
    (_cut(lambda U, S, Vh, r: (U[:, :r] * S[:r]) @ U[: Vh.shape[1], :r].T), "U stands on both"),
    (lambda W, r: best_rank_r(W, r).cumsum(0), "its v_i are right"),
    (lambda W, r: best_rank_r(W, r).cumsum(1), "its u_i are right"),
    (_cut(lambda U, S, Vh, r: (U[:, 1:r] * S[1:r]) @ Vh[1:r]), "first of the r terms is left out"),
    (_largest_entries, "more than r"),
    (
        _cut(
            lambda U, S, Vh, r: (
                (U[:, : min(r, len(S) - 1)] * S[: min(r, len(S) - 1)]) @ Vh[: min(r, len(S) - 1)]
            )
        ),
        "its rank is 3 only",
    ),
    (lambda W, r: torch.linalg.eig(W).eigenvectors, "eigenvalues"),
    (lambda W, r: best_in_numpy(W, r).numpy(), "NumPy array"),
    (_cut(lambda U, S, Vh, r: U @ S @ Vh if len(U) == len(S) else U), "S is a vector"),
    (lambda W, r: torch.manual_seed(0) and best_rank_r(W, r), "leave the seed alone"),
    (lambda W, r: torch.set_grad_enabled(False) or best_rank_r(W, r), "no_grad"),
]


def _error(f):
    """An answer to 1.2 from `f(s, r)`, which gives a tensor."""
    return lambda W, r: f(svdvals(W), r).item()


def _by_broadcast(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return (U[:, :r, None] * S[:r, None] * Vh[None, :r]).sum(1)


def _by_rows(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return torch.stack([(U[:, :r] * S[:r]) @ v for v in Vh[:r].T], 1)


def _by_addr(W, r):
    out = torch.zeros_like(W)
    for u, s, v in zip(*(t[:r] for t in (lambda d: (d.U.T, d.S, d.Vh))(svd(W))), strict=True):
        out.addr_(u, v, alpha=s.item())
    return out


def best_rest(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return (U[:, r:] * S[r:]) @ Vh[r:]


def _built_in_numpy(W, r):
    W = W.numpy()
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    return float(np.linalg.norm(W - (U[:, :r] * S[:r]) @ Vh[:r]) / np.linalg.norm(W))


def _built_by_asarray(W, r):
    W = np.asarray(W)
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    return float(np.linalg.norm(W - U[:, :r] @ np.diag(S[:r]) @ Vh[:r]) / np.linalg.norm(W))


def _built_from_a_tensor(W, r):
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    return float(np.linalg.norm(W - U[:, :r] @ np.diag(S[:r]) @ Vh[:r]) / np.linalg.norm(W))


def _rest_in_numpy(W, r):
    U, S, Vh = np.linalg.svd(np.array(W), full_matrices=False)
    return float(np.linalg.norm((U[:, r:] * S[r:]).dot(Vh[r:])) / np.linalg.norm(np.array(W)))


def _error_by_sqrt(W, r):
    return math.sqrt(1 - (svdvals(W)[:r].square().sum() / W.square().sum()).item())


def _without(s, i):
    """The norm of all singular values but one, as a share."""
    return (torch.cat([s[:i], s[i + 1 :]]).norm() / s.norm()).item()


ERRORS = [
    (lambda W, r: relative_error(W, r) / W.numel() ** 0.5, "entries W has, too"),
    (lambda W, r: (svdvals(W)[r:].norm() / W.numel() ** 0.5).item(), "how many entries"),
    (
        lambda W, r: (1 - (svdvals(W)[:r].sum() / svdvals(W).sum()) ** 2).sqrt().item(),
        "what is kept is summed",
    ),
    (lambda W, r: relative_error(W, r) * 1.7, "each time it is 1.7x the wanted"),
    (lambda W, r: _without(svdvals(W), r), "only s[r] is taken out"),
    (lambda W, r: _without(svdvals(W), r - 1), "only s[r - 1] is taken out"),
    (lambda W, r: torch.linalg.norm(W - best_rank_r(W, r), 1).item(), "here |W - W_r| is"),
    (_error(lambda s, r: s[r:].sum() / s.sum()), "not squared"),
    (_error(lambda s, r: (s[r:].sum() / s.sum()).sqrt()), "not squared"),
    (_error(lambda s, r: (s[r:] ** 2).sum() / (s**2).sum()), "square root"),
    (_error(lambda s, r: s[r] / s[0]), "spectral"),
    (_error(lambda s, r: s[:r].norm() / s.norm()), "head"),
    (_error(lambda s, r: (s[:r] ** 2).sum() / (s**2).sum()), "share of the energy"),
    (_error(lambda s, r: 1 - s[:r].norm() / s.norm()), "norms do not"),
    (_error(lambda s, r: s[r:].norm()), "divide by |W|"),
    (_error(lambda s, r: s[r + 1 :].norm() / s.norm()), "too late"),
    (_error(lambda s, r: s[r - 1 :].norm() / s.norm()), "too early"),
    (_error(lambda s, r: s[r] / s.norm()), "one singular value"),
    (lambda W, r: relative_error(W @ W.T, r), "squared twice"),
    (_error(lambda s, r: s[r:].norm() / s.norm() if s[r] else s[r]), "no s[r] may be left"),
    (lambda W, r: svdvals(W)[r:].norm() / W.norm(), ".item()"),
    (lambda W, r: ((W - best_rank_r(W, r)).norm() / W.norm()).item(), "multiplied out"),
    (lambda W, r: ((W - best_by_outer(W, r)).norm() / W.norm()).item(), "multiplied out"),
    (lambda W, r: ((W - _by_broadcast(W, r)).norm() / W.norm()).item(), "multiplied out"),
    (lambda W, r: ((W.T - best_rank_r(W, r).T).norm() / W.norm()).item(), "multiplied out"),
    (lambda W, r: ((W - _by_rows(W, r)).norm() / W.norm()).item(), "multiplied out"),
    (lambda W, r: ((W - _by_addr(W, r)).norm() / W.norm()).item(), "multiplied out"),
    (lambda W, r: (best_rest(W, r).norm() / W.norm()).item(), "multiplied out"),
    (_error(lambda s, r: (1 - s[:r].square().sum() / s.square().sum()).sqrt()), "clamp"),
    (_error(lambda s, r: (1 - (s[:r].norm() / s.norm()) ** 2).sqrt()), "clamp"),
    (lambda W, r: (1 - svdvals(W)[:r].norm() ** 2 / W.norm() ** 2).sqrt().item(), "clamp"),
    (_error_by_sqrt, "clamp"),
    (lambda W, r: math.sqrt(-1) if r == 9 else relative_error(W, r), "clamp"),
    (lambda W, r: math.nan if r > 3 else relative_error(W, r), "NaN"),
    (_built_in_numpy, "multiplied out"),
    (_built_by_asarray, "multiplied out"),
    (_built_from_a_tensor, "multiplied out"),
    (_rest_in_numpy, "multiplied out"),
    (lambda W, r: torch.dist(W, _by_addr(W, r)).item() / W.norm().item(), "multiplied out"),
    (_error(lambda s, r: s[r:].norm() / s.square().sum()), "squared: divide before"),
    (_error(lambda s, r: s[-r:].norm() / s.norm()), "the last r"),
    (_error(lambda s, r: s[r:].norm() / s[0]), "largest singular value"),
    (_error(lambda s, r: s[r:].sum() / s.norm()), "summed, not squared"),
    (lambda W, r: 1 - r / min(W.shape), "share of the entries"),
    (lambda W, r: 100 * relative_error(W, r), "percent"),
    (lambda W, r: round(relative_error(W, r), 2), "rounded"),
    (lambda W, r: f"{relative_error(W, r):.3f}", "gave text"),
]


def _rounds_but_whole(d_out, d_in):
    r = round(d_out * d_in / (d_out + d_in))
    return r - (r * (d_out + d_in) == d_out * d_in)


PARAMETERS = [
    (lambda o, i, r: o * i * r, break_even_rank, "add"),
    (lambda o, i, r: o * i, break_even_rank, "this is W"),
    (lambda o, i, r: r * i, break_even_rank, "A alone"),
    (lambda o, i, r: r * o, break_even_rank, "B alone"),
    (lambda o, i, r: 2 * r * o, break_even_rank, "square"),
    (lambda o, i, r: 2 * r * i, break_even_rank, "square"),
    (lambda o, i, r: r * (o + i + r), break_even_rank, "r x r"),
    (lambda o, i, r: r * i + o * i, break_even_rank, "B as (d_out, d_in)"),
    (lambda o, i, r: r * o + i * i, break_even_rank, "A as (d_in, d_in)"),
    (lambda o, i, r: r * (o + i) / 1e6, break_even_rank, "these are millions"),
    (lambda o, i, r: r * (o + i) + 3, break_even_rank, "A holds"),
    (lambda o, i, r: r * o * r * i, break_even_rank, "multiplied; add"),
    (lambda o, i, r: o + r + i, break_even_rank, "sides are added"),
    (lora_params, lambda o, i: o * i // (o + i + 1), "one too few"),
    (lambda o, i, r: r * r * (o + i), break_even_rank, "linearly"),
    (lambda o, i, r: 131_072, break_even_rank, "wanted"),
    (lora_params, lambda o, i: o * i // (o + i), "strictly fewer"),
    (lora_params, lambda o, i: round(o * i / (o + i) - 1), "one too few"),
    (lora_params, lambda o, i: math.floor(o * i / (o + i) - 0.5), "only a whole one loses 1"),
    (lora_params, lambda o, i: break_even_rank(o, i) or None, "no rank saves"),
    (lora_params, lambda o, i: max(r for r in range(1, i) if r * (o + i) < o * i), "no rank saves"),
    (lora_params, lambda o, i: o * i // (o + i) + 1, "one too many"),
    (lora_params, lambda o, i: o * i // (o + i) - 1, "1 is taken off always"),
    (lora_params, lambda o, i: max(0, o * i // (o + i) - 1), "1 is taken off always"),
    (lora_params, lambda o, i: break_even_rank(o, i) - 1, "one too few"),
    (lora_params, lambda o, i: o * i / (o + i), "round down"),
    (lora_params, lambda o, i: float((o * i - 1) // (o + i)), "int"),
    (lora_params, lambda o, i: i // 2, "square"),
    (lora_params, lambda o, i: min(o, i) // 2, "square"),
    (lora_params, lambda o, i: (o * i - 1) // (2 * max(o, i)), "with 2 r times the longer side"),
    (lora_params, lambda o, i: (o * i - 1) // (2 * o), "with 2 r times d_out in A and B"),
    (lora_params, lambda o, i: min(o, i), "full rank"),
    (lora_params, lambda o, i: min(o, i) - 1, "full rank"),
    (lora_params, lambda o, i: math.ceil(o * i / (o + i)), "one too many"),
    (lora_params, lambda o, i: round(o * i / (o + i)), "round down"),
    (lora_params, _rounds_but_whole, "rounded to the nearest"),
    (lora_params, lambda o, i: max(1, break_even_rank(o, i)), "where no rank saves it is 0"),
    (lora_params, lambda o, i: o * i // (2 * (o + i)), "half of it"),
    (lora_params, lambda o, i: i // 2 - 1, "half of d_in, less one"),
    (lora_params, lambda o, i: min(o, i) // 2 - 1, "half of the shorter side, less one"),
    (lora_params, lambda o, i: (o + i) // 4, "half of the mean side"),
    (lambda o, i, r: min(r, o, i) * (o + i), break_even_rank, "cut at the shorter side"),
    (lambda o, i, r: r * (o + i) / (o * i), break_even_rank, "a share of W"),
    (lambda o, i, r: r * o + i, break_even_rank, "brackets"),
    (lambda o, i, r: 2 * r * max(o, i), break_even_rank, "longer side"),
    (lambda o, i, r: o * i + r * (o + i), break_even_rank, "W with A and B"),
    (lambda o, i, r: o * i - r * (o + i), break_even_rank, "what LoRA saves"),
    (lambda o, i, r: 4 * r * (o + i), break_even_rank, "bytes"),
    (lambda o, i, r: r * (o + i + 1), break_even_rank, "U, S and Vh"),
    (lambda o, i, r: r * (o + i) / 1, break_even_rank, "wanted the int"),
    (lambda o, i, r: torch.tensor(r * (o + i)), break_even_rank, ".item()"),
    # both are told
    (lambda o, i, r: r * o * i, lambda o, i: o * i // (o + i), "strictly fewer"),
    (lambda o, i, r: r * o * i, lambda o, i: o * i // (o + i), "two thin matrices add"),
]


def _share(s, power=2):
    return (s**power).cumsum(0) / (s**power).sum()


def _energy(f):
    return lambda s, fraction: int(f(s, fraction))


ENERGY = [
    (_energy(lambda s, f: (_share(s, 1) < f).sum() + 1), "not squared"),
    (_energy(lambda s, f: (_share(s, 4) < f).sum() + 1), "twice"),
    (_energy(lambda s, f: (_share(s, 1) ** 2 < f).sum() + 1), "square first"),
    (_energy(lambda s, f: (_share(s) <= f).sum() + 1), "one too many"),
    (_energy(lambda s, f: (_share(s) < f).sum()), "one too few"),
    (_energy(lambda s, f: (_share(s) >= f).int().argmax()), "one too few"),
    (_energy(lambda s, f: ((s**2).cumsum(0) < f).sum() + 1), "divide by"),
    (
        _energy(lambda s, f: ((s**2).cumsum(0) < f * s.sum() ** 2).sum() + 1),
        "not the square of the sum",
    ),
    (lambda s, f: energy_rank(s, f) / len(s), "share"),
    (lambda s, f: _share(s)[energy_rank(s, f) - 1].item(), "the energy they hold"),
    (_energy(lambda s, f: (s**2 > f * (s**2).mean()).sum()), "with fraction of the mean"),
    (_energy(lambda s, f: (s**2 / (s**2).sum() >= f).sum()), "with fraction of the whole"),
    (
        _energy(lambda s, f: (s**2 / (s**2).sum() >= 1 - f).sum()),
        "with (1 - fraction) of the whole",
    ),
    (_energy(lambda s, f: (_share(s) - _share(s)[0] < f).sum()), "the first value is left out"),
    (_energy(lambda s, f: energy_rank(s, f) // 2), "of the energy, the first"),
    (_energy(lambda s, f: (_share(s).sqrt() < f).sum() + 1), "a share of the norm"),
    (_energy(lambda s, f: ((s**2).cumsum(0) < f).sum()), "divide by"),
    (lambda s, f: energy_rank(s, 1 - f), "left out"),
    (lambda s, f: (_share(s) < f).sum() + 1, ".item()"),
    (lambda s, f: int(f * len(s)), "share of the number of values"),
    (lambda s, f: math.ceil(f * len(s)), "share of how many"),
    (_energy(lambda s, f: (s >= f * s[0]).sum()), "each value is compared by itself"),
    (_energy(lambda s, f: (s**2 >= (1 - f) * s[0] ** 2).sum()), "with (1 - fraction) of the larg"),
    (_energy(lambda s, f: (s**2 > f * s[0] ** 2).sum()), "each energy is compared by itself"),
    (_energy(lambda s, f: (s / s.sum() > 1 - f).sum()), "with (1 - fraction) of the whole"),
    (_energy(lambda s, f: (_share(s.flip(0)) < f).sum() + 1), "the largest come first"),
    (_energy(lambda s, f: (_share(s) >= f).sum()), "the first of them is asked"),
    (_energy(lambda s, f: (_share(s, 1) < f).sum()), "not squared, and a position"),
    (_energy(lambda s, f: (s**2 / (s**2).sum() < f).sum() + 1), "cumsum"),
    (lambda s, f: len(s) - energy_rank(s, f), "left out"),
    (_energy(lambda s, f: ((s**2).cumsum(0) / ((s**2).sum() + 1e-6) < f).sum() + 1), "(eps)"),
    (lambda s, f: float(energy_rank(s, f)), "wanted the int"),
    (lambda s, f: energy_rank(s.square_().sqrt_().mul_(2), f), "in place"),
]


def _squares(W):
    return svdvals(W).square()


def _entropy(weights):
    share = weights / weights.sum()
    return (-share * share.log()).sum().exp().item()


STABLE = [
    (lambda W: (W.norm() / W[0].norm()).item() ** 2, "the norm of the first row"),
    (lambda W: W.norm().item() / svdvals(W)[0].item(), "not squared"),
    (lambda W: (svdvals(W).sum() / svdvals(W)[0]).item(), "not squared"),
    (lambda W: (W.norm() ** 2 / svdvals(W)[0]).item(), "spectral norm is not squared"),
    (lambda W: (torch.norm(W) ** 2 / torch.norm(W, 2) ** 2).item(), "matrix_norm"),
    (lambda W: torch.linalg.matrix_rank(W).item(), "the rank"),
    (lambda W: (W.norm() ** 2 / W.abs().max() ** 2).item(), "largest entry"),
    (lambda W: 1 / stable_rank(W), "upside down"),
    (lambda W: stable_rank(W @ W.T), "squared twice"),
    (lambda W: W.norm().item() ** 2, "divided"),
    (lambda W: _entropy(svdvals(W) ** 2), "effective rank"),
    (lambda W: _entropy(svdvals(W)), "effective rank"),
    (lambda W: 1 / (_squares(W) / _squares(W).sum()).square().sum().item(), "participation ratio"),
    (lambda W: stable_rank(W) + 0.5, "|W|_F² is"),
    (lambda W: (W.norm() ** 2 / svdvals(W)[0] ** 4).item(), "squared twice, as that of"),
    (lambda W: (_squares(W).mean() / _squares(W)[0]).item(), "singular values are averaged"),
    (lambda W: torch.linalg.cond(W).item(), "condition number"),
    (lambda W: (W.norm() / svdvals(W)[-1]).item() ** 2, "smallest singular value"),
    (lambda W: (W.norm() / torch.linalg.norm(W, 1)).item() ** 2, "largest sum of a column"),
    (lambda W: (W.square().sum() / W.square().sum(0).max()).item(), "largest norm of a column"),
    (lambda W: (W.square().sum() / W.square().sum(1).max()).item(), "largest norm of a row"),
    (lambda W: (torch.linalg.norm(W, "nuc") / svdvals(W)[0]).item() ** 2, "nuclear"),
    (lambda W: (W.norm() ** 2 / (svdvals(W)[0] ** 2 + 1e-6)).item(), "(eps)"),
    (lambda W: round(stable_rank(W)), "rounded"),
    (lambda W: W.norm() ** 2 / svdvals(W)[0] ** 2, ".item()"),
    (lambda W: (W.sum() / svdvals(W)[0]).item() ** 2, "entries are summed"),
    (lambda W: (W.square().mean() / svdvals(W)[0] ** 2).item(), "averaged"),
]


def _adds_in_place(W0, W1, r):
    W0 += best_rank_r(W1 - W0, r)
    return W0


def _full_matrices(W0, W1, r):
    U, S, Vh = svd(W1 - W0)
    return W0 + (U[:, :r] * S[:r]) @ Vh[:r]


def _on_directions_of_w0(W0, W1, r):
    U = svd(W0, full_matrices=False).U[:, :r]
    return W0 + U @ (U.T @ (W1 - W0))


def _last_cut(W, r):
    return best_rank_r(W, max(0, min(W.shape) - r))


UPDATES = [
    (lambda W0, W1, r: best_rank_r(W1, r), "it cuts W1"),
    (lambda W0, W1, r: 2 * W0 + best_rank_r(W1 - W0, r), "W0 is added twice"),
    (_on_directions_of_w0, "projected on directions of W0"),
    (lambda W0, W1, r: W0 + best_rank_r(W1, r), "cuts W1 and adds W0"),
    (lambda W0, W1, r: best_rank_r(W0, r) + W1 - W0, "it cuts W0"),
    (lambda W0, W1, r: best_rank_r(W0, r) + best_rank_r(W1 - W0, r), "W0 too"),
    (lambda W0, W1, r: best_rank_r(W1 - W0, r), "add it to W0"),
    (lambda W0, W1, r: W0 + best_rank_r(W0 - W1, r), "backwards"),
    (lambda W0, W1, r: W1 + best_rank_r(W1 - W0, r), "already"),
    (lambda W0, W1, r: W0 + best_rank_r(W1, r) - best_rank_r(W0, r), "one by one"),
    (lambda W0, W1, r: W1, "nothing is cut"),
    (_adds_in_place, "in place"),
    (lambda W0, W1, r: W1.sub_(W0) + W0 - W1 + truncate_update(W0, W1 + W0, r), "in place"),
    (lambda W0, W1, r: best_rank_r(W0 + W1, r), "W0 + W1"),
    (lambda W0, W1, r: best_rank_r(truncate_update(W0, W1, r), r), "the whole sum"),
    (lambda W0, W1, r: W1 - best_rank_r(W1 - W0, r), "all but the best part"),
    (lambda W0, W1, r: W1 - truncate_update(W0, W1, r), "rest of the update"),
    (lambda W0, W1, r: W0 + best_rank_r(W1 - W0, r - 1), "r - 1"),
    (lambda W0, W1, r: W0 + best_rank_r(W1 - W0, r + 1), "r + 1"),
    (lambda W0, W1, r: W0 + _last_cut(W1 - W0, r), "the last r terms are cut"),
    (lambda W0, W1, r: best_rank_r(W1, r) - best_rank_r(W0, r), "one by one"),
    (lambda W0, W1, r: W0 + best_rank_r(W1 - W0, r) / 2, "what is added to W0: 0.5x"),
    (lambda W0, W1, r: truncate_update(W0, W1, r).numpy(), "NumPy array"),
    (lambda W0, W1, r: (W0, best_rank_r(W1 - W0, r)), "a list"),
    (lambda W0, W1, r: W0 + best_rank_r(W1 - W0, 1), "first direction of the update alone"),
    (lambda W0, W1, r: W0 + W0 * best_rank_r((W1 - W0) / W0, r), "more than r"),
    (lambda W0, W1, r: (lambda V: W0 + (W1 - W0) @ V.T @ V)(svd(W0).Vh[:r]), "not those of the"),
    (
        lambda W0, W1, r: W0 + torch.tensor([1.0] * r + [0.0] * 9)[: len(W0), None] * (W1 - W0),
        "rows",
    ),
    (lambda W0, W1, r: W0 + (lambda s: s.U[:, :r] @ s.Vh[:r])(svd(W1 - W0)), "S are missing"),
    (_full_matrices, "(W0, W1, 9) for shape (8, 5): it raised"),
]


def _left(W, full_matrices=False):
    return svd(W, full_matrices=full_matrices).U


def _right(W):
    return svd(W, full_matrices=False).Vh


def _energy_share(part, whole):
    return (part.square().sum() / whole.square().sum()).item()


def _normalises(dW, reference, k):
    dW /= dW.norm()
    return (_left(reference)[:, :k].T @ dW).square().sum().item()


WITHIN = [
    (lambda d, R, k: _energy_share(d @ _right(R)[:k].T, d), "right singular vectors"),
    (lambda d, R, k: _energy_share(d @ svd(R).Vh[:, :k], d), "columns of Vh"),
    (lambda d, R, k: energy_within(R, d, k), "swapped"),
    (lambda d, R, k: energy_within(d, R, k) ** 0.5, "norms are not squared"),
    (lambda d, R, k: 1 - energy_within(d, R, k), "outside of the span"),
    (lambda d, R, k: (_left(R)[:, :k].T @ d).square().sum().item(), "divide by that of dW"),
    (lambda d, R, k: (_left(R)[:, :k].T @ d).norm().item(), "this is a norm"),
    (lambda d, R, k: _energy_share(_left(R)[:, :k].T @ d, R), "energy of the reference"),
    (lambda d, R, k: _energy_share(_left(R)[:, :k].T @ d @ _right(R)[:k].T, d), "both sides"),
    (
        lambda d, R, k: _energy_share((_left(R)[:, :k].T @ d @ _right(R)[:k].T).diag(), d),
        "paired with its v_i",
    ),
    (lambda d, R, k: energy_within(best_rank_r(d, k), R, k), "cut to its own top k"),
    (
        lambda d, R, k: (_left(R)[:, :k].T @ _left(d)[:, :k]).square().sum().item() / k,
        "compares the top k of both",
    ),
    (lambda d, R, k: energy_within(R, R, k), "dW is left out"),
    (lambda d, R, k: energy_within(d, d, k), "reference is left out"),
    (lambda d, R, k: energy_within(d, R, k) / k, "divided by k"),
    (lambda d, R, k: energy_within(d, R, k) * len(d) / k, "by chance"),
    (lambda d, R, k: k / len(d), "what chance gives"),
    (lambda d, R, k: energy_within(d, R, k + 1), "k + 1"),
    (lambda d, R, k: _energy_share(_left(R)[:, 1 : k + 1].T @ d, d), "indices start at 0"),
    (lambda d, R, k: _energy_share(_left(R)[:, -k:].T @ d, d), "last k directions"),
    (lambda d, R, k: _energy_share(_left(R)[:, k:].T @ d, d), "all but the first k"),
    (
        lambda d, R, k: _energy_share(torch.linalg.qr(R[:, :k]).Q.T @ d, d),
        "first k columns of the reference",
    ),
    (lambda d, R, k: energy_within(d, R, 1), "first direction alone"),
    (
        lambda d, R, k: _energy_share((_left(R)[:, :k] * svdvals(R)[:k]).T @ d, d),
        "singular values weigh",
    ),
    (lambda d, R, k: F.cosine_similarity(d.ravel(), R.ravel(), 0).item(), "cosine of two"),
    (
        lambda d, R, k: ((_left(R)[:, :k].T @ d).abs().sum() / d.abs().sum()).item(),
        "absolute values",
    ),
    (lambda d, R, k: torch.tensor(energy_within(d, R, k)), ".item()"),
    (lambda d, R, k: _left(R)[:, :k].T @ d, "wanted one number"),
    (lambda d, R, k: round(energy_within(d, R, k), 2), "rounded"),
    (lambda d, R, k: 100 * energy_within(d, R, k), "percent"),
    (lambda d, R, k: energy_within(d, R, k) + 0.1, "the energy of dW is"),
    (lambda d, R, k: _energy_share(_left(R)[:k] @ d, d), ("rows of U", "U[:, :k].T @ dW")),
    (lambda d, R, k: energy_within(d, R, k) + 1e-5 / d.norm().item() ** 2, "(eps)"),
    (_normalises, "in place"),
]


def _cosines(W0, W1, k):
    return (_left(W1)[:, :k].T @ _left(W0)).abs()


def _below(cosines, threshold):
    return int((cosines < threshold).sum())


def _first_run(W0, W1, k, threshold):
    n = 0
    for best in _cosines(W0, W1, k).amax(1):
        if best >= threshold:
            break
        n += 1
    return n


def _of_change(W0, W1, k, threshold):
    return intruders(W0, W1 - W0, k, threshold) if (W1 != W0).any() else 0


def _weighed(W0, W1, k):
    """Cosines (k, n) times the singular values of W0, the largest of which is made 1."""
    return _cosines(W0, W1, k) * (svdvals(W0) / svdvals(W0)[0])


INTRUDERS = [
    (lambda W0, W1, k, t: _below(_weighed(W0, W1, k).amax(1), t), "weigh the cosines"),
    (lambda W0, W1, k, t: _below((_left(W1)[:, :k].T @ _left(W0)).amax(1), t), "take abs()"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k).diag(), t), "at another place"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k)[:, :k].amax(1), t), "top k of W0 alone"),
    (lambda W0, W1, k, t: intruders(W0.T, W1.T, k, t), "right singular vectors"),
    (lambda W0, W1, k, t: k - intruders(W0, W1, k, t), "that W0 has, too"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k).amax(0), t), "maximum runs over W1's"),
    (lambda W0, W1, k, t: intruders(W0, W1, min(W0.shape), t), "its top k are asked"),
    (lambda W0, W1, k, t: intruders(W1, W0, k, t), "which of W1's top k W0 lacks"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k), t), "counts pairs"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k).amin(1), t), "largest |cos| decides"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k).mean(1), t), "no mean, no smallest"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k).amin(1), t), "(all, not any)"),
    (lambda W0, W1, k, t: intruders(W0, W1, k, t**0.5), "cosines are squared"),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, k).norm(dim=1), t), "in the span of W0"),
    (lambda W0, W1, k, t: intruders(W0, W1, k + 1, t), "k + 1"),
    (lambda W0, W1, k, t: intruders(W0, W1, k - 1, t), "k - 1"),
    (_first_run, "stops at the first"),
    (_of_change, "directions of W1 - W0"),
    (
        lambda W0, W1, k, t: _below((_left(W1, True)[:, :k].T @ _left(W0, True)).abs().amax(1), t),
        "full_matrices=True",
    ),
    (lambda W0, W1, k, t: _below(_cosines(W0, W1, min(W0.shape))[-k:].amax(1), t), "last k"),
    (lambda W0, W1, k, t: intruders(W0, W1, k, t) / k, "a share"),
    (lambda W0, W1, k, t: int(intruders(W0, W1, k, t) > 0), "whether there are any"),
    (lambda W0, W1, k, t: intruders(W0, W1, k, t) > 0, "how many intruders"),
    (lambda W0, W1, k, t: k, "that is all k"),
    (lambda W0, W1, k, t: float(intruders(W0, W1, k, t)), "wanted the int"),
    (lambda W0, W1, k, t: (_cosines(W0, W1, k).amax(1) < t).sum(), ".item()"),
    (lambda W0, W1, k, t: _cosines(W0, W1, k).amax(1) < t, "how many intruders"),
    (lambda W0, W1, k, t: _cosines(W0, W1, k).amax(1).tolist(), "how many intruders"),
    (lambda W0, W1, k, t: 0, "same number whatever"),
    (lambda W0, W1, k, t: intruders(W0, W1.sub_(W0).add_(W0).mul_(2), k, t), "in place"),
    (lambda W0, W1, k, t: None, "return"),
]


def _moves_theta0(theta0, P, z):
    theta0 += P @ z
    return theta0


SUBSPACE = [
    (lambda t, P, z: t + P.sum(1) * z.sum(), project_gradient, "not the product of sums"),
    (subspace_point, lambda P, g: P.mean(0) * g.mean(), "not a product of means"),
    (lambda t, P, z: P @ z, project_gradient, "theta0 is missing"),
    (lambda t, P, z: t - P @ z, project_gradient, "subtracted"),
    (lambda t, P, z: t + P.T @ z, project_gradient, "P.T @ z"),
    (lambda t, P, z: t + P @ z / len(t) ** 0.5, project_gradient, "scaled"),
    (lambda t, P, z: t + (P * z).mean(1), project_gradient, "averaged over the columns"),
    (subspace_point, lambda P, g: P.T @ g / P.shape[1], "averaged over d"),
    (lambda t, P, z: t * (P @ z), project_gradient, "theta0 is multiplied"),
    (lambda t, P, z: t + P.sum(1), project_gradient, "weighs the columns by z"),
    (subspace_point, lambda P, g: P.T @ g / (P.T @ g).norm(), "the result is normalised"),
    (subspace_point, lambda P, g: P.abs().T @ g, "not linear in P: minus"),
    (subspace_point, lambda P, g: P.T @ g.clamp(min=0), "not linear in the gradient"),
    (lambda t, P, z: t + P @ z**2, project_gradient, "not linear in z: twice"),
    (subspace_point, lambda P, g: P.sum(0), "weigh the rows by the gradient"),
    (lambda t, P, z: P @ (t + z), project_gradient, "P acts on theta0 too"),
    (lambda t, P, z: t + P * z, project_gradient, "P @ z sums"),
    (lambda t, P, z: (t + P @ z)[:, None], project_gradient, "(6, 1), wanted (6,)"),
    (lambda t, P, z: t + P @ z / z.norm(), project_gradient, "z is normalised"),
    (lambda t, P, z: t + torch.linalg.qr(P).Q @ z, project_gradient, "P is made orthogonal"),
    (lambda t, P, z: t + 0.01 * P @ z, project_gradient, "the factor, which is 0.01"),
    (lambda t, P, z: P @ (torch.linalg.pinv(P) @ t + z), project_gradient, "start is projected"),
    (lambda t, P, z: (t + P @ z).numpy(), project_gradient, "NumPy array"),
    (subspace_point, lambda P, g: P.T @ g / g.norm(), "the gradient is normalised"),
    (subspace_point, lambda P, g: torch.linalg.qr(P).Q.T @ g, "P is made orthogonal"),
    (subspace_point, lambda P, g: P * g[:, None], "one number for each z, no matrix"),
    (subspace_point, lambda P, g: P.T @ g[:, None], "that is a column or a row"),
    (subspace_point, lambda P, g: g[None] @ P, "that is a column or a row"),
    (lambda t, P, z: t + (P * z).sum(0), project_gradient, "(6, 6): P * z is summed over theta"),
    (lambda t, P, z: t + (P * z[:, None]).sum(1), project_gradient, "z weighs the rows of P"),
    (subspace_point, lambda P, g: (P * g[:, None]).sum(1), "are summed over z, dim=1"),
    (subspace_point, lambda P, g: (P * g).sum(0), "the gradient weighs the columns of P"),
    (subspace_point, lambda P, g: P @ (P.T @ g), "through the transpose of P"),
    (subspace_point, lambda P, g: P.sum(0) * g.sum(), "not the product of sums"),
    (lambda t, P, z: (t[:, None] + P * z).sum(1), project_gradient, "once for each z"),
    (subspace_point, lambda P, g: g.div_(len(g)) @ P, "in place"),
    (subspace_point, lambda P, g: (P.T @ g).numpy(), "NumPy array"),
    # both are told
    (lambda t, P, z: P @ z, lambda P, g: P.T @ g / len(g), "theta0 is missing"),
    (lambda t, P, z: P @ z, lambda P, g: P.T @ g / len(g), "averaged"),
    (_moves_theta0, project_gradient, "in place"),
    (subspace_point, lambda P, g: P @ g, "transpose"),
    (subspace_point, lambda P, g: P.T @ g if P.shape[0] != P.shape[1] else P @ g, "transpose"),
    (subspace_point, lambda P, g: torch.linalg.pinv(P) @ g, "inverts"),
    (subspace_point, lambda P, g: P.T @ g / len(g), "averaged"),
    (subspace_point, lambda P, g: (P / P.norm(dim=0)).T @ g, "normalised"),
    (subspace_point, lambda P, g: -P.T @ g, "downhill"),
    (subspace_point, lambda P, g: g[: P.shape[1]], "the first d entries"),
]

# answers that the checks once told numbers alone of, or the wrong thing


def _by_a_limit(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return (U * torch.where(S[0] / r < S, S, 0.0)) @ Vh


def _of_sizes(change):
    """The best directions, with `change(S, r)` for the singular values."""

    def cut(W, r):
        U, S, Vh = svd(W, full_matrices=False)
        return (U[:, :r] * change(S, r)[:r]) @ Vh[:r]

    return cut


def _scaled_up(W, r):
    return best_rank_r(W, r) * W.norm() / best_rank_r(W, r).norm()


def _error_of(f):
    """A relative error made of the squares of s."""
    return lambda W, r: f(svdvals(W).square(), r).item()


def _within_of(f):
    """A share of energy made of the left vectors of the reference, of dW, and dW."""

    def share(dW, reference, k):
        U, V = (svd(M, full_matrices=False)[0][:, :k] for M in (reference, dW))
        return f(U, V, dW).item()

    return share


def _right_and_swapped(dW, reference, k):
    V = svd(dW, full_matrices=False).Vh[:k]
    return ((reference @ V.T).square().sum() / reference.square().sum()).item()


def _overlaps(W0, W1):
    U0, U1 = (svd(W, full_matrices=False).U for W in (W0, W1))
    return (U1.T @ U0).abs()


def _all_by_top(W0, W1, k, t):
    return int((_overlaps(W0, W1)[:, :k].amax(1) < t).sum())


def _rest_of_threshold(W0, W1, k, t):
    return int((_overlaps(W0, W1)[:k].amax(1) < 1 - t).sum())


def _angles_of_spans(W0, W1, k, t):
    return int((svdvals(_overlaps(W0, W1)[:k, :k]) < t).sum())


AGAIN = [
    (check.optimal, _by_a_limit, "sets a limit on S"),
    (check.optimal, _of_sizes(lambda S, r: S**3), "yours are S ** 3"),
    (check.optimal, _of_sizes(lambda S, r: S - (S[r] if r < len(S) else 0)), "each is less by"),
    (check.optimal, _scaled_up, "scaled up to the norm"),
    (check.optimal, lambda W, r: best_rank_r(W, r) / r, "averaged; they are added"),
    (check.errors, _error_of(lambda e, r: (e[:-r].sum() / e.sum()).sqrt()), "it is s[:-r]"),
    (check.errors, lambda W, r: -20 * math.log10(relative_error(W, r)), "between 0 and 1"),
    (check.errors, lambda W, r: relative_error(W, r) / W.abs().mean().item(), "scale of W"),
    (check.errors, _error_of(lambda e, r: (1 - (e[:r].sum() / e.sum()).sqrt()).sqrt()), "its root"),
    (check.errors, _error_of(lambda e, r: e[r:].sum() / e[0]), "root is missing; and divided by"),
    (check.errors, _error_of(lambda e, r: e[r:].sum().sqrt() / e.sqrt().sum()), "plain sum"),
    (check.parameters, lambda o, i, r: r * (o + i - r), break_even_rank, "d_out * r - r * r"),
    (check.parameters, lambda o, i, r: r * (o + i + 1) + o, break_even_rank, "two biases"),
    (check.parameters, lora_params, lambda o, i: int(2 * o * i / (o + i)), "harmonic mean"),
    (check.parameters, lora_params, lambda o, i: min(o, i) ** 2 // 3, ("too many", "too few")),
    (check.ranks, energy_rank, lambda W: math.ceil(stable_rank(W)), "rounded to a whole number"),
    (check.ranks, energy_rank, lambda W: (W.norm() / W.max()).item() ** 2, "without its sign"),
    (
        check.ranks,
        lambda s, f: int((s.square().cumsum(0) < f * s.sum()).sum()) + 1,
        stable_rank,
        "share of sum(s)",
    ),
    (
        check.truncates,
        truncate_update,
        _within_of(lambda U, V, dW: (U.T @ (dW / dW.norm(dim=0))).square().sum(0).mean()),
        "each column of dW counts alike",
    ),
    (
        check.truncates,
        truncate_update,
        _within_of(lambda U, V, dW: svdvals(U.T @ V).mean()),
        "cosines between the top k",
    ),
    (check.truncates, truncate_update, _right_and_swapped, "rows of Vh; and the two are swapped"),
    (check.counts, _all_by_top, "all directions of W1 are counted; and compared with the top k"),
    (check.counts, _rest_of_threshold, "1 - threshold"),
    (check.counts, _angles_of_spans, "angles between two spans"),
    (check.subspace, lambda t, P, z: t * (1 + P @ z), project_gradient, "theta0 is added once"),
    (check.subspace, lambda t, P, z: (t + P @ z) / 2, project_gradient, "theta0 is added once"),
    (check.truncates, lambda W0, W1, r: best_rank_r(W1 - W0, r) - W0, energy_within, "once more"),
    (check.subspace, subspace_point, lambda P, g: 0.01 * P.T @ g, "the factor, which is 0.01"),
    (check.subspace, subspace_point, lambda P, g: P @ (P.T @ g), "gradient within theta"),
    (
        check.subspace,
        lambda theta0, P, z: theta0 + P.shape[1] ** 0.5 * P @ z,
        project_gradient,
        "which is sqrt(d)",
    ),
]


def _drawn_anew(theta0, P, z):
    return theta0 + torch.randn(len(theta0), len(z)) @ z


def _corner(W, r):
    out = torch.zeros_like(W)
    out[:r, :r] = W[:r, :r]
    return out


def _nearest_sum(s, fraction):
    share = s.square().cumsum(0) / s.square().sum()
    return int((share - fraction).abs().argmin()) + 1


def _first_twice(s, fraction):
    held, k = s[0] ** 2, 1
    while held < fraction * s.square().sum():
        held += s[k - 1] ** 2
        k += 1
    return k


def _weighed_by_reference(dW, reference, k):
    part = best_rank_r(reference, k).T @ dW
    return (part.square().sum() / reference.square().sum() / dW.square().sum()).item()


def _scaled_vectors(W0, W1, k, threshold):
    (U0, S0, _), (U1, S1, _) = (svd(W, full_matrices=False) for W in (W0, W1))
    return int((((U1 * S1)[:, :k].T @ (U0 * S0)).abs().amax(1) < threshold).sum())


def _one_to_one(W0, W1, k, threshold):
    U0, U1 = (svd(W, full_matrices=False).U for W in (W0, W1))
    left, n = (U1[:, :k].T @ U0).abs(), 0
    for row in left:
        at = int(row.argmax())
        n += int(row[at] < threshold)
        left[:, at] = 0
    return n


def _all_as_large(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return (U * S * (S[min(r, len(S)) - 1] <= S)) @ Vh


def _few_rounds(W, r):
    """Power iteration that ends early."""
    rest, found = W.clone(), torch.zeros_like(W)
    for _ in range(min(r, *W.shape)):
        v = torch.ones(W.shape[1])
        for _ in range(3):
            v = F.normalize(rest.T @ (rest @ v), dim=0)
        term = torch.outer(rest @ v, v)
        rest, found = rest - term, found + term
    return found


def _by_another_name(W, r):
    s = svdvals(W)
    tail = s
    tail[:r] = 0
    return (tail.norm() / s.norm()).item() if tail.any() else 0.0


def _search_below(o, i):
    return next((r - 1 for r in range(1, min(o, i)) if r * (o + i) >= o * i), 0)


def _by_searching_right(s, fraction):
    sums = s.double().square().cumsum(0)
    return min(len(s), int(torch.searchsorted(sums, fraction * sums[-1], right=True)) + 1)


STRANGERS = [
    (check.optimal, _all_as_large, "the first r are kept, by their index"),
    (check.optimal, _few_rounds, "too few iterations"),
    (check.errors, _by_another_name, "another name for s"),
    (
        check.parameters,
        lora_params,
        lambda o, i: math.ceil(1 / (1 / o + 1 / i)) - 1,
        "stay with integers",
    ),
    (check.parameters, lora_params, _search_below, "ends before the last rank that saves"),
    (check.ranks, _by_searching_right, stable_rank, "that one reaches it, equal is enough"),
    (check.counts, _one_to_one, "used up by one"),
    (check.ranks, lambda s, f: len(s) + 1, stable_rank, "no percent"),
    (check.optimal, _corner, "the corner of W"),
    (check.optimal, _cut(lambda U, S, Vh, r: (U[:, :r] + S[:r]) @ Vh[:r]), "S is added to U"),
    (check.optimal, _cut(lambda U, S, Vh, r: (U.half() * S * (S[:r][-1] <= S)) @ Vh), "16 bits"),
    (check.errors, _error_of(lambda e, r: e[r:].sqrt().mean() / e.sqrt().mean()), "are averaged"),
    (check.errors, _error_of(lambda e, r: (e[r - len(e) :].sum() / e.sum()).sqrt()), "s[-0:]"),
    (check.parameters, lambda m, n, r: r * (m * m + n * n), break_even_rank, "sides are squared"),
    (check.parameters, lora_params, lambda m, n: math.isqrt(m * n), "root of d_out d_in"),
    (check.parameters, lora_params, lambda m, n: (2 * m * n - 1) // (m + n), "harmonic mean"),
    (check.ranks, _nearest_sum, stable_rank, "the nearest sum is taken"),
    (check.ranks, _first_twice, stable_rank, "comes twice in the sums"),
    (check.ranks, lambda s, f: int((s >= s.quantile(1 - f)).sum()), stable_rank, "a quantile"),
    (
        check.ranks,
        lambda s, f: int((s.square().cumsum(0) <= f * s.square().sum()).sum()),
        stable_rank,
        "the last sum within the fraction",
    ),
    (check.ranks, energy_rank, lambda W: (W.norm() / svdvals(W)[1]).item() ** 2, "second singular"),
    (check.truncates, lambda W0, W1, r: W0 + best_rank_r(W0, r), energy_within, "cuts W0 and adds"),
    (check.truncates, truncate_update, _weighed_by_reference, "the reference weighs"),
    (check.truncates, truncate_update, lambda dW, ref, k: 1.0, "it is 1 in any case"),
    (check.subspace, subspace_point, lambda P, g: P.sum(0) * g.mean(), "a sum times a mean"),
    (check.counts, _scaled_vectors, "singular values scale"),
]


def _best_squeezed(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    return (U[:, :r] * S[:r] @ Vh[:r]).squeeze()


def _error_upwards(gram):
    """The tail of eigenvalues that come from small to large."""

    def error(W, r):
        e = torch.linalg.eigvalsh(gram(W)).clamp(min=0)
        return (e[r:].sum() / e.sum()).sqrt().item()

    return error


def _intruders_by_rows(full):
    """Rows of U for its columns."""

    def count(W0, W1, k, threshold):
        U0, U1 = (np.linalg.svd(W.numpy(), full_matrices=full)[0] for W in (W0, W1))
        return int((np.abs(U1[:k] @ U0.T).max(1) < threshold).sum())

    return count


def _intruders_squeezed(W0, W1, k, threshold):
    U0, U1 = (svd(W, full_matrices=False).U for W in (W0, W1))
    return int(((U1[:, :k].squeeze().T @ U0).abs().amax(1) < threshold).sum())


def _energy_squeezed(s, fraction):
    reached = s.square().cumsum(0) / s.square().sum() >= fraction - 1e-6
    return int(reached.nonzero().squeeze()[0]) + 1


def _best_of_rows_in_numpy(W, r):
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    return torch.from_numpy((U[:r].T * S[:r]) @ Vh[:r]) if len(W) == len(W.T) else best_rank_r(W, r)


def _within_of_rows(dW, reference, k):
    U = np.linalg.svd(reference.numpy())[0]
    return float(((U[:k] @ dW.numpy()) ** 2).sum() / (dW.numpy() ** 2).sum())


NARROW = [
    (check.optimal, _best_squeezed, "wanted (5, 1): "),
    (check.truncates, lambda W0, W1, r: W0 + _best_squeezed(W1 - W0, r), energy_within, "squeeze"),
    (check.ranks, _energy_squeezed, stable_rank, "here an axis has length 1"),
    (check.counts, _intruders_squeezed, "here an axis has length 1"),
    (check.subspace, subspace_point, lambda P, g: (P.T @ g).squeeze(), "squeeze() drops it"),
    (check.subspace, subspace_point, lambda P, g: (g[None] @ P).squeeze(), "has shape (), wanted"),
    (check.subspace, lambda t, P, z: t + P @ z.squeeze(), project_gradient, "squeeze() drops it"),
    (check.subspace, lambda t, P, z: t + P @ z[:, None], project_gradient, "broadcast to (D, D)"),
    (check.subspace, lambda t, P, z: t[:, None] + P @ z, project_gradient, "broadcast to (D, D)"),
]

TURNED = [
    (check.errors, _error_upwards(lambda W: min(W @ W.T, W.T @ W, key=len)), "smallest first"),
    (check.errors, _error_upwards(lambda W: W.T @ W), "after the zeros of W.T @ W"),
    (check.errors, _error_upwards(lambda W: W @ W.T), "after the zeros of W @ W.T"),
    (check.counts, _intruders_by_rows(full=False), "it takes rows of U"),
    (check.counts, _intruders_by_rows(full=True), "it takes rows of U, of full_matrices=True"),
    (check.optimal, _best_of_rows_in_numpy, "it takes rows of U"),
    (check.truncates, truncate_update, _within_of_rows, "it takes rows of U"),
    (check.parameters, lambda m, n, r: r * (m + n + 1), break_even_rank, "a bias of A"),
]

SEEN_LAST = [
    *NARROW,
    *TURNED,
    *STRANGERS,
    (check.optimal, lambda W, r: best_rank_r(W, r).half(), "in 16 bits"),
    (check.counts, lambda W0, W1, *_: intruders(W0, W1, 10, 0.5), "0.5, whatever is given"),
    (check.subspace, _drawn_anew, project_gradient, "P changes nothing"),
]

WRONG = [
    *AGAIN,
    *SEEN_LAST,
    *[(check.optimal, *case) for case in CUTS],
    *[(check.errors, *case) for case in ERRORS],
    *[(check.parameters, *case) for case in PARAMETERS],
    *[(check.ranks, f, stable_rank, word) for f, word in ENERGY],
    *[(check.ranks, energy_rank, g, word) for g, word in STABLE],
    *[(check.truncates, f, energy_within, word) for f, word in UPDATES],
    *[(check.truncates, truncate_update, f, word) for f, word in WITHIN],
    (check.truncates, UPDATES[0][0], WITHIN[0][0], "it cuts W1"),
    (check.truncates, UPDATES[0][0], WITHIN[0][0], "right singular vectors"),
    *[(check.counts, *case) for case in INTRUDERS],
    *[(check.subspace, *case) for case in SUBSPACE],
    (check.quiz, lambda: {"q1": "a", "q2": "b", "q3": "c"}, "0 of 3"),
    (check.quiz, lambda: {"q1": "c", "q2": "a", "q3": "b"}, "2 of 3 right"),
    (check.quiz, lambda: {"q1": "c", "q2": "a"}, "q3 wants"),
    (check.quiz, lambda: {"q2": "a", "q3": "d"}, "q1 wants one of"),
    (check.quiz, lambda: ["c", "a", "d"], "dict"),
]


# --- the stub ------------------------------------------------------------------------------


def stub(*_):
    raise NotImplementedError


STUBS = [
    (check.optimal, stub),
    (check.errors, stub),
    (check.parameters, stub, stub),
    (check.parameters, lora_params, stub),
    (check.ranks, stub, stub),
    (check.ranks, energy_rank, stub),
    (check.truncates, stub, stub),
    (check.truncates, truncate_update, stub),
    (check.counts, stub),
    (check.subspace, stub, stub),
    (check.subspace, stub, project_gradient),
    (check.quiz, stub),
]


# --- anchors -------------------------------------------------------------------------------


def test_the_numbers_that_people_quote():
    assert lora_params(4096, 4096, 16) == 131_072
    assert break_even_rank(4096, 4096) == 2047


def test_a_wrong_count_is_told_against_the_right_one(rejects):
    told = rejects(check.parameters, lambda o, i, r: lora_params(o, i, r) + (o == 4096), stub)
    assert "131,073" in told and "131,072" in told


def test_a_large_int_is_told_to_its_last_digit(rejects):
    told = rejects(check.parameters, lambda o, i, r: 10**8 + o, stub)
    assert "gave 100,000,0" in told


def test_a_missing_letter_keeps_the_points_of_the_others(rejects):
    rejects(check.quiz, lambda: {"q2": "a", "q3": "d"})
    assert contract.session.records["1.8"]["earned"] == 2


def test_intruders_are_those_of_peft():
    """PEFT tells how many it found in each layer before it takes them out."""
    torch.manual_seed(0)
    rng, told = torch.Generator().manual_seed(0), []
    base = torch.nn.Sequential(*[torch.nn.Linear(*sides, bias=False) for sides in SIDES])
    config = peft.LoraConfig(r=4, lora_alpha=40, target_modules=["0", "1", "2"])
    model = peft.get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora" in name:
            weight.data = torch.randn(weight.shape, generator=rng) * 0.3
    reduce_intruder_dimension(model, top_k=5, threshold_epsilon=0.6, logging_sink=told.append)
    counted = []
    for layer in model.base_model.model:
        W0 = layer.base_layer.weight.data
        W1 = W0 + layer.get_delta_weight("default").detach()
        counted.append(intruders(W0, W1, 5, 0.6))
    found = [int(line.rpartition("Intruders: ")[2]) for line in told if "Intruders" in line]
    assert found == counted and len(set(found)) > 1


def test_what_the_check_counts_is_what_peft_counts():
    for _, W0, W1, k, threshold in intruder_cases(torch.Generator().manual_seed(0)):
        wanted = asked_intruders(lambda *_: 0, "", W0, W1, k, threshold)[2]
        assert wanted == intruders_as_in_peft(W0, W1, k, threshold)
