"""How a wrong answer of lab 8 behaves, where no single mistake gives its numbers.

Each function asks it small things that a right answer does, and raises CheckFailed with the first
that it does not. `run` calls it and gives a tensor.
"""

import math

import torch

from labkit.checks.relations import close
from labkit.contract import expect


def as_advantages(run, call):
    """Of `run(rewards)`: rows apart, order, mean, deviation, and proportion."""
    r = torch.tensor([[0.0, 0.2, 0.9, 0.4], [0.3, 0.8, 0.5, 0.6]])
    base = run(r)
    told = "a group alone has other advantages than beside others: each row stands for itself"
    expect(close(run(r[:1]), base[:1], 1e-3), f"{call}: {told}")
    total = base.sum(1).abs().max().item()
    told = f"the advantages of a group add up to {total:.3g}, wanted 0: its mean is taken away"
    expect(total < 0.5, f"{call}: {told}")
    told = "the order of the answers changes their advantages: each place counts alike"
    expect(close(run(r.flip(1)).flip(1), base, 1e-3), f"{call}: {told}")
    told = "rewards that are all 1 higher have other advantages: the mean of all is taken away"
    expect(close(run(r + 1), base, 1e-2), f"{call}: {told}")
    told = "rewards ten times as large have other advantages: they are divided by the deviation"
    expect(close(run(10 * r), base, 1e-2), f"{call}: {told}")
    gap = r - r.mean(1, keepdim=True)
    size = (base * gap).sum(1, keepdim=True) / gap.square().sum(1, keepdim=True)
    told = "advantages are not in proportion to the distances from the mean, as these divided are"
    expect(close(size * gap, base, 1e-2), f"{call}: {told}")


def as_logprobs(run, call):
    """Of `run(logits, labels)`: rows apart, a sum over tokens, logits that are normalised."""
    logits = torch.linspace(-1, 1, 60).sin().mul(5).cos().view(3, 5, 4)
    labels = torch.tensor([[-100, 1, 3, 2, 0], [-100, -100, 0, 1, 2], [-100, 2, 2, 3, -100]])
    base = run(logits, labels)
    told = "a sequence alone has another number than beside others: each has a sum of its own"
    expect(close(run(logits[:1], labels[:1]), base[:1], 1e-3), f"{call}: {told}")
    halves = []
    for part in (slice(0, 3), slice(3, 5)):
        some = labels.clone()
        some[:, part] = -100
        halves.append(run(logits, some))
    told = "an answer has not the sum of what its tokens have: no mean, no weight by its length"
    expect(close(halves[0] + halves[1], base, 1e-3), f"{call}: {told}")
    told = "logits that are all 1 higher give another number: they have to be normalised"
    expect(close(run(logits + 1, labels), base, 1e-3), f"{call}: {told}")
    ids = torch.tensor([[-100, -100, k] for k in range(4)])
    each, z = run(logits[:1, :3].expand(4, 3, 4), ids), logits[0, 1]
    slope = ((each - each[0])[1:] / (z - z[0])[1:]).tolist()
    even = max(slope) - min(slope) < 1e-3
    told = f"the logits count {slope[0]:.3g} times: no temperature is asked for"
    expect(not even or abs(slope[0] - 1) < 1e-3, f"{call}: {told}")
    total = each.exp().sum().item()
    told = f"the probabilities of all tokens at one place add up to {total:.3g}, wanted 1"
    expect(abs(total - 1) < 1e-3, f"{call}: {told}")


def as_dpo(run, call):
    """Of `run(policy_chosen, policy_rejected, reference_chosen, reference_rejected)`, beta 1."""

    def one(*margins, more=0.0):
        m = torch.tensor(margins)
        return run(m / 2 + more, -m / 2 + more, 0 * m, 0 * m).item()

    m = [-2.0, -1.0, 0.0, 1.0, 2.0]
    got, wanted = [one(x) for x in m], [math.log1p(math.exp(-x)) for x in m]
    both, mean = one(-1.0, 2.0), (got[1] + got[4]) / 2
    told = f"two pairs that have {got[1]:.4g} and {got[4]:.4g} alone have {both:.4g} together"
    expect(abs(both - mean) < 1e-3, f"{call}: {told}, wanted the mean of both")
    told = (
        "policies that are higher by 3 nats for both answers have another loss: the margin counts"
    )
    expect(abs(one(1.0, more=3.0) - got[3]) < 1e-3, f"{call}: {told} alone")
    if all(abs(x - y) < 1e-3 for x, y in zip(got, wanted, strict=True)):
        return
    a, b = _line(m, [-math.log(math.expm1(x)) for x in got]) if min(got) > 1e-6 else (None, None)
    told = f"it is the loss of a margin that is {_terms(a, b)}" if a is not None else ""
    expect(a is None, f"{call}: {told}; wanted that of the margin itself")
    a, b = _line(m, [x - y for x, y in zip(got, wanted, strict=True)])
    told = f"{_terms(a, b)} is added to the loss" if a is not None else ""
    expect(a is None, f"{call}: {told}; nothing is: is it label smoothing, or a penalty?")
    for name, change in (("logarithm", math.log), ("square", lambda x: x * x), ("exp", math.exp)):
        same = all(abs(x - change(y)) < 1e-3 for x, y in zip(got, wanted, strict=True))
        expect(not same, f"{call}: it is the {name} of the loss, wanted the loss itself")


def _line(xs, ys):
    """(slope, start) of the line through the points, or (None, None)."""
    a, b = (ys[-1] - ys[0]) / (xs[-1] - xs[0]), ys[len(ys) // 2]
    good = all(abs(a * x + b - y) < 1e-3 for x, y in zip(xs, ys, strict=True))
    return (a, b) if good else (None, None)


def _terms(a, b):
    """`{a} times the margin plus {b}` without what is 0."""
    told = [f"{a:.3g} times the margin"] * (abs(a) > 1e-3) + [f"{b:.3g}"] * (abs(b) > 1e-3)
    return " plus ".join(told)


def as_grpo(run, call):
    """Of `run(logp, old_logp, advantages, mask)`, clip 0.2: weights of tokens, where it is flat."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    zero = torch.zeros(2, 3)
    loss = run(zero - 1, zero, torch.zeros(2), mask).item()
    told = f"where all advantages are 0 the loss is {loss:.3g}, wanted 0"
    expect(abs(loss) < 1e-4, f"{call}: {told}: something is added to it, such as a KL")
    weights = [-run(zero - 1, zero - 1, torch.eye(2)[i], mask).item() for i in (0, 1)]
    total = sum(weights)
    told = (
        f"where all ratios are 1 the loss is {0.0 - total:.3g} times the mean of A over all tokens"
    )
    even = abs(weights[1] - 3 * weights[0]) < 1e-3  # the weights are right, but for a factor
    expect(not even or abs(total - 1) < 1e-3, f"{call}: {told}, wanted -1 times")
    right = abs(weights[0] - 0.25) + abs(weights[1] - 0.75) < 1e-3
    told = (
        f"where all ratios are 1, an answer of one token weighs {weights[0]:.3g} and one of three"
    )
    expect(right, f"{call}: {told} {weights[1]:.3g}; wanted 0.25 and 0.75, each token counts once")
    for gain in (1.0, -1.0):
        _expect_shape(run, call, gain)


def _expect_shape(run, call, gain):
    """The objective of one token, whatever its ratio."""
    ratios = [n / 10 for n in range(2, 31)] + [4.0, 7.0, 12.0]
    one, advantage = torch.ones(1, 1), torch.tensor([gain])
    got = [
        -run((r * one).log(), 0 * one, advantage, torch.ones(1, 1, dtype=torch.bool)).item()
        for r in ratios
    ]
    wanted = [min(r * gain, min(max(r, 0.8), 1.2) * gain) for r in ratios]
    off = [i for i in range(len(ratios)) if not abs(got[i] - wanted[i]) < 1e-3]
    if not off or 8 in off:  # at ratio 1 it is wrong already, so that the small case says more
        return
    first = got[off[0]]
    free = all((ratios[i] - 1) * gain < 0 for i in off)  # where nothing is clipped
    if free and all(abs(got[i] - first) < 1e-3 for i in off):
        sign, side, bound = (">", "below", "1 - clip") if gain > 0 else ("<", "above", "1 + clip")
        told = f"where A {sign} 0 something clips {side} {bound}, too: with A = {gain:g} the"
        told += f" objective stays at {first:.3g} where the ratio is {side} {first / gain:.3g}"
        expect(False, f"{call}: {told}, wanted ratio times A there")
    i = min(off, key=lambda i: abs(ratios[i] - 1))
    near = f"right at ratio 1, and at {ratios[i]:g} it is {got[i]:.3g}, wanted {wanted[i]:.3g}"
    bound = {1.0: "no more than 1.2 A, and no bound below", -1.0: "0.8 A at least, none above"}[
        gain
    ]
    expect(False, f"{call}: for a token with A = {gain:g} the objective is {near} ({bound})")
