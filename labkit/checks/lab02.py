"""Checks of lab 2. The reference is the dense layer `W + (alpha / r) B A`, autograd, or torch."""

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry

from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, expect, generator, observe
from labkit.probes import lab02 as probes
from labkit.probes import models, watch

BY_HAND = [torch.tensor(t) for t in ([1.0, 2], [[1.0, 0], [0, 1]], [[1.0, 1]], [[1.0], [0]])]
NO_R = "r is not a parameter here: take it from A.shape[0]"


def dense(x, W, A, B, alpha):
    """The layer's output by the dense formula."""
    return x @ (W + alpha / len(A) * B @ A).T


def numbers(rng, d_out, d_in, r, alpha, bias=True):
    """`W, bias, A, B, alpha`; r divides no alpha below, so that `//` differs from `/`."""
    shapes = (d_out, d_in), (d_out,), (r, d_in), (d_out, r)
    W, b, A, B = (randn(*shape, rng=rng) for shape in shapes)
    return (W, b, A, B, alpha) if bias else (W, A, B, alpha)


@exercise("2.1", points=2)
def matches_dense(lora_forward):
    """equals the dense formula for any leading shape, and never forms B @ A"""
    rng = generator()
    expect("r" not in observe(watch.global_names, lora_forward), NO_R)
    cases = {"on the example from the text": (*BY_HAND, 2)}
    for lead, *sizes in (
        *(((4,), 7, 5, 3, 11.0), ((2, 3), 7, 5, 3, 11.0), ((), 7, 5, 3, 11.0)),
        *(((1,), 6, 6, 6, 14.0), ((4,), 7, 5, 3, 2.0), ((4,), 5, 4, 6, 13.0)),
    ):
        x, (W, A, B, alpha) = randn(*lead, sizes[1], rng=rng), numbers(rng, *sizes, bias=False)
        where = f"on x {tuple(x.shape)}, W {tuple(W.shape)}, r = {len(A)}, alpha = {alpha:g}"
        cases[where] = x, W, A, B, alpha
    expect_right(lora_forward, cases, dense)
    large = randn(1, 384, rng=rng), *numbers(rng, 256, 384, 2, 10.0, bias=False)
    thin = {"the result": "a tensor", "the largest tensor in lora_forward": "smaller than W"}
    where = "with W of shape (256, 384)"
    expect_right(lora_forward, {where: large}, lambda *_: thin, probes.forward_work)


@exercise("2.2", points=3)
def layer(LoRALinear):
    """starts as the base layer, adds exactly the scaled update, and trains only A and B"""
    rng = generator()
    W, bias, A, B, _ = numbers(rng, 48, 256, 5, 3.0)
    x = randn(6, 256, rng=rng)
    cases = {"in a new layer with r = 5, alpha = 3": (W, bias, A, B, 3.0, x)}
    expect_right(LoRALinear, cases, _new_layer, probes.new_layer)
    cases = {"once A and B are set": (W, bias, A, B, 14.0, x)}
    expect_right(LoRALinear, cases, _forward, probes.layer_forward)
    in_bf16 = {
        "the dtype of A with a bf16 base": "float32",
        "the dtype of B with a bf16 base": "float32",
        "the Parameters among A and B, with a bf16 base or on another device,": ["A", "B"],
        "the dtype of the output with a bf16 base": "bfloat16",
        "the device of A and B, for a base that is not on the CPU,": "meta",
        "the largest tensor in forward": "smaller than W",
    }
    cases = {"": (W, A, 14.0)}
    expect_right(LoRALinear, cases, lambda *_: in_bf16, probes.layer_in_bf16)


def _new_layer(W, bias, A, B, alpha, x):
    return {
        "the type of A": "Parameter",
        "the type of B": "Parameter",
        "layer.base": "the layer it was given",
        "the base layer's weights": "left as they were",
        "layer.r": len(A),
        "layer.scaling": alpha / len(A),
        "layer.merged": "False",
        "the shape of A": str(tuple(A.shape)),
        "the shape of B": str(tuple(B.shape)),
        "A at the start": "random with entries of about 1/sqrt(d_in)",
        "B at the start": "all zeros",
        "the parameters": ["A", "B", "base.bias", "base.weight"],
        "the parameters that train": ["A", "B"],
        "the output": x @ W.T + bias,
    }


def _forward(W, bias, A, B, alpha, x):
    y = dense(x, W, A, B, alpha) + bias
    return {
        "the output": y,
        "the output without a bias": y - bias,
        "the output for one row of x": y[0],
        "the output for x of shape (2, 3, d_in)": y.view(2, 3, -1),
        "the output in eval()": y,
        "the output while merged is True": x @ W.T + bias,
        "the gradient of x": 2 * y @ (W + alpha / len(A) * B @ A),
        "the base layer's weights": "left as they were",
        "what a training step changes": "A and B",
        "what the first training step of a new layer changes": "B",
        "the largest tensor in forward": "smaller than W",
        "the computation": "vectorized",
    }


@exercise("2.3", points=3)
def gradients(lora_gradients):
    """equals autograd's gradients, and dA is zero while B is zero"""
    rng = generator()
    expect("r" not in observe(watch.global_names, lora_gradients), NO_R)
    x, dY = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0]])
    by_hand = x, torch.tensor([[5.0, 6.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0]])
    cases = {"on the example from the text": (*by_hand, 2, dY)}
    for n, d_out, d_in, r, alpha in ((1, 3, 2, 1, 3.0), (6, 7, 5, 3, 2.0), (2, 40, 30, 3, 7.0)):
        data = (randn(n, d_in, rng=rng), *numbers(rng, d_out, d_in, r, alpha, bias=False))
        where = f"for x of shape {(n, d_in)} and dY of shape {(n, d_out)}"
        cases[where] = (*data, randn(n, d_out, rng=rng))
    x, W, A, B, alpha, dY = cases[where]
    cases["while B is zero"] = (x, W, A, 0 * B, alpha, dY)
    expect_right(lora_gradients, cases, _gradients, probes.by_hand)


def _gradients(x, W, A, B, alpha, dY):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    with torch.enable_grad():
        dA, dB = torch.autograd.grad((dense(x, W, A, B, alpha) * dY).sum(), (A, B))
    by_hand = {"the gradients": "computed by hand", "the result": "a tuple of 2"}
    return by_hand | {"dA": dA, "dB": dB, "the computation": "vectorized"}


TARGETS = {  # what is asked for: the layers that have these names
    ("q_proj", "v_proj"): [f"layers.{i}.attn.{kind}_proj" for i in range(2) for kind in "qv"],
    ("k_proj", "out_proj"): ["layers.0.attn.k_proj", "layers.1.attn.k_proj", "out_proj"],
    ("proj", "down_proj"): ["proj"],  # down_proj is not an nn.Linear, though it contains one
}


@exercise("2.4", points=3, after="2.2")
def injects(inject):
    """replaces only the named projections in place, freezes the rest, adds the scaled update"""
    rng, r, alpha, cases = generator(), 3, 10, {}
    weights = {name: randn(*p.shape, rng=rng) for name, p in models.Model().named_parameters()}
    for targets, names in TARGETS.items():
        factors = {name: (randn(r, 8, rng=rng), randn(8, r, rng=rng)) for name in names}
        where = f"after inject(model, {list(targets)}, r={r}, alpha={alpha})"
        cases[where] = (list(targets), r, alpha, weights, factors)
    expect_right(inject, cases, _injected, probes.injected, tol=1e-3)
    elsewhere = {"the return value": len(names), "the dtype of a bf16 model afterwards": "bfloat16"}
    case = {"for a second model": (list(targets), r, alpha, weights)}
    expect_right(inject, case, lambda *_: elsewhere, probes.injected_elsewhere)


def _injected(targets, r, alpha, weights, factors):
    def output(scale):
        full = {name: tensor.double() for name, tensor in weights.items()}
        for name, (A, B) in factors.items():
            full[f"{name}.weight"] = full[f"{name}.weight"] + scale * (B @ A).double()
        with torch.no_grad():
            return models.small_model(full, torch.double)(torch.arange(11))

    return {
        "the replaced layers": sorted(factors),
        "the type of the return value": "int",
        "the return value": len(factors),
        "the old parameters that are gone": [],
        "the ranks": [r],
        "the parameters that train": sorted(f"{name}.{part}" for name in factors for part in "AB"),
        "the mode": "left as it was",
        "the output with new layers": output(0.0),
        "the output with A and B set": output(alpha / r),
    }


@exercise("2.5", points=2)
def arithmetic(step_flops):
    """equals torch's own FLOP count for real layers, forward and backward"""
    rng = generator()
    sides = [int(side) * 2 + 11 for side in torch.randperm(36, generator=rng)[:4]]
    several = {"q_proj": (sides[0], sides[1]), "up_proj": (sides[3], sides[0])}
    several |= {"k_proj": (sides[2], sides[1]), "v_proj": (sides[2], sides[1])}
    data = [
        ({"k_proj": (4, 8)}, 3),
        (several, draw(11, 60, rng)),
        ({"o_proj": tuple(sides[2:])}, 61),
    ]
    data += [(shapes, n, r) for (shapes, n), r in zip(data, (2, draw(4, 9, rng), 5), strict=True)]
    expect_right(step_flops, {_call(*one): one for one in data}, counted)


def _call(shapes, n_tokens, r=None):
    return f"for step_flops({shapes}, {n_tokens}{f', r={r}' if r else ''})"


def counted(shapes, n_tokens, r=None):
    """FLOPs of such layers, forward and backward, as torch counts them in real products."""
    with _Counter() as counter, torch.enable_grad():
        for d_out, d_in in shapes.values():
            x = torch.zeros(n_tokens, d_in, requires_grad=True)
            y = F.linear(x, torch.zeros(d_out, d_in, requires_grad=r is None))
            if r is not None:
                A, B = (torch.zeros(s, requires_grad=True) for s in ((r, d_in), (d_out, r)))
                y = y + F.linear(F.linear(x, A), B)
            y.sum().backward()
    return counter.total


class _Counter(watch.Watch):
    """Sums the FLOPs of each operation as torch counts them, without importing its compiler."""

    total = 0

    def seen(self, function, args, kwargs, out):
        count = flop_registry.get(function._overloadpacket)
        self.total += count(*args, **kwargs, out_val=out) if count else 0


@exercise("2.6", points=3, after="2.2")
def merges(merge_, unmerge_, LoRALinear):
    """adds (alpha / r) B A to W only once, keeps the output; unmerging undoes it, up to rounding"""
    rng = generator()
    data = (*numbers(rng, 7, 5, 3, 10.0), randn(4, 5, rng=rng))
    expect_right(
        (merge_, unmerge_, LoRALinear), {"for a LoRALinear": data}, _merged, probes.merging
    )


def _merged(W, bias, A, B, alpha, x):
    dW = alpha / len(A) * B @ A
    weights = {
        "unmerge_ of a layer that was never merged": W,
        "merge_": W + dW,
        "a second merge_": W + dW,
        "unmerge_": W,
        "a second unmerge_": W,
    }
    facts = {f"base.weight after {when}": weight for when, weight in weights.items()}
    facts |= {f"the output after {when}": x @ (W + dW).T + bias for when in weights}
    facts["another layer's base.weight after merge_"] = W + dW
    weights = {"another merge_ with a changed A": W + 2 * dW, "another unmerge_": W}
    facts |= {f"base.weight after {when}": weight for when, weight in weights.items()}
    facts |= {f"the output after {when}": x @ (W + 2 * dW).T + bias for when in weights}
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    with torch.enable_grad():
        loss = (dense(x, W, A, B, alpha) + bias).square().sum()
        dA, dB = torch.autograd.grad(loss, (A, B))
    facts |= {noun: stayed for noun, (stayed, _) in models.STATES.items()}
    return facts | {
        "layer.merged after unmerge_": False,
        "the gradient of A after unmerge_": dA,
        "the gradient of B after unmerge_": dB,
        "the dtypes of W, A and B with a bf16 base": "bfloat16, float32, float32",
    }


@exercise("2.7", points=3, after="2.2")
def round_trip(adapter_state, load_adapter_, LoRALinear):
    """contains only A and B of every layer, loads them back, refuses a state that doesn't fit"""
    rng, r = generator(), 2
    data = [randn(*shape, rng=rng) for shape in ((r, 2 * r), (2 * r, r), (3, 2 * r))]
    answers = adapter_state, load_adapter_, LoRALinear
    where = "with LoRA in the layers '0.0', '0.2' and '2'"
    expect_right(answers, {where: data}, _state, probes.state)
    where = "after load_adapter_ of a state that fits, its keys in any order"
    expect_right(answers, {where: data}, _loaded, probes.loaded)
    # a loop that copies as it compares has changed the model before it comes to some of these
    places = ("2.A", "0.2.A", "0.2.A", "0.2.A", "0.2.B", "2.A", "2.A", "2.B")
    misfits = [*probes.MISFITS, *list(probes.MISFITS)[-2:]]
    cases = {
        f"given a state {misfit} {name!r}": (*data, misfit, name)
        for misfit, name in zip(misfits, places, strict=True)
    }
    refused = {"load_adapter_()": "raise an error and leave the model unchanged"}
    expect_right(answers, cases, lambda *_: refused, probes.refused)


def _tensors(A, B, x):
    """`{name: A or B}` of the model that `probes` builds from these tensors."""
    pairs = {name: models.trained(A + i, B - i, x) for i, name in enumerate(models.ADAPTED)}
    return {f"{n}.{k}": t for n, pair in pairs.items() for k, t in zip("AB", pair, strict=True)}


def _state(A, B, x):
    tensors = _tensors(A, B, x)
    facts = {"the type of adapter_state(model)": "dict"}
    facts["the keys of adapter_state(model)"] = sorted(tensors)
    return facts | {f"adapter_state(model)[{name!r}]": t for name, t in tensors.items()}


def _loaded(A, B, x):
    facts = {"A and B": "the Parameters they were"}
    facts |= {f"the model's {name}": tensor for name, tensor in _tensors(A, B, x).items()}
    return facts | {
        "A and B at the end": "trainable",
        "the other parameters": "left as they were",
        "the mode": "left as it was",
    }


quiz = quiz_of("2.8", points=3)
