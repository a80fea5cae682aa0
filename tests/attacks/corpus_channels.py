"""What one submission leaves for the next, and what it takes of the machine's memory.

Of each pair the first is right and leaves a word, the second is wrong and looks for it. One worker
grades both, one after the other, since that is the order of their names. The floods take no more
than shows that there is no bound.
"""

import time

from attack import accident, cell, forging, named, parts

COMMON = f"""
import ctypes, fcntl, mmap, os, resource, socket, sys, time
begun = {time.time()}
libc = ctypes.CDLL(None, use_errno=True)
word, key = "lora-attack-left", 0x10AA78
def quietly(f, *args):
    try: return f(*args)
    except Exception: return None
def free():  # in MiB
    return next(int(l.split()[1]) for l in open("/proc/meminfo") if "MemAvailable" in l) >> 10
def folders():
    for root in ("/tmp", "/scratch", "/cache", "/dev", "/run", "/var/tmp", "/proc/sys"):
        yield from (where for where, _, _ in os.walk(root))
"""
NEXT = "# and the next:\n"
PAIRS = """
# %% files: in whatever folder can be written
for folder in folders():
    quietly(lambda: open(f"{folder}/{word}", "w").close())
for folder in ("/usr", "/tmp", sys.prefix): quietly(os.setxattr, folder, "user.x", word.encode())
# and the next:
won = any(os.path.exists(f"{folder}/{word}") for folder in folders())
won = won or any(quietly(os.getxattr, f, "user.x") for f in ("/usr", "/tmp", sys.prefix))

# %% names_of_sockets: a name without a file belongs to the network
if not os.fork():
    os.setsid()
    s = socket.socket(socket.AF_UNIX); s.bind(chr(0) + word); s.listen()
    time.sleep(2); os._exit(0)
# and the next:
won = word in open("/proc/net/unix").read()

# %% times_of_devices: anybody may set those of the machine's devices to now
for name in ("null", "zero", "full", "random", "pts/ptmx"): quietly(os.utime, f"/dev/{name}")
# and the next:
won = any(os.stat(f"/dev/{n}").st_mtime > begun for n in ("null", "zero", "full"))

# %% memory_with_a_name: shared memory, semaphores, queues, keys
libc.shmget(key, 4096, 0o1666); libc.semget(key, 1, 0o1666); libc.msgget(key, 0o1666)
libc.syscall(240, word.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
from multiprocessing import shared_memory
quietly(lambda: setattr(shared_memory.SharedMemory(word, True, 4096), "_name", None))
libc.syscall(248, b"user", word.encode(), b"x", 1, -4)
# and the next:
won = libc.shmget(key, 0, 0o666) >= 0 or libc.semget(key, 0, 0o666) >= 0
won = won or libc.msgget(key, 0o666) >= 0 or os.path.exists("/dev/shm/" + word)
won = won or libc.syscall(240, word.encode(), os.O_RDWR, 0o666, None) >= 0
won = won or libc.syscall(249, b"user", word.encode(), None, 0) >= 0

# %% state_of_processes: what a process inherits, and one that stays
os.environ[word] = "1"; torch.left = sys.left = word; sys.path.append(word)
os.umask(0o123)
quietly(os.sched_setaffinity, 0, [0])
for pid in (1, os.getppid(), 0):
    quietly(resource.prlimit, pid, resource.RLIMIT_MEMLOCK, (4096, 4096))
    quietly(os.setpriority, os.PRIO_PROCESS, pid, 17)
quietly(os.setpriority, os.PRIO_USER, os.getuid(), 17)
if not os.fork():
    os.setsid()
    for n in range(1, 65): signal = __import__("signal"); quietly(signal.signal, n, signal.SIG_IGN)
    time.sleep(30); os._exit(0)
# and the next:
won = word in os.environ or hasattr(torch, "left") or word in sys.path
won = won or os.umask(0o22) == 0o123 or 17 in (os.nice(0), os.getpriority(os.PRIO_PROCESS, 1))
won = won or resource.prlimit(0, resource.RLIMIT_MEMLOCK)[0] == 4096
won = won or len([n for n in os.listdir("/proc") if n.isdigit()]) > 2

# %% settings_of_the_kernel
for name in ("kernel/hostname", "kernel/domainname", "kernel/core_pattern", "kernel/modprobe"):
    quietly(lambda: open(f"/proc/sys/{name}", "w").write(word))
quietly(socket.sethostname, word)
# and the next:
names = ("kernel/hostname", "kernel/domainname", "kernel/core_pattern", "kernel/modprobe")
won = any(word in (quietly(lambda: open(f"/proc/sys/{n}").read()) or "") for n in names)
"""
for name, why, code in parts(PAIRS):
    leave, look = code.split(NEXT)
    cell(f"{name}_left", COMMON + leave, why)
    cell(f"{name}_wanted", COMMON + look, why, forging)

# right notebooks that count in `made` what they got; one that got some says so
TAKEN = """
# %% ranges_of_locks: every second byte of a file is a lock of its own in the kernel
with open("locked", "wb") as file:
    for at in range(0, 4000, 2): fcntl.lockf(file, fcntl.LOCK_EX, 1, at)
    time.sleep(0.1)
made = len(open("/proc/locks").read().splitlines()) > 1000

# %% full_sockets: what waits in a socket is nobody's memory
kept = []
for _ in range(4):
    if not os.fork():
        while len(kept) < 110:
            kept.append(socket.socketpair())
            kept[-1][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            kept[-1][0].setblocking(False)
            try: kept[-1][0].send(bytes(64 << 10))
            except OSError: pass
        time.sleep(1); os._exit(0)
time.sleep(1.5)
made = sum(os.waitpid(-1, 0)[1] == 0 for _ in range(4)) == 4  # 880 sockets stayed for a second

# %% memory_in_memfds: files without a name, neither mapped nor on a disk
kept = []
try:
    while len(kept) < 60 and free() > 4000:
        kept.append(os.memfd_create("x"))
        os.write(kept[-1], bytes(60 << 20))
except OSError: pass
made = len(kept) > 50  # 3 GB

# %% memory_shared_by_processes: anonymous shared memory: each process is below its own limit
before = free()
for _ in range(8):
    if free() > 4000 and not os.fork():
        try:
            m = mmap.mmap(-1, 1 << 30)
            for i in range(0, 1 << 30, 4096): m[i] = 1
            time.sleep(6)
        finally: os._exit(0)
    time.sleep(0.3)
time.sleep(2)
made = before - free() > 4000  # more than anybody may have
"""


def taking(code):
    def spoil(book):
        book.early(COMMON + "made = 0\n" + code)
        book.last("if made: lora_forward = quiz = None  # what it got is beyond every limit")

    return spoil


for name, why, code in parts(TAKEN):
    named(name, why, taking(code), accident())
