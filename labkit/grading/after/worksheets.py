"""The columns of Moodle's offline grading worksheet, whose titles are in the language of its user.

They stand in this order: Identifier ("Participant 123"), name and other identity, Status, Grade,
Maximum grade, Grade can be changed, Last modified (submission), Last modified (grade), then what
feedback plugins add (mod/assign/gradingtable.php and the language packs of github.com/moodle).
"""

import re
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.after import tables

# English, German, French, Spanish, Portuguese, Italian, Dutch, Polish; of comments Japanese, too
GRADE = (
    *("grade", "bewertung", "note", "calificación", "nota", "valutazione", "cijfer"),
    *("beoordeling", "ocena"),
)
MOST = (
    *("maximum grade", "bestwertung", "note maximale", "calificación máxima", "nota máxima"),
    *("valutazione massima", "maximaal cijfer", "maximumcijfer", "maksymalna ocena"),
)
WORDS = (
    *("feedback comments", "feedback als kommentar", "feedback par commentaires"),
    *("comentarios de retroalimentación", "comentários de feedback", "commenti"),
    *("feedback tekstvak", "komentarz zwrotny", "フィードバックコメント"),
)
COMMENT = re.compile("kom+entar|com+ent")  # a part of what other versions call it
YES = {"yes", "ja", "oui", "sí", "si", "sì", "sim", "tak"}
NO = {"no", "nein", "non", "não", "nee", "nie"}


def columns(head: list[str], lines: list[list[str]], wanted: str | None, path: Path) -> tuple:
    """Where grade, highest grade, comments and "can be changed" are; None for what is not.

    A language that is not listed is read by what the columns hold. LabError without a grade.
    """
    titles = [title.strip().lower() for title in head]
    most = _first(titles, MOST)
    if most is None:
        most = next((i for i in range(len(head) - 1, 1, -1) if _is_maximum(lines, i)), None)
    if wanted:
        at = tables.column(head, [i for i, title in enumerate(titles) if i and title], wanted, "")
    else:
        at = _first(titles, GRADE)
        at = most - 1 if at is None and most is not None else at
    if at is None:
        listed = ", ".join(repr(title) for title in head[1:] if title)
        told = f"say --column with one of {listed}"
        raise LabError(f"{path} has no column Grade that is known: {told}")
    words = _first(titles, WORDS)
    if words is None:
        last = [i for i in range(at + 1, len(head)) if COMMENT.search(titles[i])][-1:]
        words = last[0] if last else None
    held = [{line[i].strip().lower() for line in lines} for i in range(len(head))]
    free = next((i for i in range(at + 1, len(head)) if held[i] <= YES | NO), None)
    return at, most, words, free


def _first(titles: list[str], known) -> int | None:
    return next((i for i, title in enumerate(titles) if title in known), None)


def _is_maximum(lines: list[list[str]], i: int) -> bool:
    """Whether column i has one number above 0 for all, and the one before it numbers or nothing."""
    held = {line[i].strip() for line in lines}
    before = {line[i - 1].strip() for line in lines} - {""}
    numbers = [tables.number(text) for text in held | before]
    return len(held) == 1 and None not in numbers and tables.number(next(iter(held))) > 0
