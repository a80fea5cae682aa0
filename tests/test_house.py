"""The tree says what a file may know: who imports whom, and what a submission can never read."""

import ast
import functools
from pathlib import Path

import pytest

import labkit

ROOT = Path(labkit.__file__).parent
LIGHT = {"errors", "files"}  # below everything
# what the files of a folder may import of labkit besides each other and `LIGHT`
MAY = {
    "errors": "",
    "files": "",
    "contract": "",
    "fingerprint": "",
    "download": "",
    "plots": "",
    "measured": "",
    "figures": "measured plots",
    "live": "plots",
    "data": "",
    "tasks": "download training",
    "memory": "download figures plots",
    "training": "data download fingerprint live memory",
    "own": "data memory training",
    "probes": "contract",
    "ship": "data own training",
    "checks": "contract probes",
    "names": "",
    "reference": "contract names",
    "session": "contract download reference",
    "lab": "contract figures live names plots reference session training",
    "grading/inside": "contract figures grading lab live plots tasks training",
    "grading/judge": "checks contract grading names reference",
    "grading/after": "contract grading reference",
    "grading": "fingerprint grading/judge grading/after grading/inside",
    "course": "contract download figures grading reference training",
    "train": "own tasks training",
    "cli": "course data grading grading/after memory ship tasks train training",
    "__init__": "course lab",
    "__main__": "cli",
}


@functools.cache
def _imports(path):
    """`(module, whether at the top of the file)` of each import in a file, a list."""
    found, tree = [], ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            ours = node.module.startswith("labkit")
            names = [f"{node.module}.{a.name}" for a in node.names] if ours else [node.module]
        found += [(name, node in tree.body) for name in names]
    return found


def _room(parts):
    """The room of `MAY` that a file or a module is in, from its path below labkit."""
    two = "/".join(parts[:2]).removesuffix(".py")
    return two if two in MAY else parts[0].removesuffix(".py")


def _rooms_imported(file):
    """The rooms of labkit that a file imports from; the last parts of a name may be in a file."""
    for name, _ in _imports(ROOT / file):
        if name.startswith("labkit."):
            parts = name.split(".")[1:]
            while parts and not _is_there(ROOT.joinpath(*parts)):
                parts.pop()
            yield _room(parts) if parts else "__init__"


def _is_there(path):
    return path.is_dir() or path.with_suffix(".py").is_file()


FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def test_a_file_imports_what_its_room_may_and_no_room_may_more_than_it_does():
    used = {room: {} for room in MAY}
    for file in FILES:
        mine = _room(file.parts)
        assert mine in MAY, f"a new room: say in MAY what {mine} may import"
        used[mine] |= {room: str(file) for room in _rooms_imported(file) if room != mine}
    for room, may in MAY.items():
        assert used[room].keys() - LIGHT == set(may.split()), f"{room} imports {used[room]}"


def test_a_lab_s_files_are_of_their_lab():
    """Closed or open, lab 3 knows nothing of lab 2."""
    for file in FILES:
        mine = [part.removesuffix(".py") for part in file.parts if part.startswith("lab0")]
        for name, _ in _imports(ROOT / file) if mine else ():
            other = [part for part in name.split(".") if part.startswith("lab0")]
            assert other in ([], mine), f"{file} imports {name}"


@pytest.mark.parametrize(
    "room", ["contract", "grading", "grading/after", "grading/judge", "course", "data", "train"]
)
def test_torch_waits_until_it_is_needed(room):
    """The command answers at once: torch comes with the judge's work, a submission's, a lab's."""
    for file in FILES:
        if _room(file.parts) == room:
            top = {name.partition(".")[0] for name, first in _imports(ROOT / file) if first}
            assert not top & {"torch", "transformers", "peft"}, file


def test_labkit_holds_no_answer():
    """No file of labkit imports a master or a notebook, and none outside checks names a key."""
    for file in FILES:
        names = {name.partition(".")[0] for name, _ in _imports(ROOT / file)}
        assert not names & {"labs", "notebooks", "solutions", "tests"}, file
    keys = [
        path.relative_to(ROOT) for path in ROOT.rglob("*.toml") if "answer = " in path.read_text()
    ]
    assert len(keys) >= 6 and all(key.parts[0] == "checks" for key in keys)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_function_and_a_file_are_one_thing(file):
    """At most 45 lines a function; at most 300 a file, or its docstring says why it is long.

    The checks of a lab are one file of at most 450.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 45] == []
    reason = "\nLong, for " in (ast.get_docstring(tree) or "")
    most = 450 if file.parts[0] == "checks" and file.stem.startswith("lab") else 300
    assert len(text.splitlines()) <= most or reason


def test_labkit_and_its_tests_are_small():
    tests = Path(__file__).parent.rglob("*.py")
    for files, most in ((map(ROOT.joinpath, FILES), 24_100), (tests, 18_700)):
        assert sum(len(file.read_text("utf-8").splitlines()) for file in files) <= most
