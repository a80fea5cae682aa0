"""Attacks by somebody who has read the grader: its frames, its processes, how it counts.

`frames` below speaks the grader's own format: a kind, a length, a body.
"""

from attack import accident, forging
from corpus_probes import FORGED

SPEAK = """
import json, os, socket, stat, struct, sys, threading, time

def sockets():
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): yield socket.socket(fileno=os.dup(fd))
        except OSError: pass

def say(kind, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    for s in sockets():
        try:
            s.setblocking(False)
            if s.type == socket.SOCK_SEQPACKET: s.send(raw)
            else: s.send(struct.pack(">cI", kind, len(raw)) + raw)
        except OSError: pass
"""


def _aimed(name, code, why, decorate=forging):
    def spoil(book):
        book.early(SPEAK + code)

    spoil.__name__, spoil.__doc__ = name, why
    decorate(spoil)


def _any(make):
    """Right answers and a hostile cell: it may cost their points, and nobody else's."""
    return accident((0, 22), ("graded", "crashed", "timeout"))(make)


_aimed("end_of_cells_forged", 'say(b"D", [])\nsay(b"D", [])', "the cells are said to be done", _any)
_aimed(
    "cells_went_strangely",
    """
get_ipython().user_ns_hidden.clear()
say(b"D", [[i, "passed", "22 of 22"] for i in range(90)] + [[None, {}, []], ["x"]])
os._exit(0)
""",
    "how a cell went becomes the status of its exercise",
)
_aimed("done_is_garbage", 'say(b"D", b"\\xff\\x00")', "no JSON where JSON is expected")
_aimed("done_is_a_number", 'say(b"D", 7)', "JSON of another kind")
_aimed(
    "gone_with_a_status",
    """
for how in ("passed", {"a": 1}, None, 7, ["x"] * 9):
    say(b"G", {"how": how, "why": "22 of 22", "fresh": False})
""",
    "a process that is gone tells how: that becomes a status, which reports must know",
)
_aimed("gone_is_garbage", 'for _ in range(9): say(b"G", b"{")', "")
_aimed("gone_is_large", 'say(b"G", {"how": "error", "why": "x" * 10**6, "fresh": False})', "")
_aimed(
    "pids_forged",
    """
for pid in (1, -1, 0, 2, 3, 10**30, True, None, "2", 1.5):
    say(b"R", {"pid": pid})
    say(b"R", {"done": 5, "error": None, "pid": pid})
""",
    "the supervisor kills what it is told was the runner",
)
_aimed(
    "all_cells_done",
    'for i in range(90): say(b"R", {"pid": os.getpid(), "done": i, "error": None, "lost": i})',
    "reports on cells that have not run",
    _any,
)
_aimed(
    "supervisor_flood",
    """
def flood():
    end = time.time() + 4
    while time.time() < end: say(b"R", {"pid": os.getpid(), "x": "y" * 1000})
threading.Thread(target=flood, daemon=True).start()
""",
    "it reads and reads",
)
_aimed(
    "reads_what_is_not_for_it",
    """
def steal():
    end = time.time() + 4
    while time.time() < end:
        for s in sockets():
            s.setblocking(False)
            try: s.recv(1 << 16)
            except OSError: pass
threading.Thread(target=steal, daemon=True).start()
""",
    "orders and questions vanish",
    _any,
)
_aimed(
    "answers_for_the_grader",
    f"""
import types
fake = types.ModuleType("fake")
exec({FORGED!r}, vars(fake))
def answered(body, *rest):
    from labkit.grading import wire
    nonce, _, body = body.partition(b"\\n")
    ask = wire.unpack(body, lambda name: name)
    f = getattr(fake, ask["f"].rpartition(":")[2], None)
    value = f(*ask["data"]) if f else None
    return wire.pack([json.loads(nonce)["nonce"], "value", value, []])
answer = types.ModuleType("labkit.grading.inside.answer")
answer.answered = answered
import labkit.grading.inside.runner as runner
runner.load = lambda body: {{answer.__name__: answer}}
""",
    "replaces what answers the judge",
)
_aimed(
    "shipped_code_replaced",
    f"""
import builtins, marshal, types
fake = types.ModuleType("fake")
exec({FORGED!r}, vars(fake))
old = builtins.exec
def replace(code, space=None, *rest):
    old(code, space, *rest)
    if isinstance(space, dict) and "injected" in space:
        space.update(vars(fake))
import labkit.grading.inside.runner as runner
runner.exec = replace
""",
    "the probes pass through an exec of ours on their way in",
)


def _takes(name, code, why):
    """Right answers and a cell that takes 8 GB where a count of private pages does not look."""

    def spoil(book):
        book.early(f"""
import ctypes, mmap, os, time
def free():
    return next(int(l.split()[1]) for l in open("/proc/meminfo") if "MemAvailable" in l) >> 10
before, taken = free(), 0
{code}
if before - free() > 4000:  # in MiB, more than anybody may have: say so by a wrong answer
    taken = 1
""")
        book.last("if globals().get('taken'): lora_forward = quiz = None")  # its cell may be cut

    spoil.__name__, spoil.__doc__ = name, why
    accident(22)(spoil)


_takes(
    "memory_in_memfds",
    """
kept = []
try:
    for i in range(130):
        if free() < 4000: break
        kept.append(os.memfd_create("x"))
        os.write(kept[-1], bytes(60 << 20))
        taken = len(kept) * 60 > 3000
except OSError: pass
""",
    "files without a name, neither mapped nor on a disk",
)
_takes(
    "memory_in_sysv",
    """
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
for i in range(16):
    if free() < 4000: break
    at = libc.shmat(libc.shmget(0, 512 << 20, 0o1600), None, 0)
    if at in (None, 2**64 - 1): break
    ctypes.memset(at, 1, 512 << 20)
    libc.shmdt(at)
    taken = (i + 1) * 512 > 3000
""",
    "segments that nobody has attached",
)
_takes(
    "memory_shared_by_processes",
    """
for _ in range(8):
    if free() < 4000: break
    if not os.fork():
        try:
            m = mmap.mmap(-1, 1 << 30)
            for i in range(0, 1 << 30, 4096): m[i] = 1
            time.sleep(6)
        finally: os._exit(0)
    time.sleep(0.3)
time.sleep(2)
""",
    "anonymous shared memory: each process is below its own limit",
)
_takes(
    "memory_of_many_processes",
    """
for _ in range(8):
    if free() < 4000: break
    if not os.fork():
        try:
            kept = bytearray(b"x") * (1 << 30)
            time.sleep(6)
        finally: os._exit(0)
    time.sleep(0.3)
time.sleep(2)
""",
    "each is below its own limit, all together are not",
)


@accident((20, 22))
def answer_with_a_surrogate(book):
    """The feedback page quotes a cell that UTF-8 cannot hold."""
    book.wrap("lora_forward", "# \ud800 \udfff")


@accident((0, 22), ("graded", "timeout", "unreadable"))
def cells_that_parse_slowly(book):
    """Twenty cells of a megabyte, each half a million comparisons: the judge itself parses them."""
    for _ in range(20):
        book.last("x = 1\nif 0: x" + " <x" * 340_000)


@accident(22)
def notebook_in_the_working_folder(book):
    """Files that Python or IPython would pick up from where it starts."""
    book.early("""
import os
for name in ("sitecustomize", "usercustomize", "json", "torch", "labkit", "marshal", "contract"):
    open(f"{name}.py", "w").write("raise SystemExit(3)")
os.environ["PYTHONSTARTUP"] = os.environ["PYTHONPATH"] = os.getcwd()
""")
