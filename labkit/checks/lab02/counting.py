"""What exercises 2.5 and 2.6 expect: how many numbers, and how many operations torch counts."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry

from labkit.checks.compare import ask, draw, expect_number, expect_numbers, kind_of
from labkit.checks.compound import terms_of
from labkit.checks.lab02 import flops
from labkit.checks.simplest import simplest
from labkit.contract import CheckFailed, expect, part
from labkit.labs.watch import Watch

SMALL = {"k_proj": (4, 8)}  # for a mistake that has no name


def expect_counts(got, known, where):
    """Judge both numbers; True where both are right. Tensors that hold one number count as such."""
    pair = isinstance(got, list) and len(got) == 2
    mine = f"{len(got)} things" if isinstance(got, list) else kind_of(got)
    expect(pair, f"count_params gave {mine}, wanted two ints, the pair (trainable, total)")
    got = [_plain(mine) for mine in got]
    numbers = [n if type(n) in (int, float) else None for n in got]
    first, second = (guess for _, guess in known)
    both = [m for m in first if m in second and [first[m], second[m]] == numbers]  # these first
    odd = any(
        n not in (wanted, *guess.values())
        for n, (wanted, guess) in zip(numbers, known, strict=True)
    )
    alone = first.keys() & second.keys() if odd else ()  # by accident: the other would have it
    right = 0
    for name, mine, (wanted, guess) in zip(("trainable", "the total"), got, known, strict=True):
        with part():
            told = {m: guess[m] for m in both} | {m: guess[m] for m in guess if m not in alone}
            expect_number(mine, wanted, f"{name}, {where}", told)
            right += 1
    return right == 2


def _plain(mine):
    """The int that a tensor holds, which counts as one; anything else as it is."""
    whole = isinstance(mine, torch.Tensor) and not (mine.ndim or mine.is_floating_point())
    return mine.item() if whole else mine


def counted(shapes: dict, n_tokens: int, r: int | None) -> int:
    """FLOPs of forward and backward of linear layers `{name: (d_out, d_in)}`, counted by torch.

    Where `r` is None all weights train, else A and B beside frozen ones. All inputs require grad.
    They are small, so the products are computed, too: the meta device would take longer to import.
    """
    with _Counter() as counter, torch.enable_grad():
        for d_out, d_in in shapes.values():
            _step(d_out, d_in, n_tokens, r)
    return counter.total


class _Counter(Watch):
    """Sums what torch's flop counter says of each operation, without its compiler's import."""

    total = 0

    def seen(self, function, args, kwargs, out):
        count = flop_registry.get(function._overloadpacket)
        if count:
            self.total += count(*args, **kwargs, out_val=out)


def _step(d_out, d_in, n_tokens, r):
    """Forward and backward of one layer, as a deep model does it: x comes from a layer before."""

    def made(*shape, trains=True):
        return torch.zeros(shape, requires_grad=trains)

    x, W = made(n_tokens, d_in), made(d_out, d_in, trains=r is None)
    y = F.linear(x, W)
    if r is not None:
        y = y + F.linear(F.linear(x, made(r, d_in)), made(d_out, r))
    y.sum().backward()


def expect_flops(step_flops: Callable, rng: torch.Generator) -> None:
    """All weights first, then LoRA: a result of another kind is wrong in both."""
    sides = [int(side) * 2 + 11 for side in torch.randperm(36, generator=rng)[:4]]
    several = {"q_proj": (sides[0], sides[1]), "k_proj": (sides[2], sides[1])}
    several |= {"v_proj": (sides[2], sides[1]), "up_proj": (sides[3], sides[0])}
    cases = [(several, draw(11, 60, rng)), ({"o_proj": (sides[3], sides[2])}, draw(61, 90, rng))]
    _expect_kind(step_flops, *cases[0])
    for r in (None, draw(4, 9, rng)):  # 3 would hide an r that is missing
        with part():
            _expect(step_flops, [(*case, r) for case in cases], rng)


def _expect_kind(step_flops, shapes, n_tokens):
    got, call = _answer(step_flops, shapes, n_tokens, None), _call(shapes, n_tokens, None)
    expect(not isinstance(got, list | dict), f"{call}: one number, of both passes together")
    expect(got != 1, f"{call} gave {got}: is that a ratio? How many operations is asked")
    if type(got) not in (int, float):
        expect_number(got, counted(shapes, n_tokens, None), call)


def _expect(step_flops, cases, rng):
    asked = []
    for shapes, n_tokens, r in cases:
        got, call = _answer(step_flops, shapes, n_tokens, r), _call(shapes, n_tokens, r)
        wanted = counted(shapes, n_tokens, r)
        known = flops.guesses(shapes, n_tokens, r, partial(counted, n_tokens=n_tokens, r=r))
        if type(got) is float:
            expect(got != wanted / 1e9, f"{call}: these are GFLOPs; the number itself is wanted")
        asked.append((call, got, wanted, {k: v for k, v in known.items() if v != wanted}))
    small = None if r is None else 2
    made = f"x is 1 x 8, W 4 x 8{'' if r is None else ', A 2 x 8, B 4 x 2'}"
    why = f"{made}; n x k times k x m takes 2 n k m"
    told = _call(SMALL, 1, small), lambda: _answer(step_flops, SMALL, 1, small)
    with simplest([(*told, counted(SMALL, 1, small), why)]), _dissected(step_flops, asked, r, rng):
        expect_numbers(asked)


class _dissected:
    """Of a failure without a name: what the answer takes for each number of W, A and B."""

    def __init__(self, step_flops, asked, r, rng):
        self.step_flops, self.call, self.lora, self.rng = step_flops, asked[0][0], r, rng

    def __enter__(self):
        return self

    def __exit__(self, kind, failure, trace):
        if isinstance(failure, CheckFailed) and failure.bare:
            odd = flops.odd(self._terms(), self.lora) or self._squared() or self._several()
            if odd:
                raise CheckFailed(f"{self.call}: {'; '.join(odd)}") from None

    def _squared(self):
        """What is wrong where twice the tokens take more than twice the operations."""
        try:
            one, two, three = (
                _answer(self.step_flops, {"layer": (9, 14)}, n, self.lora) for n in (5, 10, 15)
            )
        except CheckFailed:
            return []
        told = "n_tokens comes squared, as attention has it; linear layers alone are asked"
        return [told] if one - 2 * two + three else []

    def _several(self):
        """What is wrong with several layers, where each by itself may be right."""
        r, (one, other) = self.lora, ({"up_proj": (9, 14)}, {"down_proj": (22, 9)})
        try:
            both = _answer(self.step_flops, one | other, 7, r)
            alone = [_answer(self.step_flops, shapes, 7, r) for shapes in (one, other)]
        except CheckFailed:
            return []
        if alone != [counted(shapes, 7, r) for shapes in (one, other)] or both == sum(alone):
            return []
        return ["one layer alone is right; several are not the sum of them: treat each alike"]

    def _terms(self):
        """`{what: how much of it}` where the answer is such a sum, else {}."""
        sizes, lora = [[draw(5, 40, self.rng) for _ in range(4)] for _ in range(24)], self.lora
        sizes = [(o, i, n, r if lora else None) for o, i, n, r in sizes]

        def answer(number):
            o, i, n, r = sizes[number]
            return _answer(self.step_flops, {"layer": (o, i)}, n, r)

        return terms_of(answer, [flops.terms(*size) for size in sizes])


def _answer(step_flops, shapes, n_tokens, r):
    given, call = () if r is None else (r,), _call(shapes, n_tokens, r)
    hint = {"'NoneType'": "without LoRA r is None, and all weights train"}
    return ask(call, step_flops, shapes, n_tokens, *given, hint=hint)


def _call(shapes, n_tokens, r):
    listed = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
    return f"step_flops({{{listed}}}, {n_tokens}{'' if r is None else f', r={r}'})"
