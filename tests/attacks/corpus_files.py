"""Files that are no notebooks, or odd ones, and names that mean to lead elsewhere.

None may stop the batch. What cannot be read is a row with a reason; what Jupyter would open counts.
"""

import json
import os

from attack import Book, file

OPENS = ("graded",)
EITHER = ("graded", "unreadable")  # a reader may be generous; it must say so where it is not


def _raw(name, data, why):
    """A file with these bytes: unreadable, no points."""

    def make(folder):
        path = folder / f"{name}.ipynb"
        path.write_bytes(data() if callable(data) else data)
        return path

    make.__name__, make.__doc__, make.__module__ = name, why, __name__
    file()(make)


def _solved(**changes):
    return json.dumps(Book().nb | changes)


_raw("empty", b"", "an upload that broke off at once")
_raw("one_space", b" ", "")
_raw("truncated", lambda: Book().text().encode()[:20_000], "an upload that broke off later")
_raw("null", b"null", "JSON, and no notebook")
_raw("number", b"42", "")
_raw("text", b'"notebook"', "")
_raw("list", b"[]", "")
_raw("empty_object", b"{}", "")
_raw("cells_are_a_number", _solved(cells=3).encode(), "")
_raw("cells_are_text", _solved(cells="lora").encode(), "")
_raw("cells_are_numbers", _solved(cells=[1, None, "x", []]).encode(), "")
_raw("cells_without_source", _solved(cells=[{"cell_type": "code"}]).encode(), "")
_raw("source_is_an_object", _solved(cells=[{"cell_type": "code", "source": {"a": 1}}]).encode(), "")
_raw("deep_json", b'{"cells": ' + b"[" * 200_000, "a parser that recurses dies of it")
_raw("deep_json_closed", b'{"cells": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "and whole")
_raw("long_number", b'{"nbformat": 4, "cells": ' + b"9" * 100_000 + b"}", "int() refuses it")
_raw("binary", bytes(range(256)) * 100, "")
_raw("zip_archive", b"PK\x03\x04" + bytes(200), "a renamed archive")
_raw("html_page", b"<!DOCTYPE html><html><body>Sign in</body></html>", "the log-in page, saved")
_raw("gzip", b"\x1f\x8b\x08" + bytes(100), "")
_raw("latin_1", lambda: Book().text().replace("Lab 2", "L\xe4b 2").encode("latin-1"), "not UTF-8")
_raw("script", b"import os\nos.system('echo lora')\n", "a Python file with the wrong ending")
_raw(
    "nbformat_2",
    lambda: json.dumps(
        {"nbformat": 2, "nbformat_minor": 0, "metadata": {}, "worksheets": []}
    ).encode(),
    "",
)
_raw(
    "only_text_cells",
    lambda: _solved(
        cells=[{"cell_type": "markdown", "metadata": {}, "source": "# hello"}]
    ).encode(),
    "no lab in it",
)
_raw("no_cells", lambda: _solved(cells=[]).encode(), "")


@file((0, 22), EITHER)
def lab_that_does_not_exist(folder):
    """A name that is no lab: judged by its answers, or a row with a reason."""
    return _put(
        folder, "lab_that_does_not_exist", Book().text().replace("02_lora", "99_x").encode()
    )


@file((0, 22), EITHER)
def lab_name_with_a_path(folder):
    """A name that would become a path or a module."""
    text = Book().text().replace("02_lora", "../../../../etc/passwd")
    return _put(folder, "lab_name_with_a_path", text.encode())


@file((0, 22), EITHER)
def utf_16(folder):
    return _put(folder, "utf_16", Book().text().encode("utf-16"))


@file(22, OPENS)
def byte_order_mark(folder):
    """Windows editors put three bytes before the text."""
    return _put(folder, "byte_order_mark", b"\xef\xbb\xbf" + Book().text().encode())


@file((0, 22), EITHER)
def nbformat_3(folder):
    """Worksheets, as of 2014: a reason, or converted."""

    def old(c):
        return {
            "cell_type": c["cell_type"],
            "metadata": {},
            "outputs": [],
            "language": "python",
            ("input" if c["cell_type"] == "code" else "source"): c["source"],
        }

    sheet = {"cells": [old(c) for c in Book().cells], "metadata": {}}
    nb = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [sheet]}
    return _put(folder, "nbformat_3", json.dumps(nb).encode())


@file((0, 22), EITHER)
def nbformat_5(folder):
    """A format of the future."""
    return _put(folder, "nbformat_5", _solved(nbformat=5).encode())


@file(22, OPENS)
def minor_version_of_tomorrow(folder):
    return _put(folder, "minor_version_of_tomorrow", _solved(nbformat_minor=99).encode())


@file(22, OPENS)
def indented_with_returns(folder):
    """A Windows checkout: CRLF in the file and in the sources."""
    text = json.dumps(Book().nb, indent=4).replace("\\n", "\\r\\n").replace("\n", "\r\n")
    return _put(folder, "indented_with_returns", text.encode())


@file(22, OPENS)
def metadata_of_all_kinds(folder):
    """null, a list, a number where an object should be; tags that are text."""
    book = Book()
    book.nb["metadata"] = None
    for i, cell in enumerate(book.cells):
        experiment = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": experiment} if experiment else [None, {}, {"tags": None}][i % 3]
    return _put(folder, "metadata_of_all_kinds", book.text().encode())


@file(22, OPENS)
def no_optional_keys(folder):
    """Cells with a type and a source and nothing else, no metadata of the notebook."""
    book = Book()
    for cell in book.cells:
        tags = cell["metadata"].get("tags")
        kept = {key: cell[key] for key in ("cell_type", "source")}
        cell.clear()
        cell.update(kept | ({"metadata": {"tags": tags}} if tags else {}))
    return _put(
        folder, "no_optional_keys", json.dumps({"nbformat": 4, "cells": book.cells}).encode()
    )


@file(22, OPENS)
def sources_as_text_or_list(folder):
    """nbformat allows both, and other tools write both."""
    book = Book()
    for i, cell in enumerate(book.cells):
        text = "".join(cell["source"])
        cell["source"] = text if i % 2 else text.splitlines(keepends=True)
    return _put(folder, "sources_as_text_or_list", book.text().encode())


@file(22, OPENS)
def same_cell_ids(folder):
    book = Book()
    for cell in book.cells:
        cell["id"] = "a"
    book.nb["nbformat_minor"] = 5
    return _put(folder, "same_cell_ids", book.text().encode())


@file(22, OPENS)
def nul_and_surrogates(folder):
    """Characters that Python, UTF-8 or the report cannot hold, in cells of their own."""
    book = Book()
    for code in ("x = '\0'", "x = '\ud800'", "# \udfff\n1", "\f\v\x1b[31m", "﻿x = 1"):
        book.early(code)
    return _put(folder, "nul_and_surrogates", book.text().encode())


@file((0, 22), EITHER)
def numbers_that_json_forbids(folder):
    text = Book().text().replace('"metadata": {}', '"metadata": {"a": NaN, "b": -Infinity}', 3)
    return _put(folder, "numbers_that_json_forbids", text.encode())


@file((0, 22), EITHER)
def duplicate_keys(folder):
    return _put(folder, "duplicate_keys", Book().text().replace("{", '{"cells": [], ', 1).encode())


@file()
def folder_with_the_ending(folder):
    """A folder named like a notebook: a row with a reason."""
    path = folder / "folder_with_the_ending.ipynb"
    path.mkdir()
    return path


@file()
def named_pipe(folder):
    """Whoever opens it waits for ever."""
    path = folder / "named_pipe.ipynb"
    os.mkfifo(path)
    return path


@file()
def socket_file(folder):
    import socket

    path = folder / "socket_file.ipynb"
    back = os.getcwd()
    os.chdir(folder)  # the address of a socket holds a hundred characters only
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(back)
    return path


def _link(name, target, why):
    def make(folder):
        path = folder / f"{name}.ipynb"
        path.symlink_to(target(folder))
        return path

    make.__name__, make.__doc__, make.__module__ = name, why, __name__
    file()(make)


_link("link_to_passwd", lambda folder: "/etc/passwd", "a report that quotes it would leak it")
_link("link_to_nothing", lambda folder: folder / "nothing", "")
_link("link_to_itself", lambda folder: folder / "link_to_itself.ipynb", "")
_link("link_to_zero", lambda folder: "/dev/zero", "a file without an end")
_link("link_to_stdin", lambda folder: "/dev/stdin", "waits for the instructor's keys")
_link("link_to_memory", lambda folder: "/proc/self/mem", "")
_link(
    "link_to_a_neighbour",
    lambda folder: next(folder.glob("*_solved_neighbour.ipynb")),
    "another's work under one's own name",
)
_link(
    "link_to_the_solution",
    lambda folder: __import__("attack").ROOT / "solutions/02_lora.ipynb",
    "the course's own answers: the sandbox hides them, the reader must not fetch them",
)


def _named(name, why, inside=None):
    """A right notebook whose name is odd: it is graded, and the name does no harm."""

    def make(folder):
        place = folder / inside if inside else folder
        place.mkdir(exist_ok=True)
        path = place / os.fsdecode(name)
        path.write_text(Book().text() + " " * len(str(path)), encoding="utf-8")
        return path

    label = "".join(c if c.isalnum() else "_" for c in os.fsdecode(name).removesuffix(".ipynb"))
    make.__name__ = "name_" + label.encode("ascii", "replace").decode().replace("?", "_")[:40]
    make.__name__ += f"_in_{inside}" if inside else ""
    make.__doc__, make.__module__ = why, __name__
    file(22, OPENS)(make)


_named("-rf.ipynb", "an option, where a name is passed on to a program")
_named("--unsafe.ipynb", "")
_named("a b  c.ipynb", "")
_named("new\nline.ipynb", "two lines of a log, two rows of a table")
_named("tab\tand\rreturn.ipynb", "")
_named("$(touch lora-attack);`id`|x&.ipynb", "a shell would run it")
_named('\'"quotes".ipynb', "")
_named("<script>evil()<|script>.ipynb", "the class page must escape it")
_named("=1+cmd|'!A1.ipynb", "a spreadsheet would run it as a formula")
_named("a,b;c.ipynb", "columns of a CSV file")
_named("%2e%2e%2fup.ipynb", "")
_named("a\\..\\..\\evil.ipynb", "a path on Windows")
_named("Übung 2 – Größe.ipynb", "")
_named("宿題🙂.ipynb", "")
_named("\u202egnp.ipynb", "turns the direction of the text round")
_named(b"\xff\xfe.ipynb", "a name that is not UTF-8, from an old archive")
_named("n" * 240 + ".ipynb", "as long as a name can be: a report's name is longer by some letters")
_named("CON.ipynb", "reserved on Windows")
_named("twin.ipynb", "the same name in two folders: two rows, two pages", "one")
_named("twin.ipynb", "", "two")
_named("results.ipynb", "its page must not take the place of a report")
_named("index.ipynb", "the same, of the class page")
_named("{name}.ipynb", "a template would fill it in")
_named("{{ 7 * 7 }}.ipynb", "and Jinja would compute it")
_named("%s%n.ipynb", "")
_named("[bold red]x[|].ipynb", "markup for rich's progress line")


def _put(folder, name, data):
    path = folder / f"{name}.ipynb"
    path.write_bytes(data)
    return path
