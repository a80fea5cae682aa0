"""Errors that a notebook shows as one line."""


class LabError(Exception):
    """Something a person can mend; its message is one line, and notebooks show that line alone."""

    colour = "33"  # ANSI yellow

    def _render_traceback_(self):
        """The traceback that IPython prints: the message, nothing else."""
        return [f"\x1b[{self.colour}m{self}\x1b[0m"]
