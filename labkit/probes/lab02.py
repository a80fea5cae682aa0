"""Probes for lab 2."""

import contextlib
import functools

import torch
from torch import nn

from labkit.contract import kept, kind
from labkit.probes import models, watch
from labkit.probes.models import NAMES, adapted, parts, rest, small_model, step

SCALE = (0.005, 0.7)  # standard deviations of A that pass for "small" at d_in = 256


def forward_work(lora_forward, x, W, A, B, alpha):
    """The result's type, and the largest tensor (or NumPy array) made to compute it."""
    result = lora_forward(x, W, A, B, alpha)
    with watch.Work(W.numel(), x, W, A, B) as work:
        lora_forward(x, W, A, B, alpha)
    work.large |= watch.allocated(lora_forward, x, W, A, B, alpha) >= 4 * W.numel()
    return {"the result": kind(result)} | work.facts("lora_forward")


def by_hand(lora_gradients, x, W, A, B, alpha, dY):
    """dA and dB, how they were computed, and how much work the computation took."""
    try:
        with watch.no_autograd(), watch.Work(1 << 30) as work:
            got = lora_gradients(x, W, A, B, alpha, dY)
    except watch.Autograd:
        return {"the gradients": "computed by autograd"}
    several = isinstance(got, list | tuple)
    facts = {"the result": f"a tuple of {len(got)}" if several else kind(got)}
    facts |= {"the gradients": "computed by hand"} | work.pace()
    return facts | dict(zip(("dA", "dB"), got if several else (), strict=False))


def _base(W, bias=None, dtype=torch.float32):
    linear = nn.Linear(W.shape[1], W.shape[0], bias=bias is not None, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(W)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def _layer(LoRALinear, W, bias, A, B, alpha):
    layer = LoRALinear(_base(W, bias), len(A), alpha)
    with torch.no_grad():
        layer.A.copy_(A)
        layer.B.copy_(B)
    return layer


def new_layer(LoRALinear, W, bias, A, B, alpha, x):
    """Facts about a new layer: its parts, and the parameters that train."""
    base, another = _base(W, bias), _base(W, bias)
    weight = base.weight
    with watch.Filled():
        layer, other = LoRALinear(base, len(A), alpha), LoRALinear(another, len(A), alpha)
    types = {f"the type of {name}": type(getattr(layer, name)).__name__ for name in "AB"}
    if not isinstance(layer.A, torch.Tensor) or not isinstance(layer.B, torch.Tensor):
        return types
    names = {id(getattr(layer, name, None)): name for name in "AB"}
    trains = {names.get(id(p), n): p.requires_grad for n, p in layer.named_parameters()}
    own = base.weight is weight and any(m is base for m in layer.modules())
    unchanged = torch.equal(base.weight, W) and torch.equal(base.bias, bias)
    return types | {
        "layer.base": "the layer it was given" if layer.base is base and own else "another one",
        "the base layer's weights": "left as they were" if unchanged else "changed",
        "layer.r": layer.r,
        "layer.scaling": float(layer.scaling),
        "layer.merged": str(getattr(layer, "merged", "missing")),
        "the shape of A": str(tuple(layer.A.shape)),
        "the shape of B": str(tuple(layer.B.shape)),
        "A at the start": _start(layer.A, other.A),
        "B at the start": "all zeros" if not layer.B.any() else "random",
        "the parameters": sorted(trains),
        "the parameters that train": sorted(name for name, flag in trains.items() if flag),
        "the output": layer(x) if layer.A.shape == A.shape else None,
    }


def _start(A, other):
    std, mean = A.std().item(), A.mean().item()
    if not A.any():
        return "all zeros"
    if torch.equal(A, other):
        return "the same in every layer"
    small = SCALE[0] < std < SCALE[1] and abs(mean) < 0.3 * std
    size = "entries of about 1/sqrt(d_in)" if small else f"mean {mean:.1g} and std {std:.1g}"
    return f"random with {size}"


def layer_forward(LoRALinear, W, bias, A, B, alpha, x):
    """The layer's output in every mode, and what a training step changes."""
    layer = _layer(LoRALinear, W, bias, A, B, alpha)
    plain = _layer(LoRALinear, W, None, A, B, alpha)
    facts = {"the output": layer(x), "the output without a bias": plain(x)}
    facts["the output for one row of x"] = layer(x[0])
    facts["the output for x of shape (2, 3, d_in)"] = layer(x.view(2, 3, -1))
    facts["the output in eval()"] = layer.eval()(x)
    unchanged = torch.equal(layer.base.weight, W)
    layer.merged = True
    facts["the output while merged is True"] = layer(x)
    layer.merged = False
    x = x.clone().requires_grad_()
    layer.train()(x).square().sum().backward()
    facts["the gradient of x"] = x.grad
    unchanged = unchanged and torch.equal(layer.base.weight, W)
    facts["the base layer's weights"] = "left as they were" if unchanged else "changed"
    facts["what a training step changes"] = step(layer, x)
    fresh = _layer(LoRALinear, W, bias, A, 0 * B, alpha)
    facts["what the first training step of a new layer changes"] = step(fresh, x)
    with watch.Work(W.numel(), *layer.parameters()) as work:
        layer(x.detach())
    facts |= work.facts("forward")
    with watch.Work(W.numel()) as work:
        layer(x.detach().repeat(40, 1))
    return facts | work.pace()


def layer_in_bf16(LoRALinear, W, A, alpha):
    """The dtypes over a bf16 base, and the device over a base on the meta device."""
    layer = LoRALinear(_base(W, dtype=torch.bfloat16), len(A), alpha)
    inputs = list(layer.parameters())
    with watch.Work(W.numel(), *inputs) as work:
        y = layer(torch.ones(1, W.shape[1], dtype=torch.bfloat16))
    apart, places = layer, ["meta"]
    with contextlib.suppress(RuntimeError):  # moving .data can't leave the meta device
        apart = LoRALinear(nn.Linear(4, 4, device="meta"), 2, 4)
        places = sorted({p.device.type for p in (apart.A, apart.B)})
    ids = [set(map(id, one.parameters())) for one in (layer, apart)]
    owned = [n for n in "AB" if id(getattr(layer, n)) in ids[0] and id(getattr(apart, n)) in ids[1]]
    tensors = {"A": layer.A, "B": layer.B, "the output": y}
    facts = {f"the dtype of {n} with a bf16 base": str(t.dtype)[6:] for n, t in tensors.items()}
    facts |= work.facts("forward")
    return facts | {
        "the Parameters among A and B, with a bf16 base or on another device,": owned,
        "the device of A and B, for a base that is not on the CPU,": ", ".join(places),
    }


def merging(merge_, unmerge_, LoRALinear, W, bias, A, B, alpha, x):
    """base.weight, the output and the flag after each call, and what must not change."""
    layer = _layer(LoRALinear, W, bias, A, B, alpha).eval()
    weight, AB = layer.base.weight, (layer.A, layer.B)
    other = _layer(LoRALinear, W, bias, A, B, alpha)
    facts, changed = {}, set()

    def state():
        return rest(layer, weight, AB)

    def note(act, when):
        before = state()
        act(layer)
        changed.update(noun for noun, value in state().items() if value != before[noun])
        facts[f"base.weight after {when}"] = layer.base.weight.detach().clone()
        facts[f"the output after {when}"] = layer(x)

    note(unmerge_, "unmerge_ of a layer that was never merged")
    for act, when in ((merge_, "merge_"), (merge_, "a second merge_"), (unmerge_, "unmerge_")):
        note(act, when)
        layer.train(not layer.training)
    facts["layer.merged after unmerge_"] = bool(layer.merged)
    note(unmerge_, "a second unmerge_")
    y = layer(x)
    if y.requires_grad:
        y.square().sum().backward()
    facts |= {f"the gradient of {name} after unmerge_": getattr(layer, name).grad for name in "AB"}
    with torch.no_grad():
        layer.A.mul_(2)
    note(merge_, "another merge_ with a changed A")
    merge_(other)
    facts["another layer's base.weight after merge_"] = other.base.weight.detach().clone()
    unmerge_(other)
    note(unmerge_, "another unmerge_")
    for noun, (stayed, moved) in models.STATES.items():
        facts[noun] = moved if noun in changed else stayed
    half, kinds = LoRALinear(_base(W, dtype=torch.bfloat16), 2, 4), set()
    for act in (merge_, unmerge_):
        act(half)
        kinds.add(", ".join(str(p.dtype)[6:] for p in (half.base.weight, half.A, half.B)))
    return facts | {"the dtypes of W, A and B with a bf16 base": " or ".join(sorted(kinds))}


def injected(inject, targets, r, alpha, weights, factors):
    """What `inject` does to a small model; `factors` are the A and B to set, `{layer: (A, B)}`."""
    model, ids = small_model(weights), torch.arange(11)
    model.layers[1].eval()
    before = dict(model.named_parameters())
    modes = {name: module.training for name, module in model.named_modules()}
    count = inject(model, targets, r, alpha)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "A") and hasattr(m, "B")}
    layers.pop("rest.scale", None)  # the Decoy
    layers = {n: m for n, m in layers.items() if model.get_submodule(n) is m}  # no dotted child
    names = {id(getattr(m, part)): f"{n}.{part}" for n, m in layers.items() for part in "AB"}
    here = {id(p) for p in model.parameters()}
    trains = [names.get(id(p), n) for n, p in model.named_parameters() if p.requires_grad]
    ranks = sorted({len(m.A) for m in layers.values()})
    fresh = model(ids)
    with torch.no_grad():
        for name in layers.keys() & factors.keys() if ranks == [r] else ():
            layers[name].A.copy_(factors[name][0])
            layers[name].B.copy_(factors[name][1])
    own = [(n, m) for n, m in model.named_modules() if n in modes and n not in layers]
    switched = any(m.training != modes[n] for n, m in own)
    return {
        "the replaced layers": sorted(layers),
        "the type of the return value": type(count).__name__,
        "the return value": None if isinstance(count, nn.Module) else count,
        "the old parameters that are gone": [n for n, p in before.items() if id(p) not in here],
        "the ranks": ranks,
        "the parameters that train": sorted(trains),
        "the mode": "switched between train() and eval()" if switched else "left as it was",
        "the output with new layers": fresh,
        "the output with A and B set": model(ids),
    }


def injected_elsewhere(inject, targets, r, alpha, weights):
    """The result of `inject` for a second model, and the dtypes of a bf16 model afterwards."""
    counts = [inject(small_model(weights), targets, r, alpha) for _ in range(2)]
    model = small_model(weights, torch.bfloat16)
    own = list(model.parameters())
    inject(model, targets, r, alpha)
    kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in own}))
    return {"the return value": counts[1], "the dtype of a bf16 model afterwards": kinds}


def state(adapter_state, load_adapter_, LoRALinear, A, B, x):
    """The result of `adapter_state` for a model."""
    got = kept(adapter_state, adapted(LoRALinear, A, B, x))
    if not isinstance(got, dict):
        return {"the type of adapter_state(model)": type(got).__name__}
    facts = {"the type of adapter_state(model)": "dict"}
    facts["the keys of adapter_state(model)"] = sorted(map(str, got))
    return facts | {f"adapter_state(model)[{name!r}]": got.get(name) for name in NAMES}


def loaded(adapter_state, load_adapter_, LoRALinear, A, B, x):
    """Facts about a model that has loaded another model's state, which then changes."""
    model = adapted(LoRALinear, A * 0, B * 0, x).eval()
    before = parts(model)
    others = {n: p.detach().clone() for n, p in model.named_parameters()}
    source = adapter_state(adapted(LoRALinear, A, B, x))
    shuffled = {n: source[n].detach() for n in [*list(source)[2:], *list(source)[:2]]}
    kept(functools.partial(load_adapter_, model), shuffled)
    for tensor in source.values():
        tensor.data += 1
    after, mine = parts(model), {id(p) for p in parts(model).values()}
    rest = [(n, p) for n, p in model.named_parameters() if id(p) not in mine]
    facts = {f"the model's {name}": p for name, p in after.items()}
    same = all(before[name] is p for name, p in after.items())
    facts["A and B"] = "the Parameters they were" if same else "new ones"
    trains = all(p.requires_grad for p in after.values())
    facts["A and B at the end"] = "trainable" if trains else "frozen"
    stayed = all(torch.equal(p, others[n]) for n, p in rest)
    facts["the other parameters"] = "left as they were" if stayed else "changed"
    mode = "switched between train() and eval()" if model.training else "left as it was"
    return facts | {"the mode": mode}


MISFITS = {  # wrong states, made from a right state
    "without the key": lambda state, name: {n: t for n, t in state.items() if n != name},
    "with an extra key next to": lambda state, name: state | {"no.such.layer.A": state[name]},
    "with A and B exchanged at": lambda s, n: s | {n: s[n[:-1] + "B"], n[:-1] + "B": s[n]},
    "with a transposed matrix at": lambda state, name: state | {name: state[name].T.clone()},
    "with only one column at": lambda state, name: state | {name: state[name][:, :1]},
    "with only one row at": lambda state, name: state | {name: state[name][:1]},
}


def refused(adapter_state, load_adapter_, LoRALinear, A, B, x, misfit, name):
    """What `load_adapter_` does with a wrong state, and whether A and B changed."""
    model, other = (adapted(LoRALinear, M, B, x) for M in (A, A + 1))
    before = {name: part.detach().clone() for name, part in parts(model).items()}
    given, outcome = MISFITS[misfit](dict(adapter_state(other)), name), "return without an error"
    try:
        if isinstance(load_adapter_(model, given), BaseException):
            outcome = "return the error"
    except NotImplementedError:
        raise
    except Exception:
        stayed = all(torch.equal(part, before[name]) for name, part in parts(model).items())
        how = "and leave the model unchanged" if stayed else "after it has changed the model"
        outcome = f"raise an error {how}"
    return {"load_adapter_()": outcome}
