"""What runs beside the learner's code in lab 2, and brings plain data back to its checks."""

import dis
import math
from contextlib import ExitStack
from unittest import mock

import torch
from torch import nn
from torch.autograd import forward_ad

from labkit.labs.lab02.work import Work, allocated, named

ENGINE = [(torch.autograd, "_engine_run_backward"), (forward_ad, "enter_dual_level")]


def kind(f, *data):
    """The name of the kind of what `f(*data)` returns: Tensor, ndarray, …"""
    return type(f(*data)).__name__


def forward_work(f, x, W, A, B, alpha):
    """What `f(x, W, A, B, alpha)` makes that is as large as W: see `named`, and "" for nothing.

    Arrays of NumPy and lists count by their bytes / 4; views don't count.
    """
    with Work([x, W, A, B], W.numel()) as work:
        f(x, W, A, B, alpha)
    if not work.large and allocated(f, x, W, A, B, alpha) // 4 >= W.numel():
        return "a thing"
    return named(work.large, W, A, B)


def global_names(f):
    """The names that a function looks up outside of itself."""
    code = getattr(f, "__code__", None)
    found = dis.get_instructions(code) if code else ()
    return [i.argval for i in found if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]


def _base(W, bias, dtype=torch.float32):
    linear = nn.Linear(W.shape[1], W.shape[0], bias=bias is not None, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(W)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def _layer(LoRALinear, given):
    """The learner's layer with the numbers `given`, [W, bias, A, B, alpha]."""
    _, _, A, B, _ = given
    layer = _fresh(LoRALinear, given)
    with torch.no_grad():
        layer.A.copy_(A)
        layer.B.copy_(B)
    return layer


def _fresh(LoRALinear, given, dtype=torch.float32):
    """As `_layer`, with the A and B that it has at first."""
    W, bias, A, _, alpha = given
    return LoRALinear(_base(W, bias, dtype), len(A), alpha)


def new_layer(LoRALinear, given, x):
    """A fresh layer as data: A of two layers, B, scaling, r, flags of its parameters, output.

    `same` says that its base is the very module it was given, `own` that this has the Parameter it
    had, `held` that it is a part of the layer, `W` and `bias` what it holds; `set` are names that
    it and its weight have as attributes, and "eval" where it is in that mode.
    """
    W, bias, A, B, alpha = given
    base = _base(W, bias)
    weight = base.weight
    first, second = LoRALinear(base, len(A), alpha), _fresh(LoRALinear, given)
    for name in ("A", "B"):
        if isinstance(getattr(first, name), nn.Module):
            raise TypeError(f"{name} is a module, wanted an nn.Parameter")
    names = {id(first.A): "A", id(first.B): "B"}  # whatever the module calls them
    flags = {names.get(id(p), name): p.requires_grad for name, p in first.named_parameters()}
    fits = [getattr(M, "shape", None) for M in (first.A, first.B)] == [A.shape, B.shape]
    y = first(x) if fits else None  # shapes are told first, not what they make fail
    numbers = {"r": first.r, "scaling": first.scaling, "flags": flags, "y": y}
    kept = {"same": first.base is base, "own": base.weight is weight}
    kept["held"] = any(module is first.base for module in first.modules())
    kept |= {"W": base.weight, "bias": base.bias}
    kept["set"] = [*vars(base), *vars(weight), *["eval"] * (not base.training)]
    return numbers | kept | {"A": first.A, "A2": second.A, "B": first.B}


def layer_work(LoRALinear, given, x):
    """What `layer(x)` makes that is as large as W, named, and how many operations it takes."""
    W, _, A, B, _ = given
    layer = _layer(LoRALinear, given)
    inputs = [x, layer.A, layer.B, layer.base.weight, layer.base.bias]
    with Work(inputs, W.numel()) as work:
        layer(x)
    return [named(work.large, W, A, B), work.calls]


def layer_output(LoRALinear, given, x, training):
    """`layer(x)` with the given A and B, in training or evaluation mode; x and W afterwards."""
    layer = _layer(LoRALinear, given).train(training)
    return {"y": layer(x), "x": x, "W": layer.base.weight}


def input_gradient(LoRALinear, given, x):
    """The gradient of the sum of squares of `layer(x)` with respect to x."""
    y = _layer(LoRALinear, given)(x.requires_grad_())
    if y.requires_grad:
        y.square().sum().backward()
    return x.grad


class _Used(BaseException):
    """Autograd was called."""


def by_hand(f, x, W, A, B, alpha, dY):
    """What `f` returns and the operations it took; or the word autograd if it takes gradients."""
    with ExitStack() as stack:
        for owner, name in ENGINE:
            refuse = mock.Mock(side_effect=_Used(name))
            stack.enter_context(mock.patch.object(owner, name, refuse))
        try:
            with Work([], math.inf) as work:
                return [f(x, W, A, B, alpha, dY), work.calls]
        except _Used:
            return "autograd"


def layer_kinds(LoRALinear, given):
    """`[dtype of A, of B]` over a bf16 base, and their devices over a base on meta.

    Then which of them is no parameter of the layer, and over which base: "in bf16, A".
    """
    layer = _fresh(LoRALinear, given, dtype=torch.bfloat16)
    kinds = [str(t.dtype).removeprefix("torch.") for t in (layer.A, layer.B)]
    plain = [f"in bf16, {name}" for name in _unregistered(layer)]
    try:
        apart = LoRALinear(nn.Linear(4, 4, device="meta"), 2, 4)
    except RuntimeError as error:
        if "incompatible tensor type" not in str(error):
            raise
        kinds += ["meta", "meta"]  # it moves .data, which works for any device but this one
        return kinds, plain
    plain += [f"on another device, {name}" for name in _unregistered(apart)]
    return [*kinds, apart.A.device.type, apart.B.device.type], plain


def _unregistered(layer):
    """Which of A and B is none of the layer's parameters, whatever it calls them."""
    own = {id(p) for p in layer.parameters()}
    return [name for name in "AB" if id(getattr(layer, name)) not in own]


def layer_output_kind(LoRALinear, given):
    """The dtype of the output over a bf16 base, and what is made there that is as large as W."""
    W = given[0]
    layer = _fresh(LoRALinear, given, dtype=torch.bfloat16)
    inputs = [layer.A, layer.B, layer.base.weight, layer.base.bias]
    with Work(inputs, W.numel()) as work:
        y = layer(torch.ones(1, W.shape[1], dtype=torch.bfloat16))
    return [str(y.dtype).removeprefix("torch."), named(work.large, W, layer.A, layer.B)]


def layer_after_step(LoRALinear, given, x):
    """The base weight and bias, A and B after one SGD step on every trainable parameter."""
    layer = _layer(LoRALinear, given)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    y = layer(x)
    if y.requires_grad:
        y.square().mean().backward()
    optimizer.step()
    return {"W": layer.base.weight, "bias": layer.base.bias, "A": layer.A, "B": layer.B}


def _mergeable(layer):
    """The learner's layer, which now knows a flag `merged`, as the lab makes it."""

    class Mergeable(type(layer)):
        merged = False

        def forward(self, x):
            return self.base(x) if self.merged else super().forward(x)

    layer.__class__ = Mergeable
    return layer


def merging(merge_, unmerge_, LoRALinear, given, x):
    """Weight and output: at first, unmerged, merged, merged again, unmerged, unmerged again; the
    same with twice the A; whether the weight is the same Parameter; which function changed the
    mode, or which other parts, as text."""
    layer = _mergeable(_layer(LoRALinear, given)).eval()
    weight, seen = layer.base.weight, {"start": [layer.base.weight.clone(), layer(x)]}
    seen |= {"same": True, "mode": "", "parts": ""}

    def go(name, act):
        parts = [t.detach().clone() for t in (layer.A, layer.B, layer.base.bias)]
        modes = [m.training for m in layer.modules()]
        act(layer)
        own = "merge_" if act is merge_ else "unmerge_"
        if modes != [m.training for m in layer.modules()]:
            seen["mode"] = seen["mode"] or own
        kept = map(torch.equal, parts, (layer.A, layer.B, layer.base.bias))
        changed = [
            part for part, same in zip(("A", "B", "the bias"), kept, strict=True) if not same
        ]
        if changed:
            seen["parts"] = seen["parts"] or f"{own} changes {' and '.join(changed)}"
        seen[name] = [layer.base.weight.clone(), layer(x), bool(layer.merged)]
        seen["same"] &= layer.base.weight is weight

    try:
        go("fresh", unmerge_)
    except Exception as error:
        if error.args:
            error.args = (f"{error.args[0]}; unmerge_ of a layer never merged must do nothing",)
        raise
    seen["fresh merged"] = bool(layer.merged)
    layer.train()
    for name, act in (("once", merge_), ("twice", merge_), ("back", unmerge_), ("end", unmerge_)):
        go(name, act)
    seen["leaf"] = [layer.base.weight.is_leaf, layer.base.weight.requires_grad]
    y = layer(x)
    if y.requires_grad:
        y.square().sum().backward()
    seen["grads"] = [layer.A.grad, layer.B.grad]
    with torch.no_grad():
        layer.A.mul_(2)
    go("anew", merge_)
    go("undone", unmerge_)
    return seen


def merged_beside(merge_, unmerge_, LoRALinear, given):
    """Whether a second layer's weight changes when it is merged, and unmerged, after a first's."""
    one, other = (_layer(LoRALinear, given) for _ in range(2))
    other.__class__ = type(_mergeable(one))  # the layers of a model are of one class
    changes = []
    for act in (merge_, unmerge_):
        act(one)
        before = other.base.weight.clone()
        act(other)
        changes.append(not torch.equal(before, other.base.weight))
    return all(changes)


def merged_kind(merge_, unmerge_, LoRALinear, given):
    """The dtype of a bf16 base's weight after a merge, and after unmerging it."""
    layer = _mergeable(_fresh(LoRALinear, given, dtype=torch.bfloat16))
    kinds = []
    for act in (merge_, unmerge_):
        act(layer)
        kinds.append(str(layer.base.weight.dtype).removeprefix("torch."))
    return kinds
