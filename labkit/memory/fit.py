"""What fits: the largest batch for each length within so many bytes, found by simulation."""

from collections.abc import Callable, Sequence
from functools import cache

from transformers import PretrainedConfig

from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate

LENGTHS = (512, 1024, 2048, 4096, 8192)


def largest_batches(
    config: PretrainedConfig, settings: Settings, n_bytes: int, lengths: Sequence[int] = LENGTHS
) -> dict[int, int]:
    """`{length: largest batch}` whose simulated peak is at most `n_bytes`; 0 where none is.

    With a fused attention and no padding the peak depends on batch x length alone, so one search
    answers for every length.
    """

    def peak_of(seq):
        return cache(lambda batch: simulate(config, settings.but(batch=batch, seq=seq)).peak)

    depends_on_tokens = settings.attention == "sdpa" and not settings.padded
    if depends_on_tokens and settings.answer_tokens is None:
        unit = min(lengths)
        tokens = unit * largest(peak_of(unit), n_bytes)
        return {length: tokens // length for length in lengths}
    return {length: largest(peak_of(length), n_bytes) for length in lengths}


def largest(peak: Callable[[int], int], limit: int) -> int:
    """The largest n from 0 with `peak(n) <= limit`, for a peak that grows ever more steeply.

    It goes along the line through the last two points: a convex function is never reached too
    early, so each guess is an upper bound, and a few suffice.
    """
    if peak(1) > limit:
        return 0
    low, high = 1, 2
    while peak(high) <= limit:
        slope = (peak(high) - peak(low)) / (high - low)
        step = int((limit - peak(high)) / slope) if slope > 0 else high
        low, high = high, high + max(1, step)
    while high - low > 1:
        slope = (peak(high) - peak(low)) / (high - low)
        guess = low + int((limit - peak(low)) / slope)
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if peak(guess) <= limit else (low, guess)
    return low
