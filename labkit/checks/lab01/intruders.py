"""What exercise 1.7 counts, and what misconceptions count."""

import torch

from labkit.checks.compare import ask, randn
from labkit.checks.compound import combined
from labkit.checks.lab01 import free
from labkit.checks.lab01.cuts import leading
from labkit.checks.lab01.narrow import HINT
from labkit.checks.lab01.pairs import used_up
from labkit.contract import CheckFailed, expect


def intruder_cases(rng):
    """`(name, W0, W1, k, threshold)`; no cosine of theirs is near the threshold."""
    new, swapped = _new(16, 5, rng), _reordered(8, 10, rng)
    turned = [  # the last number is how many of the directions come first, in any order
        (14, 6, _outward([0.62, 0.3, 0.25, 0.95, 0.2, 0.9]), 4, 0.5),
        (13, 6, _outward([0.97, 0.38, 0.25, 0.2, 0.6, 0.65]), 5, 0.3),
        (12, 12, _within([FIFTHS, THIRDS, SHARED, ONE], [0, 1, 5, 8, 9]), 5, 0.63),
        (8, 13, _within([FIFTHS, _turn(0.3), ONE], [0, 1, 2, 5, 7]), 5, 0.63),
    ]
    cases = []
    for d_out, d_in, directions, k, threshold in turned:
        pair = _turned(d_out, d_in, directions, k, rng)
        cases.append((f"W of shape {(d_out, d_in)}", *pair, k, threshold))
    W0 = cases[0][1]
    return [
        *cases,
        ("W1 = W0", W0, W0, 5, 0.5),
        ("W1 = W0 + a small update", W0, W0 + 0.03 * randn(*W0.shape, rng=rng), 3, 0.8),
        ("W1 = 3 * W0", W0, 3 * W0, 5, 0.9),
        ("W1 = -W0", W0, -W0, 5, 0.9),
        ("W1 with W0's singular vectors in another order", *swapped, 4, 0.8),
        ("a W1 whose directions are orthogonal to W0's", *new, 4, 0.3),
        ("the last two, changed over", *new[::-1], 3, 0.3),
        ("the largest direction alone", W0, 3 * W0, 1, 0.9),
        ("the largest direction alone, a new one", *new, 1, 0.3),
    ]


ONE = torch.ones(1, 1)
THIRDS = torch.eye(3) - 2 / 3  # a reflection: largest |cos| 2/3
HALF = 0.5**0.5
SHARED = torch.tensor([[HALF, HALF, 0], [0.5, -0.5, HALF], [0.5, -0.5, -HALF]])  # two like one old
FIFTHS = torch.eye(5) - 2 / 5  # 3/5


def _turn(angle):
    angle = torch.tensor(angle)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)


def _within(blocks, top):
    """New directions as mixtures of the old (n, n), those numbered in `top` first."""
    mixed = torch.block_diag(*blocks)
    return mixed[:, top + [i for i in range(len(mixed)) if i not in top]]


def _outward(cosines):
    """New directions (2n, n): each has a cosine with one of the old, the rest is of its own."""
    cosines = torch.tensor(cosines)
    return torch.cat([cosines.diag(), (1 - cosines**2).sqrt().diag()])


def _parts(d_out, d_in, rng):
    """Orthonormal columns (d_out, d_out), (d_in, d_in), and singular values that are well apart."""
    U, V = (torch.linalg.qr(randn(d, d, rng=rng)).Q for d in (d_out, d_in))
    n = min(d_out, d_in)
    return U, V, torch.arange(n, 0, -1) + 0.4 * torch.rand(n, generator=rng)


def _turned(d_out, d_in, directions, k, rng):
    """W0, and W1 with the left `directions`, in terms of W0's, the first k of them on top."""
    U, V, S = _parts(d_out, d_in, rng)
    n, other = len(S), torch.linalg.qr(randn(d_in, d_in, rng=rng)).Q
    old = torch.randperm(n, generator=rng)
    old = torch.cat([old, torch.arange(n, len(directions))])
    order = torch.cat([torch.randperm(k, generator=rng), torch.arange(k, n)])
    new = (U[:, old] @ directions)[:, order]
    return (U[:, :n] * S) @ V[:, :n].T, (new * S) @ other[:, :n].T


def _reordered(d_out, d_in, rng):
    """W0, and W1 with its singular vectors in the opposite order: no intruder."""
    U, V, S = _parts(d_out, d_in, rng)
    n = len(S)
    return (U * S) @ V[:, :n].T, (U * S.flip(0)) @ V[:, :n].T


def _new(d_out, d_in, rng):
    """W0, and a W1 whose left directions are all orthogonal to those of W0."""
    U, V, S = _parts(d_out, d_in, rng)
    n = len(S)
    mixed = torch.linalg.qr(randn(d_out - n, n, rng=rng)).Q
    return (U[:, :n] * S) @ V.T, ((U[:, n:] @ mixed) * S) @ V.T


def asked_intruders(intruders, name, W0, W1, k, threshold):
    """What `expect_numbers` takes of one case."""
    call = f"intruders(W0, W1, {k}, {threshold}) for {name}"
    hint = "U1[:, :k].T @ U0 has all the cosines" if k > 1 else HINT
    got = ask(call, intruders, W0, W1, k, threshold, hint=hint)
    if isinstance(got, list) or (isinstance(got, torch.Tensor) and got.numel() != 1):
        raise CheckFailed(f"{call} gave several things, wanted how many intruders there are")
    expect(type(got) is not bool, f"{call} gave {got}, wanted how many intruders there are")
    share = type(got) is float and 0 < got < 1
    expect(not share, f"{call} gave {got}: that is a share; how many is asked")
    best = _cosines(leading(W1, k), leading(W0, min(W0.shape))).amax(1)
    told = ", ".join(f"{c:.2f}" for c in best)
    made = f"the top {k} of W1 have at most |cos| {told} with those of W0"
    wanted = int((best < threshold).sum())
    return call, got, wanted, intruder_guesses(W0, W1, k, threshold, wanted), made


def _cosines(U1, U0):
    return (U1.T @ U0).abs()


def _written_in(cosines, k):
    """Counts with PEFT's numbers in the place of what is given; `cosines` are absolute."""
    told = {
        "k is 10 and the threshold 0.5, whatever is given": 10,
        "the threshold is 0.5, whatever is given": k,
    }
    return {message: int((cosines[:n].amax(1) < 0.5).sum()) for message, n in told.items()}


def intruder_guesses(W0, W1, k, threshold, wanted):
    """Wrong counts of intruders."""
    svds = [torch.linalg.svd(W, full_matrices=False) for W in (W0, W1)]
    (U0, _, V0), (U1, _, V1) = svds
    signed, right = U1.T @ U0, (V1 @ V0.T).abs()  # (n of W1, n of W0)
    cosines = signed.abs()
    top, best = cosines[:k], cosines[:k].amax(1)

    def below(values):
        return int((values < threshold).sum())

    return (
        {
            "a cosine of -1 is the same direction, since signs are arbitrary: take abs()": below(
                signed[:k].amax(1)
            ),
            "abs() comes after the maximum; take it of each cosine first": below(
                signed[:k].amax(1).abs()
            ),
            "u_i of W1 is compared with u_i of W0 alone; W0 may have it at another place": below(
                cosines.diagonal()[:k]
            ),
            "compared with the top k of W0 alone; every left singular vector of W0 counts": below(
                top[:, :k].amax(1)
            ),
            "these are right singular vectors, rows of Vh; the left are the columns of U": below(
                right[:k].amax(1)
            ),
            "these are the directions that W0 has, too; those that it lacks are asked": k - wanted,
            "it stops at the first that is none; all of the top k are looked at": int(
                (best < threshold).int().cumprod(0).sum()
            ),
            "these are the angles between two spans; each single vector is compared": below(
                torch.linalg.svdvals(top[:, :k])
            ),
            "that is whether there are any; how many is asked": int(wanted > 0),
        }
        | _other_ranges(signed, k, below)
        | _other_limits(top, threshold)
        | _written_in(cosines, k)
        | free.intruders(W0, W1, k, threshold)
        | _other_matrices(W0, W1, svds, k, threshold)
        | {"the root of the cosines is taken; compare them as they are": below(best.sqrt())}
        | _two_others(signed, right, k, threshold)
    )


def _other_ranges(signed, k, below):
    """Wrong counts of intruders: other directions are taken, of W1 (rows) or W0 (columns)."""
    cosines = signed.abs()
    return {
        "the maximum runs over W1's directions; for each of W1's, take it over W0's": below(
            cosines[:k].amax(0)
        ),
        "all directions of W1 are counted; its top k are asked": below(cosines.amax(1)),
        "these are the last k directions of W1; the largest come first": below(
            cosines[-k:].amax(1)
        ),
        "that asks which of W0's top k W1 lacks; which of W1's top k W0 lacks is asked": below(
            cosines[:, :k].amax(0)
        ),
        "it counts pairs; a direction counts once, by its largest |cos|": below(cosines[:k]),
        "that is all k: the largest |cos| decides (all, not any), no mean, no smallest": k,
        "it takes k + 1 directions, one too many": below(cosines[: k + 1].amax(1)),
        "it takes k - 1 directions, one too few": below(cosines[: k - 1].amax(1)),
        "the directions start at index 1; indices start at 0": below(cosines[1 : k + 1].amax(1)),
        "u_i is compared with u_i of W0 alone, and without abs(): look at all": below(
            signed.diagonal()[:k]
        ),
        "only the top k of W0, and without abs(): look at all of it": below(signed[:k, :k].amax(1)),
    }


def _two_others(signed, right, k, threshold):
    """Wrong counts of intruders of two mistakes."""
    ranges = {
        "": slice(k),
        "all directions of W1 are counted": slice(None),
        "the directions start at index 1": slice(1, k + 1),
        "it takes k + 1 directions": slice(k + 1),
        "these are the last k directions of W1": slice(-k, None),
    }

    def count(side, rows, columns, size, most, compare):
        cosines = size({"left": signed, "right": right}[side][rows, columns])
        return int(compare(most(cosines), threshold).sum())

    return combined(
        count,
        {"": "left", "these are right singular vectors, rows of Vh": "right"},
        ranges,
        {"": slice(None), "compared with the top k of W0 alone": slice(k)},
        {"": torch.abs, "abs() is missing": torch.clone, "the cosines are squared": torch.square},
        {
            "": lambda t: t.amax(1),
            "the maximum runs over W1's directions": lambda t: t.amax(0),
            "u_i is compared with u_i of W0 alone": torch.diagonal,
            "the smallest cosine decides, not the largest": lambda t: t.amin(1),
            "the mean cosine decides, not the largest": lambda t: t.mean(1),
            "the cosines are added; the largest decides": lambda t: t.sum(1),
            "it counts pairs, not directions": torch.flatten,
        },
        {"": torch.lt, "those that W0 has, too, are counted": torch.ge},
    )


def _other_limits(top, threshold):
    """Wrong counts of intruders: something else of the cosines (k, n) is compared."""
    best = top.amax(1)

    def below(values, limit=threshold):
        return int((values < limit).sum())

    return {
        "each direction of W0 is used up by one; several may be like it": used_up(top, threshold),
        "that is whether all are; how many is asked": int(below(best) == len(best)),
        "0.5 is used, whatever `threshold` is": below(best, 0.5),
        "1 - threshold is used; compare with the threshold itself": below(best, 1 - threshold),
        "an angle is compared; the threshold is that of a cosine": below(
            best.clamp(max=1).arccos()
        ),
        "1 - |cos| is compared; the threshold is that of |cos|": below(1 - best),
        "the cosines are squared, the threshold is not": below(best**2),
        "that is how much lies in the span of W0; each single vector is compared": below(
            top.norm(dim=1)
        ),
        "squares add up to the part in the span of W0; each single vector is compared": below(
            top.square().sum(1)
        ),
        "the cosines are added; the largest |cos| decides": below(top.sum(1)),
    }


def _other_matrices(W0, W1, svds, k, threshold):
    """Wrong counts of intruders: those between other vectors."""
    (U0, S0, V0), (U1, S1, V1) = svds
    change = torch.linalg.svd(W1 - W0, full_matrices=False).U
    columns0, columns1 = (W / W.norm(dim=0) for W in (W0, W1))

    def below(cosines):
        return int((cosines.abs().amax(1) < threshold).sum())

    def count(mine, theirs):
        return below(mine[:, :k].T @ theirs)

    both = _cosines(U1[:, :k], U0) * (V1[:k] @ V0.T).abs()
    return {
        "these are the directions of W1 - W0; those of W1 itself are asked": count(change, U0),
        "the directions of W1 - W0 are compared with W1's; compare W1's with W0's": count(
            change, U1
        ),
        "W1 is compared with the directions of W1 - W0; compare with W0's": count(U1, change),
        "the columns of the matrices are compared; their left singular vectors are asked": count(
            columns1, columns0
        ),
        "these are columns of W0 itself, not of its U": count(U1, columns0),
        "these are columns of W1 itself, not of its U": count(columns1, U0),
        "left and right are asked for at once; the left ones decide": below(both),
        "the singular values scale the vectors; cosines are of length 1": count(U1 * S1, U0),
        "the singular values scale both; cosines are of length 1": count(U1 * S1, U0 * S0),
        "W0's singular values weigh the cosines; each direction has length 1": count(
            U1, U0 * S0 / S0[0]
        ),
        "singular values are compared, not directions": int((abs(S1 - S0)[:k] > threshold).sum()),
        "eigh has the smallest first: flip its columns": count(
            torch.linalg.eigh(W1 @ W1.T).eigenvectors, torch.linalg.eigh(W0 @ W0.T).eigenvectors
        ),
    }
