"""Read rows and their line numbers from JSONL, CSV or Parquet; bad input raises LabError."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError

KINDS = {
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
}
BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Record:
    """A row of the file: its cells and its first line number (in Parquet, the row number)."""

    line: int
    cells: dict


def rows(file: str | Path) -> list[Record]:
    """Read the rows of `file`; a LabError names the unreadable line and how to fix it."""
    path = Path(file)
    kind = KINDS.get(path.suffix.lower())
    if not path.exists():
        raise LabError(f"no file {path}: is the path right relative to {Path.cwd().name}/?")
    if path.is_dir() or kind is None:
        what = "is a folder" if path.is_dir() else f"ends in {path.suffix or 'nothing'}"
        raise LabError(f"{path} {what}: give a file that ends in {', '.join(KINDS)}")
    try:
        found = _parquet(path) if kind == "Parquet" else list(_of_text(path, kind))
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror or error}") from None
    if not found:
        raise LabError(f"{path} has no rows: is the file complete?")
    return found


def _of_text(path, kind):
    text = _decoded(path)
    reader = {"JSONL": _json_lines, "JSON": _json, "CSV": _csv}[kind]
    return reader(path, text)


def _decoded(path):
    data = path.read_bytes()
    if name := BOMS.get(data[:2]):
        raise LabError(f"{path}, line 1: this is {name}; save it as UTF-8: {_recode(path, name)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        where = f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8"
        raise LabError(f"{where}; save it as UTF-8: {_recode(path, 'WINDOWS-1252')}") from None


def _recode(path, name):
    return f"iconv -f {name} -t UTF-8 {path.name} > new{path.suffix}"


def _json_lines(path, text) -> Iterator[Record]:
    # not splitlines: JSON strings may contain other line breaks, such as U+2028
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _record(path, number, _parsed(path, number, line))


def _json(path, text) -> Iterator[Record]:
    """Read a list of rows, or one JSON object per line, whatever the file's suffix."""
    if not text.lstrip().startswith("["):
        yield from _json_lines(path, text)
        return
    for number, row in enumerate(_parsed(path, 1, text), start=1):
        yield _record(path, number, row)


def _parsed(path, number, text):
    try:
        return json.loads(text)
    except ValueError as error:
        line = number + getattr(error, "lineno", 1) - 1
        why = f"{getattr(error, 'msg', error)}, column {getattr(error, 'colno', 1)}"
        where = f"{path}, line {line}: not JSON ({why})"
        raise LabError(f"{where}; fix or remove this line (each row is one line)") from None
    except RecursionError:
        raise LabError(f"{path}, line {number}: nested too deeply; remove it") from None


def _record(path, number, row):
    if isinstance(row, dict):
        return Record(number, row)
    what = type(row).__name__
    raise LabError(f"{path}, line {number}: a {what}; expected an object such as {{'prompt': …}}")


def _csv(path, text) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    header = text.lstrip("\r\n").partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names, begun = None, 1
    try:
        for cells in reader:
            line, begun = begun, reader.line_num + 1
            if not cells:  # a blank line; a row of empty cells is a row
                continue
            if names is None:
                names = _names(path, cells)
                continue
            if len(cells) != len(names):
                raise LabError(f"{path}, line {line}: {_uneven(len(cells), names, separator)}")
            yield Record(line, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise LabError(
            f'{path}, line {begun}: {error}; inside quoted text, write a quote twice: ""'
        ) from None


def _uneven(n, names, separator):
    """Explain the fault of a row whose `n` cells don't match the header."""
    cells = f"{n} cell{'s' * (n != 1)}, but the header has {len(names)}"
    if n > len(names):
        return f'{cells}; put text that contains "{separator}" in quotes'
    return f'{cells}; an empty cell needs its "{separator}", too'


def _names(path, cells):
    names = [cell.strip() for cell in cells]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise LabError(f"{path}, line 1: two columns are called {twice[0]!r}; rename one")
    return names


def _parquet(path):
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError) as error:
        why = str(error).splitlines()[0][:90]
        raise LabError(f"{path} is not a complete Parquet file ({why}); write it again") from None
    return [Record(number, row) for number, row in enumerate(table.to_pylist(), start=1)]
