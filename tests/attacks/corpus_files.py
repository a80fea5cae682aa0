"""Files that are no notebooks, or odd ones, and names that mean to lead elsewhere.

None may stop the batch. What cannot be read is a row with a reason; what Jupyter would open counts.
"""

import json
import os

from attack import ALL, Book, accident, file, named


def _solved(**changes):
    return json.dumps(Book().nb | changes).encode()


def _cells(*cells):
    return _solved(cells=cells)


CONTENTS = {  # none is a notebook that can be read
    "empty": b"",  # an upload that broke off at once
    "truncated": Book().text().encode()[:20_000],
    "list": b"[]",
    "empty_object": b"{}",
    "cells_are_a_number": _solved(cells=3),
    "cells_are_numbers": _cells(1, None, "x", []),
    "cells_without_source": _cells({"cell_type": "code"}),
    "source_is_an_object": _cells({"cell_type": "code", "source": {"a": 1}}),
    "only_text_cells": _cells({"cell_type": "markdown", "metadata": {}, "source": "# hello"}),
    "deep_json": b'{"cells": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",  # for parsers that recurse
    "long_number": b'{"nbformat": 4, "cells": ' + b"9" * 100_000 + b"}",  # int() refuses it
    "latin_1": Book().text().replace("Lab 2", "L\xe4b 2").encode("latin-1"),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "nbformat_2": json.dumps({"nbformat": 2, "metadata": {}, "worksheets": []}).encode(),
}
NAMES = {  # of right notebooks: they are graded, and the name does no harm
    "option": "-rf.ipynb",
    "new_line": "new\nline.ipynb",  # two lines of a log, two rows of a table
    "shell": "$(touch lora-attack);`id`|x&.ipynb",
    "markup": "<script>evil()<|script>.ipynb",
    "formula": "=1+cmd|'!A1.ipynb",  # a spreadsheet would run it
    "no_utf_8": b"\xff\xfe.ipynb",  # from an old archive
    "long": "n" * 240 + ".ipynb",  # a report's name is longer by some letters
    "results": "results.ipynb",  # its page must not take the place of a report
    "rich_markup": "[bold red]x[|].ipynb",  # of the progress line
}


def _written(name, data):
    def make(folder):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    return make


for name, data in CONTENTS.items():
    named(name, "", _written(f"{name}.ipynb", data), file())
for number, (name, path) in enumerate(NAMES.items()):
    data = Book().text().encode() + b" " * number  # none has the same content as another
    named(f"name_{name}", "", _written(path, data), file(ALL, ("graded",)))


@accident((0, ALL), ("graded", "unreadable"))
def lab_name_with_a_path(book):
    """A name that would become a path or a module."""
    for cell in book.cells:
        cell["source"] = "".join(cell["source"]).replace("02_lora", "../../../../etc/passwd")


@accident()
def metadata_of_all_kinds(book):
    """null, a list, a number where an object should be; tags that are text."""
    book.nb["metadata"] = None
    for i, cell in enumerate(book.cells):
        experiment = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": experiment} if experiment else [None, {}, {"tags": None}][i % 3]


@accident()
def nul_and_surrogates(book):
    """Characters that Python, UTF-8 or the report cannot hold, in cells of their own."""
    for code in ("x = '\0'", "x = '\ud800'", "# \udfff\n1", "\f\v\x1b[31m", "﻿x = 1"):
        book.early(code)
