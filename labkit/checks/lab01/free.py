"""Wrong answers that hang on what an SVD leaves free, signs and null spaces: in torch, in NumPy."""

from labkit.checks.svds import WAYS


def intruders(W0, W1, k, threshold):
    """Wrong counts of intruders."""

    def below(cosines):
        return int((cosines.abs().amax(1) < threshold).sum())

    found, rest = {}, "some vectors have no singular value (full_matrices=True, or eigh)"
    for way, svd in WAYS.items():
        (U0, whole0), (U1, whole1) = (
            [svd(W, full_matrices=full)[0] for full in (False, True)] for W in (W0, W1)
        )
        found |= {
            f"{way}{rest}; leave them out": below(whole1[:, :k].T @ whole0),
            f"{way}it takes rows of U; the directions are its columns": below(U1[:k] @ U0.T),
            f"{way}it takes rows of U, of full_matrices=True; the directions are columns": below(
                whole1[:k] @ whole0.T
            ),
        }
    return found


def within(dW, reference, k):
    """Wrong shares of energy of dW."""
    found, whole = {}, dW.square().sum()
    for way, svd in WAYS.items():
        U, _, Vh = svd(reference.float())  # with the learner's signs
        rows = "it takes rows of U; the directions are its columns"
        parts = {rows: U[:k].double() @ dW}
        columns = Vh[:, :k].double()
        if len(dW) >= len(dW.T):  # else Vh ends in rows that are arbitrary
            told = "it takes columns of Vh; and its rows are right ones: the left are U's columns"
            parts[told] = dW @ columns
        if len(dW) == len(dW.T):
            told = "it takes columns of Vh; and those are right ones: the left are U's columns"
            parts[told] = columns.T @ dW
        found |= {way + told: (part.square().sum() / whole).item() for told, part in parts.items()}
    return found
