"""Processes and threads that mean to outlive the grading. The harness asserts that none does."""

from attack import accident

NAMED = "import os, subprocess, time\nname = f\"lora-attack-{HOST['name']}\"\n"


def _scratch(name, code, why):
    def spoil(book):
        book.early(NAMED + code)

    spoil.__name__, spoil.__doc__ = name, why
    accident(22)(spoil)


_scratch(
    "sleeps_on", 'subprocess.Popen([name, "60"], executable="/bin/sleep")', "an ordinary child"
)
_scratch("shell_background", "get_ipython().system('sleep 60 &')", "what learners really write")
_scratch(
    "new_session",
    'subprocess.Popen([name, "60"], executable="/bin/sleep", start_new_session=True)',
    "out of the process group",
)
_scratch(
    "double_fork",
    """
if not os.fork():
    os.setsid()
    if not os.fork():
        os.execv("/bin/sleep", [name, "60"])
    os._exit(0)
os.wait()
""",
    "a daemon by the book: its parent is pid 1",
)
_scratch(
    "deaf_daemon",
    """
if not os.fork():
    os.setsid()
    if not os.fork():
        import signal
        for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(s, signal.SIG_IGN)
        os.closerange(0, 1024)
        time.sleep(60)
    os._exit(0)
""",
    "ignores all that can be ignored, and holds no descriptor",
)
_scratch(
    "daemon_that_holds_the_wire",
    """
if not os.fork():
    os.setsid()
    time.sleep(60)
    os._exit(0)
""",
    "its copies of the descriptors stay open, so nobody reads an end of file",
)
_scratch(
    "respawner",
    """
if not os.fork():
    end = time.time() + 60
    while time.time() < end:
        if os.fork(): os._exit(0)
        time.sleep(0.01)
    os._exit(0)
""",
    "always under a new pid",
)
_scratch(
    "nohup",
    """
os.system(f"nohup setsid sh -c 'exec -a {name} sleep 60' >/dev/null 2>&1 &")
""",
    "",
)
_scratch(
    "namespace_of_its_own",
    """
os.system("unshare --user --map-root-user --pid --fork sleep 60 >/dev/null 2>&1 &")
""",
    "a child behind one more pid namespace",
)
_scratch(
    "multiprocessing_pool",
    """
import multiprocessing
pool = multiprocessing.get_context("fork").Pool(3)
pool.map(abs, [-1, 2])
""",
    "never closed, as in many notebooks",
)
_scratch(
    "spawned_process",
    """
import multiprocessing
p = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
p.start()
""",
    "brings a resource tracker along",
)
_scratch(
    "daemon_thread",
    """
import threading
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
""",
    "",
)
_scratch(
    "hundred_threads",
    """
import threading
for _ in range(100): threading.Thread(target=time.sleep, args=(60,)).start()
""",
    "not daemons: the interpreter waits for them",
)


@accident((20, 22))
def daemon_when_observed(book):
    """The function leaves a process behind, and is right."""
    book.wrap(
        "lora_forward",
        """
def leaves(f):
    import os, time
    def g(*args):
        if not os.fork():
            os.setsid()
            time.sleep(60)
            os._exit(0)
        return f(*args)
    return g
lora_forward = leaves(lora_forward)
""",
    )


@accident(22)
def slows_the_others_down(book):
    """Eight children that compute: the neighbours still get their time."""
    book.early("""
import os, time
for _ in range(8):
    if not os.fork():
        end = time.time() + 20
        while time.time() < end: pass
        os._exit(0)
""")


@accident(22)
def shared_memory_left_behind(book):
    """SysV, POSIX and named semaphores outlive their process."""
    book.early("""
import ctypes, multiprocessing.shared_memory as shm
ctypes.CDLL(None).shmget(0x10AA77, 4096, 0o1600)
kept = shm.SharedMemory(f"lora-attack-{HOST['name']}", create=True, size=4096)
""")
