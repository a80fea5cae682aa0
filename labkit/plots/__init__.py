"""One function a figure, one style. A figure's title says what to see in it.

What all labs share is here. A lab's own figures are in `labkit.labs.labNN.plots`, those of memory
in `labkit.memory.plots`.
"""

from labkit.plots.style import (
    INK,
    PALETTE,
    figure,
    growing,
    growing_loss,
    png,
    smooth,
    use_style,
)
from labkit.plots.tables import compare_answers

__all__ = [
    "INK",
    "PALETTE",
    "compare_answers",
    "figure",
    "growing",
    "growing_loss",
    "png",
    "smooth",
    "use_style",
]
