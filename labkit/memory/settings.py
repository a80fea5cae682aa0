"""Validate the settings that determine a training step's memory."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Self

from typer import Option

from labkit.errors import LabError

CHOICES = {
    "method": ("full", "lora", "qlora"),
    "objective": ("sft", "dpo", "grpo"),
    "optim": (
        *("adamw_torch_fused", "adamw_torch"),
        *("adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    ),
    "attention": ("sdpa", "eager"),
    "dtype": ("float32", "bfloat16", "float16"),
    "adapter_dtype": ("float32", "bfloat16", "float16"),
}
UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
AT_LEAST = {"rank": 1, "batch": 1, "seq": 2, "samples": 2, "answer_tokens": 2, "accumulation": 1}


@dataclass(frozen=True)
class Settings:
    """One training step; its fields are the options of `labkit memory`.

    Names follow transformers, PEFT and TRL where these have one.

    method: full, lora or qlora (NF4 linear layers; embeddings, norms and head stay in `dtype`).
        "dpo" and "grpo" mean that objective with lora.
    objective: sft, dpo or grpo. In dpo, `batch` counts pairs, each two sequences. A reference runs
        first: the model without its adapter, or a second model if method is full. In grpo, `batch`
        counts prompts. `samples` answers per prompt, of `answer_tokens` tokens (default: half of
        `seq`), are sampled with a cache; then the step trains on them without a KL penalty.
    rank, targets, dropout, adapter_dtype: the adapter. Targets are "all-linear" or names such as
        "q_proj,v_proj". By default PEFT's adapters are in float32, whatever the base's dtype.
    dora: train the norms of the columns separately (PEFT's `use_dora`).
    experts: also put adapters on fused experts (PEFT's `target_parameters`).
    optim: the optimizer, as in transformers' `optim`.
    batch, seq: sequences per step and tokens per sequence, padding included.
    padded: rows differ in length, so attention needs a mask. Grouped keys and values are then
        repeated for every query head, since the fused kernel can't combine groups with a mask.
    accumulation: micro-batches per step; from 2 on, earlier gradients exist during forward.
    checkpointing: recompute each decoder layer in backward (non-reentrant).
    attention: sdpa (fused, stores no scores) or eager (stores them). Models without fused
        attention in transformers, such as gpt-oss, always use eager.
    answer_tokens: compute logits for only the last positions of a sequence; None for all.
    dtype: the base weights' dtype as loaded; default bfloat16, or float32 if method is full.
    autocast: multiply in bfloat16 (Trainer's `bf16=True`); in float16 for a float16 base.
    double_quant: also quantize the scales of NF4 blocks.
    prepare_kbit: cast non-4-bit weights to float32, as `prepare_model_for_kbit_training` does.
    """

    method: Annotated[str, Option(help="full, lora or qlora; dpo and grpo imply lora.")] = "lora"
    objective: Annotated[str, Option(help="sft, dpo or grpo.")] = "sft"
    samples: Annotated[int, Option(help="Answers per prompt in grpo.")] = 8
    rank: Annotated[int, Option(help="Rank of the adapters.")] = 16
    targets: Annotated[str, Option(help="all-linear, or names: q_proj,v_proj,…")] = "all-linear"
    batch: Annotated[int, Option(help="Sequences per step.")] = 1
    seq: Annotated[int, Option(help="Tokens per sequence.")] = 512
    optim: Annotated[str, Option(help="Optimizer, named as in transformers.")] = "adamw_torch_fused"
    checkpointing: Annotated[bool, Option(help="Recompute layers in backward.")] = False
    attention: Annotated[str, Option(help="sdpa (fused) or eager.")] = "sdpa"
    answer_tokens: Annotated[int | None, Option(help="Logits for the last N tokens only.")] = None
    dtype: Annotated[str | None, Option(help="Base dtype: bfloat16; float32 if full.")] = None
    adapter_dtype: Annotated[str, Option(help="Adapters' dtype.")] = "float32"
    autocast: Annotated[bool, Option(help="Multiply in 16 bits.")] = True
    dropout: Annotated[float, Option(help="Dropout on adapter inputs.")] = 0.0
    dora: Annotated[bool, Option(help="Use DoRA.")] = False
    experts: Annotated[bool, Option(help="Also adapt fused experts.")] = False
    double_quant: Annotated[bool, Option(help="Quantize the scales too.")] = True
    prepare_kbit: Annotated[bool, Option(help="Cast QLoRA's other weights to fp32.")] = False
    padded: Annotated[bool, Option(help="Rows of different lengths.")] = False
    accumulation: Annotated[int, Option(help="Micro-batches per step.")] = 1

    def __post_init__(self) -> None:
        if self.method in ("dpo", "grpo"):
            object.__setattr__(self, "objective", self.method)
            object.__setattr__(self, "method", "lora")
        if self.objective == "grpo" and self.answer_tokens is None:
            object.__setattr__(self, "answer_tokens", max(2, self.seq // 2))
        if self.dtype is None:
            object.__setattr__(self, "dtype", "float32" if self.method == "full" else "bfloat16")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise LabError(f"{name} {value!r} is not one of {', '.join(choices)}")
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if name == "answer_tokens" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise LabError(f"{name} must be an integer of at least {least}, not {value!r}")
        if not 0 <= self.dropout < 1:
            raise LabError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        room = self.seq - (self.objective != "sft")  # a first token has no log-probability
        if self.answer_tokens and self.answer_tokens > room:
            raise LabError(f"{self.answer_tokens} answer tokens don't fit in seq {self.seq}")
        if not any(self.target_names):
            raise LabError("targets must be all-linear or names such as q_proj,v_proj")

    @property
    def rows(self) -> int:
        """The number of sequences that a step trains on."""
        return self.batch * {"sft": 1, "dpo": 2, "grpo": self.samples}[self.objective]

    @property
    def second_model(self) -> bool:
        """Whether DPO's reference is a second, frozen model."""
        return self.objective == "dpo" and self.method == "full"

    @property
    def target_names(self) -> list[str]:
        """The target names as a list; `["all-linear"]` for all."""
        return [name.strip() for name in self.targets.split(",") if name.strip()]

    def but(self, **changes) -> Self:
        """Copy the settings with some changes."""
        return dataclasses.replace(self, **changes)


def parse_size(text: str) -> int:
    """Parse "24GB" or "23.5GiB" into bytes; a bare number is in GB. LabError for other text."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)?\s*", str(text), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        offer = "write 16GB, 24GB, 48GB, 80GB or 22GiB"
        raise LabError(f"can't read the size {str(text)!r}: {offer}")
    return int(float(match[1]) * UNITS[(match[2] or "GB").upper()])
