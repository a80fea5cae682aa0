"""What a learner's code must leave unchanged: its inputs, and torch's settings.

Every call is checked here, so a check doesn't have to list its inputs.
"""

import contextlib
from collections.abc import Iterator

MODES = "its training mode"


def changes(before: object, after: object, name: str) -> list[str]:
    """One line per change from `before`, a `picture` of the input `name`, to `after`."""
    import torch

    if not isinstance(after, torch.nn.Module):
        ways, fix = "-=, *=, methods ending in _", "Compute a new tensor"
        if not hasattr(after, "dtype"):
            ways = "inplace=True" if _table(after) else "sort(), append()"
            fix = f"Work on copy.deepcopy({name})"
        how = f"{ways} and {name}[...] = ... write into the input. {fix} instead"
        return [] if same(before, after) else [f"it changes its input `{name}` in place: {how}"]
    lines, after = [], picture(after)
    switched = before["its active adapter"] != after["its active adapter"]
    for what, was in before.items():
        follows = switched and what == "the parameters that train"  # the adapter explains them
        if not follows and not same(was, after[what]):
            at = next((k for k in was if not same(was[k], after[what].get(k))), "")
            where = f"{what} (at {at})" if at else what
            if what == MODES and was[""] != after[what][""]:
                came, left = ("train" if mode[""] else "eval" for mode in (was, after[what]))
                where = f"{what} (it was in {came} mode before and is in {left} mode now)"
            lines.append(f"it leaves {name} changed: {where}; restore it")
    return lines


def picture(thing: object) -> object:
    """A copy of `thing` for comparison; for a model, its modes, flags, adapters and weights.

    Tensors, arrays, tables, lists, tuples and dicts are copied; everything else is stored as is.
    """
    import torch

    if isinstance(thing, torch.nn.Module):
        return {
            MODES: {name: m.training for name, m in thing.named_modules()},
            "the parameters that train": {
                name: p.requires_grad for name, p in thing.named_parameters()
            },
            "its active adapter": _adapters(thing),
            "its hooks": {
                name: [len(m._forward_hooks), len(m._forward_pre_hooks)]
                for name, m in thing.named_modules()
            },
            "its weights": {name: picture(t) for name, t in thing.state_dict().items()},
        }
    if isinstance(thing, torch.Tensor):
        return thing.detach().clone()
    if type(thing) in (list, tuple):
        return type(thing)(map(picture, thing))
    if isinstance(thing, dict):
        return {key: picture(value) for key, value in thing.items()}
    array = hasattr(thing, "dtype") and hasattr(thing, "copy")
    return thing.copy() if array or _table(thing) else thing


def same(before: object, after: object) -> bool:
    """Whether two pieces of data have the same kind, shape and numbers; NaN equals NaN."""
    import torch

    if isinstance(before, torch.Tensor):
        alike = isinstance(after, torch.Tensor) and before.dtype == after.dtype
        return alike and before.shape == after.shape and _equal(before, after.detach())
    if isinstance(before, dict) and isinstance(after, dict):  # pictures are plain dicts
        return list(before) == list(after) and all(same(before[k], after[k]) for k in before)
    if type(before) is not type(after):
        return False
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    if _table(before):
        return before.equals(after) and list(before.columns) == list(after.columns)
    if hasattr(before, "dtype"):
        return before.dtype == after.dtype and before.tobytes() == after.tobytes()
    return before is after or before == after or before != before


def _equal(a, b):
    """Whether two tensors are bitwise equal or both NaN; always true on the "meta" device."""
    import torch

    if a.device.type == "meta" or b.device.type == "meta":
        return True
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _table(thing):
    return type(thing).__name__ == "DataFrame"


def _adapters(model):
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "active_adapters")}
    return {
        name: [str(m.active_adapters), getattr(m, "disable_adapters", False)]
        for name, m in layers.items()
        if not callable(m.active_adapters)
    }


@contextlib.contextmanager
def settings(seed: int, faults: list[str]) -> Iterator[None]:
    """Restore torch's settings at the end, and add a line to `faults` for each changed one.

    Random numbers start from `seed`. Drawing numbers is not a change, but setting the seed is.
    """
    import torch

    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if torch.initial_seed() != seed:
                message = "it sets torch's random seed for the whole notebook: leave the seed alone"
                faults.append(f"{message}, or set it inside `with torch.random.fork_rng():`")
            if torch.is_grad_enabled() != grad:
                faults.append("it turns gradients off or on globally: use `with torch.no_grad():`")
            if torch.get_default_dtype() != dtype:
                faults.append("it changes torch's default dtype: pass dtype= instead")
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(dtype)
