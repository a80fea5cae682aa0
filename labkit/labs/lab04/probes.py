"""What runs beside the learner's code in lab 4, and brings plain data back to its checks."""

import contextlib
import inspect
import sys
import tempfile
import warnings
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.contract import CheckFailed, kept
from labkit.labs.lab04.tables import ASKED, TABLES, with_other_tables, written

CONFIG_FIELDS = (
    *("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
    "bnb_4bit_compute_dtype",
)
MORE_BLOCKS = 64  # that a larger input has than a smaller one, where work is counted


def _several(result, count, call):
    """`result` as a list, once it has the right number of parts."""
    if not isinstance(result, tuple | list) or len(result) != count:
        size = f" of {len(result)}" if isinstance(result, tuple | list) else ""
        kind = f"a {type(result).__name__}{size}"
        raise TypeError(f"{call} has to return {count} things; it gave {kind}")
    return list(result)


def _tensors(call, **found):
    """CheckFailed for an array of NumPy, which a check would read and the lab would not."""
    for name, value in found.items():
        if type(value).__module__ == "numpy" and getattr(value, "ndim", 0):
            hint = f"the lab goes on with tensors: torch.from_numpy({name})"
            raise CheckFailed(f"{name} of {call} is a NumPy array; {hint}")


ASKS = {"isnan", "isfinite", "isinf", "eq", "ne"}  # how a NaN is found: x != x


class _Watch(TorchDispatchMode):
    """Sees a NaN that becomes an integer, and one that decides where something belongs."""

    def __init__(self):
        super().__init__()
        self.lost = self.decided = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        several = result if isinstance(result, tuple | list) else [result]
        if name not in ASKS and not all(map(_floats, several)):
            self.decided |= any(_floats(x) and bool(x.isnan().any()) for x in args)
        if name in ("_to_copy", "copy_") and not result.is_floating_point():
            source = args[name == "copy_"]
            if source.is_floating_point() and source.isnan().any():
                self.lost = True
        return result


def _floats(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


@contextlib.contextmanager
def _nan_watched(decides=False):
    """A list that holds something afterwards when a NaN became an integer, in torch or NumPy.

    `decides`: or when there was one where the largest, the nearest or the like was looked for.
    """
    found = []
    sign = "invalid value encountered" if decides else "invalid value encountered in cast"
    with warnings.catch_warnings(record=True) as told, _Watch() as watch:
        warnings.simplefilter("always")
        yield found
    found += [w for w in told if sign in str(w.message)]
    found += [watch] * (watch.decided if decides else watch.lost)


def absmax_round_trip(absmax_quantize, absmax_dequantize, x, bits):
    """`[q, scale, x again, whether a NaN became an integer on the way]`."""
    with _nan_watched() as lost:
        q, scale = _several(absmax_quantize(x, bits), 2, "absmax_quantize")
    back = absmax_dequantize(q, scale)
    _tensors("absmax_dequantize", back=back)
    return [q, scale, back, bool(lost)]


def codebook(nf4_codebook):
    """The codebook, and numbers and names that its code holds, to tell a table from a formula.

    `again` is what it gives when tables that it looks up hold other values: None if it raises.
    """
    values = nf4_codebook()
    _tensors("nf4_codebook()", values=values)
    inside, outside, names = written(nf4_codebook, set())
    told = {"values": values, "inside": inside, "outside": outside}
    told |= {"names": sorted(names & set(TABLES) - set(ASKED)), "again": values}
    told["asked"] = sorted(names & set(ASKED))
    if told["asked"] or len(outside) > 4:
        told["again"] = with_other_tables(inspect.unwrap(nf4_codebook))
    return told


def blockwise(quantize_blockwise, w, codebook, block):
    """`[codes, absmax]`; `block` None leaves the default."""
    size = () if block is None else (block,)
    codes, absmax = _several(quantize_blockwise(w, codebook, *size), 2, "quantize_blockwise")
    _tensors("quantize_blockwise", codes=codes, absmax=absmax)
    return [codes, absmax]


def zeros_before_threes(quantize_blockwise, codebook):
    """`[codes, absmax]` of a block of zeros and one of threes, and whether a NaN decided there."""
    w = torch.cat([torch.zeros(64), torch.full((64,), 3.0)])
    with _nan_watched(decides=True) as lost:
        found = blockwise(quantize_blockwise, w, codebook, None)
    return [*found, bool(lost)]


def dequantized(dequantize_blockwise, codes, absmax, codebook, shape, block=None):
    """`dequantize_blockwise` of uint8 codes, and of a shape as `w.shape` is."""
    size = () if block is None else (block,)
    back = dequantize_blockwise(codes.to(torch.uint8), absmax, codebook, torch.Size(shape), *size)
    _tensors("dequantize_blockwise", weights=back)
    return back


def blockwise_round_trip(quantize_blockwise, dequantize_blockwise, w, codebook, block):
    """`w` quantized in blocks and dequantized; `block` None leaves both defaults."""
    codes, absmax = blockwise(quantize_blockwise, w, codebook, block)
    size = () if block is None else (block,)
    return dequantize_blockwise(codes, absmax, codebook, w.shape, *size)


def _work(f, *args):
    """Steps of `f(*args)`: Python's instructions, and some for each of torch's operations."""
    steps, before = 0, sys.gettrace()

    def trace(frame, event, _):
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    with _Watch():
        sys.settrace(trace)
        try:
            f(*args)
        finally:
            sys.settrace(before)
    return steps


def work_to_quantize(quantize_blockwise, codebook):
    """Steps with 4 blocks and with MORE_BLOCKS more: those of a loop grow with them."""
    few, many = (torch.linspace(-1, 1, 64 * n) for n in (4, 4 + MORE_BLOCKS))
    quantize_blockwise(few, codebook)  # what is done once a process is done
    return [_work(quantize_blockwise, w, codebook) for w in (few, many)]


def work_to_dequantize(dequantize_blockwise, codebook):
    """As `work_to_quantize`, of the way back."""
    sizes = [64 * n for n in (4, 4 + MORE_BLOCKS)]
    cases = [(torch.zeros(n, dtype=torch.uint8), torch.ones(n // 64), n) for n in sizes]
    args = [(codes, peaks, codebook, torch.Size((n,))) for codes, peaks, n in cases]
    dequantize_blockwise(*args[0])
    return [_work(dequantize_blockwise, *each) for each in args]


def packed(pack_nibbles, codes):
    """`pack_nibbles(codes)` of uint8 codes."""
    result = pack_nibbles(codes)
    _tensors("pack_nibbles", packed=result)
    return result


def unpacked(unpack_nibbles, stored):
    """`unpack_nibbles(stored)`."""
    result = unpack_nibbles(stored)
    _tensors("unpack_nibbles", codes=result)
    return result


def work_to_pack(pack_nibbles, unpack_nibbles):
    """Steps of each with 8 codes or bytes and with MORE_BLOCKS more."""
    cases = [torch.ones(n, dtype=torch.uint8) for n in (8, 8 + MORE_BLOCKS)]
    pack_nibbles(cases[0])
    unpack_nibbles(cases[0])
    return [[_work(f, x) for x in cases] for f in (pack_nibbles, unpack_nibbles)]


def doubled(double_quantize, absmax, group):
    """`[q, scale, offset, whether a NaN became an integer]`; `group` None leaves the default."""
    size = () if group is None else (group,)
    with _nan_watched() as lost:
        found = _several(double_quantize(absmax, *size), 3, "double_quantize")
    _tensors("double_quantize", q=found[0], scale=found[1])
    return [*found, bool(lost)]


def config_fields(qlora_config, device):
    """The fields of the BitsAndBytesConfig as data, made as on a machine with that device."""
    from transformers import BitsAndBytesConfig

    with _hardware(device):
        config = qlora_config(device)
    if not isinstance(config, BitsAndBytesConfig):
        return {"is": type(config).__name__}
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS}
    default = BitsAndBytesConfig().to_dict()
    others = {n: str(v) for n, v in config.to_dict().items() if v != default.get(n)}
    others = {n: v for n, v in others.items() if n not in CONFIG_FIELDS and n[0] != "_"}
    dtype = str(config.bnb_4bit_compute_dtype)
    return fields | {"bnb_4bit_compute_dtype": dtype, "others": others}


@contextlib.contextmanager
def _hardware(device):
    """What torch says of the machine, for answers that ask it: none, a T4 or an A100."""
    answers = {
        "is_available": device != "cpu",
        "is_bf16_supported": device == "a100",
        "get_device_capability": {"a100": (8, 0), "t4": (7, 5)}.get(device, (0, 0)),
        "get_device_name": {"a100": "NVIDIA A100-SXM4-40GB", "t4": "Tesla T4"}.get(device, ""),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", return_value=answer))
        yield


def tiny_llama(packed, tied, adapted, vocab, mlp):
    """A bf16 Llama of one layer, loaded in 4-bit when `packed`, with fp32 LoRA when `adapted`.

    `vocab` and `mlp` are its vocabulary and the width of its MLP. Its weights are the same each
    time: the state that bitsandbytes keeps with them has a size that depends on them.
    """
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": vocab, "hidden_size": 32, "intermediate_size": mlp}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    size["num_hidden_layers"] = 1
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(vocab)
        LlamaForCausalLM(LlamaConfig(**size, **heads, tie_word_embeddings=tied)).save_pretrained(
            folder
        )
        config = BitsAndBytesConfig(**how) if packed else None
        model = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.bfloat16
        )
    if not adapted:
        return model
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def counted(true_param_count, *kind):
    """`true_param_count` of the tiny Llama of that kind and size."""
    return kept(true_param_count, tiny_llama(*kind))


def _rows_in_4_bits(W):
    """Each row to fifteen even steps between plus and minus its largest size."""
    step = W.abs().amax(1, keepdim=True).clamp_min(1e-12) / 7
    return (W / step).round() * step


ROUNDINGS = {  # ways to round a matrix and come back, for exercise 4.7
    "to 4 bits": _rows_in_4_bits,
    "to quarters": lambda W: (4 * W).round() / 4,
    "all to zero": torch.zeros_like,
    "exact": torch.clone,
}


def started(loftq_start, W, kind, r):
    """`[A, B]` of a start beside weights that are rounded in that way."""

    def quantize(W):
        return ROUNDINGS[kind](W)

    A, B = _several(loftq_start(W, quantize, r), 2, "loftq_start")
    _tensors("loftq_start", A=A, B=B)
    return [A, B]
