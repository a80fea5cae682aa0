"""Compute GRPO's rollout in closed form: its peak memory, excluding weights and optimizer.

Nothing is stored for backward, so besides the cache only one layer counts. It is the last layer,
when the cache is complete, plus autocast's 16-bit copies of everything trained in fp32. The copies
are freed after the forward pass, before a token is sampled.

Letters are those of `dimensions`; p is the tokens per prompt, P the tokens of all prompts.
"""

import math

from labkit.memory.adapted import BLOCK
from labkit.memory.dimensions import Dimensions

CACHE = "Pope et al. 2022, 2211.05102, section 2.1"
LAYER = "transformers' decoder layer, and PEFT's linear layer"
SAMPLED = "whole logits, and their softmax in fp32"


def moments(m: Dimensions) -> dict[str, list[tuple[str, int, str, str]]]:
    """{moment: its terms}, each term a tuple (name, bytes, formula, source)."""
    s = m.settings
    last = [_cache(m, s.seq - 1, "(seq - 1)"), *_casts(m)]
    logits = s.rows * m.V
    head = 2 * m.V * m.h if s.autocast and m.rest == 4 else 0
    found = {
        "prompts' attention": [*_prompts(m), *_attention(m)],
        "prompts' MLP": [*_prompts(m), *_mlp(m)],
        "last layer": [*last, max(_in_layer(m), key=lambda row: row[1])],
        "head": [
            *(*last, ("head cast to 16 bits", head, "2 V h", "torch.autocast")),
            ("last logits", logits * m.attention, "rows V x bytes", LAYER),
        ],
        "draw": [
            *(last[0], ("last logits", logits * (m.attention % 4), "2 rows V: 16 bits", LAYER)),
            ("last logits and softmax in fp32", 8 * logits, "2 x 4 rows V", SAMPLED),
        ],
    }
    return {name: [row for row in rows if row[1]] for name, rows in found.items()}


def _cache(m, tokens, formula):
    n_bytes = m.L * m.settings.rows * tokens * m.k * (m.stream + m.mlp)
    return "keys and values", n_bytes, f"L rows {formula} k x (bytes + bytes)", CACHE


def _prompts(m):
    """Terms in use throughout the last layer while it processes the prompts."""
    s = m.settings
    seq = s.seq - s.answer_tokens
    tokens = s.rows * seq
    yield _cache(m, seq, "p")
    yield from _casts(m)
    stream = "3 P h x bytes: embeddings, layer's input, its norm"
    yield "prompts' stream", 3 * tokens * m.h * m.stream, stream, LAYER
    if s.padded or s.attention == "eager":
        width = m.attention if s.attention == "eager" else 1  # the fused kernel's mask is bool
        yield "prompts' mask", tokens * seq * width, "P p x bytes", LAYER


def _attention(m):
    """Scores and their fp32 softmax if attention is eager; if fused, the MLP needs more memory."""
    s = m.settings
    if s.attention == "eager":
        seq = s.seq - s.answer_tokens
        heads = m.q if m.q == m.k else 3 * m.q
        yield "prompts' heads", s.rows * seq * heads * m.attention, "P 3 q x bytes: repeated", LAYER
        n_bytes = s.rows * seq * seq * m.H * (8 + m.attention % 4)
        yield "prompts' scores", n_bytes, "P p H x (2 x 4, and 2 in 16 bits)", LAYER


def _mlp(m):
    """The MLP's terms: PEFT adds the scaled B A x to a product, and may cast its input to fp32."""
    s = m.settings
    prompts = s.rows * (s.seq - s.answer_tokens)
    if s.attention == "eager":  # transformers frees them at the end of the layer
        n_bytes = prompts * (s.seq - s.answer_tokens) * m.H * m.attention
        yield "prompts' scores", n_bytes, "P p H x bytes", LAYER
    width = 2 if s.autocast else m.adapter
    each = [(3 * m.mlp * m.f, "3 f x bytes: silu(gate), up, product")]
    if "up_proj" in m.targets:
        made = 2 * m.f * (m.mlp + max(m.mlp, width))
        made += m.h * m.adapter * (m.adapter != m.stream)
        each.append((made, "4 f x bytes: silu(gate), up, B A x, sum; h x bytes: input, if cast"))
    if "down_proj" in m.targets:
        casts = m.adapter * (m.adapter != m.mlp) + 2 * (width != m.adapter)
        made = m.f * (m.mlp + casts) + m.h * m.mlp
        each.append((made, "f x bytes: input, and as cast; h x bytes: down"))
    made, formula = max(each)
    n_bytes = prompts * (m.h * m.stream + made)
    yield "prompts' MLP", n_bytes, f"P x [h x bytes: residual; {formula}]", LAYER


def _casts(m):
    """Autocast's copies of trained matrices; copies of frozen matrices are freed at once."""
    s = m.settings
    if s.autocast and m.trained == 4:
        n, formula = m.n_adapter, "2 L sum r (d_in + d_out)"
        if m.full:
            n, formula = m.n_linear, "2 L (2 h q + 2 h k + 3 h f)"
        yield "trained, cast to 16 bits", 2 * n, formula, "torch.autocast"


def _in_layer(m):
    """One layer's terms: keys are copied to append a token's; a matrix is cast or dequantized."""
    s = m.settings
    keys = s.rows * (s.seq - 1) * m.k * m.stream
    yield "keys, copied to grow", keys, "rows (seq - 1) k x bytes", "transformers' DynamicLayer"
    largest = max(math.prod(shape) for shape in m.matrices.values())
    if s.method == "qlora":
        n_bytes = 2 * largest + 4 * largest // BLOCK
        yield "matrix, dequantized", n_bytes, "2 n + 4 n / 64, of the largest", LAYER
    elif s.autocast and m.base == 4 and not m.full:
        yield "matrix, cast to 16 bits", 2 * largest, "2 n, of the largest", "torch.autocast"
