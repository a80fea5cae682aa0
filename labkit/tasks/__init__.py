"""The tasks that the labs train on."""

import importlib
from pathlib import Path

from labkit.errors import LabError

NAMES = ("home", "chat", "tickets")
SPLITS = ("train", "test")
REPAIRS = Path(__file__).with_name("repairs.jsonl")  # lab 7's file, with deliberate faults


class UnknownName(LabError, ValueError):
    """An unknown task, split, group or check; the message lists the known ones."""

    def __init__(self, what, given, known):
        super().__init__(f"no {what} {given!r}: choose from {', '.join(known)}")


def load(name, split="train", **options):
    """Load a task's split as a `datasets.Dataset` with a `messages` column.

    Options: `home`: seed=0. `tickets`: groups, some of `tickets.GROUPS`.
    """
    for what, given, known in (("task", name, NAMES), ("split", split, SPLITS)):
        if given not in known:
            raise UnknownName(what, given, known)
    import datasets

    task = importlib.import_module(f"{__name__}.{name}")
    return datasets.Dataset.from_list(task.rows(split, **options))


def draw(name, split="train", n=60, seed=1, **options):
    """Draw `n` random rows of a split, always the same for a seed; a few in a rehearsal."""
    from labkit.training.hardware import rehearsed

    rows = load(name, split, **options)
    return rows.shuffle(seed=seed).select(range(rehearsed("rows", n)))


def general():
    """Ten paragraphs of everyday English, written for this course, to measure forgetting."""
    text = (Path(__file__).parent / "general.txt").read_text(encoding="utf-8")
    return text.strip().split("\n\n")
