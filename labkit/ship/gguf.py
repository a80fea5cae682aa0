"""Models of the Llama family and their LoRA adapters as GGUF, the format of llama.cpp and Ollama.

The rows of q and k change their order (`_order`), since llama.cpp turns neighbours where
transformers turns the two halves of a head. What this module can't write is refused in one line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType

from labkit.errors import LabError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

KINDS = {  # what a file may be -> (type of its matrices, of its embeddings, the file's own type)
    "f32": ("F32", "F32", "ALL_F32"),
    "f16": ("F16", "F16", "MOSTLY_F16"),
    "bf16": ("BF16", "BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "Q8_0", "MOSTLY_Q8_0"),
    "q4_0": ("Q4_0", "Q8_0", "MOSTLY_Q4_0"),  # embeddings bear 4 bits badly; llama.cpp spares them
}
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
HEADED = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}


def write_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    out: str | Path,
    kind: str = "f16",
) -> Path:
    """Write a plain Llama with tokenizer and chat template as a GGUF of `kind`; the path.

    LabError for another family, an adapter that isn't merged, or what the format has no place for.
    """
    if kind not in KINDS:
        raise LabError(f"no kind {kind!r} of GGUF: there is {', '.join(KINDS)}")
    _refuse_model(model)
    matrices, embeddings, file_type = KINDS[kind]
    writer = gguf.GGUFWriter(str(out), "llama")
    _write_config(writer, model.config)
    writer.add_file_type(LlamaFileType[file_type])
    _write_tokenizer(writer, tokenizer, model.config.vocab_size)
    for name, tensor in _tensors(model):
        wanted = embeddings if name.startswith(("token_embd", "output.")) else matrices
        _add(writer, name, tensor, wanted)
    return _close(writer, out)


def write_adapter(folder: str | Path, config: "PretrainedConfig", out: str | Path) -> Path:
    """Write PEFT's LoRA in `folder`, of a Llama with `config`, as a GGUF adapter in fp32; the path.

    LabError for another family, another kind of adapter, or a layer that GGUF adapters don't reach.
    """
    from safetensors.torch import load_file

    _refuse_family(config)
    settings = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", _alpha(settings))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in load_file(Path(folder) / "adapter_model.safetensors").items():
        module, _, which = key.removeprefix("base_model.model.").partition(".lora_")
        name = names.get_name(module)
        if name is None or not name.startswith("blk.") or which not in ("A.weight", "B.weight"):
            raise LabError(f"{key} has no place in a GGUF adapter: LoRA on a block's layers alone")
        tensor = tensor.float()
        if which == "B.weight":
            tensor = _reordered(module, tensor, config)
        writer.add_tensor(f"{name}.weight.lora_{which[0].lower()}", tensor.contiguous().numpy())
    return _close(writer, out)


def load_(model: "PreTrainedModel", path: str | Path) -> None:
    """Put the weights of a GGUF into a model of the same shapes, dequantised, in its own dtype.

    What an engine computes with, but for the engine's own rounding. LabError for another model.
    """
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for full, weight in model.named_parameters():
        module = full.removesuffix(".weight")
        tensor = stored.get(f"{names.get_name(module)}.weight")
        if tensor is None or tuple(reversed(tensor.shape.tolist())) != tuple(weight.shape):
            raise LabError(f"{Path(path).name} has no {full} of shape {tuple(weight.shape)}")
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        data = torch.from_numpy(np.array(data, dtype=np.float32)).view(weight.shape)
        order = _order(module, len(data), model.config)
        if order is not None:
            data = torch.empty_like(data).index_copy_(0, order, data)
        weight.data.copy_(data)


def _alpha(settings: dict[str, Any]) -> float:
    """What llama.cpp divides by the rank; LabError for an adapter that is more than A and B."""
    more = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters")
    more += ("trainable_token_indices", "lora_bias")
    unusual = [name for name in more if settings.get(name)]
    unusual += ["bias"] if settings.get("bias", "none") != "none" else []
    kind = settings.get("peft_type")
    if kind != "LORA" or unusual:
        what = kind if kind != "LORA" else ", ".join(unusual)
        raise LabError(f"{what} cannot be written as a GGUF adapter: merge it into the model")
    alpha, r = float(settings["lora_alpha"]), settings["r"]
    return alpha * r**0.5 if settings.get("use_rslora") else alpha


def _refuse_family(config):
    if config.model_type != "llama":
        raise LabError(f"{config.model_type}: only models of the Llama family are written as GGUF")


def _refuse_model(model):
    if hasattr(model, "peft_config"):
        raise LabError("the adapter is beside the base still: merge_and_unload() first")
    config = model.config
    _refuse_family(config)
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    for told, odd in (
        ("rope_type " + rope, rope != "default"),
        ("attention_bias", config.attention_bias),
        ("mlp_bias", config.mlp_bias),
        ("quantized weights", getattr(model, "is_quantized", False)),
    ):
        if odd:
            raise LabError(f"{told}: a Llama with that is not written as GGUF")


def _write_config(writer, config):
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


def _write_tokenizer(writer, tokenizer, size):
    """The vocabulary, its merges, the special tokens, and the chat template."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    if data["model"]["type"] != "BPE" or data["normalizer"]:
        raise LabError(
            f"a tokenizer of type {data['model']['type']}: only byte-level BPE is written"
        )
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    added = {one["id"]: one["special"] for one in data["added_tokens"]}
    kinds = gguf.TokenType
    types = [
        (kinds.CONTROL if added[i] else kinds.USER_DEFINED)
        if i in added
        else (kinds.NORMAL if i in words else kinds.UNUSED)
        for i in range(size)
    ]
    merges = data["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(data["pre_tokenizer"]))
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for name in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _splitting(rule):
    """llama.cpp's name for how a tokenizer cuts text into words, before BPE."""
    parts = rule["pretokenizers"] if rule and rule["type"] == "Sequence" else [rule]
    if parts == [BYTES]:
        return "gpt-2"
    if parts == [DIGITS, BYTES]:
        return "smollm"
    raise LabError("this tokenizer splits words in a way that has no name in this course's GGUF")


def _tensors(model) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in GGUF, weight) of each parameter, the rows of q and k as llama.cpp has them."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for full, tensor in model.named_parameters():  # tied embeddings come once
        module = full.removesuffix(".weight")
        name = names.get_name(module)
        if name is None or module == full:
            raise LabError(f"{full} has no place in a GGUF of the Llama family")
        yield f"{name}.weight", _reordered(module, tensor.detach(), model.config)


def _reordered(module, tensor, config):
    """A weight or a B as llama.cpp has it; only q and k differ."""
    order = _order(module, len(tensor), config)
    return tensor if order is None else tensor[order]


def _order(module, d_out, config):
    """The row of transformers that stands at each place of llama.cpp, (d_out,); None: all as is."""
    kind = ".".join(module.split(".")[-2:])
    if kind not in HEADED:
        return None
    return torch.arange(d_out).view(getattr(config, HEADED[kind]), 2, -1).mT.flatten()


def _add(writer, name, tensor, kind):
    """Add a tensor, a vector in fp32; where the blocks don't fit into a row, a matrix in fp16."""
    data = tensor.float().cpu().contiguous().numpy()
    kind = GGMLQuantizationType["F32" if data.ndim == 1 else kind]
    if data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        half = kind == GGMLQuantizationType.F16
        writer.add_tensor(name, data.astype(np.float16) if half else data)
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


def _close(writer, out):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(out)
