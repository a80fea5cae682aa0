"""Attacks by somebody who has read the grader: its frames, its processes, how it counts.

`say` speaks the grader's own format: a kind, a length, a body.
"""

from attack import accident, cells, named, parts
from forged import PUT

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

cells(
    """
# %% end_of_cells_forged: the cells are said to be done
say(b"D", [])
say(b"D", [])

# %% all_cells_done: reports on cells that have not run
for i in range(90): say(b"R", {"pid": os.getpid(), "done": i, "error": None, "lost": i})

# %% reads_what_is_not_for_it: orders and questions vanish
def steal():
    end = time.time() + 4
    while time.time() < end:
        for s in sockets():
            s.setblocking(False)
            try: s.recv(1 << 16)
            except OSError: pass
threading.Thread(target=steal, daemon=True).start()
""",
    # it may cost the points of its own answers
    accident((0, 22), ("graded", "crashed", "timeout")),
    before=SPEAK,
)

cells(
    r"""
# %% cells_went_strangely: how a cell went becomes the status of its exercise
get_ipython().user_ns_hidden.clear()
say(b"D", [[i, "passed", "22 of 22"] for i in range(90)] + [[None, {}, []], ["x"]])
os._exit(0)

# %% done_is_garbage: no JSON where JSON is expected
say(b"D", b"\xff\x00")

# %% done_is_a_number: JSON of another kind
say(b"D", 7)

# %% gone_with_a_status: how a process went becomes a status, which reports must know
for how in ("passed", {"a": 1}, None, 7, ["x"] * 9):
    say(b"G", {"how": how, "why": "22 of 22", "fresh": False})

# %% gone_is_garbage
for _ in range(9): say(b"G", b"{")

# %% gone_is_large
say(b"G", {"how": "error", "why": "x" * 10**6, "fresh": False})

# %% pids_forged: the supervisor kills what it is told was the runner
for pid in (1, -1, 0, 2, 3, 10**30, True, None, "2", 1.5):
    say(b"R", {"pid": pid})
    say(b"R", {"done": 5, "error": None, "pid": pid})

# %% supervisor_flood: it reads and reads
def flood():
    end = time.time() + 4
    while time.time() < end: say(b"R", {"pid": os.getpid(), "x": "y" * 1000})
threading.Thread(target=flood, daemon=True).start()
""",
    before=SPEAK,
)

cells(
    r"""
# %% answers_for_the_grader: replaces what answers the judge
import json
def answered(body, *rest):
    from labkit.grading import wire
    nonce, _, body = body.partition(b"\n")
    ask = wire.unpack(body, lambda name: name)
    f = getattr(fake, ask["f"].rpartition(":")[2], None)
    value = f(*ask["data"]) if f else None
    return wire.pack([json.loads(nonce)["nonce"], "value", value, []])
answer = types.ModuleType("labkit.grading.inside.answer")
answer.answered = answered
import labkit.grading.inside.runner as runner
runner.load = lambda body: {answer.__name__: answer}

# %% shipped_code_replaced: the probes pass through an exec of ours on their way in
old = exec
def replace(code, space=None, *rest):
    old(code, space, *rest)
    if isinstance(space, dict) and "injected" in space:
        space.update(vars(fake))
import labkit.grading.inside.runner as runner
runner.exec = replace
""",
    before=PUT,
)

cells(
    """
# %% notebook_in_the_working_folder: files that Python would pick up where it starts
import os
for name in ("sitecustomize", "usercustomize", "json", "torch", "labkit", "marshal", "contract"):
    open(f"{name}.py", "w").write("raise SystemExit(3)")
os.environ["PYTHONSTARTUP"] = os.environ["PYTHONPATH"] = os.getcwd()
""",
    accident(),
)

# right answers, and a cell that takes 8 GB where a count of private pages does not look
MEMORY = """
import ctypes, mmap, os, time
def free():
    return next(int(l.split()[1]) for l in open("/proc/meminfo") if "MemAvailable" in l) >> 10
before, taken = free(), 0
"""
TAKEN = "if before - free() > 4000: taken = 1  # in MiB, more than anybody may have"
WAYS = """
# %% memory_in_memfds: files without a name, neither mapped nor on a disk
kept = []
try:
    for i in range(130):
        if free() < 4000: break
        kept.append(os.memfd_create("x"))
        os.write(kept[-1], bytes(60 << 20))
        taken = len(kept) * 60 > 3000
except OSError: pass

# %% memory_shared_by_processes: anonymous shared memory: each process is below its own limit
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
"""


def taking(code):
    """What took too much says so by wrong answers, in another cell: its own may be cut."""

    def spoil(book):
        book.early(MEMORY + code + TAKEN)
        book.last("if globals().get('taken'): lora_forward = quiz = None")

    return spoil


for name, why, code in parts(WAYS):
    named(name, why, taking(code), accident())


@accident((0, 22), ("graded", "timeout", "unreadable"))
def cells_that_parse_slowly(book):
    """Twenty cells of a megabyte, each half a million comparisons: the judge itself parses them."""
    for _ in range(20):
        book.last("x = 1\nif 0: x" + " <x" * 340_000)
