"""What misconceptions give in lab 5, and the references that its checks compare with."""

import math

import torch


def llama(d, d_kv, d_mlp, layers, every=False):
    """Shapes of a Llama-like model's projections: q and v, or `every` linear layer."""
    block = {"q_proj": (d, d), "v_proj": (d_kv, d)}
    if every:
        block |= {"k_proj": (d_kv, d), "o_proj": (d, d), "down_proj": (d, d_mlp)}
        block |= {"gate_proj": (d_mlp, d), "up_proj": (d_mlp, d)}
    return {f"layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}


SMOL = llama(576, 192, 1536, 30, every=True)
PUBLISHED = {
    "SmolLM2-135M, q and v": (llama(576, 192, 1536, 30), {4: 230_400, 64: 3_686_400}),
    "SmolLM2-135M, all-linear": (SMOL, {16: 4_884_480}),
    "Llama-2-7B, q and v": (llama(4096, 4096, 11008, 32), {8: 4_194_304, 16: 8_388_608}),
    "Llama-3.1-8B, all-linear": (llama(4096, 1024, 14336, 32, every=True), {16: 41_943_040}),
}


def sides(shapes):
    """What one rank costs: d_out + d_in, summed."""
    return sum(d_out + d_in for d_out, d_in in shapes.values())


def dense(shapes):
    """The numbers in the matrices themselves."""
    return sum(d_out * d_in for d_out, d_in in shapes.values())


def counted(shapes, r):
    """Wrong counts of the parameters at rank r."""
    d_out, d_in = (sum(pair[k] for pair in shapes.values()) for k in (0, 1))
    sizes = "A is (r, d_in) and B is (d_out, r): add the sides, don't multiply them"
    return {
        "parameters are linear in the rank, not quadratic": r * r * (d_out + d_in),
        sizes: r * dense(shapes),
        "this counts A only; B has d_out * r more": r * d_in,
        "this counts B only; A has r * d_in more": r * d_out,
        "d_out is used twice, as if matrices were square": 2 * r * d_out,
        "d_in is used twice, as if matrices were square": 2 * r * d_in,
        "this counts one matrix; sum over shapes": r * sum(next(iter(shapes.values()))),
    }


NONE_FITS = "not even rank 1 fits: 0 is wanted"


def ranks_within(shapes, budget, wanted):
    """Wrong ranks for a budget, where they differ from the right one."""
    exact = budget / sides(shapes)
    guesses = ({} if wanted else {NONE_FITS: 1}) | {
        "that rank is over the budget: round down": math.ceil(exact),
        "that rank is over the budget: round down, also above a half": round(exact),
        "one less than fits: a rank that meets the budget exactly is within it": wanted - 1,
        "one matrix alone may use it all; sum over shapes": min(
            budget // sum(pair) for pair in shapes.values()
        ),
        "that divides by the dense size; a rank costs d_out + d_in": budget // dense(shapes),
    }
    return {message: guess for message, guess in guesses.items() if guess != wanted}


def projector(A, k):
    """The projector (d, d) on the top k right singular vectors, from eigenvectors of A' A."""
    top = torch.linalg.eigh(A.double().T @ A.double()).eigenvectors[:, -k:]
    return top @ top.T


def overlap(A1, A2, i, j):
    """||U_i' U_j||_F^2 as the trace of the product of two projectors."""
    return torch.trace(projector(A1, i) @ projector(A2, j)).item()


def overlaps(A1, A2, i, j):
    """Wrong subspace similarities, where they differ from the right one."""
    total, least = overlap(A1, A2, i, j), min(i, j)
    rows = (A1[:i].double() @ A2[:j].double().T).square().sum().item()
    Q1, Q2 = (torch.linalg.qr(A.double().T)[0] for A in (A1[:i], A2[:j]))
    first = (Q1.T @ Q2).square().sum().item()
    guesses = {}
    if len(A1) == len(A2):
        (U1, _, V1), (U2, _, V2) = (torch.linalg.svd(A, full_matrices=False) for A in (A1, A2))
        left, cut = U1[:, :i].T @ U2[:, :j], V1[:, :i].T @ V2[:, :j]
        guesses = {
            "these are left singular vectors; the right ones are the rows of Vh": left,
            "these are columns of Vh; its rows are the right singular vectors": cut,
        }
        guesses = {m: product.square().sum().item() / least for m, product in guesses.items()}
    guesses |= {
        "divide by min(i, j)": total,
        "the Frobenius norm is not squared": math.sqrt(total) / least,
        "divide by min(i, j), not by the larger one": total / max(i, j),
        "divide by min(i, j), not by i": total / i,
        "divide by min(i, j), not by j": total / j,
        "that is the mean of the squares; take their sum, over min(i, j)": total / (i * j),
        "these are rows of A, not singular vectors": rows / least,
        "this is the span of the first rows of A, not of its top singular vectors": first / least,
    }
    if j <= len(A1) and i <= len(A2):
        guesses["i and j are swapped"] = overlap(A1, A2, j, i) / least
    return {m: guess for m, guess in guesses.items() if abs(guess - total / least) > 1e-3}


def beaten(cost, quality, rows):
    """Whether a row (name, cost, quality) is no worse in both and better in one."""
    return any(c <= cost and q >= quality and (c, q) != (cost, quality) for _, c, q in rows)


def why_extra(name, rows):
    """Why row `name` does not belong on the front."""
    cost, quality = next((c, q) for a, c, q in rows if a == name)
    if quality != quality:
        return "a run without a score is on no front"
    by, c, q = next(row for row in rows if beaten(cost, quality, [row]))
    what = "no worse in both and better in one"
    return f"{by} (seconds {c}, score {q}) is {what}: lower cost, higher quality"


def why_lost(name, rows):
    """Why row `name` does belong on the front."""
    own = next((c, q) for a, c, q in rows if a == name)
    twin = next((a for a, c, q in rows if (c, q) == own and a != name), None)
    if twin:
        return f"{twin} is equal in both, and equal rows do not beat each other: keep both"
    return "no other row is as good in both and better in one"


def gap_of(steps, train, held, best, at):
    """The right row of `overfit_gap` for one rank, and wrong ones for each column.

    `at` says which of the steps comes last in the table, `best` which has the lowest held-out loss.
    """
    gaps = [h - t for h, t in zip(held, train, strict=True)]
    right = {"best_step": steps[best], "gap": gaps[-1], "rise": held[-1] - held[best]}
    unsorted = "that takes the last row of the table; its last step is elsewhere: sort by step"
    guesses = {
        "best_step": {
            "two steps have the lowest loss; wanted is the first of them": steps[best + 1],
            "that is the last step, where the training loss is lowest": steps[-1],
            "that is a position in the table; wanted is the value of step": best,
        },
        "gap": {
            "the sign is turned round: held-out minus training loss": -gaps[-1],
            "that is the gap at the best step; wanted is the last step's": gaps[best],
            "that is the mean over the steps; wanted is the last step's": sum(gaps) / len(gaps),
            "that divides; wanted is a difference": held[-1] / train[-1],
            "that is the largest gap; wanted is the last step's": max(gaps),
            unsorted: gaps[at],
        },
        "rise": {
            "the sign is turned round: last minus lowest": held[best] - held[-1],
            "that is the fall since the first step": held[0] - held[best],
            "that compares with the training loss; wanted is held-out alone": gaps[-1],
            "that is the spread; wanted is how far the last lies above the lowest": max(held)
            - held[best],
            "that divides; wanted is a difference": held[-1] / held[best],
            unsorted: held[at] - held[best],
        },
    }
    for name, options in guesses.items():
        guesses[name] = {m: g for m, g in options.items() if abs(g - right[name]) > 1e-4}
    return right, guesses
