"""Which submissions there are, and their bytes: read with care, as anybody may have made them."""

import os
import stat
from collections import Counter
from pathlib import Path

from labkit.errors import LabError
from labkit.grading.submission import Unreadable


def collect(paths, out):
    """`{name: path}` of the notebooks in files and folders, each name once, in order.

    LabError for a path that isn't there, and when there is no notebook at all.
    """
    found = []
    for path in map(Path, paths):
        if not os.path.lexists(path):
            raise LabError(f"no such file or folder: {path}")
        if path.is_dir() and not path.is_symlink() and not _is_book(path.name):
            found += [(path, file) for file in _files(path, Path(out)) if _is_book(file.name)]
        else:
            found.append((path.parent, path))
    if not found:
        raise LabError(f"no notebook (*.ipynb) in {', '.join(map(str, paths))}")
    return dict(sorted(_named(list(dict.fromkeys(found))).items()))


def others(paths, out):
    """Names of files in the folders of `paths` that are not looked at: zips, scripts, texts."""
    folders = [Path(path) for path in paths if Path(path).is_dir()]
    found = (file for folder in folders for file in _files(folder, Path(out)))
    return sorted({_shown(file.name) for file in found if not _is_book(file.name)})


def _is_book(name):
    return name.lower().endswith(".ipynb")


def _files(folder, out):
    """The files below `folder`; links to folders are not followed, what is hidden is left out."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        odd = [name for name in folders if _is_book(name)]
        keep = [n for n in folders if not n.startswith(".") and n not in odd]
        folders[:] = sorted(n for n in keep if (here / n).resolve() != out.resolve())
        for name in sorted([*files, *odd]):
            if not name.startswith("."):
                yield here / name


def _named(found):
    """Names relative to the given folder; as many parents more as tell two apart."""
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
    """A file's name as text that can be printed, whatever bytes it is made of."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def read_bytes(path, most):
    """The bytes of a plain file; Unreadable for links, folders, pipes, devices and huge files."""
    try:
        fd = os.open(
            path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        )
    except OSError as error:
        link = "a symbolic link, which is not followed"
        raise Unreadable(
            link if os.path.islink(path) else (error.strerror or "unreadable")
        ) from None
    try:
        kind = os.fstat(fd)
        if not stat.S_ISREG(kind.st_mode):
            raise Unreadable("not a plain file")
        if kind.st_size > most:
            size = f"{kind.st_size >> 20:,} MiB, at most {most >> 20:,} are read"
            raise Unreadable(f"{size}: clear the outputs and save it once more")
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)
