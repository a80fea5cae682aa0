"""Lab 1's checks: right answers written differently, wrong ones that no row expresses, stubs."""

import math

import numpy as np
import torch

from labkit import contract
from labkit.checks import lab01 as check

svd, svdvals = torch.linalg.svd, torch.linalg.svdvals
SEEDS = {"RIGHT": range(3)}

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


def best_of_full_matrices(W, r):
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
    if r >= len(energy):
        return 0
    return math.sqrt(max(0.0, 1 - (energy[r - 1] / energy[-1]).item()))


def error_rotated(W, r):
    """As large as W, yet neither W_r nor W - W_r."""
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


def params_by_numel(d_out, d_in, r):
    meta = {"device": "meta"}
    return torch.empty(r, d_in, **meta).numel() + torch.empty(d_out, r, **meta).numel()


def params_in_numpy(d_out, d_in, r):
    return np.prod([r, d_out]) + np.prod([r, d_in])


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


def project_in_numpy(P, grad_theta):
    return torch.from_numpy(P.numpy().T @ grad_theta.numpy())


RIGHT = [
    *((check.optimal, f) for f in (best_rank_r, best_by_masking, best_by_outer, best_in_numpy)),
    *((check.optimal, f) for f in (best_by_projection, best_by_left_projection)),
    *((check.optimal, f) for f in (best_of_full_matrices, best_by_transposing)),
    *((check.errors, f) for f in (relative_error, error_from_head, error_rotated)),
    *((check.errors, f) for f in (error_from_svd, error_over_the_norm, error_by_products)),
    *((check.errors, f) for f in (error_from_gram, error_in_numpy, error_in_numpy_with_factors)),
    (check.errors, error_by_hypot),
    (check.parameters, lora_params, break_even_rank),
    (check.parameters, params_by_numel, break_even_by_search),
    (check.parameters, params_in_numpy, break_even_by_ceil),
    *((check.ranks, f) for f in (energy_rank, energy_by_search, energy_by_loop, energy_by_argmax)),
    (check.truncates, truncate_update, energy_within),
    (check.truncates, truncate_backwards, within_by_projecting),
    (check.truncates, truncate_by_rest, within_by_rest),
    *((check.truncates, truncate_update, f) for f in (within_in_numpy, within_by_eigh)),
    *((check.truncates, truncate_update, f) for f in (within_by_loop, within_by_turning)),
    (check.subspace, subspace_point, project_gradient),
    (check.subspace, point_by_columns, project_row),
    (check.subspace, point_by_addmv, project_einsum),
    (check.subspace, subspace_point, project_in_numpy),
    (check.quiz, lambda: {"q1": "c", "q2": " A. ", "q3": "(d)"}),
]

# --- wrong answers, besides the rows of lab01.toml --------------------------------------------


def best_in_place(W, r):
    return W.copy_(best_rank_r(W, r))


def best_if_it_fits(W, r):
    if r > min(W.shape):
        raise ValueError("r is too large")
    return best_rank_r(W, r)


def best_by_power_iteration(W, r):
    """It stops too early."""
    rest, found = W.clone(), torch.zeros_like(W)
    for _ in range(min(r, *W.shape)):
        v = torch.ones(W.shape[1])
        for _ in range(3):
            v = torch.nn.functional.normalize(rest.T @ (rest @ v), dim=0)
        term = torch.outer(rest @ v, v)
        rest, found = rest - term, found + term
    return found


def error_by_subtracting(W, r):
    return ((W.T - best_rank_r(W, r).T).norm() / W.norm()).item()


def error_by_addr(W, r):
    U, S, Vh = svd(W, full_matrices=False)
    built = torch.zeros_like(W)
    for u, s, v in zip(U.T[:r], S[:r], Vh[:r], strict=False):
        built.addr_(u, v, alpha=s.item())
    return torch.dist(W, built).item() / W.norm().item()


def error_built_in_numpy(W, r):
    W = W.numpy()
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    rest = W - U[:, :r] @ np.diag(S[:r]) @ Vh[:r]
    return float(np.linalg.norm(rest) / np.linalg.norm(W))


def error_of_another_name(W, r):
    s = svdvals(W)
    tail = s
    tail[:r] = 0
    return (tail.norm() / s.norm()).item() if tail.any() else 0.0


def params_as_float(d_out, d_in, r):
    return r * (d_out + d_in) / 1


def params_of_W(d_out, d_in, r):
    return d_out * d_in


def break_even_in_range(d_out, d_in):
    """It ends before the last rank that saves something."""
    sides = range(1, min(d_out, d_in))
    return next((r - 1 for r in sides if lora_params(d_out, d_in, r) >= d_out * d_in), 0)


def largest_of_ranks(d_out, d_in):
    return max(r for r in range(1, d_in) if lora_params(d_out, d_in, r) < d_out * d_in)


def energy_changed(s, fraction):
    return energy_rank(s.mul_(2), fraction)


def energy_with_eps(s, fraction):
    share = s.square().cumsum(0) / (s.square().sum() + 1e-6)
    return int((share < fraction).sum()) + 1


def nearest_sum(s, fraction):
    share = s.square().cumsum(0) / s.square().sum()
    return int((share - fraction).abs().argmin()) + 1


def truncate_in_place(W0, W1, r):
    W0 += best_rank_r(W1 - W0, r)
    return W0


def within_in_place(dW, reference, k):
    dW /= dW.norm()
    return (svd(reference).U[:, :k].T @ dW).square().sum().item()


def within_both_sides(dW, reference, k):
    U, _, Vh = svd(reference, full_matrices=False)
    return ((U[:, :k].T @ dW @ Vh[:k].T).square().sum() / dW.square().sum()).item()


def move_theta0(theta0, P, z):
    theta0 += P @ z
    return theta0


def point_of_another_P(theta0, P, z):
    return theta0 + torch.randn(len(theta0), len(z)) @ z


def transpose_unless_square(P, grad_theta):
    return P @ grad_theta if P.shape[0] == P.shape[1] else P.T @ grad_theta


WRONG = [
    (check.optimal, best_in_place, "changes its input W in place"),
    (check.optimal, best_if_it_fits, "r = 9, it raised ValueError: r is too large"),
    (check.optimal, best_by_power_iteration, "should be [[3, 0], [0, 0]], not [[3, "),
    (check.optimal, lambda W, r: best_in_numpy(W, r).numpy(), "a tensor, not a NumPy array"),
    (check.optimal, lambda W, r: best_rank_r(W, r).bfloat16(), "in 16 bits?"),
    (check.errors, error_by_subtracting, "is built on the way"),
    (check.errors, error_by_addr, "is built on the way"),
    (check.errors, error_built_in_numpy, "is built on the way"),
    (check.errors, error_of_another_name, "should be 0.316228, not 1"),
    (check.errors, lambda W, r: f"{relative_error(W, r):.3f}", "should be a float, not text"),
    (check.parameters, lora_params, break_even_in_range, "(8, 3), the result should be 2, not 0"),
    (check.parameters, lora_params, largest_of_ranks, "break_even_rank(1, 1), it raised"),
    (check.parameters, lora_params, lambda o, i: break_even_rank(o, i) or None, "result is None"),
    (check.parameters, params_as_float, break_even_rank, "should be an int, not a float"),
    # the mistakes of both functions are shown
    (check.parameters, params_of_W, lambda o, i: o * i // (o + i), "for lora_params(4, 4, 1)"),
    (check.parameters, params_of_W, lambda o, i: o * i // (o + i), "for break_even_rank(4, 4)"),
    (check.ranks, energy_changed, "changes its input s in place"),
    (check.ranks, energy_with_eps, "s = [1, 1, 1, 1], the result should be 2, not 3"),
    (check.ranks, nearest_sum, "should be"),
    (check.ranks, lambda s, f: float(energy_rank(s, f)), "should be an int, not a float"),
    (check.truncates, truncate_in_place, energy_within, "changes its input W0 in place"),
    (check.truncates, truncate_update, within_in_place, "changes its input dW in place"),
    (check.truncates, truncate_update, within_both_sides, "the result should be"),
    (check.truncates, lambda *data: truncate_update(*data).numpy(), energy_within, "NumPy array"),
    (check.truncates, truncate_update, lambda dW, reference, k: k / len(dW), "0.9, not 0.5"),
    (check.subspace, move_theta0, project_gradient, "changes its input theta0 in place"),
    (check.subspace, point_of_another_P, project_gradient, "furthest off"),
    (check.subspace, subspace_point, transpose_unless_square, "with P of shape (6, 6)"),
    (check.subspace, subspace_point, lambda P, g: (P.T @ g).numpy(), "a NumPy array"),
    (check.subspace, subspace_point, lambda P, g: print(end=""), "is `return` missing?"),
    (check.quiz, lambda: {"q1": "a", "q2": "a", "q3": "d"}, "q1 a, not quite"),
    (check.quiz, lambda: {"q1": "c", "q2": "a"}, "q3 wants one of"),
    (check.quiz, lambda: ["c", "a", "d"], "must return a dict"),
]

# --- stubs ---------------------------------------------------------------------------------


def _stub(*_):
    raise NotImplementedError


STUBS = [
    *((c, _stub) for c in (check.optimal, check.errors, check.ranks, check.quiz)),
    *((c, _stub, _stub) for c in (check.parameters, check.truncates, check.subspace)),
    (check.parameters, lora_params, _stub),
    (check.truncates, truncate_update, _stub),
    (check.subspace, _stub, project_gradient),
]

# --- anchors -------------------------------------------------------------------------------


def test_the_numbers_that_people_quote():
    assert lora_params(4096, 4096, 16) == 131_072
    assert break_even_rank(4096, 4096) == 2047


def test_a_missing_letter_keeps_the_points_of_the_others(rejects):
    rejects(check.quiz, lambda: {"q2": "a", "q3": "d"})
    assert contract.session.records["1.7"]["earned"] == 2
