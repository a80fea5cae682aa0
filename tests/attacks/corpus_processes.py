"""Processes and threads that mean to outlive the grading. The harness asserts that none does."""

from attack import accident, cells

cells(
    """
# %% shell_background: what learners really write
get_ipython().system('sleep 60 &')

# %% deaf_daemon: ignores all that can be ignored, and holds no descriptor
if not os.fork():
    os.setsid()
    if not os.fork():
        import signal
        for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(s, signal.SIG_IGN)
        os.closerange(0, 1024)
        time.sleep(60)
    os._exit(0)

# %% daemon_that_holds_the_wire: descriptors stay open, so nobody reads an end of file
if not os.fork():
    os.setsid()
    time.sleep(60)
    os._exit(0)

# %% respawner: always under a new pid
if not os.fork():
    end = time.time() + 60
    while time.time() < end:
        if os.fork(): os._exit(0)
        time.sleep(0.01)
    os._exit(0)

# %% namespace_of_its_own: a child behind one more pid namespace
os.system("unshare --user --map-root-user --pid --fork sleep 60 >/dev/null 2>&1 &")

# %% spawned_process: brings a resource tracker along
import multiprocessing
p = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
p.start()

# %% slows_the_others_down: eight children that compute: the neighbours still get their time
for _ in range(8):
    if not os.fork():
        end = time.time() + 20
        while time.time() < end: pass
        os._exit(0)

# %% hundred_threads: not daemons: the interpreter waits for them
import threading
for _ in range(100): threading.Thread(target=time.sleep, args=(60,)).start()
""",
    accident(),
    before="import os, time\n",
)

cells(
    """
# %% daemon_when_observed: the function leaves a process behind, and is right
def lora_forward(x, W, A, B, alpha):
    import os, time
    if not os.fork():
        os.setsid()
        time.sleep(60)
        os._exit(0)
    return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T
""",
    accident((20, 22)),
    "lora_forward",
)
