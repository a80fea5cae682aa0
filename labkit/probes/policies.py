"""A tiny language model with two adapters for labs 8 and 9, and how a call leaves the model."""

import copy
import functools

import torch

from labkit.contract.kept import picture, same
from labkit.probes import tiny

ACTIVE, OTHER = "policy", "earlier"  # the adapters of a tiny policy
MODES = {True: "train()", False: "eval()"}


def base(seed):
    """Make a one-layer Llama with strong attention dropout in train mode."""
    model = tiny.llama(torch.Generator().manual_seed(seed))
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    return model


@functools.cache
def policy(seed):
    """The base with two adapters that have dropout and change its output; the first is active."""
    from peft import LoraConfig, get_peft_model

    rng = torch.Generator().manual_seed(seed)
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "down_proj"])
    with torch.random.fork_rng():
        model = get_peft_model(base(seed), config, adapter_name=ACTIVE)
        model.add_adapter(OTHER, config)
    for p in (p for name, p in model.named_parameters() if "lora_" in name):
        p.data = torch.randn(p.shape, generator=rng) * 0.7
    model.set_adapter(ACTIVE)
    return model


def copied(seed, training):
    """Copy the policy, in train or eval mode."""
    return copy.deepcopy(policy(seed)).train(training)


def watched(model, error=None):
    """A list that gets `(mode, with gradients)` per forward pass, which then raises `error`."""
    base, passes = model.get_base_model(), []

    def note(*_):
        passes.append((MODES[any(m.training for m in base.modules())], torch.is_grad_enabled()))
        if error:
            raise error("raised by the check")

    base.register_forward_pre_hook(note)
    return passes


def state(model):
    seen, layers = picture(model), [m for m in model.modules() if hasattr(m, "lora_A")]
    return {
        "the parameters that train afterwards": seen["the parameters that train"],
        "the scaling of the adapter afterwards": [dict(m.scaling) for m in layers],
        "the weights afterwards": seen["its weights"],
    }


def left(before, model):
    """Describe the state in which a call left the model."""
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    if not layers:
        return {"the adapter afterwards": "gone"}
    off, after = any(m.disable_adapters for m in layers), state(model)
    modes = {MODES[m.training] for m in model.modules()}
    return {
        "the adapter afterwards": "switched off" if off else "switched on",
        "the adapters afterwards": sorted(model.peft_config),
        "the active adapter afterwards": layers[0].active_adapters[0],
        "the mode afterwards": "eval() in some layers only" if len(modes) > 1 else modes.pop(),
    } | {n: "unchanged" if same(value, after[n]) else "changed" for n, value in before.items()}
