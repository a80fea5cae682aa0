"""Points by hand: over the verdicts in all that is reported and exported, under what was judged."""

import csv
import json

from submissions import Fake, notebook

from labkit.grading import store
from labkit.grading.after import overrides

HEAD = "submission,exercise,points,why\n"
BOOKS = {f"{name}.ipynb": notebook(f"x = '{name}'") for name in ("ada", "kurt")}


def points(rows):
    return {row["submission"]: row["earned"] for row in rows}


def test_they_hold_until_their_line_goes_and_nothing_is_graded_again(batch):
    assert points(batch(BOOKS)) == {"ada.ipynb": 1, "kurt.ipynb": 1}
    (batch.out / overrides.FILE).write_text(HEAD + 'ada.ipynb,2.1,2,"right, another way"\n')
    notes = []
    rows = batch(notes=notes)
    assert points(rows) == {"ada.ipynb": 2, "kurt.ipynb": 1} and len(Fake.asked) == 2
    assert notes == ["points by hand, overrides.csv: 1"]
    (given,) = rows[0]["exercises"]
    assert (given["status"], given["message"]) == ("passed", "by hand: right, another way")
    assert json.loads((batch.out / "results.json").read_text()) == rows
    table = list(csv.DictReader((batch.out / "grades.csv").open()))
    assert [(row["earned"], row["2.1"]) for row in table] == [("2", "2"), ("1", "1")]
    assert "another way" in (batch.out / "feedback" / "ada.html").read_text()
    assert store.entries(batch.out)["ada.ipynb"].row.earned == 1, "what was judged is kept"
    batch(again=["ada"])
    assert points(batch()) == {"ada.ipynb": 2, "kurt.ipynb": 1}
    for file in (batch.out / "graded").glob("*.json"):  # no override from results.json
        file.unlink()
    assert points(batch(paths=[batch.folder / "kurt.ipynb"])) == {"kurt.ipynb": 1}
    (batch.out / overrides.FILE).unlink()
    assert points(batch()) == {"ada.ipynb": 1, "kurt.ipynb": 1}


def test_excel_writes_them_too_and_what_cannot_be_is_named(batch):
    batch(BOOKS)
    lines = "kurt.ipynb;2.1;0,5;half\r\nnobody.ipynb;2.1;1;\r\nada.ipynb;9.9;1;\r\n"
    text = HEAD.replace(",", ";") + lines + "ada.ipynb;2.1;3;too many\r\n"
    (batch.out / overrides.FILE).write_bytes(text.encode("utf-16"))
    notes = []
    assert points(batch(notes=notes)) == {"ada.ipynb": 1, "kurt.ipynb": 0.5}
    assert notes == [
        "points by hand, overrides.csv: 1",
        "LOOK: overrides.csv, 'nobody.ipynb': no submission has this name",
        "LOOK: overrides.csv, 'ada.ipynb': it has no exercise '9.9': 2.1",
        "LOOK: overrides.csv, 'ada.ipynb': exercise 2.1: '3' is not a number from 0 to 2",
    ]
    (batch.out / overrides.FILE).write_text("who,what\n")
    assert points(batch(notes=notes)) == {"ada.ipynb": 1, "kurt.ipynb": 1}
    assert notes[-1].startswith("LOOK: overrides.csv is not used: its first line must be subm")
