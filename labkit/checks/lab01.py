"""Checks of lab 1. The reference is the projection on the leading eigenvectors of W^T W."""

import torch

from labkit.checks.compare import ask, expect_close, expect_number, randn
from labkit.checks.quiz import judge
from labkit.grading.contract import CheckFailed, exercise, expect, generator, observe
from labkit.probes import lab01 as probe


def _unchanged(call, f, *data):
    """Expect that `f(*data)` leaves the tensors in data as they were."""
    for before, after in zip(data, observe(probe.inputs_after, f, *data), strict=True):
        same = not isinstance(before, torch.Tensor) or torch.equal(before, after)
        expect(same, f"{call} changes its input in place: make a new tensor (x + y, not x += y)")


def _best(W, r):
    """Eckart-Young without an SVD: W projected on the r leading eigenvectors of W^T W."""
    W = W.double()
    V = torch.linalg.eigh(W.T @ W).eigenvectors.flip(1)[:, :r]
    return W @ V @ V.T


@exercise("1.1", points=2)
def optimal(best_rank_r):
    """as near to W as rank r can be: square, tall, wide, rank-deficient, r beyond the rank"""
    rng = generator()
    for d_out, d_in, r in [(6, 6, 2), (9, 4, 3), (4, 9, 2), (6, 6, 1)]:
        W = randn(d_out, d_in, rng=rng)
        call = f"best_rank_r(W, {r}) for W of shape {(d_out, d_in)}"
        _expect_cut(best_rank_r, call, W, r, _cut_guesses(W, r))
    thin = randn(8, 2, rng=rng) @ randn(2, 6, rng=rng)
    for r in (2, 3, 6):
        call = f"best_rank_r(W, {r}) for W of shape (8, 6) and rank 2"
        _expect_cut(best_rank_r, call, thin, r, {})
    for d_out, d_in in [(7, 4), (4, 7)]:
        call = f"best_rank_r(W, 9) for W of shape {(d_out, d_in)}"
        W = randn(d_out, d_in, rng=rng)
        _expect_cut(best_rank_r, call, W, 9, {})
    _unchanged("best_rank_r", best_rank_r, W, 1)


def _expect_cut(best_rank_r, call, W, r, guesses):
    beyond = r > min(W.shape)
    hint = "r may exceed min(W.shape): full_matrices=False keeps U, S, Vh in step" if beyond else ""
    got = ask(call, hint or "U is (d_out, k), S (k,), Vh (k, d_in)", best_rank_r, W, r)
    if isinstance(got, torch.Tensor) and got.shape != W.shape and r in got.shape:
        shape = f"has shape {tuple(got.shape)}, wanted {tuple(W.shape)}"
        raise CheckFailed(f"{call} {shape}: rank r is not fewer columns; multiply the factors out")
    expect_close(got, _best(W, r), call, guesses, tol=1e-3)


def _cut_guesses(W, r):
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)  # signs as the learner's, in fp32
    head = torch.arange(len(S)) < r
    columns, rows = W.clone(), W.clone()
    columns[:, r:], rows[r:] = 0, 0
    guesses = {
        "these are the first r columns of W; the SVD's directions are others": columns,
        "these are the first r rows of W; the SVD's directions are others": rows,
        "it keeps the smallest singular values; the largest come first": (U * S * head.flip(0))
        @ Vh,
        "the singular values S are missing: U * S scales the columns": (U * head) @ Vh,
        "the singular values come in twice": (U * S.square() * head) @ Vh,
        "that is sqrt(S); split over two factors it comes in both": (U * S.sqrt() * head) @ Vh,
        "this is what the cut leaves out, W minus the answer": W - _best(W, r),
        "it is W itself, nothing is cut": W,
        "it keeps r - 1 directions, one too few": _best(W, r - 1),
        "it keeps r + 1 directions, one too many": _best(W, r + 1),
    }
    if len(U) == len(Vh.T):  # only a square W lets these through
        vh = "Vh is V transposed already: use its first r rows (torch.svd gives V: its columns)"
        guesses[vh] = (U * S * head) @ Vh.T
        guesses["it takes rows of U; the directions are its columns"] = (U.T * S * head) @ Vh
    return guesses


@exercise("1.2", points=2)
def errors(relative_error):
    """equals |W - W_r| / |W|, from the singular values alone"""
    rng = generator()
    for d_out, d_in, r in [(7, 5, 2), (5, 8, 3), (6, 6, 1)]:
        W = randn(d_out, d_in, rng=rng)
        call = f"relative_error(W, {r}) for W of shape {(d_out, d_in)}"
        wanted = ((W - _best(W, r)).norm() / W.norm()).item()
        got = ask(call, "|W|² is the sum of s²", relative_error, W, r)
        expect_number(got, wanted, call, _error_guesses(W, r), tol=1e-3)
    _expect_no_error(relative_error, W, rng)
    W = randn(7, 5, rng=rng)
    best = _best(W, 2)
    made = observe(probe.matrices_made, relative_error, W, 2)
    builds = any(torch.allclose(m, w, atol=1e-3) for m in made for w in (best, W.double() - best))
    hint = "the singular values that are cut off say it all: torch.linalg.svdvals(W)"
    expect(not builds, f"the number is right, but W_r or W - W_r is multiplied out; {hint}")


def _expect_no_error(relative_error, W, rng):
    """Zero, and never NaN, where nothing is left out; so many that rounding goes below zero."""
    cases = [(W, 9)]
    for n in range(300):
        r = 2 + n % 8
        cases.append((randn(40, r, rng=rng) @ randn(r, 20 + n % 10, rng=rng), r + 3 * (n % 2)))
    hint = "1 - head / total can fall below zero by rounding: sum the tail, or clamp"
    call = "relative_error(W, r) for an r at or beyond the rank of W"
    for got in ask(call, hint, probe.each, relative_error, cases):
        expect(got == got, f"{call} is NaN; {hint}")
        if type(got) not in (int, float) or abs(got) > 2e-3:
            expect_number(got, 0.0, call, {"nothing is left out there": 1.0})


def _error_guesses(W, r):
    s = torch.linalg.svdvals(W.double())
    energy = s.square() / s.square().sum()
    head, tail, all_but = energy[:r].sum(), energy[r:].sum(), s[r:].sum() / s.sum()
    guesses = {
        "the singular values are not squared; |W|² is the sum of squares": all_but,
        "the singular values are not squared under the root": all_but.sqrt(),
        "the square root is missing: this is the error squared": tail,
        "that is the spectral norm; the Frobenius norm counts all of s[r:]": s[r] / s[0],
        "only one singular value is counted; the error has all of s[r:]": energy[r].sqrt(),
        "that is the head, which is kept; the error is the tail s[r:]": head.sqrt(),
        "that is the share of the energy kept; the error is made of the tail s[r:]": head,
        "squares add up, norms do not: not 1 minus the norm kept": 1 - head.sqrt(),
        "this is the error itself: divide by |W|": s[r:].norm(),
        "the tail starts one too late: indices start at 0": energy[r + 1 :].sum().sqrt(),
        "the tail starts one too early: it comes after the r kept": energy[r - 1 :].sum().sqrt(),
        "divided by the part that is kept, not by |W|": (tail / head).sqrt(),
    }
    return {why: value.item() for why, value in guesses.items()}


@exercise("1.3", points=2)
def parameters(lora_params, break_even_rank):
    """131,072 for 4096 x 4096 at r=16, linear in r; the largest rank that still saves"""
    m, rank = torch.randint(20, 90, (2,), generator=generator()).tolist()
    shapes = [(m, 3 * m + 1), (3 * m + 1, m)]  # no common factor, so no rank breaks exactly even
    for d_out, d_in, r in [(*shapes[0], rank), (*shapes[1], 2), (4096, 4096, 16)]:
        guesses = {
            "it multiplies the sides; two thin matrices add, r d_in + d_out r": r * d_out * d_in,
            "this is W; LoRA stores A and B": d_out * d_in,
            "this is A alone; B has d_out r more": r * d_in,
            "this is B alone; A has r d_in more": r * d_out,
            "it takes W for square, d_out x d_out": 2 * r * d_out,
            "it takes W for square, d_in x d_in": 2 * r * d_in,
            "an r x r matrix is counted too; LoRA has A and B only": r * (d_out + d_in + r),
            "it grows with r squared; A and B each grow linearly": r * r * (d_out + d_in),
            "r is missing: this is rank 1": d_out + d_in,
        }
        call = f"lora_params({d_out}, {d_in}, {r})"
        expect_number(observe(lora_params, d_out, d_in, r), r * (d_out + d_in), call, guesses)
    for d_out, d_in in [*shapes, (6, 3), (3, 6), (8, 3), (4096, 4096), (1536, 576), (1, 1)]:
        _expect_break_even(break_even_rank, d_out, d_in)


def _expect_break_even(break_even_rank, d_out, d_in):
    wanted = max(r for r in range(min(d_out, d_in)) if r * (d_out + d_in) < d_out * d_in)
    even = (wanted + 1) * (d_out + d_in) == d_out * d_in
    next_one = "stores as many as W, and saving means strictly fewer" if even else "stores more"
    guesses = {
        f"one too many: r = {wanted + 1} {next_one}": wanted + 1,
        f"one too few: r = {wanted} still stores fewer than W": wanted - 1,
        "half a side is right for a square W only": d_in // 2,
        "half of one side is right for a square W only": d_out // 2,
        "that is the full rank, where A and B store more than W": min(d_out, d_in),
    }
    call = f"break_even_rank({d_out}, {d_in})"
    hint = "r (d_out + d_in) < d_out d_in" if wanted else "no rank saves: 0"
    got = ask(call, hint, break_even_rank, d_out, d_in)
    expect(got is not None or wanted, f"{call} gave None, wanted 0: no rank saves")
    uneven = type(got) is float and not got.is_integer()
    expect(not uneven, f"{call} gave {got}: a rank is a whole number, round down")
    expect_number(got, wanted, call, guesses)


@exercise("1.4", points=3)
def ranks(energy_rank, stable_rank):
    """squared singular values, the boundary included; the scale of W does not matter"""
    rng = generator()
    for scale in (1, 100):
        s = (1 + 4 * torch.rand(40, generator=rng)).sort(descending=True).values
        for fraction in (0.9, 0.6, 0.99):
            _expect_energy(energy_rank, scale * s, fraction, f"s of 40 random values times {scale}")
    flat = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])
    for fraction in (0.75, 0.25, 0.51, 1.0):
        _expect_energy(energy_rank, flat, fraction, "s = [.25, .25, .25, .25, 0]")
    W = randn(9, 5, rng=rng)
    for M, name in [(W, "W of shape (9, 5)"), (7 * W.T, "7 * W.T"), (torch.eye(6), "identity")]:
        _expect_stable(stable_rank, M, f"stable_rank({name})")


def _expect_energy(energy_rank, s, fraction, name):
    wanted, energy = _first(s**2, fraction), (s**2).double().cumsum(0)
    undivided = "the sum of squares is compared as it is: divide by the whole energy"
    guesses = {
        "energy is the squared singular value; these are not squared": _first(s, fraction),
        "s is squared twice": _first(s**4, fraction),
        "the root is taken: a share of the norm, not of the energy": _first(s**2, fraction**2),
        "that much may be left out; `fraction` is to be kept": _first(s**2, 1 - fraction),
        f"{undivided}, sum(s²)": int((energy < fraction).sum()) + 1,
        f"{undivided}, sum(s²), a position counts from 0": int((energy < fraction).sum()),
        "that is a share; a rank is a number of singular values": wanted / len(s),
        "one too many: the energy must reach the fraction, not exceed it": wanted + 1,
        "one too few: a position counts from 0, a rank from 1": wanted - 1,
    }
    call = f"energy_rank(s, {fraction}) for {name}"
    got = ask(call, "the whole energy is the sum of s²", energy_rank, s, fraction)
    expect_number(got, wanted, call, guesses)


def _first(parts, fraction):
    """How many of the leading `parts` have `fraction` of their sum."""
    whole = fraction * parts.double().sum()
    return min(r for r in range(len(parts) + 1) if parts[:r].double().sum() >= whole)


def _expect_stable(stable_rank, M, call):
    s = torch.linalg.svdvals(M.double())
    spectral = "a norm over itself: torch.norm(W, 2) is Frobenius, matrix_norm(W, 2) is spectral"
    wanted = (M.double().square().sum() / s[0] ** 2).item()
    guesses = {
        "the norms are not squared: |W|_F² / |W|_2²": wanted**0.5,
        "the singular values are not squared": (s.sum() / s[0]).item(),
        "the spectral norm is not squared": wanted * s[0].item(),
        "the Frobenius norm is not squared": (s.norm() / s[0] ** 2).item(),
        spectral: 1.0,
        "that is the rank; the stable rank weighs each direction by its energy": len(s),
        "upside down": 1 / wanted,
        "the largest entry of W is not its spectral norm": (s.norm() / M.abs().max()).item() ** 2,
        "it is not divided by |W|_2²": wanted * s[0].item() ** 2,
    }
    got = ask(call, "|W|_F² / |W|_2²", stable_rank, M)
    expect_number(got, wanted, call, guesses, tol=1e-3)


@exercise("1.5", points=2, after="1.1")
def truncates(truncate_update):
    """W0 plus the best rank-r part of W1 - W0; W0 itself stays whole"""
    rng = generator()
    for d_out, d_in, r in [(6, 6, 2), (8, 5, 1), (5, 8, 3)]:
        W0 = randn(d_out, d_in, rng=rng)
        W1 = W0 + 0.5 * randn(d_out, d_in, rng=rng)
        cut = _best(W1 - W0, r)
        guesses = {
            "it cuts W1; cut the difference W1 - W0, then add W0": _best(W1, r),
            "it cuts W1 and adds W0; cut the difference W1 - W0": W0 + _best(W1, r),
            "it cuts W0, which stays whole; cut the difference": _best(W0, r) + W1 - W0,
            "it cuts W0 too; cut the difference alone": _best(W0, r) + cut,
            "it cuts W1 and W0 one by one; cut their difference": W0 + _best(W1, r) - _best(W0, r),
            "this is the update alone: add it to W0": cut,
            "the update points backwards: it is W1 - W0": W0 - cut,
            "it is added to W1, which holds the whole update already": W1 + cut,
            "this is W1, nothing is cut": W1,
            "this is W0, the update is lost": W0,
            "it keeps what the cut leaves out": W1 - cut,
        }
        call = f"truncate_update(W0, W1, {r}) for shape {(d_out, d_in)}"
        got = ask(call, "is best_rank_r right?", truncate_update, W0, W1, r)
        expect_close(got, W0 + cut, call, guesses, tol=1e-3)
    got = observe(truncate_update, W0, W1, 9)
    expect_close(got, W1, "truncate_update with r beyond the rank (W1 is wanted)", tol=1e-3)
    _unchanged("truncate_update", truncate_update, W0, W1, 2)


@exercise("1.6", points=3)
def subspace(subspace_point, project_gradient):
    """theta0 at z = 0, theta0 + P z elsewhere, and autograd's gradient with respect to z"""
    rng = generator()
    for D, d in [(6, 6), (9, 3)]:
        theta0, P, z = randn(D, rng=rng), randn(D, d, rng=rng), randn(d, rng=rng)
        call, hint = f"subspace_point with P of shape {(D, d)}", f"P @ z has shape {(D,)}"
        guesses = {
            "theta0 is missing": P @ z,
            "the step is subtracted": theta0 - P @ z,
            "P is scaled again; use it as it comes": theta0 + P @ z / D**0.5,
            "z changes nothing": theta0,
        }
        if d == D:
            guesses["that is P.T @ z; P itself leads from z to theta"] = theta0 + P.T @ z
        got = ask(call, hint, subspace_point, theta0, P, z)
        expect_close(got, theta0 + P @ z, call, guesses)
        start = observe(subspace_point, theta0, P, z * 0)
        expect_close(start, theta0, f"{call} and z = 0 (theta0 is wanted)", tol=1e-6)
        _expect_projected(project_gradient, theta0, P, z)
    _unchanged("subspace_point", subspace_point, theta0, P, z)
    _unchanged("project_gradient", project_gradient, P, theta0)


def _expect_projected(project_gradient, theta0, P, z):
    """The chain rule against autograd, for the loss sum(theta^4) / 4."""
    (D, d), z = P.shape, z.clone().requires_grad_()
    theta = theta0 + P @ z
    grad_theta, wanted = torch.autograd.grad(theta.pow(4).sum() / 4, (theta, z))
    guesses = {
        "averaged over D; the chain rule sums": wanted / D,
        "P is scaled again; the chain rule has P as it is": wanted / D**0.5,
        "that inverts P; gradients go back through its transpose": torch.linalg.pinv(P)
        @ grad_theta,
        "P is normalised; the chain rule has P as it is": wanted / P.norm(dim=0),
    }
    if d == D:
        back = "P leads from z to theta; gradients go back through its transpose, P.T @ g"
        guesses[back] = P @ grad_theta
    call = f"project_gradient with P of shape {(D, d)}"
    hint = f"the gradient of z has shape {(d,)}: it goes through the transpose of P"
    expect_close(ask(call, hint, project_gradient, P, grad_theta), wanted, call, guesses)


@exercise("1.7", points=3)
def quiz(quiz):
    """three questions"""
    return judge(quiz, "01")
