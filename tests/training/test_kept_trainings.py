"""A plain loop's training comes back after a restart, and only where nothing has changed."""

import pytest
import torch
from datasets import Dataset
from torch import nn

from labkit.training import kept

ROWS = Dataset.from_dict({"text": ["a", "b"]})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("LABKIT_REHEARSAL", raising=False)
    return tmp_path


def made(factor="2", seed=0):
    """A notebook's model and its loop; `factor` stands in the learner's own forward."""
    names = {"nn": nn, "torch": torch, "kept": kept, "__name__": "__main__"}
    exec(
        f"""
def half(x):
    return x / {factor}

class Own(nn.Linear):
    def forward(self, x):
        return super().forward(half(x))

def loop(model, optimizer, steps=3):
    curve = kept.Curve([], [])
    for step in range(steps):
        loss = model(torch.ones(1, 4)).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.losses.append(loss.item())
        curve.seconds.append(step + 0.5)
    return curve
""",
        names,
    )
    torch.manual_seed(seed)
    model = nn.Sequential(names["Own"](4, 4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    model[0].weight.data = model[0].weight.data.bfloat16().float()
    optimizer = torch.optim.AdamW(model[0].parameters(), 1e-2, weight_decay=0.0)
    return model, optimizer, names["loop"]


def test_what_was_trained_is_there_again_with_its_curve(capsys):
    model, optimizer, loop = made()
    key = kept.key(model, ROWS, loop, 1e-2)
    assert kept.bring("My loop", model, optimizer, key) is None
    curve = loop(model, optimizer)
    kept.keep("My loop", model, curve, key)
    again, fresh, loop = made()
    assert kept.key(again, ROWS, loop, 1e-2) == key
    brought = kept.bring("My loop", again, fresh, key)
    assert brought == curve and "trained earlier in 2 s" in capsys.readouterr().out
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    sizes = [{k: t.shape for k, t in state.items()} for state in fresh.state.values()]
    assert sizes == [{k: t.shape for k, t in s.items()} for s in optimizer.state.values()]
    assert [group["lr"] for group in fresh.param_groups] == [1e-2]
    assert all(p.grad is None for p in again.parameters())


def test_it_is_another_one_where_anything_is():
    model, _, loop = made()
    key = kept.key(model, ROWS, loop, 1e-2)
    other = Dataset.from_dict({"text": ["a", "c"]})
    keys = {key, kept.key(model, ROWS, loop, 2e-2), kept.key(model, other, loop, 1e-2)}
    started, _, loop = made(seed=1)
    keys.add(kept.key(started, ROWS, loop, 1e-2))
    thirds, _, loop = made(factor="3")  # in a function that forward calls
    keys.add(kept.key(thirds, ROWS, loop, 1e-2))
    assert len(keys) == 5


def test_another_key_a_broken_file_and_a_rehearsal_train_anew(cache, monkeypatch):
    model, optimizer, loop = made()
    curve = loop(model, optimizer)
    monkeypatch.setenv("LABKIT_REHEARSAL", "1")
    kept.keep("My loop", model, curve, "key")
    assert not list(cache.rglob("*.safetensors"))
    monkeypatch.delenv("LABKIT_REHEARSAL")
    kept.keep("My loop", model, curve, "key")
    assert kept.bring("My loop", model, optimizer, "another") is None
    (file,) = cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert kept.bring("My loop", model, optimizer, "key") is None
