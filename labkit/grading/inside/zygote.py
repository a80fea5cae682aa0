"""The warm process: it has imported what labs import, and forks once per submission.

It runs inside the outer wall (`sandbox.command`) and has no secret: no seed, check, solution or
submission. The judge sends `s7` with a socket for submission 7; the answer is `7` when all its
processes are gone. `k7` kills those that are left. An empty message means that the judge has ended.
"""

import contextlib
import copy
import functools
import gc
import json
import os
import secrets
import select
import signal
import socket
import sys

NOBODY = 65534
UNUSED = 3 << 30  # user ids from here on are unused


def main() -> None:
    """Serve the judge on descriptor argv[1] until it hangs up; argv[2] is the kind of walls."""
    if sys.argv[2] == "trial":
        return trial()
    control = socket.socket(fileno=int(sys.argv[1]))
    unprivileged()
    from labkit.grading.limits import Limits

    limits = Limits(**json.loads(control.recv(4096)))
    shell = warm()
    nested = sys.argv[2] == "nested" and _can_nest(limits)
    control.sendall(json.dumps({"nested": nested}).encode())
    while True:
        message, fds, _, _ = socket.recv_fds(control, 64, 1)
        if not message:
            os._exit(0)
        if not fds:  # a kill order for one that has ended
            continue
        pid = os.fork() if nested or sys.argv[2] == "bare" else 0
        if pid == 0:
            control.close()
            _become_supervisor(fds[0], shell, limits, nested)
        os.close(fds[0])
        _wait(pid, control, message[1:])
        _wait_for_orphans()
        control.sendall(message[1:])


def trial() -> None:
    """Print whether this process can give each submission a process tree: nested, or alone."""
    from labkit.grading.limits import Limits

    unprivileged()
    print("nested" if _can_nest(Limits()) else "alone")


def unprivileged() -> None:
    """Turn root into an unused user, so that limits apply and count only this user."""
    if os.getuid() == 0 and sys.argv[2] != "bare":
        os.setgroups([])
        try:
            _become(UNUSED + secrets.randbelow(1 << 29))
        except OSError:  # a container with fewer user ids
            _become(NOBODY)


def _become(user):
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _can_nest(limits):
    """Whether the kernel allows a process tree inside this one."""
    from labkit.grading.inside import wall

    pid = os.fork()
    if pid == 0:
        try:
            wall.enclose(limits)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _become_supervisor(fd, shell, limits, nested):
    """Become the supervisor and never return; the reason for a failure goes to the judge."""
    from labkit.grading import wire
    from labkit.grading.inside import supervisor, tree, wall

    link = socket.socket(fileno=fd)
    try:
        if nested:
            wall.enclose(limits)
        else:
            wall.own_tree()
        supervisor.supervise(link, shell, limits, nested)
    except Exception as error:
        with contextlib.suppress(OSError):
            wire.send(link, b"X", f"{type(error).__name__}: {error}".encode())
    finally:
        tree.kill_but()
        os._exit(0)


def _wait(pid, control, number):
    """Wait until process `pid` has ended; kill it if the judge orders it or is gone."""
    end = os.pidfd_open(pid)
    while end not in select.select([control, end], [], [])[0]:
        if control.recv(64) in (b"", b"k" + number):
            os.kill(pid, signal.SIGKILL)
            break
    os.waitpid(pid, 0)
    os.close(end)


def _wait_for_orphans():
    """Wait for process 1 of a tree, which is our child if the process between was killed."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def warm() -> object:
    """Import and touch what labs use; return the IPython shell that runs cells."""
    import matplotlib

    matplotlib.use("Agg")
    import datasets  # noqa: F401
    import matplotlib.pyplot
    import pandas  # noqa: F401
    import torch
    import torch._dynamo
    import torch.testing

    from labkit import live, plots  # noqa: F401
    from labkit.grading import wire  # noqa: F401
    from labkit.grading.inside import answer, runner  # noqa: F401
    from labkit.training import generation, loop, models  # noqa: F401

    torch.set_num_threads(1)
    # the thread pool does not survive a fork; if two threads then ask for it at once, as
    # transformers does when loading, there may be none: so a fork asks while it has one thread
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))
    models.hush_libraries()
    for place, name, other in _patches():
        setattr(place, name, other)
    # loaded late by libraries
    import bitsandbytes  # noqa: F401
    from peft import LoraConfig, PeftModel, get_peft_model  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    shell = _shell()
    gc.collect()
    gc.freeze()
    return shell


def _patches():
    """`(place, name, replacement)` of everything that differs for cells in grading."""
    import torch

    import labkit
    from labkit import tasks
    from labkit.grading.inside import quiet

    return [
        (torch, "set_num_threads", lambda n: None),
        (torch, "set_default_device", quiet.device_setter(torch.set_default_device)),
        (labkit, "start", quiet.start),
        (tasks, "load", _remembered(tasks.load)),
    ]


def _remembered(load):
    """`tasks.load` with `home` preloaded, which takes a third of a second to read."""
    ready = {("home", split): load("home", split) for split in ("train", "test")}

    def quick(name, split="train", **options):
        if options or (name, split) not in ready:
            return load(name, split, **options)
        return copy.copy(ready[name, split])

    return quick


def _shell():
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    shell = InteractiveShell.instance(config=config)
    for name in ("showtraceback", "showsyntaxerror", "showindentationerror"):
        setattr(shell, name, lambda *args, **kwargs: None)
    shell.display_formatter.active_types = ["text/plain"]
    shell.run_cell("0", store_history=False, silent=True)
    return shell


if __name__ == "__main__":
    main()
