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


MIXED = """
import torch

def refused(make):
    try:
        make()
    except RuntimeError as error:
        assert "on the same device" in str(error) or "indices should be" in str(error), error
        return True
    return False

host, card = torch.ones(3, 4), torch.ones(3, 4, device="cuda")
numbers, rows = torch.arange(3), torch.tensor([0, 2])
table = torch.nn.Embedding(5, 4).to("cuda")
print([refused(make) for make in (
    lambda: card + host,
    lambda: torch.nn.functional.linear(card, host),
    lambda: table(numbers),
    lambda: torch.cat([card, host]),
    lambda: card.index_select(0, rows),
    lambda: host[rows.to("cuda")],
    lambda: card.masked_fill(host > 0, 0.0),
    lambda: card.lerp_(host, 0.5),
)])
print([refused(make) for make in (
    lambda: card + torch.tensor(2.0),  # a number may come from the host
    lambda: card[rows],  # and so may indices
    lambda: card.copy_(host),
    lambda: torch.cat([card, host.to(card)]),
)])
"""


def test_an_operation_that_mixes_devices_raises(on_card):
    refused, allowed = map(json.loads, on_card("-c", MIXED).lower().splitlines())
    assert refused == [True] * 8
    assert allowed == [False] * 4


SAME = """
import json, torch
from torch import nn

def trained(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.GELU(), nn.Linear(30, 5))
    net, x, y = net.to(device), torch.randn(16, 20).to(device), torch.arange(16).to(device) % 5
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, fused=device == "cuda")
    for _ in range(5):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert {p.device.type for p in net.parameters()} == {device}
    return [loss.item(), *net[0].weight.detach().cpu().flatten()[:5].tolist()]

print(json.dumps([trained("cpu"), trained("cuda")]))
before = torch.cuda.memory_allocated()
block = torch.zeros(1000, 1000, device="cuda")
view = block.T[:10]
out = torch.empty(0, device="cuda")
torch.add(view, 1, out=out)
held = [torch.cuda.memory_allocated() - before]
del view, block
held.append(torch.cuda.memory_allocated() - before)
print(json.dumps([held, torch.cuda.max_memory_allocated() - before >= held[0], out.sum().item()]))
"""


def test_it_computes_what_the_cpu_does_and_counts_its_memory(on_card):
    lines = on_card("-c", SAME).splitlines()
    cpu, card = json.loads(lines[0])
    assert card == pytest.approx(cpu, rel=1e-5)
    out = 10 * 1000 * 4 + 448  # a block is a multiple of 512 bytes
    assert json.loads(lines[1]) == [[4_000_256 + out, out], True, 10_000.0]


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
