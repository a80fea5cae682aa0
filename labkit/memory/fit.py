"""What fits: the largest batch for each length within so many bytes.

Simulating a large model takes seconds, its closed form none. So the closed form is searched, and
the simulation says how far it is off there, until the two agree on a batch.
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
NEAR = 0.01  # of the limit: one more that comes so near by the closed form is simulated, too


def largest_batches(
    config: PretrainedConfig, settings: Settings, n_bytes: int, lengths: Sequence[int] = LENGTHS
) -> dict[int, int]:
    """`{length: largest batch}` whose simulated peak is at most `n_bytes`; 0 where none is.

    With a fused attention and no padding the peak depends on batch x length alone, so one search
    answers for every length.
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
    """`largest(peak, limit)`, where `about` is cheap, and off by nearly the same for neighbours.

    What is returned has been asked of `peak`, and one more where that comes near the limit. Where
    the two do not agree soon, `peak` alone is searched.
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
    """The largest n from 0 with `peak(n) <= limit`, for a peak that grows ever more steeply.

    It goes along the line through two points, which ends too far rather than too near; where the
    peak is curved so much that this gets slow, in the middle.
    """
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
