"""The fast step: loss and gradients are those of PEFT and autograd, and of differences in fp64."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from labkit.training import fast, loop, packing

SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def tuned(family="llama", **options):
    """A random model of two layers, its LoRA on all linear layers as large as the weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZE)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.add_(torch.randn_like(p) / 4)  # else they are all ones
    options = {"target_modules": "all-linear", "r": 4} | options
    model = get_peft_model(model, LoraConfig(**options)).train()
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.1)
    return model


def batch():
    rng = torch.Generator().manual_seed(0)
    rows = []
    for i in range(5):
        ids = [1, 2, 3, *torch.randint(4, 97, (4 + i,), generator=rng).tolist()]
        rows.append({"input_ids": ids, "labels": [-100] * 5 + ids[5:]})
    return packing.pack(rows)


def step(model, quick, autocast=False):
    """Loss and gradients of one batch by `loop.answer_loss`, or with what is fast left out."""
    torch.manual_seed(1)
    model.zero_grad()
    if quick:
        loss = loop.answer_loss(model, batch(), autocast)
    else:
        with (
            pytest.MonkeyPatch.context() as patch,
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            patch.setattr(fast, "layers", lambda *_, **__: nullcontext())
            logits, targets = loop.answer_logits(model, batch())
        loss = F.cross_entropy(logits.float(), targets)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def agree(model):
    """The two ways give one loss, which is returned, and one gradient."""
    (wanted, theirs), (found, ours) = step(model, quick=False), step(model, quick=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert ours.keys() == theirs.keys() != set()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    return found


CASES = {  # family, and the options of its LoRA
    "plain": ("llama", {}),
    "rank-stabilized": ("llama", {"use_rslora": True}),
    "dropout": ("llama", {"lora_dropout": 0.3}),
    "q and v": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "dora": ("llama", {"use_dora": True}),
    "bias of B": ("llama", {"lora_bias": True}),
    "norms trained": ("llama", {"modules_to_save": ["norm"]}),
    "head trained": ("llama", {"modules_to_save": ["lm_head"]}),
    "norms on heads": ("qwen3", {}),
    "a norm that adds one to its weight": ("gemma", {}),
    "a rotation of neighbors": ("cohere", {}),
}


@pytest.mark.parametrize(("family", "options"), CASES.values(), ids=CASES)
def test_loss_and_gradients_are_those_of_peft(family, options):
    agree(tuned(family, **options))


def test_several_adapters_none_and_merged_ones_go_the_usual_way():
    model = tuned()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    agree(model)
    model.set_adapter("default")
    usual = agree(model)
    with model.disable_adapter():
        assert (loop.answer_loss(model, batch(), autocast=False) - usual).abs() > 0.01
    model.merge_adapter()
    torch.testing.assert_close(loop.answer_loss(model, batch(), autocast=False), usual)


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 weights", "autocast"])
def test_in_bf16_it_is_as_near_to_fp32_as_autograd_is(autocast):
    """One rounding to bf16 is 2^-9; the fast gradient is no further off than the plain one."""
    model = tuned()
    _, exact = step(model, quick=False)
    for name, p in model.named_parameters():
        if "lora_" not in name and not autocast:
            p.data = p.data.bfloat16()
    far = {}
    for quick in (False, True):
        _, gradients = step(model, quick, autocast)
        assert all(g.dtype == torch.float32 for g in gradients.values())
        gaps = [(g - exact[n]).norm() / exact[n].norm() for n, g in gradients.items()]
        far[quick] = torch.stack(gaps).mean().item()
    assert far[True] < 1.3 * far[False] < 0.1, far


@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 0.9])
def test_dropout_zeroes_a_share_p_and_keeps_the_mean(p):
    torch.manual_seed(1)
    x = torch.randn(1001, 999, requires_grad=True)
    out = fast.dropped(x, p)
    out.sum().backward()
    kept = out != 0
    error = 5 * (p * (1 - p) / x.numel()) ** 0.5  # five standard errors
    assert (~kept).float().mean() == pytest.approx(p, abs=error + 2**-17)
    torch.testing.assert_close(out[kept], x[kept] / (1 - p))
    torch.testing.assert_close(x.grad, kept / (1 - p))
    # neighbours in a row and rows in a column, which share a random word, fall independently
    for a, b in ((kept[:, :-1], kept[:, 1:]), (kept[:-1], kept[1:])):
        both = (~a & ~b).float().mean()
        assert both == pytest.approx(p * p, abs=5 * (p * p / a.numel()) ** 0.5 + 3e-5)


def test_dropout_of_all_and_of_an_odd_number_in_half_precision():
    x = torch.ones(3, 7, dtype=torch.bfloat16)
    assert not fast.dropped(x, 1.0).any()
    assert set(fast.dropped(x, 0.5).flatten().tolist()) <= {0.0, 2.0}


def test_each_dropout_of_a_model_draws_for_itself_from_the_seed():
    def drawn():
        zeroed.clear()
        torch.manual_seed(3)
        with fast.dropouts(model):
            model(torch.arange(90)[None])
        return list(zeroed)

    model, zeroed = tuned(lora_dropout=0.3), []
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in drops:
        module.register_forward_hook(lambda _, x, out: zeroed.append((x[0] != 0) & (out == 0)))
    first = drawn()
    assert len(first) == 14 and all(0.2 < share.float().mean() < 0.4 for share in first)
    assert not torch.equal(first[0], first[1])  # of q and k
    assert all(map(torch.equal, first, drawn()))
    model.eval()
    assert not any(share.any() for share in drawn())
    assert not any("forward" in vars(module) for module in drops)


@pytest.mark.parametrize("rows", [2, 3, 64])
def test_the_gradient_of_the_loss_by_differences(monkeypatch, rows):
    monkeypatch.setattr(fast, "ROWS", rows)
    head = nn.Linear(5, 11, bias=False, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, 0, 10, 3])
    loss = lambda x: 3 * fast.summed_loss(x, head, targets)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (hidden,))
    wanted = 3 * F.cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(loss(hidden), wanted)


def test_no_logits_of_all_rows_are_kept():
    """What backward needs is `(k, d)`: the logits `(k, vocab)` are gone."""
    head = nn.Linear(4, 1000, bias=False).requires_grad_(False)
    hidden, kept = torch.randn(200, 4, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        fast.summed_loss(hidden, head, torch.arange(200)).backward()
    assert sum(kept) == 200 * 4


def test_forwards_and_rotations_are_given_back_after_an_error():
    from transformers.models.llama import modeling_llama

    model, own = tuned(), modeling_llama.apply_rotary_pos_emb
    with pytest.raises(RuntimeError, match="stop"), fast.layers(model):
        assert modeling_llama.apply_rotary_pos_emb is fast.rotated
        assert any("forward" in vars(m) for m in model.modules())
        raise RuntimeError("stop")
    assert modeling_llama.apply_rotary_pos_emb is own
    assert not any("forward" in vars(m) for m in model.modules())
