"""How long a submission takes, on a machine that others use, too."""

import time

from labkit.grading.inside import tree

STEP = 0.2  # seconds that count as idle between two looks: more passed when we had no core either


class Clock:
    """Counts a submission's own seconds: those in which it computes, and those in which it sleeps.

    Seconds in which one of its processes is ready, and others have the cores, do not count.
    """

    def __init__(self, seconds, end, *known):
        """`seconds` of its own, and none after `end` on the monotonic clock.

        Without a process tree of its own a submission is the processes `known`.
        """
        self.seconds, self.end, self.used = seconds, end, 0.0
        self.seen, self.computed = time.monotonic(), tree.pulse(*known)[0]

    def over(self, *known: int) -> bool:
        """Whether the time is up; to be asked often."""
        now, (computed, ready) = time.monotonic(), tree.pulse(*known)
        passed, ran = now - self.seen, computed - self.computed
        self.used += min(passed, max(ran, 0.0 if ready else min(passed, STEP)))
        self.seen, self.computed = now, computed
        return self.used > self.seconds or now > self.end

    def told(self) -> str:
        """What is said of something that took too long."""
        if self.used > self.seconds:
            return f"it ran longer than {self.seconds:g} s"
        return "it had not ended when its time by the clock was over"

    def left(self) -> float:
        """Seconds until `end`, for a socket that waits: never none."""
        return max(0.1, self.end - time.monotonic())
