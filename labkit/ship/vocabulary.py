"""Write a tokenizer into a GGUF: byte-level BPE, special tokens and the chat template."""

import json
from typing import TYPE_CHECKING

import gguf

from labkit.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# how Llama 3 and Qwen2 split text into words; they differ in the number of digits
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES = {"llama-bpe": CUT % "{1,3}", "qwen2": CUT % ""}


def write(
    writer: gguf.GGUFWriter, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel"
) -> None:
    """Write the vocabulary, merges, special tokens and chat template.

    LabError if llama.cpp needs another rule for this tokenizer.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer = (data["normalizer"] or {}).get("type")
    if data["model"]["type"] != "BPE" or normalizer not in (None, "NFC"):
        kind = f"{data['model']['type']}, normalized by {normalizer}"
        raise LabError(f"a tokenizer of type {kind}: only byte-level BPE can be written")
    size = model.config.vocab_size
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    if max(words) >= size:
        raise LabError(f"the tokenizer has {max(words) + 1} tokens, but the model only {size}")
    merges = data["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(data["pre_tokenizer"]))
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(_types(data, words, size))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for name in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    for token in _other_ends(model, tokenizer)[:1]:  # the format has room for one more end token
        writer.add_eot_token_id(token)
    writer.add_add_bos_token(begins(tokenizer))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def begins(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer itself adds its BOS token to a text."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _types(data, words, size):
    """The type of each token: control, added, plain or unused."""
    added, kinds = {one["id"]: one["special"] for one in data["added_tokens"]}, gguf.TokenType
    plain = [kinds.NORMAL if i in words else kinds.UNUSED for i in range(size)]
    for i, special in added.items():
        plain[i] = kinds.CONTROL if special else kinds.USER_DEFINED
    return plain


def _other_ends(model, tokenizer):
    """The model's stop tokens, except the tokenizer's own end token."""
    stops = model.generation_config.eos_token_id if model.generation_config else None
    stops = stops if isinstance(stops, list) else [stops]
    return [token for token in stops if token not in (None, tokenizer.eos_token_id)]


def _splitting(rule):
    """llama.cpp's name for the way a tokenizer splits text into words before BPE."""
    parts = rule["pretokenizers"] if rule and rule["type"] == "Sequence" else [rule or {}]
    parts = [{k: v for k, v in part.items() if k != "trim_offsets"} for part in parts]
    if parts == [BYTES]:
        return "gpt-2"
    if parts == [DIGITS, BYTES]:
        return "smollm"
    for name, regex in RULES.items():
        cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
        if parts == [cut | {"invert": False}, BYTES | {"use_regex": False}]:
            return name
    raise LabError("this tokenizer splits words in a way that can't be written as GGUF")
