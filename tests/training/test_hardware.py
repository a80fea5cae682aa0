"""What is decided for a card, without one: torch.cuda's answers are faked."""

import os
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_llama import small_llama
from transformers import GPT2Config
from trl import SFTConfig

from labkit import download
from labkit.course import doctor
from labkit.memory import budget, configs
from labkit.memory.settings import Settings
from labkit.training import hardware, lean, models

GIB = 2**30
CARDS = {  # compute capability, memory
    "Tesla T4": ((7, 5), 14.6 * GIB),
    "A100": ((8, 0), 79.3 * GIB),
    "MX450": ((7, 5), 1.9 * GIB),
}


@pytest.fixture
def card(monkeypatch):
    def put(name):
        capability, n_bytes = CARDS[name]
        seen = SimpleNamespace(name=name, total_memory=int(n_bytes))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: seen)

    return put


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("name", "multiplied", "kept"),
    [("Tesla T4", torch.float16, torch.float32), ("A100", torch.bfloat16, torch.bfloat16)],
)
def test_the_precision_is_that_of_the_card(card, name, multiplied, kept):
    card(name)
    assert hardware.device() == "cuda" and hardware.attention("cuda") is None
    assert (hardware.precision("cuda"), hardware.weights("cuda")) == (multiplied, kept)
    wanted = {"bf16": multiplied == torch.bfloat16, "fp16": multiplied == torch.float16}
    assert hardware.flags("cuda") == {"use_cpu": False, **wanted}
    assert doctor.check_precision().value.startswith(str(multiplied).removeprefix("torch."))


@pytest.mark.parametrize("fast, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_has_bf16_where_it_is_fast(no_card, monkeypatch, fast, dtype):
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: fast, raising=False)
    assert hardware.precision("cpu") == hardware.weights("cpu") == dtype
    assert hardware.flags("cpu") == {"use_cpu": True, "bf16": False, "fp16": False}


@pytest.mark.parametrize(
    ("env", "seen"),
    [({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3"}, "3"), ({"LOCAL_RANK": "1"}, None)],
)
def test_one_card_is_seen_unless_told_otherwise_or_by_a_launcher(monkeypatch, env, seen):
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: cpu)
    monkeypatch.setattr(os, "environ", dict(env))
    assert hardware.processes() == (hardware.device() == "cpu")
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen


def test_the_default_model_follows_the_card(card, no_card, monkeypatch):
    monkeypatch.delenv("LABKIT_MODEL", raising=False)
    assert hardware.default_model() == "smollm2-135m"
    # a T4 keeps fp32 weights, so the largest one does not fit
    sizes = {"Tesla T4": "360m", "A100": "1.7b", "MX450": "135m"}
    for name, size in sizes.items():
        card(name)
        assert hardware.default_model() == f"smollm2-{size}"
    monkeypatch.setenv("LABKIT_MODEL", "smollm2-360m")
    assert hardware.default_model() == "smollm2-360m"


def test_without_a_hub_the_default_is_the_labs_model(card, monkeypatch, tmp_path, capsys):
    card("A100")
    monkeypatch.delenv("LABKIT_MODEL", raising=False)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "hub_answers", lambda: False)
    assert models.default() == "smollm2-135m"
    (line,) = capsys.readouterr().out.splitlines()
    assert "smollm2-1.7b" in line and "no hub answers" in line
    monkeypatch.setenv("LABKIT_MODEL", "smollm2-1.7b")  # who asks for it is told
    with pytest.raises(download.ModelUnavailable, match="only on the Hugging Face Hub"):
        models.default()


def test_the_largest_qlora_grows_with_the_card():
    found = [hardware.largest_qlora(n * GIB) for n in (1, 4, 8, 12, 24, 48)]
    assert found[0] is None and found[-1] == "llama-2-70b"
    known = [hardware.KNOWN.index(name) for name in found[1:]]
    assert known == sorted(known) and len(set(known)) == len(hardware.KNOWN)


def test_a_batch_is_divided_until_a_step_fits(card):
    found = []
    for name in ("MX450", "Tesla T4", "A100"):
        card(name)
        found.append(hardware.micro_batch("smollm2-135m", "lora", 16))
    assert 1 <= found[0] < found[1] <= found[2] == 16 and 16 % found[0] == 0
    card("Tesla T4")
    assert hardware.micro_batch("llama-2-70b", "lora", 9) == 1  # nothing fits


def test_a_micro_batch_counts_the_scores_that_packed_rows_hold(card, monkeypatch):
    """A card with room for a step with fused attention, and not for 4 rows' scores as well."""
    config = configs.find("smollm2-1.7b")
    fused = budget.closed_form(config, Settings(dtype="float32", autocast=True, batch=4)).peak
    scores = 4 * config.num_attention_heads * 512**2 * 4 * config.num_hidden_layers
    monkeypatch.setitem(CARDS, "short", ((7, 5), (fused + 0.9 * scores) / 0.8))
    card("short")
    assert hardware.micro_batch("smollm2-1.7b", "lora", 4) < 4


def test_a_micro_batch_of_another_architecture_is_simulated(card, tmp_path):
    card("A100")
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    assert hardware.micro_batch(str(tmp_path), "lora", 4, seq=32) == 4


@pytest.mark.parametrize(
    "machine, weights, asked, wanted",
    [
        ("Tesla T4", torch.float32, {"fp16": True}, (False, True)),
        ("Tesla T4", torch.float32, {}, (False, False)),
        ("Tesla T4", torch.float16, {}, (False, True)),  # whoever loads in fp16 gets the scaler
        ("A100", torch.float32, {"bf16": True}, (True, False)),
        ("A100", torch.bfloat16, {"bf16": True}, (False, False)),  # nothing to cast
    ],
)
def test_what_finetune_multiplies_in(card, tmp_path, machine, weights, asked, wanted):
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    for name, value in asked.items():  # as made on that machine, which would check its card
        object.__setattr__(args, name, value)
    card(machine)
    model = SimpleNamespace(dtype=weights, device=torch.device("cuda"))
    assert lean.mixed_precision(args, model) == {"bf16": wanted[0], "fp16": wanted[1]}


@pytest.mark.parametrize("base", [torch.float16, torch.float32])
def test_finetune_trains_in_fp32_under_a_gradient_scaler(monkeypatch, base):
    def trl(model, args, peft_config, **options):
        adapted = get_peft_model(model, peft_config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:  # as SFTTrainer does with the adapters of a 4-bit model
                parameter.data = parameter.data.to(torch.bfloat16)
        return SimpleNamespace(model=adapted, args=args)

    monkeypatch.setattr(lean, "LeanTrainer", trl)
    monkeypatch.setattr(lean, "_rows", lambda dataset, tokenizer: dataset)
    monkeypatch.setattr(lean, "settings", lambda args, model: SimpleNamespace(fp16=True))
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    made = lean.lean_trainer(small_llama().to(base), None, None, lora, None)
    trained = [p for p in made.model.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}
    assert made.model.get_base_model().dtype == base


@pytest.mark.parametrize(
    ("name", "error", "verdict", "told"),
    [
        ("Tesla T4", None, "ok", "llama-2-13b"),  # the largest model for QLoRA
        ("A100", None, "ok", "llama-2-70b"),
        ("A100", RuntimeError("no kernel image\nand more"), "warn", "pip install -U bitsandbytes"),
    ],
)
def test_doctor_tells_what_a_card_is_good_for(card, monkeypatch, name, error, verdict, told):
    monkeypatch.setattr(torch, "zeros", Mock())
    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", Mock(side_effect=error))
    card(name)
    found = doctor.check_gpu()
    assert found.value.startswith(name) and found.verdict == verdict and told in found.fix
    assert found.value.endswith("RuntimeError: no kernel image") == bool(error)
