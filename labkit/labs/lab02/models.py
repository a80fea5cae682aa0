"""Probes of lab 2 that look at whole models, and the small models that these are."""

import functools

import torch
from torch import nn

from labkit.contract import kept

EXTRA = "no.such.layer.A"
CUTS = {  # of a state that does not fit: what is done to a tensor of it
    "turned": lambda t: t.T.contiguous(),
    "thin": lambda t: t[:, :1],
    "flat": lambda t: t[:1],
}
DECOY = "1.1.A"  # no A of a LoRA layer
ADAPTED = ("0.0", "0.2", "1.0")  # the adapted layers of `_adapted`


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


class _Weighted(nn.Sequential):
    """No nn.Linear, with a weight (d, d), as an embedding or a convolution has one."""

    weight = property(lambda self: self[0].weight)


class Model(nn.Module):
    """Two attention blocks, projections outside of them, and an embedding tied to the head.

    A buffer is in its state_dict(), and no parameter.
    One module is no nn.Linear and bears the name of one, and has an nn.Linear of another name.
    """

    def __init__(self, d=8, vocab=11):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": _Attention(d)}) for _ in range(2))
        for name in ("out_proj", "proj", "out_proj_2"):
            setattr(self, name, nn.Linear(d, d))
        self.rest = nn.ModuleDict({"down_proj": _Weighted(nn.Linear(d, d))})
        self.head = nn.Linear(d, vocab, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("places", torch.arange(3 * d))

    def forward(self, ids):
        x = self.rest["down_proj"](self.embed(ids))
        for layer in self.layers:
            x = x + layer["attn"](x)
        x = x + self.out_proj(x) + self.out_proj_2(self.proj(x).tanh())
        return self.head(x)


def small_model(weights, dtype=torch.float32):
    """The small model with these weights {name: tensor}; the tied head comes with the embedding."""
    vocab, d = weights["embed.weight"].shape
    model = Model(d, vocab).to(dtype)
    model.rest["scale"] = Decoy(1).to(dtype)  # its A has to be frozen, too
    model.load_state_dict(weights, strict=False)
    return model


def partly_frozen(d, vocab):
    """A small model, of which the norms train and the embedding, which is tied to the head."""
    model = Model(d, vocab)
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name or "embed" in name)
    return model


class Decoy(nn.Module):
    """No LoRA layer, with a parameter A that trains."""

    def __init__(self, size):
        super().__init__()
        self.A = nn.Parameter(torch.ones(size, size))


def injected(inject, targets, r, alpha, weights, factors):
    """What `inject` does to a small model with these weights: count, adapted modules, flags, and
    its outputs before, after, and with `factors` {name: (A, B)} in place of the fresh A and B.

    `gone` are parameters that are no longer in it; `shared` names whose module is that of another
    one, `tied` those whose A or B is; `modes` tells whether training modes stayed; `set`
    are the names of attributes that modules and parameters have.
    """
    model, ids = small_model(weights), torch.arange(11)
    model.layers[1].eval()
    y, before = [model(ids)], dict(model.named_parameters())
    modes = {name: m.training for name, m in model.named_modules()}  # as many as modules
    count = inject(model, targets, r, alpha)
    if isinstance(count, nn.Module):
        count = "a model"
    adapted = {n: m for n, m in model.named_modules() if hasattr(m, "A") and hasattr(m, "B")}
    adapted = {n: m for n, m in adapted.items() if model.get_submodule(n) is m}  # not a dotted key
    shapes = {n: list(m.A.shape) for n, m in adapted.items()}
    names = {id(getattr(m, part)): f"{n}.{part}" for n, m in adapted.items() for part in "AB"}
    flags = {names.get(id(p), n): p.requires_grad for n, p in model.named_parameters()}
    others = {n: _at(model, n) for n in factors if n not in adapted}
    shared = [n for n, m in others.items() if any(m is one for one in adapted.values())]
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
        "modules": len(modes),
        "shapes": shapes,
        "flags": flags,
        "set": sorted({name for one in [*model.modules(), *before.values()] for name in vars(one)}),
        "gone": gone,
        "shared": shared,
        "tied": [n for n, m in adapted.items() if n + ".A" not in flags or n + ".B" not in flags],
        "modes": all(same[n] for n in same if n not in shapes),
        "y": [*y, model(ids)],
    }


def _at(model, name):
    """The module of this name, or None."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def count_again(inject, targets, r, alpha, weights):
    """What `inject` returns for another small model."""
    return inject(small_model(weights), targets, r, alpha)


def kinds_after(inject, targets, weights):
    """The dtypes of a bf16 model's own weights after `inject`, and of A and B where it put them."""
    model = small_model(weights, torch.bfloat16)
    own = list(model.parameters())
    inject(model, targets, 2, 4)
    return sorted({str(p.dtype).removeprefix("torch.") for p in own})


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


def _trained(A, B, x):
    """A and B after a step of gradient descent on the mean square of `x A' B'`.

    Without it the state would be what the check sends, and an echo would be right.
    """
    with torch.enable_grad():
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        dA, dB = torch.autograd.grad((x @ A.T @ B.T).square().mean(), (A, B))
    return (A - 0.1 * dA).detach(), (B - 0.1 * dB).detach()


def _adapted(LoRALinear, A, B, x):
    """A nested model with the layers ADAPTED, a plain one, a decoy; A and B a step from these."""
    r, square = A.shape
    inner = nn.Sequential(*(nn.Linear(square, square) for _ in range(3)))
    model = nn.Sequential(inner, nn.Sequential(nn.Linear(square, square), Decoy(square)))
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
    names = list(state)  # of the layers the first comes last: names count, and no order
    turned = {n: state[n] for n in names[2:] + names[:2]}
    kept(functools.partial(load_adapter_, other), turned)
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


def load_error(adapter_state, load_adapter_, LoRALinear, A, B, x, change, name):
    """`[kind and text of load_adapter_'s error, whether A and B are as before]`; None without one.

    The word "returned" where it returns an error and raises none.

    The state has one key too many, lacks `name`, or has there a tensor that was changed as in CUTS.
    """
    model, other = (_adapted(LoRALinear, M, B, x) for M in (A, A + 1))
    before = {name: part.detach().clone() for name, part in _parts(model).items()}
    state = dict(adapter_state(other))
    if change == "extra":
        state[name] = A
    elif change == "missing":
        del state[name]
    else:
        state[name] = CUTS[change](state[name].detach())
    try:
        result = load_adapter_(model, state)
    except NotImplementedError:
        raise
    except Exception as error:
        kept = all(torch.equal(part, before[name]) for name, part in _parts(model).items())
        return [[k.__name__ for k in type(error).__mro__], str(error), kept]
    return "returned" if isinstance(result, BaseException) else None
