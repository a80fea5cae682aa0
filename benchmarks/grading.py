"""Seconds and memory per submission: `labkit grade` next to nbgrader, otter and bare nbclient.

The submissions are copies of lab 2 in which one exercise in five is still a stub. Experiments are
removed, since the other tools don't support that tag. Every tool runs the same cells: the check
cells are graded cells for nbgrader and tests for otter. The tools grade on this machine, one after
the other, each called as a person would call it. They are installed in a separate environment,
which borrows torch and labkit from this one.

    python benchmarks/grading.py --n 100 --peers 10 --out build/grading.json

Only speeds are compared. Memory is the total over a tool's processes, with shared pages counted
once (PSS, sampled twice a second).
"""

import argparse
import os
import random
import re
import shutil
import site
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import nbformat
import psutil
import studies

ROOT = Path(__file__).parents[1]
LAB = "02_lora"
PACKAGES = ("nbgrader==0.9.6", "otter-grader==7.0.0")
OTTER_TEST = '''from otter.test_files import test_case

OK_FORMAT = False
name = "{name}"
points = 1


@test_case()
def passes(env):
    exec("""{source}""", env)
'''


def cells_of(folder):
    book = nbformat.read(ROOT / folder / f"{LAB}.ipynb", 4)
    return [c for c in book.cells if "experiment" not in c.metadata.get("tags", ())]


def submission(rng):
    """A notebook of lab 2 in which each exercise is solved with a probability of four fifths."""
    pairs = zip(cells_of("notebooks"), cells_of("solutions"), strict=True)
    book = nbformat.v4.new_notebook(
        cells=[solved if rng.random() < 0.8 else stub for stub, solved in pairs]
    )
    checks = [c for c in book.cells if is_check(c)]
    for i, cell in enumerate(checks):  # what nbgrader keys its grades on; labkit looks at no such
        cell.metadata["nbgrader"] = {
            **{"grade_id": f"check{i}", "points": 1, "schema_version": 3},
            **{"grade": True, "locked": True, "solution": False, "task": False},
        }
    return book


def is_check(cell):
    """Whether a cell calls a check and nothing else."""
    return cell.cell_type == "code" and re.fullmatch(r"check\.\w+\([\w, ]*\)", cell.source.strip())


def measured(command, folder):
    """Run a command; `(seconds, peak bytes, what it printed)`. Raises when it fails."""
    began, log = time.perf_counter(), folder / "log.txt"
    with log.open("w") as out:
        path = f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader's helpers
        process = psutil.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PATH": path},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        peak, done = [0], threading.Event()
        watcher = threading.Thread(target=watch, args=(process, peak, done), daemon=True)
        watcher.start()
        code = process.wait()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{command[0]} failed:\n{log.read_text()[-2000:]}")
    return seconds, peak[0], log.read_text()


def watch(process, peak, done):
    """Keep the largest sum of PSS of a process and its children in peak[0]."""
    while not done.wait(0.5):
        total = 0
        for p in [process, *process.children(recursive=True)]:
            try:
                total += p.memory_full_info().pss
            except (psutil.Error, AttributeError, ValueError):
                continue
        peak[0] = max(peak[0], total)


def peers_python(folder):
    """The interpreter of an environment with the other tools; made when it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print("installing nbgrader and otter into an environment of their own ...", flush=True)
        venv.create(folder, with_pip=True)
        (mine,) = (p for p in site.getsitepackages() if "site-packages" in p)
        code = "import site; print(site.getsitepackages()[0])"
        theirs = subprocess.run([python, "-c", code], text=True, capture_output=True, check=True)
        borrowed = f"import site; site.addsitedir({mine!r})\n"
        (Path(theirs.stdout.strip()) / "course.pth").write_text(borrowed)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return str(python)


def ours(books, folder, *options):
    """`labkit grade` of a folder, its reports included; jobs as it chooses them."""
    write(books, folder / "in")
    program = Path(sys.executable).with_name("labkit")
    return measured([program, "grade", "in", "--out", "out", *options], folder)


def bare_nbclient(python, books, folder):
    """Each notebook in a kernel of its own: no grades, the floor for all tools that do this."""
    write(books, folder)
    code = (
        "import sys, nbformat; from nbclient import NotebookClient\n"
        "for path in sys.argv[1:]:\n"
        "    NotebookClient(nbformat.read(path, 4), timeout=120, allow_errors=True).execute()"
    )
    return measured([python, "-c", code, *sorted(p.name for p in folder.glob("*.ipynb"))], folder)


def nbgrader(python, books, folder):
    """`nbgrader autograde` of an assignment."""
    config = 'c = get_config()\nc.CourseDirectory.course_id = "lora"\n'
    (folder / "nbgrader_config.py").write_text(config + "c.ExecutePreprocessor.timeout = 120\n")
    write({"lab": submission(random.Random(0))}, folder / "source" / "lab")
    measured([python, "-m", "nbgrader", "generate_assignment", "lab", "--force"], folder)
    for name, book in books.items():
        write({"lab": book}, folder / "submitted" / name / "lab")
    return measured([python, "-m", "nbgrader", "autograde", "lab"], folder)


def otter(python, books, folder):
    """`otter run` of each notebook, one call a notebook, as its documentation has it."""
    checks = [c.source for c in cells_of("solutions") if is_check(c)]
    (folder / "tests").mkdir()
    for i, source in enumerate(checks):
        text = OTTER_TEST.format(name=f"q{i}", source=source)
        (folder / "tests" / f"q{i}.py").write_text(text)
    program = str(Path(python).with_name("otter"))
    measured([program, "generate", "-t", "tests", "-o", "autograder.zip"], folder)
    write(books, folder / "in")
    runs = []
    for name in books:
        (folder / f"out_{name}").mkdir()
        command = [program, "run", "-a", "autograder.zip", "-o", f"out_{name}", f"in/{name}.ipynb"]
        runs.append(measured(command, folder))
    return sum(run[0] for run in runs), max(run[1] for run in runs), runs[-1][2]


def write(books, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, book in books.items():
        nbformat.write(book, folder / f"{name}.ipynb")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="submissions for labkit")
    parser.add_argument("--peers", type=int, default=10, help="submissions for each other tool")
    parser.add_argument("--folder", type=Path, default=Path("build/grading"), help="emptied first")
    parser.add_argument("--env", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, help="write what was measured, as JSON")
    options = parser.parse_args()
    rng = random.Random(0)
    books = {f"s{i:04}": submission(rng) for i in range(max(options.n, options.peers))}
    few = dict(list(books.items())[: options.peers])
    python, rows = peers_python(options.env.absolute()), {}
    shutil.rmtree(options.folder, ignore_errors=True)
    tools = {
        "labkit grade": lambda f: ours(dict(list(books.items())[: options.n]), f),
        "labkit grade, one job": lambda f: ours(few, f, "--jobs", "1"),
        "bare nbclient": lambda f: bare_nbclient(python, few, f),
        "nbgrader": lambda f: nbgrader(python, few, f),
        "otter": lambda f: otter(python, few, f),
    }
    print(f"{'tool':<24} {'n':>4} {'seconds':>8} {'each':>7} {'peak GB':>8}")
    for tool, run in tools.items():
        n = options.n if tool == "labkit grade" else options.peers
        folder = options.folder.absolute() / re.sub(r"\W+", "_", tool)
        folder.mkdir(parents=True)
        seconds, peak, _ = run(folder)
        rows[tool] = {"n": n, "seconds": seconds, "each": seconds / n, "peak_bytes": peak}
        print(
            f"{tool:<24} {n:>4} {seconds:>8.1f} {seconds / n:>7.2f} {peak / 1e9:>8.2f}", flush=True
        )
    ratio = rows["nbgrader"]["each"] / rows["labkit grade"]["each"]
    print(f"labkit grade is {ratio:.1f} times as fast as nbgrader")
    studies.note(options.out, rows)


if __name__ == "__main__":
    main()
