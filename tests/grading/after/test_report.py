"""The pages and tables that grading leaves, from generated classes, friendly and hostile."""

import base64
import csv
import hashlib
import html
import json
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from labkit.grading.after import report, summary
from labkit.grading.after.highlight import highlighted
from labkit.grading.row import Exercise, Row

ROOT = Path(__file__).parents[3]
LABS = {
    "02_lora": "lora_forward LoRALinear lora_gradients inject step_flops merge_ adapter_state quiz "
    "mine mine_too",
    "03_peft": "lora_config sft_config format_example answer_loss field_accuracy quiz",
}
MESSAGES = [
    "lora_forward with x of shape (4, 5): alpha is not divided by r",
    "B is not zero at the start; B must start at zero, so that training starts from the base model",
    "it raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x5 and 3x5); is a "
    "transpose (.T) missing or one too many? (line 3 of the cell: `return x @ W`)",
]
QUIZ = "{} of 3 right\nq1 b, right: B A is zero.\nq2 {}, not quite: most of them stay."
CELL = """def {name}(x, W, A, B, alpha):
    \"\"\"x of shape (n, d_in) -> (n, d_out).\"\"\"
    scale = alpha / {n}  # r is the number of rows of A
    return x @ W.T + scale * (x @ A.T) @ B.T
"""


def exercise(rng, id, name, skill):
    """One row of `exercises`, and the learner's cell."""
    points = 3 if name == "quiz" else 1 + len(name) % 3
    row = {"id": id, "name": name, "points": points, "earned": 0, "message": ""}
    draw = rng.random()
    if draw < skill:
        row |= {"status": "passed", "earned": points}
    elif draw < skill + 0.15:
        return row | {"status": "missing"}, f"def {name}(x):\n    raise NotImplementedError\n"
    elif name == "quiz":
        row |= {"status": "failed", "earned": 1}
        row["message"] = QUIZ.format(1, rng.choice("ab"))
    else:
        row["status"] = rng.choice(["failed"] * 6 + ["error", "timeout", "revealed"])
        row["message"] = rng.choice(MESSAGES) if row["status"] != "revealed" else ""
    return row, CELL.format(name=name, n=rng.randint(1, 99))


def graded_class(n, lab="02_lora", seed=0):
    """`(results, sources)` of n submissions, one in forty of them unreadable, crashed or late."""
    rng, results, sources = random.Random(seed), [], {}
    for i in range(n):
        first = rng.choice(["ada", "grace", "kurt", "emmy", "alan"])
        name, skill = f"{first}{i:04}_{i + 1000}_{i + 9000}_{lab}.ipynb", rng.random()
        tries = [
            exercise(rng, f"{int(lab[:2])}.{j}", title, skill)
            for j, title in enumerate(LABS[lab].split(), 1)
        ]
        sources[name] = {row["id"]: source for row, source in tries}
        rows = [row for row, _ in tries]
        earned, possible = (sum(r[key] for r in rows) for key in ("earned", "points"))
        row = {"submission": name, "lab": lab, "earned": earned, "possible": possible}
        row |= {"seconds": 0.2, "status": "graded", "exercises": rows}
        if i % 40 == 39:
            state = rng.choice(["unreadable", "crashed", "timeout"])
            row |= {"status": state, "reason": f"it is {state}", "earned": 0, "exercises": []}
        results.append(row)
    return results, sources


def _rows(results):
    return [Row.of(result) for result in results]


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


def written(out, results, sources):
    """Write the report into out and return its class page."""
    report.write(out, _rows(results), sources)
    return Page(out / "index.html")


def expect_whole(out):
    """Every link of the class page leads to a file inside out, and to an id that is there."""
    page = Page(out / "index.html")
    for link in page.links:
        file, _, anchor = unquote(link).partition("#")
        target = out / file if file else out / "index.html"
        assert target.resolve().is_relative_to(out.resolve()) and target.is_file(), link
        assert not anchor or anchor in Page(target).ids, link


def test_a_class_leaves_everything_that_was_promised(tmp_path):
    results, sources = graded_class(45)
    page = written(tmp_path, results, sources)
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == results
    assert len(list((tmp_path / "feedback").iterdir())) == 45
    assert not list(tmp_path.rglob("*.part"))
    expect_whole(tmp_path)
    for row in results:
        assert row["submission"] in page.text
        if row["status"] != "graded":
            assert f"{row['status']}: {row['reason']}" in page.text


def test_grades_csv_has_a_row_a_submission_and_a_column_an_exercise(tmp_path):
    results, _ = graded_class(41)
    report.write(tmp_path, _rows(results), {})
    rows = list(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8", newline="")))
    assert [row["submission"] for row in rows] == [row["submission"] for row in results]
    for row, result in zip(rows, results, strict=True):
        points = {e["id"]: str(e["earned"]) for e in result["exercises"]}
        assert {key: row[key] for key in points} == points
        assert (row["earned"], row["status"]) == (str(result["earned"]), result["status"])
        assert row["percent"] == str(round(100 * result["earned"] / result["possible"], 1))
    assert rows[39]["2.1"] == "" and rows[39]["reason"] == results[39]["reason"]
    assert list(rows[0])[-3:] == ["2.8", "2.9", "2.10"]


def test_the_feedback_page_shows_cell_message_and_points(tmp_path):
    source = 'def step_flops(n, r):\n    return n * r < 3 & 4  # "so"\n'
    row = {"id": "2.5", "name": "step_flops", "points": 2, "earned": 0, "status": "failed"}
    row["message"] = "for step_flops({q: (4, 8)}, 1) the result should be 192, not 96"
    result = {"submission": "ada.ipynb", "lab": "02_lora", "earned": 0, "possible": 2}
    result |= {"seconds": 1.0, "status": "graded", "exercises": [row]}
    report.write(tmp_path, _rows([result]), {"ada.ipynb": {"2.5": source}})
    page = Page(tmp_path / "feedback/ada.html")
    assert source.strip() in page.text and row["message"] in page.text
    assert "0 of 2 points" in page.text and "failed" in page.text
    assert '<span class="k">return</span>' in page.html


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


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_that_a_learner_sends_becomes_markup(tmp_path, evil):
    results, sources = graded_class(3)
    for key in ("name", "message"):
        results[0]["exercises"][1][key] = evil
    results[0]["exercises"][1]["status"] = "failed"
    results[1] |= {"submission": f"{evil}.ipynb", "reason": evil, "status": "crashed"}
    sources[f"{evil}.ipynb"] = {"2.1": evil, "2.2": f"x = '{evil}'"}
    expected = {"index.html": 1}  # the one script, which sorts tables
    report.write(tmp_path, _rows(results), sources)
    for path in tmp_path.rglob("*.html"):
        page = Page(path)
        assert page.tags.count("script") == expected.get(path.name, 0)
        assert "img" not in page.tags
        assert not [key for key, _ in page.attributes if key.startswith("on")]
        assert not [link for link in page.links if link.lower().startswith("javascript")]
        assert "default-src 'none'" in page.html
    expect_whole(tmp_path)


def test_what_was_sent_is_shown_as_it_is(tmp_path):
    results, sources = graded_class(1)
    results[0]["exercises"][0] |= {"status": "failed", "message": EVIL[0]}
    sources[results[0]["submission"]]["2.1"] = f"x = 1  # {EVIL[2]}"
    page = written(tmp_path, results, sources)
    feedback = Page(next((tmp_path / "feedback").iterdir()))
    assert EVIL[0] in page.text and EVIL[0] in feedback.text and EVIL[2] in feedback.text


def test_the_only_script_is_the_one_that_the_page_allows(tmp_path):
    page = written(tmp_path, *graded_class(1))
    script = page.html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.html
    assert "script-src" not in next((tmp_path / "feedback").iterdir()).read_text("utf-8")


NAMES = [
    "a.ipynb",
    "A.ipynb",
    "x/02_lora.ipynb",
    "y/02_lora.ipynb",
    "../../x.ipynb",
    "/etc/passwd",
    "..",
    "",
    "Ada Lovelace_123_assignsubmission_file_/02_lora.ipynb",
    "Ünï çødé.ipynb",
    "名前.ipynb",
    "名字.ipynb",
    "n" * 240 + ".ipynb",
    "n" * 240 + "2.ipynb",
    "a%2fb.ipynb",
    "a#b?c.ipynb",
    "con\\aux:1.ipynb",
    "\udcff.ipynb",
    "\udcfe.ipynb",
    "²².ipynb",
    "new\nline.ipynb",
]


@pytest.mark.thorough
def test_axe_finds_nothing_serious_and_a_keyboard_sorts(tmp_path, judged_by_axe, browser):
    results, sources = graded_class(8)
    results[3] |= {"status": "crashed", "reason": "it is gone", "exercises": []}
    written(tmp_path, results, sources)
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


def test_pages_land_inside_and_apart_whatever_the_names(tmp_path):
    results = [{**graded_class(1)[0][0], "submission": name} for name in [*NAMES, NAMES[2]]]
    out = tmp_path / "deep" / "out"
    page = written(out, results, {name: {"2.1": "x = 1"} for name in NAMES})
    assert len(list((out / "feedback").iterdir())) == len(results)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert "feedback/a-" in page.html and "..html" not in page.html
    expect_whole(out)
    names = report.page_names(NAMES)
    assert len({name.lower() for name in names}) == len(NAMES)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", name) for name in names)
    assert report.page_names(NAMES[::-1]) == names[::-1]


def test_plain_names_are_kept():
    plain = ["ada.ipynb", "doejane_12345_67890_02_lora.ipynb", "b.v2.ipynb"]
    wanted = ["ada.html", "doejane_12345_67890_02_lora.html", "b.v2.html"]
    assert report.page_names(plain) == wanted


@pytest.mark.parametrize("name", ["=1+1.ipynb", "+x.ipynb", "@x.ipynb", "-x.ipynb", "\t=x.ipynb"])
def test_a_spreadsheet_runs_no_name_as_a_formula(name):
    text = report.grades([Row(name, "crashed")])
    assert next(csv.DictReader(text.splitlines()))["submission"].startswith("'")


def test_no_formula_where_semicolons_part_the_columns():
    text = report.grades([Row("a;=1+1;  @x.ipynb", "crashed", "x;y; -1")])
    for row in csv.reader(text.splitlines(), delimiter=";"):
        assert not [cell for cell in row if cell.strip()[:1] in ("=", "+", "-", "@")]


def test_several_labs_are_apart_and_a_lost_one_is_last(tmp_path):
    results, sources = graded_class(4)
    more, others = graded_class(3, "03_peft", seed=1)
    lost = {"submission": "zip.ipynb", "lab": None, "earned": 0, "possible": 0, "seconds": 0.0}
    lost |= {"status": "unreadable", "reason": "this is not JSON", "exercises": []}
    page = written(tmp_path, [lost, *more, *results], sources | others)
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", page.html)
    assert heads == ["02_lora", "03_peft", "No lab recognised"]
    assert "unreadable: this is not JSON" in page.text
    table = list(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8", newline="")))
    assert table[0]["percent"] == table[0]["2.1"] == "" and table[0]["lab"] == ""
    assert table[1]["2.1"] == "" and table[1]["3.1"] != "" and table[4]["3.1"] == ""
    expect_whole(tmp_path)


def test_an_empty_class_has_its_pages_too(tmp_path):
    page = written(tmp_path, [], {})
    assert "Nothing was graded yet" in page.text
    assert (tmp_path / "grades.csv").read_text("utf-8").startswith("submission,lab,earned")
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == []


def test_writing_again_replaces(tmp_path):
    results, sources = graded_class(2)
    report.write(tmp_path, _rows(results), sources)
    results[0]["exercises"][0]["message"] = "quite another message"
    page = written(tmp_path, results, sources)
    assert "quite another message" in page.text
    assert len(list(tmp_path.rglob("*.html"))) == 3


def tries(id, *outcomes):
    """Rows of one exercise of two points: (status, earned, message) each."""
    keys = ("status", "earned", "message")
    same = {"id": id, "name": "f", "points": 2}
    return [same | dict(zip(keys, outcome, strict=True)) for outcome in outcomes]


def test_a_submission_that_is_gone_leaves_no_page(tmp_path):
    results, sources = graded_class(3)
    report.write(tmp_path, _rows(results), sources)
    report.write(tmp_path, _rows(results[:1]), sources)
    pages = [page.name for page in (tmp_path / "feedback").iterdir()]
    assert pages == report.page_names([results[0]["submission"]])


def test_the_class_page_counts_what_was_misunderstood():
    easy = tries("1.1", ("passed", 2, ""), ("passed", 2, ""), ("passed", 2, ""))
    hard = tries("1.10", ("failed", 0, "got 3.5"), ("failed", 0, "got -4e-3"), ("missing", 0, ""))
    half = tries("1.2", ("failed", 1, "b"), ("passed", 2, ""), ("failed", 0, "a"))
    rows = [
        {"submission": str(i), "lab": "x", "status": "graded", "exercises": list(e), "possible": 6}
        for i, e in enumerate(zip(easy, hard, half, strict=True))
    ]
    for row, earned in zip(rows, (3, 6, 0), strict=True):
        row["earned"] = earned
    (group,) = summary.by_lab(_rows(rows))
    assert [e["id"] for e in group["exercises"]] == ["1.1", "1.2", "1.10"]
    assert group["hardest"] == ["1.10", "1.2"]
    assert [e["share"] for e in group["exercises"]] == [1, 0.5, 0]
    assert group["exercises"][2]["messages"] == [(2, "got 3.5")]
    assert (group["mean"], group["median"], group["full"]) == (50, 50, 1)
    assert group["bars"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_of_a_quiz_each_wrong_answer_counts():
    told = [
        "1 of 3 right\nq1 b, right: yes.\nq2 a, not quite: no.\nq3 a, not quite: never.",
        "2 of 3 right\nq1 b, right: yes.\nq2 a, not quite: no.\nq3 b, right: so it is.",
        "2 of 3 right\nq1 c, not quite: well.\nq2 c, right: yes.\nq3 b, right: so it is.",
    ]
    assert summary.frequent(told)[0] == (2, "q2 a, not quite: no.")
    assert {text for _, text in summary.frequent(told)[1:]} == {
        "q1 c, not quite: well.",
        "q3 a, not quite: never.",
    }


def test_that_an_exercise_was_judged_with_the_courses_own_is_nobodys_mistake():
    one = "judged with the course's own 2.2, which is open"
    more = "B is None (judged with the course's own 2.1 and 2.2, which are open)"
    assert summary.frequent([one, one, more, "B is None", f"B is None ({one})"]) == [
        (3, "B is None")
    ]


def test_a_message_counts_once_a_submission_however_often_it_repeats_itself():
    told = ["\n".join(["it is 3 times too large"] * 27), "it is 4 times too large\nB is None", ""]
    assert summary.frequent(told) == [(2, "it is 3 times too large"), (1, "B is None")]


def test_each_fault_of_a_message_has_its_line(tmp_path):
    results, sources = graded_class(1)
    results[0]["exercises"][0] |= {"status": "failed", "message": "alpha is missing\nr is 2"}
    report.write(tmp_path, _rows(results), sources)
    assert "alpha is missing\nr is 2" in Page(next((tmp_path / "feedback").iterdir())).text


def test_a_cell_that_is_half_written_is_not_called_empty(tmp_path):
    results, sources = graded_class(1)
    missing = {"status": "missing", "earned": 0, "message": ""}
    results[0]["exercises"][0] |= missing
    results[0]["exercises"][1] |= missing
    first, second = (e["id"] for e in results[0]["exercises"][:2])
    (cells,) = sources.values()
    cells[first], cells[second] = "def one(): return 1\ndef two(): raise NotImplementedError", ""
    written(tmp_path, results, sources)
    text = Page(next((tmp_path / "feedback").iterdir())).text
    assert "Not written to its end: NotImplementedError is still raised here." in text
    assert "Nothing was written here." in text


def test_a_page_whose_cells_are_not_given_stays_as_it_is(tmp_path):
    results, sources = graded_class(2)
    report.write(tmp_path, _rows(results), sources)
    first, second = (tmp_path / "feedback" / name for name in report.page_names(list(sources)))
    before, after = first.read_text("utf-8"), second.read_text("utf-8")
    for row in results:
        row["exercises"][0]["message"] = "quite another message"
    report.write(tmp_path, _rows(results), {results[1]["submission"]: {}})
    assert first.read_text("utf-8") == before and second.read_text("utf-8") != after


def test_highlighting_loses_nothing():
    for path in ROOT.glob("labkit/**/*.py"):
        source = path.read_text("utf-8")
        text = html.unescape(re.sub(r"</?span[^>]*>", "", highlighted(source)))
        assert text.strip("\n") == source.strip("\n"), path


def test_highlighting_tells_strings_comments_keywords_and_numbers_apart():
    source = """def f1(x=2.5e3):  # the 'one'\n    return rf'a#{x}' + 'open\n    pass"""
    found = re.findall(r'<span class="(\w)">(.*?)</span>', highlighted(source), re.DOTALL)
    assert [(kind, html.unescape(text)) for kind, text in found] == [
        ("k", "def"),
        ("m", "2.5e3"),
        ("c", "# the 'one'"),
        ("k", "return"),
        ("s", "rf'a#{x}'"),
        ("s", "'open"),
        ("k", "pass"),
    ]
    doc = highlighted('"""if\n# 1"""')
    assert doc.count('class="s"') == 2 and 'class="k"' not in doc and 'class="c"' not in doc


UGLY = ["f'{", '\\"', '"""', "'", "(", "rb", "\\", "'''\\'", " ", "1.", "é'", "\r\n#", "\x00"]


@pytest.mark.parametrize("ugly", UGLY)
def test_highlighting_takes_no_time_whatever_is_sent(ugly):
    start = time.process_time()
    text = highlighted(ugly * (20_000 // len(ugly)))
    assert time.process_time() - start < 2 and len(text) < 1_000_000


def test_a_huge_cell_and_message_are_cut_and_quick(tmp_path):
    results, sources = graded_class(1)
    name = results[0]["submission"]
    results[0]["exercises"][0] |= {"status": "failed", "message": "x" * 10**6}
    sources[name] = {"2.1": "f'{" * 10**6, "2.2": "\\" * 10**6, "2.3": "(" * 10**6 + '"' * 10**6}
    start = time.process_time()
    report.write(tmp_path, _rows(results), sources)
    assert time.process_time() - start < 5
    page = next((tmp_path / "feedback").iterdir())
    assert page.stat().st_size < 2_000_000
    assert "the rest is not shown" in Page(page).text


def test_a_thousand_submissions_take_seconds(tmp_path):
    results, sources = graded_class(1000)
    start = time.process_time()
    report.write(tmp_path, _rows(results), sources)
    assert time.process_time() - start < 15  # 3 on an idle core; what is quadratic takes minutes
    assert (tmp_path / "index.html").stat().st_size < 6_000_000


def test_how_an_exercise_goes_with_the_rest_is_numpy_s_correlation(tmp_path):
    import numpy as np
    import pandas as pd

    points = np.random.default_rng(0).integers(0, 4, (40, 3))
    points[:, 2] = 3  # all have it: nothing goes with it
    rows = [
        Row(
            f"{i}.ipynb",
            "graded",
            lab="02_lora",
            earned=int(sum(line)),
            possible=9,
            exercises=[
                Exercise(f"2.{k + 1}", "f", 3, int(p), "failed", f"it is {i} times too large")
                for k, p in enumerate(line)
            ],
        )
        for i, line in enumerate(points)
    ]
    wanted = np.corrcoef(points[:, 0], points[:, 1] + points[:, 2])[0, 1]
    assert summary.with_the_rest(rows, "2.1") == pytest.approx(wanted)
    assert summary.with_the_rest(rows, "2.3") is None
    assert summary.with_the_rest(rows[:9], "2.1") is None  # too few
    report.write(tmp_path, rows, {})
    table = pd.read_csv(tmp_path / "items.csv", dtype={"id": str}).set_index("id")
    assert table.rest["2.1"] == pytest.approx(wanted, abs=1e-3)
    assert table.share["2.2"] == pytest.approx(points[:, 1].sum() / 120, abs=1e-3)
    assert table.times["2.1"] == 40 and table.message["2.1"] == "it is 0 times too large"
    assert f"{wanted:.2f}" in (tmp_path / "index.html").read_text("utf-8")
