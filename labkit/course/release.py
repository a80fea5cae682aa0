"""Make copies for students and Gradescope: the course without solutions, masters and tests.

The solutions that `lab.reveal` needs there are encoded, so nobody reads them by accident.
"""

import base64
import re
import shutil
import tomllib
from pathlib import Path

import jinja2

from labkit import reference
from labkit.course import masters, notebooks
from labkit.errors import LabError
from labkit.files import TEMPLATES

AS_IT_IS = (".gitignore", "LICENSE", "constraints.txt", "environment.yml")
# in the order of the book
GUIDES = ("learner", "troubleshooting", "words", "papers", "own-data", "memory", "gpu")
NOT_SHIPPED = ("__pycache__", "_solutions", "_lent", ".*")
SOLUTIONS = re.compile(r"\n\[tool\.hatch\.build\.targets\.wheel\.force-include\]\n[^\[]*\n(?=\[)")


def release(root: Path, out: Path, repository: str | None = None) -> list[str]:
    """Make the students' copy of the course at `root` in the new folder `out`; return its files.

    `repository` is where that copy will be published; Colab installs labkit from there. LabError
    when `out` is not empty, or the notebooks differ from labs/.
    """
    _prepare(root, out)
    _package(root, out, repository)
    project = masters.project(out)
    (out / "notebooks").mkdir()
    for master in masters.masters(root):
        name = f"notebooks/{master.stem}.ipynb"
        text = notebooks.to_notebook(notebooks.cut(master.read_text("utf-8")), name, project)
        (out / name).write_text(text, "utf-8", newline="\n")
    for name in AS_IT_IS:
        shutil.copy(root / name, out / name)
    address = project["urls"]["Repository"]
    own = masters.project(root)["urls"]["Repository"]  # the course's, with solutions
    (out / "docs" / "evidence").mkdir(parents=True)
    for page in [*(root / "docs" / f"{n}.md" for n in GUIDES), *root.glob("docs/evidence/*.md")]:
        text = page.read_text("utf-8").replace(own, address)
        (out / page.relative_to(root)).write_text(text, "utf-8", newline="\n")
    (out / "Makefile").write_text(makefile((root / "Makefile").read_text("utf-8")), "utf-8")
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def autograders(root: Path, out: Path, checks: Path | None = None) -> list[str]:
    """Make one zip per lab for Gradescope in the new folder `out`; return their names.

    `checks` is a file of private checks that goes into each zip. LabError as in `release`.
    """
    _prepare(root, out)
    source = out / "source"
    _package(root, source)
    shutil.copy(root / "LICENSE", source / "LICENSE")
    shutil.copy(root / "constraints.txt", source / "constraints.txt")
    shutil.copy(TEMPLATES / "gradescope_setup.sh", source / "setup.sh")
    (source / "setup.sh").chmod(0o755)
    if checks:
        shutil.copy(checks, source / "private_checks.py")
    made = [_autograder(source, out / f"{master.stem}.zip") for master in masters.masters(root)]
    shutil.rmtree(source)
    return made


def _autograder(source: Path, path: Path) -> str:
    """Zip the folder `source` with the program that grades the lab in the zip's name."""
    run = source / "run_autograder"
    text = (TEMPLATES / "gradescope_run.sh").read_text("utf-8")
    run.write_text(text.replace("LAB", path.stem), "utf-8", newline="\n")
    run.chmod(0o755)
    shutil.make_archive(str(path.with_suffix("")), "zip", source)
    return path.name


def _prepare(root: Path, out: Path) -> None:
    """Make the folder `out`; LabError if it is not empty, or if notebooks are out of date."""
    if stale := notebooks.build(root, check=True):
        raise LabError(f"out of date with labs/: {', '.join(stale)}; run 'labkit build' first")
    if out.is_dir() and any(out.iterdir()):
        raise LabError(f"{out} is not empty: choose another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)


def _package(root: Path, out: Path, repository: str | None = None) -> None:
    """Copy what pip needs for labkit into `out`: code, pyproject and README, but no solutions."""
    ignore = shutil.ignore_patterns(*NOT_SHIPPED)
    shutil.copytree(root / "labkit", out / "labkit", ignore=ignore)
    checks = out / "labkit" / "checks"
    for key in checks.glob("lab??.toml"):
        key.with_suffix(".b64").write_bytes(base64.encodebytes(key.read_bytes()))
        key.unlink()
    (out / "labkit" / "_lent").mkdir()
    for master in masters.masters(root):
        books = (root / folder / f"{master.stem}.ipynb" for folder in ("solutions", "notebooks"))
        (out / "labkit" / "_lent" / f"{master.stem}.b64").write_bytes(reference.packed(*books))
    text, n = SOLUTIONS.subn("\n", (root / "pyproject.toml").read_text("utf-8"))
    if n != 1 or "solutions" in tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["wheel"]:
        raise LabError("pyproject.toml changed: its wheel would still need the solutions")
    if repository:
        text = re.sub(r'(?m)^Repository = ".*"$', f'Repository = "{repository}"', text)
    (out / "pyproject.toml").write_text(text, "utf-8", newline="\n")
    labs = [(f"notebooks/{m.stem}.ipynb", masters.title(m)) for m in masters.masters(root)]
    readme = jinja2.Template((TEMPLATES / "release_readme.md.j2").read_text("utf-8"))
    (out / "README.md").write_text(readme.render(labs=labs) + "\n", "utf-8", newline="\n")


def makefile(text: str) -> str:
    """The course's Makefile with only the targets that students need: `setup` and `lab`."""
    others = re.compile(r"(?!setup:|lab:)[\w-]+:")
    blocks = "\n\n".join(block for block in text.split("\n\n") if not others.match(block))
    blocks = re.sub(r"(?m)^\.PHONY: .*$", ".PHONY: setup lab", blocks)
    return re.sub(r"(?m)^(NBVAL|PYTEST) .*\n", "", blocks)
