"""What misconceptions give in lab 5, and the references that its checks compare with."""

import math

import torch

from labkit.checks import counts


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


TWINS = "matrices of one shape are counted once"


def counted(shapes, r):
    """Wrong counts of the parameters at rank r."""
    d_out, d_in = (sum(pair[k] for pair in shapes.values()) for k in (0, 1))
    sizes = "A is (r, d_in) and B is (d_out, r): add the sides, don't multiply them"
    return {
        "parameters are linear in the rank, not quadratic": r * r * (d_out + d_in),
        sizes: r * dense(shapes),
        **counts.counted(shapes, r),
        f"{TWINS}; sum over all": r * sum(map(sum, set(shapes.values()))),
        "the rank is missing: that is what one rank costs": d_out + d_in,
        "twice too many: A has r * d_in numbers and B d_out * r": 2 * r * (d_out + d_in),
        "this counts bytes; wanted are numbers": 4 * r * (d_out + d_in),
        "one more d_out for each matrix: LoRA has no bias": r * (d_out + d_in) + d_out,
        "this counts the matrices themselves too; wanted is the adapter alone": dense(shapes)
        + r * (d_out + d_in),
        "that is r + d_out + d_in: a factor of r has r times its side": sum(
            r + sum(pair) for pair in shapes.values()
        ),
    }


def percents(shapes, r):
    """Wrong percentages at rank r."""
    trainable, whole = r * sides(shapes), dense(shapes)
    each = [100 * r * sum(pair) / (pair[0] * pair[1]) for pair in shapes.values()]
    return {
        "that is a share: times 100": trainable / whole,
        "divide by the numbers in the matrices, without the adapter's": 100
        * trainable
        / (whole + trainable),
        "that is the mean of the matrices' own percentages; add up first, then divide": sum(each)
        / len(each),
        "that is the sum of the matrices' own percentages; add up first, then divide": sum(each),
        "rounded too much: keep two digits at least": round(100 * trainable / whole, 1),
        "rounded too much: keep the digits": round(100 * trainable / whole),
        "that is the dense matrices in percent of the adapter": 100 * whole / trainable,
        "divided by d_out + d_in; a matrix has d_out * d_in numbers": 100 * r,
        "that is what is left: 100 minus the wanted": 100 - 100 * trainable / whole,
    }


ASKED = "is not asked for, take the largest rank that fits"
NONE_FITS = "not even rank 1 fits: 0 is wanted"


def ranks_within(shapes, budget, wanted):
    """Wrong ranks for a budget, where they differ from the right one."""
    exact = budget / sides(shapes)
    d_out, d_in = (sum(pair[k] for pair in shapes.values()) for k in (0, 1))
    guesses = (
        ({} if wanted else {NONE_FITS: 1})
        | {
            "that rank is over the budget: round down": math.ceil(exact),
            "that rank is over the budget: round down, also above a half": round(exact),
            "one less than fits: a rank that meets the budget exactly is within it": wanted - 1,
            "one matrix alone may use it all; sum over shapes": min(
                budget // sum(pair) for pair in shapes.values()
            ),
            "that divides by the dense size; a rank costs d_out + d_in": budget // dense(shapes),
            "a rank costs A's row too: d_out + d_in": budget // d_out,
            "a rank costs B's column too: d_out + d_in": budget // d_in,
            "upside down: divide the budget by what a rank costs": sides(shapes) // max(budget, 1),
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
            "only the first matrix is counted; sum over shapes": budget
            // sum(next(iter(shapes.values()))),
            "that is what the rank costs; wanted is the rank": wanted * sides(shapes),
            "no matrix sets a limit here, the budget alone does": min(
                wanted, *(min(pair) for pair in shapes.values())
            ),
            f"a power of two {ASKED}": 2 ** max(wanted, 1).bit_length() // 2,
            f"a multiple of 8 {ASKED}": wanted // 8 * 8,
            f"{TWINS}; add up the costs of all": budget // sum(map(sum, set(shapes.values()))),
            "the budget is in numbers, not in bytes": budget // (4 * sides(shapes)),
        }
        | {"that is a fraction of a rank: round down, with //": exact}
    )
    return {message: guess for message, guess in guesses.items() if guess != wanted}


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
    (F1, F2), (T1, T2), (E1, E2) = (
        [torch.linalg.svd(A).Vh for A in (A1, A2)],
        [torch.linalg.svd(A, full_matrices=False).Vh for A in (A1, A2)],
        [torch.linalg.eigh(A.T @ A).eigenvectors for A in (A1, A2)],
    )  # as a learner computes them: signs are free, and null spaces have no basis of their own
    A1, A2 = A1.double(), A2.double()
    (U1, S1, V1), (U2, S2, V2) = (torch.linalg.svd(A, full_matrices=False) for A in (A1, A2))
    Q1, Q2 = (torch.linalg.qr(A.T)[0] for A in (A1[:i], A2[:j]))
    product, own = V1[:i] @ V2[:j].T, V1[-i:] @ V2[-j:].T
    shifted = [torch.linalg.svd(A - A.mean(0), full_matrices=False)[2] for A in (A1, A2)]
    guesses = {}
    if len(A1) == len(A2):
        guesses = {
            "these are left singular vectors; the right ones are the rows of Vh": U1[:, :i].T
            @ U2[:, :j],
            "these are columns of Vh; its rows are the right ones": T1[:, :i].T @ T2[:, :j],
        }
    guesses |= {
        "these are rows of A, not singular vectors": A1[:i] @ A2[:j].T,
        "these are rows of A of length one, not singular vectors": _rows(A1, i) @ _rows(A2, j).T,
        "i cuts both: the top i of A1 and the top j of A2": V1[:i] @ V2[:i].T,
        "j cuts both: the top i of A1 and the top j of A2": V1[:j] @ V2[:j].T,
        "all singular vectors are used; take the top i and the top j": V1 @ V2.T,
        "one more vector than asked: [:i] and [:j] hold i and j": V1[: i + 1] @ V2[: j + 1].T,
        "this is the span of the first rows of A, not of its top singular vectors": Q1.T @ Q2,
        "these are the last singular vectors; the top ones come first in Vh": own,
        "the singular values are in it; wanted are the directions alone": S1[:i, None]
        * product
        * S2[:j],
        "these are columns of Vh; its rows are the right vectors (full_matrices=False)": F1[:, :i].T
        @ F2[:, :j],
        "eigh sorts upwards, so the top vectors come last": E1[:, :i].T @ E2[:, :j],
    }
    if i < len(A1) and j < len(A2):
        told = "the rows were centred first, as PCA does; take A as it is"
        guesses[told] = shifted[0][:i] @ shifted[1][:j].T
    guesses = {message: M.square().sum().item() / least for message, M in guesses.items()}
    guesses |= _norms(product, total, i, j, (len(A1), len(A2)))
    if j <= len(A1) and i <= len(A2):
        guesses["i and j are swapped"] = overlap(A1, A2, j, i) / least
    return guesses


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
        "divide by min(i, j), not by i": total / i,
        "divide by min(i, j), not by j": total / j,
        "divide by min(i, j), not by the square root of i * j": total / math.sqrt(i * j),
        "divide by min(i, j), not by min(r1, r2)": total / min(ranks),
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


def _rows(A, k):
    return torch.nn.functional.normalize(A[:k], dim=1)


def gap_of(steps, train, held, best, at, labels):
    """The right row of `overfit_gap` for one rank, and wrong ones for each column.

    `at` says which of the steps comes last in the table, `best` which has the lowest held-out loss.
    `labels` are those of the two rows that have it.
    """
    gaps = [h - t for h, t in zip(held, train, strict=True)]
    right = {"best_step": steps[best], "gap": gaps[-1], "rise": held[-1] - held[best]}
    return right, {
        "best_step": _steps(steps, gaps, held, best, labels),
        "gap": _gaps(gaps, train, held, best, at),
        "rise": _rises(gaps, train, held, best, at),
    }


UNSORTED = "your last row is not the last step: sort by step"


def _steps(steps, gaps, held, best, labels):
    """Wrong best steps."""
    return {
        "two steps have the lowest loss; wanted is the first of them": steps[best + 1],
        "that is the first step; wanted is that of the lowest held-out loss": steps[0],
        "that is the step of the highest held-out loss": steps[held.index(max(held))],
        "that is the step of the smallest gap; wanted is the lowest held-out loss": steps[
            gaps.index(min(gaps))
        ],
        "that is the step of the largest gap; wanted is the lowest held-out loss": steps[
            gaps.index(max(gaps))
        ],
        "that is the lowest loss; wanted is its step": held[best],
        "that is the last step, where the training loss is lowest": steps[-1],
        "that is a position in the table; wanted is the value of step": best,
        "idxmin gives the label of a row; wanted is its step": labels[0],
        "idxmin gives the label of a row; wanted is the value of step there": labels[1],
    }


def _gaps(gaps, train, held, best, at):
    """Wrong gaps."""
    return {
        "the sign is turned round: held-out minus training loss": -gaps[-1],
        "that is the gap at the best step; wanted is the last step's": gaps[best],
        "that is the mean over the steps; wanted is the last step's": sum(gaps) / len(gaps),
        "that divides; wanted is a difference": held[-1] / train[-1],
        "that is the lowest held-out minus the lowest training loss; wanted is the last "
        "step's": min(held) - min(train),
        "that is the last held-out minus the first training loss": held[-1] - train[0],
        "that is the last held-out loss alone; take the training loss from it": held[-1],
        "that is the largest gap; wanted is the last step's": max(gaps),
        "that is the gap at the first step; wanted is the last step's": gaps[0],
        UNSORTED: gaps[at],
    }


def _rises(gaps, train, held, best, at):
    """Wrong rises."""
    return {
        "the sign is turned round: last minus lowest": held[best] - held[-1],
        "that is the fall since the first step": held[0] - held[best],
        "that compares with the first step; wanted is the lowest": held[-1] - held[0],
        "that is the rise of the last step alone; wanted is that above the lowest": held[-1]
        - held[-2],
        "that is the rise of the gap; wanted is held-out alone": gaps[-1] - gaps[best],
        "that is the highest loss itself; take the lowest from the last": max(held),
        "that is the last loss itself; take the lowest from it": held[-1],
        "that compares with the training loss; wanted is held-out alone": gaps[-1],
        "that is the spread; wanted is how far the last lies above the lowest": max(held)
        - held[best],
        "that divides; wanted is a difference": held[-1] / held[best],
        "that is in proportion to the lowest; wanted is the difference": held[-1] / held[best] - 1,
        "that is the training loss's; wanted is held-out": train[-1] - min(train),
        UNSORTED: held[at] - held[best],
    }
