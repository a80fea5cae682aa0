"""Build the model that `simulate` simulates, with random weights made on the device.

Weights are made layer by layer and quantized at once, so a 7B QLoRA model needs no download and no
14 GB on the host. A step takes as much memory as a step of the trained model.
"""

from functools import partial

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import PretrainedConfig

from labkit.memory import adapted, optimizers
from labkit.memory.measure import Peak, track
from labkit.memory.objectives import loss_of
from labkit.memory.settings import Settings


def real_model(config: PretrainedConfig, settings: Settings, device: str) -> nn.Module:
    """Build the adapted model of `config` with random weights on `device`, in training mode."""
    model, _ = adapted.build(config, settings)  # on the meta device
    adapted.materialize(model, partial(_quantized, device=device), device)
    base = getattr(model, "get_base_model", lambda: model)()
    for module in model.modules():
        if not isinstance(module, Linear4bit):
            base._init_weights(module)  # transformers' init, also for rotary tables
        elif module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def _quantized(layer, device):
    """Make a random NF4 matrix of the layer's shape, quantized by bitsandbytes."""
    shape = layer.out_features, layer.in_features
    values = torch.randn(shape, device=device, dtype=layer.compute_dtype) * 0.02
    how = {"compress_statistics": layer.weight.compress_statistics, "quant_type": "nf4"}
    return type(layer.weight)(values, requires_grad=False, module=layer, **how).to(device)


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Make the optimizer `settings.optim` for the trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return optimizers.make(trained, settings.optim)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    reference: nn.Module | None = None,
) -> float:
    """Run one training step on random tokens and return its loss, a float."""
    shape = settings.rows, settings.seq
    for _ in range(settings.accumulation):
        ids = torch.randint(model.config.vocab_size, shape, device=model.device)
        loss = loss_of(model, ids, settings, reference)
        loss.backward()
        found = loss.item()
        del loss
    optimizer.step()
    optimizer.zero_grad()
    return found


def peak_of_steps(config: PretrainedConfig, settings: Settings, device: str, n: int = 2) -> Peak:
    """Measure the `Peak` of n real steps. The first step creates the optimizer's states."""
    model = real_model(config, settings, device)
    optimizer = optimizer_of(model, settings)
    reference = None
    if settings.second_model:
        reference = real_model(config, settings, device).requires_grad_(False)
    held = [thing for thing in (model, optimizer, reference) if thing is not None]
    with track(*held, device=device) as peak:
        for _ in range(n):
            step(model, optimizer, settings, reference)
    return peak
