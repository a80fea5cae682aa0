"""Messages forged in the grader's own format, a kind, a length, a body: they earn nothing."""

from attack import ALL, accident, cell, cells, forging

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

# %% shuts_sockets_down: the other end reads an end of file
for s in sockets(): s.shutdown(socket.SHUT_RDWR)

# %% passes_descriptors: sends sixty descriptors with a byte
for s in sockets(): socket.send_fds(s, [b"x"], [0, 1, 2] * 20)
""",
    # it may cost the points of its own answers
    accident((0, ALL), ("graded", "crashed", "timeout")),
    before=SPEAK,
)

cells(
    """
# %% cells_went_strangely: how a cell went becomes the status of its exercise
get_ipython().user_ns_hidden.clear()
say(b"D", [[i, "passed", "22 of 22"] for i in range(90)] + [[None, {}, []], ["x"]])
os._exit(0)

# %% pids_forged: the supervisor kills what it is told was the runner
for pid in (1, -1, 0, 2, 3, 10**30, True, None, "2", 1.5):
    say(b"R", {"pid": pid})
    say(b"R", {"done": 5, "error": None, "pid": pid})

# %% supervisor_flood: it reads and reads, from a child too
def flood():
    end = time.time() + 4
    while time.time() < end: say(b"R", {"pid": os.getpid(), "x": "y" * 1000})
if not os.fork():
    flood()
    os._exit(0)
threading.Thread(target=flood, daemon=True).start()
""",
    before=SPEAK,
)

HALF = """
def quiz():
    for s in sockets(): s.send(struct.pack(">cI", b"R", 1000) + b"{")
    time.sleep(60)
"""
cell("half_a_frame", SPEAK + HALF, "a reply whose rest never comes", forging, "quiz")

SAID = {  # to the supervisor, which waits for a word on the cell
    "garbage": (b"D", b"\xff\x00"),
    "a_number": (b"D", 7),
    "gone_with_a_status": (b"G", {"how": "passed", "why": "22 of 22", "fresh": False}),
    "gone_in_a_list": (b"G", {"how": ["x"] * 9, "why": None}),
    "gone_at_length": (b"G", {"how": "error", "why": "x" * 10**6}),
    "half_an_object": (b"G", b"{"),
}
for name, (kind, body) in SAID.items():
    cell(f"said_{name}", f"{SPEAK}say({kind!r}, {body!r})", "", forging)
