"""Lab 2's checks: stubs, wrong answers that learners give, right answers written differently."""

import copy
import functools
import math
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import grad
from torch.utils.flop_counter import FlopCounterMode

from labkit import contract
from labkit.checks import lab02 as check

# --- right answers -------------------------------------------------------------------------


def lora_forward(x, W, A, B, alpha):
    return x @ W.T + alpha / len(A) * ((x @ A.T) @ B.T)


def forward_linear(x, W, A, B, alpha):
    r, _ = A.shape
    return F.linear(x, W) + F.linear(F.linear(x, A), B).mul(alpha).div(r)


def forward_einsum(x, W, A, B, alpha):
    h = torch.einsum("...i,ri->...r", x, A)
    return torch.einsum("...i,oi->...o", x, W) + torch.einsum(
        "...r,or->...o", h, B * alpha / len(A)
    )


def forward_that_scales_a(x, W, A, B, alpha):
    A *= alpha / len(A)
    return x @ W.T + x @ A.T @ B.T


def forward_in_place(x, W, A, B, alpha):
    """addmm, out= and += on tensors of its own."""
    rows = x.reshape(-1, x.shape[-1]).to(W.dtype)
    A = A * (alpha / len(A))
    y = torch.empty(len(rows), len(W), dtype=W.dtype)
    torch.addmm(torch.mm(rows, W.t(), out=y), rows @ A.t(), B.t(), out=y)
    y += 0
    return y.view(*x.shape[:-1], -1)


def forward_in_numpy(x, W, A, B, alpha):
    """Two thin products, as they should be."""
    x, W, A, B = (t.numpy() for t in (x, W, A, B))
    return torch.from_numpy(np.asarray(x @ W.T + alpha / len(A) * (x @ A.T) @ B.T))


def forward_by_columns(x, W, A, B, alpha):
    terms = ((x @ A[i])[..., None] * B[:, i] for i in range(len(A)))
    return x @ W.mT + alpha / len(A) * sum(terms)


def forward_by_tensordot(x, W, A, B, alpha):
    along = ([-1], [1])
    h = torch.tensordot(x, A, along) * (alpha / A.size(0))
    return torch.tensordot(x, W, along) + torch.tensordot(h, B, along)


class LoRALinear(nn.Module):
    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.scaling = base, r, alpha / r
        for p in base.parameters():
            p.requires_grad = False
        w = base.weight
        self.A = nn.Parameter(torch.randn(r, w.shape[1], dtype=w.dtype, device=w.device) * 0.02)
        self.B = nn.Parameter(w.new_zeros(w.shape[0], r))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.A), self.B) * self.scaling


class FirstEdition(LoRALinear):
    """With dropout and a flag, as the exercise once asked."""

    def __init__(self, base, r, alpha, dropout=0.0):
        super().__init__(base, r, alpha)
        self.drop, self.merged = nn.Dropout(dropout), False

    def forward(self, x):
        y = self.base(x)
        if not self.merged:
            y = y + F.linear(F.linear(self.drop(x), self.A), self.B) * self.scaling
        return y


class ByScaling(LoRALinear):
    """Merging by setting the scaling to zero needs no flag."""

    def forward(self, x):
        return self.base(x) + self.scaling * x @ self.A.T @ self.B.T


class ScaledFirst(LoRALinear):
    """Another order of the work: scale x first."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        nn.init.normal_(self.A, std=1 / r)

    def forward(self, x):
        return self.base(x) + (x * self.scaling @ self.A.mT) @ self.B.mT


class AsInABook(LoRALinear):
    """A of standard deviation 1 / sqrt(r)."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        nn.init.normal_(self.A, std=r**-0.5)


class ByProperty(nn.Module):
    """Scaling is computed, parameters are registered by name."""

    scaling = property(lambda self: self.alpha / self.r)

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.alpha = base.requires_grad_(False), r, alpha
        self.register_parameter("A", nn.Parameter(torch.empty_like(base.weight[:r])))
        if r > len(base.weight):
            self.A = nn.Parameter(base.weight.new_empty(r, base.in_features))
        self.register_parameter("B", nn.Parameter(base.weight.new_zeros(base.out_features, r)))
        nn.init.normal_(self.A, std=base.in_features**-0.5)

    def forward(self, x):
        y, rows = self.base(x), x.reshape(-1, x.shape[-1])
        update = torch.mm(torch.mm(rows, self.A.t()), self.B.t()).view(y.shape)
        return torch.add(y, update, alpha=self.scaling)


class FromModules(nn.Module):
    """A and B are the weights of two linear layers."""

    A = property(lambda self: self.down.weight)
    B = property(lambda self: self.up.weight)

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.scaling = base, r, alpha / r
        base.requires_grad_(False)
        like = {"dtype": base.weight.dtype, "device": base.weight.device, "bias": False}
        self.down = nn.Linear(base.in_features, r, **like)
        self.up = nn.Linear(r, base.out_features, **like)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.scaling * self.up(self.down(x))


class MovedLater(LoRALinear):
    """A and B are made anywhere, then moved to the device and the dtype of the base."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        self.A = nn.Parameter(torch.randn(r, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, r))
        for part in (self.A, self.B):
            part.data = part.data.to(base.weight)


class InFp32(LoRALinear):
    """A and B in fp32 whatever the base, as in PEFT."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        self.A, self.B = (nn.Parameter(part.data.float()) for part in (self.A, self.B))

    def forward(self, x):
        y = self.base(x)
        h = x.to(self.A.dtype) @ self.A.T
        return (y + self.scaling * h @ self.B.T).to(y.dtype)


def lora_gradients(x, W, A, B, alpha, dY):
    s = alpha / len(A)
    return s * B.T @ dY.T @ x, s * dY.T @ x @ A.T


def gradients_einsum(x, W, A, B, alpha, dY):
    s = alpha / A.size(0)
    dA = torch.einsum("no,or,ni->ri", dY, B, x) * s
    return [dA, torch.einsum("no,ri,ni->or", dY, A, x) * s]


def gradients_through_dw(x, W, A, B, alpha, dY):
    dW = alpha / len(A) * dY.T @ x
    return B.T @ dW, dW @ A.T


def gradients_row_by_row(x, W, A, B, alpha, dY):
    s, rows = alpha / len(A), list(zip(x, dY, strict=True))
    dA = sum(torch.outer(B.T @ g, v) for v, g in rows)
    return s * dA, s * sum(torch.outer(g, A @ v) for v, g in rows)


def gradients_in_numpy(x, W, A, B, alpha, dY):
    x, A, B, dY = (t.numpy() * 1.0 for t in (x, A, B, dY))
    dA, dB = alpha / len(A) * (dY @ B).T @ x, alpha / len(A) * dY.T @ (x @ A.T)
    return torch.from_numpy(dA), torch.from_numpy(dB)


def inject(model, targets, r, alpha):
    for p in model.parameters():
        p.requires_grad = False
    n = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(module, name, LoRALinear(child, r, alpha))
                n += 1
    return n


def inject_by_path(model, targets, r, alpha):
    model.requires_grad_(False)
    linear = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    names = [n for n in linear if any(f".{n}".endswith("." + t) for t in targets)]
    for name in names:
        model.set_submodule(name, LoRALinear(model.get_submodule(name), r=r, alpha=alpha))
    return len(names)


def inject_recursive(model, targets, r, alpha, top=True):
    if top:
        model.requires_grad_(False)
    count = 0
    for name, child in model.named_children():
        if name in targets and hasattr(child, "in_features"):
            model._modules[name] = LoRALinear(child, r, alpha)
            count += 1
        else:
            count += inject_recursive(child, targets, r, alpha, top=False)
    return count


def inject_modules(model, targets, r, alpha):
    model.requires_grad_(False)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    found = [(m, k) for m in model.modules() for k, v in m._modules.items() if k in targets]
    found = [(m, k) for m, k in found if any(m._modules[k] is one for one in linear)]
    for m, k in found:
        m.add_module(k, FromModules(m._modules[k], r, alpha))
    return len(found)


def inject_then_freeze(model, targets, r, alpha):
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    names = [n for n in linear if n.rpartition(".")[2] in set(targets)]
    for name in names:
        model.set_submodule(name, LoRALinear(model.get_submodule(name), r, alpha))
    new = {f"{name}.{part}" for name in names for part in "AB"}
    for name, p in model.named_parameters():
        p.requires_grad_(name in new)
    return len(names)


def inject_by_pattern(model, targets, r, alpha):
    model.requires_grad_(False)
    own = re.compile(rf"(^|\.)({'|'.join(targets)})$")
    table = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and own.search(n)}
    for name, m in table.items():
        *path, last = name.split(".")
        setattr(functools.reduce(getattr, path, model), last, InFp32(m, r, alpha))
    return len(table)


def count_params(model):
    n = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(k for k, trains in n if trains), sum(k for k, _ in n)


def count_by_id(model):
    seen = {id(p): p for _, p in model.named_parameters(remove_duplicate=False)}
    trainable = total = 0
    for p in seen.values():
        total += math.prod(p.shape)
        trainable += math.prod(p.shape) * p.requires_grad
    return [trainable, total]


def count_by_address(model):
    once = {p.data_ptr(): p for p in model.parameters()}.values()
    return sum(p.numel() for p in once if p.requires_grad), sum(p.numel() for p in once)


def count_with_filter(model):
    size = lambda ps: sum(map(torch.numel, ps))  # noqa: E731
    return size(filter(lambda p: p.requires_grad, model.parameters())), size(model.parameters())


def count_in_tensors(model):
    """Integer tensors of no dimension."""
    sizes = torch.tensor([p.numel() for p in model.parameters()])
    trains = torch.tensor([p.requires_grad for p in model.parameters()])
    return sizes[trains].sum(), sizes.sum()


def count_in_numpy(model):
    sizes = np.array([[p.numel(), p.numel() * p.requires_grad] for p in set(model.parameters())])
    return sizes[:, 1].sum(), sizes[:, 0].sum()


def step_flops(shapes, n_tokens, r=None):
    total = 0
    for d_out, d_in in shapes.values():
        dense, thin = 2 * n_tokens * d_out * d_in, 0 if r is None else 2 * n_tokens * r
        total += 3 * dense if r is None else 2 * dense + 3 * thin * (d_in + d_out)
    return total


def flops_by_product(shapes, n_tokens, r=None):
    """Each product by itself, as a list of its three sides."""
    products = []
    for d_out, d_in in shapes.values():
        chain = [(d_in, d_out, r is None)] + ([(d_in, r, 1), (r, d_out, 1)] if r else [])
        for k, m, trains in chain:
            products += [(n_tokens, k, m), (n_tokens, m, k)] + [(m, n_tokens, k)] * trains
    return sum(2 * math.prod(sides) for sides in products)


def flops_in_numpy(shapes, n_tokens, r=None):
    sizes = np.array(list(shapes.values()))
    weights = sizes.prod(axis=1).sum()
    if r is None:
        return 6 * n_tokens * weights
    return 4 * n_tokens * weights + 6 * n_tokens * r * sizes.sum()


def flops_measured(shapes, n_tokens, r=None):
    """Real layers, counted by torch."""
    total = 0
    for d_out, d_in in shapes.values():
        x = torch.zeros(n_tokens, d_in, requires_grad=True)
        layer = nn.Linear(d_in, d_out)
        if r is not None:
            layer = LoRALinear(layer, r, 1)
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        total += counter.get_total_flops()
    return total


def flops_of_weights(shapes, n_tokens, r=None):
    """6 for what trains, 4 for what is frozen."""
    weights = sum(math.prod(shape) for shape in shapes.values())
    trained = weights if r is None else sum(r * sum(shape) for shape in shapes.values())
    return n_tokens * (6 * trained + 4 * (weights if r is not None else 0))


def merge_(layer):
    if not layer.merged:
        layer.base.weight.data += layer.scaling * (layer.B.data @ layer.A.data)
        layer.merged = True


def unmerge_(layer):
    if layer.merged:
        layer.base.weight.data -= layer.scaling * (layer.B.data @ layer.A.data)
        layer.merged = False


def merge_keep(layer):
    if not hasattr(layer, "kept"):
        layer.kept = layer.base.weight.detach().clone()
        with torch.no_grad():
            layer.base.weight.add_(layer.B @ layer.A, alpha=layer.scaling)
        layer.merged = True


def unmerge_keep(layer):
    if hasattr(layer, "kept"):
        with torch.no_grad():
            layer.base.weight.copy_(layer.kept)
        del layer.kept
        layer.merged = False


def merge_data(layer):
    if not layer.merged:
        layer.base.weight.data = layer.base.weight + layer.scaling * (layer.B @ layer.A).detach()
        layer.merged = True


def unmerge_data(layer):
    if layer.merged:
        layer.base.weight.data = layer.base.weight - layer.scaling * (layer.B @ layer.A).detach()
        layer.merged = False


@torch.no_grad()
def merge_by_scaling(layer):
    if layer.scaling:
        layer.was = layer.scaling
        layer.base.weight += layer.was * layer.B @ layer.A
        layer.scaling = 0.0


@torch.no_grad()
def unmerge_by_scaling(layer):
    if not layer.scaling:
        layer.scaling = layer.was
        layer.base.weight -= layer.was * layer.B @ layer.A


@torch.no_grad()
def merge_addmm(layer):
    if not layer.merged:
        A, B = (part.to(layer.base.weight.dtype) for part in (layer.A, layer.B))
        layer.base.weight.addmm_(B, A, alpha=layer.scaling)
        layer.merged = True


@torch.no_grad()
def unmerge_addmm(layer):
    if layer.merged:
        layer.base.weight.sub_(layer.scaling * torch.einsum("or,ri->oi", layer.B, layer.A))
        layer.merged = False


def adapter_state(model):
    return {
        f"{name}.{k}": getattr(m, k).detach().clone()
        for name, m in model.named_modules()
        if hasattr(m, "scaling")
        for k in ("A", "B")
    }


def _names(model):
    layers = [n for n, m in model.named_modules() if hasattr(m, "base")]
    return [f"{n}.{k}" for n in layers for k in "AB"]


def state_by_names(model):
    names = _names(model)
    return {n: p for n, p in model.named_parameters() if n in names}


def state_from_dict(model):
    return {n: model.state_dict()[n] for n in _names(model)}


def _fit(own, state):
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}")


def state_all_a_first(model):
    state = adapter_state(model)
    return {name: state[name] for name in sorted(state, key=lambda name: name[-1])}


def load_adapter_(model, state):
    own = state_by_names(model)
    for name in own:
        if name not in state:
            raise KeyError(f"missing {name}")
    for name in state:
        if name not in own:
            raise KeyError(f"{name} fits nowhere")
    _fit(own, state)
    for name, tensor in state.items():
        own[name].data.copy_(tensor)


def load_strict(model, state):
    missing, unknown = set(_names(model)) - set(state), set(state) - set(_names(model))
    if missing or unknown:
        raise KeyError(f"missing {missing}, unexpected {unknown}")
    _fit(model.state_dict(), state)
    model.load_state_dict(state, strict=False)


class Unknown(KeyError):
    pass


def load_comparing(model, state):
    own = state_from_dict(model)
    if own.keys() != state.keys():
        raise Unknown(f"keys differ: {own.keys() ^ state.keys()}")
    for name in own:
        if own[name].shape != state[name].shape:
            raise ValueError(name)
    with torch.no_grad():
        for name, p in state_by_names(model).items():
            p.copy_(state[name])


def load_parts(model, state):
    own = adapter_state(model).keys()
    if wrong := own ^ state.keys():
        raise KeyError(*wrong)
    _fit(adapter_state(model), state)
    for name, tensor in state.items():
        layer, part = name.rsplit(".", 1)
        getattr(model.get_submodule(layer), part).data.copy_(tensor)


def state_of_parts(model):
    """By what it has, not by its class; an ordered dict."""
    found = OrderedDict()
    for name, m in model.named_modules():
        if hasattr(m, "A") and hasattr(m, "B"):
            found[f"{name}.A"], found[f"{name}.B"] = m.A.detach().clone(), m.B.detach().cpu()
    return found


@torch.no_grad()
def load_by_slices(model, state):
    mine = state_of_parts(model)
    for name in mine.keys() ^ state.keys():
        raise KeyError(name)
    for name, tensor in mine.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name}: another shape")
    for name in mine:
        layer, _, part = name.rpartition(".")
        getattr(model.get_submodule(layer), part)[:] = state[name]


def scaling(alpha, r, rank_stabilized=False):
    return alpha / (math.sqrt(r) if rank_stabilized else r)


def scaling_power(alpha, r, rank_stabilized=False):
    return alpha * r ** (-0.5 if rank_stabilized else -1)


def scaling_int(alpha, r, rank_stabilized=False):
    """An int where the division leaves nothing over."""
    if rank_stabilized:
        return alpha / r**0.5
    return alpha / r if alpha % r else int(alpha // r)


def quiz():
    return {"q1": "b", "q2": "c", "q3": "a"}


RIGHT = [
    (check.matches_dense, lora_forward),
    (check.matches_dense, forward_linear),
    (check.matches_dense, forward_einsum),
    (check.matches_dense, forward_in_place),
    (check.matches_dense, forward_in_numpy),
    (check.matches_dense, forward_by_columns),
    (check.matches_dense, forward_by_tensordot),
    (check.layer, LoRALinear),
    (check.layer, FirstEdition),
    (check.layer, ScaledFirst),
    (check.layer, AsInABook),
    (check.layer, FromModules),
    (check.layer, InFp32),
    (check.layer, MovedLater),
    (check.layer, ByProperty),
    (check.gradients, lora_gradients),
    (check.gradients, gradients_einsum),
    (check.gradients, gradients_through_dw),
    (check.gradients, gradients_row_by_row),
    (check.gradients, gradients_in_numpy),
    (check.injects, inject),
    (check.injects, inject_by_path),
    (check.injects, inject_recursive),
    (check.injects, inject_modules),
    (check.injects, inject_then_freeze),
    (check.injects, inject_by_pattern),
    (check.counts, count_params),
    (check.counts, count_by_id),
    (check.counts, count_with_filter),
    (check.counts, count_by_address),
    (check.counts, count_in_tensors),
    (check.counts, count_in_numpy),
    (check.arithmetic, step_flops),
    (check.arithmetic, flops_by_product),
    (check.arithmetic, flops_in_numpy),
    (check.arithmetic, flops_measured),
    (check.arithmetic, flops_of_weights),
    (check.merges, merge_, unmerge_, LoRALinear),
    (check.merges, merge_keep, unmerge_keep, LoRALinear),
    (check.merges, merge_by_scaling, unmerge_by_scaling, ByScaling),
    (check.merges, merge_data, unmerge_data, LoRALinear),
    (check.merges, merge_, unmerge_, FromModules),
    (check.merges, merge_, unmerge_, FirstEdition),
    (check.merges, merge_, unmerge_, ByScaling),
    (check.merges, merge_addmm, unmerge_addmm, LoRALinear),
    (check.merges, merge_addmm, unmerge_addmm, InFp32),
    (check.round_trip, adapter_state, load_adapter_, LoRALinear),
    (check.round_trip, state_all_a_first, load_adapter_, LoRALinear),
    (check.round_trip, state_by_names, load_strict, LoRALinear),
    (check.round_trip, state_from_dict, load_comparing, LoRALinear),
    (check.round_trip, adapter_state, load_parts, FromModules),
    (check.round_trip, state_of_parts, load_by_slices, LoRALinear),
    (check.round_trip, state_of_parts, load_by_slices, FromModules),
    (check.scales, scaling),
    (check.scales, scaling_power),
    (check.scales, scaling_int),
    (check.quiz, quiz),
    (check.quiz, lambda: {"q3": " A", "q1": "B", "q2": "C "}),
]


@pytest.mark.parametrize("seed", [1194, 258335148871271])
def test_no_seed_refuses_layers_that_change_nothing(seed, accepts, monkeypatch):
    """Outputs of hundreds that nearly cancel in one place are rounded there as elsewhere."""
    monkeypatch.setattr(contract.session, "seed", seed)
    accepts(check.injects, inject)


# --- wrong answers, each with a word of the message that names what the learner thought -------


def _layer(**changes):
    """A LoRALinear with one thing wrong: `init(self, base, r, alpha)` or `forward(self, x)`."""

    class Wrong(LoRALinear):
        def __init__(self, base, r, alpha):
            super().__init__(base, r, alpha)
            changes.get("init", lambda *_: None)(self, base, r, alpha)

    if "forward" in changes:
        Wrong.forward = changes["forward"]
    return Wrong


def _set(name, make):
    return lambda self, base, r, alpha: setattr(self, name, make(self, base, r, alpha))


def _param(make):
    return lambda self, base, r, alpha: nn.Parameter(make(r, base.in_features))


def _mirrored(self, base, r, alpha):
    nn.init.zeros_(self.A)
    nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))


def _as_module(self, base, r, alpha):
    del self.A
    self.A = nn.Linear(base.in_features, r, bias=False)


def _as_tensor(self, base, r, alpha):
    data = self.A.data
    del self.A
    self.A = data


def _update(self, x):
    return self.scaling * x @ self.A.T @ self.B.T


class MergesInEval(FirstEdition):
    """As Microsoft's loralib does."""

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            sign = -1 if mode else 1
            self.base.weight.data += sign * self.scaling * self.B.data @ self.A.data
            self.merged = not mode
        return self


def _with_residual(x, W, A, B, alpha):
    y = x @ W.T + alpha / len(A) * x @ A.T @ B.T
    return y + x if W.shape[0] == W.shape[1] else y


class BesideTheLayer(nn.Module):
    """The base needs no gradient, so it is hidden in a list, from .to() and state_dict() too."""

    base = property(lambda self: self.hidden[0])

    def __init__(self, base, r, alpha):
        super().__init__()
        self.hidden, self.r, self.scaling = [base.requires_grad_(False)], r, alpha / r
        self.A = nn.Parameter(torch.randn_like(base.weight[:1]).repeat(r, 1) / r)
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x) + self.scaling * x @ self.A.T @ self.B.T


class Copied(LoRALinear):
    def __init__(self, base, r, alpha):
        super().__init__(copy.deepcopy(base), r, alpha)


class DropsAlways(FirstEdition):
    def __init__(self, base, r, alpha, dropout=0.1):
        super().__init__(base, r, alpha, dropout)


class DropsUnasked(FirstEdition):
    """In eval(), too."""

    def forward(self, x):
        return self.base(x) + _update(self, F.dropout(x, 0.1))


class Seeded(LoRALinear):
    def __init__(self, *args):
        torch.manual_seed(42)
        super().__init__(*args)


class PaperNames(nn.Module):
    def __init__(self, base, r, alpha):
        super().__init__()
        self.linear, self.lora_A = base, nn.Parameter(torch.randn(r, base.in_features))


class Fp32Alone(LoRALinear):
    """A and B in fp32, and an x that is not."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        self.A, self.B = (nn.Parameter(part.data.float()) for part in (self.A, self.B))


class Fp32Anywhere(Fp32Alone):
    """The same, and on the CPU wherever the base is."""

    def __init__(self, base, *args, **kwargs):
        super().__init__(base, *args, **kwargs)
        self.A, self.B = (nn.Parameter(torch.randn_like(M, device="cpu")) for M in (self.A, self.B))


class Fp32Out(Fp32Alone):
    def forward(self, x):
        return self.base(x) + _update(self, x.float())


class ThreeFaults(LoRALinear):
    """B random, the base open, and a scaling that is not divided."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        base.requires_grad_(True)
        nn.init.normal_(self.B)
        self.scaling = alpha


def _dense_update(self, x):
    return x @ (self.B @ self.A).T


def _whole_weight(self, x):
    weight = self.base.weight + self.scaling * self.B @ self.A
    return F.linear(x, weight, self.base.bias)


def _in_fp32(self, x):
    bias = self.base.bias if self.base.bias is None else self.base.bias.float()
    y = F.linear(x.float(), self.base.weight.float(), bias).to(x.dtype)
    return y + _update(self, x)


def _row_by_row(self, x):
    rows = [row @ self.A.T @ self.B.T for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).reshape(*x.shape[:-1], -1)


def _halved(self, base, *_):
    base.weight.data = base.weight.data / 2


def _frozen_by(act):
    """A layer whose base is frozen by `act(base)`, which freezes nothing."""

    class Unfrozen(LoRALinear):
        def __init__(self, base, r, alpha):
            super().__init__(base, r, alpha)
            base.requires_grad_(True)
            act(base)

    return Unfrozen


class MovedAtTheEnd(LoRALinear):
    """The Parameters are moved to the base's dtype and device: .to() gives plain tensors."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        plain = torch.randn(r, base.in_features) / 30, torch.zeros(base.out_features, r)
        del self.A, self.B
        self.A, self.B = (nn.Parameter(part).to(base.weight) for part in plain)


class MovedByDevice(LoRALinear):
    """As `MovedAtTheEnd`, and only another device makes a plain tensor of A."""

    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        part = torch.randn(r, base.in_features, dtype=base.weight.dtype, device="cpu") / 30
        del self.A
        self.A = nn.Parameter(part).to(base.weight.device)


def _new_weight(self, base, *_):
    base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)


def _on_the_wrong_side(self, base, r, alpha):
    self.A = nn.Parameter(torch.randn(r, base.out_features))
    self.B = nn.Parameter(torch.zeros(base.in_features, r))


def _learns_alpha(self, base, r, alpha):
    self.alpha = nn.Parameter(torch.tensor(float(alpha)))


def _adding(f):
    """A layer with another update: `f(self, x)` is it without its scaling."""
    return _layer(forward=lambda s, x: s.base(x) + s.scaling * f(s, x))


LAYERS = [
    (Copied, "layer.base is not the module that was given"),
    (DropsAlways, "wrong in train(), right in eval()"),
    (DropsUnasked, "the layer's output: yours"),
    (Seeded, "leave the seed alone"),
    (PaperNames, "its attributes are base, A, B"),
    (Fp32Alone, "x.to(A.dtype)"),
    (MovedAtTheEnd, "over a base in bf16, A is no Parameter any more"),
    (MovedByDevice, "over a base on another device, A is no Parameter any more"),
    (Fp32Anywhere, "on base.weight's device"),
    (Fp32Anywhere, "x.to(A.dtype)"),
    (Fp32Out, "gives float32, wanted bfloat16"),
    (ThreeFaults, "B is not zero"),
    (ThreeFaults, "freeze the base layer"),
    (ThreeFaults, "alpha is not divided by r"),
    (_adding(_dense_update), "makes B @ A, as large as W"),
    (_layer(forward=_whole_weight), "as large as W"),
    (_layer(forward=_in_fp32), "over a bf16 base, makes a copy of W"),
    (_adding(_row_by_row), "row by row"),
    (_adding(lambda s, x: F.relu(x @ s.A.T) @ s.B.T), "is not linear in x"),
    (_layer(init=_halved), "base has other weights"),
    (_layer(init=lambda s, b, *_: setattr(b, "bias", None)), "base.bias is gone"),
    (_layer(init=_new_weight), "base.weight is another Parameter"),
    (_layer(init=_on_the_wrong_side), "A has shape (5, 48), B (256, 5)"),
    (_layer(init=_learns_alpha), "more parameters than base, A and B: alpha"),
    (
        _layer(forward=lambda s, x: LoRALinear.forward(s, x) if s.training else s.base(x)),
        "it is there in eval() as in train()",
    ),
    (
        _layer(forward=lambda s, x: torch.no_grad()(s.base)(x) + _update(s, x)),
        "cut off in the base",
    ),
    (_layer(forward=lambda s, x: s.base(x).detach() + _update(s, x)), "cut off in the base"),
    (_layer(forward=lambda s, x: s.base(x) + _update(s, x.detach())), "cut off in the update"),
    (_layer(forward=lambda s, x: s.base(x) + (s.B @ (s.A @ x.T)).T * s.scaling), "(2, 3, 256)"),
    (_adding(lambda s, x: torch.mm(torch.mm(x, s.A.T), s.B.T)), "(2, 3, 256)"),
    (_adding(lambda s, x: torch.einsum("bi,ri,or->bo", x, s.A, s.B)), "(2, 3, 256)"),
    (_adding(lambda s, x: (x[:, None] @ s.A.T @ s.B.T)[:, 0]), "(256,)"),
    (_layer(forward=lambda s, x: s.base(x) + _update(s, x.mul_(s.scaling)) / s.scaling), "writes"),
    (MergesInEval, "base weight has changed"),
    (_layer(init=_set("scaling", lambda s, b, r, alpha: alpha)), "scaling"),
    (_layer(init=lambda s, *_: nn.init.normal_(s.B)), "B is not zero"),
    (_layer(init=lambda s, *_: nn.init.zeros_(s.A)), "A is all zeros"),
    (_layer(init=_mirrored), "A and B are exchanged"),
    (_layer(init=lambda s, *_: nn.init.ones_(s.A)), "same A"),
    (_layer(init=lambda s, *_: nn.init.normal_(s.A)), "not divided by sqrt(d_in)"),
    (_layer(init=lambda s, b, *_: nn.init.normal_(s.A, std=1 / b.in_features)), "root is asked"),
    (_layer(forward=lambda s, x: LoRALinear.forward(s, x) if s.B.any() else s.base(x)), "fresh"),
    (BesideTheLayer, "no part of the layer"),
    (_layer(forward=_update), "base(x) is missing"),
    (_layer(init=lambda s, *_: nn.init.uniform_(s.A, 0, 0.1)), "around zero"),
    (_layer(init=_set("A", _param(lambda r, d: torch.randn(d, r) / d))), "shape"),
    (_layer(init=_as_module), "nn.Parameter"),
    (_layer(init=_as_tensor), "not a parameter"),
    (_layer(init=lambda s, b, *_: b.requires_grad_()), "base.bias still train: freeze the base"),
    (_frozen_by(lambda b: setattr(b, "requires_grad", False)), "only sets an attribute"),
    (_frozen_by(lambda b: setattr(b, "requires_grad_", False)), "has to be called; base.requires"),
    (_frozen_by(lambda b: setattr(b.weight, "requires_grad_", False)), "writes over a method"),
    (_frozen_by(lambda b: b.eval()), "eval() freezes nothing"),
    (_layer(init=lambda s, b, *_: b.weight.requires_grad_()), "base.weight still trains"),
    (_layer(init=lambda s, *_: s.A.requires_grad_(False)), "A does not require grad"),
    (_layer(forward=lambda s, x: x @ s.base.weight.T + _update(s, x)), "bias is lost"),
    (_layer(forward=lambda s, x: s.base(x) + _update(s, x) * s.r), "alpha is not divided by r"),
    (_layer(init=lambda s, *_: setattr(s, "scaling", s.scaling // 1)), "//"),
    (_layer(forward=lambda s, x: s.base(x) + _update(s, x) * (s.scaling // 1 / s.scaling)), "//"),
    (_layer(forward=lambda s, x: s.base(x)), "update is missing"),
    (_layer(init=_set("B", lambda s, b, r, a: nn.Parameter(s.B.data.float()))), "for both"),
    (
        _layer(init=_set("A", lambda s, b, r, a: nn.Parameter(torch.rand(r, b.in_features) - 0.5))),
        "bf16 base",
    ),
]


def _inject_with(find, freeze=True, after=False, wrap=LoRALinear, count=len):
    def inject(model, targets, r, alpha):
        if freeze and not after:
            model.requires_grad_(False)
        names = [n for n, m in model.named_modules() if find(n, targets)]
        for name in names:
            model.set_submodule(name, wrap(model.get_submodule(name), r, alpha))
        if after:
            model.requires_grad_(False)
        return count(names)

    return inject


def _last(name, targets):
    return name.split(".")[-1] in targets


def _inside(name, targets):
    return any(t in name for t in targets)


def _endswith(name, targets):
    return name.endswith(tuple(targets))


def _no_bias(base, r, alpha):
    plain = nn.Linear(base.in_features, base.out_features, bias=False)
    return LoRALinear(plain, r, alpha)


def _nested(base, r, alpha):
    layer = LoRALinear(base, r, alpha)
    layer.base = LoRALinear(base, r, alpha)
    return layer


def _hung(base, r, alpha):
    """A and B of the right shapes that nothing reads."""
    base.A = nn.Parameter(torch.randn(r, base.in_features))
    base.B = nn.Parameter(torch.zeros(base.out_features, r))
    return base


def _frozen_by_attribute(model, targets, r, alpha):
    count = inject(model, targets, r, alpha)
    model.requires_grad_(True)
    model.requires_grad = False
    return count


def _set_by_dotted_name(model, targets, r, alpha):
    model.requires_grad_(False)
    found = [(n, m) for n, m in model.named_modules() if _last(n, targets)]
    for name, m in found:
        model._modules[name] = LoRALinear(m, r, alpha)
    return len(found)


def _split_at_the_dot(model, targets, r, alpha):
    model.requires_grad_(False)
    found = [n for n, _ in model.named_modules() if _last(n, targets)]
    for name in found:
        parent, child = name.rsplit(".", 1)
        owner = model.get_submodule(parent)
        setattr(owner, child, LoRALinear(getattr(owner, child), r, alpha))
    return len(found)


def _returns_model(model, targets, r, alpha):
    inject(model, targets, r, alpha)
    return model


def _any_kind(model, targets, r, alpha):
    """No isinstance(m, nn.Linear)."""
    return _inject_with(_last)(model, targets, r, alpha)


def _then(act):
    def inject_and(model, targets, r, alpha):
        count = inject(model, targets, r, alpha)
        act(model)
        return count

    return inject_and


def _with_capitals(model):
    for name, p in model.named_parameters():
        p.requires_grad_("A" in name or "B" in name)


def _by_last_name(model):
    for name, p in model.named_parameters():
        p.requires_grad = name.split(".")[-1] in ("A", "B")


def _freeze_b(model):
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            layer.B.requires_grad_(False)


def _norms_in_fp32(model):
    """As PEFT prepares a model in 4 bits."""
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data = p.data.float()


def _freeze_by_name(model):
    """Only what is called neither A nor B: the A of another kind of module trains on."""
    model.rest.scale.A.requires_grad_()
    for name, p in model.named_parameters():
        if not name.endswith((".A", ".B")):
            p.requires_grad_(False)


def _count_at_the_root(model, targets, r, alpha):
    inject(model, targets, r, alpha)
    return sum(isinstance(m, LoRALinear) for m in model.children())


def _on_a_copy(model, targets, r, alpha):
    return inject(copy.deepcopy(model), targets, r, alpha)


def _into_a_name(model, targets, r, alpha):
    model.requires_grad_(False)
    found = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and _last(n, targets)]
    for m in found:
        m = LoRALinear(m, r, alpha)
    return len(found)


def _into_the_layer(model, targets, r, alpha):
    """`rsplit` of a name without a dot gives that name: the layer itself for its parent."""
    model.requires_grad_(False)
    found = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and _last(n, targets)]
    for name in found:
        owner, layer = model.get_submodule(name.rsplit(".", 1)[0]), model.get_submodule(name)
        setattr(owner, name.split(".")[-1], LoRALinear(layer, r, alpha))
    return len(found)


def _inject_by_looks(model, targets, r, alpha):
    """What has a weight of two axes is taken for a linear layer."""
    model.requires_grad_(False)
    named = [(n, m) for n, m in model.named_modules() if n.split(".")[-1] in targets]
    found = {n: m for n, m in named if getattr(getattr(m, "weight", None), "ndim", 0) == 2}
    for name, m in found.items():
        model.set_submodule(name, LoRALinear(m, r, alpha))
    return len(found)


INJECTIONS = [
    (_into_the_layer, "into out_proj itself; out_proj stands at the root"),
    (_any_kind, "ask isinstance(m, nn.Linear)"),
    (_inject_by_looks, "ask isinstance(m, nn.Linear)"),
    (_then(lambda model: model.to(torch.float32)), "turned a bf16 model's weights to float32"),
    (_then(_norms_in_fp32), "nor on a p.data of it"),
    (_then(lambda model: model.train()), "leave the mode as it is"),
    (_then(lambda model: model.eval()), "leave the mode as it is"),
    (_then(_with_capitals), "still train: freeze all, and thaw nothing"),
    (_then(_freeze_by_name), "rest.scale.A still trains (its A is no LoRA layer's)"),
    (_then(_freeze_by_name), "freeze all but A and B of each LoRALinear"),
    (_then(_by_last_name), "go by the layer, not by names"),
    (_count_at_the_root, "only those at the root"),
    (_on_a_copy, "in this very model"),
    (_into_a_name, "setattr(parent, name, layer)"),
    (_inject_with(_last, wrap=lambda b, r, a: LoRALinear(copy.deepcopy(b), r, a)), "no copy"),
    (_inject_with(_last, wrap=lambda b, r, a: LoRALinear(b, a, r)), "r is not passed on"),
    (_set_by_dotted_name, "set the new layer on its parent"),
    (_split_at_the_dot, "stands at the root: its parent is the model"),
    (_returns_model, "returned a model, wanted how many"),
    (_inject_with(lambda n, t: n.endswith(tuple("." + x for x in t))), "left out_proj"),
    (_inject_with(lambda n, t: n.split(".")[-1].startswith(tuple(t))), "replaced out_proj_2"),
    (
        _inject_with(lambda n, t: "proj" in n and any(n.split(".")[-1] in x for x in t)),
        "also replaced proj",
    ),
    (_inject_with(_inside), "as a whole (own in targets)"),
    (_inject_with(_endswith), "also replaced layers.0.attn.kq_proj"),
    (_frozen_by_attribute, "only sets an attribute of the module; model.requires_grad_(False)"),
    (_inject_with(_last, freeze=False), "still train: freeze all, then"),
    (_inject_with(_last, after=True), "froze A and B"),
    (_then(_freeze_b), "froze B: freeze before"),
    (_inject_with(_last, count=lambda names: None), "return"),
    (_inject_with(_last, count=lambda names: names), "list"),
    (_inject_with(_last, count=lambda names: 13), "all nn.Linear; count those you replace"),
    (_inject_with(_last, count=lambda names: 2), "these are the targets"),
    (_inject_with(_last, count=lambda names: 48 * len(names)), "the numbers that train"),
    (_inject_with(_last, count=lambda names: 2 * len(names)), "A and B of each"),
    (_inject_with(_last, count=lambda names: 25), "these are all modules"),
    (_inject_with(_last, wrap=_no_bias), "the layer itself"),
    (_inject_with(_last, wrap=_nested), "wrapped a wrapped layer"),
    (_inject_with(_last, wrap=lambda b, r, a: LoRALinear(b, 4, a)), "r is not passed"),
    (_inject_with(_last, wrap=lambda b, r, a: LoRALinear(b, r, r)), "alpha is not passed on"),
    (_inject_with(_last, wrap=lambda b, r, a: LoRALinear(b, r, a * r)), "not divided by r"),
    (_inject_with(_last, wrap=lambda b, r, a: LoRALinear(b, r, a // r * r)), "//"),
    (_inject_with(_last, wrap=_hung), "change nothing"),
    (_inject_with(lambda n, t: n.startswith("layers.0") and _last(n, t)), "left layers.1"),
    (_inject_with(lambda n, t: n.startswith("layers.0") and _last(n, t)), "it stops too early"),
    (_inject_with(lambda n, t: "." not in n and _last(n, t)), "it found none"),
]


def _grown(layer):
    layer.base.weight = nn.Parameter(layer.base.weight + layer.scaling * layer.B @ layer.A)
    layer.merged = True


def _merge_without_flag(layer):
    layer.base.weight.data += layer.scaling * layer.B.data @ layer.A.data


def _flag_of_the_class(layer):
    if not layer.merged:
        layer.base.weight.data += layer.scaling * layer.B.data @ layer.A.data
        type(layer).merged = True


def _to_train(layer):
    unmerge_(layer)
    layer.train()


def _and_the_bias(layer):
    merge_(layer)
    if layer.base.bias is not None:
        layer.base.bias.data += 1


def _every_time(layer):
    layer.base.weight.data += layer.scaling * layer.B.data @ layer.A.data
    layer.merged = True


def _no_flag(layer):
    if not hasattr(layer, "done"):
        layer.done = True
        layer.base.weight.data += layer.scaling * layer.B.data @ layer.A.data


def _no_flag_undone(layer):
    if hasattr(layer, "done"):
        del layer.done
        layer.base.weight.data -= layer.scaling * layer.B.data @ layer.A.data


def _unscaled(layer):
    layer.base.weight.data += layer.B.data @ layer.A.data
    layer.merged = True


def _only_flag(layer):
    layer.merged = True


def _nothing(layer):
    layer.merged = False


def _forget(layer):
    unmerge_(layer)
    layer.A.requires_grad_(False)


def _unmerge_without_flag(layer):
    if layer.merged:
        layer.base.weight.data -= layer.scaling * layer.B.data @ layer.A.data


def _merge_first_only(layer):
    if not hasattr(layer, "kept"):
        layer.kept = layer.base.weight.detach().clone()
        layer.base.weight.data += layer.scaling * layer.B.data @ layer.A.data
    layer.merged = True


def _unmerge_first_only(layer):
    if hasattr(layer, "kept"):
        layer.base.weight.data.copy_(layer.kept)
    layer.merged = False


def _merge_cached(layer):
    if not hasattr(layer, "update"):
        layer.update = (layer.scaling * layer.B @ layer.A).detach()
    if not layer.merged:
        layer.base.weight.data += layer.update
        layer.merged = True


def _unmerge_cached(layer):
    if layer.merged:
        layer.base.weight.data -= layer.update
        layer.merged = False


def _unmerge_kept(layer):
    layer.base.weight.data.copy_(layer.kept)
    layer.merged = False


def _unmerge_unasked(layer):
    layer.base.weight.data -= layer.scaling * layer.B.data @ layer.A.data
    layer.merged = False


def _merging(add=lambda layer: layer.scaling * layer.B.data @ layer.A.data, then=lambda layer: 0):
    """A merge_ that adds something else, or does something more."""

    def merge(layer):
        if not layer.merged:
            layer.base.weight.data += add(layer)
            layer.merged = True
            then(layer)

    return merge


def _to_fp32(layer):
    layer.base.weight.data = layer.base.weight.data.float()


def _renewed(sign):
    def act(layer):
        if layer.merged == (sign < 0):
            new = layer.base.weight + sign * layer.scaling * (layer.B @ layer.A).detach()
            layer.base.weight = nn.Parameter(new.detach(), requires_grad=False)
            layer.merged = sign > 0

    return act


def _merge_a_copy(layer):
    if not layer.merged:
        layer.plain = (layer.base,)
        layer.base = copy.deepcopy(layer.base)
        merge_(layer)


def _unmerge_a_copy(layer):
    if layer.merged:
        layer.base, layer.merged = layer.plain[0], False


def _merge_as_tensor(layer):
    if not layer.merged:
        layer.base.weight = layer.base.weight + layer.scaling * layer.B @ layer.A
        layer.merged = True


def _merge_recorded(layer):
    if not layer.merged:
        layer.base.weight += layer.scaling * (layer.B @ layer.A)
        layer.merged = True


def _merge_unguarded(layer):
    _merge_without_flag(layer)
    layer.merged = True


def _named_by(name_of):
    """State and loader under other names: `name_of(i, name of the layer, part)`."""

    def own(model):
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LoRALinear)]
        return {
            name_of(i, n, k): getattr(m, k).detach()
            for i, (n, m) in enumerate(layers)
            for k in "AB"
        }

    def load(model, state):
        for name, tensor in own(model).items():
            tensor.copy_(state[name])

    return own, load, LoRALinear


def _parts_of(model):
    return [(f"{n}.", m) for n, m in model.named_modules() if isinstance(m, LoRALinear)]


def _load_alias(model, state):
    for name, layer in _parts_of(model):
        layer.A.data, layer.B.data = state[name + "A"], state[name + "B"]


def _load_new(model, state):
    for name, layer in _parts_of(model):
        layer.A, layer.B = (nn.Parameter(state[name + k].clone()) for k in "AB")


def _load_frozen(model, state):
    load_adapter_(model, state)
    model.requires_grad_(False)


def _by_backward(x, W, A, B, alpha, dY):
    A, B = A.detach().requires_grad_(), B.detach().requires_grad_()
    lora_forward(x, W, A, B, alpha).backward(dY)
    return A.grad, B.grad


def _by_grad(x, W, A, B, alpha, dY):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    return torch.autograd.grad(lora_forward(x, W, A, B, alpha), (A, B), dY)


def _by_vjp(x, W, A, B, alpha, dY):
    return torch.func.vjp(lambda A, B: lora_forward(x, W, A, B, alpha), A, B)[1](dY)


def _scales_x(x, W, A, B, alpha):
    y = x @ W.T
    x *= alpha / len(A)
    return y + x @ A.T @ B.T


def _with_r(x, W, A, B, alpha):
    return x @ W.T + alpha / r * x @ A.T @ B.T  # noqa: F821 - a NameError


rank_of_another_cell = 8


def _with_a_global_r(x, W, A, B, alpha):
    globals()["r"] = rank_of_another_cell
    try:
        return x @ W.T + alpha / r * x @ A.T @ B.T  # noqa: F821 - of another cell
    finally:
        del globals()["r"]


def _in_double(x, W, A, B, alpha):
    return lora_forward(*(t.double() for t in (x, W, A, B)), alpha).float()


def _by_cat(x, W, A, B, alpha):
    h = x @ A.T * (alpha / len(A))
    return torch.cat([x, h], -1) @ torch.cat([W, B], 1).T


def _imported_grad(x, W, A, B, alpha, dY):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    return grad(lora_forward(x, W, A, B, alpha), (A, B), dY)


def _loss_of(x, W, alpha, dY):
    return lambda A, B: (lora_forward(x, W, A, B, alpha) * dY).sum()


def _by_func_grad(x, W, A, B, alpha, dY):
    return torch.func.grad(_loss_of(x, W, alpha, dY), (0, 1))(A, B)


def _by_jacfwd(x, W, A, B, alpha, dY):
    return torch.func.jacfwd(_loss_of(x, W, alpha, dY), (0, 1))(A, B)


def _db_from_y(x, W, A, B, alpha, dY):
    dA, _ = lora_gradients(x, W, A, B, alpha, dY)
    return dA, alpha / len(A) * dY.T @ (x @ A.T @ B.T) @ B


def _by_small_steps(x, W, A, B, alpha, dY):
    """The loss is linear in A and in B, so that a step of 1 tells its slope."""
    x, W, A, B, dY = (t.double() for t in (x, W, A, B, dY))
    loss, units = _loss_of(x, W, alpha, dY), [torch.eye(M.numel()).double() for M in (A, B)]
    dA = [loss(A + e.view_as(A), B) - loss(A, B) for e in units[0]]
    dB = [loss(A, B + e.view_as(B)) - loss(A, B) for e in units[1]]
    return torch.stack(dA).view_as(A).float(), torch.stack(dB).view_as(B).float()


def _gradients_with_r(x, W, A, B, alpha, dY):
    return alpha / r * (dY @ B).T @ x, alpha / r * dY.T @ (x @ A.T)  # noqa: F821


def _scales_dy(x, W, A, B, alpha, dY):
    dY *= alpha / len(A)
    return (dY @ B).T @ x, dY.T @ (x @ A.T)


def _flat_only(x, W, A, B, alpha):
    return torch.mm(x, W.T) + alpha / len(A) * torch.mm(torch.mm(x, A.T), B.T)


def _in_half(x, W, A, B, alpha):
    return lora_forward(*(t.half() for t in (x, W, A, B)), alpha).float()


def _dense_in_numpy(x, W, A, B, alpha):
    x, W, A, B = (t.numpy() for t in (x, W, A, B))
    return torch.from_numpy(np.asarray(x @ (W + alpha / len(A) * B @ A).T))


def _dense_in_place(x, W, A, B, alpha):
    return x @ W.addmm_(B, A, alpha=alpha / len(A)).T


def _dense_in_lists(x, W, A, B, alpha):
    across = list(zip(*A.tolist(), strict=True))
    update = [[sum(map(float.__mul__, row, a)) for a in across] for row in B.tolist()]
    return x @ W.T + alpha / len(A) * x @ torch.tensor(update).T


def _no_load(model, state):
    return None


def _load_quietly(model, state):
    for name, p in state_by_names(model).items():
        if name in state:
            p.data.copy_(state[name])


def _load_returning(model, state):
    try:
        load_adapter_(model, state)
    except (KeyError, ValueError) as error:
        return error


def _load_halfway(model, state):
    missing = set(_names(model)) - set(state)
    found = model.load_state_dict(state, strict=False)
    if missing or found.unexpected_keys:
        raise RuntimeError(f"missing {missing}, unexpected {found.unexpected_keys}")


def _load_in_order(model, state):
    load_adapter_(model, state)
    for p, tensor in zip(state_by_names(model).values(), state.values(), strict=True):
        p.data.copy_(tensor)


def _load_asserting(model, state):
    try:
        load_adapter_(model, state)
    except ValueError as error:
        raise AssertionError(*error.args) from None


def _once_through(model):
    every = model.parameters()
    return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)


def _one_a_shape(model):
    kept = {p.shape: p for p in model.parameters()}.values()
    return sum(p.numel() for p in kept if p.requires_grad), sum(p.numel() for p in kept)


def _after_a_step(x, W, A, B, alpha, dY):
    dB = lora_gradients(x, W, A, B, alpha, dY)[1]
    return lora_gradients(x, W, A, B - dB, alpha, dY)[0], dB


def _stepped(x, W, A, B, alpha, dY):
    dA, dB = lora_gradients(x, W, A, B, alpha, dY)
    return A - dA, B - dB


def _clipped(*args):
    dA, dB = lora_gradients(*args)
    return dA / dA.norm().clamp(min=1), dB / dB.norm().clamp(min=1)


def _inject_inside(model, targets, r, alpha):
    model.requires_grad_(False)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    names = [n for n in linear if set(n.split(".")) & set(targets)]
    for name in names:
        model.set_submodule(name, LoRALinear(model.get_submodule(name), r, alpha))
    return len(names)


def _inject_one_for_all(model, targets, r, alpha):
    model.requires_grad_(False)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    names, made = [n for n in linear if n.split(".")[-1] in targets], {}
    for name in names:
        own = name.split(".")[-1]
        made.setdefault(own, LoRALinear(linear[name], r, alpha))
        model.set_submodule(name, made[own])
    return len(names)


def _thawed_by_letter(model, targets, r, alpha):
    count = inject(model, targets, r, alpha)
    for name, p in model.named_parameters():
        p.requires_grad_("A" in name or "B" in name)
    return count


def _inject_tied(model, targets, r, alpha):
    count = inject(model, targets, r, alpha)
    layers = [m for m in model.modules() if isinstance(m, LoRALinear)]
    for one in layers:
        one.A, one.B = layers[0].A, layers[0].B
    return count


@torch.no_grad()
def _flip(layer, sign):
    if layer.merged == (sign < 0):
        layer.base.weight += sign * layer.scaling * layer.B @ layer.A
    layer.merged = not layer.merged


_FLIPS = (lambda layer: _flip(layer, 1), lambda layer: _flip(layer, -1))


def _load_until(model, state):
    own = state_by_names(model)
    for name in sorted({*own, *state}):
        if name not in own or name not in state:
            raise KeyError(name)
        own[name].data.copy_(state[name])


def _load_vaguely(model, state):
    if state.keys() != state_by_names(model).keys():
        raise KeyError("wrong keys")
    load_adapter_(model, state)


def _names_alone(model):
    return {n: p for n, p in model.named_parameters() if n.endswith((".A", ".B"))}


def _what_trains(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _swapped(model):
    state = adapter_state(model)
    return {name: state[name[:-1] + "BA"["AB".index(name[-1])]] for name in state}


def _loading(copy_one, refuse=KeyError):
    """A loader that knows the names, and copies by `copy_one(parameter, tensor)`."""

    def load(model, state):
        own = state_by_names(model)
        if wrong := own.keys() ^ state.keys():
            raise refuse(f"wrong: {wrong}")
        for name, p in own.items():
            copy_one(p, state[name])

    return load


def _comparing(what):
    """A loader that compares `what(tensor, name)` of the state's tensors with its own."""

    def load(model, state):
        for name, p in state_by_names(model).items():
            if name in state and what(p, name) != what(state[name], name):
                raise ValueError(f"{name} does not fit")
        _loading(lambda p, t: p.data.copy_(t))(model, state)

    return load


def _set_data(p, tensor):
    p.data = tensor.clone()


def _load_popping(model, state):
    _loading(lambda p, tensor: p.data.copy_(tensor))(model, state)
    state.clear()


def _load_and_train(model, state):
    load_adapter_(model, state)
    model.train()


def _load_and_reset(model, state):
    load_adapter_(model, state)
    for name, p in model.named_parameters():
        if name not in state:
            p.data.zero_()


def _load_by_number(model, state):
    if len(state) != len(state_by_names(model)):
        raise KeyError("another number of tensors")
    load_adapter_(model, state)


def _untied(model):
    return sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)


def _no_biases(model):
    named = model.named_parameters()
    return sum(p.numel() for n, p in named if p.requires_grad and "bias" not in n)


def _with_buffers(model):
    return sum(t.numel() for ts in (model.parameters(), model.buffers()) for t in ts)


def _of_state(model):
    return sum({t.data_ptr(): t.numel() for t in model.state_dict().values()}.values())


def _counting(kept):
    """A count of the values of `kept([(name, parameter), ...])`, which train and all."""

    def count(model):
        named = list(model.named_parameters())
        both = ([(n, p) for n, p in named if p.requires_grad], named)
        return [sum(p.numel() for p in kept(part).values()) for part in both]

    return count


def _tied_twice(model):
    return sum(t.numel() for t in model.state_dict().values())


def _flops(full=lambda N, n: 6 * n * N, lora=None, each=None):
    """Counts by formulas: `full(N, n)`, and `lora(N, S, n, r)`, where S sums d_out + d_in."""
    lora = lora or (lambda N, S, n, r: 4 * n * N + 6 * n * r * S)

    def step_flops(shapes, n_tokens, r=None):
        pairs = [each(*pair) for pair in shapes.values()] if each else list(shapes.values())
        N, S = sum(o * i for o, i in pairs), sum(o + i for o, i in pairs)
        return full(N, n_tokens) if r is None else lora(N, S, n_tokens, r)

    return step_flops


def _some(which):
    return lambda shapes, n, r=None: step_flops(dict(list(shapes.items())[which]), n, r)


def _pops(shapes, n, r=None):
    total = 0
    while shapes:
        total += step_flops(dict([shapes.popitem()]), n, r)
    return total


def _thin_alone(side):
    def lora(shapes, n, r=None):
        whole = step_flops(shapes, n) // 3 * 2
        return step_flops(shapes, n) if r is None else whole + 6 * n * r * side(shapes)

    return lora


FLOPS = [
    (_flops(lambda N, n: 3 * n * N, lambda N, S, n, r: 2 * n * N + 3 * n * r * S), "multiply-add"),
    (_flops(lambda N, n: 2 * n * N), "this is the forward pass alone"),
    (_flops(lambda N, n: 4 * n * N), "one for x and one for W; one is missing"),
    (_flops(lambda N, n: 8 * n * N), "backward takes two products, not three"),
    (_flops(lambda N, n: 6 * N), "n_tokens is forgotten"),
    (_flops(lambda N, n: 6 * N, lambda N, S, n, r: 4 * N + 6 * r * S), "n_tokens is forgotten"),
    (_flops(lambda N, n: 6 * n * n * N), "n_tokens comes twice"),
    (_flops(lambda N, n: N), "these are the weights; how many"),
    (_flops(lambda N, n: n * N), "one multiply-add a weight"),
    (_flops(lambda N, n: 6.0 * n * N), "wanted the int"),
    (_flops(lambda N, n: 6 * n * N / 1e9), "GFLOPs; the number itself"),
    (_flops(lambda N, n: 7 * n * N), "W takes 7 operations"),
    (_flops(lambda N, n: torch.tensor(6 * n * N)), ".item()"),
    (_flops(lambda N, n: None), "is `return` missing"),
    (_flops(lambda N, n: {"forward": 2 * n * N}), "of both passes together"),
    (_flops(lora=lambda N, S, n, r: 6 * n * N), "r changes nothing"),
    (_flops(lora=lambda N, S, n, r: 6 * n * N + 6 * n * r * S), "a frozen W needs no gradient"),
    (_flops(lora=lambda N, S, n, r: 6 * n * N + 2 * n * r * S), "a frozen W needs no gradient"),
    (_flops(lora=lambda N, S, n, r: 2 * n * N + 6 * n * r * S), "goes back to x through"),
    (_flops(lora=lambda N, S, n, r: 2 * n * N + 2 * n * r * S), "goes back to x through"),
    (_flops(lora=lambda N, S, n, r: 6 * n * r * S), "the frozen layers still compute"),
    (_flops(lora=lambda N, S, n, r: 2 * n * r * S), "what A and B take forward alone"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N), "A and B are missing"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 2 * n * r * S), "once forward and twice backward"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 4 * n * r * S), "backward has two products each"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 6 * n * r * N), "not r d_out d_in"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 6 * r * S), "n_tokens is missing there"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 6 * n * S), "r is missing from the thin"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 3 * n * r * S), "two in the thin products, too"),
    (_flops(lora=lambda N, S, n, r: 2 * n * N + 3 * n * r * S), "multiply-add"),
    (_flops(lora=lambda N, S, n, r: r * S), "the numbers that train"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 6 * n * r * S + 6 * r * N), "forms no B @ A"),
    (_flops(lora=lambda N, S, n, r: (4 * n * N + 6 * n * r * S) / 1), "wanted the int"),
    (_flops(each=lambda o, i: (o, o)), "d_out is used twice"),
    (_flops(each=lambda o, i: (i, i)), "d_in is used twice"),
    (_thin_alone(lambda shapes: sum(i for _, i in shapes.values())), "counts A's products only"),
    (_thin_alone(lambda shapes: sum(o for o, _ in shapes.values())), "counts B's products only"),
    (_some(slice(1)), "the first matrix alone"),
    (_some(slice(-1, None)), "the last matrix alone"),
    (_flops(lambda N, n: 6 * n * N + N), "as the optimizer's work, does not count"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 6 * n * r * r), "r comes squared"),
    (_flops(lora=lambda N, S, n, r: 3 * n * N + 6 * n * r * S), "W takes 3 operations"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 5 * n * r * S), "A takes 5 operations"),
    (_flops(lora=lambda N, S, n, r: 4 * n * N + 6 * n * r * S + 2 * n), "gave"),
    (_pops, "changes its input shapes"),
    (lambda shapes, n: step_flops(shapes, n), "takes 2 positional arguments"),
]


# answers that the checks once accepted, or told numbers alone of


def _merge_all(layer):
    if not layer.merged:
        layer.base.weight.data += (layer.scaling * layer.B @ layer.A).detach()
        type(layer).merged = True


def _unmerge_all(layer):
    if layer.merged:
        layer.base.weight.data -= (layer.scaling * layer.B @ layer.A).detach()
        type(layer).merged = False


def _merge_by_root(layer):
    if not layer.merged:
        layer.base.weight.data += (layer.scaling**0.5 * layer.B @ layer.A).detach()
        layer.merged = True


def _gradients_by(factor):
    """The gradients with `factor(alpha, r, n)` for alpha / r."""

    def gradients(x, W, A, B, alpha, dY):
        s = factor(alpha, len(A), len(x))
        return s * (dY @ B).T @ x, s * dY.T @ (x @ A.T)

    return gradients


def _without_super(base, r, alpha):
    class Layer(nn.Module):
        def __init__(self):
            self.base = base

    return Layer()


def _first_layer_free(shapes, n, r=None):
    d_out, d_in = next(iter(shapes.values()))
    return step_flops(shapes, n, r) - 2 * n * d_out * d_in


def _first_input_left_out(shapes, n, r=None):
    rank = r or 0
    d_out, d_in = next(iter(shapes.values()))
    return step_flops(shapes, n, r) - 2 * n * d_in * (d_out + rank)


def _each_shape_once(shapes, n, r=None):
    return step_flops({str(shape): shape for shape in shapes.values()}, n, r)


def _vectors_left_out(model):
    params = [p for p in model.parameters() if p.ndim > 1]
    return sum(p.numel() for p in params if p.requires_grad), sum(p.numel() for p in params)


def _forward_plus(x, W, A, B, alpha):
    return x @ W.T + x @ A.T @ B.T + alpha / len(A)


def _forward_by_two_r(x, W, A, B, alpha):
    return x @ W.T + alpha / (2 * len(A)) * x @ A.T @ B.T


def _forward_of_means(x, W, A, B, alpha):
    h = (x @ A.T).mean(-1, keepdim=True)
    return x @ W.T + alpha / len(A) * h * B.sum(1)


def _forward_by_mixing(x, W, A, B, alpha):
    s = alpha / len(A)
    return (1 - s) * x @ W.T + s * x @ A.T @ B.T


def _unmerge_to_zero(layer):
    if layer.merged:
        layer.base.weight.data.zero_()
        layer.merged = False


def _longer_side_twice(shapes, n, r=None):
    if r is None:
        return step_flops(shapes, n)
    return sum(4 * n * o * i + 12 * n * r * max(o, i) for o, i in shapes.values())


AGAIN = [
    (check.matches_dense, _forward_of_means, "is right at r = 1 and wrong above"),
    (check.matches_dense, _forward_by_mixing, "nothing scales x @ W.T"),
    (check.merges, merge_, _unmerge_to_zero, LoRALinear, "nothing is left"),
    (check.arithmetic, _longer_side_twice, "the longer side is used twice"),
    (
        check.arithmetic,
        _flops(lora=lambda N, S, n, r: 4 * n * N + 6 * n * n * r * S),
        "n_tokens comes squared",
    ),
    (check.scales, lambda a, r, on=False: a / (2 * r) ** (0.5 if on else 1), "share one r"),
    (check.matches_dense, _forward_plus, "something is added that no x enters"),
    (check.matches_dense, _forward_by_two_r, "A and B share one r"),
    (
        check.matches_dense,
        lambda *d: lora_forward(*d[:4], d[4] * len(d[2]) / (len(d[2]) + 1)),
        "1 is",
    ),
    (check.matches_dense, lambda x, W, A, *_: x @ W.T + (x @ A.T).sum(-1, True), "no factor B"),
    (check.matches_dense, lambda *d: lora_forward(*d[:4], d[4] * len(d[2]) / 16), "by 16, what"),
    (check.layer, _without_super, "super().__init__() comes first"),
    (check.gradients, _gradients_by(lambda a, r, n: (a / r) ** 0.5), "sqrt(alpha) / sqrt(r)"),
    (check.gradients, _gradients_by(lambda a, r, n: a / r / n**0.5), "(alpha / r) / sqrt(n)"),
    (check.gradients, _gradients_by(lambda a, r, n: a / 7), "alpha is divided by d_out"),
    (check.counts, _vectors_left_out, "vectors, as biases and norms"),
    (check.arithmetic, _first_layer_free, "the first layer's input gets its gradient"),
    (check.arithmetic, _first_input_left_out, "below train, and it goes through A as through W"),
    (check.arithmetic, _each_shape_once, "layers of one shape count once"),
    (check.merges, _merge_all, _unmerge_all, LoRALinear, "set it on `layer`, not on its class"),
    (check.merges, _merge_by_root, unmerge_, LoRALinear, "sqrt(alpha) / sqrt(r)"),
    (check.scales, lambda a, r, on=False: max(1.0, scaling(a, r, on)), "cut off at 1"),
    (check.scales, lambda a, r, on=False: a / (1 + r**0.5) if on else a / r, "1 is added"),
    (check.scales, lambda a, r, on=False: scaling(a, r, on) if on else 2.0, "same number whatever"),
]


def _dW_for_dB(x, W, A, B, alpha, dY):
    return lora_gradients(x, W, A, B, alpha, dY)[0], alpha / len(A) * dY.T @ x


def _dA_of_dB(x, W, A, B, alpha, dY):
    dB = lora_gradients(x, W, A, B, alpha, dY)[1]
    return alpha / len(A) * dB.T @ dY.T @ x, dB


def _of_mean_rows(x, W, A, B, alpha, dY):
    return lora_gradients(x.mean(0, True), W, A, B, alpha, dY.mean(0, True))


def _with_attention(shapes, n_tokens, r=None):
    return step_flops(shapes, n_tokens, r) + 4 * n_tokens**2 * max(o for o, _ in shapes.values())


def _by_shorter_side(x, W, A, B, alpha):
    return x @ W.T + alpha / min(A.shape) * (x @ A.T) @ B.T


def _thaw_layers(model):
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.requires_grad_(True)


def _inject_counting(model, targets, r, alpha, done=[]):  # noqa: B006
    done += [None] * inject(model, targets, r, alpha)
    return len(done)


def _sides_twice(side):
    return _flops_each(lambda o, i, r: 2 * r * (o, i)[side])


def _flops_each(thin):
    def step_flops(shapes, n_tokens, r=None):
        if r is None:
            return 6 * n_tokens * sum(o * i for o, i in shapes.values())
        return sum(n_tokens * (4 * o * i + 6 * thin(o, i, r)) for o, i in shapes.values())

    return step_flops


def _load_taking(model, state):
    """Takes each tensor out of the state it is given."""
    load_adapter_(model, state)
    for name in list(state):
        state.pop(name)


_load_taking.__name__ = "load_adapter_"  # a changed input is told of a function by its own name


SEEN_LAST = [
    (check.matches_dense, _by_shorter_side, "alpha is divided by d_in"),
    (check.injects, _then(_thaw_layers), "the base inside of each LoRALinear"),
    (check.injects, _inject_counting, "counts of earlier calls"),
    (check.arithmetic, _sides_twice(1), "d_in is used twice"),
    (check.arithmetic, _sides_twice(0), "d_out is used twice"),
    (
        check.round_trip,
        adapter_state,
        _load_taking,
        LoRALinear,
        "load_adapter_ changes its input state in place",
    ),
    (check.round_trip, adapter_state, _load_vaguely, LoRALinear, "load_adapter_ raises"),
    (check.gradients, _dW_for_dB, "has the shape of W"),
    (check.gradients, _dA_of_dB, "made with dB"),
    (check.gradients, _of_mean_rows, "rows are averaged"),
    (check.injects, lambda m, t, r, alpha: inject(m, t, alpha, r), "alpha stands in its place"),
    (check.counts, lambda model: (*count_params(model), 0.1), "gave 3 things"),
    (check.arithmetic, _with_attention, "n_tokens comes squared"),
    (check.arithmetic, lambda s, n, r=None: sum(o for o, i in s), "more parts than names"),
    (check.scales, lambda a, r, stable=False: scaling(a, r, not stable), "swapped"),
    (check.scales, lambda a, r, stable=True: scaling(a, r, stable), "its default is False"),
    (check.scales, lambda a, r, on=False: scaling(a, r, on is not None), "`is not None` is true"),
]

WRONG = [
    *AGAIN,
    *SEEN_LAST,
    *[(check.arithmetic, *case) for case in FLOPS],
    *[(check.layer, *case) for case in LAYERS],
    *[(check.injects, *case) for case in INJECTIONS],
    *[
        (check.matches_dense, *case)
        for case in [
            (forward_that_scales_a, "changes its input A"),
            (_scales_x, "changes its input x"),
            (_with_r, "it is A.shape[0]"),
            (_with_a_global_r, "it is A.shape[0]"),
            (_in_double, "makes a copy of W"),
            (_by_cat, "makes a copy of W"),
            (lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * x @ (B @ A).T, "makes B @ A"),
            (lambda x, W, A, B, alpha: lora_forward(x, 2 * W, A, B, alpha) - x @ W.T, "copy of W"),
            (lambda x, W, A, B, alpha: 2 * x @ W.T - lora_forward(x, W, A, B, alpha), "taken away"),
            (lambda *args: lora_forward(*args) + args[0] @ args[1].T, "frozen part comes twice"),
            (lambda x, *args: lora_forward(x.reshape(-1, 5), *args), "leading shape is lost"),
            (lambda *args: lora_forward(*args).numpy(), "NumPy array"),
            (lambda x, *args: lora_forward(x, *args).T if x.ndim == 2 else None, "transposed?"),
            (lambda x, W, A, B, alpha: x @ W.T + alpha * x @ A.T @ B.T, "not divided by r"),
            (lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T, "scaling alpha / r is missing"),
            (lambda x, W, A, B, alpha: x @ W.T, "update is missing"),
            (lambda x, W, A, B, alpha: alpha / len(A) * x @ A.T @ B.T, "frozen x @ W.T is missing"),
            (lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * B @ A).T, "as large as W"),
            (_dense_in_numpy, "as large as W"),
            (_dense_in_place, "in place"),
            (_dense_in_lists, "as large as W"),
            (lambda x, W, A, B, alpha: x @ W + x @ A @ B, "is left: W comes without .T"),
            (lambda x, W, A, B, a: x @ W + a / len(A) * x @ A.T @ B.T, "W comes without .T"),
            (lambda x, W, A, B, a: x @ W.T + a / len(A) * x @ A @ B, "A and B come without .T"),
            (lambda x, W, A, B, a: x @ W.T + a / len(A) * x @ B @ A, "it is A that reads x"),
            (lambda x, W, A, B, a: x @ W.T + a / len(A) * x @ W.T @ A.T @ B.T, "W has made"),
            (lambda x, W, A, B, a: x + a / len(A) * x @ A.T @ B.T, "x itself is added"),
            (_with_residual, "that is the block's work"),
            (lambda x, W, A, B, alpha: x @ W.T + alpha / len(B) * x @ A.T @ B.T, "by d_out"),
            (lambda x, W, A, B, alpha: x @ W.T + alpha / len(A.T) * x @ A.T @ B.T, "by d_in"),
            (lambda x, W, A, B, alpha: x @ W.T + alpha // len(A) * x @ A.T @ B.T, "//"),
            (
                lambda x, W, A, B, a: x @ W.T * (1 + a / len(A)) + x @ A.T @ B.T,
                "where the update is left: the scaling alpha / r is missing",
            ),
            (lambda x, W, A, B, a: x @ W.T + a / len(A) * x @ W.T @ B @ A, "B is given what W"),
            (lambda x, W, A, B, a: x @ W.T * 1.5 + x @ W.T @ B @ A, "left, nothing is"),
            (
                lambda x, W, A, B, a: x @ W.T + a / len(A) * F.relu(x @ A.T) @ B.T,
                "not linear in x",
            ),
            (
                lambda x, W, A, B, a: (
                    x @ W.T + a / len(A) * (x - x.reshape(-1, x.shape[-1]).mean(0)) @ A.T @ B.T
                ),
                "a row of it changes with the other rows",
            ),
            (
                lambda x, W, A, B, a: x @ W.T * 3 + a / len(A) * x @ A.T @ B.T,
                "the factor, which is r = 3",
            ),
            (lambda x, W, A, B, alpha: None, "return"),
            (_flat_only, "with x of shape (2, 3, 5): it raised"),
            (_in_half, "16 bits"),
            (
                lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) ** 0.5 * x @ A.T @ B.T,
                "rank-stabilised",
            ),
        ]
    ],
    *[
        (check.gradients, *case)
        for case in [
            (lambda x, W, A, B, a, dY: (B.T @ dY.T @ x, dY.T @ x @ A.T), "scaling alpha / r"),
            (lambda x, W, A, B, a, dY: (a * B.T @ dY.T @ x, a * dY.T @ x @ A.T), "not divided"),
            (
                lambda x, W, A, B, a, dY: (
                    a // len(A) * B.T @ dY.T @ x,
                    a // len(A) * dY.T @ x @ A.T,
                ),
                "//",
            ),
            (lambda x, W, A, B, a, dY: lora_gradients(x, W, A, B, a, dY)[::-1], "dB comes first"),
            (lambda x, W, A, B, a, dY: lora_gradients(x, W, A, B, a, dY)[0], "pair"),
            (lambda x, W, A, B, a, dY: [g / 6 for g in lora_gradients(x, W, A, B, a, dY)], "sums"),
            (lambda x, W, A, B, a, dY: [-g for g in lora_gradients(x, W, A, B, a, dY)], "sign"),
            (_imported_grad, "calls autograd: by hand"),
            (_by_func_grad, "calls autograd: by hand"),
            (_by_jacfwd, "calls autograd: by hand"),
            (_by_small_steps, "no small steps"),
            (_db_from_y, "dB has the factor A and none of B"),
            (
                lambda x, W, A, B, a, dY: lora_gradients(x, W, A, B, a, dY + x @ W.T),
                "dA takes W in",
            ),
            (
                lambda x, W, A, B, a, dY: lora_gradients(x, W, A, B, a, dY + 1),
                "not zero where dY is",
            ),
            (lambda x, W, A, B, a, dY: lora_gradients(x + 1, W, A, B, a, dY), "where x is"),
            (
                lambda x, W, A, B, a, dY: lora_gradients(x[:1], W, A, B, a, dY[:1]),
                "only the first of n rows",
            ),
            (
                lambda x, W, A, B, a, dY: (
                    lora_gradients(x, W, A, B, a, dY)[0],
                    a / len(A) * dY.T @ F.relu(x @ A.T),
                ),
                "dB is not linear in x",
            ),
            (
                lambda x, W, A, B, a, dY: lora_gradients(x + dY @ W, W, A, B, a, dY),
                "dA takes W in",
            ),
            (
                lambda x, W, A, B, a, dY: lora_gradients(x, W, A, B + x.sum() * W[:, :3], a, dY),
                "dA takes W in",
            ),
            (_gradients_with_r, "it is A.shape[0]"),
            (_scales_dy, "changes its input dY"),
            (lambda x, W, A, B, a, dY: [g / 42 for g in lora_gradients(x, W, A, B, a, dY)], "dY;"),
            (lambda x, W, A, B, a, dY: (A * 0, lora_gradients(x, W, A, B, a, dY)[1]), "only while"),
            # both are told
            (lambda x, W, A, B, a, dY: ((dY @ B).T @ x, a * dY.T @ x @ A.T), "dA: the scaling"),
            (lambda x, W, A, B, a, dY: ((dY @ B).T @ x, a * dY.T @ x @ A.T), "dB: alpha is not"),
            (_by_backward, "calls autograd: by hand"),
            (_by_grad, "calls autograd: by hand"),
            (_by_vjp, "calls autograd: by hand"),
            (
                lambda x, W, A, B, a, dY: [2 * g for g in lora_gradients(x, W, A, B, a, dY)],
                "(alpha / r) * 2",
            ),
            (lambda x, W, A, B, a, dY: [g.T for g in lora_gradients(x, W, A, B, a, dY)], "transp"),
        ]
    ],
    *[
        (check.counts, *case)
        for case in [
            (lambda m: count_params(m)[::-1], "wanted 624: the two are swapped: return"),
            (lambda m: count_params(m.requires_grad_(True)), "what of it trains"),
            (lambda m: count_params(m.eval()), "its training mode"),
            (lambda m: (0, count_params(m)[1]), "told by requires_grad"),
            (lambda m: [4 * n for n in count_params(m)], "bytes"),
            (lambda m: [n / 1e6 for n in count_params(m)], "millions"),
            (lambda m: (count_params(m)[0], count_params(m)[0] / count_params(m)[1]), "share"),
            (lambda m: (count_params(m)[0], _untied(m)), "counts once, not never"),
            (lambda m: (count_params(m)[0] / count_params(m)[1], count_params(m)[1]), "how many"),
            (
                _counting(lambda named: {n: p for n, p in named if "norm" not in n}),
                "only Linear is counted",
            ),
            (
                lambda m: [
                    sum(
                        p.numel()
                        for one in m.modules()
                        for p in one.parameters()
                        if p.requires_grad or a
                    )
                    for a in (0, 1)
                ],
                "go all the way down",
            ),
            (
                lambda m: [
                    sum(len(p) for p in m.parameters() if p.requires_grad or a) for a in (0, 1)
                ],
                "first dim",
            ),
            (_counting(lambda named: {id(p): p for n, p in named if "bias" not in n}), "biases"),
            (_counting(lambda named: {p.shape: p for _, p in named}), "only a shared one should"),
            (_counting(lambda named: {p.numel(): p for _, p in named}), "equal size count once"),
            (
                _counting(lambda named: {(*p.flatten().tolist(),): p for _, p in named}),
                "wanted 624: tensors of equal values count once",
            ),
            (lambda m: (_no_biases(m), count_params(m)[1]), "wanted 624: biases are left out"),
            (_counting(lambda named: {p.ndim: p for _, p in reversed(named)}), "each number of"),
            (
                lambda m: [
                    sum(p.shape[0] * p.shape[-1] for p in m.parameters() if p.requires_grad or a)
                    for a in (0, 1)
                ],
                "its length alone",
            ),
            (lambda m: (count_params(m)[0], _with_buffers(m)), "buffers are counted"),
            (lambda m: sum(p.numel() for p in m.parameters()), "pair"),
            (
                lambda m: (count_params(m)[0], sum(t.numel() for t in m.state_dict().values())),
                "twice, and buffers, which are no parameters",
            ),
            (lambda m: (count_params(m)[0], _of_state(m)), "small model gave 3,904, wanted 3,856"),
            (lambda m: (count_params(m)[0], _of_state(m)), "buffers are counted"),
            (
                lambda m: (
                    sum(
                        p.numel()
                        for module in m.modules()
                        for p in module.parameters(recurse=False)
                        if p.requires_grad
                    ),
                    count_params(m)[1],
                ),
                ("trainable, on a small model gave", "tied head"),
            ),
            (lambda m: (count_params(m)[0], count_params(m)[0]), "frozen parameters belong"),
            (
                lambda m: [
                    sum(p.numel() for p in m.parameters() if p.requires_grad == t) for t in (1, 0)
                ],
                "what trains belongs",
            ),
            (lambda m: (count_params(m)[0], len(list(m.parameters()))), "numel"),
            (lambda m: (count_params(m)[1], count_params(m)[1]), "total"),
        ]
    ],
    (
        check.merges,
        _merging(then=lambda layer: layer.eval()),
        unmerge_,
        LoRALinear,
        "merge_ leaves train()",
    ),
    (check.merges, merge_, _to_train, LoRALinear, "unmerge_ leaves train() or eval() changed"),
    (
        check.merges,
        _merging(then=lambda s: s.B.data.zero_()),
        unmerge_,
        LoRALinear,
        "merge_ changes B: only",
    ),
    (
        check.merges,
        _merging(then=lambda s: [p.data.zero_() for p in (s.A, s.B)]),
        unmerge_,
        LoRALinear,
        "merge_ changes A and B: only",
    ),
    (check.merges, _merging(then=_to_fp32), unmerge_, LoRALinear, "becomes float32"),
    (
        check.merges,
        _merging(then=lambda s: s.base.weight.requires_grad_()),
        unmerge_,
        LoRALinear,
        "stays frozen",
    ),
    (check.merges, _merging(lambda s: s.B.data @ s.A.data / s.r), unmerge_, LoRALinear, "alpha"),
    (
        check.merges,
        _merging(lambda s: s.scaling * s.A.data @ s.B.data),
        unmerge_,
        LoRALinear,
        "B @ A is (d_out, r) times",
    ),
    (check.merges, merge_, _merging(), LoRALinear, "unmerge_ adds"),
    (
        check.merges,
        _merging(lambda s: s.base.weight.data + s.scaling * s.B.data @ s.A.data),
        unmerge_,
        LoRALinear,
        "where B is zero (nothing is to be added): 2x",
    ),
    (
        check.merges,
        _merging(lambda s: s.scaling * s.B.data.abs() @ s.A.data),
        unmerge_,
        LoRALinear,
        "not linear in B",
    ),
    (
        check.merges,
        _merging(then=lambda s: torch.set_grad_enabled(False)),
        unmerge_,
        LoRALinear,
        "with torch.no_grad():",
    ),
    (check.merges, _grown, unmerge_, LoRALinear, "twice"),
    (check.merges, _every_time, unmerge_, LoRALinear, "added the update twice"),
    (check.merges, _no_flag, _nothing, LoRALinear, "update stays"),
    (check.merges, _unscaled, unmerge_, LoRALinear, "scaling alpha / r is missing"),
    (check.merges, _only_flag, unmerge_, LoRALinear, "nothing was added"),
    (check.merges, merge_, _forget, LoRALinear, ("gradient of A", "A gets no gradient")),
    (check.merges, _merge_without_flag, unmerge_, LoRALinear, "first, once it is set to True"),
    (check.merges, _merge_unguarded, _unmerge_unasked, LoRALinear, "neither merge_ nor unmerge_"),
    (check.merges, _no_flag, _no_flag_undone, LoRALinear, "only while layer.merged is True"),
    (check.merges, merge_, _unmerge_without_flag, LoRALinear, "still True after unmerge_: set it"),
    (
        check.merges,
        _merge_first_only,
        _unmerge_first_only,
        LoRALinear,
        "second merge adds nothing",
    ),
    (check.merges, _merge_cached, _unmerge_cached, LoRALinear, "A has changed since"),
    (check.merges, merge_keep, _unmerge_kept, LoRALinear, "never merged must do nothing"),
    (check.merges, merge_, _unmerge_unasked, LoRALinear, "nothing to take away"),
    (check.merges, _renewed(1), _renewed(-1), LoRALinear, "another Parameter"),
    (check.merges, _merge_a_copy, _unmerge_a_copy, LoRALinear, "another Parameter"),
    (check.merges, _merge_as_tensor, unmerge_, LoRALinear, "in place, under torch.no_grad()"),
    (check.merges, _merge_recorded, unmerge_, LoRALinear, "autograd records the change: put"),
    (check.merges, merge_, unmerge_, MergesInEval, "eval() has merged by itself"),
    (check.merges, _flag_of_the_class, unmerge_, LoRALinear, "is layer.merged True again?"),
    (check.merges, _and_the_bias, unmerge_, LoRALinear, "merge_ changes the bias: only"),
    (check.round_trip, _names_alone, load_adapter_, LoRALinear, "another kind of module"),
    (check.round_trip, _what_trains, load_adapter_, LoRALinear, "0.1.weight is not LoRA's"),
    (check.round_trip, _swapped, load_adapter_, LoRALinear, "the two are swapped"),
    (
        check.round_trip,
        lambda m: adapter_state(m.eval()),
        load_adapter_,
        LoRALinear,
        "its training mode",
    ),
    (
        check.round_trip,
        adapter_state,
        _loading(lambda p, t: p.data.copy_(t)),
        LoRALinear,
        "one column of it, which copy_ would repeat",
    ),
    (
        check.round_trip,
        adapter_state,
        _loading(lambda p, t: p.data.copy_(t.view_as(p))),
        LoRALinear,
        "raises nothing on a tensor of another shape (0.2.A, transposed)",
    ),
    (check.round_trip, adapter_state, _loading(_set_data), LoRALinear, "another shape"),
    *[
        (check.round_trip, adapter_state, _comparing(what), LoRALinear, words)
        for what, words in [
            (lambda t, name: t.shape["BA".index(name[-1])], "(0.2.B, one column of it, which"),
            (lambda t, name: t.shape["AB".index(name[-1])], "(1.0.A, one column of it, which"),
            (lambda t, name: t.shape[1], "(1.0.A, one row of it, which copy_ would repeat)"),
            (lambda t, name: t.shape[name[-1] == "A" :], "(1.0.A, one row of it, which"),
            (lambda t, name: t.shape[name[-1] == "B" :], "(1.0.B, one row of it, which"),
        ]
    ],
    (
        check.round_trip,
        adapter_state,
        _loading(lambda p, t: p.data.copy_(t), ValueError),
        LoRALinear,
        "a KeyError is asked for",
    ),
    (check.round_trip, adapter_state, _load_popping, LoRALinear, "changes its input state"),
    (check.round_trip, adapter_state, _load_and_train, LoRALinear, "leaves a model in train()"),
    (check.round_trip, adapter_state, _load_and_reset, LoRALinear, "no A or B"),
    (check.round_trip, adapter_state, _load_by_number, LoRALinear, "does not name the key"),
    (check.round_trip, lambda m: m.state_dict(), load_adapter_, LoRALinear, "holds"),
    (check.round_trip, lambda m: adapter_state(m) and None, load_adapter_, LoRALinear, "`return`"),
    (
        check.round_trip,
        lambda m: {n: {} for n in adapter_state(m)},
        load_adapter_,
        LoRALinear,
        "0.0.A is a dict",
    ),
    (check.round_trip, lambda m: list(state_by_names(m)), load_adapter_, LoRALinear, "dict"),
    (check.round_trip, adapter_state, _no_load, LoRALinear, "still as before"),
    (
        check.round_trip,
        adapter_state,
        lambda m, s: m.load_state_dict(s) and None,
        LoRALinear,
        "unless strict=False",
    ),
    (check.round_trip, adapter_state, _load_returning, LoRALinear, "returns an error: raise it"),
    (check.round_trip, adapter_state, _load_quietly, LoRALinear, "raises nothing"),
    (check.round_trip, adapter_state, _load_vaguely, LoRALinear, "name the key"),
    (check.round_trip, adapter_state, _load_halfway, LoRALinear, "copied some already"),
    (check.round_trip, adapter_state, _load_until, LoRALinear, "copied some already"),
    (check.round_trip, *_named_by(lambda i, n, k: f"{n.split('.')[-1]}.{k}"), "the whole dotted"),
    (check.round_trip, *_named_by(lambda i, n, k: f"{n.split('.')[0]}.{k}"), "4 tensors"),
    (check.round_trip, *_named_by(lambda i, n, k: f"layer{i}.{k}"), "dotted name"),
    (check.round_trip, *_named_by(lambda i, n, k: f"{n}.lora_{k}.weight"), "dotted name"),
    (check.round_trip, *_named_by(lambda i, n, k: (n, k)), "dotted name"),
    (check.round_trip, adapter_state, _load_alias, LoRALinear, "copy the numbers"),
    (check.round_trip, adapter_state, _load_new, LoRALinear, "new Parameter"),
    (check.round_trip, adapter_state, _load_frozen, LoRALinear, "does not require grad"),
    (
        check.round_trip,
        lambda m: {n: t.half() for n, t in adapter_state(m).items()},
        load_adapter_,
        LoRALinear,
        "went through 16 bits",
    ),
    (
        check.round_trip,
        lambda m: {n: t.T for n, t in adapter_state(m).items()},
        load_adapter_,
        LoRALinear,
        "0.0.A is transposed",
    ),
    (
        check.round_trip,
        lambda m: {k[-1]: v for k, v in adapter_state(m).items()},
        load_adapter_,
        LoRALinear,
        "six",
    ),
    (check.counts, lambda model: [32, 640], "trainable, on a small model"),
    (check.counts, _once_through, "gone through once"),
    (check.counts, lambda m: (count_params(m)[0], sum(count_params(m))), "in the total already"),
    (
        check.counts,
        _one_a_shape,
        "trainable, on a small model gave 560, wanted 624: tensors of equal",
    ),
    (check.gradients, _after_a_step, "B has made a step before dA"),
    (check.gradients, _stepped, "this is A after a step"),
    (check.injects, _inject_inside, "also replaced rest.down_proj.0"),
    (check.injects, _inject_one_for_all, "is one LoRALinear with another layer"),
    (check.injects, _inject_tied, "has A or B of another layer"),
    (check.injects, _thawed_by_letter, "thaw nothing by its name"),
    (check.injects, lambda m, *rest: inject(m.bfloat16(), *rest), "cast to another dtype"),
    (check.injects, lambda model, *_: len(model.model.layers), "the model may be any"),
    (check.injects, lambda m, t, r, alpha: inject(m, t, r, 2 * r), "2 r, whatever is given"),
    (check.arithmetic, lambda s, n, r=None: step_flops(s, n, r and 8), "r is 8 here"),
    (check.gradients, _clipped, "dA is not linear in"),
    (check.merges, *_FLIPS, LoRALinear, "it stays False"),
    (check.round_trip, adapter_state, _load_in_order, LoRALinear, "go by the names"),
    (check.round_trip, adapter_state, _load_asserting, LoRALinear, "a ValueError is asked for"),
    (check.arithmetic, lambda s, n, r=None: n * r * sum(map(sum, s.values())), "r is None, and"),
    (check.scales, lambda alpha, r, rank_stabilized=False: alpha, "not divided"),
    (check.scales, lambda alpha, r, rank_stabilized=False: r / alpha, "upside down"),
    (check.scales, lambda alpha, r, rank_stabilized=False: alpha / r, "changes nothing"),
    (check.scales, lambda alpha, r, rs=False: alpha / r**0.5 if rs else alpha // r, "with /"),
    (check.scales, {(32, 16): 2.0}.get, "wanted"),
    (check.scales, lambda alpha, r, on=False: alpha / r if on else alpha / r**0.5, "sqrt(r)"),
    (check.scales, lambda alpha, r, on=False: (alpha / r) ** (0.5 if on else 1), "over r alone"),
    (check.scales, lambda alpha, r, on=False: alpha ** (0.5 if on else 1) / r, "not to alpha"),
    (check.scales, lambda alpha, r, on=False: alpha / r / (r**0.5 if on else 1), "comes twice"),
    (check.scales, lambda alpha, r, on=False: alpha * r**0.5 if on else alpha / r, "divide"),
    (check.scales, lambda alpha, r, on=False: alpha // r**0.5 if on else alpha / r, "//"),
    (check.scales, lambda alpha, r, on=False: round(scaling(alpha, r, on), 1), "rounded"),
    (check.scales, lambda alpha, r, on=False: torch.tensor(scaling(alpha, r, on)), ".item()"),
    (check.scales, lambda alpha, r, on=False: 1 / r, "alpha is missing"),
    (check.scales, lambda alpha, r, on=False: alpha / r ** (2 if on else 1), "r squared"),
    (
        check.scales,
        lambda alpha, r, on=False: alpha / math.isqrt(r) if on else alpha / r,
        "cut to a whole number",
    ),
    (check.scales, lambda alpha, r, on=False: alpha if on else alpha / r, "is not divided"),
    (check.scales, lambda alpha, r, on=False: alpha / r**1 / (2 if on else 1), "** 1/2 halves"),
    (check.scales, lambda alpha, r, on=False: alpha / (r * (0.5 if on else 1)), "half of r"),
    (check.scales, lambda alpha, r, on=False: alpha * r, "multiplied by r"),
    (check.scales, lambda alpha, r, on=False: alpha / r ** (1 / 3 if on else 1), "cube root"),
    (check.scales, lambda alpha, r, on=False: alpha / (math.log2(r) if on else r), "to base 2"),
    (check.scales, lambda alpha, r, on=False: 1.7 * scaling(alpha, r, on), "it is 1.7x the wanted"),
    (check.scales, lambda alpha, r, on=False: round(scaling(alpha, r, on), 2), "is rounded; the"),
    (check.scales, lambda alpha, r, on=False: alpha ** (1.5 if on else 1) / r, "alpha ** 1.5"),
    (check.scales, lambda alpha, r, on=False: alpha / r**1.5, "alpha ** 1 * r ** -1.5"),
    (check.scales, lambda alpha, r, on=False: alpha / (r + 1 if on else r), "sqrt(16) is 4"),
    (check.scales, lambda alpha, r, rank_stabilized=False: alpha / math.sqrt(r), "sqrt"),
    (check.quiz, lambda: {"q1": "b", "q2": "c", "q3": "b"}, "2 of 3"),
    (check.quiz, lambda: ["b", "c", "a"], "dict"),
    (check.quiz, lambda: {"q1": "b", "q2": "?", "q3": "a"}, "q2 wants one of"),
    (check.quiz, lambda: {"q1": "b"}, "q2 wants one of"),
]


def test_a_quiz_keeps_the_points_of_the_right_letters(rejects):
    rejects(check.quiz, lambda: {"q1": "b", "q2": "c", "q3": "b"})
    from labkit import contract

    assert contract.session.records["2.10"]["earned"] == 2


@pytest.mark.parametrize("told", [_layer(init=_as_tensor), _layer(forward=_whole_weight)])
def test_a_slip_of_a_layer_is_told_once(rejects, told):
    assert " | " not in rejects(check.layer, told)


def test_a_name_that_fits_one_count_by_accident_is_not_told(rejects):
    assert "biases" not in rejects(check.counts, lambda m: (_no_biases(m), 4001))


# --- stubs ---------------------------------------------------------------------------------


def _stub(*args, **kwargs):
    raise NotImplementedError


class _StubLayer(nn.Module):
    def __init__(self, base, r, alpha):
        super().__init__()
        raise NotImplementedError


STUBS = [
    (check.matches_dense, _stub),
    (check.layer, _StubLayer),
    (check.gradients, _stub),
    (check.injects, _stub),
    (check.counts, _stub),
    (check.arithmetic, _stub),
    (check.merges, _stub, _stub, LoRALinear),
    (check.merges, merge_, unmerge_, _StubLayer),
    (check.round_trip, _stub, _stub, LoRALinear),
    (check.round_trip, adapter_state, load_adapter_, _StubLayer),
    (check.round_trip, adapter_state, _stub, LoRALinear),
    (check.scales, _stub),
    (check.quiz, _stub),
]
