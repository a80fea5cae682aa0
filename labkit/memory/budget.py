"""Compute a training step's memory in closed form, each term with its formula and source.

Weights, gradients and optimizer states are exact: the simulation agrees to the byte. The terms for
activations follow what autograd saves in transformers' Llama and agree within 0.1%. A layer's
temporary memory in backward is an estimate. The estimate matters only if neither the loss nor the
optimizer's step is the peak. `dimensions` explains the letters.
"""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from labkit.memory import optimizers
from labkit.memory.adapted import BLOCK, BLOCK_OF_SCALES
from labkit.memory.dimensions import Dimensions
from labkit.memory.settings import Settings

QLORA = "Dettmers et al. 2023, 2305.14314, section 3"
LORA = "Hu et al. 2021, 2106.09685, section 4.1"
ADAM = "Kingma and Ba 2014, 1412.6980, algorithm 1"
EIGHT_BIT = "Dettmers et al. 2021, 2110.02861, section 2"
LOSS = "transformers' ForCausalLMLoss, in fp32"
GRADIENTS_OF_LOSS = "2 x 4 A V: its gradient, and that of the logits"
CHECKPOINTS = "Chen et al. 2016, 1604.06174, section 3"
FLASH = "Dao et al. 2022, 2205.14135, section 3.1"
RECOMPUTED = "after Korthikanti et al. 2022, 2205.05198, section 4.1"
GRADIENTS_OF_LORA = "Hu et al. 2021, 2106.09685: the gradient of A needs x, that of B needs A x"
DPO = "Rafailov et al. 2023, 2305.18290, equation 7"
STATIC = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class Term:
    """A term: its category (from `ledger`), name, bytes, formula and source."""

    category: str
    name: str
    bytes: int
    formula: str
    source: str


@dataclass(frozen=True)
class Budget:
    """All memory terms of a step, and the bytes in use at each moment that can be the peak."""

    terms: tuple[Term, ...]
    moments: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes at the moment with the highest use."""
        return max(self.moments.values())

    def static(self) -> dict[str, int]:
        """Bytes of weights, gradients and optimizer states, which stay from step to step."""
        return {kind: self.total(kind) for kind in STATIC}

    def total(self, category: str) -> int:
        """Total bytes of all terms in a category."""
        return sum(term.bytes for term in self.terms if term.category == category)


def closed_form(config: PretrainedConfig, settings: Settings) -> Budget:
    """Compute the `Budget` of one training step of a Llama-style causal LM.

    NoClosedForm for other architectures, LabError for targets that the model doesn't have.
    """
    m = Dimensions(config, settings)
    n_trained = sum(m.trained_tensors)
    rows = {  # (name, bytes, formula, source) each
        "weights": _all_weights(m),
        "gradients": [("gradients", n_trained * m.trained, "n_trained x bytes", "one per weight")],
        "optimizer": _optimizer(m),
        "activations": _activations(m),
        "temporary": [("gradients of the loss", 8 * m.n_logits * m.V, GRADIENTS_OF_LOSS, LOSS)],
    }
    terms = tuple(Term(category, *row) for category, some in rows.items() for row in some)
    return Budget(terms, _moments(m, terms))


def _all_weights(m):
    rows = list(_weights(m))
    yield from rows
    if m.settings.second_model:
        yield "reference model", sum(row[1] for row in rows), "all of the above again", DPO


def _weights(m):
    row = "V h x bytes"
    yield "embeddings", m.V * m.h * m.rest, row, "one row per token"
    if not m.tied:
        yield "output head", m.V * m.h * m.rest, row, "one row per token"
    norms = (m.L * sum(m.norms) + m.h) * m.rest
    formula = "(2 L (h + d) + h) x bytes" if m.qk else "(2 L + 1) h x bytes"
    yield "norms", norms, formula, "RMSNorm: 1910.07467"
    if m.biases:
        biases = m.L * sum(m.biases) * m.rest
        yield "biases", biases, "L sum d_out x bytes", "of the matrices with one"
    yield "rotary frequencies", 2 * (m.d // 2) * 4, "2 x d/2 x 4", "transformers, in fp32"
    if m.settings.method == "qlora":
        yield from _nf4(m)
    else:
        formula = "L (2 h q + 2 h k + 3 h f) x bytes"
        yield "matrices", m.n_linear * m.base, formula, "seven per layer"
    if m.targets:
        yield "adapters", m.n_adapter * m.adapter, "L sum r (d_in + d_out) x bytes", LORA


def _nf4(m):
    counts = [math.prod(shape) for shape in m.matrices.values()]
    blocks = [math.ceil(n / BLOCK) for n in counts]
    yield "NF4 codes", m.L * sum((n + 1) // 2 for n in counts), "n / 2", QLORA
    width = 1 if m.settings.double_quant else 4
    yield "scales", m.L * sum(blocks) * width, f"n / 64 x {width}", QLORA
    tables, formula = 16 * 4, "each matrix: 16 x 4"
    if m.settings.double_quant:
        more = m.L * 4 * sum(math.ceil(n / BLOCK_OF_SCALES) for n in blocks)
        yield "scales of scales", more, "n / (64 x 256) x 4", QLORA
        tables, formula = tables + 256 * 4 + 4, f"{formula} + 256 x 4 + 4"
    yield "code tables", m.L * len(counts) * tables, formula, "bitsandbytes"


def _optimizer(m):
    name, sizes = m.settings.optim, m.trained_tensors
    if name.startswith("adamw_torch"):
        yield "Adam's moments", 2 * sum(sizes) * m.trained, "2 n_trained x bytes", ADAM
        yield "step counters", 4 * len(sizes), "4 per tensor", "torch.optim.AdamW"
        return
    bits, paged = 8 if "8bit" in name else 32, name.startswith("paged")
    held = [n for n in sizes if not paged or n < optimizers.PAGED_FROM]
    moments = sum(2 * n if bits == 8 and n >= optimizers.SMALL else 8 * n for n in held)
    formula = "2 n" if bits == 8 else "2 n x 4"
    if paged:
        formula += ", tensors from 100,000 numbers paged out"
    yield "Adam's moments", moments, formula, EIGHT_BIT if bits == 8 else ADAM
    blocks = sum(math.ceil(n / optimizers.BLOCK) for n in sizes if n >= optimizers.SMALL)
    if bits == 8 and blocks:
        yield "scales of moments", 8 * blocks + 2048, "2 (n / 256 x 4 + 256 x 4)", EIGHT_BIT


def _activations(m):
    """Terms in memory while the gradient of the loss is computed."""
    if m.settings.checkpointing:
        inputs = m.L * m.n_tokens * m.h * m.stream
        yield "inputs of layers", inputs, "L T h x bytes", CHECKPOINTS
    else:
        for name, per_token, formula, source in _layer(m):
            yield name, m.L * m.n_tokens * per_token, f"L T x [{formula}]", source
    rotary = 2 * m.n_tokens * m.d * m.stream
    yield "rotary cos and sin", rotary, "2 T d x bytes", "transformers"
    yield from _casts(m)
    yield "log-softmax", 4 * m.n_logits * m.V, "4 A V", LOSS


def _layer(m):
    """What one decoder layer saves for backward: (name, bytes per token, formula, source)."""
    yield "inputs of norms, in fp32", 8 * m.h + 8, "2 (4 h + 4)", RECOMPUTED
    if m.qk:
        qk = 4 * m.qk * (m.d + 1) // m.d
        yield "queries and keys to norm, in fp32", qk, "4 (q + k) (d + 1) / d", RECOMPUTED
    yield from _attention(m)
    yield "SwiGLU", 3 * m.mlp * m.f, "3 f x bytes: gate, silu(gate), up", RECOMPUTED
    if m.full:
        yield from _of_trained_weights(m)
    if m.targets:
        yield from _of_adapters(m)


def _attention(m):
    s = m.settings
    keys = m.q if s.padded or s.attention == "eager" else m.k
    each = "q" if keys == m.q != m.k else "k"  # repeated for every query head, or not
    if s.padded:
        yield "attention mask", m.attention * s.seq, "seq x bytes", "transformers"
    if s.attention == "eager":
        scores = (4 + m.attention) * m.H * s.seq  # softmax in fp32, and cast for the product
        yield "attention scores", scores, "(4 + bytes) H seq", RECOMPUTED
        yield "q, k, v", m.attention * (m.q + 2 * keys), f"(q + 2 {each}) x bytes", RECOMPUTED
    else:
        stored = m.attention * (2 * m.q + 2 * keys) + 4 * m.H
        yield "q, k, v, output, row sums", stored, f"2 (q + {each}) x bytes + 4 H", FLASH


def _of_trained_weights(m):
    """A trained matrix saves its input; a trained norm saves its normalized input."""
    yield "normalized inputs", 2 * m.stream * m.h, "2 h x bytes", RECOMPUTED
    if m.qk:
        width = 2 if m.settings.autocast else m.stream
        yield "normalized queries and keys", width * m.qk, "(q + k) x bytes", RECOMPUTED
    if m.stream == 4 and m.settings.autocast:
        yield "inputs of matrices, cast one by one", 10 * m.h + 2 * m.f, "5 x 2 h + 2 f", RECOMPUTED
    else:
        output = m.q if m.settings.attention == "eager" else 0  # the fused kernel saves it anyway
        inputs = m.mlp * (2 * m.h + output + m.f)
        yield "inputs of matrices", inputs, "(2 h + f) x bytes", RECOMPUTED


def _of_adapters(m):
    s = m.settings
    width = 2 if s.autocast else m.adapter
    in_place = m.adapter == m.stream and (m.stream == 2 or not s.autocast)
    if in_place and not s.dropout:
        names = set(m.targets)
        shared = m.h if names & {"q_proj", "k_proj", "v_proj"} else 0
        shared += m.h if names & {"gate_proj", "up_proj"} else 0
        shared += m.f if "down_proj" in names else 0
        yield "inputs of adapters", width * shared, "bytes x (h + h + f), shared", GRADIENTS_OF_LORA
    else:
        copies = sum(d_in for _, d_in in m.targets.values())
        yield (
            "inputs of adapters",
            width * copies,
            "bytes x sum d_in, cast one by one",
            GRADIENTS_OF_LORA,
        )
        if s.dropout:
            yield "dropout masks", copies, "sum d_in x 1", "torch.native_dropout"
    middles = width * s.rank * len(m.targets)
    yield "A x of adapters", middles, "bytes x r x targets", GRADIENTS_OF_LORA


def _casts(m):
    """The 16-bit copies that autocast makes of fp32 matrices: (name, bytes, formula, source).

    All copies live until backward has used them; with checkpointing, only the head's copy does.
    """
    s = m.settings
    if not s.autocast:
        return
    source = "torch.autocast"
    if m.rest == 4:
        yield "head cast to 16 bits", 2 * m.V * m.h, "2 V h", source
    if s.checkpointing:
        return
    if m.base == 4:
        yield "matrices cast to 16 bits", 2 * m.n_linear, "2 L (2 h q + 2 h k + 3 h f)", source
    if m.targets and m.adapter == 4:
        yield "adapters cast to 16 bits", 2 * m.n_adapter, "2 L sum r (d_in + d_out)", source


def _moments(m, terms):
    """Bytes in use at the moments that can be the peak."""
    s = m.settings
    held = {kind: sum(t.bytes for t in terms if t.category == kind) for kind in STATIC}
    lasting = held["weights"] + held["optimizer"]
    if s.accumulation > 1:
        lasting += held["gradients"]
    at_loss = sum(term.bytes for term in terms if term.category in ("activations", "temporary"))
    in_layer = at_loss - 12 * m.n_logits * m.V + 20 * m.n_tokens * m.h
    if s.attention == "eager":  # the scores' gradient, in both widths
        in_layer += (4 + m.attention) * m.n_tokens * m.H * s.seq
    if s.checkpointing:
        in_layer += sum(m.n_tokens * per_token for _, per_token, _, _ in _layer(m))
    if s.method == "qlora":  # the largest matrix, dequantized, and its scales
        largest = max(math.prod(shape) for shape in m.matrices.values())
        in_layer += 2 * largest + 4 * largest // BLOCK
    # A tied matrix has two gradients. Autograd adds the second to the first in place, unless the
    # first is a view (from a product without a cast): then the sum is a third tensor.
    table = 0
    if m.full and m.tied:
        table = (1 if s.autocast and m.rest == 4 else 2) * m.V * m.h * m.trained
    step = sum(held.values())
    if s.optim == "adamw_torch":  # foreach takes the roots of all second moments at once
        step += sum(m.trained_tensors) * m.trained
    moments = {}
    if s.objective == "dpo":
        casts = sum(row[1] for row in _casts(m))
        moments["in the reference"] = lasting + casts + 10 * m.n_logits * m.V
    return moments | {
        "at the loss": lasting + at_loss,
        "inside a layer": lasting + in_layer,
        "end of backward": sum(held.values()) + table,
        "in the step": step,
    }
