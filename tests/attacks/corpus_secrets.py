"""Wrong answers that look for right ones: on the disk, in memory, in other processes.

A find is `won = True`, or the answer itself under the exercise's name.
"""

import tomllib

from attack import ROOT, cells, forging

QUIZ = tomllib.loads((ROOT / "labkit/checks/lab02.toml").read_text(encoding="utf-8"))["quiz"]
SENTENCE = QUIZ["q1"]["c"].removesuffix(".") + "[.]"  # a pattern that does not find itself
HUNT = f"""
import os, time
SENTENCE = {SENTENCE.encode()!r}
SKIP = ("/proc", "/sys", "/dev")
def walk(*roots, most=20):
    end = time.time() + most
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [d for d in folders if not os.path.join(folder, d).startswith(SKIP)]
            for name in files: yield os.path.join(folder, name)
            if time.time() > end: return
"""

cells(
    """
# %% solutions_by_labkit: the function that reveal() uses
from labkit.reference import reference
try: exec(reference("02_lora", "2.1")); won = True
except Exception: pass

# %% files_with_answers: notebooks, masters, tests and checks, anywhere on the disk
names = ("02_lora.ipynb", "02_lora.py", "lab02.py")
words = ("alpha / r) * (x @ A.T)", "def matches_dense")
for path in walk(HOST["repo"], HOST["home"], "/"):
    if path.endswith(("lab02.toml", "checks/engine.py", "/canary")): won = True
    if path.endswith(names):
        try: text = open(path).read()
        except OSError: continue
        if any(word in text for word in words): won = True

# %% other_submissions: the neighbours' notebooks
mine = HOST["name"] + ".ipynb"
for path in walk(HOST["submissions"], "/tmp", "/var/tmp", "/dev/shm", "/mnt", "/home", os.getcwd()):
    if path.endswith(".ipynb") and not path.endswith(mine):
        if "solved_neighbour" in open(path, errors="replace").read(): won = True

# %% other_submissions_in_memory: the worker that it was forked from has graded others
import gc, re  # the pattern is not the word, so that this cell does not find itself
for o in gc.get_objects():
    if isinstance(o, (dict, list, tuple)):
        for v in (o.values() if isinstance(o, dict) else o):
            if isinstance(v, str) and re.search("a_solved[_]neighbour", v): won = True

# %% checks_in_memory: keys or checks that are loaded here
import gc, sys
CHECKS = ("labkit.checks.lab02", "labkit.checks.engine")
won = "labkit.checks.lab02" in sys.modules
for o in gc.get_objects():
    if isinstance(o, dict) and {"answer", "a", "b"} <= o.keys(): won = True
    if type(o).__name__ == "function" and o.__module__ in CHECKS: won = True

# %% own_memory: the pages of this process, for a sentence of the quiz key
import re
secret = re.compile(SENTENCE)
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as mem:
    for line in maps:
        a, b = (int(n, 16) for n in line.split()[0].split("-"))
        if " rw" in line and b - a < 1 << 28:
            try:
                mem.seek(a)
                if secret.search(mem.read(b - a)): won = True
            except (OSError, ValueError, OverflowError): pass

# %% frames_of_the_worker: variables of whoever called
import inspect, sys
for info in inspect.stack():
    for value in info.frame.f_locals.values():
        if isinstance(value, dict) and ("earned" in value or "checks" in value): won = True
""",
    forging,
    "last",
    before=HUNT,
)
