"""What exercise 1.6 expects, points of an affine subspace and gradients, and misconceptions."""

import torch

from labkit.checks.compare import ask, close, expect_close, expect_linear
from labkit.checks.compound import expect_factor
from labkit.checks.lab01.cuts import PLAIN
from labkit.contract import CheckFailed, expect, observe


def expect_point(subspace_point, theta0, P, z):
    """theta0 + P z, and theta0 itself where z is 0."""
    call, hint = f"subspace_point with P of shape {tuple(P.shape)}", f"P @ z has shape {(len(P),)}"
    got = ask(call, subspace_point, theta0, P, z, hint=hint)
    column, hint = theta0 + (P @ z)[:, None], f"P @ z sums over the columns: {hint}"
    if any(isinstance(got, torch.Tensor) and _equal(got, M) for M in (column, column.T)):
        hint = "a column (D, 1) and theta0, (D,), broadcast to (D, D): keep P @ z a vector"
    _expect_vector(got, theta0.shape, call, hint)
    try:
        expect_step(got, theta0, theta0 + P @ z, call, points(theta0, P, z))
    except CheckFailed as failure:
        if failure.bare:
            sizes, hint = _sizes(P) | {"|z|": z.norm().item()}, "P @ z is added as it is"
            expect_factor(got - theta0, P @ z, f"{call}: what is added", (hint, 1.0), sizes)
        if failure.bare:
            twice = observe(subspace_point, 2 * theta0, P, z) - got
            hint = "theta0 is added once, as it is: it neither scales the step nor is scaled"
            expect(close(twice, theta0, 1e-3), f"{call}, twice the theta0: {hint}")
        if failure.bare and not PLAIN.search(str(failure)):
            told, zero, inputs = f"{call} and theta0 = 0", 0 * theta0, {"P": P, "z": z}
            expect_linear(told, lambda *data: observe(subspace_point, zero, *data), inputs)
        raise
    start = observe(subspace_point, theta0, P, z * 0)
    expect_close(start, theta0, f"{call} and z = 0 (theta0 is wanted)", tol=1e-6)


def expect_projected(project_gradient, theta0, P, z):
    """The chain rule against autograd, for the loss sum(theta^4) / 4."""
    z = z.clone().requires_grad_()
    theta = theta0 + P @ z
    grad_theta, wanted = torch.autograd.grad(theta.pow(4).sum() / 4, (theta, z))
    call = f"project_gradient with P of shape {tuple(P.shape)}"
    hint = f"the gradient of z has shape {tuple(z.shape)}: it goes through the transpose of P"
    got = ask(call, project_gradient, P, grad_theta, hint=hint)
    matrix = isinstance(got, torch.Tensor) and got.ndim == 2
    hint = "the chain rule sums over theta: one number for each z, no matrix" if matrix else hint
    _expect_vector(got, z.shape, call, hint)
    try:
        expect_close(got, wanted, call, projected(P, grad_theta, wanted))
    except CheckFailed as failure:
        if failure.bare:
            hint = "the chain rule has none (a rate is the optimizer's)"
            sizes = _sizes(P) | {"|g|": grad_theta.norm().item()}
            expect_factor(got, wanted, call, (hint, 1.0), sizes)
        if failure.bare and not PLAIN.search(str(failure)):
            inputs = {"P": P, "the gradient": grad_theta}
            expect_linear(call, lambda *data: observe(project_gradient, *data), inputs)
        raise


def _equal(got, M):
    return got.shape == M.shape and close(got, M, 1e-3)


def _sizes(P):
    """What a wrong factor may be made of."""
    return {"D": P.shape[0], "d": P.shape[1], "|P|": P.norm().item()}


def _expect_vector(got, shape, call, hint):
    shapes = f"has shape {tuple(getattr(got, 'shape', ()))}, wanted {tuple(shape)}"
    tensor = isinstance(got, torch.Tensor)
    if tensor and got.ndim == 2 and got.numel() == shape[0]:
        hint = "that is a column or a row: leave a vector a vector, or flatten() what comes out"
    expect(not tensor or got.shape == shape, f"{call} {shapes}: {hint}")


def expect_step(got, start, wanted, call, known, steps=None):
    """`expect_close`; what fits no guess is told as a step from `start`, with guesses `steps`."""
    try:
        expect_close(got, wanted, call, known, tol=1e-3)
    except CheckFailed as failure:
        if failure.bare and not PLAIN.search(str(failure)):
            step = f"{call}: what is added to {'W0' if start.ndim > 1 else 'theta0'}"
            expect_close(got - start, wanted - start, step, steps, tol=1e-3)
        raise


def points(theta0, P, z):
    """Wrong points of an affine subspace."""
    D, d = P.shape
    guesses = {
        "theta0 is missing": P @ z,
        "the step is subtracted": theta0 - P @ z,
        "P is scaled again; use it as it comes": theta0 + P @ z / D**0.5,
        "P is scaled again, by d; use it as it comes": theta0 + P @ z / d**0.5,
        "averaged over the columns of P; P @ z sums over them": theta0 + P @ z / d,
        "averaged over theta; P @ z sums over the columns": theta0 + P @ z / D,
        "P is normalised; use it as it comes": theta0 + P / P.norm(dim=0) @ z,
        "P is made orthogonal; use it as it comes": theta0 + torch.linalg.qr(P).Q @ z,
        "z is normalised; use it as it comes": theta0 + P @ z / z.norm(),
        "z changes nothing": theta0,
        "theta0 is multiplied; add the step to it": theta0 * (P @ z),
        "the rows of P are summed as they are; P @ z weighs the columns by z": theta0 + P.sum(1),
        "theta0 comes once for each z; add it once": d * theta0 + P @ z,
        "P @ z is the sum of products, not the product of sums": theta0 + P.sum(1) * z.sum(),
        "P @ z is the sum of products, not a product of means": theta0 + P.mean(1) * z.mean(),
        "the start is projected on the span of P; theta0 stays whole": P
        @ (torch.linalg.pinv(P) @ theta0 + z),
    }
    if d == D:
        guesses["that is P.T @ z; P itself leads from z to theta"] = theta0 + P.T @ z
        guesses["P acts on theta0 too; it moves z alone"] = P @ (theta0 + z)
        guesses["P is multiplied entry by entry; sum over j: P @ z"] = theta0 + P.diagonal() * z
        over = "P * z is summed over theta, dim=0; P @ z sums over z, dim=1"
        guesses[over] = theta0 + P.sum(0) * z
        guesses["z weighs the rows of P; P @ z weighs the columns"] = theta0 + P.sum(1) * z
    return guesses


def projected(P, grad_theta, right):
    """Wrong gradients of z."""
    D, d = P.shape
    guesses = {
        "averaged over D; the chain rule sums": right / D,
        "averaged over d; the chain rule sums": right / d,
        "P is scaled again; the chain rule has P as it is": right / D**0.5,
        "P is scaled again, by d; the chain rule has P as it is": right / d**0.5,
        "that inverts P; gradients go back through its transpose": torch.linalg.pinv(P)
        @ grad_theta,
        "P is normalised; the chain rule has P as it is": right / P.norm(dim=0),
        "P is normalised twice; the chain rule has P as it is": right / P.norm(dim=0) ** 2,
        "P is made orthogonal; the chain rule has P as it is": torch.linalg.qr(P).Q.T @ grad_theta,
        "that is a step downhill; the gradient itself is asked": -right,
        "the gradient is normalised; the chain rule has it as it is": right / grad_theta.norm(),
        "the result is normalised; the chain rule leaves it as it is": right / right.norm(),
        "these are the first d entries; all of theta depend on z": grad_theta[:d],
        "the columns of P are summed as they are; weigh the rows by the gradient": P.sum(0),
        "the sum of products is asked, not the product of sums": P.sum(0) * grad_theta.sum(),
        "the sum of products is asked, not a sum times a mean": P.sum(0) * grad_theta.mean(),
        "the sum of products is asked, not a product of means": P.mean(0) * grad_theta.mean(),
    }
    if d == D:
        back = "P leads from z to theta; gradients go back through its transpose, P.T @ g"
        guesses[back] = P @ grad_theta
        onto = "that is the gradient within theta, P @ P.T @ g; z has one of its own, P.T @ g"
        guesses[onto] = P @ right
        over = "the products are summed over z, dim=1; the chain rule sums over theta, dim=0"
        guesses[over] = P.sum(1) * grad_theta
        weighs = "the gradient weighs the columns of P; it weighs the rows: P.T @ g"
        guesses[weighs] = P.sum(0) * grad_theta
    return guesses
