"""What lab 5's checks ask of a table: columns that are columns, cells that are numbers or text."""

from labkit.checks.compare import expect_number
from labkit.contract import CheckFailed, expect

KINDS = {
    "NoneType": "None (is `return` missing?)",
    "Series": "one column or row (a Series)",
}
CELLS = {
    "exception": "an exception; wanted is its text, str(e)",
    "function": "a function: call it, alpha_of(rank)",
    "Tensor": "a tensor; wanted is a number, .item()",
}


def columns(got, names, call):
    """The columns of `got`, as `{name: list}`; CheckFailed unless it is a frame that has these."""
    kind = got.get("is")
    if kind is not None:
        told = KINDS.get(kind, f"a {kind}")
        raise CheckFailed(f"{call} gave {told}, wanted a pandas DataFrame")
    found, index = got["columns"], got["index"]
    twice = [name for name in names if name in got["twice"]]
    expect(not twice, f"{call} has two columns {', '.join(twice)}")
    hidden = [name for name in names if name in index and name not in found]
    them = ", ".join(hidden)
    told = "the index here, not a column, and the next cells ask for columns: .reset_index()"
    expect(not hidden, f"{call}: {them} is {told}")
    missing = [name for name in names if name not in found]
    have = ", ".join(found) or "none"
    turned = missing and set(names) <= set(got["labels"])
    expect(not turned, f"{call}: {', '.join(names)} are its rows, wanted as columns: turn it, .T")
    if "rank" in missing and got["labels"] != list(range(len(got["labels"]))):
        have += '. Are the ranks its index? .rename_axis("rank").reset_index() makes a column'
    expect(not missing, f"{call}: no column {', '.join(missing)}; it has {have}")
    for name in names:
        _expect_cells(found[name], f"{call}: column {name}")
    return found


def _expect_cells(cells, call):
    kinds = [cell["is"] for cell in cells if isinstance(cell, dict)]
    expect(not kinds, f"{call} holds {CELLS.get(kinds[0], f'a {kinds[0]}')}" if kinds else "")


def whole(value):
    """A float that stands for an int as that int: pandas makes floats of ints beside NaN."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def number(value):
    """An int as a float, all else as it is."""
    return float(value) if type(value) is int else value


def expect_cell(value, wanted, call, guesses=None):
    """`expect_number` of a table's cell: an int may be a float, NaN and text are named."""
    expect(value is not None, f"{call} is missing (NaN)")
    expect(not isinstance(value, str), f"{call} is the text {value!r}, wanted a number")
    got = whole(value) if type(wanted) is int else value
    expect_number(float(got) if type(wanted) is float else got, wanted, call, guesses)
