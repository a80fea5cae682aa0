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
        if path.is_dir() and not path.is_symlink() and path.suffix != ".ipynb":
            found += [(path, book) for book in _books(path, Path(out))]
        else:
            found.append((path.parent, path))
    if not found:
        raise LabError(f"no notebook (*.ipynb) in {', '.join(map(str, paths))}")
    return dict(sorted(_named(list(dict.fromkeys(found))).items()))


def _books(folder, out):
    """The notebooks below `folder`; links to folders are not followed, hidden ones left out."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        odd = [name for name in folders if name.endswith(".ipynb")]
        keep = [n for n in folders if not n.startswith(".") and n not in odd]
        folders[:] = sorted(n for n in keep if (here / n).resolve() != out.resolve())
        for name in sorted([*files, *odd]):
            if name.endswith(".ipynb") and not name.startswith("."):
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
            raise Unreadable(f"{kind.st_size >> 20:,} MiB, at most {most >> 20:,} are read")
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)
