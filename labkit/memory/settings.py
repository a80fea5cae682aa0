"""The settings of a training step that decide its memory, validated."""

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

    Names are those of transformers, PEFT and TRL if they have one.

    method: full, lora or qlora (NF4 linear layers; embeddings, norms and head stay in `dtype`).
        "dpo" and "grpo" are accepted as that objective with lora.
    objective: sft, dpo or grpo. In dpo a batch counts pairs, so twice as many sequences, and a
        reference runs first: the model without its adapter, or a second model under full. In grpo
        a batch counts prompts. For each, `samples` answers of `answer_tokens` (default half of
        `seq`) are drawn with a cache, then the step is on all of them, without a KL penalty.
    rank, targets, dropout, adapter_dtype: the adapter. Targets are "all-linear" or names such as
        "q_proj,v_proj". PEFT's adapters are in float32 by default, whatever the base is.
    dora: train the norms of the columns separately (PEFT's `use_dora`).
    experts: adapters on fused experts, too (PEFT's `target_parameters`).
    optim: as in transformers' `optim`.
    batch, seq: sequences per step and tokens per sequence, padding included.
    padded: rows differ in length, so attention needs a mask. Grouped keys and values are then
        repeated for every query head, since the fused kernel can't combine groups with a mask.
    accumulation: with 2 or more, gradients of earlier micro-batches exist during forward.
    checkpointing: recompute each decoder layer in backward (non-reentrant).
    attention: sdpa (fused, stores no scores) or eager (stores them). Models without a fused
        attention in transformers, such as gpt-oss, are always eager.
    answer_tokens: logits for only this many last positions per sequence; None for all.
    dtype: of the base weights as loaded; default bfloat16, and float32 for full.
    autocast: multiply in bfloat16 (Trainer's `bf16=True`); in float16 for a float16 base.
    double_quant: also quantize the scales of NF4 blocks.
    prepare_kbit: `prepare_model_for_kbit_training` casts what is not 4-bit to float32.
    """

    method: Annotated[str, Option(help="full, lora or qlora; or dpo, grpo with lora.")] = "lora"
    objective: Annotated[str, Option(help="sft, dpo or grpo.")] = "sft"
    samples: Annotated[int, Option(help="Answers per prompt in grpo.")] = 8
    rank: Annotated[int, Option(help="Rank of the adapters.")] = 16
    targets: Annotated[str, Option(help="all-linear, or q_proj,v_proj,…")] = "all-linear"
    batch: Annotated[int, Option(help="Sequences per step.")] = 1
    seq: Annotated[int, Option(help="Tokens per sequence.")] = 512
    optim: Annotated[str, Option(help="transformers' name for it.")] = "adamw_torch_fused"
    checkpointing: Annotated[bool, Option(help="Recompute layers in backward.")] = False
    attention: Annotated[str, Option(help="sdpa (fused) or eager.")] = "sdpa"
    answer_tokens: Annotated[int | None, Option(help="Logits for this many last tokens.")] = None
    dtype: Annotated[str | None, Option(help="Base dtype; bfloat16, full: float32.")] = None
    adapter_dtype: Annotated[str, Option(help="Adapters' dtype.")] = "float32"
    autocast: Annotated[bool, Option(help="Multiply in 16 bits.")] = True
    dropout: Annotated[float, Option(help="On the adapters' inputs.")] = 0.0
    dora: Annotated[bool, Option(help="Use DoRA.")] = False
    experts: Annotated[bool, Option(help="Adapters on fused experts, too.")] = False
    double_quant: Annotated[bool, Option(help="Quantize the scales too.")] = True
    prepare_kbit: Annotated[bool, Option(help="Cast the rest of QLoRA to fp32.")] = False
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
                raise LabError(f"{name} must be a whole number, at least {least}, not {value!r}")
        if not 0 <= self.dropout < 1:
            raise LabError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        room = self.seq - (self.objective != "sft")  # a first token has no log-probability
        if self.answer_tokens and self.answer_tokens > room:
            raise LabError(f"{self.answer_tokens} answer tokens don't fit in seq {self.seq}")
        if not any(self.target_names):
            raise LabError("targets must be all-linear or names such as q_proj,v_proj")

    @property
    def rows(self) -> int:
        """Sequences that a step trains on."""
        return self.batch * {"sft": 1, "dpo": 2, "grpo": self.samples}[self.objective]

    @property
    def second_model(self) -> bool:
        """Whether DPO's reference is a second, frozen model."""
        return self.objective == "dpo" and self.method == "full"

    @property
    def target_names(self) -> list[str]:
        """The targets as a list; `["all-linear"]` for all."""
        return [name.strip() for name in self.targets.split(",") if name.strip()]

    def but(self, **changes) -> Self:
        """The same settings with some changed."""
        return dataclasses.replace(self, **changes)


def parse_size(text: str) -> int:
    """Bytes of "24GB" or "23.5GiB"; a bare number is in GB. LabError for other texts."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)?\s*", str(text), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        offer = "write 16GB, 24GB, 48GB, 80GB or 22GiB"
        raise LabError(f"can't read the size {str(text)!r}: {offer}")
    return int(float(match[1]) * UNITS[(match[2] or "GB").upper()])
