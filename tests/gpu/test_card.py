"""A card made of the host's memory: what mixes devices fails on it, as on a real one.

The tests that are marked `gpu` run on it, too, in their real size where that takes seconds.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.thorough

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def on_card():
    """`on_card(*command)`: what it prints, in a process whose torch finds the card."""
    if torch.version.cuda:
        pytest.skip("this torch has CUDA of its own")
    if not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("there is no C++ compiler here")

    def run(*command, **variables):
        whole = [sys.executable, HERE / "card", sys.executable, *command]
        done = subprocess.run(
            whole, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


REFUSED = [
    "card + host",
    "torch.nn.functional.linear(card, host)",
    "table(numbers)",
    "torch.cat([card, host])",
    "card.index_select(0, rows)",
    "host[rows.to('cuda')]",
    "card.masked_fill(host > 0, 0.0)",
    "card.lerp_(host, 0.5)",
]
ALLOWED = [  # a number may come from the host, and so may indices
    "card + torch.tensor(2.0)",
    "card[rows]",
    "card.copy_(host)",
    "torch.cat([card, host.to(card)])",
]
TRIED = """
import sys, torch

host, card = torch.ones(3, 4), torch.ones(3, 4, device="cuda")
numbers, rows = torch.arange(3), torch.tensor([0, 2])
table = torch.nn.Embedding(5, 4).to("cuda")
for operation in sys.argv[1:]:
    try:
        eval(operation)
    except RuntimeError as error:
        assert "on the same device" in str(error) or "indices should be" in str(error), error
        print(operation)
"""


def test_an_operation_that_mixes_devices_raises(on_card):
    assert on_card("-c", TRIED, *REFUSED, *ALLOWED).splitlines() == REFUSED


FOUR_BITS = """
import json, torch
import bitsandbytes as bnb

torch.manual_seed(0)
x, W = torch.randn(3, 512), torch.randn(1024, 512)
outputs, peaks = [], []
for device in ("cpu", "cuda"):
    layer = bnb.nn.Linear4bit(512, 1024, bias=False, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(W.clone(), requires_grad=False, quant_type="nf4")
    layer.to(device)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs.append(layer(x.to(device)).cpu())
    peaks.append(torch.cuda.max_memory_allocated() - held)
print(json.dumps([(outputs[0] - outputs[1]).abs().max().item(), peaks[1] / W.nbytes]))
"""


def test_a_layer_in_4_bits_is_the_same_on_it_and_takes_what_it_unpacks(on_card):
    gap, peak = json.loads(on_card("-c", FOUR_BITS).splitlines()[-1])
    assert gap < 1e-4
    assert 1 < peak < 1.1


@pytest.mark.parametrize(
    "capability, which, passed",
    [
        ("8.0", "merged or mixed or track or finetune", 4),  # the rest is a 7B model, and paging
        ("7.5", "finetune", 1),  # fp16, with a gradient scaler
    ],
)
def test_what_is_marked_gpu_holds_on_it(on_card, capability, which, passed):
    command = ["-m", "pytest", "-v", "-m", "gpu", "-k", which, "tests/gpu/test_gpu.py"]
    told = on_card(*command, PRETENDED_CAPABILITY=capability)
    assert f"{passed} passed" in told
