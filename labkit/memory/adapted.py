"""Build the adapted model on the meta device, and turn it into fake tensors."""

import contextlib
import difflib
import math
import warnings
from collections.abc import Callable
from unittest import mock

import peft
import torch
import transformers
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Params4bit
from peft.tuners.lora import dora
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.quantizers.base import get_keys_to_not_convert

from labkit.errors import LabError
from labkit.memory.settings import Settings

# PEFT refuses adapters on their out_proj (tuners_utils._check_lora_target_modules_mamba)
MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
# linear layers whose weights transformers clips at each step, impossible if packed (Gemma 3n)
CLIPPED = ("correction_coefs", "prediction_coefs")
BLOCK, BLOCK_OF_SCALES = 64, 256  # bitsandbytes' block sizes for NF4 and for its scales


def build(config: PretrainedConfig, settings: Settings) -> tuple[nn.Module, int]:
    """Build the model on the meta device, adapted per `settings`, and count its parameters.

    The count excludes adapters. It counts tied weights once, and packed weights as if unpacked.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _bare(config, settings)
        n_params = sum(parameter.numel() for parameter in model.parameters())
        if settings.method == "qlora":
            _quantize(model, settings)
        if settings.method != "full":
            model = _with_adapter(model, settings)
        if settings.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train(), n_params


def n_params(config: PretrainedConfig, settings: Settings) -> int:
    """Count the parameters of the model without its adapter, tied weights once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _bare(config, settings).parameters())


def _bare(config, settings):
    """The model without its adapter; LabError for settings that the architecture rejects."""
    try:
        return transformers.AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=attention_of(config, settings),
        )
    except ValueError as error:  # impossible dimensions or attention
        raise LabError(str(error)) from None


def attention_of(config: PretrainedConfig, settings: Settings) -> str:
    """The attention in `settings`, or "eager" if transformers has no other for this model."""
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return settings.attention if getattr(kind, "_supports_sdpa", True) else "eager"


def fused_experts(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that stack the matrices of all experts in a layer, `(experts, d, d)`."""
    return {name: p for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name}


def on_experts(model: nn.Module) -> bool:
    """Whether any fused experts have an adapter."""
    wrapped = [m for m in model.modules() if isinstance(m, peft.tuners.lora.layer.ParamWrapper)]
    return any("gate_up" in m.parameter_name for m in wrapped)


def _quantize(model, settings):
    """Replace linear layers with bitsandbytes' layers, as transformers does for 4-bit loading."""
    left = [*get_keys_to_not_convert(model), *CLIPPED]
    replace_with_bnb_linear(model, left, in_4_bits(settings))
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # some CPUs repack the weights for inference, which backward cannot use
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None:  # keeps its loaded dtype
                module.bias.data = module.bias.data.to(getattr(torch, settings.dtype))
    model.is_loaded_in_4bit = True


def in_4_bits(settings: Settings) -> BitsAndBytesConfig:
    """The `BitsAndBytesConfig` for these settings."""
    half = torch.float16 if settings.dtype == "float16" else torch.bfloat16
    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": half}
    kind["bnb_4bit_use_double_quant"] = settings.double_quant
    return BitsAndBytesConfig(load_in_4bit=True, **kind)


def _with_adapter(model, settings):
    _check_targets(model, settings)
    upcast = settings.method == "qlora" and settings.prepare_kbit
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if upcast and not isinstance(parameter, Params4bit):  # as prepare_model_for_kbit_training
            parameter.data = parameter.data.to(torch.float32)
    names = settings.target_names
    lora = peft.LoraConfig(
        r=settings.rank,
        target_modules="all-linear" if names == ["all-linear"] else names,
        exclude_modules=_left_out(model) or None,
        target_parameters=_expert_names(model) if settings.experts else None,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        task_type="CAUSAL_LM",
    )
    try:
        with unpacking():
            adapted = peft.get_peft_model(model, lora, low_cpu_mem_usage=True)
    except (ValueError, NotImplementedError) as error:  # PEFT can't combine the options
        raise LabError(" ".join(str(error).split())) from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, settings.adapter_dtype))
    return adapted


def unpacking() -> contextlib.AbstractContextManager:
    """A patch that gives DoRA, which needs weight norms, an empty matrix for each 4-bit weight."""

    def unpacked(layer):
        if not isinstance(layer, Linear4bit):
            return layer.weight
        return torch.empty(layer.out_features, layer.in_features, dtype=layer.compute_dtype)

    return mock.patch.object(dora, "dequantize_module_weight", unpacked)


def _left_out(model):
    """Linear layers that PEFT's all-linear includes but cannot adapt.

    Some return more than a product (Llama 4's router); others are multiplied inside Mamba's
    kernel.
    """
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    plain = (nn.Linear.forward, Linear4bit.forward, FalconLinear.forward)
    own = [n for n, m in linear if type(m).forward not in plain]
    mamba = ["out_proj"] if model.config.model_type in MAMBA else []
    return sorted({name.rsplit(".", 1)[-1] for name in [*own, *mamba]})


def _expert_names(model):
    names = sorted({".".join(name.split(".")[-2:]) for name in fused_experts(model)})
    if not names:
        raise LabError(f"{model.config.model_type} has no fused experts: omit --experts")
    return names


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Names and shapes `(d_out, d_in)` of the linear layers that can have an adapter."""
    head = model.get_output_embeddings()
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            shapes[name] = (module.out_features, module.in_features)
        elif type(module).__name__ == "Conv1D":
            shapes[name] = tuple(module.weight.shape[::-1])
    return shapes


def _check_targets(model, settings):
    shapes = linear_shapes(model)
    names = settings.target_names
    known = sorted({name.rsplit(".", 1)[-1] for name in shapes})
    if names != ["all-linear"]:
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise LabError(f"no layer {name!r}: choose from {', '.join(known)}{hint}")
        shapes = {name: s for name, s in shapes.items() if name.rsplit(".", 1)[-1] in names}
    widest = max(shapes, key=lambda name: min(shapes[name]))
    if settings.rank > (limit := min(shapes[widest])):
        d_out, d_in = shapes[widest]
        layer = f"{widest.rsplit('.', 1)[-1]} ({d_out} x {d_in})"
        raise LabError(f"rank {settings.rank} is impossible: {layer} has at most rank {limit}")


def materialize(model: nn.Module, packed: Callable, device: str | None = None) -> None:
    """Replace the model's tensors with empty ones; tied tensors stay tied.

    The new tensors are on `device`, or fake inside a FakeTensorMode. `packed(layer)` makes the
    weight of a 4-bit layer.
    """

    def empty(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    made = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in made:
                if isinstance(module, Linear4bit) and name == "weight":
                    new = packed(module)
                else:
                    new = nn.Parameter(empty(old), requires_grad=old.requires_grad)
                made[id(old)] = old, new
            module._parameters[name] = made[id(old)][1]
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = empty(old)


def packed_weight(layer: nn.Module) -> nn.Parameter:
    """A layer's NF4 weight as bitsandbytes stores it: two codes per byte, plus scales."""
    n = layer.in_features * layer.out_features
    blocks = math.ceil(n / BLOCK)
    nested = layer.weight.compress_statistics
    scales = QuantState(
        absmax=torch.empty(math.ceil(blocks / BLOCK_OF_SCALES)),
        code=torch.empty(256),
        blocksize=BLOCK_OF_SCALES,
        dtype=torch.float32,
    )
    weight = nn.Parameter(torch.empty((n + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=torch.Size((layer.out_features, layer.in_features)),
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=layer.compute_dtype,
        offset=torch.empty(()) if nested else None,
        state2=scales if nested else None,
    )
    return weight
