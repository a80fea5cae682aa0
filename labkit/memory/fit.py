"""Find the largest batch that fits within a memory limit, for each sequence length.

The search uses the closed form because simulating a large model takes seconds. The simulation
corrects the closed form until both agree on a batch.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count

from transformers import PretrainedConfig

from labkit.memory.budget import closed_form
from labkit.memory.dimensions import NoClosedForm
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate

LENGTHS = (512, 1024, 2048, 4096, 8192)
NEAR = 0.01  # share of the limit within which the next larger batch is simulated, too


def largest_batches(
    config: PretrainedConfig, settings: Settings, n_bytes: int, lengths: Sequence[int] = LENGTHS
) -> dict[int, int]:
    """`{length: largest batch}` with a simulated peak of at most `n_bytes`; 0 if none fits.

    With fused attention and no padding, the peak depends only on batch x length, so one search
    is enough for all lengths.
    """

    def at(seq):
        def peak(batch):
            return simulate(config, settings.but(batch=batch, seq=seq)).peak

        def about(batch):
            return closed_form(config, settings.but(batch=batch, seq=seq)).peak

        try:
            about(1)
        except NoClosedForm:
            return largest(cache(peak), n_bytes)
        return largest_by(cache(about), cache(peak), n_bytes)

    depends_on_tokens = settings.attention == "sdpa" and not settings.padded
    if depends_on_tokens and settings.answer_tokens is None:
        unit = min(lengths)
        tokens = unit * at(unit)
        return {length: tokens // length for length in lengths}
    return {length: at(length) for length in lengths}


def largest_by(about: Callable[[int], int], peak: Callable[[int], int], limit: int) -> int:
    """Compute `largest(peak, limit)` with a cheap estimate `about` of `peak`.

    Its error must be nearly equal for neighboring batches. `peak` verifies the result, and the next
    larger batch if near the limit. After three rounds without agreement, `peak` alone is searched.
    """
    off = 0
    for _ in range(3):
        n = max(1, largest(about, limit - off))
        off = peak(n) - about(n)
        if n > 1 and largest(about, limit - off) != n:
            continue
        if peak(n) > limit:
            return 0
        near = about(n + 1) + off <= limit * (1 + NEAR)
        if not near or peak(n + 1) > limit:
            return n
    return largest(peak, limit)


def largest(peak: Callable[[int], int], limit: int) -> int:
    """Find the largest n >= 0 with `peak(n) <= limit` by secant and bisection; `peak` is convex."""
    if peak(1) > limit:
        return 0
    low, high = 1, 2
    while peak(high) <= limit:
        slope = (peak(high) - peak(low)) / (high - low)
        step = int((limit - peak(high)) / slope) if slope > 0 else high
        low, high = high, high + max(1, step)
    for turn in count():
        if high - low == 1:
            return low
        slope = (peak(high) - peak(low)) / (high - low)
        guess = low + int((limit - peak(low)) / slope) if turn % 2 == 0 else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if peak(guess) <= limit else (low, guess)
