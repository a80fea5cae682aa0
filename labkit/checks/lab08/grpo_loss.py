"""What exercise 8.5 expects of `grpo_loss`: a token at a time, in fp64, and its derivative."""

import functools

import torch

from labkit.checks.compare import ask, close, draw, expect_close, likeliest, randn
from labkit.checks.compound import combined
from labkit.checks.lab08.behaves import as_grpo
from labkit.checks.lab08.losses import expect_loss
from labkit.checks.simplest import simplest, unnamed
from labkit.contract import part, sound
from labkit.labs.lab08 import probes

ERRORS = {
    "numpy() on": "work with torch alone, or there is no gradient",
    "size of tensor": "advantages are one an answer, (b,): advantages[:, None] beside (b, t)",
    "with a bool tensor is not supported": "mask holds bools: ~mask is its opposite",
    "unexpected keyword": "the parameters are logp, old_logp, advantages, mask and clip=0.2",
    "positional argument": "the parameters are logp, old_logp, advantages, mask and clip=0.2",
}
ALONE = " answers alone"
FIRST = "the first step, logp = old_logp"
NO_GRADIENT = "its gradient is zero everywhere: is the ratio or the clip detached?"


def batch(rng, square=False, on_policy=False):
    """(logp, old_logp, advantages, mask) of answers of several lengths, padded on the right."""
    b = draw(5, 7, rng)
    t = b if square else b + draw(2, 4, rng)
    old = -randn(b, t, rng=rng).abs() - 0.1
    logp = old if on_policy else old + 0.45 * randn(b, t, rng=rng)
    advantages = randn(b, rng=rng)
    if not on_policy:  # far off to either side, for either sign
        logp[:2, 0], logp[:2, 1] = old[:2, 0] + 2, old[:2, 1] - 2
    signs = torch.where(torch.arange(b) % 2 == 0, 1.0, -1.0)
    lengths = torch.randint(2, t + 1, (b,), generator=rng)
    lengths[0], lengths[1] = 2, t
    mask = torch.arange(t) < lengths[:, None]
    given = [logp.clone(), old, advantages.abs().clamp(min=0.2) * signs, mask]
    near = not on_policy and by_token(*given, 0.2)[0].abs() < 0.1  # 0, where rounding would tell
    return batch(rng, square) if near else given


def expect_clipped(grpo_loss, rng):
    """Values and gradients off and on policy, with two widths of the clip."""
    cases = [
        ("a batch", batch(rng), {}),
        ("a batch, clip=0.3", batch(rng), {"clip": 0.3}),
        ("as many answers as tokens", batch(rng, square=True), {}),
        (FIRST, batch(rng, on_policy=True), {}),
    ]
    gains, losses = batch(rng), batch(rng)
    gains[2], losses[2] = gains[2].abs(), -losses[2].abs()
    cases += [(f"good{ALONE}", gains, {}), (f"bad{ALONE}", losses, {})]
    behaves = unnamed(lambda: as_grpo(lambda *given: _value(grpo_loss, given), "grpo_loss"))
    with part(), simplest(_small(grpo_loss)), behaves, likeliest() as case:
        for what, given, options in cases:
            with case():
                _expect(grpo_loss, what, given, options)
    if sound():
        with part():
            _expect_padding(grpo_loss, rng)


def _asked(grpo_loss, call, given, options):
    got = ask(call, probes.differentiated, grpo_loss, given, [0], options, hint=ERRORS)
    expect_loss(got, call, given[3].sum().item(), "tokens that are not padding")
    return got["value"].reshape(()), got["gradients"][0]


def _expect(grpo_loss, what, given, options):
    call, clip = f"grpo_loss of {what}", options.get("clip", 0.2)
    value, gradient = _asked(grpo_loss, call, given, options)
    wanted, slope = by_token(*given, clip)
    hinted = what != FIRST and not close(value, wanted, 1e-5)  # there all ratios are 1
    known = _guesses(*given, clip, most=1 if ALONE in what else 2) if hinted else {}
    expect_close(value, wanted, call, known, tol=1e-5)
    told = {
        NO_GRADIENT: torch.zeros_like(slope),
        "its gradient knows no clip: is the clipped ratio detached and the other one not?": (
            _unclipped_slope(*given)
        ),
        "its gradient is that of an unclipped mean over all places": (
            _unclipped_slope(*given) * given[3].sum() / given[3].numel()
        ),
        "its gradient is halved within the clip: the clipped product has lost its own": (
            torch.where(_within(*given[:2], clip), 0.5 * slope, slope)
        ),
    }
    expect_close(gradient, slope, f"{call}: its gradient for logp", told, tol=1e-4)


def _expect_padding(grpo_loss, rng):
    """What stands at padding is of no account, whatever it is."""
    given = batch(rng)
    logp, _, _, mask = given
    changed = [logp.masked_fill(~mask, -3.0), *given[1:]]
    call = "grpo_loss with other numbers at the padding"
    value, _ = _asked(grpo_loss, call, changed, {})
    before = {"it depends on what stands at padding: use the mask": value + 1}
    expect_close(value, by_token(*given, 0.2)[0], call, before, tol=1e-5)


def by_token(logp, old_logp, advantages, mask, clip):
    """(loss, its derivative for logp) in fp64, token by token: three cases for either sign."""
    total, slope = 0.0, torch.zeros(logp.shape, dtype=torch.float64)
    ratios = (logp.double() - old_logp.double()).exp().tolist()
    gains, n = advantages.double().tolist(), int(mask.sum())
    for i, j in mask.nonzero().tolist():
        ratio, gain = ratios[i][j], gains[i]
        stopped = ratio > 1 + clip if gain > 0 else ratio < 1 - clip
        bound = 1 + clip if gain > 0 else 1 - clip
        total -= gain * (bound if stopped else ratio)
        slope[i, j] = 0.0 if stopped else -gain * ratio / n
    return torch.tensor(total / n), slope


def _within(logp, old_logp, clip):
    ratio = (logp.double() - old_logp.double()).exp()
    return (ratio > 1 - clip) & (ratio < 1 + clip)


def _unclipped_slope(logp, old_logp, advantages, mask):
    ratio = (logp.double() - old_logp.double()).exp()
    return -(advantages.double()[:, None] * ratio * mask) / mask.sum()


def _guesses(logp, old_logp, advantages, mask, clip, most):
    """Wrong losses by what is wrong with them, single mistakes first."""
    new, old, gain = logp.double(), old_logp.double(), advantages.double()
    ratios = {
        "": (new - old).exp(),
        "the ratio is upside down: new over old": (old - new).exp(),
        "exp is missing: the ratio is exp of the difference of the logarithms": new - old,
        "the ratio is 1 more than the difference of the logarithms; wanted exp of it": (
            1 + new - old
        ),
        "old_logp is not used: the ratio is new over old": new.exp(),
        "logarithms are divided, wanted exp of their difference": new / old,
        "the log-probability stands in the place of the ratio": new,
        "probabilities are taken from each other; the ratio divides them": 1
        + new.exp()
        - old.exp(),
        "the ratio is 1 everywhere: old_logp is not used": torch.ones_like(new),
        "each answer has one ratio here: every token has its own": _of_answers(new - old, mask),
        "each answer has one ratio here, of its whole text: every token has its own": (
            ((new - old) * mask).sum(1, keepdim=True).exp().expand_as(new)
        ),
        "padding is masked in the logarithms, where it makes a ratio of 1: mask the objective": (
            ((new - old) * mask).exp()
        ),
    }
    signs = {"": -1.0, "the minus is missing: a loss falls where the objective grows": 1.0}

    def made(ratio, clipped, a, mean, sign):
        return sign * mean(clipped(ratio, a))

    m, A, r = mask.double(), gain[:, None], ratios[""]
    objective = torch.min(r * A, _held(r, clip) * A)
    weighed = {
        "the objective is multiplied by logp: its gradient goes through the ratio alone": objective,
        "the ratio multiplies logp: the objective is the ratio times A itself": r * A,
        "the clipped ratio multiplies logp: the objective is a ratio times A itself": (
            _held(r, clip) * A
        ),
        "logp times the advantage is the plain policy gradient: the ratio is clipped here": A,
    }
    known = {told: -(x * new * m).sum() / m.sum() for told, x in weighed.items()}
    return known | combined(
        made, ratios, _clips(clip), _gains(gain, mask), _means(mask.double()), signs, most=most
    )


def _held(ratio, clip):
    return ratio.clamp(1 - clip, 1 + clip)


def _of_answers(gap, mask):
    m = mask.double()
    return ((gap * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)).exp().expand_as(gap)


def _clips(clip):
    """`f(ratio, advantage)` that are taken for the clipped objective, the right one under ""."""
    low, high = 1 - clip, 1 + clip

    def smaller(bounded):
        return lambda r, a: torch.min(r * a, bounded(r) * a)

    return {
        "": smaller(lambda r: r.clamp(low, high)),
        "it is not clipped": lambda r, a: r * a,
        "what is clipped is taken always: the smaller of both products is wanted": (
            lambda r, a: r.clamp(low, high) * a
        ),
        "the larger of both products is taken, wanted the smaller (after a minus min takes the "
        "larger one: put the minus last, or take max)": (
            lambda r, a: torch.max(r * a, r.clamp(low, high) * a)
        ),
        "where A < 0 the clip is on the wrong side: take the smaller product, not ratio": (
            lambda r, a: r.clamp(max=high) * a
        ),
        "the larger ratio is taken; wanted the smaller of both products": (
            lambda r, a: r.clamp(min=low) * a
        ),
        "bad answers are not clipped": lambda r, a: torch.where(a > 0, r.clamp(max=high), r) * a,
        "good answers are not clipped": lambda r, a: torch.where(a < 0, r.clamp(min=low), r) * a,
        "the sides are swapped: 1 + clip is for A > 0": (
            lambda r, a: torch.where(a > 0, r.clamp(min=low), r.clamp(max=high)) * a
        ),
        "the bounds change places: 1 - clip, 1 + clip": smaller(lambda r: r.clamp(high, low)),
        "clip itself is the bound: it is 1 - clip": smaller(lambda r: r.clamp(clip, 1 / clip)),
        "the ratio is clipped to ±clip: the bounds are 1 - clip and 1 + clip": smaller(
            lambda r: r.clamp(-clip, clip)
        ),
        "the lower bound is 1 / (1 + clip), wanted 1 - clip": smaller(
            lambda r: r.clamp(1 / high, high)
        ),
        "the logarithm of the ratio is clipped to ±clip: clip the ratio": smaller(
            lambda r: r.abs().log().clamp(-clip, clip).exp()
        ),
        "the product is clipped: clip the ratio, then multiply": (
            lambda r, a: torch.min(r * a, (r * a).clamp(low, high))
        ),
        "clip is hard-coded: the parameter is not used": smaller(lambda r: r.clamp(0.8, 1.2)),
        "the lower bound is 0: it is 1 - clip": smaller(lambda r: r.clamp(0, high)),
    }


def _gains(gain, mask):
    """What multiplies a token's ratio, `(b, 1)` or what is taken for it."""
    gains = {
        "": gain[:, None],
        "the advantages are used by size, without their sign": gain.abs()[:, None],
        "the advantages are normalised once more": ((gain - gain.mean()) / gain.std())[:, None],
        "the advantages are not used": torch.ones_like(gain)[:, None],
        "the mean advantage is used for all: each answer has its own": gain.mean().expand(
            len(gain), 1
        ),
        "an answer's advantage is shared out to its tokens: each token has all of it": (
            (gain / mask.sum(1))[:, None]
        ),
    }
    if mask.shape[0] == mask.shape[1]:
        broad = "advantages line up with the tokens: advantages[:, None] has one an answer"
        gains[broad] = gain[None, :]
    return gains


def _means(m):
    """What is taken for the mean over tokens of x (b, t), m being the mask."""
    return {
        "": lambda x: (x * m).sum() / m.sum(),
        "each answer's mean, and then the mean of these: each token counts once": (
            lambda x: ((x * m).sum(1) / m.sum(1)).mean()
        ),
        "the mask is not used": lambda x: x.mean(),
        "divided by all places, padding too: divide by mask.sum()": lambda x: (x * m).mean(),
        "padding is summed too, and only the divisor leaves it out": lambda x: x.sum() / m.sum(),
        "that is the sum over the tokens, wanted their mean": lambda x: (x * m).sum(),
        "the sum over tokens is divided by the number of answers": (
            lambda x: (x * m).sum() / len(x)
        ),
        "divided by the number of tokens a row has, t": lambda x: (x * m).sum() / x.shape[1],
        "the mask is turned round: it is True on answers": (
            lambda x: (x * (1 - m)).sum() / (1 - m).sum().clamp(min=1)
        ),
        "the sum of the answers' means, wanted the mean over tokens": (
            lambda x: ((x * m).sum(1) / m.sum(1)).sum()
        ),
        "the mean over tokens is divided by the number of answers once more": (
            lambda x: (x * m).sum() / m.sum() / len(x)
        ),
    }


def _small(grpo_loss):
    """One token: for either sign a ratio above and one below the clip; then two answers."""
    for gain in (1.0, -1.0):
        for ratio in (2.0, 0.5):
            logp = torch.tensor([[ratio]]).log()
            given = [logp, torch.zeros(1, 1), torch.tensor([gain]), torch.ones(1, 1).bool()]
            clipped = min(max(ratio, 0.8), 1.2)
            why = f"minus the smaller of {ratio * gain:g} and {clipped * gain:g}"
            wanted = -min(ratio * gain, clipped * gain)
            call = f"grpo_loss of one token, ratio {ratio:g}, A = {gain:g}, clip 0.2"
            yield call, functools.partial(_value, grpo_loss, given), wanted, why
    mask = torch.tensor([[True, False, False], [True, True, True]])
    given = [torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([2.0, -1.0]), mask]
    call = "grpo_loss of answers of one and three tokens, A = 2 and -1, all ratios 1"
    why = "minus (2 - 1 - 1 - 1) / 4 tokens"
    yield call, functools.partial(_value, grpo_loss, given), 0.25, why


def _value(grpo_loss, given):
    return _asked(grpo_loss, "", given, {})[0]
