"""What an honest notebook is: a solved lab as somebody really made it. All its points stand.

A maker is a function of a `Book`, the solved notebook; it changes what that person changed, and may
return the bytes of the file where these matter. Its docstring says what a grader would trip over.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))

from attack import Book, source

TIMES = int(os.environ.get("LABKIT_HONEST", "1"))  # that each is graded
NOTEBOOKS = []  # in the order of the corpus


@dataclass(frozen=True)
class Honest:
    name: str
    why: str
    make: object  # a function of a Book
    lab: str

    def data(self):
        """The bytes of its file."""
        book = Book(self.lab)
        return self.make(book) or book.text().encode()


def honest(lab="02_lora"):
    """Add the maker to the corpus; of eight labs most tests take the second."""

    def add(make):
        why = " ".join((make.__doc__ or "").split())
        NOTEBOOKS.append(Honest(make.__name__, why, make, lab))
        return make

    return add


def early(name, code, why="", lab="02_lora"):
    """Add a notebook that has `code` in a cell behind the imports."""
    _named(name, why, lab, lambda book: book.early(code))


def imports(name, code, why="", lab="02_lora"):
    """Add a notebook whose cell of imports begins with `code`."""

    def make(book):
        cell = imports_of(book)
        cell["source"] = code.strip("\n") + "\n" + source(cell)

    _named(name, why, lab, make)


def imports_of(book):
    """The cell that imports torch."""
    return next(cell for cell in book.cells if "\nimport torch\n" in source(cell))


def as_json(book, **options):
    """The notebook as text, written as another program would."""
    return json.dumps(book.nb, **options)


def _named(name, why, lab, make):
    make.__name__, make.__doc__ = name, why
    honest(lab)(make)
