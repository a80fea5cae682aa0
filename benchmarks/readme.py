"""Update what README shows of a run: two answers and one result. Use after `labkit run 2`:

    python benchmarks/readme.py build

The script records them in docs/pictures/run.json, and tests/course/test_readme.py reports what is
stale in README. The picture of a failed check, check.png, is build/screenshots/check.png from
tests/browser.
"""

import argparse
import ast
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat

from labkit.course.executed import experiment

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
ANSWERS = ("02_lora", "Before and after")
ANNOUNCED = re.compile(r'(lab\.experiment\(\s*"[^"]*"), *\d+')  # the seconds
HEADLINE = "application/vnd.labkit.headline+json"


class Cells(HTMLParser):
    """The texts of a table's cells, row by row."""

    def __init__(self, text: str):
        super().__init__()
        self.rows = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def code_until(stem: str, title: str) -> str:
    """A hash of a lab's experiments up to this one, but for comments and announced seconds."""
    digest = hashlib.sha256()
    for cell in nbformat.read(ROOT / "solutions" / f"{stem}.ipynb", 4).cells:
        if told := experiment(cell):
            source = ANNOUNCED.sub(r"\1", cell.source)
            digest.update(ast.dump(ast.parse(source)).encode())
            if told == title:
                return digest.hexdigest()[:16]
    raise LookupError(f"{stem} has no experiment {title!r}")


def outputs(build: Path, stem: str, title: str = "") -> list[dict]:
    """The outputs of an experiment of the executed lab, or all of the lab's."""
    book = nbformat.read(build / "executed" / f"{stem}.ipynb", 4)
    cells = [c for c in book.cells if not title or experiment(c) == title]
    return [output for cell in cells for output in cell.get("outputs", [])]


def table(shown: list[dict]) -> list[list[str]]:
    """The rows of the last table among outputs; none where there is none."""
    htmls = ["".join(output.get("data", {}).get("text/html", "")) for output in shown]
    tables = [Cells(html).rows for html in htmls if "<table" in html]
    return [[cell.strip() for cell in row] for row in tables[-1]] if tables else []


def answers(build: Path, stem: str, title: str) -> dict:
    """The rows of a lab's table of answers, its headline, and the machine."""
    rows = table(outputs(build, stem, title))[1:]
    told = [output.get("data", {}) for output in outputs(build, stem)]
    (headline,) = [data[HEADLINE]["headline"] for data in told if HEADLINE in data]
    head = next(o["text"] for o in outputs(build, stem) if o.get("name") == "stdout")
    return {
        "lab": stem,
        "experiment": title,
        "code": code_until(stem, title),
        "machine": head.splitlines()[0],
        "headline": headline,
        "rows": [[row[0], *(row[k].strip("✓✗ ") for k in (2, -1))] for row in rows],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path, help="the folder of a run, with `executed` in it")
    record = {"answers": answers(parser.parse_args().build, *ANSWERS)}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / "run.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
