"""A submission's own time, on a machine that it shares with others."""

import time

from labkit.grading.inside import tree

STEP = 0.2  # longest idle time between two looks: a longer gap means that we had no core either


class Clock:
    """Counts a submission's own seconds: it computes or sleeps, but does not wait for a core."""

    def __init__(self, seconds, end, *known):
        """`seconds` until `end` (monotonic); `known` are the processes if there is no tree."""
        self.seconds, self.end, self.used = seconds, end, 0.0
        self.seen, self.computed = time.monotonic(), tree.pulse(*known)[0]

    def over(self, *known: int) -> bool:
        """Whether the time is up; must be called often."""
        now, (computed, ready) = time.monotonic(), tree.pulse(*known)
        passed, ran = now - self.seen, computed - self.computed
        self.used += min(passed, max(ran, 0.0 if ready else min(passed, STEP)))
        self.seen, self.computed = now, computed
        return self.used > self.seconds or now > self.end

    def message(self) -> str:
        """The message for something that took too long."""
        if self.used > self.seconds:
            return f"it ran longer than {self.seconds:g} s"
        return "it had not finished when its real time was up"

    def left(self) -> float:
        """Seconds until `end`, at least 0.1, for a socket timeout."""
        return max(0.1, self.end - time.monotonic())
