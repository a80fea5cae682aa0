"""Build the book: Sphinx turns labs, evidence, guides and claims into pages, without a network.

Labs that were run show their outputs; others show only their code. Evidence pages always run.
"""

import io
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import nbformat

from labkit.course import claims, doctor, evidence, executed, masters, notebooks, release
from labkit.files import TEMPLATES, template

LIBRARIES = ("torch", "transformers", "peft", "trl")
BOOK = TEMPLATES / "book"
OURS = ("index", "labs", "claims")
GUIDES = (*release.GUIDES, "instructor", "maintainer")
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)  # of the photograph on the first page
LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
CONF = {
    "extensions": ["myst_nb", "sphinx_copybutton", "labkit.course.sphinx"],
    "html_math_renderer": "mathml",
    "html_theme": "pydata_sphinx_theme",
    "html_title": "LoRA Labs",
    "html_css_files": ["book.css"],
    "html_favicon": str(BOOK / "static" / "icon.svg"),
    "html_static_path": [str(BOOK / "static")],
    "templates_path": [str(BOOK / "theme")],
    "html_sidebars": {"index": [], "claims": []},
    "html_copy_source": False,
    "html_use_index": False,
    "html_domain_indices": False,
    "language": "en",
    "myst_enable_extensions": ["deflist", "dollarmath"],
    "myst_heading_anchors": 4,
    "nb_execution_mode": "off",
    "copybutton_exclude": ".linenos, .gp, .go",
}
THEME = {
    "article_header_end": ["lab-links"],
    "secondary_sidebar_items": ["page-toc", "improve"],
    "footer_start": ["about"],
    "footer_end": [],
    "search_bar_text": "Search the book",
    "show_toc_level": 2,
}
ICON = {"name": "The course's repository", "icon": "fa-brands fa-github"}  # in each page's head


def write(out: Path, root: Path, books: dict[str, nbformat.NotebookNode], results: list) -> str:
    """Build the book of the course at `root` in `out`, with its pictures and summary.json.

    `books` has the executed labs by their stem; `results` describe each run. A failed evidence page
    is added to `results`. Returns Sphinx's warnings, "" if there are none.
    """
    rows = [asdict(result) for result in results]
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")
    shutil.copytree(root / "notebooks", out / "notebooks", dirs_exist_ok=True)
    pages = {}
    for path in sorted((root / "solutions").glob("*.ipynb")):
        ran, stem = books.get(path.stem), path.stem
        shown = ran or nbformat.read(path, as_version=4)
        given = nbformat.read(root / "notebooks" / path.name, as_version=4)
        pages[stem] = executed.page(shown, stem, out / "pictures" if ran else None, given)
    shown, failed = evidence.pages(root, out / "pictures")
    pages |= shown
    results += failed
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        (source / "evidence").mkdir(parents=True)
        for stem, page in pages.items():
            nbformat.write(page, source / f"{stem}.ipynb")
        for name, text in _texts(root, pages, rows, _cuts(out / "pictures")).items():
            (source / f"{name}.md").write_text(text, "utf-8")
        warnings = _sphinx(source, Path(scratch) / "html", root)
        shutil.copytree(Path(scratch) / "html", out, dirs_exist_ok=True)
    return warnings


def _cuts(folder: Path) -> list[dict]:
    """Save Lab 1's photograph at each of `RANKS` in `folder`; return the shares and errors."""
    import torch
    from matplotlib import image

    from labkit.figures import lab01

    photo = lab01.photograph()  # (300, 256)
    U, s, Vt = torch.linalg.svd(photo, full_matrices=False)
    found = []
    for r in RANKS:
        pixels = ((U[:, :r] * s[:r]) @ Vt[:r]).clamp(0, 1).numpy()
        image.imsave(folder / f"rank-{r}.png", pixels, cmap="gray", vmin=0, vmax=1)
        share, error = r * sum(photo.shape) / photo.numel(), (s[r:].norm() / s.norm()).item()
        found.append({"rank": r, "share": f"{share:.1%}", "error": f"{error:.1%}"})
    return found


def _texts(
    root: Path, pages: dict[str, nbformat.NotebookNode], rows: list[dict], cuts: list[dict]
) -> dict[str, str]:
    """The other pages: the first page, the table of this run, claims and guides."""
    found, went = claims.load(), {row["lab"]: row for row in rows}
    run = root / "docs" / "pictures" / "run.json"
    guides = sorted((root / "docs").glob("*.md"), key=_place)
    lists = {
        "evidence": [_listed(path, f"evidence/{path.stem}.ipynb") for path in evidence.files(root)],
        "guides": [_listed(path, path.name) for path in guides],
    }
    labs = {stem: page for stem, page in pages.items() if "/" not in stem}
    known = {
        "labs": [_lab(stem, page, went.get(stem)) for stem, page in labs.items()],
        "rows": rows,
        "cuts": cuts,
        "answers": json.loads(run.read_text("utf-8"))["answers"] if run.exists() else {},
        "cores": doctor.n_cores(),
        "libraries": [f"{name} {version(name)}" for name in LIBRARIES],
        "claims": [(claim, _places(claim, pages)) for claim in found],
        "verdicts": Counter(claim.verdict for claim in found).most_common(),
    }
    made = {n: template(f"book/{n}.md.j2").render(known) for n in OURS}
    pages_of = template("book/pages.md.j2")
    made |= {n: pages_of.render(title=n.title(), pages=listed) for n, listed in lists.items()}
    return made | {path.stem: executed.linked(path.read_text("utf-8")) for path in guides}


def _place(path: Path) -> tuple[int, str]:
    """A guide's sort key: learners' guides first, maintainers' last."""
    return (GUIDES.index(path.stem) if path.stem in GUIDES else len(GUIDES), path.stem)


def _listed(path: Path, file: str) -> dict:
    """The title, first sentence and file of a guide or an evidence page."""
    title, summary = path.read_text("utf-8").split("\n\n")[:2]
    summary = LINK.sub(r"\1", summary)  # a link starts at the page's own folder
    return {"file": file, "title": title.lstrip("# "), "summary": summary}


def _lab(stem: str, page: nbformat.NotebookNode, row: dict | None) -> dict:
    """A lab's name, title and cover, and its result (None: not run)."""
    title = page.cells[0].source.partition("\n")[0].lstrip("# ")
    return {"name": stem, "title": title, "cover": page.metadata["cover"], "row": row}


def _places(claim: claims.Claim, pages: dict) -> list[tuple]:
    """Where a claim is measured: (page, place, anchor), without pages missing from this course."""
    return [(s, p, executed.anchor_of(p, s, pages[s])) for s, p in claim.where if s in pages]


def _sphinx(source: Path, out: Path, root: Path) -> str:
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    project = masters.project(root)
    repository = notebooks.repository(project)
    stems = [path.stem for path in source.glob("*.ipynb")]
    colab = {stem: notebooks.colab(f"notebooks/{stem}.ipynb", project) for stem in stems}
    files = {stem: f"labs/{stem}.py" for stem in stems}
    docs = [path.relative_to(root / "docs") for path in (root / "docs").rglob("*.md")]
    files |= {str(path.with_suffix("")): f"docs/{path}" for path in docs}
    conf = CONF | {
        "project": "LoRA Labs",
        "html_theme_options": THEME | {"icon_links": [ICON | {"url": repository}]},
        "html_context": {"default_mode": "auto", "colab": colab, "repository": repository}
        | {"files": files, "version": f"v{project['version']}", "license": project["license"]}
        | {"made": time.strftime("%Y-%m-%d")},
    }
    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        folders = (str(source), None, str(out), str(out.parent / "doctrees"))
        Sphinx(*folders, "html", conf, status=None, warning=warnings, freshenv=True).build(
            force_all=True
        )
    return re.sub(r"\x1b\[[\d;]*m", "", warnings.getvalue())
