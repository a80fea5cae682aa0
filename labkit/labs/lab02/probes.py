"""What runs beside the learner's code in lab 2, and brings plain data back to its checks."""

import dis
import math
import tracemalloc
from contextlib import ExitStack
from unittest import mock

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from labkit.contract import kept

EXTRA = "no.such.layer.A"
DECOY = "1.1.A"  # no A of a LoRA layer
ADAPTED = ("0.0", "0.2", "1.0")  # the adapted layers of `_adapted`
ENGINE = [(torch.autograd, "_engine_run_backward"), (forward_ad, "enter_dual_level")]


class _Work(TorchDispatchMode):
    """Counts operations, and keeps the tensors of `size` numbers or more that they make."""

    def __init__(self, inputs, size):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in inputs}
        self.size, self.calls, self.large = size, 0, []

    @classmethod
    def _should_skip_dynamo(cls):
        """Not: to skip its compiler torch would import it first, which takes seconds."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        out = function(*args, **(kwargs or {}))
        for t in tree_flatten(out)[0]:
            large = isinstance(t, torch.Tensor) and t.numel() >= self.size
            if large and t.untyped_storage().data_ptr() not in self.known:
                self.large.append(t.detach())
        return out


def kind(f, *data):
    """The name of the kind of what `f(*data)` returns: Tensor, ndarray, …"""
    return type(f(*data)).__name__


def forward_work(f, x, W, A, B, alpha):
    """What `f(x, W, A, B, alpha)` makes that is as large as W: see `_named`, and "" for nothing.

    Arrays of NumPy and lists count by their bytes / 4; views don't count.
    """
    with _Work([x, W, A, B], W.numel()) as work:
        f(x, W, A, B, alpha)
    if not work.large and _allocated(f, x, W, A, B, alpha) // 4 >= W.numel():
        return "a thing"
    return _named(work.large, W, A, B)


def _named(large, W, A, B):
    """What the first of the large tensors is: "B @ A", "a copy of W", or "a tensor"."""
    told = ""
    for t in large:
        for M in (t, t.mT) if t.ndim == 2 else ():
            rows, columns = (min(pair) for pair in zip(M.shape, W.shape, strict=True))
            if (rows, columns) == W.shape and _multiple(M[:rows, :columns], W):
                return "a copy of W"
            if M.shape == W.shape and (_multiple(M, B @ A) or _multiple(M - W, B @ A)):
                return "B @ A"
        told = "a tensor"
    return told


def _multiple(M, of):
    """Whether the matrix M is a multiple of another one, to rounding."""
    M, of = M.detach().double(), of.detach().double()
    factor = (M * of).sum() / (of * of).sum()
    return bool(factor and (M - factor * of).norm() < 1e-2 * M.norm())


def _allocated(f, *data):
    """The most bytes that Python and NumPy hold at once for `f(*data)`; torch's are not seen."""
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        f(*data)
        return tracemalloc.get_traced_memory()[1] - held
    finally:
        if started:
            tracemalloc.stop()


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


def _layer(LoRALinear, W, bias, r, alpha, A=None, B=None, dropout=0.0, dtype=torch.float32):
    layer = LoRALinear(_base(W, bias, dtype), r, alpha, dropout)
    if A is not None:
        with torch.no_grad():
            layer.A.copy_(A)
            layer.B.copy_(B)
    return layer


def new_layer(LoRALinear, W, bias, r, alpha, x):
    """A fresh layer as data: A of two layers, B, scaling, r, flags of its parameters, output.

    `same` says that its base is the very module it was given, `own` that this has the Parameter it
    had, `W` and `bias` what it holds.
    """
    base = _base(W, bias)
    weight = base.weight
    first, second = LoRALinear(base, r, alpha, 0.0), _layer(LoRALinear, W, bias, r, alpha)
    for name in ("A", "B"):
        if isinstance(getattr(first, name), nn.Module):
            raise TypeError(f"{name} is a module, wanted an nn.Parameter")
    names = {id(first.A): "A", id(first.B): "B"}  # whatever the module calls them
    flags = {names.get(id(p), name): p.requires_grad for name, p in first.named_parameters()}
    shapes = [getattr(M, "shape", None) for M in (first.A, first.B)]
    fits = shapes == [(r, W.shape[1]), (W.shape[0], r)]
    y = first(x) if fits else None  # shapes are told first, not what they make fail
    numbers = {"r": first.r, "scaling": first.scaling, "flags": flags, "y": y}
    kept = {"same": first.base is base, "own": base.weight is weight}
    kept |= {"W": base.weight, "bias": base.bias}
    return numbers | kept | {"A": first.A, "A2": second.A, "B": first.B}


def layer_work(LoRALinear, W, bias, r, alpha, A, B, x):
    """What `layer(x)` makes that is as large as W, named, and how many operations it takes."""
    layer = _layer(LoRALinear, W, bias, r, alpha, A, B)
    inputs = [x, layer.A, layer.B, layer.base.weight, layer.base.bias]
    with _Work(inputs, W.numel()) as work:
        layer(x)
    return [_named(work.large, W, A, B), work.calls]


def layer_output(LoRALinear, W, bias, r, alpha, A, B, dropout, training, x, merged=False):
    """`layer(x)` with the given A and B, in training or evaluation mode; x and W afterwards."""
    layer = _layer(LoRALinear, W, bias, r, alpha, A, B, dropout).train(training)
    if merged:
        layer.merged = True
    return {"y": layer(x), "x": x, "W": layer.base.weight}


def merged_flag(LoRALinear, W, r, alpha):
    """The flag `merged` of a fresh layer; None where there is none."""
    flag = getattr(_layer(LoRALinear, W, None, r, alpha), "merged", None)
    return flag if isinstance(flag, bool) else None


def input_gradient(LoRALinear, W, bias, r, alpha, A, B, x):
    """The gradient of the sum of squares of `layer(x)` with respect to x."""
    y = _layer(LoRALinear, W, bias, r, alpha, A, B)(x.requires_grad_())
    if y.requires_grad:
        y.square().sum().backward()
    return x.grad


def by_hand(f, x, W, A, B, alpha, dY):
    """What `f` returns and the operations it took; or the word autograd if it takes gradients."""
    with ExitStack() as stack:
        for owner, name in ENGINE:
            refuse = mock.Mock(side_effect=_Used(name))
            stack.enter_context(mock.patch.object(owner, name, refuse))
        try:
            with _Work([], math.inf) as work:
                return [f(x, W, A, B, alpha, dY), work.calls]
        except _Used:
            return "autograd"


class _Used(BaseException):
    """Autograd was called."""


def layer_kinds(LoRALinear, W, bias, r, alpha):
    """`[dtype of A, of B]` over a bf16 base, and their devices over a base on meta."""
    layer = _layer(LoRALinear, W, bias, r, alpha, dtype=torch.bfloat16)
    kinds = [str(t.dtype).removeprefix("torch.") for t in (layer.A, layer.B)]
    try:
        apart = LoRALinear(nn.Linear(4, 4, device="meta"), 2, 4)
    except RuntimeError as error:
        if "incompatible tensor type" not in str(error):
            raise
        return [*kinds, "meta", "meta"]  # it moves .data, which works for any device but this one
    return [*kinds, apart.A.device.type, apart.B.device.type]


def layer_output_kind(LoRALinear, W, bias, r, alpha):
    """The dtype of the output over a bf16 base, and what is made there that is as large as W."""
    layer = _layer(LoRALinear, W, bias, r, alpha, dtype=torch.bfloat16)
    inputs = [layer.A, layer.B, layer.base.weight, layer.base.bias]
    with _Work(inputs, W.numel()) as work:
        y = layer(torch.ones(1, W.shape[1], dtype=torch.bfloat16))
    return [str(y.dtype).removeprefix("torch."), _named(work.large, W, layer.A, layer.B)]


def layer_after_step(LoRALinear, W, bias, r, alpha, A, B, x):
    """The base weight and bias, A and B after one SGD step on every trainable parameter."""
    layer = _layer(LoRALinear, W, bias, r, alpha, A, B)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    layer(x).square().mean().backward()
    optimizer.step()
    return {"W": layer.base.weight, "bias": layer.base.bias, "A": layer.A, "B": layer.B}


class _Attention(nn.Module):
    """Names that invite a mistake: `kq_proj` only ends like `q_proj`, and a norm has an A."""

    def __init__(self, d):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "kq_proj"):
            setattr(self, name, nn.Linear(d, d, bias=name != "v_proj"))
        self.normA = nn.LayerNorm(d)

    def forward(self, x):
        y = self.q_proj(x) * self.k_proj(x) + self.kq_proj(x)
        return self.normA(self.v_proj(y.tanh()))


class _Model(nn.Module):
    """Two attention blocks, projections outside of them, and an embedding tied to the head.

    One module is no nn.Linear and bears the name of one.
    """

    def __init__(self, d=8, vocab=11):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": _Attention(d)}) for _ in range(2))
        for name in ("out_proj", "proj", "out_proj_2"):
            setattr(self, name, nn.Linear(d, d))
        self.rest = nn.ModuleDict({"down_proj": nn.Identity()})
        self.head = nn.Linear(d, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.rest["down_proj"](self.embed(ids))
        for layer in self.layers:
            x = x + layer["attn"](x)
        x = x + self.out_proj(x) + self.out_proj_2(self.proj(x).tanh())
        return self.head(x)


def injected(inject, targets, r, alpha, weights, factors):
    """What `inject` does to a small model with these weights: count, adapted modules, flags, and
    its outputs before, after, and with `factors` {name: (A, B)} in place of the fresh A and B.

    `gone` are parameters that are no longer in it; `modes` tells whether training modes stayed.
    """
    model, ids = small_model(weights), torch.arange(11)
    model.layers[1].eval()
    y, before = [model(ids)], dict(model.named_parameters())
    modes = {name: m.training for name, m in model.named_modules()}
    count = inject(model, targets, r, alpha)
    if isinstance(count, nn.Module):
        count = "a model"
    adapted = {n: m for n, m in model.named_modules() if hasattr(m, "A") and hasattr(m, "B")}
    adapted = {n: m for n, m in adapted.items() if model.get_submodule(n) is m}  # not a dotted key
    shapes = {n: list(m.A.shape) for n, m in adapted.items()}
    names = {id(getattr(m, part)): f"{n}.{part}" for n, m in adapted.items() for part in "AB"}
    flags = {names.get(id(p), n): p.requires_grad for n, p in model.named_parameters()}
    here = {id(p) for p in model.parameters()}
    gone = [name for name, p in before.items() if id(p) not in here]
    named = [(n, m) for n, m in model.named_modules() if n in modes]
    same = {n: m.training == modes[n] for n, m in named if model.get_submodule(n) is m}
    y.append(model(ids))
    for name in factors.keys() & shapes.keys():
        layer = adapted[name]
        if layer.A.shape == factors[name][0].shape:
            layer.A.data, layer.B.data = factors[name]
    return {
        "count": count,
        "shapes": shapes,
        "flags": flags,
        "gone": gone,
        "modes": all(same[n] for n in same if n not in shapes),
        "y": [*y, model(ids)],
    }


def kinds_after(inject, targets, weights):
    """The dtypes of a bf16 model's own weights after `inject`, and of A and B where it put them."""
    model = small_model(weights, torch.bfloat16)
    own = list(model.parameters())
    inject(model, targets, 2, 4)
    return sorted({str(p.dtype).removeprefix("torch.") for p in own})


def small_model(weights, dtype=torch.float32):
    """The small model with these weights {name: tensor}; the tied head comes with the embedding."""
    vocab, d = weights["embed.weight"].shape
    model = _Model(d, vocab).to(dtype)
    model.rest["scale"] = _Decoy(1).to(dtype)  # its A has to be frozen, too
    model.load_state_dict(weights, strict=False)
    return model


def partly_frozen(d, vocab):
    """A small model, of which the norms train and the embedding, which is tied to the head."""
    model = _Model(d, vocab)
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name or "embed" in name)
    return model


def counted(count_params, d, vocab):
    """`count_params` of the small model."""
    return kept(count_params, partly_frozen(d, vocab))


def counted_smollm2(count_params, r):
    """`count_params` of SmolLM2-135M's shapes with A and B on q and v, the rest frozen.

    Not by PEFT, which looks at every module many times: this is asked for each submission. The
    memory is never written, so it costs nothing; on the meta device all tensors would have one
    address, and whoever tells tensors apart by `data_ptr()` would be wrong.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True))
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            room = torch.empty(p.shape, dtype=torch.bfloat16)
            setattr(module, name, nn.Parameter(room, requires_grad=False))
    model.lm_head.weight = model.model.embed_tokens.weight
    for layer in model.model.layers:
        for base in (layer.self_attn.q_proj, layer.self_attn.v_proj):
            base.A = nn.Parameter(torch.empty(r, base.in_features))
            base.B = nn.Parameter(torch.empty(base.out_features, r))
    return count_params(model)


def merging(merge_, unmerge_, LoRALinear, W, bias, r, alpha, A, B, x):
    """Weight and output: at first, unmerged, merged, merged again, unmerged, unmerged again; the
    same with twice the A; and what else of the layer is as it was."""
    layer = _layer(LoRALinear, W, bias, r, alpha, A, B).eval()
    weight, seen = layer.base.weight, {"start": [layer.base.weight.clone(), layer(x)]}
    seen |= {"same": True, "mode": True, "parts": True}

    def go(name, act):
        parts = [layer.A.detach().clone(), layer.B.detach().clone()]
        modes = [m.training for m in layer.modules()]
        act(layer)
        seen["mode"] &= modes == [m.training for m in layer.modules()]
        seen["parts"] &= all(map(torch.equal, parts, (layer.A, layer.B)))
        seen[name] = [layer.base.weight.clone(), layer(x)]
        seen["same"] &= layer.base.weight is weight

    try:
        go("fresh", unmerge_)
    except Exception as error:
        if error.args:
            error.args = (f"{error.args[0]}; unmerge_ of a layer never merged must do nothing",)
        raise
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


def merged_kind(merge_, unmerge_, LoRALinear, W, r, alpha):
    """The dtype of a bf16 base's weight after a merge, and after unmerging it."""
    layer = _layer(LoRALinear, W, None, r, alpha, dtype=torch.bfloat16)
    kinds = []
    for act in (merge_, unmerge_):
        act(layer)
        kinds.append(str(layer.base.weight.dtype).removeprefix("torch."))
    return kinds


def _trained(A, B, x):
    """A and B after a step of gradient descent on the mean square of `x A' B'`.

    Without it the state would be what the check sends, and an echo would be right.
    """
    with torch.enable_grad():
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        dA, dB = torch.autograd.grad((x @ A.T @ B.T).square().mean(), (A, B))
    return (A - 0.1 * dA).detach(), (B - 0.1 * dB).detach()


class _Decoy(nn.Module):
    """No LoRA layer, with a parameter A that trains."""

    def __init__(self, size):
        super().__init__()
        self.A = nn.Parameter(torch.ones(size, size))


def _adapted(LoRALinear, A, B, x):
    """A nested model with the layers ADAPTED, a plain one, a decoy; A and B a step from these."""
    r, square = A.shape
    inner = nn.Sequential(*(nn.Linear(square, square) for _ in range(3)))
    model = nn.Sequential(inner, nn.Sequential(nn.Linear(square, square), _Decoy(square)))
    for i, name in enumerate(ADAPTED):
        layer = LoRALinear(model.get_submodule(name), r, 4)
        model.set_submodule(name, layer)
        with torch.no_grad():
            for part, data in zip((layer.A, layer.B), _trained(A + i, B - i, x), strict=True):
                part.copy_(data)
    return model


def state(adapter_state, LoRALinear, A, B, x):
    """The state of a model with adapted layers."""
    return kept(adapter_state, _adapted(LoRALinear, A, B, x))


def round_trip(adapter_state, load_adapter_, LoRALinear, A, B, x):
    """A and B of a model (others before) that loads the state of another, which then changes.

    `data` has them by name; `same` the names of the parameters that are still the same objects;
    `trains` of those that train; `others` the parts of the model besides that are not as before.
    """
    other = _adapted(LoRALinear, A * 0, B * 0, x).eval()
    before, state = _parts(other), adapter_state(_adapted(LoRALinear, A, B, x))
    beside = _beside(other)
    kept(lambda state: load_adapter_(other, state), state)
    with torch.no_grad():
        for tensor in state.values():
            tensor += 1
    after = _parts(other)
    now = _beside(other)
    return {
        "data": after,
        "same": [name for name in before if before[name] is after[name]],
        "trains": [name for name, p in after.items() if p.requires_grad],
        "others": [name for name in beside if not torch.equal(beside[name], now[name])],
        "training": other.training,
    }


def _parts(model):
    return {f"{n}.{k}": getattr(model.get_submodule(n), k) for n in ADAPTED for k in "AB"}


def _beside(model):
    """Copies of all parameters but A and B."""
    parts = {id(p) for p in _parts(model).values()}
    return {n: p.detach().clone() for n, p in model.named_parameters() if id(p) not in parts}


def load_error(adapter_state, load_adapter_, LoRALinear, A, B, x, change, which):
    """`[kind and text of load_adapter_'s error, whether A and B are as before]`; None without one.

    The state has one key too many, lacks that of number `which`, or has there a tensor turned, or
    one column of it alone.
    """
    model, other = (_adapted(LoRALinear, M, B, x) for M in (A, A + 1))
    before = {name: part.detach().clone() for name, part in _parts(model).items()}
    state = dict(adapter_state(other))
    name = list(state)[which]
    if change == "extra":
        state[EXTRA] = A
    elif change == "missing":
        del state[name]
    else:
        turned = state[name].detach().T.contiguous()
        state[name] = turned if change == "turned" else state[name].detach()[:, :1]
    try:
        load_adapter_(model, state)
    except NotImplementedError:
        raise
    except Exception as error:
        kept = all(torch.equal(part, before[name]) for name, part in _parts(model).items())
        return [[k.__name__ for k in type(error).__mro__], str(error), kept]
    return None
