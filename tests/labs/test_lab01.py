"""Lab 1's checks: right answers written differently, and wrong ones that no row expresses."""

import math

import numpy as np
import torch

from labkit.checks import lab01 as check

svd, svdvals = torch.linalg.svd, torch.linalg.svdvals

# --- right answers -------------------------------------------------------------------------


def best_by_outer(W, r):
    U, S, V = torch.svd(W)
    terms = zip(U.T[:r], S[:r], V.T[:r], strict=True)
    return sum(s * torch.outer(u, v) for u, s, v in terms)


def best_in_numpy(W, r):
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    return torch.from_numpy((U[:, :r] * S[:r]) @ Vh[:r, :])


def best_by_left_projection(W, r):
    U = torch.linalg.eigh(W @ W.T).eigenvectors[:, -r:]
    return U @ (U.T @ W)


def error_from_head(W, r):
    energy = svdvals(W).square().cumsum(0)
    if r >= len(energy):
        return 0
    return math.sqrt(max(0.0, 1 - (energy[r - 1] / energy[-1]).item()))


def error_rotated(W, r):
    """As large as W, yet neither W_r nor W - W_r."""
    return ((W @ svd(W).Vh.T)[:, r:].norm() / W.norm()).item()


def error_in_numpy(W, r):
    s = np.linalg.svd(np.asarray(W), compute_uv=False)
    return np.sqrt((s[r:] ** 2).sum() / (s**2).sum())


def params_by_numel(d_out, d_in, r):
    meta = {"device": "meta"}
    return torch.empty(r, d_in, **meta).numel() + torch.empty(d_out, r, **meta).numel()


def params_in_numpy(d_out, d_in, r):
    return np.prod([r, d_out]) + np.prod([r, d_in])


def break_even_by_ceil(d_out, d_in):
    return math.ceil(d_out * d_in / (d_out + d_in)) - 1


def break_even_by_search(d_out, d_in):
    r = 0
    while (r + 1) * (d_out + d_in) < d_out * d_in:
        r += 1
    return r


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


def truncate_backwards(W0, W1, r):
    return W0 - best_by_left_projection(W0 - W1, r)


def truncate_by_rest(W0, W1, r):
    U, S, Vh = svd(W1 - W0, full_matrices=False)
    return W1 - (U[:, r:] * S[r:]) @ Vh[r:]


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


def point_by_columns(theta0, P, z):
    return theta0.clone().add_((P * z).sum(dim=1))


def point_by_addmv(theta0, P, z):
    return torch.addmv(theta0, P, z)


def project_row(P, grad_theta):
    return grad_theta @ P


def project_einsum(P, grad_theta):
    return torch.einsum("Dd,D->d", P, grad_theta)


def project_in_numpy(P, grad_theta):
    return torch.from_numpy(P.numpy().T @ grad_theta.numpy())


RIGHT = [
    *((check.optimal, f) for f in (best_by_outer, best_in_numpy, best_by_left_projection)),
    *((check.errors, f) for f in (error_from_head, error_rotated, error_in_numpy)),
    (check.parameters, params_by_numel, break_even_by_search),
    (check.parameters, params_in_numpy, break_even_by_ceil),
    *((check.ranks, f) for f in (energy_by_search, energy_by_loop, energy_by_argmax)),
    (check.truncates, truncate_backwards, within_by_projecting),
    (check.truncates, truncate_by_rest, within_by_rest),
    (check.truncates, truncate_by_rest, within_in_numpy),
    (check.subspace, point_by_columns, project_row),
    (check.subspace, point_by_addmv, project_einsum),
    (check.subspace, point_by_addmv, project_in_numpy),
]

# --- wrong answers, besides the rows of lab01.toml --------------------------------------------


def best_if_it_fits(W, r):
    if r > min(W.shape):
        raise ValueError("r is too large")
    return best_by_outer(W, r)


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
    return ((W.T - best_by_outer(W, r).T).norm() / W.norm()).item()


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


def params_as_float(d_out, d_in, r):
    return r * (d_out + d_in) / 1


def params_of_W(d_out, d_in, r):
    return d_out * d_in


def break_even_in_range(d_out, d_in):
    """It ends before the last rank that saves something."""
    sides = range(1, min(d_out, d_in))
    return next((r - 1 for r in sides if r * (d_out + d_in) >= d_out * d_in), 0)


def energy_with_eps(s, fraction):
    share = s.square().cumsum(0) / (s.square().sum() + 1e-6)
    return int((share < fraction).sum()) + 1


def within_both_sides(dW, reference, k):
    U, _, Vh = svd(reference, full_matrices=False)
    return ((U[:, :k].T @ dW @ Vh[:k].T).square().sum() / dW.square().sum()).item()


def point_in_fp64(theta0, P, z):
    return theta0.double() + P.double() @ z.double()


def transpose_unless_square(P, grad_theta):
    return P @ grad_theta if P.shape[0] == P.shape[1] else P.T @ grad_theta


WRONG = [
    (check.optimal, best_if_it_fits, "r = 9, it raised ValueError: r is too large"),
    (check.optimal, best_by_power_iteration, "should be [[3, 0], [0, 0]], not [[3, "),
    (check.optimal, lambda W, r: best_in_numpy(W, r).numpy(), "a tensor, not a NumPy array"),
    (check.optimal, lambda W, r: best_in_numpy(W, r).bfloat16(), "to 16 bits"),
    (check.errors, error_by_subtracting, "your function builds W_r"),
    (check.errors, error_by_addr, "your function builds W_r"),
    (check.errors, error_built_in_numpy, "your function builds W_r"),
    (check.parameters, params_by_numel, break_even_in_range, "(8, 3), the result should be 2, not"),
    (check.parameters, params_as_float, break_even_by_ceil, "should be an int, not a float"),
    # the mistakes of both functions are shown
    (check.parameters, params_of_W, lambda o, i: o * i // (o + i), "for break_even_rank(4, 4)"),
    (check.ranks, energy_with_eps, "s = [1, 1, 1, 1], the result should be 2, not 3"),
    (check.truncates, lambda W0, W1, r: W0.add_(W1), within_by_rest, "changes its input `W0`"),
    (check.truncates, truncate_by_rest, within_both_sides, "the result should be"),
    (check.truncates, truncate_by_rest, lambda dW, reference, k: k / len(dW), "0.9, not 0.5"),
    (check.subspace, point_in_fp64, project_row, "that of the inputs (float32), not float64"),
    (check.subspace, point_by_addmv, transpose_unless_square, "with P of shape (6, 6)"),
    (check.subspace, point_by_addmv, lambda P, g: print(end=""), "`return` is missing"),
    (check.quiz, lambda: ["c", "a", "d"], "must return a dict"),
]
