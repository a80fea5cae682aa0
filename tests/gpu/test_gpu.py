"""Each test has two sizes: real on a card, small on the CPU and on a card that is pretended.

The body is the same.
"""

import contextlib
import os

import bitsandbytes as bnb
import peft
import pytest
import torch
import transformers
from real_steps import allocators_peak, sized
from small_llama import with_lora
from trl import SFTConfig

from labkit import tasks
from labkit.memory import configs, real
from labkit.memory.measure import track
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate
from labkit.training import finetuning, hardware, models


def small():
    return sized((96, 256, 3, 6, 2, 700, False))


def real_card(device):
    """Whether `device` computes as a card does: the pretended one is the CPU, and slow in fp16."""
    return device == "cuda" and "PRETENDED_CARD" not in os.environ


def settings_of(device, **more):
    """Settings in 16 bits: in fp16 on a card without bf16."""
    half = device == "cuda" and hardware.precision(device) == torch.float16
    return Settings(dtype="float16" if half else "bfloat16", **more)


def allocated(device):
    return torch.cuda.memory_allocated() if device == "cuda" else 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_qlora_takes_what_was_simulated(device, record, checkpointing):
    card = device == "cuda"
    config, seq = (configs.find("llama-2-7b"), 512) if card else (small(), 64)
    settings = settings_of(device, method="qlora", seq=seq, checkpointing=checkpointing)
    simulated = simulate(config, settings, device=device).peak
    if card and simulated > torch.cuda.mem_get_info()[0]:
        pytest.skip(f"the card has less than the {simulated / 1e9:.1f} GB that it takes")
    before = allocated(device)
    peak = real.peak_of_steps(config, settings, device)
    measured = (peak.allocated_bytes if card else peak.bytes) - before
    record(simulated=simulated, measured=measured, tracked=peak.bytes, reserved=peak.reserved_bytes)
    # a card adds cuBLAS' workspaces and the allocator's rounding
    assert measured == pytest.approx(simulated, rel=0.03 if card else 0.001)


def test_track_says_what_torchs_allocator_says(device, record):
    config = configs.find("smollm2-135m") if real_card(device) else small()
    settings = settings_of(device, batch=4, seq=256 if real_card(device) else 64)
    model = real.real_model(config, settings, device)
    optimizer = real.optimizer_of(model, settings)
    real.step(model, optimizer, settings)  # states, and cuBLAS' workspaces, exist from here on
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = allocated(device)
        real.step(model, optimizer, settings)
        grown, slack = torch.cuda.max_memory_allocated() - start, {"rel": 0.02}
    else:
        grown, slack = allocators_peak(lambda: real.step(model, optimizer, settings)), {"abs": 1000}
    with track(model, optimizer, device=device) as peak:
        real.step(model, optimizer, settings)
    record(allocator=grown, tracked=peak.bytes - peak.start_bytes)
    assert peak.bytes - peak.start_bytes == pytest.approx(grown, **slack)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_paged_adamw_steps_as_adamw_does_while_its_states_come_and_go(device, record):
    n = 1 << 22 if device == "cuda" else 1 << 17  # from 100,000 numbers a state is paged
    start = torch.randn(n, generator=torch.Generator().manual_seed(0))
    paged, plain = (torch.nn.Parameter(start.clone().to(device)) for _ in range(2))
    how = {"lr": 1e-2, "weight_decay": 0.0}  # the two apply decay at different moments
    ours, theirs = bnb.optim.PagedAdamW32bit([paged], **how), torch.optim.AdamW([plain], **how)
    grown = []
    for seed in range(4):
        gradient = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1)).to(device)
        for parameter, optimizer in ((paged, ours), (plain, theirs)):
            before = allocated(device)
            parameter.grad = gradient.clone()
            optimizer.step()
            parameter.grad = None
            grown.append(allocated(device) - before)
        if device == "cuda":  # out to the host's memory; the next step brings them back
            bnb.functional.GlobalPageManager.get_instance().prefetch_all(to_cpu=True)
            torch.cuda.synchronize()
    states = ours.state[paged]
    gap = (paged - plain).abs().max().item()
    record(states=2 * 4 * n, grown_paged=grown[0], grown_plain=grown[1], largest_difference=gap)
    assert gap < 1e-5 and (plain.cpu() - start).abs().max() > 1e-2
    if device == "cuda":
        assert all(getattr(states[name], "is_paged", False) for name in ("state1", "state2"))
        assert grown[0] < n and grown[1] >= 2 * 4 * n  # paged states are not the allocator's


def adapted(device, *names):
    """A random model in fp32 with a random adapter of each name, in eval mode."""
    config = configs.find("smollm2-135m") if real_card(device) else small()
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return with_lora(model, names, std=0.1)


@torch.no_grad()
def test_a_merged_model_is_the_unmerged_one(device, record):
    model = adapted(device, "home")
    ids = torch.randint(model.config.vocab_size, (2, 40), device=device)
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    apart = model(input_ids=ids).logits
    merged = model.merge_and_unload()(input_ids=ids).logits
    moved, gap = ((logits - apart).abs().max().item() for logits in (base, merged))
    record(adapter_moves_logits_by=moved, merging_moves_them_by=gap)
    assert moved > 0.01
    assert gap < 1e-3 * moved  # rounding of fp32


@torch.no_grad()
def test_a_mixed_batch_is_one_by_one(device, record):
    model = adapted(device, "home", "tickets", "chat")
    ids = torch.randint(model.config.vocab_size, (5, 24), device=device)
    asked = ["chat", "home", "__base__", "tickets", "home"]
    together = model(input_ids=ids, adapter_names=asked).logits
    alone = []
    for row, name in zip(ids, asked, strict=True):
        if name != "__base__":
            model.set_adapter(name)
        with model.disable_adapter() if name == "__base__" else contextlib.nullcontext():
            alone.append(model(input_ids=row[None]).logits)
    alone = torch.cat(alone)
    gap = (together - alone).abs().max().item()
    between = (alone[1] - model(input_ids=ids[1:2], adapter_names=["chat"]).logits).abs().max()
    record(mixed_against_alone=gap, between_adapters=between.item())
    assert between > 0.01
    assert gap < 1e-3 * between


def test_finetune_learns_in_the_dtype_of_this_machine(device, record, tmp_path, monkeypatch):
    try:
        tokenizer, _ = models.tokenizer(hardware.SMALLEST)
    except models.download.ModelUnavailable as error:
        pytest.skip(str(error))
    if real_card(device):
        model, _ = models.load(device=device)
    else:
        config = small()
        config.vocab_size = len(tokenizer)
        dtype = hardware.weights(device) if device == "cuda" else torch.float32
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    rows = tasks.load("home").select(range(64))
    monkeypatch.setattr("labkit.download.cache_dir", lambda: tmp_path)
    lora = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    args = SFTConfig(
        str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        report_to="none",
        **hardware.flags(device),
    )
    result = finetuning.finetune(model, tokenizer, rows, lora, args)
    trained = {p.dtype for name, p in result.model.named_parameters() if "lora_" in name}
    base = str(result.model.get_base_model().dtype)
    record(losses=result.losses, seconds=result.seconds, weights=base)
    assert trained == {torch.float32}
    assert result.losses[-1] < result.losses[0] - 0.05
