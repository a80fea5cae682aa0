"""What exercise 4.5 expects of double_quantize and bits_per_param."""

import torch

from labkit.checks.compare import (
    ask,
    draw,
    expect_number,
    expect_numbers_or_first,
    expect_related,
    randn,
)
from labkit.checks.lab04 import changes, small
from labkit.checks.lab04 import sizes as guesses
from labkit.checks.lab04.guesses import peaks_of
from labkit.checks.lab04.whole import LOST, blaming, expect_integers, holds, number, wrong_counts
from labkit.checks.laws import laws
from labkit.checks.relations import relation
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab04 import probes

CASES = ((600, None, -1, 1), (100, 32, 0, 1), (256, None, -1, 1), (300, None, 0, 3e-3))
CASES += ((600, None, 0, 1e-5),)  # here a guard of 1e-6 shows, and 1e-9 does not
RAGGED = {"invalid for input of size": "the last group may be shorter: pad it, and cut q off again"}
TOLS = {1: 2e-3, 3e-3: 0.1, 1e-5: 1.0}  # in steps, by the size of the scales
SMALL = "these are small here: a guard against a zero has to be far smaller, such as 1e-12"


def expect_doubled_scales(double_quantize, rng):
    """The scales come back to half a step of 8 bits a group; equal scales come back too."""
    followed = laws(*changes.doubled(double_quantize, 2 + randn(10).abs()))
    with part(), simplest(small.doubled(double_quantize)), followed:
        for n, group, outlier, size in CASES:
            absmax = 2.5 + randn(n, rng=rng).abs()
            absmax[n // 2] = 0.05  # further from the mean than those above it
            absmax[outlier] = 40.0  # it may spoil its own group, no other
            absmax *= size
            call = f"double_quantize of {n} scales" + (f", group={group}" if group else "")
            with blaming(SMALL if size < 1 else ""):
                got = ask("", probes.doubled, double_quantize, absmax, group, hint=RAGGED)
                _expect_doubled(got[:3], absmax, group, call, TOLS[size])
        _expect_small_guard(double_quantize)
    with part():
        same, call = torch.full((64,), 3.0), "double_quantize of 64 equal scales"
        *got, lost = ask("", probes.doubled, double_quantize, same, None, hint=RAGGED)
        back = _undone(*got, 256, call)
        hint = "less their mean they are all 0, and so is that group's scale: don't divide by it"
        expect(not back.isnan().any(), f"{call} gives NaN; {hint}")
        expect_related(back, same, f"{call}, undone,")
        expect(not lost, f"{call}: {LOST}; {hint}")


def _expect_small_guard(double_quantize):
    """What guards against a zero is far below 1e-6, on the distance or on the scale.

    1e-8 on the scale passes, though it does more than 1e-6 on the distance. The two lie apart with
    these numbers, both as they are and less the right scale.
    """
    absmax, call = torch.linspace(1e-7, 3e-7, 64), "double_quantize of 64 scales below 1e-6"
    q, scale, offset, _ = ask("", probes.doubled, double_quantize, absmax, None, hint=RAGGED)
    _undone(q, scale, offset, 256, call)
    peak, top, step = (absmax - absmax.mean()).abs().max().item(), int(q.abs().max()), scale.item()
    cases = [(f"q of {call} goes to {top}, wanted 127", peak / top)] if top else []
    cases.append((f"scale of {call} is {step:.3g}, wanted {peak / 127:.3g}", step))
    hint = "the guard against a zero is too large; take one far below 1e-6, such as 1e-12"
    for told, used in reversed(cases):
        for guard in (used, used - peak / 127):  # it is the least, or it is added
            far = abs(127 * guard / 1e-6 - 1) > 0.08 and not 5e-8 < guard < 1e-3
            expect(far, f"{told}: {hint}")


def _undone(q, scale, offset, group, call):
    """q * scale + offset, with a scale a group."""
    expect(isinstance(q, torch.Tensor), f"q of {call} is no tensor")
    q = expect_integers(q, q.numel(), f"q of {call}", -128, 127)
    groups = -(-len(q) // group)
    expect(isinstance(scale, torch.Tensor), f"scale of {call} is no tensor: one number a group")
    expect(not scale.is_complex(), f"scale of {call} holds complex numbers")
    told = f"scale of {call} {holds(scale, groups)}: one a group of {group}"
    hint = wrong_counts(len(q), group, 256, "group")[1].get(scale.numel(), "")
    expect(scale.numel() == groups, told, hint=hint)
    return q * _spread(scale, group, len(q)) + number(offset, f"offset of {call}")


def _spread(scale, group, n):
    return scale.flatten().repeat_interleave(group)[:n]


def _expect_doubled(got, absmax, group, call, tol):
    (q, scale, offset), group, mean = got, group or 256, absmax.mean().item()
    sizes = [x.numel() if isinstance(x, torch.Tensor) else 1 for x in got]
    n, groups = len(absmax), -(-len(absmax) // group)
    turned = sizes in ([n, 1, groups], [groups, n, 1], [1, n, groups]) and groups > 1
    expect(not turned, f"{call}: q comes first, then scale, then offset")
    wrong = {
        "subtract the mean first: the 8 bits then cover the differences alone": 0.0,
        "zeros of padding are in this mean: take it before you pad": (
            absmax.sum().item() / (-(-len(absmax) // group) * group)
        ),
        "offset is taken off with a plus: absmax - mean, and the mean comes back": -mean,
        "this is the smallest one; take the mean": absmax.min().item(),
        "this is the median; take the mean": absmax.median().item(),
        "this is the mean of logarithms; take that of absmax": absmax.log().mean().item(),
        "this is the root of the mean square; take the mean": absmax.square().mean().sqrt().item(),
        "this is the geometric mean; take the usual one": absmax.log().mean().exp().item(),
        "this is the largest one; take the mean": absmax.max().item(),
        "this is half way from the smallest to the largest; take the mean": (
            (absmax.max() + absmax.min()).item() / 2
        ),
    }
    told = f"offset of {call}, the mean of absmax,"
    one = "the mean of all, not one a group"
    expect_number(number(offset, told, one), mean, told, wrong)
    counts = wrong_counts(n, group, 256, "group")[0]
    signed = "int8 has both signs: 0 stands for the mean, nothing is added"
    expect_integers(q, n, f"q of {call}", -128, 127, signed, counts=counts)
    step = peaks_of(absmax - mean, group)[0] / 127
    steps_off = (_undone(*got, group, call) - absmax).abs() / step
    if (steps_off <= 0.5 + tol).all():
        return
    _expect_no_other_way(q.flatten(), scale.flatten(), absmax, group, call)
    hint = "is each group scaled by its own largest distance from the mean, and rounded?"
    guarded = _guarded(scale.flatten(), peaks_of(absmax - mean, group)[1] / 127)
    if guarded:
        hint = "the guard against a zero changes scales that are not zero"
        raise CheckFailed(f"scale of {call}: {hint}")
    found = relation(q.flatten(), ((absmax - mean) / step).round())
    if found:
        raise CheckFailed(f"q of {call}: {found}")
    worst = f"a scale is off by {steps_off.max():.2f} steps, wanted 0.5"
    raise CheckFailed(f"{call}: undone, {worst}; {hint}", bare=True)


def _guarded(scale, right):
    """Whether something was added to all right scales, or the small ones are all the same."""
    more = (scale - right).clamp_min(0)
    raised = scale[more > 1e-4 * right]
    added = more.min() > 0 and more.max() - more.min() < 1e-3 * more.max()
    alike = len(raised) > 1 and raised.max() - raised.min() < 1e-6 * raised.max()
    return len(scale) > 1 and bool(added or alike)


def _expect_no_other_way(q, scale, absmax, group, call):
    """None of the misconceptions that show in q or in scale."""
    mean = absmax.mean()
    each, around = _spread(scale, group, len(absmax)), absmax - mean
    padding = len(absmax) % group and abs(scale[-1] * 127 / mean - 1) < 1e-4
    expect(not padding, f"{call}: the padding decides the last scale; subtract the mean, then pad")
    for message, wrong in guesses.undone_scales(q, each, mean).items():
        step = peaks_of(around, group)[0] / 127
        if ((wrong - absmax).abs() <= step).all():
            raise CheckFailed(f"{call}: {message}")
    if torch.allclose(scale, peaks_of(around, group)[1] / 127, rtol=1e-4):
        for message, wrong in guesses.eight_bits(around, absmax, each, mean).items():
            if (q - wrong).abs().max() < 1:
                raise CheckFailed(f"q of {call}: {message}")
        less = q.abs().max() < 127
        expect(
            not less, f"{call}: q goes to {int(q.abs().max())}: is the scale larger in dividing?"
        )
        return
    ratio = scale / (peaks_of(around, group)[1] / 127)
    for message, wrong in guesses.scales_of_scales(around, mean, group).items():
        full = max(1, len(absmax) // group)  # what is done with a shorter one is no sign
        if torch.allclose(scale[:full], wrong[:full], rtol=1e-4):
            raise CheckFailed(f"scale of {call}: {message}")
    same = len(ratio) > 1 and torch.allclose(ratio, ratio[0], rtol=1e-3)
    told = f"each is {ratio[0]:.3g} times the largest distance / 127"
    expect(not same, f"scale of {call}: {told}")


def expect_bits(bits_per_param, rng):
    """Bits of a parameter for usual block sizes and one that nobody knows by heart."""
    with part():
        for double in (False, True):
            cases = []
            for block in (64, draw(70, 300, rng), 32):
                call = f"bits_per_param({block}, double_quant={double})"
                wanted = 4 + (8 / block + 32 / (block * 256) if double else 32 / block)
                got = observe(bits_per_param, block, double)
                cases.append((call, got, wanted, guesses.bits(block, double), _parts(double)))
            expect_numbers_or_first(cases, tol=1e-6)  # 257 for 256 is off by 2e-6
        expect_number(observe(bits_per_param), 4.5, "bits_per_param()", guesses.bits(64, False))


def _parts(double):
    scales = "8 / block, and 32 / (256 * block) of the scales' scales" if double else "32 / block"
    return f"that is 4, and {scales}"
