"""A class's results by lab and by exercise, with the most frequent mistakes."""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import StatisticsError, correlation, mean, median

from labkit.contract import natural
from labkit.grading.row import Exercise, Row

NUMBER = re.compile(r"-?\d[\d.,]*(e[+-]?\d+)?")
RIGHT = re.compile(r"\d+ of \d+ right$|\w+ \w, right: ")  # lines of a quiz's message
LENT = re.compile(
    r" ?\(?tested with the course's code for [\d., and]+, which you haven't solved yet\)?$"
)
FEW = 10  # fewer submissions give no correlation
LONGEST = 240  # characters of a message on the class page


def by_lab(rows: list[Row]) -> list[dict]:
    """One dict per lab, in order; submissions with an unknown lab come last, as lab ""."""
    labs = defaultdict(list)
    for row in rows:
        labs[row.lab].append(row)
    order = sorted(labs, key=lambda lab: (not lab, lab))
    return [_lab(lab, sorted(labs[lab], key=lambda row: natural(row.submission))) for lab in order]


def _lab(lab: str, rows: list[Row]) -> dict:
    shares = [row.percent for row in rows if row.percent is not None]
    bars = Counter(min(int(share // 10), 9) for share in shares)
    found = defaultdict(list)
    for row in rows:
        for exercise in row.exercises:
            found[exercise.id].append(exercise)
    exercises = [_exercise(found[id]) for id in sorted(found, key=natural)]
    for e in exercises:
        e["rest"] = with_the_rest(rows, e["id"])
    hardest = sorted(exercises, key=lambda e: e["share"])[:3]
    return {
        "lab": lab,
        "rows": rows,
        "exercises": exercises,
        "hardest": [e["id"] for e in hardest if e["share"] < 1],
        "mean": mean(shares) if shares else None,
        "median": median(shares) if shares else None,
        "full": sum(share == 100 for share in shares),
        "bars": [bars[i] for i in range(10)],
        "apart": sum(row.status != "graded" for row in rows),
    }


def _exercise(tries: list[Exercise]) -> dict:
    first, points = tries[0], sum(t.points for t in tries)
    return {
        "id": first.id,
        "name": first.name,
        "points": first.points,
        "n": len(tries),
        "passed": sum(t.status == "passed" for t in tries),
        "missing": sum(t.status == "missing" for t in tries),
        "share": sum(t.earned for t in tries) / points if points else 0.0,
        "messages": frequent(t.message for t in tries),
    }


def with_the_rest(rows: list[Row], id: str) -> float | None:
    """The correlation (Pearson's) of the points for an exercise with those for all others.

    None for fewer than 10 submissions, or if all have the same points. If it is near 0 or below,
    the exercise tests something different from the rest, or its check is unfair.
    """
    pairs = [(e.earned, row.earned - e.earned) for row in rows if (e := row.exercise(id))]
    if len(pairs) < FEW:
        return None
    with contextlib.suppress(StatisticsError):  # one of the two is constant
        return correlation(*zip(*pairs, strict=True))


def frequent(messages: Iterable[str]) -> list[tuple[int, str]]:
    """The three most frequent messages with their counts; different numbers don't matter.

    Each part of a message with several parts counts separately, and only once. A note that course
    objects were lent is not a mistake.
    """
    counts, shown = Counter(), {}
    for message in messages:
        parts = map(str.strip, LENT.sub("", message).splitlines())
        lines = [part for part in parts if part and not RIGHT.match(part)]
        found = {NUMBER.sub("#", line[:LONGEST]): line for line in reversed(lines)}
        counts.update(found.keys())
        for key, line in found.items():
            shown.setdefault(key, line if len(line) <= LONGEST else f"{line[:LONGEST]}…")
    return [(count, shown[key]) for key, count in counts.most_common(3)]
