"""Submissions whose own code is alike, in pairs: a list, and a page with the two side by side.

copydetect compares (winnowing, as MOSS does it): code becomes text without comments, spaces and
names of variables, and what two such texts have in common, in any order, is counted in runs of
`RUN` characters. What the course gave out, and its solution, is taken away before: see `_prints`.
"""

import io
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from copydetect import CodeFingerprint, compare_files, utils
from markupsafe import Markup

from labkit import reference
from labkit.contract import natural
from labkit.grading import store
from labkit.grading.after import report
from labkit.grading.row import Row

RUN = 30  # characters, without names, that have to be the same in one piece
SHORT = 120  # an answer of so few own characters is alike by nature, and does not count
LEAST = 500  # own characters below which a submission says too little
ALIKE = 0.7  # of the own code of one that the other one has too
MOST = 200  # pairs that are listed


@dataclass
class Pair:
    """Two submissions of a lab; `share` of the own code of one is in the other one too."""

    lab: str
    names: tuple[str, str]
    share: float
    sides: tuple[Markup, Markup]  # their code, what is alike marked


def write(out: Path, rows: list[Row], sources: dict[str, dict[str, str]]) -> list[Pair]:
    """Write similar.html and a page a pair into `out`; the pairs, most alike first."""
    by_lab = defaultdict(dict)
    for row in rows:
        if row.lab and row.submission in sources:
            by_lab[row.lab][row.submission] = sources[row.submission]
    found = [pair for lab, own in sorted(by_lab.items()) for pair in pairs(lab, own)]
    found.sort(key=lambda pair: -pair.share)
    folder = out / "similar"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.html"):
        old.unlink()
    for i, pair in enumerate(found[:MOST], 1):
        page = report.template("grading_pair.html.j2").render(pair=pair)
        store.put(folder / f"{i}.html", page.encode("utf-8", "backslashreplace"))
    page = report.template("grading_similar.html.j2").render(pairs=found[:MOST], n=len(found))
    store.put(out / "similar.html", page.encode("utf-8", "backslashreplace"))
    return found


def pairs(lab: str, sources: dict[str, dict[str, str]]) -> list[Pair]:
    """The pairs that are alike among the submissions of a lab, `{name: {exercise id: cell}}`."""
    prints, found = _prints(lab, sources), []
    for (a, one), (b, two) in combinations(prints.items(), 2):
        least = min(len(one.hashes), len(two.hashes))
        if 2 * len(one.hashes & two.hashes) < ALIKE * least:  # a share that high has more of them
            continue
        _, shares, slices = compare_files(one, two)
        if max(shares) >= ALIKE:
            sides = tuple(_marked(p.raw_code, s) for p, s in zip((one, two), slices, strict=True))
            found.append(Pair(lab, (a, b), min(1.0, float(max(shares))), sides))
    return found


def _prints(lab, sources):
    """`{name: fingerprint of its own code}` of those that have enough of it.

    Own is what stands neither in the notebook that was handed out nor in the solution, and in no
    cell that is short without that.
    """
    course = _print("\n\n".join(reference.course_cells(lab))).hashes
    prints = {}
    for name, cells in sources.items():
        ids = sorted((id for id in cells if cells[id].strip()), key=natural)
        long = [id for id in ids if _own(_print(cells[id]), course).token_coverage >= SHORT]
        text = "\n\n".join(f"# {id or 'other cells'}\n{cells[id].strip()}" for id in long)
        made = _own(_print(text), course)
        if made.token_coverage >= LEAST:
            prints[name] = made
    return prints


def _print(text):
    """The fingerprint of a source: each run of it, so that the same is found in every order."""
    return CodeFingerprint("cell.py", RUN, 1, fp=io.StringIO(text), language="python")


def _own(made, course):
    """A fingerprint without what the course has."""
    made.hashes = made.hashes - course
    made.hash_idx = {key: made.hash_idx[key] for key in made.hashes}
    length = len(made.filtered_code)
    made.token_coverage = utils.get_token_coverage(made.hash_idx, RUN, length)
    return made


def _marked(text, slices):
    """A source as HTML, everything escaped, with what is alike marked."""
    edges = np.maximum.accumulate(slices.T.ravel()).reshape(-1, 2).T  # none begins in another one
    shown, _ = utils.highlight_overlap(text, edges, "<mark>", "</mark>", escape_html=True)
    return Markup(shown)
