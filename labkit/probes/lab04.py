"""What runs beside the learner's code in lab 4, and brings plain data back to its checks."""

import contextlib
import dis
import inspect
import re
import tempfile
from unittest import mock

import torch

CONFIG_FIELDS = (
    *("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
    "bnb_4bit_compute_dtype",
)
TABLES = (
    *("get_4bit_type", "create_normal_map", "_get_4bit_code", "dequantize_4bit"),
    *("quantize_4bit", "quantize_nf4", "Params4bit", "Linear4bit", "LinearNF4"),
    *("CODE", "_NF4_QUANT_TABLE"),
)
READS = ("LOAD_GLOBAL", "LOAD_NAME")  # instructions that look a global name up


def _several(result, count, call):
    """`result` as a list, once it has the right number of parts."""
    if not isinstance(result, tuple | list) or len(result) != count:
        raise TypeError(f"{call} has to return {count} things; it gave {type(result).__name__}")
    return list(result)


def absmax_round_trip(absmax_quantize, absmax_dequantize, x, bits):
    """`[q, scale, x again, the input afterwards]`."""
    q, scale = _several(absmax_quantize(x, bits), 2, "absmax_quantize")
    return [q, scale, absmax_dequantize(q, scale), x]


def codebook(nf4_codebook):
    """The codebook, and numbers and names that its code holds, to tell a table from a formula."""
    numbers, names = _written(nf4_codebook, set())
    return {"values": nf4_codebook(), "numbers": numbers, "names": sorted(names & set(TABLES))}


def _written(function, seen):
    """Numbers written in a function, its globals and the functions that it calls; names used."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    numbers, names, read, codes = [], set(), set(), [code] if code else []
    numbers += _numbers([getattr(function, "__defaults__", None) or ()])
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if hasattr(c, "co_consts")]
        numbers += _numbers(c for c in code.co_consts if c is not function.__doc__)
        names |= {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
        read |= {i.argval for i in dis.get_instructions(code) if i.opname in READS}
    for name in read - seen:  # not the names of attributes, such as `values` in x.sort().values
        thing = getattr(function, "__globals__", {}).get(name)
        seen.add(name)
        names.add(getattr(thing, "__name__", name))  # whatever it is called here
        if callable(thing) and getattr(thing, "__module__", "") == function.__module__:
            more, others = _written(thing, seen)
            numbers, names = numbers + more, names | others
        numbers += _numbers([thing])
    return numbers, names


def _numbers(things):
    """The floats in `things`, in text too, and long integers as what follows the point."""
    found = []
    for thing in things:
        if type(thing) is float:
            found.append(thing)
        elif type(thing) is int and abs(thing) > 999:
            found.append(thing / 10 ** len(str(abs(thing))))
        elif isinstance(thing, str):
            found += map(float, re.findall(r"-?\d*\.\d+", thing))
        elif isinstance(thing, tuple | list):
            found += _numbers(thing)
        elif isinstance(thing, dict):
            found += _numbers(thing.values())
        elif isinstance(thing, torch.Tensor) and thing.numel() <= 64:
            found += thing.flatten().tolist()
        elif type(thing).__module__ == "numpy" and getattr(thing, "size", 99) <= 64:
            found += _numbers(thing.reshape(-1).tolist())
    return found


def blockwise(quantize_blockwise, w, codebook, block):
    """`[codes, absmax]`; `block` None leaves the default."""
    size = () if block is None else (block,)
    return _several(quantize_blockwise(w, codebook, *size), 2, "quantize_blockwise")


def quantized(quantize_blockwise, w, codebook, block):
    """`[codes, absmax, w afterwards]`."""
    return [*blockwise(quantize_blockwise, w, codebook, block), w]


def dequantized(dequantize_blockwise, codes, absmax, codebook, shape):
    """`dequantize_blockwise` of uint8 codes, and of a shape as `w.shape` is."""
    return dequantize_blockwise(codes.to(torch.uint8), absmax, codebook, torch.Size(shape))


def blockwise_round_trip(quantize_blockwise, dequantize_blockwise, w, codebook):
    """`w` quantized in blocks of 64 and dequantized."""
    codes, absmax = blockwise(quantize_blockwise, w, codebook, None)
    return dequantize_blockwise(codes, absmax, codebook, w.shape)


def doubled(double_quantize, absmax, block):
    """`[q, scale, offset]`; `block` None leaves the default."""
    size = () if block is None else (block,)
    return _several(double_quantize(absmax, *size), 3, "double_quantize")


def config_fields(qlora_config, device):
    """The fields of the BitsAndBytesConfig as data, made as on a machine with that device."""
    from transformers import BitsAndBytesConfig

    with _hardware(device):
        config = qlora_config(device)
    if not isinstance(config, BitsAndBytesConfig):
        return {"is": type(config).__name__}
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS}
    return fields | {"bnb_4bit_compute_dtype": str(config.bnb_4bit_compute_dtype)}


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
    """A Llama of one layer, saved and loaded, in 4-bit when `packed`, with LoRA when `adapted`.

    `vocab` and `mlp` are its vocabulary and the width of its MLP.
    """
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": vocab, "hidden_size": 32, "intermediate_size": mlp}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    size["num_hidden_layers"] = 1
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        LlamaForCausalLM(LlamaConfig(**size, **heads, tie_word_embeddings=tied)).save_pretrained(
            folder
        )
        config = BitsAndBytesConfig(**how) if packed else None
        model = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map={"": "cpu"}
        )
    if not adapted:
        return model
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def counted(true_param_count, *kind):
    """`true_param_count` of the tiny Llama of that kind and size."""
    return true_param_count(tiny_llama(*kind))
