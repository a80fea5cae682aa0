"""The CUDA paths, and the same bodies in small on the CPU.

What is marked `gpu` runs by `make test-gpu` where there is a card, and is skipped elsewhere. It
leaves its figures in build/gpu.json. `card` is a card made of the host's memory.
"""

import gc
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from labkit.training import hardware

hardware.one_card()  # as in a notebook
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")
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


def machine():
    """Card, driver and versions, as plain data."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        capability = f"{card.major}.{card.minor}"
        found |= {"card": card.name, "card_bytes": card.total_memory, "capability": capability}
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(ask, capture_output=True, text=True).stdout.split()
        found["driver"] = told[0] if told else None
    return found


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the test runs; a card is left as empty as it was found."""
    yield request.param
    if request.param == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def figures():
    """What a run found, beside the machine that it is of."""
    return {"machine": machine(), "tests": {}}


@pytest.fixture
def record(request, device, figures):
    """`record(name=value, …)` keeps figures; those of a card go to build/ at once."""

    def note(**found):
        figures["tests"][request.node.name] = found
        text = json.dumps(figures, indent=1)
        if device == "cuda":
            FIGURES.parent.mkdir(parents=True, exist_ok=True)
            FIGURES.write_text(text, encoding="utf-8")

    return note
