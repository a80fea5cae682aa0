"""Messages forged on whatever descriptors the process has. They earn nothing."""

from attack import accident, forging

FORGE = """
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
        yield raw + b"\\n"
        yield f"{len(raw)}:".encode() + raw + b","
        yield f"Content-Length: {len(raw)}\\r\\n\\r\\n".encode() + raw
        yield pickle.dumps(body)

def descriptors(least=3):
    for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else range(256):
        fd = int(name)
        try: mode = os.fstat(fd).st_mode
        except OSError: continue
        if fd >= least and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
            yield fd

def shout(least=3, chosen=None):
    for fd in list(descriptors(least)):
        for frame in chosen or frames():
            try:
                if select.select([], [fd], [], 0)[1]: os.write(fd, frame)
            except (OSError, ValueError): pass
"""


def _wire(name, code, why, decorate=forging):
    def spoil(book):
        book.early(FORGE + code)

    spoil.__name__, spoil.__doc__ = name, why
    decorate(spoil)


_wire("frames_in_a_cell", "shout()", "forged answers wait for the first question")
_wire("frames_on_stdout", "shout(least=0)", "standard output is a wire in some graders")
_wire(
    "frames_when_observed",
    """
def speak(*args, **kwargs):
    shout()
    return None
def replace():
    space = get_ipython().user_ns
    for name in ("lora_forward", "lora_gradients", "inject", "step_flops", "quiz"):
        space[name] = speak
get_ipython().events.register("post_run_cell", lambda *a: replace())
""",
    "the forged answer comes before the true one",
)
_wire(
    "frames_in_a_race",
    """
def race():
    end = time.time() + 2
    while time.time() < end:
        shout()
        time.sleep(0.002)
threading.Thread(target=race, daemon=True).start()
""",
    "a thread answers all the time",
)
_wire(
    "frames_by_a_child",
    """
if not os.fork():
    end = time.time() + 3
    while time.time() < end:
        shout()
        time.sleep(0.002)
    os._exit(0)
""",
    "a process of its own answers, while the notebook goes on",
)
_wire("frames_then_exit", "shout()\nos._exit(0)", "the last word is forged")
_wire("garbage", "shout(chosen=[os.urandom(4096)])", "no frame at all")
_wire(
    "huge_length",
    'shout(chosen=[struct.pack(">Q", 1 << 62), struct.pack(">I", 0xFFFFFFFF)])',
    "promises more than there is: nobody waits or allocates for it",
)
_wire("half_a_frame", 'shout(chosen=[struct.pack(">I", 1000) + b"{"])', "and never the rest")
_wire(
    "safetensors_header",
    """
head = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
head = head.encode()
shout(chosen=[struct.pack("<Q", len(head)) + head, struct.pack("<Q", 1 << 60)])
""",
    "a tensor file that claims terabytes",
)
_wire(
    "reads_the_questions",
    """
def steal():
    for fd in list(descriptors()):
        try:
            if select.select([fd], [], [], 0)[0]: os.read(fd, 1 << 16)
        except (OSError, ValueError): pass
end = time.time() + 1
while time.time() < end: steal()
""",
    "eats what was meant for the worker",
)
_wire(
    "swaps_descriptors",
    """
fds = list(descriptors())
for fd in fds:
    a, b = os.pipe()
    os.dup2(b, fd)
""",
    "each wire leads into a pipe of our own",
)
_wire(
    "shuts_sockets_down",
    """
for fd in descriptors():
    try: socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
    except OSError: pass
""",
    "the other end reads an end of file",
)
_wire(
    "passes_descriptors",
    """
for fd in descriptors():
    try: socket.send_fds(socket.socket(fileno=os.dup(fd)), [b"x"], [0, 1, 2] * 20)
    except OSError: pass
""",
    "sends sixty descriptors with a byte",
)
_wire(
    "truncates_files",
    """
for fd in descriptors():
    try: os.lseek(fd, 0, 0); os.ftruncate(fd, 0)
    except OSError: pass
""",
    "if a descriptor is a file, it is emptied",
)
_wire(
    "wire_functions",
    """
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
    "the grader's own functions write the forged frames",
)


def _wire_full(name, code, why):
    _wire(name, code, why, accident(22, ("graded",)))


_wire_full(
    "output_that_looks_like_frames",
    """
for frame in frames(): print(frame)
import sys
sys.stdout.flush()
for frame in frames(): os.write(1, frame)
""",
    "printed frames are output and nothing else",
)
_wire_full(
    "closes_unknown_descriptors",
    """
for fd in list(descriptors()): os.close(fd)
""",
    "a cell that closes what it does not know loses itself at most",
)
