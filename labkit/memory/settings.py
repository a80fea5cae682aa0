"""What a training step is: the settings that decide its memory, checked once."""

import dataclasses
import re
from dataclasses import dataclass

from labkit.errors import LabError

CHOICES = {
    "method": ("full", "lora", "qlora"),
    "optim": (
        "adamw_torch_fused",
        "adamw_torch",
        "adamw_bnb_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
    ),
    "attention": ("sdpa", "eager"),
    "dtype": ("float32", "bfloat16", "float16"),
    "adapter_dtype": ("float32", "bfloat16", "float16"),
}
UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
AT_LEAST = {"rank": 1, "batch": 1, "seq": 2, "answer_tokens": 2, "accumulation": 1}


class BadSetting(LabError, ValueError):
    """A setting that no training step can have; the message says what it may be."""


@dataclass(frozen=True)
class Settings:
    """One training step. Names are those of transformers, PEFT and TRL where they have one.

    method: full, lora or qlora (NF4 linear layers; embeddings, norms and head stay in `dtype`).
    rank, targets, dropout, adapter_dtype: the adapter. Targets are "all-linear" or names such as
        "q_proj,v_proj". PEFT keeps adapters in float32 by default, whatever the base is.
    optim: as in transformers' `optim`.
    batch, seq: sequences a step and tokens a sequence, padding included.
    padded: rows differ in length. Then attention needs a mask, and grouped keys and values are
        repeated for every query head, since the fused kernel takes no groups beside a mask.
    accumulation: with 2 or more, gradients of earlier micro-batches are held during forward.
    checkpointing: recompute each decoder layer in backward (non-reentrant).
    attention: sdpa (fused, holds no scores) or eager (holds them).
    answer_tokens: logits for the last so many positions of each sequence only; None for all.
    dtype: of the base weights as loaded; default bfloat16, and float32 for full.
    autocast: multiply in bfloat16 (Trainer's `bf16=True`); in float16 for a float16 base.
    double_quant: quantise the scales of NF4 blocks once more.
    prepare_kbit: `prepare_model_for_kbit_training` casts what is not 4-bit to float32.
    """

    method: str = "lora"
    rank: int = 16
    targets: str = "all-linear"
    optim: str = "adamw_torch_fused"
    batch: int = 1
    seq: int = 512
    padded: bool = False
    accumulation: int = 1
    checkpointing: bool = False
    attention: str = "sdpa"
    answer_tokens: int | None = None
    dtype: str | None = None
    adapter_dtype: str = "float32"
    autocast: bool = True
    dropout: float = 0.0
    double_quant: bool = True
    prepare_kbit: bool = False

    def __post_init__(self):
        if self.dtype is None:
            object.__setattr__(self, "dtype", "float32" if self.method == "full" else "bfloat16")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise BadSetting(f"{name} {value!r} is none of {', '.join(choices)}")
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if name == "answer_tokens" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise BadSetting(f"{name} must be a whole number from {least}, not {value!r}")
        if not 0 <= self.dropout < 1:
            raise BadSetting(f"dropout must lie in 0 to 1, not {self.dropout}")
        if self.answer_tokens and self.answer_tokens > self.seq:
            raise BadSetting(f"{self.answer_tokens} answer tokens don't fit in seq {self.seq}")
        if not any(self.target_names):
            raise BadSetting("targets must be all-linear or names such as q_proj,v_proj")

    @property
    def target_names(self):
        """The targets as a list; `["all-linear"]` for all."""
        return [name.strip() for name in self.targets.split(",") if name.strip()]

    def but(self, **changes):
        """The same settings with some changed."""
        return dataclasses.replace(self, **changes)


def parse_size(text):
    """Bytes of "24GB" or "23.5GiB"; a bare number is in GB. Raises BadSetting."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)?\s*", str(text), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise BadSetting(
            f"can't read the size {str(text)!r}: write 16GB, 24GB, 48GB, 80GB or 22GiB"
        )
    return int(float(match[1]) * UNITS[(match[2] or "GB").upper()])
