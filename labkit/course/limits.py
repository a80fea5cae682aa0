"""Limits on a lab's size, and the time that it states.

These are rules 1 and 5 of the curriculum. They apply to a master with `{{ time }}` in its first
cell; the cells here are those of its notebook.
"""

import math
import re
from collections.abc import Iterator

from labkit.course.progress import experiment_seconds, nearest_headings

TIME = "{{ time }}"  # the builder replaces it with the stated time
MAX_WORDS = 4_000  # of markdown
MAX_STRETCH = 700  # words between two exercises
MAX_CELLS = 75
MAX_MINUTES = 90
WORDS_PER_MINUTE = 200
HINT = re.compile(r"<details>.*?</details>", re.DOTALL)  # its words don't count
EXERCISE = re.compile(r"^### Exercise", re.MULTILINE)
MINUTES = re.compile(r"^(?:# )?[●○]+ · (\d+) min · ", re.MULTILINE)  # also in a master's text


def minutes(cells: list) -> tuple[int, int, int]:
    """The minutes to read a lab, to do its exercises, and to run its experiments."""
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    seconds = sum(experiment_seconds(cell.source) for cell in cells if cell.cell_type == "code")
    reading = math.ceil(sum(map(words, cells)) / WORDS_PER_MINUTE)
    return reading, sum(map(int, MINUTES.findall(text))), math.ceil(seconds / 60)


def stated_time(cells: list) -> str:
    """The sentence that replaces `{{ time }}`; parts with 0 minutes are left out."""
    spent = minutes(cells)
    uses = ("to read", "for the exercises", "while experiments run on two CPU cores")
    parts = ", ".join(f"{n} {use}" for n, use in zip(spent, uses, strict=True) if n)
    return f"About {sum(spent)} minutes if you know PyTorch: {parts}."


def broken(cells: list) -> list[str]:
    """One clause for each limit that a lab exceeds."""
    parts = "minutes ({} to read, {} for exercises, {} for experiments)".format(*minutes(cells))
    totals = [
        (sum(map(words, cells)), MAX_WORDS, "words"),
        (len(cells), MAX_CELLS, "cells"),
        (sum(minutes(cells)), MAX_MINUTES, parts),
    ]
    found = [
        f"{n:,} {what}, but a lab may have only {most:,}" for n, most, what in totals if n > most
    ]
    for heading, n in stretches(cells):
        if n > MAX_STRETCH:
            found.append(
                f"{n:,} words from {heading!r} on without an exercise; the limit is {MAX_STRETCH}"
            )
    return found


def stretches(cells: list) -> Iterator[tuple[str, int]]:
    """(first heading, words) of each part of a lab without an exercise."""
    begins, n = "", 0
    for cell, heading in zip(cells, nearest_headings(cells, ""), strict=True):
        if cell.cell_type == "markdown" and EXERCISE.search(cell.source):
            yield begins, n
            begins, n = "", 0
        elif cell.cell_type == "markdown":
            begins, n = begins or heading, n + words(cell)
    yield begins, n


def words(cell: dict) -> int:
    """The words of a markdown cell, hints not counted; 0 for a code cell."""
    return len(HINT.sub("", cell.source).split()) if cell.cell_type == "markdown" else 0
