"""What exercise 2.2 expects of a LoRALinear, part by part."""

from dataclasses import replace

import torch

from labkit.checks.compare import ask, close, every, expect_close, expect_number, randn
from labkit.checks.lab02 import guesses
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab02 import probes

P = 0.25  # not one half, so that what is dropped and what is kept are two shares


def expect_layer(LoRALinear, layer, x):
    """All of it; a class that cannot be made or has wrong shapes ends it at once."""
    given, shape_A, shape_B = (LoRALinear, layer, x), layer.A.shape, layer.B.shape
    attributes = {"has no attribute": "its attributes are base, A, B, r, scaling, merged"}
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
        hint = "self.base = base; a copy takes its memory again, and merges would miss the model"
        expect(new["same"], f"layer.base is not the module that was given: {hint}")
        hint = "freeze the one it has, requires_grad_(False)"
        expect(new["own"], f"base.weight is another Parameter than before: {hint}")
    with part():
        _expect_flags(new["flags"])
    with part():
        if _expect_forward(*given):  # what follows would only tell it again
            for expect_more in (_expect_dropout, _expect_gradients, _expect_thin):
                with part():
                    expect_more(*given)
    for expect_more in (_expect_merged, _expect_kinds):
        with part():
            expect_more(*given)


def _expect_start(new, layer, x):
    """A random, B zero, and the output of the base layer."""
    hint = "B must start at zero, so that training starts from the base model"
    expect(not new["B"].any(), f"B is not zero at the start; {hint}")
    hint = "with B zero as well no gradient ever flows"
    expect(new["A"].any(), f"A is all zeros; {hint}. Draw it at random")
    expect(not torch.equal(new["A"], new["A2"]), "two layers got the same A: draw it at random")
    std, mean = new["A"].std().item(), new["A"].mean().item()
    usual = "kaiming_uniform_(A, a=sqrt(5)) gives about 0.036 here"
    expect(0.003 < std < 0.7, f"A has standard deviation {std:.2g} for d_in = 256; {usual}")
    expect(abs(mean) < 0.3 * std, f"A has mean {mean:.2g}: draw it around zero")
    right, bias = layer.base(x), layer.bias
    known = {"the base layer's bias is lost": right - bias, "the bias comes twice": right + bias}
    expect_close(new["y"], right, "a new layer's output", known)


def _expect_flags(flags):
    """Exactly A and B are parameters that train."""
    for name in ("A", "B"):
        hint = "wrap it in nn.Parameter, or the optimizer never sees it"
        expect(name in flags, f"{name} is not a parameter; {hint}")
        expect(flags[name], f"{name} does not require grad")
    others = [name for name in flags if name not in ("A", "B")]
    open_ones = [name for name in others if flags[name] and name.startswith("base")]
    expect(not open_ones, f"{', '.join(open_ones)} still trains: freeze the base layer")
    more = [name for name in others if not name.startswith("base")]
    expect(not more, f"the layer has more parameters than base, A and B: {', '.join(more[:3])}")


def _output(call, LoRALinear, layer, x, dropout=0.0, training=True, merged=False):
    """The layer's output, of a call that leaves x and the base weight as they were."""
    hint = "x may have any leading shape: use @ and .T of A and B alone" if x.ndim != 2 else ""
    args = (LoRALinear, layer.data, x, dropout, training, merged)
    got = ask(call, probes.layer_output, *args, hint=hint)
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
        except CheckFailed:
            resting = _output(call, LoRALinear, one, z, training=False)
            hint = "dropout is the share that is dropped, and here it is 0"
            told = f"in train() {call} is wrong, in eval() it is right; {hint}"
            expect(not close(resting, right + shift, 1e-4), told)
            raise

    several, row = randn(2, 3, x.shape[1]), x[0]
    cases = [(layer, x), (plain, x), (layer, several), (layer, row)]
    return len(every(judge, cases)) == len(cases)


def _expect_merged(LoRALinear, layer, x):
    """The flag `merged` is false at first; while it is true the base layer speaks alone."""
    flag = observe(probes.merged_flag, LoRALinear, replace(layer, bias=None).data)
    hint = "set self.merged = False"
    expect(flag is not None, f"the layer has no flag `merged`, True or False: {hint}")
    expect(not flag, "merged is True at first: nothing has been merged yet")
    call = "the output while merged is True"
    known = {"the update is still added": layer.dense(x)}
    for training in (False, True):
        told = f"{call}, in train()," if training else call
        got = _output(told, LoRALinear, layer, x, training=training, merged=True)
        expect_close(got, layer.base(x), f"{told} (base(x) alone is wanted)", known)


def _expect_dropout(LoRALinear, layer, x):
    """Dropout acts in training only, and on the x that enters A."""
    wanted, unadapted = layer.dense(x), replace(layer, B=layer.B * 0)

    def output(one, x, training=True):
        call = f"with dropout={P} in {'train' if training else 'eval'}() the output"
        return _output(call, LoRALinear, one, x, P, training)

    resting = output(layer, x, training=False)
    if not torch.allclose(resting, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item()):
        alone = torch.allclose(resting, layer.base(x), rtol=1e-3, atol=1e-2)
        expect(not alone, "in eval() the update is missing: only the flag `merged` leaves it out")
        hint = "pass self.training to F.dropout, or make nn.Dropout in __init__"
        raise CheckFailed(f"dropout still works in eval(): {hint}")
    noise = (output(layer, x) - wanted).abs().max() / wanted.abs().max()
    expect(noise > 1e-3, f"dropout={P} changes nothing in train(): is it used?")
    hint = "it belongs on the x that goes into A"
    kept = torch.allclose(output(unadapted, x), layer.base(x), atol=1e-4)
    expect(kept, "dropout hits the base path", hint=hint)
    ones = torch.eye(x.shape[1])[:64]  # each row has one entry to drop
    _expect_dropped(output(layer, ones) - layer.base(ones), ones @ layer.update.T, hint)


def _expect_dropped(got, update, hint):
    """Of each row nothing is left, or it has grown by 1 / (1 - P)."""
    size = update.abs().amax()

    def rows(factor):
        return (got - factor * update).abs().amax(1) < 1e-4 * size

    grown, gone, call = rows(1 / (1 - P)), rows(0), f"with dropout={P} in train()"
    swapped = (rows(1 / P) | gone).all()
    expect(not swapped, f"{call} that share is kept; dropout is the share that is dropped")
    plain = (rows(1) | gone).all() and rows(1).any()
    hint_grown = "what is kept must grow by 1 / (1 - p), as nn.Dropout does it"
    expect(not plain, f"{call} the update is dropped or kept as it is; {hint_grown}")
    call += " and one entry in x, the update"
    whole = f"{call} is neither dropped whole nor grown by 1 / (1 - p)"
    expect((grown | gone).all(), f"{whole}; {hint}, with p={P}")
    expect(grown.any() and gone.any(), f"{call} is always the same: dropout draws anew for each x")


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
    expect(moved, "a training step left A or B as it was: both are nn.Parameter in the forward?")


def _expect_thin(LoRALinear, layer, x):
    """The layer makes nothing as large as W, and does not walk through the rows of x."""
    made, _ = observe(probes.layer_work, LoRALinear, layer.data, x)
    expect_thin(made, "forward")
    _, calls = observe(probes.layer_work, LoRALinear, layer.data, randn(30, 8, x.shape[1]))
    slow = "it goes through x row by row, and would take minutes in the model; multiply all at once"
    expect(calls < 100, f"forward takes {calls} operations for 240 rows: {slow}")


def expect_thin(made, call):
    """Raise CheckFailed unless `made`, from `probes`, is "": nothing as large as W."""
    hints = {
        "B @ A": "two thin products do it: x @ A.T first, then @ B.T",
        "a copy of W": "leave W whole: no other dtype, no cat, no multiple of it",
        "a tensor": "compute x @ A.T first, then @ B.T, and copy nothing of that size",
    }
    hints["a thing"] = hints["a tensor"]
    expect(not made, f"{call} makes {made}, as large as W; {hints.get(made)}")


def _expect_kinds(LoRALinear, layer, x):
    """A and B have the base's dtype or fp32, and its device; the output has the base's dtype."""
    kinds = observe(probes.layer_kinds, LoRALinear, layer.data)
    right = kinds[0] == kinds[1] and kinds[0] in ("bfloat16", "float32")
    hint = "base.weight.dtype for both, or fp32 for both"
    expect(right, f"over a bf16 base, A is {kinds[0]} and B {kinds[1]}: {hint}")
    with part():
        expect(kinds[2:] == ["meta"] * 2, "A or B is not on base.weight's device: pass device=")
    hint = "where A and B are fp32, bring x to them, x.to(A.dtype), and the sum to the base's dtype"
    call = "the layer over a bf16 base"
    kind, made = ask(call, probes.layer_output_kind, LoRALinear, layer.data, hint=hint)
    expect(kind == "bfloat16", f"{call} gives {kind}, wanted bfloat16: {hint}")
    expect_thin(made, "forward, over a bf16 base,")
