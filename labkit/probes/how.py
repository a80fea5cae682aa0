"""Find out how a function gets its result: from a table, in a Python loop, or by 0 / 0."""

import contextlib
import inspect
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch

from labkit.probes import watch

NAN = "computed (it gives NaN, which no integer can store)"
TABLES = {"quantize_4bit", "dequantize_4bit", "quantize_nf4", "dequantize_nf4", "Params4bit"}
TABLES |= {"Linear4bit", "LinearNF4", "CODE", "_NF4_QUANT_TABLE", "_get_4bit_code"}


@contextlib.contextmanager
def nan_watched() -> Iterator[dict]:
    """Yield a fact that later says whether a NaN became an integer, in torch or in NumPy."""
    fact = {"0 / 0": "avoided"}
    with warnings.catch_warnings(record=True) as said, _Nan() as seen:
        warnings.simplefilter("always")
        yield fact
    if seen.lost or any("invalid value encountered" in str(w.message) for w in said):
        fact["0 / 0"] = NAN


class _Nan(watch.Watch):
    """Detect a NaN that becomes an integer or a boolean, except in tests for NaN."""

    lost = False

    def seen(self, function, args, kwargs, out):
        asks = function.overloadpacket.__name__ in ("isnan", "isfinite", "isinf", "eq", "ne")
        if not asks and any(not t.is_floating_point() for t in watch.tensors(out)):
            given = (t for t in watch.tensors(args) if t.is_floating_point())
            self.lost |= any(bool(t.isnan().any()) for t in given)


def pace(first: Callable, second: Callable, names: tuple, of: str, data: tuple) -> dict:
    """Whether two functions' work grows with their inputs; `data` has (few, many) for each."""
    facts = {}
    for name, f, sizes in zip(names, (first, second), data, strict=True):
        few, many = ([_shape(x) for x in one] for one in sizes)
        # twice: the first run may do more, and Python may collect garbage in either run
        least = [min(_steps(f, data) for _ in range(2)) for data in (few, many)]
        loop = least[1] - least[0] >= 64
        facts[name] = f"a Python loop over the {of}" if loop else "vectorized"
    return facts


def _shape(x):
    """Restore a torch.Size that became a list or a tuple on the way here."""
    return torch.Size(x) if isinstance(x, list | tuple) else x


def _steps(f, data):
    """Count the Python lines that `f(*data)` runs, including some per torch operation."""
    steps, before = 0, sys.gettrace()

    def trace(frame, event, _):
        nonlocal steps
        steps += 1
        return trace

    with watch.Work(1 << 60):
        sys.settrace(trace)
        try:
            f(*data)
        finally:
            sys.settrace(before)
    return steps


def origin(f: Callable, values: torch.Tensor) -> str:
    """How `f` gets its `values`: "taken from …" if they change with the numbers that `f` reads."""
    f, names = inspect.unwrap(f), set()
    if not isinstance(f, types.FunctionType):
        return "computed"
    table = [v for v in values.flatten().tolist() if 0 < abs(v) < 1]
    moved = _Moved(table, f.__module__, names)
    twin, library = moved(f), sys.modules.get("bitsandbytes.functional")
    if names & TABLES:
        return "taken from bitsandbytes"
    try:
        with contextlib.ExitStack() as stack:
            for name in ("get_4bit_type", "create_normal_map") if library else ():
                new = moved(getattr(library, name))
                stack.enter_context(mock.patch.object(library, name, new))
            again = twin()
    except Exception:  # the code compares its values with a table
        return "computed"
    still = again.shape == values.shape and torch.allclose(again.to(values), values, atol=1e-5)
    return "computed" if still else "taken from a table"


class _Moved:
    """Copy objects, with the numbers of a table slightly changed."""

    def __init__(self, table, module, names):
        self.table, self.module, self.names, self.made = table, module, names, {}

    def __call__(self, thing):
        kind = type(thing)
        if kind is float:
            near = any(abs(abs(thing) - abs(v)) < 1e-3 for v in self.table)
            return thing * 1.02 if near else thing
        if kind is int and abs(thing) > 999:
            size = 10.0 ** len(str(abs(thing)))
            return round(self(thing / size) * size)
        if kind is str:
            return re.sub(r"\d*\.\d+", lambda match: repr(self(float(match[0]))), thing)
        if kind in (list, tuple):
            return kind(map(self, thing))
        if kind is dict:
            return {key: self(value) for key, value in thing.items()}
        if kind is torch.Tensor and thing.numel() <= 64:
            return torch.tensor(self(thing.tolist()), dtype=thing.dtype)
        if kind is np.ndarray and thing.size <= 64:
            return np.array(self(thing.tolist()), dtype=thing.dtype)
        return self.function(inspect.unwrap(thing)) if callable(thing) else thing

    def function(self, f):
        """Copy a bitsandbytes or learner's function, together with everything that it reads."""
        if not isinstance(f, types.FunctionType):
            return f
        if str(f.__module__).startswith("bitsandbytes"):
            self.names.add(f.__name__)
            return lambda *args, **kwargs: self(f(*args, **kwargs))
        if f.__module__ != self.module or f in self.made:
            return self.made.get(f, f)
        space, code = dict(f.__globals__), self.code(f.__code__)
        cells = tuple(types.CellType(self(c.cell_contents)) for c in f.__closure__ or ())
        made = types.FunctionType(code, space, f.__name__, self(f.__defaults__), cells)
        made.__kwdefaults__ = self(f.__kwdefaults__)
        self.made[f] = made
        space |= {name: self(space[name]) for name in self.names & space.keys()}
        return made

    def code(self, code):
        """Copy code with changed constants, and record the names in the code."""
        consts = [self.code(c) if isinstance(c, types.CodeType) else c for c in code.co_consts]
        self.names |= {*code.co_names, *(c for c in consts if isinstance(c, str))}
        return code.replace(co_consts=tuple(map(self, consts)))
