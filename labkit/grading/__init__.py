"""Grading: the batch and its processes. `judge` is trusted, `inside` is not, `after` reports."""
