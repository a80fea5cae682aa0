"""What exercise 2.2 expects of a LoRALinear, part by part."""

import torch

from labkit.checks import guesses02 as guesses
from labkit.checks.compare import ask, expect_close, expect_number, randn
from labkit.checks.guesses02 import dense
from labkit.grading.contract import expect, observe
from labkit.probes import lab02 as probe


def expect_start(new, x, W, bias, r, alpha):
    """A random, B zero, the sizes, the scaling, and the output of the base layer."""
    known = guesses.factors(alpha, r, *W.shape)
    expect_number(new["scaling"], alpha / r, "layer.scaling", known)
    expect_number(new["r"], r, "layer.r")
    shapes = f"A is (r, d_in) = {(r, 256)} and B is (d_out, r) = {(48, r)}"
    right = new["A"].shape == (r, 256) and new["B"].shape == (48, r)
    expect(right, f"A has shape {tuple(new['A'].shape)}, B {tuple(new['B'].shape)}; {shapes}")
    hint = "B must start at zero, so that training starts from the base model"
    expect(not new["B"].any(), f"B is not zero at the start; {hint}")
    hint = "with B zero as well no gradient ever flows"
    expect(new["A"].any(), f"A is all zeros; {hint}. Draw it at random")
    expect(not torch.equal(new["A"], new["A2"]), "two layers got the same A: draw it at random")
    std, mean = new["A"].std().item(), new["A"].mean().item()
    usual = "kaiming_uniform_(A, a=sqrt(5)) gives about 0.036 here"
    expect(0.003 < std < 0.7, f"A has standard deviation {std:.2g} for d_in = 256; {usual}")
    expect(abs(mean) < 0.3 * std, f"A has mean {mean:.2g}: draw it around zero")
    known = {"the base layer's bias is lost": x @ W.T}
    expect_close(new["y"], x @ W.T + bias, "a new layer's output", known)


def expect_flags(flags):
    """Exactly A and B are parameters that train."""
    for name in ("A", "B"):
        hint = "wrap it in nn.Parameter, or the optimizer never sees it"
        expect(name in flags, f"{name} is not a parameter; {hint}")
        expect(flags[name], f"{name} does not require grad")
    open_ones = [n for n, trains in flags.items() if trains and n not in ("A", "B")]
    expect(not open_ones, f"{', '.join(open_ones)} still trains: freeze the base layer")


def _output(call, LoRALinear, W, bias, r, alpha, A, B, dropout, training, x, merged=False):
    """The layer's output, of a call that leaves x and the base weight as they were."""
    args = (LoRALinear, W, bias, r, alpha, A, B, dropout, training, x, merged)
    got = ask(call, "", probe.layer_output, *args)
    expect(torch.equal(got["x"], x), f"{call}: it writes over x, which others read too")
    hint = "nothing merges in forward, train() or eval()"
    expect(torch.equal(got["W"], W), f"{call}: the base weight has changed; {hint}")
    return got["y"]


def expect_forward(LoRALinear, x, W, bias, A, B, alpha):
    """With and without bias, and for any leading shape, the output is the dense layer's."""
    r = len(A)
    several, one = randn(2, 3, W.shape[1]), x[0]
    for b, z in ((bias, x), (None, x), (bias, several), (bias, one)):
        shift = 0 if b is None else b
        known = {k: v + shift for k, v in guesses.forward(z, W, A, B, alpha).items()}
        call = "the layer's output" + (", base without bias" if b is None else "")
        call += "" if z is x else f" for x of shape {tuple(z.shape)}"
        got = _output(call, LoRALinear, W, b, r, alpha, A, B, 0.0, True, z)
        expect_close(got, dense(z, W, A, B, alpha / r) + shift, call, known)


def expect_merged(LoRALinear, x, W, bias, A, B, alpha):
    """The flag `merged` is false at first; while it is true the base layer speaks alone."""
    flag = observe(probe.merged_flag, LoRALinear, W, len(A), alpha)
    expect(flag is not None, "the layer has no flag `merged`: set self.merged = False")
    expect(not flag, "merged is True at first: nothing has been merged yet")
    call = "the output while merged is True"
    got = _output(call, LoRALinear, W, bias, len(A), alpha, A, B, 0.0, False, x, True)
    known = {"the update is still added": dense(x, W, A, B, alpha / len(A)) + bias}
    expect_close(got, x @ W.T + bias, f"{call} (base(x) alone is wanted)", known)


def expect_dropout(LoRALinear, x, W, bias, A, B, alpha):
    """Dropout acts in training only, and on the x that enters A."""
    r = len(A)
    wanted = dense(x, W, A, B, alpha / r) + bias

    def output(B, training, x):
        call = f"with dropout=0.5 in {'train' if training else 'eval'}() the output"
        return _output(call, LoRALinear, W, bias, r, alpha, A, B, 0.5, training, x)

    expect_close(output(B, False, x), wanted, "with dropout=0.5 in eval() the output")
    noise = (output(B, True, x) - wanted).abs().max() / wanted.abs().max()
    expect(noise > 1e-3, "dropout=0.5 changes nothing in train(): is it used?")
    hint = "it belongs on the x that goes into A"
    base = output(B * 0, True, x)
    expect(torch.allclose(base, x @ W.T + bias, atol=1e-4), f"dropout hits the base path; {hint}")
    ones = torch.eye(W.shape[1])[:64]  # each row has one entry to drop
    update = dense(ones, W * 0, A, B, alpha / r)
    got = output(B, True, ones) - (ones @ W.T + bias)
    size = update.abs().amax()
    kept, gone = ((got - k * update).abs().amax(1) < 1e-4 * size for k in (2, 0))
    call = "with dropout=0.5 in train() and one entry in x, the update"
    expect((kept | gone).all(), f"{call} is neither dropped whole nor doubled; {hint}, with p=0.5")
    expect(kept.any() and gone.any(), f"{call} is always the same: dropout draws anew for each x")


def expect_gradients(LoRALinear, x, W, bias, A, B, alpha):
    """x gets its gradient through both paths; a step moves A and B and nothing else."""
    r, s = len(A), alpha / len(A)
    y = dense(x, W, A, B, s) + bias
    got = observe(probe.input_gradient, LoRALinear, W, bias, r, alpha, A, B, x)
    expect(got is not None, "x gets no gradient: layers before this one could not train")
    known = {
        "it is cut off in the base layer: no detach() or no_grad() there": 2 * y @ (s * B @ A),
        "it is cut off in the update: no detach() or no_grad() there": 2 * y @ W,
    }
    wanted = 2 * y @ (W + s * B @ A)
    expect_close(got, wanted, "the gradient that the layer sends back to x", known, tol=1e-3)
    after = observe(probe.layer_after_step, LoRALinear, W, bias, r, alpha, A, B, x)
    kept = torch.equal(after["W"], W) and torch.equal(after["bias"], bias)
    expect(kept, "a training step changed the base layer: freeze its weight and bias")
    moved = not torch.equal(after["A"], A) and not torch.equal(after["B"], B)
    expect(moved, "a training step left A or B as it was: both are nn.Parameter in the forward?")


def expect_kinds(LoRALinear, W, bias, r, alpha):
    """A, B and the output follow the base's dtype, A and B its device."""
    kinds = observe(probe.layer_kinds, LoRALinear, W, bias, r, alpha)
    same = kinds[:2] == ["bfloat16"] * 2
    expect(same, f"over a bf16 base, A is {kinds[0]} and B {kinds[1]}: use base.weight.dtype")
    expect(kinds[2:] == ["meta"] * 2, "A or B is not on base.weight's device: pass device=")
    kind = observe(probe.layer_output_kind, LoRALinear, W, bias, r, alpha)
    expect(kind == "torch.bfloat16", f"over a bf16 base the output is {kind}, wanted bfloat16")
