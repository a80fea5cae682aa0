"""Messages forged on whatever descriptors the process has. They earn nothing."""

from attack import accident, cells, forging

FORGE = r"""
import json, os, pickle, select, socket, stat, struct, threading, time

RECORDS = [{"id": f"2.{i}", "name": "x", "points": 4, "earned": 4, "status": "passed",
            "message": ""} for i in range(1, 9)]
BODIES = [RECORDS, {"exercises": RECORDS, "earned": 22, "status": "graded"},
          {"ok": True, "value": True, "result": True, "error": None, "status": "passed"},
          {"q1": "b", "q2": "c", "q3": "a"}, {"value": {"q1": "b", "q2": "c", "q3": "a"}},
          {"result": {"q1": "b", "q2": "c", "q3": "a"}}, ["ok", {"q1": "b", "q2": "c", "q3": "a"}]]

def frames():
    for body in BODIES:
        raw = json.dumps(body).encode()
        for size in (">I", "<I", ">Q", "<Q"):
            yield struct.pack(size, len(raw)) + raw
        yield raw + b"\n"
        yield f"{len(raw)}:".encode() + raw + b","
        yield f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw
        yield pickle.dumps(body)

def descriptors():
    for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else range(256):
        fd = int(name)
        try: mode = os.fstat(fd).st_mode
        except OSError: continue
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode): yield fd

def shout(chosen=None):
    for fd in list(descriptors()):
        for frame in chosen or frames():
            try:
                if select.select([], [fd], [], 0)[1]: os.write(fd, frame)
            except (OSError, ValueError): pass
"""

cells(
    """
# %% frames_in_a_cell: forged answers wait for the first question
shout()

# %% frames_when_observed: the forged answer comes before the true one
def speak(*args, **kwargs):
    shout()
    return None
def replace():
    space = get_ipython().user_ns
    for name in ("lora_forward", "lora_gradients", "inject", "step_flops", "quiz"):
        space[name] = speak
get_ipython().events.register("post_run_cell", lambda *a: replace())

# %% frames_in_a_race: a thread answers all the time
def race():
    end = time.time() + 2
    while time.time() < end:
        shout()
        time.sleep(0.002)
threading.Thread(target=race, daemon=True).start()

# %% frames_by_a_child: a process of its own answers, while the notebook goes on
if not os.fork():
    end = time.time() + 3
    while time.time() < end:
        shout()
        time.sleep(0.002)
    os._exit(0)

# %% frames_then_exit: the last word is forged
shout()
os._exit(0)

# %% garbage: no frame at all
shout([os.urandom(4096)])

# %% huge_length: promises more than there is: nobody waits or allocates for it
shout([struct.pack(">Q", 1 << 62), struct.pack(">I", 0xFFFFFFFF)])

# %% half_a_frame: and never the rest
shout([struct.pack(">I", 1000) + b"{"])

# %% swaps_descriptors: each wire leads into a pipe of our own
fds = list(descriptors())
for fd in fds:
    a, b = os.pipe()
    os.dup2(b, fd)

# %% shuts_sockets_down: the other end reads an end of file
for fd in descriptors():
    try: socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
    except OSError: pass

# %% passes_descriptors: sends sixty descriptors with a byte
for fd in descriptors():
    try: socket.send_fds(socket.socket(fileno=os.dup(fd)), [b"x"], [0, 1, 2] * 20)
    except OSError: pass

# %% wire_functions: the grader's own functions write the forged frames
import sys, types
words = ("send", "write", "reply", "answer", "put", "dump", "pack", "encode")
for name, module in list(sys.modules.items()):
    if not name.startswith("labkit.grading"): continue
    for key, f in list(vars(module).items()):
        if isinstance(f, types.FunctionType) and any(w in key.lower() for w in words):
            for fd in descriptors():
                for body in BODIES:
                    for args in ((fd, body), (body, fd), (body,), (socket, body)):
                        try: f(*args)
                        except BaseException: pass
""",
    forging,
    before=FORGE,
)

cells(
    """
# %% output_that_looks_like_frames: printed frames are output and nothing else
for frame in frames(): print(frame)
import sys
sys.stdout.flush()
for frame in frames(): os.write(1, frame)

# %% closes_unknown_descriptors: a cell that closes what it does not know loses itself at most
for fd in list(descriptors()): os.close(fd)
""",
    accident(),
    before=FORGE,
)
