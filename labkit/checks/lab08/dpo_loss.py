"""What exercise 8.2 expects of `dpo_loss`: log(1 + exp(-beta margin)) and its derivative."""

import functools
import math

import torch

from labkit.checks.compare import ask, close, draw, expect_close, likeliest, randn
from labkit.checks.compound import combined
from labkit.checks.lab08.behaves import as_dpo
from labkit.checks.lab08.losses import expect_loss
from labkit.checks.simplest import simplest, unnamed
from labkit.contract import CheckFailed, expect, part, sound
from labkit.labs.lab08 import probes

ERRORS = {
    "numpy() on": "work with torch alone, or there is no gradient",
    "must be real number": "work with torch alone: math takes single numbers",
    "only one element": "work with torch alone: math takes single numbers",
    "logsigmoid(): argument": "beta is a float: multiply the margin by it",
}
KINK = "it is doubled: pieces that meet at margin 0, where training starts, have a kink there"
DETACHED = "it is zero: is something detached?"
FLAT = "it is zero at margin 0, where training starts, and elsewhere it is not: torch's relu and "
FLAT += "abs have no slope at 0; logsigmoid and softplus have"
START = "dpo_loss where policy and reference are the same"
UNSTABLE = "exp or a sigmoid leaves fp32's range: torch has the logarithm of the sigmoid as one"


def softplus(x):
    """log(1 + exp(x)) in fp64, exact for any x."""
    return torch.logaddexp(torch.zeros_like(x), x)


def pairs(rng, spread=4.0):
    """Log-probabilities (b,) of policy and reference, chosen and rejected, in dpo_loss's order."""
    b = draw(4, 7, rng)
    reference = [-20 - 10 * randn(b, rng=rng).abs() for _ in range(2)]
    return [log + spread * randn(b, rng=rng) for log in reference] + reference


def expect_dpo(dpo_loss, rng):
    """Values and gradients at common margins, log 2 at the start, finite at large ones."""
    cases = [("a few pairs", pairs(rng), beta) for beta in (0.1, 0.5, 1.0)]
    chosen, rejected = pairs(rng)[2:]
    same = [chosen, rejected, chosen.clone(), rejected.clone()]
    behaves = unnamed(lambda: as_dpo(functools.partial(_value, dpo_loss), "dpo_loss"))
    with part(), simplest(_small(dpo_loss)), behaves, likeliest() as case:
        for what, four, beta in cases:
            with case():
                _expect(dpo_loss, f"dpo_loss of {what}, beta {beta:g}", four, beta)
        with case():
            _expect(dpo_loss, START, same, 0.1)
    if sound():
        with part(), likeliest() as case:
            for sign in (-1, 1):
                with case():
                    _expect_large(dpo_loss, sign, rng)


def _margins(four):
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = four
    return (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)


def _asked(dpo_loss, call, four, beta):
    got = ask(call, probes.differentiated, dpo_loss, [*four, beta], [0, 1], hint=ERRORS)
    expect_loss(got, call, len(four[0]), "pairs")
    return got


def _value(dpo_loss, *four):
    """The loss at beta 1."""
    return _asked(dpo_loss, "", four, 1.0)["value"]


def _expect(dpo_loss, call, four, beta):
    got = _asked(dpo_loss, call, four, beta)
    exact = [x.double() for x in four]
    x = beta * _margins(exact)
    value = got["value"].reshape(())
    wanted = softplus(-x).mean()
    hinted = call != START and not close(value, wanted, 1e-5)  # there much is zero
    known = _guesses(exact, beta) if hinted else {}
    expect_close(value, wanted, call, known, tol=1e-5)
    slope = -beta * torch.sigmoid(-x) / len(x)
    for name, gradient, sign in zip(("chosen", "rejected"), got["gradients"], (1, -1), strict=True):
        told = f"{call}: its gradient for policy_{name}"
        hint = {
            FLAT if call == START else DETACHED: torch.zeros_like(slope),
            KINK: 2 * sign * slope,
        }
        expect_close(gradient, sign * slope, told, hint, tol=1e-4)


def _expect_large(dpo_loss, sign, rng):
    """Margins of about a thousand nats on one side; the loss is linear there, or nothing."""
    four, beta = pairs(rng), 0.5
    four[0] = four[0] + sign * (1000 + 50 * torch.rand(len(four[0]), generator=rng))
    side = "right" if sign > 0 else "wrong"
    call = f"dpo_loss at margins of about 1000 nats on the {side} side, beta {beta:g}"
    got = _asked(dpo_loss, call, four, beta)
    x = beta * _margins([x.double() for x in four])
    value = got["value"].reshape(())
    finite = torch.isfinite(value) and all(torch.isfinite(g).all() for g in got["gradients"])
    expect(finite, f"{call}: it or its gradient is NaN or infinite: {UNSTABLE}")
    wanted = softplus(-x).mean()
    if abs(value - wanted) > 1e-4 * wanted.abs().clamp(min=1e-2):
        told = f"{call} gave {value.item():.6g}, wanted {wanted.item():.6g}"
        capped = "something caps the loss, such as a clamp, or an epsilon in the logarithm"
        raise CheckFailed(f"{told}: {capped}")
    slope = -beta * torch.sigmoid(-x) / len(x)
    flat = sign < 0 and (got["gradients"][0].abs() < 1e-3 * slope.abs()).any()
    expect(not flat, f"{call}: its gradient is lost: {UNSTABLE}")


def _guesses(four, beta):
    """Wrong losses by what is wrong with them, single mistakes first."""
    pc, pr, rc, rr = four
    betas = {
        "": (beta, 1.0),
        "beta is missing": (1.0, 1.0),
        "beta stands outside of the sigmoid: it multiplies the margin": (1.0, beta),
        "divided by beta, wanted times": (1 / beta, 1.0),
        "beta stands there twice": (beta**2, 1.0),
        "beta stands there twice: on the margin and on the loss": (beta, beta),
        "divided by beta at the end: it multiplies the margin alone": (beta, 1 / beta),
        "the margin is halved": (beta / 2, 1.0),
    }
    over = {
        "": torch.mean,
        "that is the sum over the pairs, wanted their mean": torch.sum,
        "that is half of the mean": lambda y: y.mean() / 2,
        "that is twice the mean": lambda y: y.mean() * 2,
    }

    def made(margin, beta_of, loss, take):
        inside, outside = beta_of
        return take(outside * loss(inside * margin))

    margin = _margins(four)
    own = "each answer has a sigmoid of its own: the difference comes first"
    apart = softplus(-beta * (pc - rc)) + softplus(beta * (pr - rr))
    known = {
        "the mean is taken before the sigmoid: each pair has a loss of its own": softplus(
            -beta * margin.mean()
        ),
        "the mean is taken before the logarithm: each pair has a loss of its own": (
            -torch.sigmoid(beta * margin).mean().log()
        ),
        "beta multiplies the policy alone": softplus(-(beta * (pc - pr) - (rc - rr))).mean(),
        "beta multiplies the reference alone": softplus(-((pc - pr) - beta * (rc - rr))).mean(),
        "beta multiplies the chosen one alone": softplus(-(beta * (pc - rc) - (pr - rr))).mean(),
        own: apart.mean(),
        f"{own}; here the two losses are averaged": apart.mean() / 2,
    }
    return known | combined(made, _differences(*four), betas, _losses(beta), over)


def _differences(pc, pr, rc, rr):
    """What is taken for the margin, the right one under ""."""
    margin = (pc - rc) - (pr - rr)
    return {
        "": margin,
        "the sign of the margin is turned: the pairs are swapped, or policy and reference are, or "
        "a minus stands inside of the sigmoid": -margin,
        "the reference is not used": pc - pr,
        "the reference is not used, and the pairs are swapped": pr - pc,
        "the reference is added; it is taken away, of each answer": pc - pr + rc - rr,
        "the rejected answer's reference has the wrong sign: take it from that answer first": (
            pc - rc - pr - rr
        ),
        "both answers are added up: the rejected one is taken away": pc - rc + pr - rr,
        "the rejected answer does not count": pc - rc,
        "the chosen answer does not count": rr - pr,
        "the rejected answer does not count, and the sign is turned": rc - pc,
        "the rejected answer has no reference": pc - rc - pr,
        "the chosen answer has no reference": pc - pr + rr,
        "the policy does not count": rc - rr,
        "the logarithms are turned into ratios; take their differences as they are": (
            (pc - rc).exp() - (pr - rr).exp()
        ),
        "logarithms are divided, wanted their differences": pc / rc - pr / rr,
        "the four are logarithms already: take their differences, no log of a ratio": (
            (pc / rc).abs().log() - (pr / rr).abs().log()
        ),
        "probabilities stand in the place of their logarithms": (
            pc.exp() - rc.exp() - pr.exp() + rr.exp()
        ),
        "chosen and rejected are divided; one is taken from the other": (pc - rc) / (pr - rr),
        "the size of the margin is taken: its sign says who is ahead": margin.abs(),
        "the margin is cut at zero": margin.clamp(min=0),
    }


def _losses(beta):
    """What is taken for minus the logarithm of the sigmoid of x, the right one under ""."""
    return {
        "": lambda x: softplus(-x),
        "the minus is missing: a loss falls where the choices become likelier": (
            lambda x: -softplus(-x)
        ),
        "the logarithm is missing": lambda x: -torch.sigmoid(x),
        "the logarithm is missing, and the minus": torch.sigmoid,
        "that is the chance of the wrong choice; wanted minus the log of the right one's": (
            lambda x: torch.sigmoid(-x)
        ),
        "the sigmoid is missing": lambda x: -x,
        "that is the hinge loss: wanted minus the log of a sigmoid": lambda x: (1 - x).relu(),
        "logarithm to base 2: the natural one is wanted": lambda x: softplus(-x) / math.log(2),
        "that is log(1 - sigmoid): wanted minus the logarithm of the sigmoid": (
            lambda x: -softplus(x)
        ),
        "the margin is squared: wanted minus the logarithm of a sigmoid": lambda x: x * x,
        "that is IPO's square": lambda x: (x / beta - 1 / (2 * beta)) ** 2,
        "minus the logarithm of tanh": lambda x: softplus(-2 * x),
    }


def _small(dpo_loss):
    """One pair, whose margin is two nats, one without a margin, and both."""
    one, other = (-1.0, -3.0, -2.0, -2.0), (-5.0, -1.0, -5.0, -1.0)
    two, nothing = math.log1p(math.exp(-2)), math.log(2)
    why = "the margin is {}, the loss log(1 + e^-{})"
    for some, wanted, told in (
        ([one], two, why.format(2, 2)),
        ([other], nothing, why.format(0, 0)),
        ([one, other], (two + nothing) / 2, "the losses are 0.1269 and 0.6931, and their mean"),
    ):
        tensors = [torch.tensor(x) for x in zip(*some, strict=True)]
        listed = ", ".join(str([int(x) for x in t]) for t in tensors)

        def answer(tensors=tensors):
            return _asked(dpo_loss, "", tensors, 1.0)["value"]

        yield f"dpo_loss({listed}, beta=1)", answer, wanted, told
