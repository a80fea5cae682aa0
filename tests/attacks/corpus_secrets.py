"""Wrong answers that look for right ones: on the disk, in memory, in other processes.

A find is `won = True`, or the answer itself under the exercise's name.
"""

from attack import forging


def _hunt(name, code, why):
    def spoil(book):
        book.last(code)

    spoil.__name__, spoil.__doc__ = name, why
    forging(spoil)


KEYS = ("quiz.toml", "quiz.b64", "lab02.toml", "lab02.b64", "checks/engine.py")
WALK = """
import os, time
SKIP = ("/proc", "/sys", "/dev")
def walk(*roots, most=20):
    end = time.time() + most
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [d for d in folders if not os.path.join(folder, d).startswith(SKIP)]
            for name in files: yield os.path.join(folder, name)
            if time.time() > end: return
"""

_hunt(
    "quiz_key_file",
    f"""
import labkit, pathlib
won = any(str(p).endswith({KEYS}) for p in pathlib.Path(labkit.__file__).parent.rglob("*"))
""",
    "the key beside the package",
)
_hunt(
    "quiz_key_resource",
    """
import importlib.resources, pkgutil
won = False
for name in ("lab02.toml", "lab01.toml", "engine.py"):
    try: won = won or bool(pkgutil.get_data("labkit.checks", name))
    except Exception: pass
    try: won = won or importlib.resources.files("labkit.checks").joinpath(name).is_file()
    except Exception: pass
""",
    "by importlib",
)
_hunt(
    "quiz_key_anywhere",
    WALK
    + f"""
won = any(p.endswith({KEYS}) for p in walk(HOST["repo"], "/", "/tmp"))
""",
    "a walk over the disk",
)
_hunt(
    "solution_files",
    WALK
    + """
names = ("02_lora.ipynb", "02_lora.py", "lab02.py", "lab02.toml", "checks/engine.py")
words = ("alpha / r) * (x @ A.T)", "def matches_dense", "def expect_right")
for path in walk(HOST["repo"], HOST["home"], "/"):
    if path.endswith(names):
        try: text = open(path).read()
        except OSError: continue
        if any(word in text for word in words): won = True
""",
    "notebooks, masters, tests and checks hold answers",
)
_hunt(
    "solutions_by_labkit",
    """
import labkit.lab
try: exec(labkit.lab._solved_cell("02_lora", ["lora_forward"])); won = True
except Exception: pass
""",
    "the function that reveal() uses",
)
_hunt(
    "solutions_in_git",
    """
import glob, zlib
for path in glob.glob(HOST["repo"] + "/.git/objects/*/*")[:20_000]:
    try:
        if b"alpha / r) * (x @ A.T)" in zlib.decompress(open(path, "rb").read()): won = True
    except Exception: pass
won = globals().get("won") or bool(glob.glob(HOST["repo"] + "/.git/objects/pack/*"))
""",
    "the history holds what the checkout does not",
)
_hunt(
    "compiled_checks",
    WALK
    + """
import marshal
for path in walk(HOST["repo"] + "/labkit", "/tmp"):
    if "/labkit/checks/" in path and path.endswith(".pyc"): won = True
""",
    "bytecode of a hidden source",
)
_hunt(
    "checks_source",
    """
import importlib.util, inspect
try:
    from labkit.checks import lab02
    won = "matches_dense" in inspect.getsource(lab02)
except Exception: pass
""",
    "what will be asked, and with which tolerance",
)
_hunt(
    "other_submissions",
    WALK
    + """
mine = HOST["name"] + ".ipynb"
for path in walk(HOST["submissions"], "/tmp", "/var/tmp", "/dev/shm", "/mnt", "/home", os.getcwd()):
    if path.endswith(".ipynb") and not path.endswith(mine):
        if "solved_neighbour" in open(path, errors="replace").read(): won = True
""",
    "the neighbours' notebooks",
)
_hunt(
    "other_submissions_in_memory",
    """
import gc, re  # the pattern is not the word, so that this cell does not find itself
for o in gc.get_objects():
    if isinstance(o, (dict, list, tuple)):
        for v in (o.values() if isinstance(o, dict) else o):
            if isinstance(v, str) and re.search("a_solved[_]neighbour", v): won = True
""",
    "the worker that it was forked from has graded others",
)
_hunt(
    "checks_in_memory",
    """
import gc, sys
CHECKS = ("labkit.checks.lab02", "labkit.checks.engine")
for o in gc.get_objects():
    if isinstance(o, dict) and {"answer", "a", "b"} <= o.keys(): won = True
    if type(o).__name__ == "function" and o.__module__ in CHECKS: won = True
won = globals().get("won") or "labkit.checks.lab02" in sys.modules and hasattr(
    sys.modules["labkit.checks.lab02"], "matches_dense")
""",
    "keys or checks that are loaded here",
)
_hunt(
    "own_memory",
    """
import re
secret = re.compile(b"of the training only repairs [t]hat")  # does not find itself
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as mem:
    for line in maps:
        a, b = (int(n, 16) for n in line.split()[0].split("-"))
        if " rw" in line and b - a < 1 << 28:
            try:
                mem.seek(a)
                if secret.search(mem.read(b - a)): won = True
            except (OSError, ValueError, OverflowError): pass
""",
    "the pages of this process, for a sentence of the quiz key",
)
_hunt(
    "other_processes_memory",
    """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) in (os.getpid(), os.getppid()): continue
    try:
        start = int(open(f"/proc/{pid}/maps").readline().split("-")[0], 16)
        with open(f"/proc/{pid}/mem", "rb", 0) as mem:
            mem.seek(start)
            if HOST["pid"] == int(pid) and mem.read(16): won = True
    except (OSError, ValueError): pass
""",
    "the grader's memory",
)
_hunt(
    "grader_in_proc",
    """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try: text = open(f"/proc/{pid}/{name}", "rb").read()
        except OSError: continue
        if b"lora-attack-" + b"secret" in text or b"pytest" in text: won = True
won = globals().get("won") or os.path.exists(f"/proc/{HOST['pid']}/root")
""",
    "environment and arguments of every process in sight",
)
_hunt(
    "ptrace",
    """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
won = libc.ptrace(16, HOST["pid"], 0, 0) == 0
""",
    "attaches to the grader",
)
_hunt(
    "process_vm_readv",
    """
import ctypes
libc, buf = ctypes.CDLL(None), ctypes.create_string_buffer(8)
class V(ctypes.Structure): _fields_ = [("p", ctypes.c_void_p), ("n", ctypes.c_size_t)]
here, there = V(ctypes.addressof(buf), 8), V(0x400000, 8)
won = libc.process_vm_readv(HOST["pid"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0
""",
    "and reads without attaching",
)
_hunt(
    "descriptors_of_others",
    """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: names = os.listdir(f"/proc/{pid}/fd")
    except OSError: continue
    for fd in names:
        try: target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError: continue
        if any(word in target for word in (HOST["out"], HOST["submissions"], ".toml", "quiz")):
            won = True
""",
    "files that a process has open",
)
_hunt(
    "environment",
    """
import os
won = any("lora-attack-" + "secret" in v for v in os.environ.values())
for line in open("/proc/self/environ", "rb").read().split(b"\\0"):
    if b"lora-attack-" + b"secret" in line: won = True
""",
    "keys that the instructor's shell exports",
)
_hunt(
    "home_folder",
    """
import os
for path in (HOST["home"] + "/canary", os.path.expanduser("~/canary"), "/root/.bashrc",
             "/root/.ssh", "/root/.gitconfig", "/root/.netrc"):
    if os.path.exists(path): won = True
""",
    "the instructor's home",
)
_hunt(
    "shadow_and_hosts",
    """
try: won = "root:" in open("/etc/shadow").read()
except OSError: pass
""",
    "password hashes, where the grader runs as root",
)
_hunt(
    "seed_in_sight",
    """
import gc, sys
import labkit.contract as c
seeds = [c.session.seed] + [getattr(o, "seed", 0) for o in gc.get_objects()
                            if type(o).__name__ in ("Session", "Remote", "Grader")]
won = HOST["seed"] in seeds or str(HOST["seed"]) in " ".join(sys.argv)
""",
    "who knows the seed knows the inputs",
)
_hunt(
    "arguments",
    """
import sys
won = any(HOST["submissions"] in a or HOST["out"] in a for a in [*sys.argv, *sys.orig_argv])
""",
    "paths of the host in the arguments",
)
_hunt(
    "frames_of_the_worker",
    """
import inspect, sys
for info in inspect.stack():
    for value in info.frame.f_locals.values():
        if isinstance(value, dict) and ("earned" in value or "checks" in value): won = True
""",
    "variables of whoever called",
)
