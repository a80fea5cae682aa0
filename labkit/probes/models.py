"""Small models with names that provoke learners' mistakes."""

import torch
from torch import nn

ADAPTED = ("0.0", "0.2", "2")  # the LoRA layers of `adapted`
NAMES = [f"{layer}.{part}" for layer in ADAPTED for part in "AB"]


class _Attention(nn.Module):
    """Attention with traps: `kq_proj` only ends like `q_proj`, and a norm's name ends in A."""

    def __init__(self, d):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "kq_proj"):
            setattr(self, name, nn.Linear(d, d, bias=name != "v_proj"))
        self.normA = nn.LayerNorm(d)

    def forward(self, x):
        y = self.q_proj(x) * self.k_proj(x) + self.kq_proj(x)
        return self.normA(self.v_proj(y.tanh()))


class QuantLinear(nn.Sequential):
    """A layer that is no nn.Linear but has a weight (d, d), and a linear layer's sizes."""

    weight = property(lambda self: self[0].weight)
    in_features = out_features = property(lambda self: len(self.weight))


class Decoy(nn.Module):
    """A layer that is no LoRA layer but has trained parameters A and B."""

    def __init__(self, size):
        super().__init__()
        self.A, self.B = (nn.Parameter(torch.ones(size, size)) for _ in "AB")


class Model(nn.Module):
    """Two attention blocks, projections outside them, and an embedding tied to the head."""

    def __init__(self, d=8, vocab=11):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": _Attention(d)}) for _ in range(2))
        for name in ("out_proj", "proj", "out_proj_2"):
            setattr(self, name, nn.Linear(d, d))
        self.rest = nn.ModuleDict({"down_proj": QuantLinear(nn.Linear(d, d))})
        self.head = nn.Linear(d, vocab, bias=False)
        self.head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.ones(d))  # the model's own, in no submodule

    def forward(self, ids):
        x = self.gain * self.rest["down_proj"](self.embed(ids))
        for layer in self.layers:
            x = x + layer["attn"](x)
        x = x + self.out_proj(x) + self.out_proj_2(self.proj(x).tanh())
        return self.head(x)


def small_model(weights, dtype=torch.float32):
    """Make a Model with weights `{name: tensor}` and a Decoy, which must be frozen, too."""
    vocab, d = weights["embed.weight"].shape
    model = Model(d, vocab).to(dtype)
    model.rest["scale"] = Decoy(1).to(dtype)
    model.load_state_dict(weights, strict=False)
    return model


def trained(A, B, x):
    """Take a step of gradient descent on A and B, so that the check does not know them."""
    with torch.enable_grad():
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        dA, dB = torch.autograd.grad((x @ A.T @ B.T).square().mean(), (A, B))
    return (A - 0.1 * dA).detach(), (B - 0.1 * dB).detach()


def adapted(LoRALinear, A, B, x):
    """Make a nested model with LoRA in the layers ADAPTED and with a Decoy."""
    r, size = A.shape
    inner = nn.Sequential(*(nn.Linear(size, size) for _ in range(3)))
    model = nn.Sequential(inner, Decoy(size), nn.Linear(size, size))
    for i, name in enumerate(ADAPTED):
        layer = LoRALinear(model.get_submodule(name), r, 4)
        model.set_submodule(name, layer)
        with torch.no_grad():
            for part, data in zip((layer.A, layer.B), trained(A + i, B - i, x), strict=True):
                part.copy_(data)
    return model


def parts(model):
    """A and B of the LoRA layers that `adapted` makes, by name."""
    return {name: getattr(model.get_submodule(name[:-2]), name[-1]) for name in NAMES}


def step(layer, x):
    """Describe which parts of the layer a step of SGD changes."""
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    names = {id(layer.A): "A", id(layer.B): "B"}
    trainable = [p for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1) if trainable else None
    layer.zero_grad()
    y = layer(x.detach())
    if y.requires_grad:
        y.square().mean().backward()
    if optimizer:
        optimizer.step()
    moved = [names.get(id(p), n) for n, p in layer.named_parameters() if (p != before[n]).any()]
    return " and ".join(sorted(moved)) or "nothing"


STATES = {  # unchanged by merging: (right, wrong) values
    "the mode": ("left as it was", "switched between train() and eval()"),
    "requires_grad of base.weight, A and B": ("left as it was", "switched"),
    "base.weight, A and B": ("the Parameters they were", "new ones"),
    "A, B and the bias": ("left as they were", "changed"),
}


def rest(layer, weight, AB):
    """What merging must leave unchanged, apart from the values of base.weight."""
    return {
        "the mode": [m.training for m in layer.modules()],
        "requires_grad of base.weight, A and B": [p.requires_grad for p in (weight, *AB)],
        "base.weight, A and B": [layer.base.weight is weight, layer.A is AB[0], layer.B is AB[1]],
        "A, B and the bias": [
            t if t is None else t.tolist() for t in (layer.A, layer.B, layer.base.bias)
        ],
    }
