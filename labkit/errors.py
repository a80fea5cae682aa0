"""Errors that a notebook shows as one line."""


class LabError(Exception):
    """An error that the user can fix; notebooks show only its message, on one line."""

    def _render_traceback_(self):
        """IPython's traceback: only the message.

        It has no color: notebooks show it on red, where red letters are hard to read.
        """
        return [str(self)]
