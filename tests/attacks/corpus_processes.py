"""Processes and threads that mean to outlive the grading. The harness asserts that none does."""

from attack import ALL, accident, cells

cells(
    """
# %% deaf_daemon: ignores all that can be ignored, and holds the wire
if not os.fork():
    os.setsid()
    if not os.fork():
        import signal
        for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(s, signal.SIG_IGN)
        time.sleep(60)
    os._exit(0)

# %% respawner: always under a new pid
if not os.fork():
    end = time.time() + 60
    while time.time() < end:
        if os.fork(): os._exit(0)
        time.sleep(0.01)
    os._exit(0)

# %% slows_the_others_down: eight children that compute: the neighbours still get their time
for _ in range(8):
    if not os.fork():
        end = time.time() + 20
        while time.time() < end: pass
        os._exit(0)
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
    accident((ALL - 2, ALL)),
    "lora_forward",
)
