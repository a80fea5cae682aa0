"""A graded submission, and its row of results.json."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

ABSENT = {"lab", "reason", "exercises", "message", "late"}  # null in a file counts as absent


@dataclass
class Exercise:
    """The result of one exercise."""

    id: str
    name: str
    points: int | float
    earned: int | float
    status: str  # passed, failed, missing, revealed, error or timeout
    message: str = ""


@dataclass
class Row:
    """The result of a submission."""

    submission: str
    status: str  # graded, or why it is not: unreadable, crashed, timeout
    reason: str = ""
    lab: str = ""  # its stem; empty if unknown
    earned: int | float = 0
    possible: int | float = 0
    seconds: int | float = 0.0
    exercises: list = field(default_factory=list)  # of `Exercise`
    late: bool = False

    @property
    def percent(self) -> float | None:
        """The percentage of points earned; None if there are no points."""
        return round(100 * self.earned / self.possible, 1) if self.possible else None

    def exercise(self, id: str) -> Exercise | None:
        """The exercise with that id, or None."""
        return next((e for e in self.exercises if e.id == id), None)

    @property
    def outcome(self) -> str:
        """The status, with the reason if there is one."""
        return f"{self.status}: {self.reason}" if self.reason else self.status

    @classmethod
    def of(cls, data: dict) -> "Row":
        """The row from plain data; ValueError if malformed."""
        row = made(cls, data)
        row.exercises = [made(Exercise, found) for found in row.exercises]
        return row

    def data(self) -> dict:
        """The row as plain data, as in results.json."""
        names = ("submission", "lab", "earned", "possible", "seconds", "status")
        data = {name: getattr(self, name) for name in names} | {"lab": self.lab or None}
        data |= {"reason": self.reason} if self.reason else {}
        data["exercises"] = [asdict(exercise) for exercise in self.exercises]
        return data | ({"late": True} if self.late else {})


def made(kind: type, data: dict) -> Any:
    """A dataclass from plain data; unknown fields are ignored, wrong fields raise ValueError."""
    try:
        known = {f.name: data[f.name] for f in fields(kind) if f.name in data}
        found = kind(**{k: v for k, v in known.items() if v is not None or k not in ABSENT})
    except TypeError as error:
        raise ValueError(f"no {kind.__name__}: {error}") from None
    for part in fields(kind):
        if not isinstance(getattr(found, part.name), part.type):
            raise ValueError(f"no {kind.__name__}: {part.name} is no {part.type}")
    return found
