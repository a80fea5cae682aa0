"""One function a figure, one style. A figure's title says what to see in it.

What all labs share is here; each lab's own figures are in the module of its number, which
`labkit.start` imports: `plots.lab02.budget(...)`.
"""

from labkit.plots import memory
from labkit.plots.style import INK, PALETTE, figure, growing_loss, png, smooth, use_style
from labkit.plots.tables import compare_answers

__all__ = [
    "INK",
    "PALETTE",
    "compare_answers",
    "figure",
    "growing_loss",
    "memory",
    "png",
    "smooth",
    "use_style",
]
