"""The book around the labs: pages, links, words for pictures, no network, and nobody shut out."""

import posixpath
import re
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from labs_that_ran import JSON, POINT, RAN, books_and_results, execute_here

from labkit.course import book, claims, evidence, executed

ROOT = Path(__file__).parents[2]
LABS = sorted(path.stem for path in ROOT.glob("labs/*.py"))
DOCS = sorted(ROOT.glob("docs/**/*.md"))
OWN = {"index", "labs", "claims", "evidence", "guides", "search"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.html, self.text = text, ""
        self.links, self.loads, self.ids, self.images = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.images += [attrs] if tag == "img" else []
        for key in {"href", "src"} & set(attrs):
            (self.links if tag == "a" else self.loads).append(attrs[key])

    def handle_data(self, data):
        self.text += f" {data}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the book of this course, of whose labs two have run."""
    out = tmp_path_factory.mktemp("book")
    books, results = books_and_results()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "execute", execute_here)
        assert book.write(out, ROOT, books, results) == "", "Sphinx complains"
    return out


@pytest.fixture(scope="module")
def pages(built):
    paths = [*sorted(built.glob("*.html")), *sorted(built.glob("evidence/*.html"))]
    return {str(path.relative_to(built)): Page(path.read_text("utf-8")) for path in paths}


@pytest.fixture
def opened(built, browser):
    """`opened(name, width)`: a page of the book in a window of the browser."""
    context = browser.new_context()

    def page(name, width=1440):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((built / f"{name}.html").as_uri())
        return page

    yield page
    context.close()


def test_every_lab_and_guide_is_a_page(pages):
    docs = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in DOCS}
    assert len(docs) >= 5 and len(LABS) >= 7
    assert set(pages) == {f"{name}.html" for name in docs | OWN | set(LABS)}
    for path in DOCS:
        assert re.match(r"# .+\n\n[A-Z`].+", path.read_text("utf-8")), "title and what it is for"


def test_evidence_is_run_with_its_code_folded_and_linked_from_its_lab(built, pages):
    page = pages["evidence/01_svd.html"]
    assert page.images and '<details class="fold">' in page.html
    for image in page.images:
        assert image["alt"] and (built / "evidence" / image["src"]).is_file()
    assert "evidence/01_svd.html" in pages["evidence.html"].links
    assert any(link.startswith("evidence/01_svd.html#") for link in pages["01_svd.html"].links)


def test_evidence_that_fails_is_one_line(tmp_path):
    (tmp_path / "docs/evidence").mkdir(parents=True)
    text = "# A page\n\nThe runs.\n\n## Per rank\n\n```{code-cell} python\n1 / 0\n```\n"
    (tmp_path / "docs/evidence/90_made_up.md").write_text(text, "utf-8")
    _, (failed,) = evidence.pages(tmp_path, tmp_path)
    assert (failed.lab, failed.status) == ("evidence/90_made_up", "failed")
    assert failed.error == "in 'Per rank': ZeroDivisionError: division by zero"


def test_every_link_and_file_is_there(built, pages):
    for name, page in pages.items():
        for link in page.links + page.loads:
            if re.match(r"https?:|data:|mailto:", link):
                continue
            file, _, anchor = link.partition("#")
            file = file.partition("?")[0]
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), file))
            target = target if file else name
            assert (built / target).exists(), (name, link)
            assert not anchor or target not in pages or anchor in pages[target].ids, (name, link)


def test_no_page_loads_anything_from_elsewhere(built, pages):
    for name, page in pages.items():
        assert not [load for load in page.loads if re.match(r"(https?:)?//", load)], name
        assert not re.search(r"\bimport\(|\bimportScripts|https?://[^\"' ]+\.js\b", page.html), name
    for path in built.glob("_static/**/*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text("utf-8")), path


def test_a_claim_leads_to_the_cell_that_measures_it(pages):
    page = pages["claims.html"]
    text = " ".join(page.text.split())
    for claim in claims.load():
        assert claim.id in page.ids
        assert " ".join(claim.claim.split()) in text and " ".join(claim.right.split()) in text
    places = [link for link in page.links if re.match(r"(evidence/)?\d\d_\w+\.html#", link)]
    assert len(places) == sum(len(claim.where) for claim in claims.load()) > 40
    assert 'id="lab02-before-and-after"' in pages["02_lora.html"].html  # of an experiment


def test_labs_that_ran_have_their_outputs_and_the_others_say_so(pages):
    for stem in LABS:
        page = pages[f"{stem}.html"]
        assert ("not run here" in page.text) == (stem not in RAN)
        assert ("pictures/" in page.html) == (stem in RAN)
        assert f"notebooks/{stem}.ipynb" in page.links
        (colab,) = [link for link in page.links if "colab.research" in link]
        assert colab.endswith(f"/notebooks/{stem}.ipynb")  # the student's
    assert "noise of a bar" not in pages["01_svd.html"].text
    assert "a slider" not in pages["01_svd.html"].text
    assert "@title Set-up" not in pages["01_svd.html"].text


def test_each_picture_says_its_point_and_can_be_seen_alone(built, pages):
    shown = [image for name in RAN for image in pages[f"{name}.html"].images]
    for image in shown:
        assert image["alt"] == POINT
        assert (built / image["src"]).is_file()
        assert int(image["width"]) > 2 * int(image["height"])
    assert f"{RAN[0]}-2.png" in pages["01_svd.html"].html
    wanted = {f"{stem}-{n}.png" for stem in RAN for n in (1, 2)}
    assert {path.name for path in built.glob("pictures/0*")} == wanted


def test_the_first_page_and_the_table_say_how_each_lab_went(pages):
    first, table = (" ".join(pages[f"{name}.html"].text.split()) for name in ("index", "labs"))
    photo, *covers = pages["index.html"].images
    assert "rank" in photo["alt"] and len(covers) == len(RAN)
    assert "half < all" in first and "Not run here." in first
    assert "ValueError: no <rank>" in table and "2 labs run 120 6 of 8" in table
    assert f"with torch {version('torch')}, transformers" in table
    assert table.count("not run") == len(LABS) - len(RAN)


def notebook(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# L"), *cells])


def test_a_cover_is_the_last_picture_of_the_tagged_cell_else_of_the_lab(tmp_path):
    lab = notebook("x", "x", "x")
    for cell in lab.cells[1:]:
        dot = {"image/png": "iVBORw0KGgo="}
        cell.outputs = [nbformat.v4.new_output("display_data", data=dot)]
    assert "01_a-3.png" in executed.page(lab, "01_a", tmp_path).metadata.cover
    lab.cells[2].metadata["tags"] = ["cover"]
    assert "01_a-2.png" in executed.page(lab, "01_a", tmp_path).metadata.cover


def test_an_answer_is_folded_below_its_stub_and_so_is_what_a_quiz_says(tmp_path):
    sources = ["x = 1", "def f(): 42", "check.f(f)", "check.quiz(quiz)"]
    solved, stub = notebook(*sources), notebook("x = 1", "def f(): TODO", *sources[2:])
    made = executed.page(solved, "01_a", tmp_path, stub).cells
    assert [(cell.source, cell.metadata.get("tags")) for cell in made[1:]] == [
        ("x = 1", None),
        ("def f(): TODO", None),
        ("def f(): 42", ["hide-input"]),
        ("check.f(f)", None),
        ("check.quiz(quiz)", ["hide-output"]),
    ]
    stub.cells.pop()  # of another build: all is shown
    assert len(executed.page(solved, "01_a", tmp_path, stub).cells) == len(solved.cells)


def test_an_answer_is_read_by_who_opens_it_and_on_paper(pages, opened):
    assert pages["01_svd.html"].html.count("<summary>The course&#x27;s answer</summary>") >= 2
    page = opened("01_svd")
    summary = page.locator("details.fold > summary").first
    answer = page.locator("details.fold div.cell_input").first
    seen = "part => part.checkVisibility({contentVisibilityAuto: true})"
    for medium, shown in (("print", True), ("screen", False)):
        page.emulate_media(media=medium)
        assert answer.evaluate(seen) == shown
        assert summary.evaluate(seen) != shown
    summary.focus()
    page.keyboard.press("Enter")
    assert answer.is_visible()


def test_each_page_says_its_version_and_leads_to_its_source_and_to_a_report(pages):
    for page in pages.values():
        text = " ".join(page.text.split())
        assert re.search(r"v[\d.]+, Apache-2\.0\b.* 20\d\d-\d\d-\d\d", text)
    for name, source in (("02_lora", "labs/02_lora.py"), ("learner", "docs/learner.md")):
        links = [link for link in pages[f"{name}.html"].links if link.startswith("https://github")]
        assert any(link.endswith(source) and "/blob/v" in link for link in links)
        assert any("/issues/new?title=" in link for link in links)


@pytest.mark.parametrize("stem", LABS)
def test_every_formula_is_understood_and_needs_no_script(pages, stem):
    html = pages[f"{stem}.html"].html
    assert html.count("<math") > 3
    assert "$" not in re.sub(r"<(code|pre)\b.*?</\1>", "", html, flags=re.S)
    assert not re.findall(r"<m(?:i|text)>\\\w+</m", html), "a word of TeX is shown as it is"


def test_every_paper_that_is_named_has_a_row():
    number = re.compile(r"[/(, ]([12]\d[01]\d\.\d{4,5})\b")  # of arXiv
    listed = set(number.findall((ROOT / "docs" / "papers.md").read_text("utf-8")))
    files = [*ROOT.glob("labs/*.py"), *ROOT.glob("labkit/memory/*.py")]
    files += [ROOT / "labkit" / "course" / "claims.toml", ROOT / "docs" / "memory.md"]
    named = {n for path in files for n in number.findall(path.read_text("utf-8"))}
    assert len(named) > 15 and named <= listed, f"docs/papers.md lacks {named - listed}"


@pytest.mark.thorough
def test_axe_finds_nothing_serious_and_nothing_is_fetched(built, pages, judged_by_axe):
    assert judged_by_axe(built, sorted(pages)) == []


def test_on_a_phone_pictures_keep_their_letters_and_tables_and_answers_wrap(opened):
    page = opened("01_svd", width=390)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    image = page.locator("a.picture img").first
    shown, natural = image.bounding_box()["width"], int(image.get_attribute("width"))
    assert shown == pytest.approx(0.75 * natural, abs=1) and shown > 500
    inside = "cell => cell.scrollWidth <= cell.clientWidth + 1"
    cells = page.locator("td", has_text=JSON[:20])
    assert cells.count() == 3 and all(cell.evaluate(inside) for cell in cells.all())
    boxes = [cell.bounding_box() for cell in opened("labs", width=390).locator("td").all()]
    assert len(boxes) > len(LABS) and all(box["x"] + box["width"] <= 390 for box in boxes)
