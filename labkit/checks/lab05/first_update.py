"""What exercise 5.1 expects of `first_update`, and what misconceptions give."""

import torch

from labkit.checks.compare import ask, close, draw, expect_related, likeliest, randn
from labkit.checks.lab05 import changes, small
from labkit.checks.laws import laws
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, part, sound

HINTS = {
    "has no attribute": "",
    "": "G is (d_out, d_in) and A (r, d_in): B's gradient is G @ A.T, (d_out, r), times alpha / r",
}


def expect_updates(first_update, rng):
    """As torch's Adam has it: wide, tall, square, of rank 1, of small gradients, some of them 0."""
    sizes = [(4, 7, 3), (8, 6, 5), (7, 7, 6), (6, 12, 10), (5, 6, 1)]
    # at 0.5 a weight decay shows; 0 makes alpha less than r
    factors = ((4, 0.01), (5, 0.004), (10, 0.5), (0, 0.02), (7, 0.003))
    cases = []
    for k, ((d_out, d_in, r), (more, lr)) in enumerate(zip(sizes, factors, strict=True)):
        G, A = _drawn(d_out, d_in, r, rng)
        G[k % 2 :: 4] = 0.0  # a row that no token moves
        alpha = r * more + (draw(1, 9, rng) if k else 0)
        cases.append((1e-3 * G if k == 1 else G, A, r, alpha, lr))
    *several, single = cases  # at r=1 many mistakes look alike
    followed = laws(*changes.updates(first_update, *several[0]))
    with part(), simplest(small.updates(first_update)), followed, likeliest() as case:
        for given in several:
            with case():
                _expect_update(first_update, *given)
    if sound():
        _expect_update(first_update, *single)


def _drawn(d_out, d_in, r, rng):
    """G and A of which no number of G @ A.T is so near 0 that rounding decides its sign."""
    while True:
        G, A = randn(d_out, d_in, rng=rng), randn(r, d_in, rng=rng) / d_in**0.5
        size = (G @ A.T).abs()
        if size.min() > 0.02 * size.mean():
            return G, A


def _expect_update(first_update, G, A, r, alpha, lr):
    call = f"first_update of a G of shape {tuple(G.shape)}, r={r}, alpha={alpha}, lr={lr}"
    got = ask(call, first_update, G, A, r, alpha, lr, hint=HINTS)
    _expect_whole(got, G, r, call)
    if isinstance(got, torch.Tensor) and got.isnan().any():
        hint = "0 / 0? A number whose gradient is 0 does not move, as torch.sign has it"
        raise CheckFailed(f"{call} holds NaN: {hint}")
    try:
        expect_related(
            got, by_adam(G, A, r, alpha, lr), call, guesses(G, A, r, alpha, lr), tol=1e-3
        )
    except CheckFailed as failure:
        told = failure.bare and _moved(got.double(), A.double(), G.double(), alpha / r, lr)
        raise CheckFailed(f"{call}: {told}") if told else failure from None


def _moved(got, A, G, s, lr):
    """How B has moved if the answer is alpha / r * B @ A with A as it was; "" if it is not."""
    B = got @ torch.linalg.pinv(A) / s
    if not close(s * B @ A, got, 1e-3) or len(A) >= A.shape[1]:
        return ""
    sizes = B[(G @ A.T).abs() > 0].abs() / lr
    if (sizes - 1).abs().max() < 1e-3:
        return "each number of B moves by lr, some the wrong way: against the sign of G @ A.T"
    told = f"numbers of B move by {sizes.min():.3g} to {sizes.max():.3g} times lr here"
    return f"{told}; each moves by lr: Adam divides its gradient by its own size"


def _expect_whole(got, G, r, call):
    """Raise CheckFailed where the answer is that of B alone."""
    shape = getattr(got, "shape", None)
    if isinstance(got, list) and len(got) == 2:
        raise CheckFailed(f"{call} gave two things; wanted is W's change alone, a (d_out, d_in)")
    if shape == (len(G), r) != tuple(G.shape):
        told = f"{call} has shape {tuple(shape)}: that is B's change"
        raise CheckFailed(f"{told}; W's is alpha / r times it, @ A")


def by_adam(G, A, r, alpha, lr):
    """alpha / r * B @ A after a step of torch.optim.Adam from B = 0, where G is dL/dW."""
    A, B = A.clone().requires_grad_(), torch.zeros(len(G), r, requires_grad=True)
    optimizer = torch.optim.Adam([A, B], lr)
    (G * (alpha / r * B @ A)).sum().backward()
    optimizer.step()
    return (alpha / r * B @ A).detach()


def guesses(G, A, r, alpha, lr):
    """Wrong first updates."""
    return (
        _odd(G, A, r, alpha, lr, by_adam(G, A, r, alpha, lr))
        | _factors(G, A, r, alpha, lr)
        | _steps(G, A, r, alpha, lr)
        | _moments(G, A, r, alpha, lr)
    )


def _factors(G, A, r, alpha, lr):
    """Wrong factors, and the sign."""
    right, s = by_adam(G, A, r, alpha, lr), alpha / r
    step = right / (s * lr)
    return {
        "the sign is turned round: a step goes against the gradient": (-right),
        "alpha / r is missing before B @ A": (lr * step),
        "A shrinks by a weight decay, as in AdamW: Adam has none": (1 - 0.01 * lr) * right,
        "the factor is alpha / r: the division by r is missing": (alpha * lr * step),
        "the factor is alpha / r: it is divided by r twice": (s / r * lr * step),
        "the factor is alpha / r: alpha is missing": (lr / r * step),
        "alpha / r comes twice: Adam takes the size of the gradient away, and a factor in it": (
            s * s * lr * step
        ),
        "alpha is divided by d_in, and belongs over r, the rows of A": alpha
        / G.shape[1]
        * lr
        * step,
        "alpha is divided by d_out, and belongs over r, the rows of A": alpha / len(G) * lr * step,
        "the factor here is alpha / r, without a root": (alpha / r**0.5 * lr * step),
        "the factor is upside down: alpha / r": (lr / s * step),
        "lr is missing: it is how far Adam moves each number of B": (s * step),
        "lr comes twice": (s * lr * lr * step),
        "all of it is 0, and B is 0 only before the step: its gradient is not": 0 * step,
    }


def _steps(G, A, r, alpha, lr):
    """Wrong steps of B."""
    P, s = G @ A.T, alpha / r
    by_size = "Adam divides each number's gradient by its own size, so B moves by lr or not at all"
    of_b = "Adam sees B's gradient, G @ A.T, and not G: W does not train"
    late = "the sign is taken of G @ A.T @ A; Adam takes that of B's gradient, G @ A.T"
    old = "both gradients are taken at the old B, and A's is 0 there, since B is 0"
    return {
        f"that is a step of plain gradient descent; {by_size}": (-s * s * lr * P @ A),
        f"that is a step along the gradient; {by_size}": (-s * lr * P @ A),
        f"the gradient is divided by its norm; {by_size}": (-s * lr * P / P.norm() @ A),
        f"the gradient is divided by its largest; {by_size}": (-s * lr * P / P.abs().max() @ A),
        f"the gradient is divided by its mean size; {by_size}": (-s * lr * P / P.abs().mean() @ A),
        f"each row is divided by its norm; {by_size}": (
            -s * lr * torch.nn.functional.normalize(P) @ A
        ),
        f"that is a first step of full fine-tuning; {of_b}": (-lr * G.sign()),
        f"that is a first step of full fine-tuning, times alpha / r; {of_b}": (-s * lr * G.sign()),
        f"the sign is taken of G; {of_b}": (-s * lr * G.sign() @ A.T @ A),
        f"the sign is taken of G, and alpha / r behind it; {of_b}": (
            -s * s * lr * G.sign() @ A.T @ A
        ),
        f"{late}, and @ A comes after": -s * lr * (P @ A).sign(),
        f"{late}, and alpha / r and @ A come after": -lr * (P @ A).sign(),
        f"A moves here too, by its gradient at the new B, alpha / r * B.T @ G; {old}": (
            -s * lr * P.sign() @ (A - lr * (-P.sign().T @ G).sign())
        ),
        f"A moves here too; {old}": (-s * lr * P.sign() @ (A - lr * (P.T @ G).sign())),
    }


def _moments(G, A, r, alpha, lr):
    """What moves and what does not, and wrong means of Adam."""
    right, P, s = by_adam(G, A, r, alpha, lr), G @ A.T, alpha / r
    up, down = (torch.where(mask, 1.0, -1.0) for mask in (P >= 0, P > 0))
    of_b = "Adam sees B's gradient, G @ A.T, and not G: W does not train"
    zero = "a gradient of 0 moves nothing, as torch.sign has it"
    return {
        "A's signs are taken; A stays as it is": (-s * lr * P.sign() @ A.sign()),
        "the sign of the gradient is lost: B moves against it": (-s * lr * P.sign().abs() @ A),
        "the sign of the gradient is lost, and minus: B moves against it": (
            s * lr * P.sign().abs() @ A
        ),
        "the sign is lost": (right.abs()),
        zero: (-s * lr * up @ A),
        f"{zero}, and not -1": (-s * lr * down @ A),
        "Adam divides by 1 - beta: at the first step m / (1 - beta1) is the gradient itself": (
            0.1 / 0.001**0.5 * right
        ),
        "m is not divided by 1 - beta1: at the first step m / (1 - beta1) is the gradient": (
            0.1 * right
        ),
        "v is not divided by 1 - beta2: at the first step v / (1 - beta2) is the square": (
            right / 0.001**0.5
        ),
        "no mean over r: the r terms b_k a_k are summed": (right / r),
        "this is half of it": (right / 2),
        "this is twice a first step": (2 * right),
        "the gradient is divided by its square; Adam divides by the root of it": (
            -s * lr * s * P / ((s * P).square() + 1e-8) @ A
        ),
        "the root of lr is taken: B moves by lr itself": (right / lr**0.5),
        f"the sign is taken of G, and once more of its product with A; {of_b}": (
            -s * lr * (G.sign() @ A.T).sign() @ A
        ),
    }


def _odd(G, A, r, alpha, lr, right):
    """Wrong first updates of rarer kinds."""
    P, s = G @ A.T, alpha / r
    step, unit = -s * lr * P.sign(), torch.nn.functional.normalize(A)
    moved = "A stays as it is: its gradient is alpha / r * B.T @ G, and B is 0"
    known = {
        f"A moves here too; {moved}": step @ (A - lr * A.sign()),
        f"A moves here by lr; {moved}": step @ (A - lr),
        "A's rows are made of length one; A stays as it was drawn": -s
        * lr
        * (G @ unit.T).sign()
        @ unit,
        "A's rows are made of length one behind the step; A stays as it was drawn": step @ unit,
        "that is the first of r terms: each row of A has its own": step[:, :1] @ A[:1],
        "that is the last of r terms: each row of A has its own": step[:, -1:] @ A[-1:],
        "all numbers of B move the same way here; each has its own sign, that of G @ A.T": -s
        * lr
        * torch.ones_like(P)
        @ A,
        "that is gradient descent on W; W does not train, and B moves by Adam": -lr * G,
        "that is gradient descent on W, times alpha / r; W does not train": -s * lr * G,
        "that is gradient descent on W, times alpha; W does not train": -alpha * lr * G,
        "G is the gradient, and not W: return the change alone": G + right,
        "alpha // r cuts the fraction off: alpha / r": (alpha // r) / s * right,
        "the change is scaled to a norm of lr; leave it as it comes": right / right.norm() * lr,
        "the change is scaled to a norm of 1; leave it as it comes": right / right.norm(),
    }
    for eps in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        told = f"an epsilon of {eps:g} is large beside a small gradient: Adam's is 1e-8"
        known[told] = -s * lr * (s * P / ((s * P).abs() + eps)) @ A
    return known
