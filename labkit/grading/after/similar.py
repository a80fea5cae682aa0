"""Pairs of submissions with similar code: a list, and a page per pair, side by side.

copydetect compares them by winnowing, as MOSS does: code becomes text without comments, spaces and
variable names, and runs of `RUN` characters in common are counted, in any order. The course's own
code and solutions are removed first; runs that many submissions share count little.
"""

import io
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from copydetect import CodeFingerprint, compare_files, utils
from markupsafe import Markup
from scipy.sparse import lil_matrix

from labkit import reference
from labkit.contract import natural
from labkit.files import template
from labkit.grading.after import report
from labkit.grading.row import Row

RUN = 11  # equal characters in a row, without names
SHORT = 60  # own runs: shorter answers are always similar, and don't count
FEWEST = 3  # answers of a submission that must count
ALIKE = 0.84  # least similarity; measured in benchmarks/similar.py
MOST = 200  # pairs listed


@dataclass
class Pair:
    """Two submissions of a lab with much of their own code in common."""

    lab: str
    names: tuple[str, str]
    share: float
    sides: tuple[Markup, Markup]  # their code, common parts marked


def write(out: Path, rows: list[Row], sources: dict[str, dict[str, str]]) -> list[Pair]:
    """Write similar.html and a page per pair into `out`; return the pairs, most similar first."""
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
        page = template("grading_pair.html.j2").render(
            pair=pair, sides=list(zip(pair.names, pair.sides, strict=True))
        )
        report.put(folder / f"{i}.html", page)
    page = template("grading_similar.html.j2").render(pairs=found[:MOST], n=len(found))
    report.put(out / "similar.html", page)
    return found


def pairs(lab: str, sources: dict[str, dict[str, str]]) -> list[Pair]:
    """The similar pairs among the submissions of a lab, `{name: {exercise id: cell}}`."""
    course = _print("\n\n".join(reference.course_cells(lab))).hashes
    answers = {name: _answers(cells, course) for name, cells in sources.items()}
    answers = {name: prints for name, prints in answers.items() if len(prints) >= FEWEST}
    alike = shares([[made.hashes for made in prints] for prints in answers.values()])
    whole = {}  # fingerprints of whole submissions, for marking
    found = []
    for i, j in zip(*np.nonzero(np.triu(alike >= ALIKE, k=1)), strict=True):
        names = tuple(list(answers)[k] for k in (i, j))
        for name in names:
            if name not in whole:
                text = "\n\n".join(made.raw_code for made in answers[name])
                whole[name] = _own(_print(text), course)
        _, _, slices = compare_files(*(whole[name] for name in names))
        sides = tuple(_marked(whole[n].raw_code, s) for n, s in zip(names, slices, strict=True))
        found.append(Pair(lab, names, float(alike[i, j]), sides))
    return found


def shares(runs: list[list[set[int]]]) -> np.ndarray:
    """How similar submissions are, from 0 to 1; `runs` has the runs of each one's answers.

    An answer's similarity is the share of its runs found anywhere in the other submission, weighted
    by rarity (log of one over the share of submissions with the run). Returns the mean over the
    answers of both, (submissions, submissions).
    """
    n = len(runs)
    often = Counter(run for answers in runs for run in set().union(*answers))
    place = {run: k for k, run in enumerate(often)}
    weight = np.log((n + 1) / np.array([*often.values()]))
    units = [(i, [place[run] for run in answer]) for i, own in enumerate(runs) for answer in own]
    has, parts = lil_matrix((n, len(place))), lil_matrix((len(units), len(place)))
    mean = lil_matrix((n, len(units)))
    for row, (i, at) in enumerate(units):
        has[i, at] = 1
        parts[row, at] = weight[at] / weight[at].sum()
        mean[i, row] = 1 / len(runs[i])
    one_way = (mean.tocsr() @ parts.tocsr() @ has.tocsr().T).toarray()
    return (one_way + one_way.T) / 2


def _answers(cells, course):
    """Fingerprints of a submission's cells with at least `SHORT` runs of their own, in order."""
    ids = sorted((id for id in cells if cells[id].strip()), key=natural)
    made = [_print(f"# {id or 'other cells'}\n{cells[id].strip()}") for id in ids]
    return [one for one in made if len(_own(one, course).hashes) >= SHORT]


def _print(text):
    """The fingerprint of a source: every run of it, so that order does not matter."""
    return CodeFingerprint("cell.py", RUN, 1, fp=io.StringIO(text), language="python")


def _own(made, course):
    made.hashes = made.hashes - course
    made.hash_idx = {key: made.hash_idx[key] for key in made.hashes}
    return made


def _marked(text, slices):
    edges = np.maximum.accumulate(slices.T.ravel()).reshape(-1, 2).T  # no overlaps
    shown, _ = utils.highlight_overlap(text, edges, "<mark>", "</mark>", escape_html=True)
    return Markup(shown)
