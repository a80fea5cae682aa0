"""What misconceptions give in 1.6: points of a flat, and gradients in it."""

import torch


def points(theta0, P, z):
    """Wrong points of a flat."""
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
        "the start is projected on the flat; theta0 stays whole": P
        @ (torch.linalg.pinv(P) @ theta0 + z),
    }
    if d == D:
        guesses["that is P.T @ z; P itself leads from z to theta"] = theta0 + P.T @ z
        guesses["P acts on theta0 too; it moves z alone"] = P @ (theta0 + z)
        guesses["P is multiplied entry by entry; sum over j: P @ z"] = theta0 + P.diagonal() * z
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
        "these are the first d entries; all of theta depend on z": grad_theta[:d],
        "the columns of P are summed as they are; weigh the rows by the gradient": P.sum(0),
        "the sum of products is asked, not the product of sums": P.sum(0) * grad_theta.sum(),
    }
    if d == D:
        back = "P leads from z to theta; gradients go back through its transpose, P.T @ g"
        guesses[back] = P @ grad_theta
    return guesses
