"""Files as people have them: read, or refused in one line that names the line and the fix."""

import json

import pandas as pd
import pytest

from labkit.data import read, report, shapes
from labkit.errors import LabError

GOOD = '{"question": "a", "answer": "b"}\n'
BAD = [  # name, bytes, what the line says
    ("mine.xlsx", b"PK", "ends in .xlsx: give a file that ends in .jsonl"),
    ("mine.jsonl", b"", "has no rows"),
    ("mine.csv", b"question,answer\n", "has no rows"),
    ("mine.jsonl", GOOD.encode() * 2 + b'{"question": "a",\n', "line 3: not JSON"),
    ("mine.jsonl", GOOD.encode() + b"[1, 2]\n", "line 2: a list; expected an object"),
    ("mine.jsonl", GOOD.encode() + '{"question": "é"}'.encode("latin-1"), "line 2: byte 0xe9"),
    ("mine.jsonl", GOOD.encode("utf-16"), "line 1: this is UTF-16; save it as UTF-8: iconv"),
    ("mine.jsonl", b'{"colour": "red"}\n', "line 1: no known columns among: colour"),
    ("mine.json", b'[{"question": 1},\n{"answer" 2}]', "line 2: not JSON"),
    ("mine.csv", b"question,answer\na,b\na,b,c\n", "line 3: 3 cells, but the header has 2"),
    ("mine.csv", b"question,answer\na,b\na\n", "line 3: 1 cell, but the header has 2"),
    ("mine.csv", b'question,answer\n"a\nb",c\nd,"e" f\n', "line 4: "),
    ("mine.csv", b"answer,answer\na,b\n", "line 1: two columns are called 'answer'"),
    ("mine.parquet", b"PAR1 and no more", "is not a complete Parquet file"),
    ("mine.csv", None, "is a folder"),
]


@pytest.mark.parametrize(("name", "data", "said"), BAD)
def test_a_bad_file_is_one_line_that_says_what_to_do(tmp_path, name, data, said):
    file = tmp_path / name
    file.mkdir() if data is None else file.write_bytes(data)
    with pytest.raises(LabError) as caught:
        report.load(file)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_row_of_empty_cells_is_a_row_and_a_blank_line_is_none(tmp_path):
    (tmp_path / "mine.csv").write_text("\nquestion;answer\na;b\n\n;\n")
    assert [(r.line, len(r.cells)) for r in read.rows(tmp_path / "mine.csv")] == [(3, 2), (5, 2)]


def test_all_kinds_of_file_hold_the_same_rows(tmp_path):
    rows = [{"question": 'Why "so", you say?\nWell?', "answer": "é \u2028 1"}]
    rows += [{"question": "b", "answer": "2"}]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    frame.to_csv(tmp_path / "c.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "d.csv", index=False, sep=";")
    frame.to_parquet(tmp_path / "e.parquet")
    frame.to_json(tmp_path / "f.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_json(tmp_path / "g.json", orient="records")
    for file in tmp_path.iterdir():
        records = read.rows(file)
        assert [record.cells for record in records] == rows, file
        lines = [2, 4] if "sv" in file.suffix else [1, 2]  # below a header, a cell of two lines
        assert [record.line for record in records] == lines, file


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SYSTEM = {"role": "system", "content": "s"}
GPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TALK[1]]
BELOW = [{"role": "user", "content": "a\n\nc"}, TALK[1]]  # what more there is to a question
JSON = '[{"x": 1}]'
SHAPES = [  # a row, its kind, its messages
    ({"messages": TALK}, "chat", TALK),
    ({"messages": str(TALK)}, "chat", TALK),  # as pandas writes it to CSV
    ({"conversations": GPT}, "chat", TALK),
    ({"messages": PARTS}, "chat", TALK),
    ({"prompt": "a", "completion": "b"}, "prompt-completion", TALK),
    ({"prompt": [SYSTEM, TALK[0]], "completion": TALK[1:]}, "prompt-completion", [SYSTEM, *TALK]),
    ({"Question": "a", " Answer ": "b", "id": "7"}, "question-answer", TALK),
    ({"instruction": "a", "input": "", "output": "b"}, "question-answer", TALK),
    ({"instruction": "a", "input": "c", "output": "b"}, "question-answer", BELOW),
    ({"text": "a", "label": "b"}, "question-answer", TALK),
    ({"system": "s", "user": "a", "assistant": "b"}, "question-answer", [SYSTEM, *TALK]),
    ({"question": "a", "answer": JSON}, "question-answer", [TALK[0], TALK[1] | {"content": JSON}]),
    ({"question": "a", "answer": "[]"}, "question-answer", [TALK[0], TALK[1] | {"content": "[]"}]),
    ({"messages": json.dumps(TALK, indent=1)}, "chat", TALK),
    ({"text": "a"}, "text", []),
]


@pytest.mark.parametrize(("row", "kind", "messages"), SHAPES)
def test_a_shape_is_recognised_and_read(row, kind, messages):
    records = [read.Record(1, row)]
    shape = shapes.recognise(records)
    (example,) = shapes.examples(records, shape)
    assert (shape.kind, example.messages, example.bad) == (kind, messages, ())
    assert example.text == ("a" if kind == "text" else "")
