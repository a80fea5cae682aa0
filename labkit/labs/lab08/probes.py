"""What runs beside the learner's code in lab 8, and brings plain data back to its checks."""

import functools

import torch

from labkit.contract import CheckFailed, kept
from labkit.contract.kept import picture, same
from labkit.probes import tiny

ACTIVE, OTHER = "policy", "earlier"  # the adapters of a tiny policy
ERROR = "out of memory, so to speak"


def differentiated(loss, given, wrt, options=None):
    """What `loss(*given, **options)` gives, and its gradients for the tensors at places `wrt`.

    `{"value", "gradients"}`; gradients are None where the value has none or is no single number.
    """
    leaves = {i: given[i].clone().requires_grad_() for i in wrt}
    inputs = [leaves[i] * 1.0 if i in leaves else thing for i, thing in enumerate(given)]
    value = kept(functools.partial(loss, **(options or {})), *inputs)
    gradients = None
    if isinstance(value, torch.Tensor) and value.requires_grad and value.numel() == 1:
        found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        pairs = zip(found, leaves.values(), strict=True)
        gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in pairs]
    return {"value": value, "gradients": gradients}


def added_up(sequence_logprob, logits, labels):
    """The gradient for the logits of what it returns, summed: `{"gradient"}`, None without one."""
    found = differentiated(lambda *given: sequence_logprob(*given).sum(), [logits, labels], [0])
    return {"gradient": found["gradients"] and found["gradients"][0]}


def tiny_policy(seed):
    """A tiny Llama under two adapters that change what it says, the first made active.

    The base drops much of its attention in training mode, and so do the adapters their inputs.
    """
    from peft import LoraConfig, get_peft_model

    rng = torch.Generator().manual_seed(seed)
    base = tiny.llama(rng)
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "v_proj", "down_proj"])
    with torch.random.fork_rng():
        model = get_peft_model(base, config, adapter_name=ACTIVE)
        model.add_adapter(OTHER, config)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=rng) * 0.7
    model.set_adapter(ACTIVE)
    return model


def referenced(reference_logprobs, seed, batch, training=True):
    """What it returns on a tiny policy, and how the model was run.

    `passes` holds for each forward pass whether gradients were on, whether any module trained, and
    whether the whole model ran; `asked off` says that `disable_adapter` was called.
    """
    model, passes, calls = _watched(tiny_policy(seed).train(training))
    before = _state(model)
    value = kept(functools.partial(reference_logprobs, model), batch)
    return {
        "value": value,
        "passes": passes,
        "asked off": bool(calls),
        "graph": isinstance(value, torch.Tensor) and value.requires_grad,
        "changed": _changed(before, _state(model)),
    }


def interrupted(reference_logprobs, seed, batch, training=True):
    """What is left changed when the model's forward pass raises: `{"heard", "changed"}`."""
    model, *_ = _watched(tiny_policy(seed).train(training))
    before, grad = _state(model), torch.is_grad_enabled()

    def fail(*_):
        raise MemoryError(ERROR)

    handle = model.get_base_model().lm_head.register_forward_pre_hook(fail)
    try:
        reference_logprobs(model, batch)
        heard = False
    except MemoryError:
        heard = True
    handle.remove()
    changed = _changed(before, _state(model))
    if torch.is_grad_enabled() != grad:
        changed.append("gradients")
        torch.set_grad_enabled(grad)
    return {"heard": heard, "changed": changed}


def _watched(model):
    """The model, which refuses to be copied, and lists: its passes, calls of disable_adapter."""
    base, passes, calls, whole, off = model.get_base_model(), [], [], [], model.disable_adapter

    def note(*_):
        trains = any(module.training for module in base.modules())
        grad = torch.is_grad_enabled()
        passes.append({"grad": grad, "training": trains, "whole": bool(whole)})
        whole.clear()  # a pass of its own each time

    def asked_off():
        calls.append("disable_adapter")
        return off()

    model.register_forward_pre_hook(lambda *_: whole.append(True))
    base.lm_head.register_forward_pre_hook(note)
    model.disable_adapter = asked_off

    def refuse(_):
        raise CheckFailed(
            "it copies the whole model: the base is already there, switch the adapter off"
        )

    model.__deepcopy__ = model.base_model.__deepcopy__ = base.__deepcopy__ = refuse
    return model, passes, calls


def _state(model):
    """What has to be as before, by its name."""
    told, root = picture(model), model.training
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    return {
        "mode": root,
        "parts": {name: mode == root for name, mode in told["its training mode"].items()},
        "off": [bool(m.disable_adapters) for m in layers],
        "active": [list(m.active_adapters) for m in layers],
        "adapters": sorted(model.peft_config) if hasattr(model, "peft_config") else [],
        "layers": len(layers),
        "flags": told["the parameters that train"],
        "scaling": [dict(m.scaling) for m in layers],
        "weights": told["its weights"],
    }


def _changed(before, after):
    return [what for what in before if not same(before[what], after[what])]
