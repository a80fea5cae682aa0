"""The site around the executed labs: guides, claims, pictures, and links that lead somewhere."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from labkit.course import claims, pages

ROOT = Path(__file__).parents[2]
STEMS = ["01_svd", "02_lora"]
DOT = base64.b64encode(b"\x89PNG one").decode()


class Links(HTMLParser):
    """Collects what a page links to, shows, and says."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids, self.text, self.current = [], set(), "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.found += [attrs[key] for key in ("href", "src") if key in attrs]
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        if "aria-current" in attrs:
            self.current = attrs["href"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{page: what is in it} of a site with the guides of this course and two small labs."""
    out = tmp_path_factory.mktemp("site")
    data = {"image/png": DOT, "text/plain": "-"}
    cells = [nbformat.v4.new_code_cell("x") for _ in range(2)]
    for cell in cells:
        cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Lab"), *cells])
    from labkit.course.run import LabResult

    results = []
    for stem in STEMS:
        results.append(LabResult(stem, f"title of {stem}", "ok"))
        pages.write(out, ROOT, STEMS, book, results)
    return out, {path.name: Links(path.read_text("utf-8")) for path in out.glob("*.html")}


def test_every_guide_and_lab_is_a_page(site):
    _, found = site
    guides = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert len(guides) >= 5
    assert set(found) == guides | {"01_svd.html", "02_lora.html", "claims.html", "index.html"}


def test_every_link_leads_somewhere(site):
    out, found = site
    for name, page in found.items():
        for link in page.found:
            if re.match(r"https?:|data:|mailto:", link):
                continue
            target, _, anchor = link.partition("#")
            assert not target or (out / target).is_file(), (name, link)
            assert not anchor or not target or anchor in found[target].ids, (name, link)


def test_each_page_has_the_same_line_of_links_and_knows_its_place(site):
    _, found = site
    first = {}
    for name, page in found.items():
        line = [link for link in page.found if link in found]
        first[name] = line[: len(found)]
        assert page.current == name
    assert all(line == first["index.html"] for line in first.values()), first


def test_the_claims_page_says_all_of_them(site):
    _, found = site
    text = " ".join(found["claims.html"].text.split())
    for claim in claims.load():
        assert " ".join(claim.claim.split()) in text
        assert " ".join(claim.right.split()) in text
        assert claim.id in found["claims.html"].ids


def test_pictures_are_saved_by_lab_and_number(site):
    out, _ = site
    names = sorted(path.name for path in (out / "pictures").glob("0*.png"))
    assert names == [f"{stem}-{n}.png" for stem in STEMS for n in (1, 2)]
    assert (out / "pictures/02_lora-2.png").read_bytes() == base64.b64decode(DOT)


@pytest.mark.parametrize("path", ["README.md", *sorted(p.name for p in ROOT.glob("docs/*.md"))])
def test_links_between_the_texts_lead_somewhere(path):
    file = ROOT / path if path == "README.md" else ROOT / "docs" / path
    text = file.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        assert link.startswith("https://") or (file.parent / link).exists(), link
    if path != "README.md":
        assert re.match(r"# .+\n\n[A-Z`].+", text), "a title, then what the page is for"
