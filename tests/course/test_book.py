"""The book around the labs: pages, links, words for pictures, no network, and nobody shut out."""

import posixpath
import re
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from latex2mathml.converter import convert
from small_course import JSON, POINT, RAN, made

from labkit.course import book, claims, evidence, executed

ROOT = Path(__file__).parents[2]
LABS = sorted(path.stem for path in ROOT.glob("labs/*.py"))
# numbers what a keyboard should reach, and says how many they are
NUMBERED = """() => {
  const all = [...document.querySelectorAll("a[href], button, input, summary, [tabindex]")];
  const seen = all.filter(part => part.tabIndex >= 0 && !part.disabled &&
                                  part.checkVisibility({visibilityProperty: true}));
  seen.forEach((part, i) => part.dataset.place = i);
  return seen.length;
}"""
# where the keyboard is: the number, and whether somebody sees it
HERE = """() => {
  const part = document.activeElement, style = getComputedStyle(part);
  const ring = style.outlineStyle !== "none" || style.boxShadow !== "none";
  return [part.dataset.place ?? "", ring];
}"""
OWN = {"index", "labs", "claims", "evidence", "guides", "search"}
EVIDENCE = f"""\
# Lab 1 · Ranks

The runs behind [lab 1](../../notebooks/01_svd.ipynb).

## Runs per rank

More on [memory](../memory.md).

```{{code-cell}} python
from labkit import measured
from labkit.plots import figure

runs = measured.load("where_loss")
fig, ax = figure(width=9, height=3)
ax.set_title({POINT!r})
fig
```
"""


class Page(HTMLParser):
    """Collects what a page links to, loads, shows and says."""

    def __init__(self, text):
        super().__init__()
        self.html, self.links, self.loads, self.ids, self.images, self.text = (
            text,
            [],
            [],
            set(),
            [],
            "",
        )
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
    """`(folder, Sphinx's warnings)` of the book of a small course with a page of evidence more."""
    root, out = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("book")
    books, results = made(root)
    (root / "docs/evidence").mkdir(exist_ok=True)
    (root / "docs/evidence/90_made_up.md").write_text(EVIDENCE, "utf-8")
    link = "../docs/evidence/90_made_up.md#runs-per-rank"
    books[RAN[0]].cells[0].source += f"\n\nTrue ([evidence]({link}))."
    warnings = book.write(out, root, books, results)
    assert [result.lab for result in results] == list(RAN), "an evidence page failed"
    return out, warnings


@pytest.fixture(scope="module")
def pages(built):
    paths = [*sorted(built[0].glob("*.html")), *sorted(built[0].glob("evidence/*.html"))]
    return {str(path.relative_to(built[0])): Page(path.read_text("utf-8")) for path in paths}


def test_sphinx_has_nothing_to_complain_of(built):
    assert built[1] == ""


def test_every_lab_and_guide_is_a_page(pages):
    docs = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    ours = {str(path.with_suffix("")) for path in docs} | {"evidence/90_made_up"}
    assert len(docs) >= 5 and len(LABS) >= 7
    assert set(pages) == {f"{name}.html" for name in ours | OWN | set(LABS)}


def test_evidence_is_run_and_linked_from_its_lab(built, pages):
    page = pages["evidence/90_made_up.html"]
    (image,) = page.images
    assert image["alt"] == POINT and (built[0] / "evidence" / image["src"]).is_file()
    assert '<details class="fold">' in page.html  # around its code
    assert {"../01_svd.html", "../memory.html"} <= set(page.links)
    assert "evidence/90_made_up.html#runs-per-rank" in pages["01_svd.html"].links
    assert "evidence/90_made_up.html" in pages["evidence.html"].links


def test_evidence_that_fails_is_one_line(tmp_path):
    (tmp_path / "docs/evidence").mkdir(parents=True)
    text = EVIDENCE.replace('"where_loss"', '"forgotten"')
    (tmp_path / "docs/evidence/90_made_up.md").write_text(text, "utf-8")
    _, (failed,) = evidence.pages(tmp_path, tmp_path)
    assert (failed.lab, failed.status) == ("evidence/90_made_up", "failed")
    assert re.fullmatch("in 'Runs per rank': FileNotFoundError.*forgotten.*", failed.error)


def test_a_claim_may_lead_to_evidence(tmp_path):
    (tmp_path / "90_made_up.md").write_text(EVIDENCE, "utf-8")
    page = evidence.read(tmp_path / "90_made_up.md")
    place = executed.anchor_of("Runs per rank", "evidence/90_made_up", page)
    assert f"({place})=" in executed.page(page, "evidence/90_made_up", tmp_path).cells[0].source


def test_every_link_and_file_is_there(built, pages):
    for name, page in pages.items():
        for link in page.links + page.loads:
            if re.match(r"https?:|data:|mailto:", link):
                continue
            target, _, anchor = link.partition("#")
            target = target.partition("?")[0]
            target = target and posixpath.normpath(
                f"{posixpath.dirname(name)}/{target}".lstrip("/")
            )
            assert not target or (built[0] / target).exists(), (name, link)
            known = pages.get(target or name)
            assert not anchor or known is None or anchor in known.ids, (name, link)


def test_no_page_loads_anything_from_elsewhere(built, pages):
    for name, page in pages.items():
        assert not [load for load in page.loads if re.match(r"(https?:)?//", load)], name
        assert not re.search(r"\bimport\(|\bimportScripts|https?://[^\"' ]+\.js\b", page.html), name
    for path in built[0].glob("_static/**/*.css"):
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


def test_a_place_is_found_by_its_first_words():
    text = "# L\n\n## Exercise 9.1 · `f`\n\n### Exercise 9.12"
    lab = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    assert executed.anchor_of("Exercise 9.1", "09_x", lab) == "lab09-exercise-9-1-f"
    assert executed.anchor_of("Exercise 9.12", "09_x", lab) == "lab09-exercise-9-12"
    assert executed.anchor_of("Exercise 9", "09_x", lab) == ""  # an edited lab: to its top


def test_labs_that_ran_have_their_outputs_and_the_others_say_so(pages):
    for stem in LABS:
        page = pages[f"{stem}.html"]
        assert ("Not run here" in page.text) == (stem not in RAN)
        assert ("pictures/" in page.html) == (stem in RAN)
        assert f"notebooks/{stem}.ipynb" in page.links
        (colab,) = [link for link in page.links if "colab.research" in link]
        assert colab.endswith(f"/notebooks/{stem}.ipynb")  # the student's
    assert "noise of a bar" not in pages["01_svd.html"].text
    assert "a slider" not in pages["01_svd.html"].text
    assert "@title Set-up" not in pages["01_svd.html"].text


def test_each_picture_says_its_point_and_can_be_seen_alone(built, pages):
    shown = [image for name in RAN for image in pages[f"{name}.html"].images]
    assert len(shown) == 2 * len(RAN)
    for image in shown:
        assert image["alt"] == POINT
        assert (built[0] / image["src"]).is_file()
        assert int(image["width"]) > 2 * int(image["height"])
    assert f"{RAN[0]}-2.png" in pages["01_svd.html"].html
    assert {path.name for path in built[0].glob("pictures/0*")} == {
        f"{s}-{n}.png" for s in RAN for n in (1, 2)
    }


def test_the_first_page_has_a_picture_of_each_lab_that_ran(pages):
    assert len(pages["index.html"].images) == len(RAN)
    assert "half < all" in pages["index.html"].text and "Not run here." in pages["index.html"].text


def test_on_a_phone_the_table_of_the_run_is_as_wide_as_the_page(built, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((built[0] / "labs.html").as_uri())
    boxes = [cell.bounding_box() for cell in page.locator("td").all()]
    assert len(boxes) > len(LABS) and all(box["x"] + box["width"] <= 390 for box in boxes)
    page.close()


def test_the_table_of_the_run_says_how_each_lab_went(pages):
    text = " ".join(pages["labs.html"].text.split())
    assert "ValueError: no <rank>" in text and "2 labs run 120 6 of 8" in text
    assert f"with torch {version('torch')}, transformers" in text
    assert text.count("not run") == len(LABS) - 2


def test_a_cover_is_the_last_picture_of_the_tagged_cell(tmp_path):
    lab = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# L")])
    dot = {"image/png": "iVBORw0KGgo="}
    for tags in ([], ["cover"], []):
        cell = nbformat.v4.new_code_cell("x", metadata={"tags": tags})
        cell.outputs = [nbformat.v4.new_output("display_data", data=dict(dot))]
        lab.cells.append(cell)
    assert "01_a-2.png" in executed.page(lab, "01_a", tmp_path).metadata.cover
    del lab.cells[2].metadata["tags"]
    assert "01_a-3.png" in executed.page(lab, "01_a", tmp_path).metadata.cover
    assert executed.page(lab, "01_a", None).metadata.cover == ""


def test_an_answer_is_folded_below_its_stub_and_so_is_what_a_quiz_says(tmp_path):
    def cells(answer):
        sources = ("x = 1", f"def f():\n    {answer}", "check.f(f)", "check.quiz(quiz)")
        return [nbformat.v4.new_code_cell(source) for source in sources]

    solved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# L"), *cells("42")])
    stub = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# L"), *cells("TODO")])
    made = executed.page(solved, "01_a", tmp_path, stub).cells
    assert [(cell.source[-4:], cell.metadata.get("tags")) for cell in made[1:]] == [
        ("x = 1"[-4:], None),
        ("TODO", None),
        ("  42", ["hide-input"]),
        ("f(f)", None),
        ("uiz)", ["hide-output"]),
    ]
    assert [cell.source for cell in solved.cells] == ["# L"] + [c.source for c in cells("42")]
    stub.cells.pop()  # of another build: all is shown
    assert len(executed.page(solved, "01_a", tmp_path, stub).cells) == len(solved.cells)


def test_no_answer_can_be_read_before_somebody_opens_it(built, pages, browser):
    folds = re.findall(
        r"<details class=\"fold\"><summary>(.*?)</summary>", pages["01_svd.html"].html
    )
    assert folds.count("The course&#x27;s answer") >= 2
    page = browser.new_page()
    page.goto((built[0] / "01_svd.html").as_uri())
    answer, summary = page.locator("details.fold div.cell_input").first, page.locator("summary")
    assert not answer.is_visible()
    page.locator("details.fold > summary").first.focus()
    page.keyboard.press("Enter")
    assert answer.is_visible() and summary.count() > 2
    page.close()


def test_on_paper_a_folded_answer_is_open(browser):
    style = (ROOT / "labkit/templates/book/static/book.css").read_text("utf-8")
    page = browser.new_page()
    fold = "<details class='fold'><summary>the answer</summary><p>42</p></details>"
    page.set_content(f"<style>{style}</style>{fold}")
    seen = "part => part.checkVisibility({contentVisibilityAuto: true})"
    for medium, shown in (("screen", [True, False]), ("print", [False, True])):
        page.emulate_media(media=medium)
        assert [page.locator(tag).evaluate(seen) for tag in ("summary", "p")] == shown
    page.close()


def test_a_page_leads_to_its_source_and_to_a_report(pages):
    for name, source in (("02_lora", "labs/02_lora.py"), ("learner", "docs/learner.md")):
        links = [link for link in pages[f"{name}.html"].links if link.startswith("https://github")]
        assert any(link.endswith(source) and "/blob/v" in link for link in links)
        assert any("/issues/new?title=" in link for link in links)


def test_each_page_says_its_version_its_licence_and_its_day(pages):
    for page in pages.values():
        text = " ".join(page.text.split())
        assert re.search(r"v[\d.]+, Apache-2\.0\b.* 20\d\d-\d\d-\d\d", text)


def formulas(path):
    """`(block, "")` or `("", inline)` for each formula of a notebook."""
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    text = re.sub(r"```.*?```|`[^`\n]*`", "", "\n\n".join(cells), flags=re.S)
    return re.findall(r"\$\$(.+?)\$\$|\$([^$\n][^$]*?)\$", text, flags=re.S)


def test_formulas_of_a_page_need_no_script(pages):
    page = pages["01_svd.html"]
    assert page.html.count("<math") > 20 and 'display="block"' in page.html
    assert "$" not in re.sub(r"<(code|pre)\b.*?</\1>", "", page.html, flags=re.S)


@pytest.mark.parametrize("path", sorted(ROOT.glob("solutions/*.ipynb")), ids=lambda p: p.stem)
def test_every_formula_of_the_labs_is_understood(path):
    found = formulas(path)
    assert len(found) > 3
    for block, inline in found:
        made = convert(block or inline, display="block" if block else "inline")
        assert made.startswith("<math") and not re.findall(r"<m(?:i|text)>\\\w+</m", made)


@pytest.mark.parametrize("path", ["README.md", *sorted(map(str, ROOT.glob("docs/**/*.md")))])
def test_links_between_the_texts_lead_somewhere(path):
    file = ROOT / path
    text = file.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        assert link.startswith("https://") or (file.parent / link).exists(), link
    if path != "README.md":
        assert re.match(r"# .+\n\n[A-Z`].+", text), "a title, then what the page is for"


def test_every_paper_that_is_named_has_a_row():
    number = re.compile(r"[/(, ]([12]\d[01]\d\.\d{4,5})\b")  # of arXiv
    listed = set(number.findall((ROOT / "docs" / "papers.md").read_text("utf-8")))
    files = [*ROOT.glob("labs/*.py"), *ROOT.glob("labkit/memory/*.py")]
    files += [ROOT / "labkit" / "course" / "claims.toml", ROOT / "docs" / "memory.md"]
    named = {n for path in files for n in number.findall(path.read_text("utf-8"))}
    assert len(named) > 15 and named <= listed, f"docs/papers.md lacks {named - listed}"


@pytest.mark.thorough
def test_axe_finds_nothing_serious_and_nothing_is_fetched(built, pages, judged_by_axe):
    assert judged_by_axe(built[0], sorted(pages)) == []


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["index", "01_svd", "labs"])
def test_tab_alone_reaches_everything_and_one_sees_where_it_is(built, browser, name, width, theme):
    size = {"width": width, "height": 900}
    page = browser.new_page(viewport=size, color_scheme=theme, reduced_motion="reduce")
    page.goto((built[0] / f"{name}.html").as_uri())
    n, reached = page.evaluate(NUMBERED), {}
    for _ in range(n + 3):
        page.keyboard.press("Tab")
        place, ring = page.evaluate(HERE)
        reached[place] = ring
    assert n > 10 and {str(i) for i in range(n)} <= reached.keys()
    assert all(ring for place, ring in reached.items() if place)
    page.close()


def test_on_a_phone_a_keyboard_opens_the_menu_and_leaves_it(built, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    page.goto((built[0] / "01_svd.html").as_uri())
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    menu = page.locator("dialog[open]")
    menu.wait_for()
    for _ in range(3):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('dialog[open]') !== null")
    page.keyboard.press("Escape")
    menu.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.matches('button.primary-toggle')")
    page.close()


def test_on_a_phone_a_picture_keeps_its_letters_and_answers_wrap(built, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((built[0] / "01_svd.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    image = page.locator("a.picture img").first
    shown, natural = image.bounding_box()["width"], int(image.get_attribute("width"))
    assert shown == pytest.approx(0.75 * natural, abs=1) and shown > 500
    inside = "cell => cell.scrollWidth <= cell.clientWidth + 1"
    cells = page.locator("td", has_text=JSON[:20])
    assert cells.count() == 3 and all(cell.evaluate(inside) for cell in cells.all())
    page.close()
