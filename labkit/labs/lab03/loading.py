"""Lab 3's probes of what loads an adapter: they bring plain data back to the check."""

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import torch

from labkit.contract import CheckFailed
from labkit.contract.kept import same
from labkit.probes import tiny

LOADERS = (  # whose from_pretrained brings a whole model
    "peft.auto._BaseAutoPeftModel",
    "transformers.PreTrainedModel",
    "transformers.AutoModelForCausalLM",
    "transformers.models.auto.auto_factory._BaseAutoModelClass",
)


def tiny_adapted(seed, r):
    """`(base, tuned)`: the tiny Llama, and one like it with a LoRA adapter that is not zero."""
    from peft import LoraConfig, get_peft_model

    base, other = (tiny.llama(torch.Generator().manual_seed(seed)) for _ in range(2))
    config = LoraConfig(
        r=r, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        tuned = get_peft_model(other, config).eval()
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return base, tuned


def scaled_logits(tuned, ids, factor):
    """Logits of the adapted model as with `factor` times its alpha."""
    layers = [m for m in tuned.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]
    with torch.no_grad():
        for layer in layers:
            layer.lora_B["default"].weight *= factor
        logits = tuned(input_ids=ids).logits
        for layer in layers:
            layer.lora_B["default"].weight /= factor
    return logits


def reloaded(load_tuned, seed, r, ids):
    """What `load_tuned(base, folder)` returns as data: its type, mode, logits.

    `own`: whether `base` itself is in it; `wrapped`: how many PeftModels it is; `kept`: whether
    base's weights are as they were, to the bit; `dtype`: whether they have theirs; `merged`:
    whether they hold the adapter; `idle`: see there; `plain`: logits with the adapter switched off.
    """
    from peft import PeftModel

    base, tuned = tiny_adapted(seed, r)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    with tempfile.TemporaryDirectory() as folder, _no_other_base():
        tuned.save_pretrained(folder)
        model = load_tuned(base, Path(folder))
    if not isinstance(model, PeftModel):
        return {"is": type(model).__name__} | (
            _how(model, before) if isinstance(model, torch.nn.Module) else {}
        )
    told = {"training": any(m.training for m in model.modules())}
    told["trains"] = [n for n, p in model.named_parameters() if p.requires_grad][:1]
    told["own"] = any(m is base for m in model.modules())
    told["wrapped"] = sum(isinstance(m, PeftModel) for m in model.modules())
    after = {name.replace(".base_layer", ""): p for name, p in base.named_parameters()}
    told["dtype"] = all(p.dtype == after.get(name, p).dtype for name, p in before.items())
    told["kept"] = all(torch.equal(p, after.get(name, p)) for name, p in before.items())
    told["merged"] = any(getattr(m, "merged", False) is True for m in model.modules())
    told["idle"] = _idle(model, tuned)
    with torch.no_grad():
        told["logits"] = model.eval()(input_ids=ids).logits
        with model.disable_adapter():
            told["plain"] = model(input_ids=ids).logits
    return told


def _idle(model, tuned):
    """`[name, active ones]` of an adapter that is what was saved and isn't active; or []."""
    saved, active = _weights(tuned, "default"), list(model.active_adapters)
    for name in model.peft_config:
        own = _weights(model, name)
        if active and name not in active and same(own, saved):
            return [name, active]
    return []


def _weights(model, adapter):
    """The weights of an adapter, by its name, in the order of the layers."""
    named = [(n.split("."), p) for n, p in model.named_parameters() if "lora_" in n]
    return [p.detach() for parts, p in named if adapter in parts[-2:]]


def _how(model, before):
    """Where the adapter is in a model that is no PeftModel."""
    after = dict(model.named_parameters())
    if any("lora_" in name for name in after):
        ours = getattr(model, "_hf_peft_config_loaded", False)
        return {"how": "by transformers" if ours else "inside"}
    same = all(torch.equal(p, after.get(name, p)) for name, p in before.items())
    return {"how": "nowhere" if same else "merged"}


@contextlib.contextmanager
def _no_other_base():
    """Refuse what would load a model from disk or a hub: the base is there, and it is tiny.

    The hub is not asked at all, not for an adapter either: without a network that takes minutes.
    """

    def refused(*_, **__):
        raise CheckFailed("load_tuned loads a base of its own; put the adapter on `base`")

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True))
        for place in LOADERS:
            stack.enter_context(mock.patch(f"{place}.from_pretrained", refused))
        yield
