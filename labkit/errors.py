"""Errors that a notebook shows as one line."""


class LabError(Exception):
    """An error that the user can fix; notebooks show only its message, on one line."""

    def _render_traceback_(self):
        """IPython's traceback: only the message, uncolored, since notebooks show it on red."""
        return [str(self)]
