"""A training by a loop that a lab writes out, kept in the cache: a restart brings it back.

`finetune` keeps what TRL's trainer makes. One file a title, so that a lab keeps no more than its
last run of each.
"""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import torch
from datasets import Dataset
from IPython.display import display
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from labkit import download, fingerprint, live, plots
from labkit.files import whole
from labkit.training.hardware import rehearsal

CODE = tuple(f"training/{name}.py" for name in ("fast", "kept", "loop", "packing"))
PACKAGES = ("lora-labs", "torch", "transformers")


@dataclass(frozen=True)
class Curve:
    """What is left of a training's live curve: its loss (nats a token) and clock at each step."""

    losses: list[float]
    seconds: list[float]


def key(model: nn.Module, rows: Dataset, loop: Callable, *settings: object) -> str:
    """A hash of what a training by the function `loop` depends on, from before its first step.

    Of weights, rows, settings and versions, and of the notebook's own code: that of `loop`, of the
    classes in `model`, and of what either calls.
    """
    kinds = {type(module) for module in model.modules()}
    own = [f for kind in kinds if kind.__module__ == "__main__" for f in vars(kind).values()]
    parts = {
        "weights": fingerprint.weights(model),
        "rows": rows.to_list(),
        "code": sorted(_reached([loop, *own]).items()),
        "settings": [*settings, str(next(model.parameters()).device)],
    }
    return fingerprint.of(CODE, PACKAGES, parts)


def bring(title: str, model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> Curve | None:
    """Put what an earlier call kept into `model`, in place; its curve. None where there is none.

    The optimizer's states are there afterwards, as large as after a step, and zero.
    """
    try:
        with safe_open(_place(title), "pt") as file:
            told, names = file.metadata() or {}, set(file.keys())
            trained = _trained(model)
            if told.get("key") != key or names != trained.keys():
                return None
            for name, parameter in trained.items():
                parameter.data.copy_(file.get_tensor(name))
    except (OSError, SafetensorError):  # none, or one that was cut short
        return None
    _make_states(optimizer)
    curve = Curve(json.loads(told["losses"]), json.loads(told["seconds"]))
    print(f"{title}: from the cache, trained earlier in {curve.seconds[-1]:.0f} s")
    display(plots.growing_loss(curve.losses, len(curve.losses), title))
    return curve


def keep(title: str, model: nn.Module, curve: live.Curve, key: str) -> None:
    """Keep what requires grad in `model`, and the curve; not in a rehearsal."""
    if rehearsal():
        return
    told = {"key": key, "losses": json.dumps(curve.losses), "seconds": json.dumps(curve.seconds)}
    # a full disk costs the file, no lesson
    with contextlib.suppress(OSError, SafetensorError), whole(_place(title)) as part:
        save_file(_trained(model), part, told)


def _place(title: str) -> Path:
    name = "-".join(re.findall(r"\w+", title.lower()))
    return download.cache_dir() / "runs" / f"{name}.safetensors"


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name; what two modules share comes once."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _make_states(optimizer):
    """Have the optimizer make its states without a step that moves anything."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _reached(functions):
    """`{name: code}` of functions, and of the notebook's own that they call."""
    found, waiting = {}, [f for f in functions if isinstance(f, FunctionType)]
    while waiting:
        function = waiting.pop()
        if function.__qualname__ in found:
            continue
        found[function.__qualname__] = _plain(function.__code__)
        called = [function.__globals__.get(name) for name in function.__code__.co_names]
        waiting += [f for f in called if isinstance(f, FunctionType) and f.__module__ == "__main__"]
    return found


def _plain(code):
    """A code object without the places where it was written, as text."""
    constants = [_plain(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr([code.co_code.hex(), code.co_names, code.co_varnames, constants])
