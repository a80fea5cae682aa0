"""Lab 2's checks: right answers written differently, and wrong ones that no row expresses."""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from labkit.checks import lab02 as check

# --- right answers -------------------------------------------------------------------------


def forward_einsum(x, W, A, B, alpha):
    h = torch.einsum("...i,ri->...r", x, A)
    return torch.einsum("...i,oi->...o", x, W) + torch.einsum(
        "...r,or->...o", h, B * alpha / len(A)
    )


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


class ScaledFirst(nn.Module):
    """Another order of the work, and A as in Raschka's book: of standard deviation 1 / sqrt(r)."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.scaling, self.merged = base, r, alpha / r, False
        for p in base.parameters():
            p.requires_grad = False
        w = base.weight
        self.A = nn.Parameter(torch.randn(r, w.shape[1], device=w.device) * r**-0.5)
        self.B = nn.Parameter(w.new_zeros(w.shape[0], r, dtype=torch.float32))

    def forward(self, x):
        y = self.base(x)
        if not self.merged:
            y = y + self.update(x).to(y.dtype)
        return y

    def update(self, x):
        return (x.to(self.A) * self.scaling @ self.A.mT) @ self.B.mT


class ByProperty(nn.Module):
    """Scaling is computed, parameters are registered by name."""

    scaling = property(lambda self: self.alpha / self.r)
    merged = False

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.alpha = base.requires_grad_(False), r, alpha
        like = {"dtype": torch.float32, "device": base.weight.device}
        A = torch.randn(r, base.in_features, **like) / base.in_features**0.5
        self.register_parameter("A", nn.Parameter(A))
        self.register_parameter("B", nn.Parameter(torch.zeros(base.out_features, r, **like)))

    def forward(self, x):
        y, rows = self.base(x), x.reshape(-1, x.shape[-1]).float()
        if self.merged:
            return y
        update = torch.mm(torch.mm(rows, self.A.t()), self.B.t()).view(y.shape)
        return torch.add(y, update.to(y.dtype), alpha=self.scaling)


class FromModules(nn.Module):
    """A and B are the weights of two linear layers."""

    A = property(lambda self: self.down.weight)
    B = property(lambda self: self.up.weight)

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.scaling, self.merged = base, r, alpha / r, False
        base.requires_grad_(False)
        like = {"dtype": torch.float32, "device": base.weight.device, "bias": False}
        self.down = nn.Linear(base.in_features, r, **like)
        self.up = nn.Linear(r, base.out_features, **like)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        y = self.base(x)
        return y if self.merged else y + (self.scaling * self.up(self.down(x.float()))).to(y.dtype)


def gradients_einsum(x, W, A, B, alpha, dY):
    s = alpha / A.size(0)
    dA = torch.einsum("no,or,ni->ri", dY, B, x) * s
    return [dA, torch.einsum("no,ri,ni->or", dY, A, x) * s]


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
                setattr(module, name, ScaledFirst(child, r, alpha))
                n += 1
    return n


def inject_recursive(model, targets, r, alpha, top=True):
    if top:
        model.requires_grad_(False)
    count = 0
    for name, child in model.named_children():
        if name in targets and type(child) is nn.Linear:
            model._modules[name] = ScaledFirst(child, r, alpha)
            count += 1
        else:
            count += inject_recursive(child, targets, r, alpha, top=False)
    return count


def inject_then_freeze(model, targets, r, alpha):
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    names = [n for n in linear if n.rpartition(".")[2] in set(targets)]
    for name in names:
        model.set_submodule(name, ScaledFirst(model.get_submodule(name), r, alpha))
    new = {f"{name}.{part}" for name in names for part in "AB"}
    for name, p in model.named_parameters():
        p.requires_grad_(name in new)
    return len(names)


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


def _names(model):
    layers = [n for n, m in model.named_modules() if hasattr(m, "base")]
    return [f"{n}.{k}" for n in layers for k in "AB"]


def state_by_names(model):
    names = _names(model)
    return {n: p for n, p in model.named_parameters() if n in names}


def load_adapter_(model, state):
    own = state_by_names(model)
    for name in own.keys() ^ state.keys():
        raise KeyError(f"missing, or fits nowhere: {name}")
    for name in own:
        if own[name].shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}")
    for name, tensor in state.items():
        own[name].data.copy_(tensor)


def state_of_parts(model):
    """By what a layer has, not by its class; an ordered dict."""
    found = OrderedDict()
    for name, m in model.named_modules():
        if hasattr(m, "A") and hasattr(m, "scaling"):
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


RIGHT = [
    *((check.matches_dense, f) for f in (forward_einsum, forward_in_place, forward_in_numpy)),
    *((check.layer, c) for c in (ScaledFirst, ByProperty, FromModules)),
    (check.gradients, gradients_einsum),
    (check.gradients, gradients_row_by_row),
    (check.gradients, gradients_in_numpy),
    *((check.injects, f) for f in (inject, inject_recursive, inject_then_freeze)),
    *((check.arithmetic, f) for f in (flops_by_product, flops_in_numpy)),
    (check.merges, merge_keep, unmerge_keep, FromModules),
    (check.merges, merge_by_scaling, unmerge_by_scaling, ScaledFirst),
    (check.round_trip, state_by_names, load_adapter_, ScaledFirst),
    (check.round_trip, state_of_parts, load_by_slices, FromModules),
]

# --- wrong answers, besides the rows of lab02.toml --------------------------------------------


def forward_on_w(x, W, A, B, alpha):
    W += alpha / len(A) * B @ A
    return x @ W.T


def forward_dense_in_numpy(x, W, A, B, alpha):
    W = W.numpy() + alpha / len(A) * B.numpy() @ A.numpy()
    return torch.from_numpy(np.asarray(x.numpy() @ W.T))


class MergesInEval(ScaledFirst):
    """As Microsoft's loralib does."""

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            sign = -1 if mode else 1
            self.base.weight.data += sign * self.scaling * self.B.data @ self.A.data
            self.merged = not mode
        return self


class SkipsZeroB(ScaledFirst):
    def forward(self, x):
        return super().forward(x) if self.B.any() else self.base(x)


class MovedByDevice(ScaledFirst):
    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        self.__dict__["A"] = self._parameters.pop("A").to(base.weight.device)


class RowByRow(ScaledFirst):
    def update(self, x):
        rows = [super(RowByRow, self).update(row) for row in x.reshape(-1, x.shape[-1])]
        return torch.stack(rows).view(*x.shape[:-1], -1)


def gradients_by_autograd(x, W, A, B, alpha, dY):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad((forward_einsum(x, W, A, B, alpha) * dY).sum(), (A, B))


def inject_and_train(model, targets, r, alpha):
    n = inject(model, targets, r, alpha)
    model.train()
    return n


def merge_on_class(layer):
    if not type(layer).merged:
        merge_keep(layer)
        type(layer).merged = True


def unmerge_on_class(layer):
    if type(layer).merged:
        unmerge_keep(layer)
        type(layer).merged = False


def merge_in_bf16(layer):
    merge_keep(layer)
    layer.A.data = layer.A.data.to(layer.base.weight.dtype)


def nested_state(model):
    return {n: p for n, p in state_by_names(model).items() if n.count(".") > 1}


def load_frozen(model, state):
    for name, p in state_by_names(model).items():
        p.requires_grad_(False).copy_(state[name])


WRONG = [
    (check.matches_dense, forward_on_w, "changes its input `W` in place"),
    (check.matches_dense, forward_dense_in_numpy, "as large as W"),
    (check.matches_dense, lambda *data: forward_einsum(*data).bfloat16(), "to 16 bits"),
    (check.matches_dense, lambda *data: forward_einsum(*data).squeeze(0), "have shape (1, 6)"),
    (check.layer, MergesInEval, "the output while merged is True"),
    (check.layer, SkipsZeroB, "new layer changes should be B, not nothing"),
    (check.layer, MovedByDevice, "the parameters should include A"),
    (check.layer, RowByRow, "vectorized, not a loop over rows"),
    (check.gradients, gradients_by_autograd, "computed by hand, not computed by autograd"),
    (check.gradients, lambda x, *w: gradients_einsum(x[:1], *w[:-1], w[-1][:1]), "dA is"),
    (check.injects, inject_and_train, "the mode should be left as it was"),
    (check.merges, merge_on_class, unmerge_on_class, ByProperty, "another layer's base.weight"),
    (check.merges, merge_in_bf16, unmerge_keep, ScaledFirst, "not bfloat16, bfloat16, float32"),
    (check.round_trip, nested_state, load_adapter_, ScaledFirst, "should include 2.A, 2.B"),
    (check.round_trip, state_by_names, load_frozen, ScaledFirst, "trainable, not frozen"),
]
