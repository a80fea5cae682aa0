"""Grades the attacks, many in one call, each between neighbours, and looks at what is left."""

import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import outside
from attack import ALWAYS, ATTACKS, ROOT, WRONG, Attack, Book

from labkit.grading import sandbox
from labkit.grading.grade import grade
from labkit.grading.limits import Limits

# channels are first, so that no neighbour stands between the two of a pair
CORPUS = "channels exits hangs floods processes patches probes labs objects wire secrets outside"
CORPUS = [*CORPUS.split(), "files", "judge"]

SECRET = "lora-attack-secret"
LIMITS = Limits(cell_seconds=3, exercise_seconds=4, total_seconds=20)
for group in CORPUS:
    known = len(ATTACKS)
    importlib.import_module(f"corpus_{group}")
    for attack in ATTACKS[known:]:
        attack.group = group


# of a group: one in `make test`; seven and ALWAYS in `make test-all`; all in `make attacks`
MOST = {"some": 7, "all": 10_000}.get(os.environ.get("LABKIT_ATTACKS"), 1)


def selected():
    """The attacks of this run, as pytest parameters."""
    seen, params = {}, []
    for attack in ATTACKS:
        seen[attack.group] = seen.get(attack.group, 0) + 1
        if seen[attack.group] <= MOST or (MOST > 1 and attack.name in ALWAYS):
            name = f"{attack.group}-{attack.name}"
            params.append(pytest.param(attack, id=name, marks=_together(attack.group)))
    return params


def _call(group):
    """Which groups are graded in one call: all, since a judge takes longer to start than one group.

    With several attacks of a group, channels from one submission to the next are apart, and the
    rest have two judges. Where every attack is let loose, a group is graded by itself, so that what
    it leaves has its name.
    """
    if MOST == 1:
        return "attacks"
    return f"attacks_{group}" if MOST > 7 or group == "channels" else "attacks_others"


def _together(group):
    """One worker runs all tests of a call."""
    return pytest.mark.xdist_group(_call(group))


def pytest_itemcollected(item):
    if MOST > 1:
        item.add_marker("thorough")


def pytest_generate_tests(metafunc):
    if "attack" in metafunc.fixturenames:
        metafunc.parametrize("attack", selected())
    if "group" in metafunc.fixturenames:
        groups = sorted({attack.group for attack in ATTACKS})
        metafunc.parametrize("group", [pytest.param(g, marks=_together(g)) for g in groups])


@dataclass
class Graded:
    """What came of one call of `grade`, and of the world around it."""

    rows: dict  # submission -> its rows, as a list
    paths: dict  # attack's name -> submission
    neighbours: dict  # attack's name -> the submissions before and behind it
    out: Path
    changed: list
    running: list
    heard: list  # what came over the network, as text
    notes: list  # names of the attacks that found themselves outside


@pytest.fixture(scope="session")
def graded(request, tmp_path_factory):
    """`graded(group)` -> Graded, of the call that has the group's attacks among those selected."""
    if not sandbox.available():
        pytest.skip("attacks are let loose in a sandbox only: bubblewrap is missing")
    outside.adopt_orphans()
    params = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {c.params["attack"].name for c in params if c and "attack" in c.params}
    done = {}

    def get(group):
        call = _call(group)
        if call not in done:
            attacks = [a for a in ATTACKS if _call(a.group) == call and a.name in chosen]
            jobs = 1 if call in ("attacks", "attacks_channels") else 2
            done[call] = _grade(attacks, tmp_path_factory.mktemp(call), jobs)
        return done[call]

    return get


def _grade(attacks, folder, jobs):
    """Build what attacks make, grade it, and compare the world before with the world after."""
    home, notes, work = (folder / name for name in ("home", "notes", "work"))
    for path in (home, notes, work):
        path.mkdir()
    (home / "canary").write_text(SECRET)
    submissions, out = folder / "submissions", folder / "out"
    submissions.mkdir()
    with pytest.MonkeyPatch.context() as patch, outside.listener(home) as heard:
        host = {
            "pid": os.getpid(), "home": str(home), "repo": str(ROOT), "site": str(outside.SITE),
            "submissions": str(submissions), "out": str(out), "notes": str(notes),
        }  # fmt: skip
        paths, neighbours = _build(attacks, submissions, host)
        patch.setenv("HOME", str(home))
        patch.setenv("TMPDIR", str(work))
        patch.setenv("LORA_ATTACK", SECRET)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))  # the judge's own torch
        patch.setattr(tempfile, "tempdir", None)
        before = outside.snapshot(home, work, submissions)
        others = {p.pid for p in psutil.Process().children(recursive=True)}  # of other tests
        rows = {}
        for row in grade([submissions], out, jobs=jobs, seed=915_374_021, limits=LIMITS):
            rows.setdefault(row.submission, []).append(row.data())
        alive = outside.running(but=others)
        after = outside.snapshot(home, work, submissions)
    found = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    told = [path.name for path in notes.iterdir()]
    return Graded(rows, paths, neighbours, out, found, alive, list(map(str, heard)), told)


def _build(attacks, folder, host):
    """Write attacks and neighbours; return attack -> submission, attack -> its two neighbours.

    One stands behind every second attack: they are graded in the order of the numbers in their
    names. (An attack on the file has the name that it wants, and stands where that leads.)
    """
    paths, neighbours = {}, {}
    behind = _neighbour(folder, 0)
    for i in range(0, len(attacks), 2):
        before, behind = behind, _neighbour(folder, i + 2)
        for number, attack in enumerate(attacks[i : i + 2], i):
            path = attack.write(folder, host, f"{number:03}b_")
            paths[attack.name] = _shown(path.relative_to(folder))
            neighbours[attack.name] = [before, behind]
    return paths, neighbours


def _shown(path):
    """A path as reports name it: a letter that can't be printed is U+FFFD."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _neighbour(folder, number):
    """Write a neighbour and return its name; one in eight is wrong, as most attacks are, too.

    None has the same content as another. Of a wrong one every third answer is wrong, and the
    others are not written.
    """
    wrong, turn = number % 16 == 2, number // 16
    book = Book(folder="notebooks" if wrong else "solutions")
    for answer in list(WRONG)[turn % 3 :: 3] if wrong else ():
        book.replace(answer, WRONG[answer])
    name = f"{number:03}a_{'un' * wrong}solved_neighbour.ipynb"
    book.last(f"# {name}")
    (folder / name).write_text(book.text(), encoding="utf-8")
    return name


@pytest.fixture
def result(attack: Attack, graded):
    """`(row, Graded)` of this attack: exactly one row has its name."""
    group = graded(attack.group)
    rows = group.rows.get(group.paths[attack.name], [])
    assert len(rows) == 1, f"{len(rows)} rows for {group.paths[attack.name]!r}"
    return rows[0], group
