"""What misconceptions give in lab 5, and the references that its checks compare with."""

import math

import torch

from labkit.checks.compound import AND
from labkit.checks.svds import WAYS


def llama(d, d_kv, d_mlp, layers, every=False):
    """Shapes of a Llama-like model's projections: q and v, or `every` linear layer."""
    block = {"q_proj": (d, d), "v_proj": (d_kv, d)}
    if every:
        block |= {"k_proj": (d_kv, d), "o_proj": (d, d), "down_proj": (d, d_mlp)}
        block |= {"gate_proj": (d_mlp, d), "up_proj": (d_mlp, d)}
    return {f"layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}


SMOL = llama(576, 192, 1536, 30, every=True)


def sides(shapes):
    """What one rank costs: d_out + d_in, summed."""
    return sum(d_out + d_in for d_out, d_in in shapes.values())


def dense(shapes):
    """The numbers in the matrices themselves."""
    return sum(d_out * d_in for d_out, d_in in shapes.values())


LEFT = "these are left singular vectors; the right ones are the rows of Vh"
COLUMNS = "these are columns of Vh; its rows are the right ones"
CENTRED = "the rows were centred first, as PCA does; take A as it is"
WEAKEST = "these are the weakest directions: eigh sorts upwards, so the top vectors come last "
WEAKEST += "(those of an SVD come first)"
TWINS = "matrices of one shape are counted once"


ASKED = "is not asked for, take the largest rank that fits"
EXACT = "one less than fits: a rank that meets the budget exactly is within it"
NONE_FITS = "not even rank 1 fits: 0 is wanted"


def ranks_within(shapes, budget, wanted):
    """Wrong ranks for a budget, where they differ from the right one."""
    exact = budget / sides(shapes)
    guesses = (
        ({} if wanted else {NONE_FITS: 1, f"{NONE_FITS}, not less": -1})
        | {EXACT: (budget - 1) // sides(shapes)}
        | _costs(shapes, budget)
        | {
            "that rank is over the budget: round down": math.ceil(exact),
            "that rank is over the budget: round down, also above a half": round(exact),
            "one less than fits, whether it meets the budget exactly or not": wanted - 1,
            "one matrix alone may use it all; sum over shapes": min(
                budget // sum(pair) for pair in shapes.values()
            ),
            "the budget is not shared out equally: add up all costs, then divide": min(
                budget // (len(shapes) * sum(pair)) for pair in shapes.values()
            ),
            "each matrix alone may use it all: add up all costs, then divide": sum(
                budget // sum(pair) for pair in shapes.values()
            ),
            "parameters are linear in the rank: no square root": math.isqrt(
                budget // sides(shapes)
            ),
            "that is half of what fits: A and B together cost d_out + d_in": budget
            // (2 * sides(shapes)),
            "only the last matrix is counted; sum over shapes": budget
            // sum(list(shapes.values())[-1]),
            "only the first matrix is counted; sum over shapes": budget
            // sum(next(iter(shapes.values()))),
            "a rank costs d_out + d_in, not half of it": int(2 * exact),
            "each matrix alone may use it all, and the mean is taken: add up all costs": int(
                sum(budget / sum(pair) for pair in shapes.values()) / len(shapes)
            ),
            "that is what the rank costs; wanted is the rank": wanted * sides(shapes),
            "no matrix sets a limit here, the budget alone does": min(
                wanted, *(min(pair) for pair in shapes.values())
            ),
            f"a power of two {ASKED}": 2 ** max(wanted, 1).bit_length() // 2,
            f"a multiple of 8 {ASKED}": wanted // 8 * 8,
            f"an even rank {ASKED}": wanted // 2 * 2,
            f"{TWINS}; add up the costs of all": budget // sum(map(sum, set(shapes.values()))),
        }
        | {"that is a fraction of a rank: round down, with //": exact}
    )
    return {message: guess for message, guess in guesses.items() if guess != wanted}


def _costs(shapes, budget):
    """Ranks where one costs something else, or the budget is shared out otherwise."""
    pairs, n = list(shapes.values()), len(shapes)
    d_out, d_in = (sum(pair[k] for pair in pairs) for k in (0, 1))
    root = math.sqrt(sides(shapes) ** 2 + 4 * n * budget)
    return {
        "that divides by the dense size; a rank costs d_out + d_in": budget // dense(shapes),
        "a rank costs A's row too: d_out + d_in": budget // d_out,
        "a rank costs B's column too: d_out + d_in": budget // d_in,
        "a rank costs d_out + d_in, not the larger side alone": (
            budget // sum(max(pair) for pair in pairs)
        ),
        "a rank costs d_out + d_in, not the smaller side alone": (
            budget // sum(min(pair) for pair in pairs)
        ),
        "a rank costs d_out + d_in, not twice the larger side": (
            budget // sum(2 * max(pair) for pair in pairs)
        ),
        "a rank costs d_out + d_in, not twice the smaller side": (
            budget // sum(2 * min(pair) for pair in pairs)
        ),
        "a rank costs d_out + d_in, not twice d_out": budget // (2 * d_out),
        "a rank costs d_out + d_in, not twice d_in": budget // (2 * d_in),
        "the budget is in numbers, not in bytes": budget // (4 * sides(shapes)),
        "the frozen weights are no part of the budget: adapters alone count": (
            max(0, budget - dense(shapes)) // sides(shapes)
        ),
        "each matrix has its share, and the mean is taken: add up all costs, then divide": (
            sum(budget // len(shapes) // sum(pair) for pair in shapes.values()) // len(shapes)
        ),
        "upside down: divide the budget by what a rank costs": sides(shapes) // max(budget, 1),
        "A and B alone: there is no r x r matrix between them": int((root - sides(shapes)) / 2 / n),
    }


def projector(A, k):
    """The projector (d, d) on the top k right singular vectors, from eigenvectors of A' A."""
    top = torch.linalg.eigh(A.double().T @ A.double()).eigenvectors[:, -k:]
    return top @ top.T


def overlap(A1, A2, i, j):
    """||U_i' U_j||_F^2 as the trace of the product of two projectors."""
    return torch.trace(projector(A1, i) @ projector(A2, j)).item()


def overlaps(A1, A2, i, j):
    """Wrong subspace similarities, some of them the right number by chance."""
    total, least = overlap(A1, A2, i, j), min(i, j)
    free = {}
    for way, svd in WAYS.items():
        free |= {way + told: M for told, M in _free(svd, A1, A2, i, j).items()}
    A1, A2 = A1.double(), A2.double()
    (U1, S1, V1), (U2, S2, V2) = (torch.linalg.svd(A, full_matrices=False) for A in (A1, A2))
    Q1, Q2 = (torch.linalg.qr(A.T)[0] for A in (A1[:i], A2[:j]))
    product, own = V1[:i] @ V2[:j].T, V1[-i:] @ V2[-j:].T
    shifted = [torch.linalg.svd(A - A.mean(0), full_matrices=False)[2] for A in (A1, A2)]
    guesses = {}
    if len(A1) == len(A2):
        guesses = {LEFT: U1[:, :i].T @ U2[:, :j]}
    guesses |= {
        "these are rows of A, not singular vectors": A1[:i] @ A2[:j].T,
        "these are rows of A of length one, not singular vectors": _rows(A1, i) @ _rows(A2, j).T,
        "i cuts both: the top i of A1 and the top j of A2": V1[:i] @ V2[:i].T,
        "j cuts both: the top i of A1 and the top j of A2": V1[:j] @ V2[:j].T,
        **_cuts(V1, V2, i, j),
        "this is the span of the first rows of A, not of its top singular vectors": Q1.T @ Q2,
        "these are the last singular vectors; the top ones come first in Vh": own,
        "the singular values are in it; wanted are the directions alone": S1[:i, None]
        * product
        * S2[:j],
        "one vector less than asked: the first i and the first j count": (
            V1[: i - 1] @ V2[: j - 1].T
        ),
        **free,
    }
    if i < len(A1) and j < len(A2):
        guesses[CENTRED] = shifted[0][:i] @ shifted[1][:j].T
    if len(V1) == len(V2) == A1.shape[1]:  # elsewhere any basis of a null space may come first
        guesses[WEAKEST] = own
    ranks, matrices = (len(A1), len(A2)), guesses
    guesses = {message: M.square().sum().item() / least for message, M in matrices.items()}
    guesses |= _norms(product, total, i, j, ranks)
    guesses |= _twice_wrong(matrices, i, j, ranks)
    guesses |= _single(product, total, least, S1[:i] / S1[0], S2[:j] / S2[0])
    if j <= len(A1) and i <= len(A2):
        guesses["i and j are swapped"] = overlap(A1, A2, j, i) / least
    return guesses


def _free(svd, A1, A2, i, j):
    """Products of vectors whose signs, or basis of a null space, `svd` chose."""
    (F1, F2), (T1, T2) = (
        [svd(A, full_matrices=full)[2] for A in (A1, A2)] for full in (True, False)
    )
    return ({COLUMNS: T1[:, :i].T @ T2[:, :j]} if len(A1) == len(A2) else {}) | {
        "these are columns of Vh; its rows are the right vectors (full_matrices=False)": F1[:, :i].T
        @ F2[:, :j],
    }


def _cuts(V1, V2, i, j):
    """Products of other vectors than the first i and the first j."""
    return {
        "one more vector than asked: [:i] and [:j] hold i and j": V1[: i + 1] @ V2[: j + 1].T,
        "all singular vectors are used; take the top i and the top j": V1 @ V2.T,
        "the smaller of i and j cuts both: the top i of A1 and the top j of A2": (
            V1[: min(i, j)] @ V2[: min(i, j)].T
        ),
        "these are the i-th and the j-th vector alone; the first i and the first j count": (
            V1[i - 1 : i] @ V2[j - 1 : j].T
        ),
        "these are the vectors after the first i and j: [:i] and [:j] are the first": (
            V1[i:] @ V2[j:].T
        ),
    }


def _twice_wrong(matrices, i, j, ranks):
    """Wrong vectors, and another figure of their products."""
    found = {}
    for message, M in matrices.items():
        if not M.numel():
            continue
        norms = _norms(M, M.square().sum().item(), i, j, ranks)
        found |= {f"{message}{AND}{norm}": value for norm, value in norms.items()}
    return found


def _norms(product, total, i, j, ranks):
    """Wrong numbers from the right vectors, whose products are `product`."""
    least = min(i, j)
    values = torch.linalg.svdvals(product)
    return {
        "divide by min(i, j)": total,
        "the Frobenius norm is not squared": math.sqrt(total) / least,
        "the norm is squared and divided: no square root of it all": math.sqrt(total / least),
        "square the whole norm once: divide by min(i, j), not by its square": total / least**2,
        "divide by min(i, j), not by the larger one": total / max(i, j),
        "divide by min(i, j), not by the mean of i and j": 2 * total / (i + j),
        "divide by min(i, j), not by i + j": total / (i + j),
        "divide by min(i, j), not by i": total / i,
        "divide by min(i, j), not by j": total / j,
        "divide by min(i, j), not by the square root of i * j": total / math.sqrt(i * j),
        "divide by min(i, j), not by min(r1, r2)": total / min(ranks),
        "divide by min(i, j), not by the number of A1's rows": total / ranks[0],
        "divide by min(i, j), not by the number of A2's rows": total / ranks[1],
        "it is 1 whatever is given: is A1, or A2, compared with itself?": 1.0,
        "that is the mean of the squares; take their sum, over min(i, j)": total / (i * j),
        "that is the mean of the sizes; square each, and sum": product.abs().mean().item(),
        "the entries are not squared, only made positive": product.abs().sum().item() / least,
        "the entries are not squared": product.sum().item() / least,
        "the largest singular value is another norm: Frobenius sums all squares": (
            values.max() ** 2
        ).item()
        / least,
        "the sum of singular values is another norm: Frobenius sums their squares": (
            values.sum().item() / least
        ),
        "that is the largest overlap of two vectors; sum the squares of all": (
            product.abs().max().item()
        ),
        "it is rounded; give the number as it is": round(total / least, 2),
        "that is one minus it: 1 where one span contains the other": 1 - total / least,
        "only the pairs on the diagonal are counted; every direction meets every other": (
            product.diagonal().square().sum().item() / least
        ),
    }


def _single(product, total, least, s1, s2):
    """Wrong numbers from some of the right products, from their sum, or weighed by s1 and s2."""
    return {
        "the singular values over the largest are in it; wanted are the directions alone": (
            (s1[:, None] * product * s2).square().sum().item() / least
        ),
        "that is the largest singular value alone: Frobenius sums all squares, over min(i, j)": (
            torch.linalg.svdvals(product).max().square().item()
        ),
        "that compares the i-th vector with the j-th alone; the first i and the first j count": (
            product[-1, -1].square().item()
        ),
        "the sum is squared; square each entry, then sum": product.sum().square().item() / least,
        "that is a distance, the root of one minus it; wanted is it alone": math.sqrt(
            max(0.0, 1 - total / least)
        ),
        "one vector less than asked: the first i and the first j count": (
            product[:-1, :-1].square().sum().item() / max(1, least - 1)
        ),
    }


def _rows(A, k):
    return torch.nn.functional.normalize(A[:k], dim=1)
