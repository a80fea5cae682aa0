"""The pages and tables that grading leaves, of classes friendly and hostile."""

import base64
import csv
import hashlib
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from labkit.grading.after import report, summary
from labkit.grading.row import Exercise, Row

ROOT = Path(__file__).parents[3]
LORA, PEFT = "02_lora", "03_peft"
OUTCOMES = [  # points of two, status, message
    (2, "passed", ""),
    (0, "failed", "lora_forward with x of shape (4, 5): alpha is not divided by r"),
    (0, "missing", ""),
    (1, "failed", "1 of 2 right\nq1 b, right: B A is zero.\nq2 a, not quite: most stay."),
    (2, "passed", ""),
    (0, "error", "it raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    (0, "revealed", ""),
]
CELL = """def answer{n}(x, W):
    \"\"\"x of shape (n, d_in) -> (n, d_out).\"\"\"
    return x @ W.T  # the number of this one is {n}
"""


def graded_class(n, lab=LORA):
    """`(rows, sources)` of n submissions of ten exercises, one in forty of them a crash."""
    rows, sources = [], {}
    for i in range(n):
        name = f"ada{i:04}_{i + 1000}_{i + 9000}_{lab}.ipynb"
        tries = []
        for j in range(10):
            points, status, message = OUTCOMES[(i * (j + 1) + j) % len(OUTCOMES)]
            tries.append(Exercise(f"{int(lab[:2])}.{j + 1}", f"f{j}", 2, points, status, message))
        earned = sum(e.earned for e in tries)
        rows.append(Row(name, "graded", "", lab, earned, 20, 0.2, tries))
        if i % 40 == 39:
            rows[i] = Row(name, "crashed", "it is gone", lab, 0, 20)
        sources[name] = {e.id: CELL.format(n=i + j) for j, e in enumerate(tries)}
    return rows, sources


class Page(HTMLParser):
    """The tags, links, ids and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.ids, self.attributes, self.words = [], [], [], [], []
        self.html = Path(path).read_text("utf-8")
        self.feed(self.html)
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.links += [value for key, value in attrs if key == "href"]
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_data(self, data):
        self.words.append(data)


def written(out, rows, sources):
    """`(the class page, the feedback pages by the name of the file)` of a report in `out`."""
    report.write(out, rows, sources)
    return Page(out / "index.html"), {p.name: Page(p) for p in (out / "feedback").iterdir()}


def table(out):
    with (out / "grades.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expect_whole(out):
    """Every link of the class page leads to a file inside out, and to an id that is there."""
    page = Page(out / "index.html")
    for link in page.links:
        file, _, anchor = unquote(link).partition("#")
        target = out / file if file else out / "index.html"
        assert target.resolve().is_relative_to(out.resolve()) and target.is_file(), link
        assert not anchor or anchor in Page(target).ids, link


def test_a_class_leaves_everything_that_was_promised(tmp_path):
    rows, sources = graded_class(45)
    page, pages = written(tmp_path, rows, sources)
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == [r.data() for r in rows]
    assert len(pages) == 45 and not list(tmp_path.rglob("*.part"))
    assert all(row.submission in page.text for row in rows) and "crashed: it is gone" in page.text
    expect_whole(tmp_path)


def test_grades_csv_has_a_row_a_submission_and_a_column_an_exercise(tmp_path):
    rows, _ = graded_class(41)
    report.write(tmp_path, rows, {})
    lines = table(tmp_path)
    for line, row in zip(lines, rows, strict=True):
        points = {e.id: str(e.earned) for e in row.exercises}
        assert {key: line[key] for key in points} == points
        known = (row.submission, str(row.earned), row.status, row.reason, str(row.percent))
        names = ("submission", "earned", "status", "reason", "percent")
        assert tuple(line[name] for name in names) == known
    assert lines[39]["2.1"] == ""
    assert list(lines[0])[-3:] == ["2.8", "2.9", "2.10"]


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</code></pre><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "=HYPERLINK(0)",
    "\u202egpj.ipynb\x00\x1b[31m",
    "half a character \udcff",
]


def test_the_feedback_page_shows_cells_messages_and_points(tmp_path):
    tries = [
        Exercise("2.1", "f", 2, 1, "failed", f"{EVIL[0]}\nr is 2"),
        Exercise("2.2", "g", 2, 0, "missing"),
        Exercise("2.3", "h", 2, 0, "missing"),
    ]
    source = f'def f(n, r):\n    return n * r < 3 & 4  # "so" {EVIL[2]}'
    cells = {"2.1": source, "2.2": "def g(): return 1\ndef h(): raise NotImplementedError"}
    row = Row("ada.ipynb", "graded", "", LORA, 1, 6, 0.1, tries)
    index, pages = written(tmp_path, [row], {"ada.ipynb": cells})
    page = pages["ada.html"]
    assert source in page.text and "1 of 6 points" in page.text and "failed" in page.text
    assert f"{EVIL[0]}\nr is 2" in page.text, "each fault has its line"
    assert EVIL[0] in index.text
    assert page.text.count("No answer was written") == 1, "what is half written is not called empty"


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_that_a_learner_sends_becomes_markup(tmp_path, evil):
    rows, sources = graded_class(3)
    rows[0].exercises[1] = Exercise("2.2", evil, 2, 0, "failed", evil)
    rows[1].submission, rows[1].reason, rows[1].status = f"{evil}.ipynb", evil, "crashed"
    sources[f"{evil}.ipynb"] = {"2.1": evil, "2.2": f"x = '{evil}'"}
    index, pages = written(tmp_path, rows, sources)
    for page in (index, *pages.values()):
        assert page.tags.count("script") == (page is index), "the one script, which sorts tables"
        assert "img" not in page.tags
        assert not [key for key, _ in page.attributes if key.startswith("on")]
        assert not [link for link in page.links if link.lower().startswith("javascript")]
        assert "default-src 'none'" in page.html
    expect_whole(tmp_path)


def test_the_only_script_is_the_one_that_the_page_allows(tmp_path):
    index, pages = written(tmp_path, *graded_class(1))
    script = index.html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in index.html
    assert not any("script-src" in page.html for page in pages.values())


@pytest.mark.thorough
def test_axe_finds_nothing_serious_and_a_keyboard_sorts(tmp_path, judged_by_axe, browser):
    rows, sources = graded_class(8)
    rows[3] = Row(rows[3].submission, "crashed", "it is gone", LORA, 0, 20)
    report.write(tmp_path, rows, sources)
    pages = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.html"))
    assert judged_by_axe(tmp_path, [pages[-1], *pages[:3]]) == []
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    points = page.locator(".who tbody td:nth-child(2)")
    page.locator(".who th", has_text="Points").press("Enter")
    shown = [float(text) for text in points.all_inner_texts()]
    assert shown == sorted(shown) and len(set(shown)) > 2
    page.locator(".who th", has_text="Points").press(" ")
    assert [float(text) for text in points.all_inner_texts()] == shown[::-1]
    page.set_viewport_size({"width": 390, "height": 844})  # what the class was told needs no scroll
    told = page.locator(".scroll", has=page.locator(".exercises")).first
    assert told.evaluate("box => box.scrollWidth <= box.clientWidth")
    page.close()


NAMES = ["a.ipynb", "A.ipynb", "x/02_lora.ipynb", "y/02_lora.ipynb", "../../x.ipynb", "/etc/passwd"]
NAMES += ["..", "", "Ada Lovelace_123_assignsubmission_file_/02_lora.ipynb", "Ünï çødé.ipynb"]
NAMES += ["名前.ipynb", "名字.ipynb", "n" * 240 + ".ipynb", "n" * 240 + "2.ipynb", "a%2fb.ipynb"]
NAMES += ["a#b?c.ipynb", "con\\aux:1.ipynb", "\udcff.ipynb", "\udcfe.ipynb", "²².ipynb"]
NAMES += ["new\nline.ipynb"]


def test_pages_land_inside_and_apart_whatever_the_names(tmp_path):
    tries = [Exercise("2.1", "f", 2, 2, "passed")]
    rows = [Row(name, "graded", lab=LORA, exercises=tries) for name in [*NAMES, NAMES[2]]]
    out = tmp_path / "deep" / "out"
    _, pages = written(out, rows, {})
    assert len(pages) == len(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    expect_whole(out)
    plain = ["ada.ipynb", "doejane_12345_67890_02_lora.ipynb", "b.v2.ipynb"]
    assert report.page_names(plain) == [name.replace(".ipynb", ".html") for name in plain]
    names = report.page_names(NAMES)
    assert len({name.lower() for name in names}) == len(NAMES)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", name) for name in names)
    assert report.page_names(NAMES[::-1]) == names[::-1]


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_spreadsheet_runs_nothing_as_a_formula(separator):
    names = ["=1+1.ipynb", "+x.ipynb", "@x.ipynb", "-x.ipynb", "\t=x.ipynb", "a;=1+1;  @x.ipynb"]
    text = report.grades([Row(name, "crashed", "x;y; -1") for name in names])
    for row in csv.reader(text.splitlines(), delimiter=separator):
        assert not [cell for cell in row if cell.strip()[:1] in ("=", "+", "-", "@")]


def test_several_labs_are_apart_and_a_lost_one_is_last(tmp_path):
    rows, _ = graded_class(4)
    more, _ = graded_class(3, PEFT)
    page, _ = written(tmp_path, [Row("zip.ipynb", "unreadable", "no JSON"), *more, *rows], {})
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", page.html)
    assert heads[:2] == [LORA, PEFT] and len(heads) == 3
    assert "unreadable: no JSON" in page.text
    lost, peft, *_, lora = table(tmp_path)
    assert lost["percent"] == lost["2.1"] == lost["lab"] == ""
    assert (peft["2.1"], lora["3.1"]) == ("", "") and peft["3.1"] != "" != lora["2.1"]
    expect_whole(tmp_path)


def test_an_empty_class_has_its_pages_too(tmp_path):
    written(tmp_path, [], {})
    assert (tmp_path / "grades.csv").read_text("utf-8").startswith("submission,lab,earned")
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == []


def test_writing_again_replaces_pages_and_removes_what_is_gone(tmp_path):
    rows, sources = graded_class(3)
    written(tmp_path, rows, sources)
    for row in rows:
        row.exercises[0].message = "quite another message"
    index, after = written(tmp_path, rows[:2], sources)
    assert set(after) == set(report.page_names([row.submission for row in rows[:2]]))
    assert all("quite another" in page.text for page in (index, *after.values()))


def test_the_class_page_counts_what_was_misunderstood():
    easy = [(2, "passed", ""), (2, "passed", ""), (2, "passed", "")]
    hard = [(0, "failed", "got 3.5"), (0, "failed", "got -4e-3"), (0, "missing", "")]
    half = [(1, "failed", "b"), (2, "passed", ""), (0, "failed", "a")]
    rows = []
    for earned, *outcomes in zip((3, 6, 0), easy, hard, half, strict=True):
        ids = zip(("1.1", "1.10", "1.2"), outcomes, strict=True)
        tries = [Exercise(id, "f", 2, *outcome) for id, outcome in ids]
        rows.append(Row(f"{earned}", "graded", "", "x", earned, 6, exercises=tries))
    (group,) = summary.by_lab(rows)
    assert [e["id"] for e in group["exercises"]] == ["1.1", "1.2", "1.10"]
    assert group["hardest"] == ["1.10", "1.2"]
    assert [e["share"] for e in group["exercises"]] == [1, 0.5, 0]
    assert group["exercises"][2]["messages"] == [(2, "got 3.5")]
    assert (group["mean"], group["median"], group["full"]) == (50, 50, 1)
    assert group["bars"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_each_fault_of_a_message_counts_once_and_what_is_nobodys_mistake_does_not():
    quiz = ["1 of 3 right\nq1 b, right: yes.\nq2 a, not quite: no."]
    quiz += ["0 of 3 right\nq1 c, not quite: well.\nq2 a, not quite: no."]
    wanted = [(2, "q2 a, not quite: no."), (1, "q1 c, not quite: well.")]
    assert summary.frequent(quiz) == wanted
    lent = "tested with the course's code for {}, which you haven't solved yet"
    lent = [lent.format(ids) for ids in ("2.2", "2.1 and 2.2")]
    told = [*lent, *(f"B is None ({how})" for how in lent), "B is None"]
    assert summary.frequent(told) == [(3, "B is None")]
    told = ["\n".join(["it is 3 times too large"] * 27), "it is 4 times too large\nB is None", ""]
    assert summary.frequent(told) == [(2, "it is 3 times too large"), (1, "B is None")]


def test_how_an_exercise_goes_with_the_rest_is_numpy_s_correlation(tmp_path):
    points = np.random.default_rng(0).integers(0, 4, (40, 3))
    points[:, 2] = 3  # all have it: nothing goes with it
    rows = []
    for i, line in enumerate(points.tolist()):
        told = f"it is {i} times too large"
        tries = [Exercise(f"2.{k + 1}", "f", 3, p, "failed", told) for k, p in enumerate(line)]
        rows.append(Row(f"{i}.ipynb", "graded", "", LORA, sum(line), 9, exercises=tries))
    wanted = np.corrcoef(points[:, 0], points[:, 1] + points[:, 2])[0, 1]
    assert summary.with_the_rest(rows, "2.1") == pytest.approx(wanted)
    assert summary.with_the_rest(rows, "2.3") is None
    assert summary.with_the_rest(rows[:9], "2.1") is None  # too few
    index, _ = written(tmp_path, rows, {})
    first, second, _ = csv.DictReader((tmp_path / "items.csv").read_text("utf-8").splitlines())
    assert float(first["rest"]) == pytest.approx(wanted, abs=1e-3)
    assert float(second["share"]) == pytest.approx(points[:, 1].sum() / 120, abs=1e-3)
    assert (first["times"], first["message"]) == ("40", "it is 0 times too large")
    assert f"{wanted:.2f}" in index.html


def test_a_huge_cell_and_message_are_cut_and_quick(tmp_path):
    rows, sources = graded_class(1)
    rows[0].exercises[0] = Exercise("2.1", "f", 2, 0, "failed", "x" * 10**6)
    sources[rows[0].submission] = {"2.1": "f'{" * 10**6, "2.2": "(" * 10**6 + '"' * 10**6}
    start = time.process_time()
    _, pages = written(tmp_path, rows, sources)
    assert time.process_time() - start < 5
    (page,) = pages.values()
    assert len(page.html) < 2_000_000 and "The rest of this cell is not shown" in page.text


def test_a_thousand_submissions_take_seconds(tmp_path):
    rows, sources = graded_class(1000)
    start = time.process_time()
    report.write(tmp_path, rows, sources)
    assert time.process_time() - start < 15  # 3 on an idle core; what is quadratic takes minutes
    assert (tmp_path / "index.html").stat().st_size < 6_000_000
