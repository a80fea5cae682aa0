"""Probes for lab 4."""

import gc

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from labkit.contract import kind
from labkit.probes import how, watch


def form(got):
    """Describe a result in words: its kind and how many numbers it has."""
    if got is None:
        return "None (is `return` missing?)"
    if not isinstance(got, torch.Tensor | np.ndarray):
        return kind(got)
    dtype = str(got.dtype).removeprefix("torch.")
    wide = {"float32": "floats", "float64": "floats"}
    whole = dtype.strip("<>=0123456789") in ("int", "uint", "i", "u")
    words = "integers" if whole else wide.get(dtype, f"{dtype} numbers")
    array, n = "a tensor", int(np.prod(got.shape))
    array = array if isinstance(got, torch.Tensor) else "a NumPy array"
    return f"{array} of {n} {words[: -1 if n == 1 else None]}"


def numbers(name, got, flat=True):
    """A result's form and its numbers as floats, flattened if the shape doesn't matter."""
    plain = isinstance(got, np.ndarray) or getattr(got, "is_quantized", True) is False
    values = {name: 1.0 * (got.reshape(-1) if flat else got)} if plain else {}
    return {f"the form of {name}": form(got)} | values


def _results(got, *names, flat=True):
    if not isinstance(got, tuple | list) or len(got) != len(names):
        size = f" of {len(got)}" if isinstance(got, tuple | list) else ""
        return {"the return value": f"{form(got)}{size}"}
    facts = {"the return value": f"a tuple of {len(names)}"}
    for name, one in zip(names, got, strict=True):
        facts |= numbers(name, one, flat)
    return facts


def round_trip(absmax_quantize, absmax_dequantize, x, bits):
    """q, the form of the scale, and the dequantized numbers."""
    with how.nan_watched() as watched:
        result = absmax_quantize(x, bits)
    facts = _results(result, "q", "scale", flat=False)
    if len(facts) == 1:
        return facts
    facts["the form of q"] = facts["the form of q"].replace("a NumPy array", "a tensor")
    one = getattr(result[1], "shape", ()) in ((), (1,))
    facts["scale"] = "one number" if one else facts["the form of scale"]
    return facts | watched | numbers("what comes back", absmax_dequantize(*result), flat=False)


def codebook(nf4_codebook):
    """The values and whether they were computed; only the counts if the counts are wrong."""
    values = nf4_codebook()
    words = form(values)
    if not isinstance(values, torch.Tensor) or "floats" not in words:
        return {"the result": words}
    below, above = int((values < -1e-5).sum()), int((values > 1e-5).sum())
    counts = f"{below} below zero, {values.numel() - below - above} at zero, {above} above"
    facts = {"the result": "a tensor of floats", "the counts": counts}
    if counts != "7 below zero, 1 at zero, 8 above":
        return facts
    facts["the order"] = "ascending" if bool((values.diff() >= 0).all()) else "mixed"
    return facts | {"the codebook": values, "the values": how.origin(nf4_codebook, values)}


def quantized(quantize_blockwise, w, codebook, *block):
    """Codes and absmax; a first block of zeros may have any codes, so its codes are left out."""
    with how.nan_watched() as watched:
        result = quantize_blockwise(w, codebook, *block)
    facts = _results(result, "codes", "absmax") | watched
    if not w.flatten()[:64].any() and "codes" in facts:
        zeros, facts["codes"] = facts["codes"][:64], facts["codes"][64:]
        facts["the absmax of the zeros"] = f"{float(facts['absmax'][0]):g}"
        if (zeros == codebook.abs().argmin()).all():
            facts["0 / 0"] = "avoided"
    return facts


def dequantized(dequantize_blockwise, codes, absmax, codebook, shape, *block):
    """The weights that `dequantize_blockwise` computes from uint8 codes."""
    codes, shape = codes.to(torch.uint8), torch.Size(shape)
    got = dequantize_blockwise(codes, absmax, codebook, shape, *block)
    return numbers("the result", got, flat=False)


def there_and_back(quantize_blockwise, dequantize_blockwise, w, codebook, *block):
    """`w` after quantizing and dequantizing."""
    codes, absmax = quantize_blockwise(w, codebook, *block)
    return {"the result": dequantize_blockwise(codes, absmax, codebook, w.shape, *block)}


def packed(pack_nibbles, codes):
    """The packed bytes, without the padding in the last byte."""
    got = pack_nibbles(codes)
    facts = numbers("the result", got)
    facts["the dtype"] = str(getattr(got, "dtype", "")).removeprefix("torch.")
    if len(codes) % 2 and facts["the dtype"] == "uint8" and got.numel():
        facts["the result"][-1] -= facts["the result"][-1] % 16
    return facts


def unpacked(unpack_nibbles, packed):
    """The unpacked codes."""
    return numbers("the result", unpack_nibbles(packed))


def doubled(double_quantize, absmax, *group):
    """q, scale and offset from `double_quantize`."""
    with how.nan_watched() as watched:
        result = double_quantize(absmax, *group)
    facts = _results(result, "q", "scale", "offset") | watched
    if len(facts) > 2:
        if isinstance(result[1], torch.Tensor) and result[1].isnan().any():
            facts["0 / 0"] = how.NAN
        one = getattr(result[2], "shape", ()) in ((), (1,))
        if one:
            facts |= {"the form of offset": "one number", "offset": float(result[2])}
    return facts


def largest(double_quantize, absmax):
    """The approximate largest integer for tiny scales, which a guard against 0 reduces."""
    q = doubled(double_quantize, absmax)["q"]
    return {"the largest q": "about 127" if q.abs().max() > 90 else "far below"}


def trained(QLoRALinear, data, x, dY):
    """A layer's tensors, the output of all layers in sequence, and the gradients."""
    layers = [_layer(QLoRALinear, *one) for one in data]
    names = {id(getattr(layers[0], name, None)): name for name in "AB"}
    every = {names.get(id(p), n): p.requires_grad for n, p in layers[0].named_parameters()}
    modules = [(name, v) for m in layers[0].modules() for name, v in vars(m).items()]
    facts = {
        "the parameters that train": sorted(name for name, trains in every.items() if trains),
        "the parameters": sorted(every),
        "A and B": _pair(layers, data),
        "the tensors without register_buffer": sorted(n for n, v in modules if _loose(n, v)),
    }
    held = sum(b.nbytes for b in layers[0].buffers())  # packed codes take half a byte each
    room = data[0][0].numel() / 2 + data[0][1].nbytes
    facts["the tensors in buffers"] = "codes and scales" if held >= room else "fewer"
    y = x
    for layer in layers:
        y = layer(y)
    (y * dY).sum().backward()
    facts |= {"the output": y.detach()} | ({"the gradient of x": x.grad} if x.requires_grad else {})
    for i, layer in enumerate(layers):
        of = f" in layer {i + 1}" if len(layers) > 1 else ""
        facts |= {f"the gradient of {name}{of}": getattr(layer, name).grad for name in "AB"}
    return facts


def _layer(QLoRALinear, codes, absmax, codebook, shape, *rest):
    """Make a layer; its shape becomes a torch.Size again, like `W.shape`."""
    return QLoRALinear(codes, absmax, codebook, torch.Size(shape), *rest)


def _pair(layers, data):
    """Whether the layers' A and B are the given tensors."""
    for layer, (*_, A, B, _) in zip(layers, data, strict=True):
        for own, given in ((getattr(layer, "A", None), A), (getattr(layer, "B", None), B)):
            if not isinstance(own, torch.Tensor) or not torch.equal(own.detach(), given):
                return "new ones"
    return "those that __init__ receives"


def _loose(name, value):
    """Whether an attribute has tensors that are not registered with the module."""
    values = list(value.values()) if isinstance(value, dict) else value
    values = values if isinstance(values, list | tuple) else [values]
    own = name in ("_parameters", "_buffers", "_modules")
    return not own and any(isinstance(v, torch.Tensor) for v in values)


class _Storages(watch.Watch):
    """Weak references to the memory of all tensors in operations, except known tensors."""

    def __init__(self, *known):
        super().__init__()
        self.known, self.found, self.products = {_address(t) for t in known}, {}, set()

    def seen(self, function, args, kwargs, out):
        given = [_address(tensor) for tensor in watch.tensors((args, kwargs))]
        product = function.overloadpacket.__name__ in ("mm", "bmm", "addmm")
        if product or self.products & {*given}:  # B @ A, and tensors computed from it
            self.products |= {_address(t) for t in watch.tensors(out)} - {*given}
        for tensor in watch.tensors((args, kwargs, out)):
            storage = tensor.untyped_storage()
            if _address(tensor) not in self.known:
                self.found[_address(tensor)] = StorageWeakRef(storage), storage.nbytes()

    def left(self):
        """The bytes still in memory, for matrix products (True) and for other tensors."""
        sizes = {True: 0, False: 0}
        for key, (reference, size) in self.found.items():
            sizes[key in self.products] += 0 if reference.expired() else size
        return sizes


def _address(tensor):
    return tensor.untyped_storage()._cdata


def memory(QLoRALinear, codes, absmax, codebook, shape, A, B, alpha, x):
    """Whether anything as large as W stays in memory after forward, and why."""
    limit = 2 * codes.numel()  # bytes per number: W 4, in 16 bits 2, a copy of the codes 1
    with _Storages(codes, absmax, codebook, A, B, x) as seen:
        layer = _layer(QLoRALinear, codes, absmax, codebook, shape, A, B, alpha)
        y = layer(x.requires_grad_())
    if max(seen.left().values()) >= limit:
        gc.collect()
    sizes, left = seen.left(), []
    del y
    if max(sizes.values()) >= limit:
        what = "a tensor" if sizes[False] >= limit else "a matrix product"
        where = "kept for backward" if max(seen.left().values()) < limit else "stored in the layer"
        left = [f"{what} as large as W, {where}"]
    return {"the memory after forward": left}


def bytes_of(training_bytes, *data):
    """The sizes in GB as floats, from any kind of number."""
    got = training_bytes(*data)
    facts = {"the return value": form(got)}
    if isinstance(got, dict):
        facts["its keys"] = [k for k in ("weights", "gradients", "optimizer") if k in got]
        facts |= {f"{name}, in GB,": _billions(got[name]) for name in facts["its keys"]}
    return facts


def _billions(value):
    one = isinstance(value, torch.Tensor) and value.numel() == 1
    return float(value) / 1e9 if one or isinstance(value, int | float | np.number) else value
