"""Write models and their LoRA adapters as GGUF, the format of llama.cpp and Ollama.

Anything that can't be written raises LabError. Files are written under another name, then renamed.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType

from labkit.errors import LabError
from labkit.files import whole
from labkit.ship import families, vocabulary

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

KINDS = {  # kind -> (matrices, embeddings, file type)
    "f32": ("F32", "F32", "ALL_F32"),
    "f16": ("F16", "F16", "MOSTLY_F16"),
    "bf16": ("BF16", "BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "Q8_0", "MOSTLY_Q8_0"),
    "q4_0": ("Q4_0", "Q8_0", "MOSTLY_Q4_0"),  # as in llama.cpp: 4 bits would harm embeddings
}


def write_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    out: str | Path,
    kind: str = "f16",
) -> Path:
    """Write a plain model, its tokenizer and chat template as a GGUF of `kind`; returns the path.

    LabError for another family, an unmerged adapter, or anything the format can't store.
    """
    refuse_kind(kind)
    families.refuse_model(model)
    matrices, embeddings, file_type = KINDS[kind]
    with _writer(model.config, out) as writer:
        families.write_config(writer, model.config)
        writer.add_file_type(LlamaFileType[file_type])
        vocabulary.write(writer, tokenizer, model)
        for name, tensor in _tensors(model):
            wanted = embeddings if name.startswith(("token_embd", "output.")) else matrices
            _add(writer, name, tensor, wanted)
    return Path(out)


def write_adapter(folder: str | Path, config: "PretrainedConfig", out: str | Path) -> Path:
    """Write the PEFT LoRA in `folder` as an fp32 GGUF adapter; `config` is the base's config.

    LabError for another family, another kind of adapter, or a layer outside the blocks.
    """
    from safetensors.torch import load_file

    families.refuse_family(config)
    settings = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    alpha, names = _alpha(settings), families.names(config)
    with _writer(config, out) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for key, tensor in load_file(Path(folder) / "adapter_model.safetensors").items():
            module, _, which = key.removeprefix("base_model.model.").partition(".lora_")
            name = names.get_name(module)
            if name is None or not name.startswith("blk.") or which not in ("A.weight", "B.weight"):
                why = "it stores LoRA only on a block's layers"
                raise LabError(f"{key} can't be stored in a GGUF adapter: {why}")
            if which == "B.weight":
                tensor = _reordered(module, tensor, config)
            data = tensor.float().contiguous().numpy()
            writer.add_tensor(f"{name}.weight.lora_{which[0].lower()}", data)
    return Path(out)


def load_(model: "PreTrainedModel", path: str | Path) -> None:
    """Load a GGUF's dequantized weights into a model of the same shapes, keeping the model's dtype.

    An engine computes with these weights, apart from its own rounding. LabError for another model.
    """
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    names = families.names(model.config)
    for full, weight in model.named_parameters():
        module, _, which = full.rpartition(".")
        tensor = stored.get(f"{names.get_name(module)}.{which}")
        if tensor is None or tuple(reversed(tensor.shape.tolist())) != tuple(weight.shape):
            raise LabError(f"{Path(path).name} has no {full} of shape {tuple(weight.shape)}")
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        data = torch.from_numpy(np.array(data, dtype=np.float32)).view(weight.shape)
        order = families.order(module, len(data), model.config)
        if order is not None:
            data = torch.empty_like(data).index_copy_(0, order, data)
        weight.data.copy_(data)


def refuse_kind(kind: str) -> None:
    """Raise a LabError for an unknown kind of file."""
    if kind not in KINDS:
        raise LabError(f"no GGUF kind {kind!r}: choose from {', '.join(KINDS)}")


def _alpha(settings: dict[str, Any]) -> float:
    """The alpha that llama.cpp divides by the rank; LabError unless the adapter is only A and B."""
    more = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters")
    more += ("trainable_token_indices", "lora_bias")
    unusual = [name for name in more if settings.get(name)]
    unusual += ["bias"] if settings.get("bias", "none") != "none" else []
    kind = settings.get("peft_type")
    if kind != "LORA" or unusual:
        what = kind if kind != "LORA" else ", ".join(unusual)
        raise LabError(f"{what} can't be written as a GGUF adapter: merge the adapter instead")
    alpha, r = float(settings["lora_alpha"]), settings["r"]
    return alpha * r**0.5 if settings.get("use_rslora") else alpha


def _tensors(model) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter's GGUF name and its weight or bias, in llama.cpp's row order."""
    names = families.names(model.config)
    for full, tensor in model.named_parameters():  # tied embeddings occur once
        module, _, which = full.rpartition(".")
        name = names.get_name(module)
        if name is None or which not in ("weight", "bias"):
            raise LabError(f"{full} can't be stored in a GGUF of {model.config.model_type}")
        yield f"{name}.{which}", _reordered(module, tensor.detach(), model.config)
    factors = families.rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _reordered(module, tensor, config):
    """Put a weight or a B in llama.cpp's row order; only a Llama's q and k change."""
    order = families.order(module, len(tensor), config)
    return tensor if order is None else tensor[order]


def _add(writer, name, tensor, kind):
    """Add a tensor; vectors are fp32, and matrices whose rows don't fill whole blocks are fp16."""
    data = tensor.float().cpu().contiguous().numpy()
    kind = GGMLQuantizationType["F32" if data.ndim == 1 else kind]
    if data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        half = kind == GGMLQuantizationType.F16
        writer.add_tensor(name, data.astype(np.float16) if half else data)
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


@contextmanager
def _writer(config, out):
    """A writer whose file gets its final name only if the block succeeds."""
    with whole(Path(out)) as part:
        writer = gguf.GGUFWriter(str(part), config.model_type)
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
