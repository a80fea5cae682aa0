"""The closed form: every term of a training step's memory, with its formula and its source.

What stays from step to step (weights, gradients, optimizer states) is exact: the simulation agrees
to the byte. What a step adds follows `saved`; what a layer's backward allocates besides is an
estimate, and matters only where neither the loss nor the optimizer's step is the peak.
Letters are those of `dimensions`.
"""

import math
from dataclasses import dataclass

from labkit.memory import optimizers, saved
from labkit.memory.adapted import BLOCK, BLOCK_OF_SCALES
from labkit.memory.dimensions import Dimensions

QLORA = "Dettmers et al. 2023, 2305.14314, section 3"
LORA = "Hu et al. 2021, 2106.09685, section 4.1"
ADAM = "Kingma and Ba 2014, 1412.6980, algorithm 1"
EIGHT_BIT = "Dettmers et al. 2021, 2110.02861, section 2"
LOSS = "transformers' ForCausalLMLoss, in fp32"
STATIC = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class Term:
    """One term: what it is for (of `ledger.CATEGORIES`), a name, bytes, formula and source."""

    category: str
    name: str
    bytes: int
    formula: str
    source: str


@dataclass(frozen=True)
class Budget:
    """All terms of a step, and bytes held at each moment that can be the peak."""

    terms: tuple
    moments: dict

    @property
    def peak(self):
        """Bytes at the highest moment."""
        return max(self.moments.values())

    def static(self):
        """Bytes that stay from step to step: weights, gradients and optimizer, a dict."""
        return {kind: self.total(kind) for kind in STATIC}

    def total(self, category):
        """Bytes of all terms of a category."""
        return sum(term.bytes for term in self.terms if term.category == category)


def closed_form(config, settings):
    """The `Budget` of one step of a Llama-style causal LM.

    Raises NoClosedForm for another architecture, BadSetting for targets that it doesn't have.
    """
    m = Dimensions(config, settings)
    terms = (*_weights(m), *_gradients(m), *_optimizer(m), *_activations(m))
    return Budget(terms, _moments(m, terms))


def _weights(m):
    row = "V h x bytes"
    yield Term("weights", "embeddings", m.V * m.h * m.rest, row, "a row a token")
    if not m.tied:
        yield Term("weights", "output head", m.V * m.h * m.rest, row, "a row a token")
    norms = (2 * m.L + 1) * m.h * m.rest
    yield Term("weights", "norms", norms, "(2 L + 1) h x bytes", "RMSNorm: 1910.07467")
    if m.biases:
        biases = m.L * sum(m.biases) * m.rest
        yield Term("weights", "biases", biases, "L sum d_out x bytes", "of the matrices with one")
    rotary = 2 * (m.d // 2) * 4
    yield Term("weights", "rotary frequencies", rotary, "2 x d/2 x 4", "transformers, in fp32")
    if m.settings.method == "qlora":
        yield from _nf4(m)
    else:
        formula = "L (2 h q + 2 h k + 3 h f) x bytes"
        yield Term("weights", "matrices", m.n_linear * m.base, formula, "seven a layer")
    if m.targets:
        formula = "L sum r (d_in + d_out) x bytes"
        yield Term("weights", "adapters", m.n_adapter * m.adapter, formula, LORA)


def _nf4(m):
    nested = m.settings.double_quant
    counts = [math.prod(shape) for shape in m.matrices.values()]
    blocks = [math.ceil(n / BLOCK) for n in counts]
    codes = m.L * sum((n + 1) // 2 for n in counts)
    yield Term("weights", "NF4 codes", codes, "n / 2", QLORA)
    scales = m.L * sum(blocks) * (1 if nested else 4)
    yield Term("weights", "scales", scales, f"n / 64 x {1 if nested else 4}", QLORA)
    tables = 16 * 4
    if nested:
        more = m.L * 4 * sum(math.ceil(n / BLOCK_OF_SCALES) for n in blocks)
        yield Term("weights", "scales of scales", more, "n / (64 x 256) x 4", QLORA)
        tables += 256 * 4 + 4
    formula = "each matrix: 16 x 4" + " + 256 x 4 + 4" * nested
    yield Term("weights", "code tables", m.L * len(counts) * tables, formula, "bitsandbytes")


def _gradients(m):
    n_trained = sum(m.trained_tensors)
    yield Term("gradients", "gradients", n_trained * m.trained, "n_trained x bytes", "one each")


def _optimizer(m):
    name, sizes = m.settings.optim, m.trained_tensors
    if name.startswith("adamw_torch"):
        moments = 2 * sum(sizes) * m.trained
        yield Term("optimizer", "Adam's moments", moments, "2 n_trained x bytes", ADAM)
        yield Term("optimizer", "step counters", 4 * len(sizes), "4 a tensor", "torch.optim.AdamW")
        return
    bits = 8 if "8bit" in name else 32
    paged = name.startswith("paged")
    held = [n for n in sizes if not paged or n < optimizers.PAGED_FROM]
    moments = sum(sum(optimizers.state_bytes(n, bits)) for n in held)
    formula = "2 n" if bits == 8 else "2 n x 4"
    formula += ", tensors from 100,000 numbers paged out" * paged
    yield Term("optimizer", "Adam's moments", moments, formula, EIGHT_BIT if bits == 8 else ADAM)
    blocks = sum(math.ceil(n / optimizers.BLOCK) for n in sizes if n >= optimizers.SMALL)
    if bits == 8 and blocks:
        formula = "2 (n / 256 x 4 + 256 x 4)"
        yield Term("optimizer", "scales of moments", 8 * blocks + 2048, formula, EIGHT_BIT)


def _activations(m):
    """What is held when the loss's gradient is computed."""
    s = m.settings
    for name, per_token, formula, source in saved.layer(m):
        if not s.checkpointing:
            bytes_ = m.L * m.T * per_token
            yield Term("activations", name, bytes_, f"L T x [{formula}]", source)
    if s.checkpointing:
        inputs = m.L * m.T * m.h * m.stream
        yield Term("activations", "inputs of layers", inputs, "L T h x bytes", saved.CHECKPOINTS)
    rotary = 2 * m.T * m.d * m.stream
    yield Term("activations", "rotary cos and sin", rotary, "2 T d x bytes", "transformers")
    for name, bytes_, formula, source in saved.casts(m):
        yield Term("activations", name, bytes_, formula, source)
    yield Term("activations", "log-softmax", 4 * m.A * m.V, "4 A V", LOSS)
    formula = "2 x 4 A V: its gradient, and that of the logits"
    yield Term("temporary", "gradients of the loss", 8 * m.A * m.V, formula, LOSS)


def _moments(m, terms):
    """Bytes held at the moments that can be the peak."""
    s = m.settings
    held = {kind: sum(t.bytes for t in terms if t.category == kind) for kind in STATIC}
    lasting = held["weights"] + held["optimizer"] + held["gradients"] * (s.accumulation > 1)
    at_loss = sum(term.bytes for term in terms if term.category in ("activations", "temporary"))
    in_layer = at_loss - 12 * m.A * m.V + 20 * m.T * m.h
    if s.attention == "eager":  # the scores' gradient, in both widths
        in_layer += (4 + m.attention) * m.T * m.H * s.seq
    if s.checkpointing:
        in_layer += sum(m.T * per_token for _, per_token, _, _ in saved.layer(m))
    if s.method == "qlora":  # the largest matrix, dequantised, and its scales
        largest = max(math.prod(shape) for shape in m.matrices.values())
        in_layer += 2 * largest + 4 * largest // BLOCK
    # A tied matrix has two gradients. Autograd adds the second in place to the first, unless that
    # is the view which a product without a cast leaves: then the sum is a third.
    more = 1 if s.autocast and m.rest == 4 else 2
    table = more * m.V * m.h * m.trained * (m.full and m.tied)
    step = sum(held.values())
    if s.optim == "adamw_torch":  # foreach takes the roots of all second moments at once
        step += sum(m.trained_tensors) * m.trained
    return {
        "at the loss": lasting + at_loss,
        "inside a layer": lasting + in_layer,
        "end of backward": sum(held.values()) + table,
        "in the step": step,
    }
