"""What exercises 2.4 and 2.8 expect: LoRA in a model, and its state."""

import torch

from labkit.checks.compare import close, expect_close, randn
from labkit.checks.lab02 import guesses
from labkit.checks.lab02.linear import still_train, unfrozen
from labkit.checks.relations import difference
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab02 import models

ROOT = 'stands at the root: its parent is the model, model.get_submodule("")'


def expect_injected(inject, targets, names, r, alpha, rng):
    """Exactly the layers `names` are replaced, all else is frozen and as it was.

    Returns the call as text, and what `models.injected` tells of it.
    """
    weights = {name: randn(*p.shape, rng=rng) for name, p in models.Model().named_parameters()}
    factors = {name: (randn(r, 8, rng=rng), randn(8, r, rng=rng)) for name in names}
    call = f"inject(model, {targets}, r={r}, alpha={alpha})"
    got = _ask_inject(call, inject, targets, r, alpha, weights, factors)
    with part():
        alike = ", ".join(got["shared"][:1])
        told = f"after {call}, {alike} is one LoRALinear with another layer: each has its own"
        expect(not alike, told)
        tied = ", ".join(got["tied"][:1])
        expect(not tied, f"after {call}, {tied} has A or B of another layer: each has its own")
        _expect_names(set(got["shapes"]), set(names), call, got["count"])
        wrapped = "give LoRALinear the layer itself, no copy and no new one"
        gone = ", ".join(got["gone"][:2])
        expect(not gone, f"after {call}, {gone} is no longer in the model: {wrapped}")
        turned = all(s == [alpha, 8] for s in got["shapes"].values())
        hint = "; alpha stands in its place: LoRALinear(base, r, alpha)" if turned else ""
        right = all(s == [r, 8] for s in got["shapes"].values())
        expect(right, f"{call}: r is not passed on{hint}")
        _expect_outputs(got["y"], weights, factors, alpha, call)
    with part():
        _expect_flags(call, got["flags"], names, got["shapes"], got["set"])
    with part():
        module = got["count"] == "a model"
        expect(not module, f"{call} returned a model, wanted how many layers were replaced")
    with part():
        expect(got["modes"], f"{call} leaves train() or eval() changed: leave the mode as it is")
    with part():
        if type(got["count"]) is int:
            again = observe(models.count_again, inject, targets, r, alpha, weights)
            told = f"{call} gave {got['count']}, and of another such model {again}: counts of "
            told += "earlier calls are in it (a default list, or a global, lives on)"
            expect(again == got["count"], told)
    with part():
        kinds = observe(models.kinds_after, inject, targets, weights)
        hint = "no .to() or .float() on the model, nor on a p.data of it"
        expect(
            kinds == ["bfloat16"], f"{call} turned a bf16 model's weights to {kinds[-1]}: {hint}"
        )

    return call, got


def _ask_inject(call, inject, *args):
    try:
        return observe(models.injected, inject, *args)
    except CheckFailed as failure:
        text = str(failure)
    told, root = f"{call}: {text}", [name for name in args[0] if name in ("out_proj", "proj")]
    hint = f"; {root[0]} {ROOT}" if root else ""
    if "'Model' object has no attribute" in text:
        hint = "; the model may be any: named_modules() tells what it has"
    if "same dtype" in text:
        hint = "; is the model cast to another dtype? No .to(), .half() or .float() on it"
    if "maximum recursion" in text:
        hint = ": a module holds itself; the new layer takes the old one's place in its parent"
    if "'_Weighted' object" in text:
        hint = ": a module that is no nn.Linear bears the name too; ask isinstance(m, nn.Linear)"
    if "changed size during iteration" in text or "mutated during" in text:
        hint = ": collect the modules in a list before you replace any"
    raise CheckFailed(told + hint)


def _expect_flags(call, flags, names, adapted, attributes):
    trains = {name for name, flag in flags.items() if flag}
    adapters = {f"{name}.{part}" for name in names for part in "AB"}
    extra = sorted(trains - adapters - {f"{name}.{part}" for name in adapted for part in "AB"})
    other = " (its A is no LoRA layer's)" if extra == ["rest.scale.A"] else ""
    alike = all("A" in name or "B" in name for name in extra)
    hint = unfrozen("model", attributes, "freeze all, then add layers")
    hint = "freeze all, and thaw nothing by its name" if alike else hint
    if other:
        hint = "go by the layer, not by names: freeze all but A and B of each LoRALinear"
    if all(name.rpartition(".base.")[0] in adapted for name in extra):
        hint = "that is the base inside of each LoRALinear: thaw A and B alone"
    expect(not extra, f"after {call}, {still_train(extra[:3])}{other}: {hint}")
    frozen = " and ".join(sorted({name[-1] for name in adapters & flags.keys() - trains}))
    expect(not frozen, f"{call} froze {frozen}: freeze before you add the layers")


def _expect_outputs(outputs, weights, factors, alpha, call):
    """The model as it was with fresh layers, the dense formula's once A and B are set."""
    outputs = [y.double() if isinstance(y, torch.Tensor) else y for y in outputs]
    plain = _output(weights, factors, 0.0)
    hint = "a fresh LoRA layer must not change the model: is B zero, is the base layer kept?"
    same = isinstance(outputs[1], torch.Tensor) and outputs[1].shape == plain.shape
    same = same and close(outputs[1], plain, 1e-3)
    expect(same, f"{call} changed the output; {hint}")
    r = len(next(iter(factors.values()))[0])
    factor_of = {"alpha is not passed on: the factor is 1": 1.0}
    factor_of["alpha is not passed on: it is 2 r, whatever is given"] = 2.0
    factor_of |= guesses.factors(alpha, r)
    known = {message: _output(weights, factors, factor) for message, factor in factor_of.items()}
    known["the layers change nothing: their A and B are not in forward"] = plain
    wanted = _output(weights, factors, alpha / r)
    expect_close(outputs[2], wanted, f"after {call}, with A and B set, the output", known, 1e-3)


def _output(weights, factors, scale):
    """The small model's output, in fp64, with `scale` B A added to the weights in `factors`."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    for name, (A, B) in factors.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + scale * (B @ A).double()
    with torch.no_grad():
        return models.small_model(weights, torch.double)(torch.arange(11))


def _expect_names(adapted, wanted, call, count):
    nested = [name for name in adapted if name.endswith(".base")]
    expect(
        not nested,
        f"{call} wrapped a wrapped layer ({', '.join(nested[:1])})",
        hint="collect the modules in a list before you replace any",
    )
    other = "rest.down_proj" in adapted - wanted
    hint = "ask isinstance(m, nn.Linear)"
    expect(not other, f"{call} also replaced rest.down_proj, which is no nn.Linear: {hint}")
    for name in sorted(wanted - adapted):
        inside = f"{name}.{name}" in adapted
        expect(not inside, f"{call} put the new layer into {name} itself; {name} {ROOT}")
    near = sorted(adapted - wanted)
    hint = "compare the last part of the dotted name as a whole (own in targets), no piece of it"
    if len(adapted) == 13:
        hint = "these are all nn.Linear; `targets` has the names of those to replace"
    expect(not near, f"{call} also replaced {', '.join(near[:2])}: {hint}")  # told once of all
    missing = sorted(wanted - adapted)
    hint = "set the new layer on its parent module in this very model: setattr(parent, name, layer)"
    owns = {name.rpartition(".")[2] for name in adapted}
    again = [own for own in (name.rpartition(".")[2] for name in missing) if own in owns]
    if again:
        hint = f"it stops too early: another {again[0]} is replaced"
    if count == 0:
        hint = "it found none: named_modules() tells of all, children of children too, and the "
        hint += "last part of the dotted name is compared"
    if len(missing) == 1 and "." not in missing[0]:
        hint = f"{missing[0]} {ROOT}"
    expect(not missing, f"{call} left {', '.join(missing[:2])} as it was; {hint}")


def expect_state(adapter_state, LoRALinear, A, B, x):
    """`{name: tensor}` as it has to be, of a state that holds A and B of each layer alone."""
    state = observe(models.state, adapter_state, LoRALinear, A, B, x)
    tensors = {}
    for i, layer in enumerate(models.ADAPTED):
        trained = _trained(A + i, B - i, x)
        tensors |= {f"{layer}.{part}": t for part, t in zip("AB", trained, strict=True)}
    expect(state is not None, "adapter_state gave None: is `return` missing?")
    expect(isinstance(state, dict), "adapter_state must return a dict of name to tensor")
    odd = [f"{n} is a {type(t).__name__}" for n, t in state.items() if not hasattr(t, "shape")]
    expect(not odd, f"the state's {''.join(odd[:1])}, wanted a tensor for each name")
    more = ", ".join(list(state)[:7])
    hint = "its A belongs to another kind of module; ask isinstance(m, LoRALinear)"
    expect(state.keys() != {*tensors, models.DECOY}, f"the state holds {models.DECOY}: {hint}")
    last = {name.split(".", 1)[-1] for name in tensors}
    hint = f"layers of one name overwrite each other; the whole dotted name, {next(iter(tensors))}"
    expect(state.keys() != last, f"the state has the names {more}: {hint}")
    hint = "A and B of three adapted layers are six"
    rest = [name for name in state if name not in tensors]
    if len(state) > 6 and len(state.keys() & tensors.keys()) == 6:
        hint += f": {rest[0]} is not LoRA's; isinstance(m, LoRALinear) tells which have them"
    expect(len(state) == 6, f"the state holds {len(state)} tensors ({more})", hint=hint)
    expect(
        state.keys() == tensors.keys(),
        f"the state has the names {more}",
        hint=f"wanted the layer's dotted name, then .A or .B: {', '.join(tensors)}",
    )
    for name, wanted in tensors.items():
        _expect_part(name, state[name], wanted)
    return tensors


def _expect_part(name, got, wanted):
    """Equal but for rounding in fp32; one that went through 16 bits is not."""
    tensor = isinstance(got, torch.Tensor)
    expect(tensor, f"the state's {name} is a {type(got).__name__}, wanted a tensor")

    def right(got):
        same = got.shape == wanted.shape
        return same and torch.allclose(got.float(), wanted, rtol=1e-5, atol=1e-5)

    expect(got.ndim != 2 or not right(got.T), f"the state's {name} is transposed")
    expect(got.itemsize > 2, f"the state's {name} went through 16 bits: leave its dtype")
    other = "B" if name[-1] == "A" else "A"
    crossed = got.shape == wanted.shape[::-1]
    expect(not crossed, f"the state's {name} has the shape of {other}: the two are swapped")
    if not right(got):
        same = got.shape == wanted.shape
        how = f": {difference(got.double(), wanted.double(), True)[0]}" if same else ""
        raise CheckFailed(f"the state's {name} is not the {name[-1]} of that layer{how}")


def load(adapter_state, load_adapter_, *given):
    """What `models.round_trip` brings back of a state that fits."""
    try:
        return observe(models.round_trip, adapter_state, load_adapter_, *given)
    except CheckFailed as failure:
        other = f": {models.DECOY} belongs to another kind of module"
        decoy = other if models.DECOY in str(failure) else ""
        if "Missing key(s)" in str(failure):
            decoy = "; load_state_dict wants all of the model unless strict=False"
        raise CheckFailed(f"load_adapter_ of a state that fits: {failure}{decoy}") from None


def expect_loaded(loaded, tensors, A, B, x):
    """What `models.round_trip` tells of a model that has loaded the state."""
    with part():
        for name, theirs in tensors.items():
            call = f"{name} after load_adapter_"
            names = list(tensors)
            other = tensors[names[(names.index(name) + 2) % 6]]
            known = {
                "still as before: copy into the parameter in place": _before(name, A, B, x),
                "it has another layer's numbers: go by the names, not by their order": other,
                "it is added to what was there: copy it": theirs + _before(name, A, B, x),
                "it moves when the state is changed later: copy the numbers": theirs + 1,
            }
            expect_close(loaded["data"][name], theirs, call, known)
    with part():
        new = [name for name in tensors if name not in loaded["same"]]
        hint = "copy into the old one, which an optimizer may hold"
        expect(not new, f"{''.join(new[:1])} after load_adapter_ is a new Parameter; {hint}")
        still = [name for name in tensors if name not in loaded["trains"]]
        told = f"{''.join(still[:1])} after load_adapter_ does not require grad any more"
        expect(not still, told)
    with part():
        told = ", ".join(loaded["others"][:2])
        expect(not told, f"load_adapter_ changes {told}, which is no A or B of a LoRA layer")
        expect(not loaded["training"], "load_adapter_ leaves a model in train() that was in eval()")


def expect_refused(told, change, key):
    """What `models.load_error` tells of a state that does not fit: nothing is copied, and why."""
    what = {
        "missing": f"a missing key ({key})",
        "extra": f"an extra key ({key})",
        "turned": f"a tensor of another shape ({key}, transposed)",
        "thin": f"a tensor of another shape ({key}, one column of it, which copy_ would repeat)",
        "flat": f"a tensor of another shape ({key}, one row of it, which copy_ would repeat)",
    }[change]
    of_shape = change in models.CUTS
    hint = ": compare the whole .shape, not the rank or the size alone"
    hint = hint if of_shape else ": compare both sets of names"
    expect(told is not None, f"load_adapter_ raises nothing on {what}{hint}")
    expect(told != "returned", f"on {what} load_adapter_ returns an error: raise it")
    kinds, text, kept = told
    error, call = f"{kinds[0]}: {text}", f"on {what} load_adapter_"
    named = of_shape or "KeyError" in kinds
    expect(named, f"{call} raises {kinds[0]}; a KeyError is asked for")
    shaped = not of_shape or "ValueError" in kinds
    other = f"{call} raises {kinds[0]}, as copy_ does; a ValueError that names the key is asked for"
    expect(shaped or key in error, other)
    expect(key in error, f"{call} raises {error!r}: it does not name the key")
    hint = "compare all names and shapes before you copy"
    expect(kept, f"{call} raises, and has copied some already: {hint}")
    expect(shaped, f"{call} raises {kinds[0]}; a ValueError is asked for")


def _trained(A, B, x):
    """A and B after the step that `models.state` takes, by the dense formula in fp64."""
    A, B = (t.double().requires_grad_() for t in (A, B))
    dA, dB = torch.autograd.grad((x.double() @ (B @ A).T).square().mean(), (A, B))
    return [(t - 0.1 * d).detach().float() for t, d in ((A, dA), (B, dB))]


def _before(name, A, B, x):
    """A or B of the model that loads, as it was before."""
    i = models.ADAPTED.index(name[:-2])
    return _trained(A * 0 + i, B * 0 - i, x)["AB".index(name[-1])]
