"""The SVD as torch and as NumPy compute it, for guesses that hang on what it leaves free.

That are signs, and the basis of a null space: a learner's need not be those of the other library.
"""

import numpy as np
import torch


def numpys(W, full_matrices=True):
    """The SVD of W by NumPy, whose LAPACK need not be torch's."""
    return [torch.from_numpy(M) for M in np.linalg.svd(W.numpy(), full_matrices=full_matrices)]


# before the name of a mistake: one more space makes it another key, and no message shows it
WAYS = {"": torch.linalg.svd, " ": numpys}
