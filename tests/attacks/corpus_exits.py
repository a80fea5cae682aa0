"""Exits, crashes and signals. Each costs the cell that it is in, and no other."""

from attack import ALONE, accident


def _scratch(name, code, why):
    """An accident of one scratch cell that holds `code`."""

    def spoil(book):
        book.early(code)

    spoil.__name__, spoil.__doc__ = name, why
    accident(22)(spoil)


_scratch("sys_exit", "import sys\nsys.exit(0)", "SystemExit, which IPython only warns of")
_scratch("exit_call", "exit()", "asks the shell to end")
_scratch("quit_magic", "%quit", "the same as a magic, in IPython's own word")
_scratch("raise_system_exit", 'raise SystemExit("bye")', "")
_scratch("raise_keyboard_interrupt", "raise KeyboardInterrupt", "looks like the grader's own limit")
_scratch("raise_generator_exit", "raise GeneratorExit", "no Exception, no exit either")
_scratch(
    "raise_base_exception", "class E(BaseException): pass\nraise E", "`except Exception` fails"
)
_scratch("os_exit", "import os\nos._exit(0)", "gone with a zero, without a word")
_scratch("os_abort", "import os\nos.abort()", "SIGABRT, perhaps a core file")
_scratch("segfault", "import ctypes\nctypes.string_at(0)", "")
_scratch("exec_true", 'import os\nos.execv("/bin/true", ["true"])', "another program, status zero")
_scratch("exec_sleep", 'import os\nos.execv("/bin/sleep", ["sleep", "600"])', "and one that stays")
_scratch("kill_self", "import os\nos.kill(os.getpid(), 9)", "")
_scratch(
    "stop_self", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "neither ends nor runs"
)
_scratch("kill_parent", ALONE + "os.kill(os.getppid(), signal.SIGKILL)", "the process it came from")
_scratch("terminate_parent", ALONE + "os.kill(os.getppid(), signal.SIGTERM)", "")
_scratch("stop_parent", ALONE + "os.kill(os.getppid(), signal.SIGSTOP)", "and it never wakes up")
_scratch(
    "kill_init", ALONE + "os.kill(1, signal.SIGKILL)\nos.kill(1, 15)", "pid 1 of its namespace"
)
_scratch("kill_group", ALONE + "os.killpg(0, signal.SIGKILL)", "the whole process group")
_scratch("kill_everything", ALONE + "os.kill(-1, signal.SIGKILL)", "all that it may signal")
_scratch("stop_everything", ALONE + "os.kill(-1, signal.SIGSTOP)", "all of it frozen")
_scratch("interrupt_everything", ALONE + "os.kill(-1, signal.SIGINT)", "Ctrl-C for the grader")
_scratch(
    "recursion_without_end",
    "import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1) + f(n)\nf(0)",
    "the stack or the memory ends",
)
_scratch(
    "recursion_in_c",
    "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "the C stack overflows",
)
_scratch("close_descriptors", "import os\nos.closerange(0, 1024)", "the wire is closed with them")
_scratch(
    "null_over_descriptors",
    'import os\nn = os.open("/dev/null", os.O_RDWR)\nfor fd in range(1024):\n    os.dup2(n, fd)',
    "the wire leads nowhere",
)
_scratch("fork_and_go_on", "import os\nos.fork()", "two processes now answer on one wire")
_scratch(
    "fork_and_finish",
    "import os, sys\nif os.fork():\n    os._exit(0)",
    "the process that the grader knows is gone, a copy of it lives on",
)
_scratch("shell_exits_now", "get_ipython().exit_now = True\nget_ipython().ask_exit()", "")
_scratch("no_builtins", "import builtins\nbuiltins.__dict__.clear()", "nothing works after it")
_scratch("no_modules", "import sys\nsys.modules.clear()", "imports begin anew")
_scratch("no_stdout", "import sys\nsys.stdout = sys.stderr = None", "print has nowhere to go")
_scratch("closed_stdout", "import sys\nsys.stdout.close()\nsys.__stdout__.close()", "")


def _observed(name, code, why):
    """`lora_forward` does what `code` says; the other exercises stand."""

    def spoil(book):
        lines = "".join(f"    {line}\n" for line in code.strip().splitlines())
        book.replace("lora_forward", f"def lora_forward(x, W, A, B, alpha):\n{lines}")

    spoil.__name__, spoil.__doc__ = f"{name}_when_observed", why
    accident(20)(spoil)


_observed("exit", "import os; os._exit(0)", "silence in place of an answer")
_observed("sys_exit", "raise SystemExit", "")
_observed(
    "interrupt", "raise KeyboardInterrupt", "taken for a time limit, it must not end the rest"
)
_observed("segfault", "import ctypes; ctypes.string_at(0)", "")
_observed("exec", 'import os; os.execv("/bin/true", ["true"])', "")
_observed("fork", "import os; os.fork(); return x", "two answers to one question")
_observed("close", "import os; os.closerange(0, 1024)", "no way to answer")
_observed("kill_parent", ALONE + "os.kill(os.getppid(), 9)", "the checkpoint goes too")
_observed("kill_everything", ALONE + "os.kill(-1, 9)", "the checkpoint and its siblings too")
_observed("recursion", "return lora_forward(x, W, A, B, alpha)", "an ordinary RecursionError")
_observed("thread_exit", "import _thread; _thread.interrupt_main(); return x", "")
