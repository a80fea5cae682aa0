"""Find submissions and read their bytes, which may come from anyone."""

import hashlib
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.judge.submission import Unreadable

# files of macOS and Jupyter, no student's work
LITTER = ("._", ".DS_Store", ".ipynb_checkpoints", "__MACOSX")
CANVAS = re.compile(r"(?=_(\d+)_\d+_)")  # every number that could be the student's
MOODLE = re.compile(r"_(\d+)_assignsubmission_")  # the number in the name of a student's folder
FEW = 12  # names listed per line


@dataclass(frozen=True)
class Notebook:
    """A submission to grade, as it was when found."""

    name: str
    path: Path  # absolute: links to folders are resolved, the file itself is not
    digest: str  # of its bytes; "" when they cannot be read
    reason: str  # why they cannot be read
    key: str  # what its grade depends on
    most: int  # bytes to read at most

    @classmethod
    def at(cls, name: str, path: Path, most: int, version: str) -> "Notebook":
        """The notebook in a file; `version` stands for everything else that a grade depends on."""
        try:
            digest, reason = hashlib.sha256(read_bytes(path, most)).hexdigest(), ""
        except Unreadable as error:
            digest, reason = "", str(error)
        parts = f"{version} {digest} {name}".encode("utf-8", "surrogatepass")
        key = hashlib.sha256(parts).hexdigest()
        return cls(name, absolute(path), digest, reason, key, most)

    def read(self) -> bytes | None:
        """The notebook's bytes; None if the file has changed."""
        try:
            data = read_bytes(self.path, self.most)
        except Unreadable:
            return None
        return data if hashlib.sha256(data).hexdigest() == self.digest else None


def absolute(path: Path) -> Path:
    """The absolute path; links to folders are resolved, the file itself is not."""
    return Path(os.path.realpath(path.parent)) / path.name


def collect(paths: Iterable[str | Path], out: Path) -> dict[str, Path]:
    """`{name: path}` of the notebooks in files and folders, with unique names, in order.

    A path that is a link to a folder is followed; links below it are not. LabError for a missing
    path, or if there is no notebook at all.
    """
    found = []
    for path in map(Path, paths):
        if not os.path.lexists(path):
            raise LabError(f"no such file or folder: {path}")
        if path.is_dir() and not _is_book(path.name):
            files = _files(path, Path(out))
            found += [(_root(path), file) for file in files if _is_book(file.name)]
        else:
            found.append((_root(path.parent), path))
    if not found:
        more = "".join(f"; {line}" for line in left_out(paths, out))
        raise LabError(f"no notebook (*.ipynb) in {', '.join(map(str, paths))}{more}")
    return dict(sorted(_named(list(dict.fromkeys(found))).items()))


def _root(folder):
    """The folder that names are relative to; its parent if Moodle named it after a student."""
    return folder.parent if MOODLE.search(folder.name) else folder


def left_out(paths: Iterable[str | Path], out: Path) -> list[str]:
    """One line per kind of file in the folders of `paths` that is skipped."""
    odd = defaultdict(list)
    folders = [p for p in map(Path, paths) if p.is_dir() and not _is_book(p.name)]
    files = [file.name for folder in folders for file in _files(folder, Path(out), odd)]
    kinds = {
        "skipped, not an .ipynb file": [name for name in files if not _is_book(name)],
        "LOOK: skipped, a link to a folder": odd["link"],
        "LOOK: skipped, not readable": odd["closed"],
        f"skipped, hidden ({len(odd['hidden'])})": odd["hidden"],
    }
    return [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]


def listed(names: Iterable) -> str:
    """The first few distinct names, in order, and how many more there are."""
    names = sorted({_shown(str(name)) for name in names})
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _is_book(name):
    return name.lower().endswith(".ipynb")


def _files(folder, out, odd=None):
    """The files below `folder`, except hidden ones; links to folders are not followed.

    `odd` collects the paths of links to folders, hidden files, and unreadable folders.
    """
    odd = defaultdict(list) if odd is None else odd
    closed = odd["closed"]
    for root, folders, files in os.walk(folder, onerror=lambda e: closed.append(e.filename)):
        here, inner, books = Path(root), sorted(folders), []
        folders.clear()
        for name in (name for name in inner if not name.startswith(LITTER)):
            path = here / name
            if name.startswith("."):
                odd["hidden"].append(path.relative_to(folder))
            elif _is_book(name):
                books.append(name)  # a folder of that name becomes a row with a reason
            elif path.is_symlink():
                odd["link"].append(path.relative_to(folder))
            elif path.resolve() != out.resolve():
                folders.append(name)
        for name in sorted([*files, *books]):
            if not name.startswith("."):
                yield here / name
            elif not name.startswith(LITTER):
                odd["hidden"].append((here / name).relative_to(folder))


def _named(found):
    """Names relative to the given folder, with more parents if two are equal."""
    depth = {path: len(path.relative_to(root).parts) for root, path in found}
    parts = {path: path.absolute().parts for path in depth}
    while True:
        names = {path: _shown("/".join(parts[path][-n:])) for path, n in depth.items()}
        count = Counter(names.values())
        twice = [p for p, name in names.items() if count[name] > 1 and depth[p] < len(parts[p])]
        if not twice:
            break
        for path in twice:
            depth[path] += 1
    unique = {}
    for path, name in names.items():
        while name in unique:
            name += "'"
        unique[name] = path
    return unique


def _shown(name):
    """A file's name as printable text, whatever its bytes."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a plain file; Unreadable for links, folders, pipes, devices and huge files."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        link = "a symbolic link, which is not followed" if os.path.islink(path) else ""
        raise Unreadable(link or error.strerror or "unreadable") from None
    try:
        kind = os.fstat(fd)
        if not stat.S_ISREG(kind.st_mode):
            raise Unreadable("not a plain file")
        if kind.st_size > most:
            size = f"{kind.st_size / 2**20:,.1f} MiB; the limit is {most >> 20:,} MiB"
            raise Unreadable(f"{size}: clear the outputs and save it again")
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)
