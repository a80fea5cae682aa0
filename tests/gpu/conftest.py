"""The CUDA paths, and the same bodies in small on the CPU.

What is marked `gpu` runs by `make test-gpu` where there is a card, and is skipped elsewhere. It
leaves its figures in build/gpu.json. `card` is a card made of the host's memory.
"""

import functools
import gc
import importlib.metadata
import json
import os
from pathlib import Path

import pytest
import torch
from torch.utils import collect_env

from labkit.training import hardware

hardware.one_card()  # as in a notebook
PACKAGES = ("transformers", "peft", "trl", "bitsandbytes", "accelerate")
BUILD = Path(__file__).parents[2] / "build"
FIGURES = BUILD / ("gpu-pretended.json" if "PRETENDED_CARD" in os.environ else "gpu.json")


def pytest_collection_modifyitems(config, items):
    """Skip tests for a GPU where there is none, or where nobody asked for them."""
    if not torch.cuda.is_available():
        reason = "there is no CUDA here: make test-gpu, on a machine that has a card"
    elif config.option.markexpr != "gpu":
        reason = "make test-gpu runs it"
    else:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@functools.cache
def machine():
    """Card, driver and versions, as plain data."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    found["capability"] = torch.cuda.get_device_capability()
    return found | collect_env.get_env_info()._asdict()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the test runs; a card is left as empty as it was found."""
    yield request.param
    if request.param == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def figures():
    """What each test of a run found."""
    return {}


@pytest.fixture
def record(request, device, figures):
    """`record(name=value, …)` keeps figures; those of a card go to build/ at once."""

    def note(**found):
        figures[request.node.name] = found
        if device == "cuda":
            FIGURES.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"machine": machine(), "tests": figures}, indent=1)
            FIGURES.write_text(text, encoding="utf-8")

    return note
