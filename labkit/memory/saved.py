"""What forward keeps for backward in a Llama-style decoder of transformers, as formulas.

Each formula was read off what autograd saves, and the simulation agrees with the sum to a
per mille; the reasons are in the terms' names.
"""

from collections.abc import Iterator

from labkit.memory.dimensions import Dimensions

CHECKPOINTS = "Chen et al. 2016, 1604.06174, section 3"
FLASH = "Dao et al. 2022, 2205.14135, section 3.1"
RECOMPUTED = "after Korthikanti et al. 2022, 2205.05198, section 4.1"
LORA = "Hu et al. 2021, 2106.09685: the gradient of A needs x, that of B needs A x"


def layer(m: Dimensions) -> Iterator[tuple[str, int, str, str]]:
    """What one decoder layer saves: (name, bytes a token, formula, source) each."""
    yield "inputs of norms, in fp32", 8 * m.h + 8, "2 (4 h + 4)", RECOMPUTED
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
        kept = m.attention * (2 * m.q + 2 * keys) + 4 * m.H
        yield "q, k, v, output, row sums", kept, f"2 (q + {each}) x bytes + 4 H", FLASH


def _of_trained_weights(m):
    """A trained matrix needs its input, a trained norm what it scales."""
    yield "normalised inputs", 2 * m.stream * m.h, "2 h x bytes", RECOMPUTED
    if m.stream == 4 and m.settings.autocast:
        yield "inputs of matrices, cast one by one", 10 * m.h + 2 * m.f, "5 x 2 h + 2 f", RECOMPUTED
    else:
        output = m.q if m.settings.attention == "eager" else 0  # the fused kernel keeps it anyway
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
        yield "inputs of adapters", width * shared, "bytes x (h + h + f), shared", LORA
    else:
        copies = sum(d_in for _, d_in in m.targets.values())
        yield "inputs of adapters", width * copies, "bytes x sum d_in, cast one by one", LORA
        if s.dropout:
            yield "dropout masks", copies, "sum d_in x 1", "torch.native_dropout"
    middles = width * s.rank * len(m.targets)
    yield "A x of adapters", middles, "bytes x r x targets", LORA


def casts(m: Dimensions) -> Iterator[tuple[str, int, str, str]]:
    """(name, bytes, formula, source) of 16-bit copies that autocast makes of fp32 matrices.

    Without recomputation all live until backward has used them; with it, those of the head alone.
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
