"""What exercise 2.6 expects of merge_ and unmerge_."""

import torch

from labkit.checks.compare import expect_close
from labkit.checks.lab02 import guesses
from labkit.checks.lab02.guesses import dense
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab02 import probes


def expect_merging(merge_, unmerge_, LoRALinear, W, bias, A, B, x, alpha):
    """The weight at each stage, then the outputs, then what has to stay as it is."""
    functions, r = (merge_, unmerge_, LoRALinear), len(A)
    try:
        seen = observe(probes.merging, *functions, W, bias, r, alpha, A, B, x)
    except CheckFailed as failure:
        shapes = "size of tensor" in str(failure) or "cannot be multiplied" in str(failure)
        hint = "; B @ A is (d_out, r) times (r, d_in), as W is (d_out, d_in)"
        raise CheckFailed(f"{failure}{hint * shapes}") from None
    update = alpha / r * B @ A
    with part():
        _expect_kept(seen)
    with part():
        _expect_weights(seen, W, update, alpha, r)  # a wrong one makes all that follows wrong
        _expect_outputs(seen, x, W, bias, update)
        _expect_gradients(seen["grads"], x, W, bias, A, B, alpha)
        _expect_again(seen, x, W, bias, update)
    with part():
        kinds = observe(probes.merged_kind, *functions, W, r, alpha)
        hint = "add in place, or bring the sum to its dtype"
        told = f"over a bf16 base, base.weight becomes {kinds[0]} in merge_, {kinds[1]} in unmerge_"
        expect(kinds == ["bfloat16"] * 2, f"{told}: {hint}")


def _expect_kept(seen):
    """base.weight is the same frozen leaf, A and B the same numbers, the mode the same."""
    told = {
        "same": "base.weight is another Parameter than before; change base.weight in place; "
        "who holds the old Parameter would never know",
        "mode": "merge_ or unmerge_ leaves train() or eval() changed: leave the mode as it is",
        "parts": "merge_ or unmerge_ changes A or B: only base.weight changes",
    }
    for key, message in told.items():
        with part():
            expect(seen[key], message)
    told = "base.weight trains after a merge and its undoing: it stays frozen"
    expect(seen["leaf"] != [True, True], told)
    hint = "change it under torch.no_grad()"
    expect(seen["leaf"] == [True, False], f"base.weight joined the autograd graph; {hint}")


def _expect_weights(seen, W, update, alpha, r):
    known = guesses.merged(W, update, alpha, r)
    eager = {"eval() has merged by itself; merge_ alone does": W + update}
    expect_close(seen["start"][0], W, "base.weight before merge_", eager, tol=1e-5)
    taken = {
        "a layer that was never merged has nothing to take away": W - update,
        "unmerge_ adds the update; it takes it away, where it was merged": W + update,
    }
    expect_close(seen["fresh"][0], W, "base.weight after unmerge_ of a fresh layer", taken, 1e-5)
    twice = {
        "merging twice added the update twice: remember that it is merged": W + 2 * update,
        "merging twice took it away again: twice is the same as once": W,
    }
    expect_close(seen["once"][0], W + update, "base.weight after merge_", known)
    expect_close(seen["twice"][0], W + update, "base.weight after merge_ twice", twice)
    below = {
        "unmerging twice took it away twice": W - update,
        "the update stays": W + update,
        "it is added once more: take it away": W + 2 * update,
    } | {message: 2 * W + update - wrong for message, wrong in known.items()}
    expect_close(seen["back"][0], W, "base.weight after unmerge_", below, tol=1e-5)
    expect_close(seen["end"][0], W, "base.weight after unmerge_ twice", below, tol=1e-5)


def _expect_outputs(seen, x, W, bias, update):
    y = x @ (W + update).T + bias
    double = {
        "the update counts twice; forward must skip A and B while merged": y + x @ update.T,
        "the update is gone; nothing adds it now": x @ W.T + bias,
    }
    for name, when in (("once", "merge_"), ("twice", "merge_ twice")):
        expect_close(seen[name][1], y, f"the output after {when}", double)
    double = {
        "forward adds the update twice": y + x @ update.T,
        "the update is gone: is the layer still taken for merged?": x @ W.T + bias,
    }
    expect_close(seen["end"][1], y, "the output after unmerge_", double)


def _expect_gradients(grads, x, W, bias, A, B, alpha):
    """After unmerging, A and B train as before."""
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    loss = (dense(x, W, A, B, alpha / len(A)) + bias).square().sum()
    wanted = torch.autograd.grad(loss, (A, B))
    for name, mine, theirs in zip("AB", grads, wanted, strict=True):
        expect(mine is not None, f"after unmerge_, {name} gets no gradient any more")
        expect_close(mine, theirs, f"the gradient of {name} after unmerge_")


def _expect_again(seen, x, W, bias, update):
    """A second merge, of an A that was doubled since."""
    stale = {
        "the update is the first merge's; A has changed since": W + update,
        "the second merge adds nothing: forget the first one in unmerge_": W,
    }
    call = "base.weight after merge_, unmerge_, a change of A, and merge_"
    expect_close(seen["anew"][0], W + 2 * update, call, stale)
    y = x @ (W + 2 * update).T + bias
    expect_close(seen["anew"][1], y, "the output after that")
    left = {"the update is the first merge's; A has changed since": W + update}
    expect_close(seen["undone"][0], W, f"{call}, unmerge_", left, tol=1e-5)
