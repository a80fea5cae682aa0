"""What exercise 2.2 expects of a LoRALinear, part by part."""

import contextlib
from dataclasses import replace

import torch

from labkit.checks.compare import (
    ask,
    close,
    every,
    expect_close,
    expect_linear,
    expect_number,
    randn,
)
from labkit.checks.compound import expect_factor
from labkit.checks.lab02 import guesses
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab02 import probes


@contextlib.contextmanager
def r_told(f):
    """Say of what fails that r is no argument, where `f` takes it for one."""
    try:
        yield
    except CheckFailed as failure:
        unknown = any(f"name '{name}' is not defined" in str(failure) for name in ("r", "rank"))
        if unknown or "r" in observe(probes.global_names, f):
            raise CheckFailed("r is no argument here: it is A.shape[0]") from None
        raise


def expect_layer(LoRALinear, layer, x):
    """All of it; a class that cannot be made or has wrong shapes ends it at once."""
    given, shape_A, shape_B = (LoRALinear, layer, x), layer.A.shape, layer.B.shape
    attributes = {
        "before Module.__init__": "super().__init__() comes first",
        "has no attribute": "its attributes are base, A, B, r, scaling",
    }
    new = ask("", probes.new_layer, LoRALinear, layer.data, x, hint=attributes)
    shapes = f"A is (r, d_in) = {tuple(shape_A)} and B is (d_out, r) = {tuple(shape_B)}"
    mine = [getattr(new[name], "shape", None) for name in "AB"]
    told = f"A has shape {tuple(mine[0] or ())}, B {tuple(mine[1] or ())}; {shapes}"
    expect(mine == [shape_A, shape_B], told)
    expect(new["bias"] is not None, "base.bias is gone: base stays as it is, bias included")
    kept = torch.equal(new["W"], layer.W) and torch.equal(new["bias"], layer.bias)
    expect(kept, "base has other weights than before: it stays as it is")
    with part():
        _expect_start(new, layer, x)
    with part():
        known = guesses.factors(layer.alpha, layer.r)
        known |= guesses.powers(layer.alpha, layer.r, "alpha / r")
        expect_number(new["scaling"], layer.scaling, "layer.scaling", known)
    with part():
        expect_number(new["r"], layer.r, "layer.r")
    with part():
        hint = "self.base = base; a merge would change the copy, not the model's own layer"
        expect(new["same"], f"layer.base is not the module that was given: {hint}")
        hint = "assign it as it is, self.base = base; else .to() and state_dict() pass it by"
        expect(new["held"], f"base is no part of the layer: {hint}")
        hint = "freeze the one it has, requires_grad_(False)"
        expect(new["own"], f"base.weight is another Parameter than before: {hint}")
    with part():
        _expect_flags(new["flags"], new["set"])
    if not {"A", "B"} <= new["flags"].keys():
        return  # what is no parameter has no step and no dtype to ask for
    with part():
        if _expect_forward(*given):  # what follows would only tell it again
            for expect_more in (_expect_resting, _expect_gradients, _expect_thin):
                with part():
                    expect_more(*given)
    with part():
        _expect_kinds(*given)


def _expect_start(new, layer, x):
    """A random, B zero, and the output of the base layer."""
    told = "A and B are exchanged: A is drawn at random, B starts at zero"
    expect(new["A"].any() or not new["B"].any(), told)
    hint = "B must start at zero, so that training starts from the base model"
    expect(not new["B"].any(), f"B is not zero at the start; {hint}")
    hint = "with B zero as well no gradient ever flows"
    expect(new["A"].any(), f"A is all zeros; {hint}. Draw it at random")
    expect(not torch.equal(new["A"], new["A2"]), "two layers got the same A: draw it at random")
    std, mean = new["A"].std().item(), new["A"].mean().item()
    usual = "kaiming_uniform_(A, a=sqrt(5)) gives about 0.036 here"
    d_in = new["A"].shape[1]
    sizes = {"its root is asked": 1 / d_in, "it is not divided by sqrt(d_in)": 1.0}
    sizes |= {"it is multiplied by sqrt(d_in): divide": d_in**0.5}
    thought = "".join(f", {told}" for told, size in sizes.items() if abs(std / size - 1) < 0.1)
    told = f"A has standard deviation {std:.2g} for d_in = {d_in}{thought}; {usual}"
    expect(0.005 < std < 0.7, told)
    expect(abs(mean) < 0.3 * std, f"A has mean {mean:.2g}: draw it around zero")
    right, bias = layer.base(x), layer.bias
    known = {"the base layer's bias is lost": right - bias, "the bias comes twice": right + bias}
    known["it is the update alone, and zero: base(x) is missing"] = 0 * right
    expect_close(new["y"], right, "a new layer's output", known)


UNFROZEN = {  # an attribute that a layer or a tensor has got by itself: what it does
    "requires_grad": "requires_grad = False only sets an attribute of the module",
    "requires_grad_": "requires_grad_ = False writes over a method, which has to be called",
    "eval": "eval() freezes nothing",
}


def still_train(names):
    """That these were to be frozen, as words."""
    return f"{', '.join(names)} still {'trains' if len(names) == 1 else 'train'}"


def unfrozen(name, attributes, hint):
    """Why the module `name`, which was to be frozen, trains: by what it has got; or `hint`."""
    told = [why for attribute, why in UNFROZEN.items() if attribute in attributes]
    return f"{told[0]}; {name}.requires_grad_(False) freezes its parameters" if told else hint


def _expect_flags(flags, attributes):
    """Exactly A and B are parameters that train."""
    for name in ("A", "B"):
        hint = "wrap it in nn.Parameter, or the optimizer never sees it"
        expect(name in flags, f"{name} is not a parameter; {hint}")
        expect(flags[name], f"{name} does not require grad")
    others = [name for name in flags if name not in ("A", "B")]
    open_ones = [name for name in others if flags[name] and name.startswith("base")]
    hint = unfrozen("base", attributes, "freeze the base layer")
    expect(not open_ones, f"{still_train(open_ones)}: {hint}")
    more = [name for name in others if not name.startswith("base")]
    expect(not more, f"the layer has more parameters than base, A and B: {', '.join(more[:3])}")


def _output(call, LoRALinear, layer, x, training=True):
    """The layer's output, of a call that leaves x and the base weight as they were."""
    hint = "x may have any leading shape: use @ and .T of A and B alone" if x.ndim != 2 else ""
    got = ask(call, probes.layer_output, LoRALinear, layer.data, x, training, hint=hint)
    expect(torch.equal(got["x"], x), f"{call}: it writes over x, which others read too")
    hint = "nothing merges in forward, train() or eval()"
    expect(torch.equal(got["W"], layer.W), f"{call}: the base weight has changed; {hint}")
    return got["y"]


def _expect_forward(LoRALinear, layer, x):
    """With and without bias, and for any leading shape, the output is the dense layer's."""
    plain = replace(layer, bias=None)

    def judge(one, z):
        bias, right = one.bias, plain.dense(z)
        shift = 0 if bias is None else bias
        known = {k: v + shift for k, v in guesses.forward(z, one).items()}
        if bias is not None:
            known["the base layer's bias is lost"] = right
            known["the bias comes twice"] = right + 2 * bias
            known["the bias is scaled"] = right + one.scaling * bias
        call = "the layer's output" + (", base without bias" if bias is None else "")
        call += "" if z is x else f" for x of shape {tuple(z.shape)}"
        try:
            expect_close(_output(call, LoRALinear, one, z), right + shift, call, known)
        except CheckFailed as failure:
            resting = _output(call, LoRALinear, one, z, training=False)
            told = (
                f"{call}: wrong in train(), right in eval(); no dropout, and nothing else, is asked"
            )
            expect(not close(resting, right + shift, 1e-4), told)
            if failure.bare and bias is None:
                expect_linear(call, lambda z: _output(call, LoRALinear, one, z), {"x": z})
            raise

    several, row = randn(2, 3, x.shape[1]), x[0]
    cases = [(layer, x), (plain, x), (layer, several), (layer, row)]
    return len(every(judge, cases)) == len(cases)


def _expect_resting(LoRALinear, layer, x):
    """eval() changes nothing."""
    call = "in eval() the layer's output"
    known = {"the update is missing; it is there in eval() as in train()": layer.base(x)}
    got = _output(call, LoRALinear, layer, x, training=False)
    expect_close(got, layer.dense(x), call, known)


def _expect_gradients(LoRALinear, layer, x):
    """x gets its gradient through both paths; a step moves A and B and nothing else."""
    y, W, update = layer.dense(x), layer.W, layer.update
    got = observe(probes.input_gradient, LoRALinear, layer.data, x)
    expect(got is not None, "x gets no gradient: layers before this one could not train")
    known = {
        "it is cut off in the base layer: no detach() or no_grad() there": 2 * y @ update,
        "it is cut off in the update: no detach() or no_grad() there": 2 * y @ W,
    }
    call = "the gradient that the layer sends back to x"
    expect_close(got, 2 * y @ (W + update), call, known, tol=1e-3)
    after = observe(probes.layer_after_step, LoRALinear, layer.data, x)
    kept = torch.equal(after["W"], W) and torch.equal(after["bias"], layer.bias)
    expect(kept, "a training step changed the base layer: freeze the base layer")
    moved = not torch.equal(after["A"], layer.A) and not torch.equal(after["B"], layer.B)
    told = "a training step left A or B as it was: are both nn.Parameter, and no .data in forward?"
    expect(moved, told)
    fresh = observe(probes.layer_after_step, LoRALinear, replace(layer, B=0 * layer.B).data, x)
    told = "a fresh layer never trains: B is left out of forward while it is zero; always add it"
    expect(fresh["B"].any(), told)


def _expect_thin(LoRALinear, layer, x):
    """The layer makes nothing as large as W, and does not walk through the rows of x."""
    made, _ = observe(probes.layer_work, LoRALinear, layer.data, x)
    expect_thin(made, "forward")
    _, calls = observe(probes.layer_work, LoRALinear, layer.data, randn(30, 8, x.shape[1]))
    slow = "it goes through x row by row, and would take minutes in the model; multiply all at once"
    expect(calls < 100, f"forward takes {calls} operations for 240 rows: {slow}")


def expect_zero(got, call):
    """Raise CheckFailed unless `got`, the output where x is zero, is zero."""
    expect(not got.any(), f"{call} is not 0 where x is: something is added that no x enters")


def expect_scaled(run, layer, x, call):
    """Raise CheckFailed where `run(layer)` is right but for a factor, or at r = 1 alone.

    Of the frozen part and the update one is zero in `layer`.
    """
    got, right, s = run(layer), layer.dense(x), layer.scaling
    if layer.B.any():
        expect_factor(got, right / s, call, ("alpha / r", s), layer.sizes)
        thin = replace(layer, A=layer.A[:1], B=layer.B[:, :1], alpha=s)
        told = "row i of A goes with column i of B alone: (x @ A.T) @ B.T"
        paired = not close(run(thin), thin.dense(x), 1e-3)
        expect(paired, f"{call}, is right at r = 1 and wrong above: {told}")
    else:
        sizes = {"(1 - alpha / r)": abs(1 - s), "alpha / r": s} | layer.sizes
        try:
            expect_factor(got, right, call, ("nothing scales x @ W.T", 1.0), sizes)
        except CheckFailed as failure:  # what has a name in the update comes first
            raise CheckFailed(str(failure), bare=True) from None


def expect_thin(made, call):
    """Raise CheckFailed unless `made`, from `probes`, is "": nothing as large as W."""
    hints = {
        "B @ A": "two thin products do it: x @ A.T first, then @ B.T",
        "a copy of W": "leave W whole: no clone(), contiguous(), cat, multiple or other dtype",
        "a tensor": "compute x @ A.T first, then @ B.T, and copy nothing of that size",
    }
    hints["a thing"] = hints["a tensor"]
    expect(not made, f"{call} makes {made}, as large as W; {hints.get(made)}")


def _expect_kinds(LoRALinear, layer, x):
    """A and B have the base's dtype or fp32, and its device; the output has the base's dtype."""
    kinds, plain = observe(probes.layer_kinds, LoRALinear, layer.data)
    right = kinds[0] == kinds[1] and kinds[0] in ("bfloat16", "float32")
    hint = "base.weight.dtype for both, or fp32 for both"
    expect(right, f"over a bf16 base, A is {kinds[0]} and B {kinds[1]}: {hint}")
    with part():
        hint = ".to() of a Parameter gives a plain tensor: pass dtype= and device= when you make it"
        told = f"over a base {''.join(plain[:1])} is no Parameter any more, and would never train"
        expect(not plain, f"{told}; {hint}")
    with part():
        expect(kinds[2:] == ["meta"] * 2, "A or B is not on base.weight's device: pass device=")
    hint = "where A and B are fp32, bring x to them, x.to(A.dtype), and the sum to the base's dtype"
    call = "the layer over a bf16 base"
    kind, made = ask(call, probes.layer_output_kind, LoRALinear, layer.data, hint=hint)
    expect(kind == "bfloat16", f"{call} gives {kind}, wanted bfloat16: {hint}")
    if made and not observe(probes.layer_work, LoRALinear, layer.data, x)[0]:  # not told already
        expect_thin(made, "forward, over a bf16 base,")
