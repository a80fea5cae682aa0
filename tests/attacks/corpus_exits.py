"""Exits, crashes and signals. Each costs the cell that it is in, and no other."""

from textwrap import indent

from attack import ALL, ALONE, accident, cell, cells

cell("quit_magic", "%quit", "asks the shell to end")
cell("raise_generator_exit", "raise GeneratorExit", "no Exception, no exit either")
cell("os_abort", "import os\nos.abort()", "SIGABRT, perhaps a core file")
cell("exec_sleep", 'import os\nos.execv("/bin/sleep", ["sleep", "600"])', "and one that stays")
cell("stop_self", "import os\nos.kill(os.getpid(), 19)", "neither ends nor runs")
cell("kill_parent", ALONE + "os.kill(os.getppid(), signal.SIGKILL)", "the process it came from")
cell("stop_parent", ALONE + "os.kill(os.getppid(), signal.SIGSTOP)", "and it never wakes up")
cell("kill_init", ALONE + "os.kill(1, signal.SIGKILL)\nos.kill(1, 15)", "pid 1 of its namespace")
cell("kill_everything", ALONE + "os.kill(-1, signal.SIGKILL)", "all that it may signal")
cell("stop_everything", ALONE + "os.kill(-1, signal.SIGSTOP)", "all of it frozen")
cell("close_descriptors", "import os\nos.closerange(0, 1024)", "the wire is closed with them")
cell("no_builtins", "import builtins\nbuiltins.__dict__.clear()", "nothing works after it")
cell("no_modules", "import sys\nsys.modules.clear()", "imports begin anew")

cells(
    """
# %% recursion_without_end: the stack or the memory ends
import sys
sys.setrecursionlimit(10**9)
f = lambda n: f(n + 1) + f(n)
f(0)

# %% recursion_in_c: the C stack overflows
import sys
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**6): x = [x]
repr(x)

# %% null_over_descriptors: the wire leads nowhere
import os
n = os.open("/dev/null", os.O_RDWR)
for fd in range(1024): os.dup2(n, fd)

# %% fork_and_finish: the process that the grader knows is gone, a copy of it lives on
import os
if os.fork(): os._exit(0)
""",
    accident(),
)

WHEN_OBSERVED = {  # what `lora_forward` does; the other exercises stand
    "sys_exit": "raise SystemExit",
    "interrupt": "raise KeyboardInterrupt",  # taken for a time limit, it must not end the rest
    "exec": 'import os; os.execv("/bin/true", ["true"])',
    "fork": "import os; os.fork(); return x",  # two answers to one question
    "close": "import os; os.closerange(0, 1024)",
    "kill_everything": ALONE + "os.kill(-1, 9)",  # and its siblings
    "recursion": "return lora_forward(x, W, A, B, alpha)",
}
for name, code in WHEN_OBSERVED.items():
    code = "def lora_forward(x, W, A, B, alpha):\n" + indent(code.strip(), "    ")
    cell(f"{name}_when_observed", code, "", accident(ALL - 2), "lora_forward")
