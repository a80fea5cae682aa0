"""Checks of lab 1. The reference is a projection onto eigenvectors of W^T W or W W^T, or a sum."""

import math

import torch

from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, expect, generator, observe, part
from labkit.probes import lab01 as probes

EXAMPLE = torch.tensor([[3.0, 0.0], [0.0, 1.0]])  # of the text: the singular values are 3 and 1
BUILT = "your function builds W_r or W - W_r: the singular values that are cut off are enough"


def best(W, r):
    """The best matrix of rank r by Eckart-Young, computed without an SVD, in fp64."""
    W = W.double()
    V = torch.linalg.eigh(W.T @ W).eigenvectors.flip(1)[:, :r]
    return W @ V @ V.T


@exercise("1.1", points=2)
def optimal(best_rank_r):
    """as near to W as rank r allows: square, tall, wide and rank-deficient W, r above the rank"""
    rng = generator()
    cases = {"on the example from the text, r = 1": (EXAMPLE, 1)}
    for *shape, r in ((6, 6, 4), (9, 8, 3), (8, 9, 3), (6, 6, 1), (7, 4, 9), (4, 7, 9)):
        cases[f"on W of shape {tuple(shape)}, r = {r}"] = randn(*shape, rng=rng), r
    thin = randn(8, 2, rng=rng) @ randn(2, 6, rng=rng)
    cases |= {f"on W of shape (8, 6) and rank 2, r = {r}": (thin, r) for r in (2, 3, 6)}
    for shape in ((5, 1), (1, 5)):
        cases[f"on W of shape {shape}, r = 1"] = randn(*shape, rng=rng), 1
    expect_right(best_rank_r, cases, lambda W, r: probes.tensor(best(W, r)), probes.matrix)
    equal = {"the rank of the result": 2, "the distance from W": 2.0}
    cases = {"on torch.eye(6), whose singular values are equal, with r = 2": (torch.eye(6), 2)}
    expect_right(best_rank_r, cases, lambda *_: equal, probes.rank_and_distance)


@exercise("1.2", points=2)
def errors(relative_error):
    """equals |W - W_r| / |W|, and builds neither W_r nor W - W_r"""
    rng = generator()
    cases = {"on the example from the text, r = 1": [(EXAMPLE, 1)]}
    for *shape, r in ((7, 5, 2), (5, 8, 3), (6, 6, 1), (7, 5, 9)):
        more = ", more than it has singular values" if r > min(shape) else ""
        cases[f"on W of shape {tuple(shape)}, r = {r}{more}"] = [(randn(*shape, rng=rng), r)]
    W = randn(7, 5, rng=rng)
    cases |= {f"on {scale:g} * W, r = {r}": [(scale * W, r)] for scale, r in ((1e-3, 2), (100, 3))}
    ranks = [3, 3, 3, 5, 6] * 40
    pairs = [(randn(20, r, rng=rng) @ randn(r, 12, rng=rng), r) for r in ranks]
    cases["where r is the rank of W"] = [pair for pair in pairs if _keeps_more_than_all(*pair)]
    cases = {where: (pairs,) for where, pairs in cases.items()}
    expect_right(relative_error, cases, _error, probes.error)
    rest = W.double() - best(W, 2)
    forms = (best(W, 2), -best(W, 2), rest, -rest, rest.square(), rest.abs())
    made = observe(probes.matrices_made, relative_error, W, 2)
    expect(not any(torch.allclose(m, form, atol=1e-3) for m in made for form in forms), BUILT)


def _keeps_more_than_all(W, r):
    """Whether rounding makes W_r's share of the energy or of the norm larger than 1."""
    s = torch.linalg.svdvals(W)
    return s[:r].square().sum() > s.square().sum() or s[:r].norm() > s.norm()


def _error(pairs):
    W, r = pairs[0]
    error = ((W - best(W, r)).norm() / W.norm()).item()
    return {"the result": error if error > 1e-5 else 0.0}


@exercise("1.3", points=1)
def parameters(lora_params, break_even_rank):
    """131,072 for 4096 x 4096 at r=16, linear in r; the largest rank that saves parameters"""
    rng = generator()
    m, r = draw(20, 90, rng), draw(20, 90, rng)
    shapes = [(m, 3 * m + 1), (3 * m + 1, m)]  # no common factor, so no rank breaks exactly even
    sizes = [(4, 4, 1), (3, 5, 7), (*shapes[0], r), (*shapes[1], 3), (4096, 4096, 16)]
    with part():
        cases = {f"for lora_params{size}": size for size in sizes}
        expect_right(lora_params, cases, _count)
    shapes = [(3, 5), (4, 4), (6, 3), (3, 6), (8, 3), *shapes, (4096, 4096), (1536, 576), (1, 1)]
    shapes += [(1, 7), (98, 98), (576, 960)]  # where floats fall just below or above a whole number
    cases = {f"for break_even_rank{shape}": shape for shape in shapes}
    expect_right(break_even_rank, cases, _largest)
    cases = {"for all sides up to 12": (12,)}
    expect_right(break_even_rank, cases, _largest_of_all, probes.largest_of_all)


def _count(d_out, d_in, r):
    return math.prod((r, d_in)) + math.prod((d_out, r))


def _largest(d_out, d_in):
    """The number of ranks, from 1 on, that save parameters."""
    return sum(r * d_in + d_out * r < d_out * d_in for r in range(1, min(d_out, d_in) + 1))


def _largest_of_all(most):
    sides = range(1, most + 1)
    return {f"break_even_rank({a}, {b})": _largest(a, b) for a in sides for b in sides}


@exercise("1.4", points=2)
def ranks(energy_rank):
    """uses squared singular values, includes the boundary, and ignores the scale of W"""
    rng, cases = generator(), {}
    for values, fractions in (
        ([3, 1], (0.5, 0.95)),
        ([1, 1, 1, 1], (0.5, 0.25, 0.75, 0.51, 1.0)),
        ([8, 8, 8, 8, 0], (0.75, 1.0)),
        ([8], (0.5,)),
    ):
        for fraction in fractions:
            where = f"for energy_rank(s, {fraction}) with s = {values}"
            cases[where] = torch.tensor(values).float(), fraction
    for scale in (1, 100, 1e-4):
        s = scale * (1 + 4 * torch.rand(draw(30, 60, rng), generator=rng))
        for fraction in (0.9, 0.6, 0.99):
            where = f"for energy_rank(s, {fraction}) with {len(s)} values up to {s.max():.3g}"
            cases[where] = s.sort(descending=True).values, fraction
    expect_right(energy_rank, cases, _energy_rank)


def _energy_rank(s, fraction):
    energy = s.double() ** 2
    return next(r for r in range(len(s) + 1) if energy[:r].sum() >= fraction * energy.sum())


@exercise("1.5", points=3)
def truncates(truncate_update, energy_within):
    """W0 plus the best rank-r part of W1 - W0; the energy of dW in the reference's top k"""
    rng, cases = generator(), {}
    for *shape, r in ((6, 6, 4), (8, 5, 1), (6, 8, 4), (8, 5, 9), (5, 1, 1)):
        W0, update = randn(*shape, rng=rng), 0.5 * randn(*shape, rng=rng)
        where = f"for truncate_update(W0, W1, {r}) on matrices of shape {tuple(shape)}"
        cases[where] = W0, W0 + update, r
    with part():
        expect_right(truncate_update, cases, _truncated, probes.truncated, tol=1e-3)
    cases = {"on the example from the text": (EXAMPLE, EXAMPLE, 1)}
    for *shape, k in ((9, 5, 2), (5, 9, 3), (7, 7, 2), (7, 7, 1), (10, 4, 2)):
        reference, other = randn(*shape, rng=rng), randn(*shape, rng=rng)
        data = other + 0.4 * reference, reference, k
        cases[f"on matrices of shape {tuple(shape)}, k = {k}"] = data
    dW, reference, k = data
    cases |= {
        "on dW times 10": (10 * dW, reference, k),
        "on dW times 1e-4": (1e-4 * dW, reference, k),
        "on the reference times -10": (dW, -10 * reference, k),
        "on a reference of rank 2": (dW, best(reference, 2).float(), 2),
        "on dW as its own reference, k = 4": (dW, dW, 4),
    }
    cases = {f"for energy_within {where}": data for where, data in cases.items()}
    expect_right(energy_within, cases, _share, probes.share)


def _truncated(W0, W1, r):
    return probes.tensor(W0 + best(W1 - W0, r))


def _share(dW, reference, k):
    dW, reference = dW.double(), reference.double()
    U = torch.linalg.eigh(reference @ reference.T).eigenvectors.flip(1)[:, :k]
    return {"the result": ((U @ U.T @ dW).square().sum() / dW.square().sum()).item()}


@exercise("1.6", points=2)
def subspace(subspace_point, project_gradient):
    """theta0 + P z, and the gradient for z by the chain rule, a sum over theta"""
    rng, cases = generator(), {}
    for D, d in ((6, 6), (11, 3), (5, 1)):
        data = randn(D, rng=rng), randn(D, d, rng=rng), randn(d, rng=rng)
        cases[f"for subspace_point with P of shape {(D, d)}"] = data
    with part():
        expect_right(subspace_point, cases, _point, probes.point)
    by_hand = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 0.0, 1.0])
    cases = {where.replace("subspace_point", "project_gradient"): cases[where] for where in cases}
    cases = {where: (P, theta0) for where, (theta0, P, _) in cases.items()}
    cases = {
        "for project_gradient with P = [[1], [2], [3]] and the gradient [1, 0, 1]": by_hand
    } | cases
    expect_right(project_gradient, cases, _gradient, probes.gradient)


def _point(theta0, P, z):
    return probes.vector(theta0 + sum(z[j] * P[:, j] for j in range(len(z))))


def _gradient(P, grad_theta):
    return probes.vector(sum(g * row for g, row in zip(grad_theta, P, strict=True)))


quiz = quiz_of("1.7", points=3)
