"""The lab object for a submission's cells: no header, no checks, no experiments."""

from collections.abc import Callable

import torch

from labkit.figures.guess import Guess
from labkit.lab import Lab


class _Anything:
    """Has every attribute, each a function that does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class QuietLab(Lab):
    """As `Lab`, but without experiments, output and solutions."""

    def __init__(self, stem):
        self.stem, self.seed, self.exercises = stem, 0, []
        self.device, self.dtype = "cpu", torch.float32

    def header(self):
        """Nothing."""
        return ""

    def experiment(self, *_, **__):
        """Return False, since an experiment is not graded."""
        return False

    def reveal(self, *_, **__):
        """Do nothing: there are no solutions here, and code below in the cell still counts."""

    def predict(self, *_, **__):
        """Record no guess: it earns nothing, and code below in the cell still counts."""
        return Guess("")

    gpu = experiment
    score = headline = resume = reveal


def start(stem: str) -> tuple:
    """`(lab, check)` that do nothing; torch is seeded as in a notebook."""
    torch.manual_seed(0)
    return QuietLab(stem), _Anything()


def device_setter(set_default_device: Callable) -> Callable:
    """`torch.set_default_device` that ignores devices missing here."""

    def setter(device):
        if device is None or torch.device(device).type in ("cpu", "meta"):
            set_default_device(device)

    return setter
