"""`track` counts bytes as closed forms say and as torch's own CPU allocator reports them."""

import gc

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit
from real_steps import allocators_peak, sized
from torch import nn

from labkit.memory import measure
from labkit.memory.ledger import CATEGORIES
from labkit.memory.measure import track

MB = 1 << 20  # bytes of a float tensor with 2**18 numbers


def block(n=1):
    return torch.zeros(n, 1 << 18)


def step(model, optimizer, ids):
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("vocab_size", [500, 20_000])  # the layers' peak, and the tied matrix's
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_training_step_peaks_where_the_allocator_says(tied, checkpointing, vocab_size):
    config = sized((64, 160, 3, 4, 2, vocab_size, tied))
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(500, (2, 48))
    step(model, optimizer, ids)
    with track(model, optimizer) as peak:
        step(model, optimizer, ids)
    allocated = allocators_peak(lambda: step(model, optimizer, ids))
    # random-number states, which recomputation keeps, are made outside the dispatcher's sight
    assert peak.bytes - peak.start_bytes == pytest.approx(
        allocated, rel=0.01 if checkpointing else 1e-6
    )


@pytest.mark.parametrize("first", ["fresh", "view", "transposed"])
@pytest.mark.parametrize("second", ["fresh", "view", "transposed"])
def test_two_gradients_of_a_tensor_are_summed_as_without_us(first, second):
    """In place or not: under a dispatch mode torch itself would always make a third tensor."""
    use = {"fresh": lambda y: y, "view": lambda y: y.view(-1), "transposed": lambda y: y.T}

    def job():
        y = torch.randn(512, 512, requires_grad=True) * 1
        ((use[first](y) * 2).sum() + (use[second](y) * 2).sum()).backward()

    with track(torch.zeros(1)) as peak:
        job()
    assert peak.bytes - peak.start_bytes == pytest.approx(allocators_peak(job), abs=1000)
    assert sum(peak.by_category.values()) == peak.bytes


def test_categories_of_a_step_are_what_the_shapes_say():
    model = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256))
    n_bytes = sum(p.nbytes for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    x = torch.randn(64, 256)
    with track(model, optimizer) as first:
        model(x).square().sum().backward()
        optimizer.step()
    assert first.by_category["weights"] == first.by_category["gradients"] == n_bytes
    assert first.by_category["optimizer"] >= n_bytes
    optimizer.zero_grad()
    with track(model, optimizer) as second:
        loss = model(x).square().sum()
        loss.backward()
    assert second.by_category["weights"] == n_bytes
    assert second.by_category["optimizer"] == 2 * n_bytes + 4 * 4
    assert set(second.by_category) == set(CATEGORIES)
    assert sum(second.by_category.values()) == second.bytes
    assert second.start_bytes == 3 * n_bytes + 4 * 4


def test_activations_are_what_backward_still_needs():
    layers = [f for _ in range(4) for f in (nn.Linear(64, 64, bias=False), nn.Tanh())]
    layers = nn.Sequential(*layers)
    x = torch.randn(1024, 64)
    with track(layers) as plain:
        layers(x).sum().backward()
    # each tanh keeps its output; at the peak, in the last linear's backward, three are left
    assert plain.by_category["activations"] == pytest.approx(3 * x.nbytes, rel=1e-4)
    with track(layers) as none, torch.no_grad():
        layers(x)
    assert none.by_category["activations"] == 0


def test_views_share_a_storage_which_lives_as_long_as_the_last_of_them():
    with track(torch.zeros(1)) as peak:
        view = block(3)[1:].view(-1).detach()
        gc.collect()
        more = block()
        del view
        block(2)
    assert peak.bytes == 4 * MB + 4
    assert peak.end_bytes == more.nbytes + 4 == MB + 4


def test_growth_in_place_is_seen():
    with track(torch.zeros(1)) as peak:
        x = block()
        x.resize_(4, 1 << 18)
        x.resize_(1, 10)
    assert peak.bytes == 4 * MB + 4
    assert peak.end_bytes == x.untyped_storage().nbytes() + 4


def test_nested_blocks_each_see_their_own_peak_and_one_that_raises_up_to_there():
    with track(torch.zeros(1)) as outer:
        a = block(2)
        with pytest.raises(RuntimeError, match="stop"), track(torch.zeros(1)) as inner:
            block(3)
            raise RuntimeError("stop")
        del a
        block(4)
    assert inner.bytes == 3 * MB + 4
    assert outer.bytes == 5 * MB + 4 + 4
    assert not measure._open


def test_without_arguments_everything_in_the_process_counts():
    model, loose = nn.Linear(512, 512, bias=False), block(2)
    with track() as peak:
        model(torch.randn(8, 512))
    assert peak.by_category["weights"] >= MB
    assert peak.by_category["other"] >= loose.nbytes
    with track(model) as alone:
        pass
    assert alone.bytes == alone.by_category["weights"] == MB


def test_models_made_inside_and_gradients_of_an_earlier_step_are_told_apart():
    with track(torch.zeros(1)) as peak:
        model = nn.Linear(512, 512, bias=False)
        model(torch.randn(4, 512)).sum().backward()
    with track(model) as later:
        pass
    for found in (peak, later):
        assert found.by_category["weights"] == found.by_category["gradients"] == MB


def test_quantised_weights_count_with_what_they_carry():
    layer = Linear4bit(128, 256, bias=False, quant_type="nf4").to("cpu")
    n = 128 * 256
    carried = n // 2 + n // 64 + -(-n // (64 * 256)) * 4 + 16 * 4 + 256 * 4 + 4
    with track(layer) as peak:
        pass
    assert peak.by_category["weights"] == peak.bytes == carried


def test_a_cpu_has_no_allocator_figures():
    with track(torch.zeros(1), device="cpu") as peak:
        torch.ones(4)
    assert peak.allocated_bytes is peak.reserved_bytes is None


def test_cuda_peaks_survive_nesting(monkeypatch):
    now = {"peak": 0}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: now["peak"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2 * now["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: now.update(peak=0))
    with track(torch.zeros(1), device="cuda") as outer:
        now["peak"] = 100
        with track(torch.zeros(1), device="cuda") as inner:
            now["peak"] = 30
    assert (inner.allocated_bytes, inner.reserved_bytes) == (30, 60)
    assert (outer.allocated_bytes, outer.reserved_bytes) == (100, 200)
    assert not measure._open
