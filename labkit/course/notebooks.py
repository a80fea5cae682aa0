"""Build the student and the solved notebooks from the masters in labs/."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from labkit.course import limits, masters
from labkit.errors import LabError

MARK = re.compile(r"( *)# (BEGIN|END) (SOLUTION|GIVEN)")
NEARLY_A_MARK = re.compile(r"\b(BEGIN|END)[\s_-]*(SOLUTION|GIVEN)", re.IGNORECASE)
CELL = re.compile(r"# ?%%")
MAGIC = re.compile(r"^( *)[%!].*", re.MULTILINE)
FOLDERS = {"notebooks": False, "solutions": True}  # folder -> is it solved?
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Colab and JupyterLab show only the first line of the set-up cell
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
# With --target, installed packages don't change. The folder is called site-packages, else dill, and
# so datasets, would pickle modules by value. colab.py does the rest.
COLAB = "https://colab.research.google.com"
KAGGLE = "https://www.kaggle.com"
GITHUB = "https://github.com/"
SET_UP = Path(__file__).parents[1] / "templates" / "colab_setup.py.j2"


class BuildError(LabError, ValueError):
    """A master that cannot be built; the message names the file and the line number."""


def build(root: Path, check: bool = False) -> list[str]:
    """Write both notebooks of each master under root; with check, write nothing.

    Returns the notebooks that changed (or would), relative to root. BuildError for a faulty master.
    """
    project, changed = masters.project(root), []
    for master in sorted((root / "labs").glob("*.py")):
        made = {}
        try:
            text = master.read_text("utf-8")
            for folder, solved in FOLDERS.items():
                name = f"{folder}/{master.stem}.ipynb"
                made[name] = to_notebook(cut(text, solved), name, project)
            _look_over(master.stem, text)
        except UnicodeDecodeError as error:
            raise BuildError(f"labs/{master.name}, line 1: not UTF-8: {error}") from None
        except BuildError as error:
            raise BuildError(f"labs/{master.name}, {error}") from None
        for name, new in made.items():
            path = root / name
            if not path.is_file() or path.read_text("utf-8", "replace") != new:
                changed.append(name)
                if not check:
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(new, "utf-8", newline="\n")
    return changed


def lint(root: Path) -> list[str]:
    """Ruff's findings in the masters, one line each; [] without ruff."""
    places, found = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)), []
    ruff = shutil.which("ruff", path=os.pathsep.join(places))
    how = {"cwd": root, "env": os.environ | {"RUFF_OUTPUT_FORMAT": "concise"}}
    for options in (["check", "--quiet"], ["format", "--check"]) if ruff else ():
        done = subprocess.run([ruff, *options, "labs"], **how, capture_output=True, text=True)
        found += (done.stdout + done.stderr).splitlines() if done.returncode else []
    return found


def _look_over(stem: str, text: str) -> None:
    """Raise BuildError for an early mistake: a wrong file name, syntax, or lab started."""
    if not re.fullmatch(r"\d\d_\w+", stem):
        raise BuildError("line 1: a master's name needs two digits and a word, such as 07_norms.py")
    try:
        ast.parse(MAGIC.sub(r"\1pass", text))
    except SyntaxError as error:
        raise BuildError(f"line {error.lineno}: {error.msg}") from None
    for number, line in enumerate(text.splitlines(), 1):
        started = re.search(r"labkit\.start\(\W*(\w+)", line)
        if started and started[1] != stem:
            raise BuildError(f"line {number}: this is lab {stem!r}, but it starts {started[1]!r}")


def cut(text: str, solved: bool = False) -> str:
    """A master's text, with stubs or given code for solutions, or if `solved` without the marks."""
    lines, block, start, indent, word = [], None, 0, "", ""
    ended, before = None, 0  # the last solution's end; length of `lines` before
    for number, line in enumerate(text.splitlines(), 1):
        mark = MARK.fullmatch(line)
        if not mark and (nearly := NEARLY_A_MARK.search(line)):
            why = f"a mark must be exactly '# BEGIN {nearly[2].upper()}'"
            raise BuildError(f"line {number}: {why}")
        if mark and mark[2] == "BEGIN":
            if block is not None:
                why = f"BEGIN {mark[3]} inside the block of line {start}"
                raise BuildError(f"line {number}: {why}")
            if mark[3] == "GIVEN" and ended != (number - 1, mark[1]):
                why = "BEGIN GIVEN must be right below END SOLUTION, with the same indent"
                raise BuildError(f"line {number}: {why}")
            block, start, indent, word = [], number, mark[1], mark[3]
        elif mark:
            if block is None or mark[3] != word:
                raise BuildError(f"line {number}: END {mark[3]} without BEGIN {mark[3]}")
            if mark[1] != indent:
                raise BuildError(f"line {number}: END {word} is not indented like line {start}")
            if word == "SOLUTION":
                ended, before = (number, indent), len(lines)
                lines += block if solved else _stub(block, indent, start)
            elif not solved:
                lines[before:] = _given(block, indent, start)
            block = None
        elif block is None:
            lines.append(line)
        elif CELL.match(line):
            why = f"the {word.lower()} block runs into the cell of line {number}"
            raise BuildError(f"line {start}: {why}")
        else:
            block.append(line)
    if block is not None:
        raise BuildError(f"line {start}: BEGIN {word} without END {word}")
    return "\n".join(lines) + "\n"


def _given(block: list[str], indent: str, start: int) -> list[str]:
    code = []
    for number, line in enumerate(block, start + 1):
        text = line.removeprefix(f"{indent}#")
        if text == line or text[:1] not in ("", " "):
            raise BuildError(f"line {number}: each line of given code must begin with '# '")
        code.append(f"{indent}{text[1:]}".rstrip())
    if not any(code):
        raise BuildError(f"line {start}: the given block has no code")
    return code


def _stub(block: list[str], indent: str, start: int) -> list[str]:
    n_lines = sum(1 for line in block if line.strip() and not line.strip().startswith("#"))
    if not n_lines:
        raise BuildError(f"line {start}: the solution block has no code")
    unit = "line" if n_lines == 1 else "lines"
    return [f"{indent}# TODO: about {n_lines} {unit}", f"{indent}raise NotImplementedError"]


def to_notebook(text: str, name: str, project: dict) -> str:
    """The JSON text of the notebook called `name`, without outputs and ids.

    BuildError for a lab with `{{ time }}` that exceeds a limit.
    """
    import jupytext
    import nbformat

    cells = jupytext.reads(text, fmt="py:percent").cells
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
        raise BuildError("line 1: the first cell must be markdown and begin with the title, '# …'")
    if lost := [title for cell in cells if (title := cell.metadata.get("title"))]:
        raise BuildError(f"begin the text on the line after `# %% [markdown]`: {lost[0]}")
    title, _, rest = cells[0].source.partition("\n")
    cells[0].source = "\n\n".join(part for part in (title, badge(name, project), rest) if part)
    cells.insert(1, nbformat.v4.new_code_cell(bootstrap(project)))
    if limits.TIME in cells[0].source:
        cells[0].source = cells[0].source.replace(limits.TIME, limits.stated_time(cells))
        if broken := limits.broken(cells):
            raise BuildError(f"line 1: {'; '.join(broken)}")
    book = {"nbformat": 4, "nbformat_minor": 4, "metadata": METADATA}  # 4.4: no cell ids yet
    book["cells"] = [_plain(cell) for cell in cells]
    book["cells"][1]["metadata"] = FOLDED
    return nbformat.writes(nbformat.from_dict(book)) + "\n"


def _plain(cell: dict) -> dict:
    tags = cell.metadata.get("tags")
    bare = {
        "cell_type": cell.cell_type,
        "metadata": {"tags": tags} if tags else {},
        "source": cell.source,
    }
    return bare | ({"execution_count": None, "outputs": []} if cell.cell_type == "code" else {})


def badge(name: str, project: dict) -> str:
    """Markdown that opens the notebook in Colab, Kaggle or a Codespace; "" if not on GitHub."""
    if not (link := colab(name, project)):
        return ""
    source = f"{repository(project)}/blob/v{project['version']}/{name}"
    kaggle = f"{KAGGLE}/kernels/welcome?src={source}"
    codespaces = f"https://codespaces.new/{repository(project).removeprefix(GITHUB)}"
    badges = (
        ("Colab", f"{COLAB}/assets/colab-badge.svg", link),
        ("Kaggle", f"{KAGGLE}/static/images/open-in-kaggle.svg", kaggle),
        ("Codespaces", "https://github.com/codespaces/badge.svg", codespaces),
    )
    return " ".join(f"[![Open in {place}]({image})]({to})" for place, image, to in badges)


def colab(name: str, project: dict) -> str:
    """The address that opens the notebook in Colab; "" if it is not on GitHub."""
    github, _, path = repository(project).partition(GITHUB)
    if github or not path:
        return ""
    return f"{COLAB}/github/{path}/blob/v{project['version']}/{name}"


def bootstrap(project: dict) -> str:
    """The cell that installs the course in Colab or Kaggle and does nothing elsewhere."""
    course = f"git+{repository(project)}@v{project['version']}"
    return SET_UP.read_text("utf-8").replace("{{ course }}", course)


def repository(project: dict) -> str:
    """The repository's address, from pyproject's urls."""
    return project["urls"]["Repository"].removesuffix("/").removesuffix(".git")
