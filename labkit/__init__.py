"""The package that the labs import: `start` prints a header, returns the lab and its checks."""

__version__ = "0.1.0"


def start(stem: str) -> tuple:
    """Begin lab `stem`: print its header; return `(lab, check)`, the lab and the checks it uses."""
    from labkit.course.colab import hide_old_torchao
    from labkit.lab import start

    hide_old_torchao()
    return start(stem)
