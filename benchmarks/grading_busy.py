"""Grade solved submissions on an idle machine, then on one that is busy computing.

The submissions are solved copies of all eight labs. Every other copy also leaves something running
or prints endlessly, as learners' notebooks do. The copies are graded twice, the second time next to
`--busy` processes. All rows must be the same, with full marks.

    python benchmarks/grading_busy.py --n 300 --busy 4
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
HABITS = {  # what is added as a last cell
    "a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()",
    "a pool": "import multiprocessing\npool = multiprocessing.get_context('fork').Pool(2)",
    "a pool of threads": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(4)
list(pool.map(abs, [-1, 2]))
""",
    "a loader": """
import torch
loader = torch.utils.data.DataLoader(torch.arange(8), 2, num_workers=2, persistent_workers=True)
batches = iter(loader)
next(batches)
""",
    "progress bars": """
import sys
from tqdm.auto import tqdm
for _ in tqdm(range(50)): print("\\r" + "#" * (1 << 20), file=sys.stderr)
""",
    "a slow cell": "import time\ntime.sleep(3)",
}


def write(folder, n):
    """`n` notebooks, no two of the same content; the labs and the habits take turns."""
    books = [nbformat.read(path, 4) for path in sorted((ROOT / "solutions").glob("*.ipynb"))]
    habits = list(HABITS.values())
    for i in range(n):
        book, turn = books[i % len(books)].copy(), i // len(books)
        last = f"# {i}\n" + (habits[turn // 2 % len(habits)] if turn % 2 else "")
        book.cells = [*book.cells, nbformat.v4.new_code_cell(last)]
        nbformat.write(book, folder / f"s{i:04}.ipynb")


def graded(folder, out, jobs):
    """`(rows of results.json, seconds)` of one call of the command."""
    command = [sys.executable, "-m", "labkit", "grade", str(folder)]
    began = time.perf_counter()
    command += ["--out", str(out), "--seed", "1", "--jobs", str(jobs)]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((out / "results.json").read_text()), time.perf_counter() - began


@contextlib.contextmanager
def busy(n):
    """`n` processes that compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def grade_of(row):
    """What must not depend on the machine."""
    marks = [(e["id"], e["status"], e["earned"]) for e in row["exercises"]]
    return row["status"], row["earned"], marks, row.get("reason")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="submissions")
    parser.add_argument("--busy", type=int, default=4, help="processes that compute beside")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/busy"), help="emptied first")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    (options.folder / "in").mkdir(parents=True)
    write(options.folder / "in", options.n)
    results = []
    for n in (0, options.busy):
        with busy(n):
            rows, seconds = graded(options.folder / "in", options.folder / f"out{n}", options.jobs)
        results.append({row["submission"]: row for row in rows})
        full = sum(row["earned"] == row["possible"] for row in rows)
        each = seconds / options.n
        print(f"beside {n} processes: {full} of {options.n} with full marks, {each:.2f} s each")
    idle, beside = results
    other = [name for name in idle if grade_of(idle[name]) != grade_of(beside[name])]
    print(f"{len(other)} grades differ", *other)
    raise SystemExit(bool(other))


if __name__ == "__main__":
    main()
