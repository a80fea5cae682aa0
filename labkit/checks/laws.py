"""What a right answer does when its inputs change: for mistakes that no guess gives.

Twice the rate makes twice the step, another order of rows changes nothing. The law that an answer
breaks says which input is forgotten, squared, normalised away or taken for another.
"""

import contextlib
from collections.abc import Callable

import torch

from labkit.checks.relations import close
from labkit.checks.simplest import KEPT, unnamed
from labkit.contract import CheckFailed


def laws(
    call: str, answer: Callable, data: tuple, changed: dict
) -> contextlib.AbstractContextManager:
    """Where what is inside fails and no mistake is named, tell the first law that is broken.

    `answer(*data)` is a number or a tensor; `changed` is `{words for a change: (other data, the
    factor by which the answer should change)}`, in words such as "with lr twice as large". Answers
    that do not run, or that are no numbers, break none. The first law is that asked again it gives
    the same.
    """

    def say():
        before, again = _of(answer, data), _of(answer, data)
        if before is not None and not _alike(before, again):
            raise CheckFailed(f"{call}: {KEPT}") from None
        for told, (other, factor) in changed.items() if before is not None else ():
            after = _of(answer, other)
            if after is None or after.shape != before.shape:
                continue
            if not close(after, factor * before, 1e-2):  # 16 bits break none
                text = f"{call}: {told} it {_became(after, before)}, and should {_should(factor)}"
                raise CheckFailed(text) from None

    return unnamed(say)


def _of(answer, data):
    """The answer as a tensor of finite numbers that are not all 0, or None."""
    try:
        got = answer(*data)
    except CheckFailed:
        return None
    if type(got) in (int, float):
        got = torch.tensor(float(got))
    if not isinstance(got, torch.Tensor) or got.is_complex():
        return None
    got = got.double()
    return got if torch.isfinite(got).all() and got.any() else None


def _alike(before, again):
    return again is not None and again.shape == before.shape and close(again, before, 1e-3)


def _became(after, before):
    if close(after, before, 2e-3):
        return "stays as it was"
    factor = ((after * before).sum() / before.square().sum()).item()
    if close(after, factor * before, 2e-3):
        return f"becomes {factor:.3g}x as large"
    return "changes, and not by a factor" if before.dim() else "changes"


def _should(factor):
    return "stay as it is" if factor == 1 else f"become {factor:g}x as large"
