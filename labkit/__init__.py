"""The package that the labs import: `start` gives a lab its header and its checks."""

import importlib

__version__ = "0.1.0"
# what notebooks that were begun before version 0.2 import from here
MOVED = ("finetuning", "generation", "hardware", "models", "scoring", "serving")


def start(stem: str) -> tuple:
    """Begin lab `stem`: print its header; return `(lab, check)`, the lab and the checks it uses."""
    from labkit.course.colab import hide_old_torchao
    from labkit.lab import start

    hide_old_torchao()
    return start(stem)


def __getattr__(name):
    if name in MOVED:
        return importlib.import_module(f"labkit.training.{name}")
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")
