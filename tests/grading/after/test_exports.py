"""The tables of Canvas and Moodle, and Gradescope's results, from rows as in results.json."""

import csv
import io
import json
import sys
import zipfile

import nbformat
import pytest
from command import call
from markdown_it import MarkdownIt

from labkit.errors import LabError
from labkit.grading.after import comments, exports, gradescope, report, tables
from labkit.grading.row import Exercise, Row

CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section,Lab 2: LoRA (771),Essay (772),Final Score
    Points Possible,,,,,40,10,(read only)
"Doe, Jane",12345,s1,jdoe,A,,7,70
"Lovelace, Ada",12346,s2,ada,A,3,8,80
"Gödel, Kurt",12347,s3,kurt,"A, B",,9,90
"evil_12346, ",999,s4,evil,A,,0,0
"""
MOODLE = (
    "Identifier,Full name,Email address,Status,Grade,Maximum Grade,Grade can be changed,"
    "Last modified (submission),Last modified (grade),Feedback comments\r\n"
    'Participant 501,Jane Doe,j@x.org,"Submitted for grading - ",,100.00,Yes,"Monday, 1",-,\r\n'
    'Participant 502,Ada Lovelace,a@x.org,"Submitted for grading - ",1.00,100.00,No,-,-,seen\r\n'
    "Participant 50,Kurt Gödel,k@x.org,No submission,,100.00,Yes,-,-,\r\n"
)


def row(submission, earned=15, lab="02_lora", **more):
    """A row of twenty possible points."""
    tries = [
        Exercise("2.1", "lora_forward", 5, 5, "passed"),
        Exercise("2.8", "quiz", 15, earned - 5, "failed", "<script>1 of 3 right"),
    ]
    known = {"lab": lab, "earned": earned, "possible": 20, "seconds": 0.5, "exercises": tries}
    return Row(submission, **{"status": "graded"} | known | more)


def lost(submission, reason):
    return Row(submission, "unreadable", reason)


def table(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def gradebook(tmp_path):
    """`gradebook(text)`: a file with that text."""

    def make(text, encoding="utf-8"):
        path = tmp_path / "book.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return make


def test_canvas_gets_its_own_table_with_one_column_filled(gradebook):
    rows = [row("doejane_12345_67890_02_lora-1.ipynb"), row("gödelkurt_LATE_12347_5_a.ipynb", 20)]
    rows[1].late = True
    done = exports.canvas(rows, gradebook(CANVAS))
    assert done.text.splitlines() == [
        "Student,ID,SIS User ID,SIS Login ID,Section,Lab 2: LoRA (771)",
        "    Points Possible,,,,,40",
        '"Doe, Jane",12345,s1,jdoe,A,30',
        '"Lovelace, Ada",12346,s2,ada,A,3',
        '"Gödel, Kurt",12347,s3,kurt,"A, B",40',
        '"evil_12346, ",999,s4,evil,A,',
    ]
    assert len(done.filled) == 2 and done.problems == []
    assert "scaled: 20 points here are 40 there" in done.remarks
    assert "without a submission: 2" in done.remarks
    late = "late, but points are deducted only by hand: gödelkurt_LATE_12347_5_a.ipynb"
    assert late in done.remarks


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("sub/folder/doejane_12345_67890_x.ipynb", "Doe, Jane"),
        ("doejane_12345_67890_12346_5_x.ipynb", "Doe, Jane"),  # the tail is the learner's
        ("evil_12346_999_5_x.ipynb", "evil_12346, "),  # and so is the name
        ("group7_12347_5_x.ipynb", "Gödel, Kurt"),  # a group's file bears its own name
        ("group7_12347_12346_5_x.ipynb", None),  # two readings, and no name decides
        ("lovelaceada_12346_999_5_x.ipynb", "Lovelace, Ada"),
        ("go\u0308delkurt_12347_12346_5_x.ipynb", "Gödel, Kurt"),  # unzipped by a Mac
        ("doejane_LATE_12345_67890_lab2/nb/02_lora.ipynb", "Doe, Jane"),  # a zip, unpacked
        ("doejane_12345_67890_lab2/lovelaceada_12346_5_x.ipynb", "Doe, Jane"),  # and what was in it
        ("anon_4fZq1_67890_x.ipynb", None),
        ("12345.ipynb", None),
    ],
)
def test_canvas_matches_on_the_number_and_is_not_fooled(gradebook, name, student):
    done = exports.canvas([row(name, 10)], gradebook(CANVAS))
    filled = [r["Student"] for r in table(done.text) if r["Lab 2: LoRA (771)"] == "20"]
    assert filled == ([student] if student else [])
    assert done.problems == ([] if student else [f"not matched: {name}"])


def test_what_needs_a_look_is_listed_and_nothing_is_lost(gradebook):
    rows = [
        row("doejane_12345_1_a.ipynb", 8),
        row("doejane_12345_2_b.ipynb", 12),
        row("lovelaceada_12346_3_c.ipynb", 6, status="timeout", reason="600 s are over"),
        row("nobody.ipynb"),
        lost("zip.ipynb", "this is not JSON"),
    ]
    done = exports.canvas(rows, gradebook(CANVAS))
    assert [r["Lab 2: LoRA (771)"] for r in table(done.text)] == ["40", "24", "12", "", ""]
    assert done.problems == [
        "no lab: zip.ipynb: this is not JSON",
        "lovelaceada_12346_3_c.ipynb is timeout: 600 s are over; it gets 6 points",
        "not matched: nobody.ipynb",
        "2 from one student, the best counts: doejane_12345_1_a.ipynb, doejane_12345_2_b.ipynb",
    ]


def test_a_class_that_came_from_two_systems_is_one_line_in_each(gradebook):
    theirs = [f"Jane Doe_{n}_assignsubmission_file_/x.ipynb" for n in range(900, 930)]
    rows = [row("doejane_12345_1_a.ipynb"), row("by mail.ipynb"), *map(row, theirs)]
    first, second = exports.canvas(rows, gradebook(CANVAS)).problems
    assert first == "not matched: by mail.ipynb"
    assert second.startswith("not matched, named by Moodle (30): Jane Doe_900_")
    problems = exports.moodle(rows, gradebook(MOODLE)).problems
    assert sum(line.startswith("not matched: ") for line in problems) == 31, "30 are not in it"
    assert problems[-1] == "not matched, named by Canvas (1): doejane_12345_1_a.ipynb"


def test_the_lab_and_the_column_are_said_when_they_are_not_clear(gradebook):
    book = gradebook(CANVAS)
    rows = [row("doejane_12345_1_a.ipynb"), row("doejane_12345_2_b.ipynb", lab="03_peft")]
    for lab in (None, "5"):
        with pytest.raises(LabError, match=r"choose --lab .*: 02_lora, 03_peft"):
            exports.canvas(rows, book, lab=lab)
    with pytest.raises(LabError, match=r"03_peft\? choose --column .* 'Lab 2: LoRA \(771\)', "):
        exports.canvas(rows, book, lab="3")
    done = exports.canvas(rows, book, lab="03", column="essay")
    assert [r["Essay (772)"] for r in table(done.text)] == ["10", "7.5", "8", "9", "0"]
    with pytest.raises(LabError, match="'Final Score' is not one column here"):
        exports.canvas(rows, book, lab="3", column="Final Score")


@pytest.mark.parametrize(
    "title", ["Lab 2", "lab 02 (5)", "LAB-2: adapters (5)", "hand in 02_lora (5)"]
)
def test_titles_that_name_the_lab_are_found(gradebook, title):
    text = f"Student,ID,Section,{title},Lab 12 (6),Lab 20 (7)\nDoe,12345,A,,,\n"
    done = exports.canvas([row("doe_12345_1_a.ipynb")], gradebook(text))
    assert table(done.text) == [{"Student": "Doe", "ID": "12345", "Section": "A", title: "15"}]


@pytest.mark.parametrize("fill", [exports.canvas, exports.moodle])
@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "\x00\x01\n", '"' + "x" * 200_000, "PK\x03\x04"]
)
def test_another_file_is_one_line(gradebook, fill, text):
    with pytest.raises(LabError, match=r"book\.csv") as caught:
        fill([row("a.ipynb")], gradebook(text))
    assert "\n" not in str(caught.value)
    assert ("Excel" in str(caught.value)) == text.startswith("PK")


def test_moodle_gets_its_worksheet_with_grade_and_feedback(gradebook):
    rows = [
        row("Jane Doe_501_assignsubmission_file_/02_lora.ipynb", 11),
        row("Ada Lovelace_502_assignsubmission_file_x_50_assignsubmission_file_.ipynb", 20),
        row("Some One_503_assignsubmission_file_/02_lora.ipynb"),
    ]
    done = exports.moodle(rows, gradebook(MOODLE))
    jane, ada, kurt = table(done.text)
    assert (jane["Grade"], ada["Grade"], kurt["Grade"]) == ("55", "100", "")
    assert jane["Feedback comments"].split("<br>") == [
        "11 of 20 points",
        "2.1 lora_forward: 5 of 5, passed.",
        "2.8 quiz: 6 of 15, failed. &lt;script&gt;1 of 3 right",
    ]
    assert ada["Feedback comments"] == "seen" and kurt["Feedback comments"] == ""
    assert len(done.filled) == 2 and "scaled: 20 points here are 100 there" in done.remarks
    assert done.problems == [
        f"not matched: {rows[2].submission}",
        f"Moodle refuses to change the grade of {rows[1].submission}",
    ]
    for line, old in zip((jane, ada, kurt), table(MOODLE), strict=True):
        assert line == old | {key: line[key] for key in ("Grade", "Feedback comments")}


# in other languages: grade, highest grade, comments and what may follow them, yes, no
LANGUAGES = {
    "de": ("Bewertung", "Bestwertung", "Feedback als Kommentar", "Ja", "Nein"),
    "fr": ("Note", "Note maximale", "Feedback par commentaires", "Oui", "Non"),
    "es": ("Calificación", "Calificación máxima", "Comentarios de retroalimentación", "Sí", "No"),
    "pt": ("Nota", "Nota máxima", "Comentários de feedback", "Sim", "Não"),
    "it": ("Valutazione", "Valutazione massima", "Commenti,File di commento", "Si", "No"),
    "nl": ("Cijfer", "Maximaal cijfer", "Feedback tekstvak", "Ja", "Nee"),
    "pl": ("Ocena", "Maksymalna ocena", "Komentarz", "Tak", "Nie"),
    "sv, which is not listed": ("Betyg", "Högsta betyg", "Feedbackkommentarer", "Ja", "Nej"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_moodle_in_another_language_is_scaled_and_has_its_comments(gradebook, language):
    grade, highest, words, yes, no = LANGUAGES[language]
    lines = [f"ID,Name,E-Mail,Status,{grade},{highest},Free,Handed in,Graded,{words}"]
    for number, name, free in ((501, "Jane", yes), (502, "Ada", no), (503, "Kurt", yes)):
        lines.append(f'Teilnehmer/in{number},{name},x@x.org,In,,"100,00",{free},-,-,')
    rows = [row("Jane Doe_501_assignsubmission_file_/x.ipynb")]
    rows += [row("Ada_502_assignsubmission_file_/x.ipynb", 12.5)]
    done = exports.moodle(rows, gradebook("\r\n".join(lines)))
    jane, ada, kurt = table(done.text)
    assert (jane[grade], ada[grade], kurt[grade]) == ("75", "62,5", "")
    comment = words.partition(",")[0]
    assert jane[comment].startswith("15 of 20 points<br>") and kurt[comment] == ""
    assert "scaled: 20 points here are 100 there" in done.remarks
    refused = f"Moodle refuses to change the grade of {rows[1].submission}"
    assert done.problems == ([refused] if no != "Nej" else [])


def test_a_worksheet_without_what_is_needed_is_looked_at(gradebook):
    text = "ID;Vollständiger Name;Punkte\nTeilnehmer/in501;Jane Doe;\n"
    rows = [row("Jane Doe_501_assignsubmission_file/x.ipynb")]
    with pytest.raises(LabError, match=r"choose --column .* 'Punkte'"):
        exports.moodle(rows, gradebook(text))
    done = exports.moodle(rows, gradebook(text), column="Punkte")
    assert done.text.splitlines()[1] == "Teilnehmer/in501;Jane Doe;15"
    assert done.problems == [
        "found no column for the maximum grade, so points are not scaled",
        "found no column for comments, so verdicts are left out",
    ]


ENCODINGS = {"utf-8": b"", "utf-8-sig": b"", "cp1252": b"", "latin-1": b""}
ENCODINGS |= {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}  # the mark before the text


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_goes_back_in_the_encoding_that_it_came_in(gradebook, encoding, separator):
    path, mark = gradebook(""), ENCODINGS[encoding]
    text = "Student,ID,Section,Lab 2\r\nGödel,12347,é,\r\n"
    text += "\x81,1,,\r\n" if encoding == "latin-1" else ""
    text = text.replace(",", separator)
    path.write_bytes(mark + text.encode(encoding))
    done = exports.canvas([row("gödelkurt_12347_5_a.ipynb")], path)
    wanted = text.replace(f"é{separator}", f"é{separator}15")
    assert done.data() == mark + wanted.encode(encoding)


def test_a_comment_that_the_encoding_has_no_character_for_is_html(gradebook):
    rows = [row("Jane Doe_501_assignsubmission_file_/x.ipynb")]
    rows[0].exercises[1].message = "α is not divided by r"
    done = exports.moodle(rows, gradebook(MOODLE, "cp1252"))
    assert b"&#945; is not divided" in done.data() and "Gödel".encode("cp1252") in done.data()


def test_files_of_another_lab_or_of_none_do_not_hold_up_the_class(gradebook):
    rows = [row(f"s_{n}_1_02_lora.ipynb") for n in (12345, 12346, 12347)]
    rows += [row("s_999_1_x.ipynb", lab="03_peft"), row("s_999_2_02_lora.ipynb", lab="01_svd")]
    rows += [lost("eve/02_lora.ipynb", "empty")]
    done = exports.canvas(rows, gradebook(CANVAS))
    assert len(done.filled) == 3
    assert done.problems == [
        "no lab: eve/02_lora.ipynb: empty",
        "left out, 01_svd and not 02_lora: s_999_2_02_lora.ipynb",
        "left out, 03_peft and not 02_lora: s_999_1_x.ipynb",
        "s_999_2_02_lora.ipynb is 01_svd, whatever its name says",
    ]
    with pytest.raises(LabError, match="choose --lab"):
        exports.canvas([*rows, row("s_9_3_z.ipynb", lab="01_svd")], gradebook(CANVAS))
    asked = exports.canvas(rows, gradebook(CANVAS), lab="3", column="essay")
    assert not any("left out" in problem for problem in asked.problems)


ODD = ["[1]", "{}", '[{"submission": "a"}]', '[{"submission": "a", "status": "graded", "lab": 2}]']
ODD += ['[{"submission": "a", "status": "graded", "exercises": [{"id": "2.1"}]}]', "[" * 100_000]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_results_that_grading_did_not_write_are_one_line(tmp_path, text, capsys):
    (tmp_path / "results.json").write_text(text)
    assert call("export", tmp_path, "--gradescope") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "recreate it: labkit grade" in told


@pytest.mark.parametrize(
    "before, after, said",
    [
        ("", "15", []),
        ("12", "15", []),  # a better one, as after another hand-in
        ("15", "15", []),
        ("19.5", "15", ["a.ipynb had 19.5 and now gets 15"]),
        ("EX", "EX", ["a.ipynb has 'EX', which stays; graded 15"]),
    ],
)
def test_a_grade_that_stood_there_is_not_lost_in_silence(before, after, said):
    line = ["x", before]
    assert tables.put(line, 1, "15", "a.ipynb") == said
    assert line == ["x", after]


def test_canvas_gets_a_notebook_of_words_under_the_name_that_it_gave(tmp_path):
    rows = [row("x/doejane_12345_67890_02_lora.ipynb"), row("gödelkurt_LATE_12347_5_a.ipynb", 20)]
    rows.append(row("all/ada_12346_67890_lab2/nb/02_lora.ipynb"))  # a zip, which was unpacked
    rows[0].exercises[1].message = "got [1](http://x) <b> and `2`"
    comments.canvas(tmp_path / "c.zip", rows)
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    unpacked = "ada_12346_67890_lab2.zip"
    assert list(files) == [rows[0].submission[2:], rows[1].submission, unpacked]
    (inner,) = zipfile.ZipFile(io.BytesIO(files[unpacked])).namelist()
    assert inner == "02_lora.ipynb"
    book = nbformat.reads(files[rows[0].submission[2:]].decode(), 4)
    nbformat.validate(book)
    (cell,) = book.cells
    assert cell.cell_type == "markdown" and "# 15 of 20 points" in cell.source
    shown = MarkdownIt().render(cell.source)  # what a learner wrote is text, no link and no tag
    assert "got [1](http://x) &lt;b&gt; and `2`" in shown and "<a" not in shown


def test_the_command_writes_what_each_is_told_and_what_to_look_at(tmp_path, gradebook, capsys):
    rows = [row("all/Jane Doe_501_assignsubmission_file_/02_lora.ipynb"), row("b.ipynb")]
    report.write(tmp_path, rows, {r.submission: {"2.1": "def f(): pass"} for r in rows})
    assert call("export", tmp_path, "--moodle", gradebook(MOODLE)) == 1
    assert "LOOK: not matched: b.ipynb" in capsys.readouterr().out
    assert (tmp_path / "moodle.csv").is_file()
    with zipfile.ZipFile(tmp_path / "moodle-comments.zip") as archive:
        (name,) = archive.namelist()
        page = archive.read(name).decode()
    assert name == "Jane Doe_501_assignsubmission_file_/feedback.html"
    assert "15 of 20 points" in page and "<script>1 of" not in page


VISIBLE = {"hidden", "after_due_date", "after_published", "visible"}
FIELDS = {"score", "output", "output_format", "tests", "execution_time", "stdout_visibility"}
OF_TEST = {"score", "max_score", "name", "number", "status", "output", "output_format"}


def expect_gradescope(result):
    """The fields that Gradescope documents, with their types and values."""
    assert result.keys() == FIELDS and result["stdout_visibility"] == "hidden"
    assert isinstance(result["score"], int | float) and isinstance(result["output"], str)
    for test in result["tests"]:
        assert test.keys() == OF_TEST | {"visibility"}
        assert test["status"] in ("passed", "failed") and test["visibility"] in VISIBLE
        assert test["output_format"] == "text"  # so that no message becomes markup
        assert 0 <= test["score"] <= test["max_score"] and isinstance(test["output"], str)


def test_gradescope_gets_a_test_an_exercise_and_hears_of_what_was_not_graded():
    result = gradescope.as_gradescope(row("a.ipynb", 11))
    expect_gradescope(result)
    assert (result["score"], result["execution_time"]) == (11, 0.5)
    told = [(t["number"], t["status"], t["score"], t["output"]) for t in result["tests"]]
    assert told == [("2.1", "passed", 5, "passed"), ("2.8", "failed", 6, "<script>1 of 3 right")]
    result = gradescope.as_gradescope(lost("a.ipynb", "this is not JSON"))
    expect_gradescope(result)
    assert (result["score"], result["output"]) == (0, "unreadable: this is not JSON")


def test_gradescope_grades_without_a_sandbox_only_where_none_starts():
    fails = [sys.executable, "-c", "import sys; sys.exit(' '.join(sys.argv[1:]))"]
    for reason, again in (("the sandbox does not start: no", True), ("no notebook in 'x'", False)):
        done = gradescope.graded([*fails, reason])
        assert ("--unsafe" in done.stderr) == again


def test_only_the_lab_of_the_assignment_counts_and_of_it_the_best():
    rows = [row("a.ipynb", 9), row("b.ipynb", 12), row("c.ipynb", 20, lab="01_svd")]
    assert gradescope.choose(rows, "02_lora").submission == "b.ipynb"
    none = gradescope.as_gradescope(gradescope.choose(rows, "03_peft"))
    assert none["score"] == 0 and "no notebook of 03_peft" in none["output"]
    assert "c.ipynb (01_svd)" in none["output"]
    assert "nothing" in gradescope.choose([], "03_peft").reason
    empty = lost("a.ipynb", "the file is empty")
    assert gradescope.choose([empty], "02_lora") is empty
    assert gradescope.choose([row("a.ipynb", lab="02")], "02_lora").lab == "02_lora"


def test_the_command_writes_beside_the_results_and_exit_tells(tmp_path, gradebook, capsys):
    names = ("doejane_12345_1_a.ipynb", "x/../../doejane_12345_1_a.ipynb")
    rows = [row(name).data() for name in names]
    (tmp_path / "results.json").write_text(json.dumps(rows[:1]))
    assert call("export", tmp_path, "--canvas", gradebook(CANVAS)) == 0
    assert "students with points: 1" in capsys.readouterr().out
    assert table((tmp_path / "canvas.csv").read_text("utf-8"))[1]["Lab 2: LoRA (771)"] == "30"
    assert call("export", tmp_path, "--canvas", gradebook(CANVAS), "--lab", "2") == 0
    for name in ("canvas-02_lora.csv", "canvas-02_lora-comments.zip"):  # of each lab its own
        assert (tmp_path / name).is_file()
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert call("export", tmp_path, "--gradescope") == 0
    files = list((tmp_path / "gradescope").iterdir())
    assert len(files) == 2
    for file in files:
        expect_gradescope(json.loads(file.read_text("utf-8")))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "use one of --canvas GRADEBOOK.csv, --moodle"),
        (["--gradescope", "--moodle", "x.csv"], "use one of"),
        (["--moodle", "x.csv"], "results.json isn't there: run labkit grade"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, args, said):
    assert call("export", tmp_path, *args) == 2
    told = capsys.readouterr()
    assert told.out == "" and said in told.err and told.err.count("\n") == 1
