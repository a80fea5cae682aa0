"""Errors that a notebook shows as one line."""


class LabError(Exception):
    """Something a person can mend; its message is one line, and notebooks show that line alone."""

    def _render_traceback_(self):
        """The traceback that IPython prints: the message, nothing else.

        Without a color of its own: notebooks put it on red, where red letters are hard to read.
        """
        return [str(self)]
