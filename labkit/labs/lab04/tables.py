"""Whether a function computes its values, or has them from a table."""

import dis
import inspect
import re

import torch

TABLES = (
    *("get_4bit_type", "create_normal_map", "_get_4bit_code", "dequantize_4bit"),
    *("quantize_4bit", "quantize_nf4", "Params4bit", "Linear4bit", "LinearNF4"),
    *("CODE", "_NF4_QUANT_TABLE"),
)
ASKED = ("get_4bit_type", "create_normal_map")  # of TABLES: they may be asked in an assertion
READS = ("LOAD_GLOBAL", "LOAD_NAME")  # instructions that look a global name up


def with_other_tables(function):
    """What it returns while all tables that it can look up are a little off; None if it raises."""
    from bitsandbytes import functional

    space = function.__globals__
    own = {name: thing for name, thing in space.items() if _holds_a_table(thing)}
    asked = {name: getattr(functional, name) for name in ASKED if hasattr(functional, name)}
    try:
        space.update({name: _moved(thing) for name, thing in own.items()})
        for name, thing in asked.items():
            setattr(functional, name, _moved(thing))
        for thing in list(space.values()):
            if hasattr(thing, "cache_clear") and hasattr(thing, "__wrapped__"):
                thing.cache_clear()
        return function()
    except Exception:
        return None
    finally:
        space.update(own)
        for name, thing in asked.items():
            setattr(functional, name, thing)


def _holds_a_table(thing):
    if callable(thing):
        return getattr(thing, "__name__", "") in ASKED
    return not isinstance(thing, str) and len(_numbers([thing])) > 4


def _moved(thing):
    """A table, or what gives one, whose values are off, but for -1, 0 and 1."""
    if callable(thing):
        return lambda *args, **kwargs: _moved(thing(*args, **kwargs))
    if isinstance(thing, torch.Tensor):
        return torch.where(thing.abs() * (1 - thing.abs()) == 0, thing, thing * 1.01)
    if isinstance(thing, dict):
        return {key: _moved(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return type(thing)(map(_moved, thing))
    if hasattr(thing, "dtype"):
        return thing * 1.01
    return thing * 1.01 if type(thing) is float and abs(thing) not in (0, 1) else thing


def written(function, seen):
    """Numbers written in a function and those that it calls, in its globals; names used."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    inside, outside, names, read, codes = [], [], set(), [], [code] if code else []
    inside += _numbers([getattr(function, "__defaults__", None) or ()])
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if hasattr(c, "co_consts")]
        inside += _numbers(c for c in code.co_consts if c is not function.__doc__)
        names |= {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
        read += [i.argval for i in dis.get_instructions(code) if i.opname in READS]
    for name in set(read) - seen:  # not the names of attributes, as `values` in x.sort().values
        thing = getattr(function, "__globals__", {}).get(name)
        seen.add(name)
        names.add(getattr(thing, "__name__", name))  # whatever it is called here
        if callable(thing) and getattr(thing, "__module__", "") == function.__module__:
            more, beside, others = written(thing, seen)
            inside, outside, names = inside + more, outside + beside, names | others
        (inside if isinstance(thing, str) else outside).extend(_numbers([thing]))
    return inside, outside, names


def _numbers(things):
    """The floats in `things`, in text too, and long integers as what follows the point."""
    found = []
    for thing in things:
        if type(thing) is float:
            found.append(thing)
        elif type(thing) is int and abs(thing) > 999:
            found.append(thing / 10 ** len(str(abs(thing))))
        elif isinstance(thing, str):
            found += map(float, re.findall(r"-?\d*\.\d+", thing))
        elif isinstance(thing, tuple | list):
            found += _numbers(thing)
        elif isinstance(thing, dict):
            found += _numbers(thing.values())
        elif isinstance(thing, torch.Tensor) and thing.numel() <= 64:
            found += thing.flatten().tolist()
        elif type(thing).__module__ == "numpy" and getattr(thing, "size", 99) <= 64:
            found += _numbers(thing.reshape(-1).tolist())
    return found
