"""Dimensions of a Llama-style decoder and the widths of its dtypes, for the closed form.

Letters here and in every formula: V vocabulary, h hidden size, f intermediate size, L layers, H
query heads, d head size, q = H d, k = d x key-value heads, r rank, T tokens (`n_tokens`), A
positions with logits (`n_logits`); "bytes" is the width of one element in the relevant dtype.
"""

import math

from transformers import PretrainedConfig

from labkit.errors import LabError
from labkit.memory.settings import Settings

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


class NoClosedForm(LabError, ValueError):
    """The closed form doesn't cover this architecture; the simulation does."""


def _not_covered(config, settings):
    """The reason, to follow "no closed form for"; "" if there is a closed form."""
    kind, window = config.model_type, getattr(config, "sliding_window", None)
    if getattr(config, "num_local_experts", None) or getattr(config, "n_routed_experts", None):
        return f"{kind!r}: what its experts store depends on the kernels that multiply them"
    if kind not in FAMILY:
        return f"{kind!r}: it covers only {', '.join(FAMILY)}"
    if settings.objective == "grpo":
        return "GRPO: a rollout's peak is simulated only"
    if settings.dora:
        return "DoRA: PEFT computes the full product B A in each layer"
    if window and settings.seq > window:
        return f"more tokens than the sliding window of {window}: masks need extra memory"
    return ""


class Dimensions:
    """Dimensions from `config`, and widths in bytes that follow from `settings`."""

    def __init__(self, config: PretrainedConfig, settings: Settings):
        if why := _not_covered(config, settings):
            raise NoClosedForm(f"no closed form for {why}")
        self.config, self.settings = config, settings
        self.h, self.f, self.V = config.hidden_size, config.intermediate_size, config.vocab_size
        self.L, self.H = config.num_hidden_layers, config.num_attention_heads
        self.d = getattr(config, "head_dim", None) or self.h // self.H
        self.q, self.k = self.H * self.d, config.num_key_value_heads * self.d
        self.tied = config.tie_word_embeddings
        self.norms = [self.h, self.h] + 2 * [self.d] * (config.model_type == "qwen3")
        self.full = settings.method == "full"
        self.n_tokens = settings.rows * settings.seq
        self.n_logits = settings.rows * (settings.answer_tokens or settings.seq)
        self.matrices = {  # (d_out, d_in) of each in one layer
            "q_proj": (self.q, self.h),
            "k_proj": (self.k, self.h),
            "v_proj": (self.k, self.h),
            "o_proj": (self.h, self.q),
            "gate_proj": (self.f, self.h),
            "up_proj": (self.f, self.h),
            "down_proj": (self.h, self.f),
        }
        self.targets = self._targets()
        self._set_widths()

    def _set_widths(self):
        s = self.settings
        self.base = SIZE[s.dtype]  # weights as loaded
        upcast = s.method == "qlora" and s.prepare_kbit
        self.rest = 4 if upcast else self.base  # embeddings, norms, biases, head
        self.stream = self.rest  # the residual stream takes the embeddings' dtype
        self.adapter = SIZE[s.adapter_dtype]
        self.trained = self.base if self.full else self.adapter
        self.attention = 2 if s.autocast or self.stream == 2 else 4
        self.mlp = 2 if self.stream == 2 or (s.autocast and not upcast) else 4

    def _targets(self):
        names = self.settings.target_names
        if self.full:
            return {}
        if names == ["all-linear"]:
            return self.matrices
        if unknown := [name for name in names if name not in self.matrices]:
            raise LabError(f"no layer {unknown[0]!r}: choose from {', '.join(self.matrices)}")
        return {name: self.matrices[name] for name in self.matrices if name in names}

    @property
    def n_linear(self) -> int:
        """Parameters in the linear layers of all decoder layers, without biases."""
        return self.L * sum(math.prod(shape) for shape in self.matrices.values())

    @property
    def qk(self) -> int:
        """Elements per token in queries and keys that are normalized per head, as in Qwen3."""
        return self.q + self.k if len(self.norms) > 2 else 0

    @property
    def biases(self) -> list[int]:
        """The size of each bias in one layer."""
        if self.config.model_type == "qwen2":
            return [self.q, self.k, self.k]
        attention = getattr(self.config, "attention_bias", False)
        mlp = getattr(self.config, "mlp_bias", False)
        return [
            *((self.q, self.k, self.k, self.h) if attention else ()),
            *((self.f, self.f, self.h) if mlp else ()),
        ]

    @property
    def n_adapter(self) -> int:
        """Parameters in all adapters: L sum r (d_in + d_out)."""
        return self.L * self.settings.rank * sum(sum(shape) for shape in self.targets.values())

    @property
    def trained_tensors(self) -> list[int]:
        """The size of each trained tensor."""
        if not self.full:
            pairs, r = self.targets.values(), self.settings.rank
            return self.L * [n for d_out, d_in in pairs for n in (r * d_in, d_out * r)]
        layer = [math.prod(shape) for shape in self.matrices.values()] + self.biases + self.norms
        return [self.V * self.h] * (2 - self.tied) + self.L * layer + [self.h]
