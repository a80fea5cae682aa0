"""What exercise 2.7 expects of merge_ and unmerge_."""

from dataclasses import replace

from labkit.checks.compare import ask, close, expect_close
from labkit.checks.compound import expect_factor
from labkit.checks.lab02 import guesses
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab02 import probes

NOTHING = "nothing was added: the sum goes into base.weight itself, and merged is set after that"
PRODUCT = "B @ A is (d_out, r) times (r, d_in), as W is (d_out, d_in)"
RAISED = {  # what to say of an error whose text has these words
    "size of tensor": PRODUCT,
    "cannot be multiplied": PRODUCT,
    "non-leaf Tensor": "autograd records the change: put torch.no_grad() around it",
    "has no attribute": "a layer has base, A, B, r, scaling and merged, and keeps them",
}


def expect_merging(merge_, unmerge_, LoRALinear, layer, x):
    """The weight at each stage, then the outputs, then what has to stay as it is."""
    functions = (merge_, unmerge_, LoRALinear)
    seen = ask("", probes.merging, *functions, layer.data, x, hint=RAISED)
    with part():
        _expect_kept(seen)
    with part():
        _expect_weights(functions, seen, layer, x)  # a wrong one makes all that follows wrong
        _expect_outputs(seen, layer, x)
        _expect_gradients(seen["grads"], layer, x)
        _expect_again(seen, layer, x)
        hint = "layer.merged is of one layer: set it on `layer`, not on its class nor in a global"
        told = f"once one layer is merged, merge_ or unmerge_ of another does nothing: {hint}"
        expect(observe(probes.merged_beside, *functions, layer.data), told)
    with part():
        kinds = observe(probes.merged_kind, *functions, replace(layer, bias=None).data)
        hint = "add in place, or bring the sum to its dtype"
        told = f"over a bf16 base, base.weight becomes {kinds[0]} in merge_, {kinds[1]} in unmerge_"
        expect(kinds == ["bfloat16"] * 2, f"{told}: {hint}")


def _expect_update(functions, seen, layer, x):
    """What a merge adds where B is zero, and where it is turned round."""

    def merged(B):
        return observe(probes.merging, *functions, replace(layer, B=B).data, x)["once"][0]

    call = "base.weight after merge_"
    expect_close(merged(0 * layer.B), layer.W, f"{call} where B is zero (nothing is to be added)")
    added, minus = seen["once"][0] - layer.W, merged(-layer.B) - layer.W
    told = f"{call}: what is added is not linear in B: minus B is not minus the result"
    expect(close(minus, -added, 1e-3), told)


def _expect_kept(seen):
    """base.weight is the same frozen leaf, A and B the same numbers, the mode the same."""
    with part():
        told = "base.weight is another Parameter than before; change base.weight in place; "
        expect(seen["same"], f"{told}who holds the old Parameter would never know")
    with part():
        told = f"{seen['mode']} leaves train() or eval() changed: leave the mode as it is"
        expect(not seen["mode"], told)
    with part():
        expect(not seen["parts"], f"{seen['parts']}: only base.weight changes")
    told = "base.weight trains after a merge and its undoing: it stays frozen"
    expect(seen["leaf"] != [True, True], told)
    hint = "change it under torch.no_grad()"
    expect(seen["leaf"] == [True, False], f"base.weight joined the autograd graph; {hint}")


def _expect_weights(functions, seen, layer, x):
    W, update = layer.W, layer.update
    known = guesses.merged(W, update, layer.alpha, layer.r)
    known[NOTHING] = known.pop(guesses.MISSING)
    eager = {"eval() has merged by itself; merge_ alone does": W + update}
    expect_close(seen["start"][0], W, "base.weight before merge_", eager, tol=1e-5)
    taken = {
        "a layer that was never merged has nothing to take away": W - update,
        "unmerge_ adds the update; it takes it away, where it was merged": W + update,
    }
    if close(seen["twice"][0], seen["once"][0] + update, 1e-5):
        told = "neither merge_ nor unmerge_ looks at layer.merged: twice is the same as once, and"
        taken = {f"{told} {message}": wrong for message, wrong in taken.items()}
    expect_close(seen["fresh"][0], W, "base.weight after unmerge_ of a fresh layer", taken, 1e-5)
    told = "unmerge_ of a layer that was never merged turns layer.merged to True: it stays False"
    expect(not seen["fresh merged"], told)
    late = "" if seen["once"][2] else ", once it is set to True"
    twice = {
        f"merging twice added the update twice: layer.merged remembers the first{late}": (
            W + 2 * update
        ),
        "merging twice took it away again: twice is the same as once": W,
    }
    try:
        expect_close(seen["once"][0], W + update, "base.weight after merge_", known)
    except CheckFailed as failure:
        if failure.bare:
            added, asked = seen["once"][0] - W, ("alpha / r", layer.scaling)
            call = "what merge_ adds to base.weight"
            expect_factor(added, update / layer.scaling, call, asked, layer.sizes)
            _expect_update(functions, seen, layer, x)
        raise
    expect_close(seen["twice"][0], W + update, "base.weight after merge_ twice", twice)
    below = {
        "unmerging twice took it away twice": W - update,
        "the update stays; take it away": W + update,
        "nothing is left: the update alone is taken away": 0 * W,
        "it is added once more: take it away": W + 2 * update,
    } | {message: 2 * W + update - wrong for message, wrong in known.items()}
    expect_close(seen["back"][0], W, "base.weight after unmerge_", below, tol=1e-5)
    expect(not seen["back"][2], "layer.merged is still True after unmerge_: set it to False")
    expect_close(seen["end"][0], W, "base.weight after unmerge_ twice", below, tol=1e-5)


def _expect_outputs(seen, layer, x):
    y, base, twice = layer.dense(x), layer.base(x), layer.dense(x) + x @ layer.update.T
    double = {
        "the update counts twice; forward skips A and B only while layer.merged is True": twice,
        "the update is gone; nothing adds it now": base,
    }
    for name, when in (("once", "merge_"), ("twice", "merge_ twice")):
        expect_close(seen[name][1], y, f"the output after {when}", double)
    double = {
        "forward adds the update twice": twice,
        "the update is gone: is the layer still taken for merged?": base,
    }
    expect_close(seen["end"][1], y, "the output after unmerge_", double)


def _expect_gradients(grads, layer, x):
    """After unmerging, A and B train as before."""
    wanted = layer.gradients(lambda one: one.dense(x).square().sum())
    for name, mine, theirs in zip("AB", grads, wanted, strict=True):
        expect(mine is not None, f"after unmerge_, {name} gets no gradient any more")
        expect_close(mine, theirs, f"the gradient of {name} after unmerge_")


def _expect_again(seen, layer, x):
    """A second merge, of an A that was doubled since."""
    W, update = layer.W, layer.update
    stale = {
        "the update is the first merge's; A has changed since": W + update,
        "the second merge adds nothing: forget the first one in unmerge_": W,
    }
    call = "base.weight after merge_, unmerge_, a change of A, and merge_"
    expect_close(seen["anew"][0], W + 2 * update, call, stale)
    y = replace(layer, A=2 * layer.A).dense(x)
    double = {
        "the update counts twice; is layer.merged True again?": y + 2 * x @ update.T,
        "the update is gone; nothing adds it now": layer.base(x),
    }
    expect_close(seen["anew"][1], y, "the output after that", double)
    left = {"the update is the first merge's; A has changed since": W + update}
    expect_close(seen["undone"][0], W, f"{call}, unmerge_", left, tol=1e-5)
