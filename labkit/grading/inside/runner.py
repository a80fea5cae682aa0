"""The process that runs a submission's cells, on orders of its supervisor.

Whatever the cells do, they can harm only this process. Orders and answers are small JSON messages
on a SOCK_SEQPACKET pair.
"""

import ast
import builtins
import contextlib
import importlib
import json
import resource
import signal
import socket
import sys
from _socket import socket as plain_socket
from marshal import loads
from os import WNOHANG, _exit, close, fork, getpid, getppid, kill, setsid, waitpid
from types import FunctionType, ModuleType, SimpleNamespace

from labkit.grading import wire
from labkit.grading.inside import lines
from labkit.grading.inside.restore import restorer, small_names

ORDER_BYTES = 1 << 16
SPARE = 12  # processes and descriptors reserved from cells
STATES = 400  # cells after which names are stored
MESSAGE = 400  # characters of an error message sent back


def obey(channel: socket.socket, shell: object, cells: list[str], most: int) -> None:
    """Run cells and serve exercises as ordered, until the supervisor kills this process."""
    mine = untouched(sys.modules[__name__])
    mine["wire"] = SimpleNamespace(**untouched(wire))
    mine["_obey"](channel, shell, cells, most)


def untouched(module: ModuleType) -> dict:
    """`{name: object}` of a module as it is now; functions are copies that cells can't reach."""
    space = dict(vars(module), __builtins__=dict(vars(builtins)))
    for name, f in vars(module).items():
        if isinstance(f, FunctionType) and f.__module__ == module.__name__:
            space[name] = FunctionType(f.__code__, space, name, f.__defaults__, f.__closure__)
    return space


def _obey(channel, shell, cells, most):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    restore, errors = restorer(), lines.prepare(shell)
    states = {}  # index of a cell -> names after it

    def run(source):
        error = run_cell(shell, errors, source)
        restore(False)  # at once: a cell's alarm must not end this process
        return error

    while True:
        message, fds, _, _ = socket.recv_fds(channel, ORDER_BYTES, 1)
        if not message:
            _exit(0)
        order = json.loads(message)
        restore("run" not in order)
        if "run" in order:
            _run(channel, run, cells, order["run"], order["apart"])
            if len(states) < STATES:
                states[order["run"]] = small_names(shell)
        elif "settle" in order:
            _settle(channel)
        else:
            _serve(channel, (shell.user_ns, states, most), fds[0])


def _spare(n):
    """Reserve `n` of the allowed processes and descriptors from the cells."""
    for which in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            resource.setrlimit(which, (max(1, hard - n), hard))


def _send(channel, **what):
    channel.send(json.dumps(what).encode())


def _run(channel, run, cells, index, apart):
    """Run one cell; if `apart`, in a fork, so that a crash costs only this cell."""
    before = getpid()
    if apart:
        pid = fork()
        if pid:
            waitpid(pid, 0)  # a fork that finishes its cell kills this process
            _send(channel, lost=index)
            return
        _send(channel, pid=getpid())
    me = getpid()
    _spare(SPARE)
    error = run(cells[index])
    _spare(0)
    if getpid() != me:  # the cell forked, and this is the copy
        _exit(0)
    if apart:
        _take_over(before)
    _send(channel, done=index, error=error)


def _take_over(before):
    """Kill the process `before`, which forked this one."""
    if getppid() == before:  # else it has ended, and its pid may be reused
        with contextlib.suppress(ProcessLookupError):
            kill(before, signal.SIGKILL)


def run_cell(shell: object, errors: list, source: str) -> str | None:
    """The first error of the cell as one line, or None; `errors` is from `lines.prepare`."""
    errors.clear()
    try:
        importlib.invalidate_caches()  # `%%writefile` may have made a module
        signal.signal(signal.SIGINT, signal.default_int_handler)
        result = shell.run_cell(source, store_history=False, silent=True)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        error = next(iter(errors), result.error_before_exec or result.error_in_exec)
    except BaseException as raised:  # an interrupt between lines, or a patched shell
        error = raised
    try:
        return _line(error, source)
    except BaseException:  # an error whose text raises
        return "an error without a text"
    finally:
        for one in [error, *errors]:
            _let_go(one)


def _line(error, source):
    if isinstance(error, SyntaxError):
        if error.msg == "incomplete input":  # IPython's; Python's own says more
            try:
                ast.parse(source)
            except SyntaxError as own:
                error = own
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"[:MESSAGE]
    return f"{type(error).__name__}: {error}"[:MESSAGE] if error is not None else None


def _let_go(error):
    """Free the memory that an error keeps alive through its traceback."""
    with contextlib.suppress(BaseException):  # the cell may define its class
        while error is not None:
            error.__traceback__, error = None, error.__cause__ or error.__context__


def _settle(channel):
    """Continue as a fork, which has only this thread.

    The fork reports first. This is how the supervisor learns of it, and the supervisor counts the
    end of a process that it knows as a loss.
    """
    before = getpid()
    pid = fork()
    if pid:
        waitpid(pid, 0)
        return
    _send(channel, pid=getpid())
    _take_over(before)


def _serve(channel, what, fd):
    """Fork a process that answers the judge on `fd`; `what` are `serve`'s last arguments."""
    with contextlib.suppress(ChildProcessError):
        while waitpid(-1, WNOHANG)[0]:
            pass
    pid = fork()
    if pid:
        close(fd)
        _send(channel, pid=pid)
        return
    channel.close()
    setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sock = plain_socket(fileno=fd)
    serve(sock, load(wire.receive(sock, what[-1])[1]), *what)
    _exit(0)


def load(body: bytes) -> dict[str, ModuleType]:
    """`{name: module}` of the code that the judge shipped, executed in the given order.

    Packages that are already loaded get these modules as attributes, since `from labkit.probes
    import tiny` looks there first.
    """
    modules, parts = {}, dict(loads(body))
    for name, code in parts.items():
        modules[name] = sys.modules[name] = ModuleType(name)
        modules[name].__file__ = f"<{name}>"
        exec(code, modules[name].__dict__)
        package, _, last = name.rpartition(".")
        if package in sys.modules and package not in parts:
            setattr(sys.modules[package], last, modules[name])
    return modules


def serve(sock: plain_socket, modules: dict, namespace: dict, states: dict, most: int) -> None:
    """Answer the judge's questions about the objects in `namespace` until it hangs up.

    `modules` are the shipped ones, by name, restored before each question. `states` has the names
    after each cell, by its index.
    """
    put_back = _keeper(modules)
    while frame := wire.receive(sock, most):
        put_back()
        answer = modules["labkit.grading.inside.answer"]
        wire.send(sock, b"R", answer.answered(frame[1], dict(modules), namespace, states))


def _keeper(modules):
    """A function that restores the names of `modules`, their classes and functions."""
    spaces = [(vars(module), dict(vars(module))) for module in modules.values()]
    found = [thing for _, names in spaces for thing in names.values()]
    classes = [c for c in found if isinstance(c, type) and c.__module__ in modules]
    members = [(c, name, f) for c in classes for name, f in vars(c).items() if callable(f)]
    functions = [f for f in [*found, *(f for *_, f in members)] if isinstance(f, FunctionType)]
    codes = [(f, f.__code__, f.__defaults__) for f in functions if f.__module__ in modules]

    def put_back():
        sys.modules.update(modules)
        for space, names in spaces:
            space.update(names)
        for c, name, f in members:
            if vars(c)[name] is not f:
                setattr(c, name, f)
        for f, code, defaults in codes:
            f.__code__, f.__defaults__ = code, defaults

    return put_back
