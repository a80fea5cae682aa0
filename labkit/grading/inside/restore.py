"""Restore what a cell should not change for later ones: streams, modules, switches."""

import builtins
import contextlib
import os
import signal
import sys
import warnings
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import torch
from torch import overrides

SMALL = (int, float, bool, type(None), type, ModuleType, FunctionType, BuiltinFunctionType, partial)
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
HANDLED = ("ALRM", "CHLD", "HUP", "PIPE", "PROF", "TERM", "USR1", "USR2", "VTALRM")


def restorer() -> FunctionType:
    """The function `restore(all)`, which restores the present state.

    Between cells these are the standard streams, modules, signals and timers. With `all`, before an
    exercise, also replaced modules and built-ins, warning filters, and global switches of Python,
    numpy and torch.
    """
    real, modules = sys.modules, dict(sys.modules)
    streams = sys.stdin, sys.stdout, sys.stderr
    always, before_answers = [_signals()], [_python(), *_torch(), partial(np.seterr, **np.geterr())]

    def restore(all):
        sys.modules = real
        sys.stdin, sys.stdout, sys.stderr = map(_open, streams)
        for put_back in [*always, *before_answers] if all else always:
            with contextlib.suppress(Exception):
                put_back()
        if all or len(real) < len(modules):
            real.update(modules)

    return restore


def small_names(shell: object) -> dict:
    """{name: object} of the functions and small constants that a notebook defines."""
    try:
        return {k: v for k, v in shell.user_ns.items() if k[:1] != "_" and _small(v)}
    except Exception:  # the namespace may be broken
        return {}


def _small(thing):
    """Whether an object is cheap to store: data that a cell deletes has to go."""
    return isinstance(thing, SMALL) or (type(thing) is str and len(thing) < 200)


def _open(stream):
    """The stream, or one to /dev/null if it was closed."""
    return open(os.devnull, "r+") if getattr(stream, "closed", False) else stream


def _signals():
    numbers = [getattr(signal, f"SIG{name}") for name in HANDLED]
    handlers = {number: signal.getsignal(number) for number in numbers}

    def put_back():
        for timer in TIMERS:
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)

    return put_back


def _python():
    space, limit = vars(builtins), sys.getrecursionlimit()
    originals, filters = dict(space), list(warnings.filters)

    def put_back():
        space.update(originals)
        warnings.filters[:] = filters
        sys.settrace(None)
        sys.setprofile(None)
        sys.setrecursionlimit(max(limit, sys.getrecursionlimit()))

    return put_back


def _torch():
    """Functions that each restore one switch of torch; bound now, before a cell replaces them."""
    switches = [
        partial(torch.set_grad_enabled, torch.is_grad_enabled()),
        partial(torch.set_default_dtype, torch.get_default_dtype()),
        partial(torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled()),
        partial(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        partial(torch.set_flush_denormal, False),
        partial(torch.set_default_device, None),
        _modes_left(overrides._len_torch_function_stack, overrides._pop_mode),
        _inference_left(torch.is_inference_mode_enabled, torch.inference_mode),
    ]
    return switches + [partial(torch.set_autocast_enabled, d, False) for d in ("cpu", "cuda")]


def _modes_left(depth, pop):
    """Leave modes such as `with torch.device("meta"):` that were entered and never left."""

    def put_back():
        while depth():
            pop()

    return put_back


def _inference_left(on, mode):
    alive = []  # the switch is reset when this object is deleted

    def put_back():
        if on():
            alive.append(mode(False))
            alive[-1].__enter__()

    return put_back
