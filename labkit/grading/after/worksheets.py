"""The columns of Moodle's offline grading worksheet, titled in the language of its user.

Their order: Identifier ("Participant 123"), name and other identity, Status, Grade, Maximum grade,
Grade can be changed, Last modified (submission), Last modified (grade), then those of feedback
plugins (mod/assign/gradingtable.php and the language packs of github.com/moodle).
"""

import re
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.after import tables

# English, German, French, Spanish, Portuguese, Italian, Dutch, Polish; comments also Japanese
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
COMMENT = re.compile("kom+entar|com+ent")  # part of the title in other versions
YES = {"yes", "ja", "oui", "sí", "si", "sì", "sim", "tak"}
NO = {"no", "nein", "non", "não", "nee", "nie"}


def columns(head: list[str], lines: list[list[str]], wanted: str | None, path: Path) -> tuple:
    """The indices of grade, maximum grade, comments and "can be changed"; None if absent.

    Columns in unknown languages are recognized by their contents. LabError without a grade column.
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
        fix = f"choose --column from {listed}"
        raise LabError(f"{path} has no known Grade column: {fix}")
    words = _first(titles, WORDS)
    if words is None:
        last = [i for i in range(at + 1, len(head)) if COMMENT.search(titles[i])][-1:]
        words = last[0] if last else None
    values = [{line[i].strip().lower() for line in lines} for i in range(len(head))]
    free = next((i for i in range(at + 1, len(head)) if values[i] <= YES | NO), None)
    return at, most, words, free


def _first(titles: list[str], known) -> int | None:
    return next((i for i, title in enumerate(titles) if title in known), None)


def _is_maximum(lines: list[list[str]], i: int) -> bool:
    """Whether column i has one number above 0 for all, after a column of numbers or blanks."""
    values = {line[i].strip() for line in lines}
    before = {line[i - 1].strip() for line in lines} - {""}
    numbers = [tables.number(text) for text in values | before]
    return len(values) == 1 and None not in numbers and tables.number(next(iter(values))) > 0
