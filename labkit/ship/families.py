"""The model families that can be written as GGUF: tensor names, settings and row order.

In Llama's q and k, llama.cpp rotates neighboring rows, but transformers rotates the two halves of a
head, so `order` permutes the rows. For Qwen, both rotate halves.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import torch

from labkit.errors import LabError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KNOWN = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
HEADED = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
ROPES = {"llama": ("default", "llama3"), "qwen2": ("default",), "qwen3": ("default",)}


def refuse_family(config: "PretrainedConfig") -> None:
    """Raise a LabError for a family that can't be written."""
    if config.model_type not in KNOWN:
        why = "only the Llama family, Qwen2 and Qwen3 can be written as GGUF"
        raise LabError(f"{config.model_type}: {why}")


def refuse_model(model: "PreTrainedModel") -> None:
    """Raise a LabError for an unmerged adapter, or for anything that the format can't store."""
    if hasattr(model, "peft_config"):
        raise LabError("the adapter is not merged yet: call merge_and_unload() first")
    config = model.config
    refuse_family(config)
    family, rope = config.model_type, _rope(config)
    for what, odd in (
        ("rope_type " + rope, rope not in ROPES[family]),
        ("attention_bias", getattr(config, "attention_bias", False)),
        ("mlp_bias", getattr(config, "mlp_bias", False)),
        ("use_sliding_window", getattr(config, "use_sliding_window", False)),
        ("quantized weights", getattr(model, "is_quantized", False)),
    ):
        if odd:
            raise LabError(f"a {family.capitalize()} with {what} can't be written as GGUF")


def names(config: "PretrainedConfig") -> gguf.TensorNameMap:
    """Map module names in transformers to names in GGUF."""
    return gguf.get_tensor_name_map(KNOWN[config.model_type], config.num_hidden_layers)


def order(module: str, d_out: int, config: "PretrainedConfig") -> torch.Tensor | None:
    """The transformers row for each position in llama.cpp, (d_out,); None if unchanged."""
    kind = ".".join(module.split(".")[-2:])
    if config.model_type != "llama" or kind not in HEADED:
        return None
    return torch.arange(d_out).view(getattr(config, HEADED[kind]), 2, -1).mT.flatten()


def write_config(writer: gguf.GGUFWriter, config: "PretrainedConfig") -> None:
    """Write the settings from which llama.cpp builds the model."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(Path(str(config.name_or_path or "model")).name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def rope_factors(model: "PreTrainedModel") -> torch.Tensor | None:
    """Llama 3.1's divisors of the rotary frequencies, (head_dim / 2,); None for plain rotary."""
    if _rope(model.config) == "default":
        return None
    used = model.get_decoder().rotary_emb.inv_freq.float().cpu()
    places = torch.arange(len(used)) / len(used)
    return model.config.rope_parameters["rope_theta"] ** -places / used


def _rope(config):
    return (config.rope_parameters or {}).get("rope_type", "default")
