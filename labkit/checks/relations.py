"""How a wrong tensor is related to the wanted one: for mistakes that no guess of a check gives.

`relation` looks for what was done to the right numbers: turned, mirrored, squared, cut off, each
row scaled; then for where they are right. It knows nothing of the exercise.
"""

import torch

FEWEST = 6  # numbers from which on a relation is no accident
SIDES = {0: "row", 1: "column"}


def close(got: torch.Tensor, wanted: torch.Tensor, tol: float) -> bool:
    """Whether two tensors are equal to `tol`, relative to the largest number of `wanted`."""
    scale = wanted.abs().max().clamp_min(1e-8) if wanted.numel() else 1.0
    return bool(((got - wanted).abs() <= tol * scale).all())


def difference(got: torch.Tensor, wanted: torch.Tensor, related: bool) -> tuple[str, bool]:
    """How `got` misses `wanted`, of one shape, and whether that names what was done.

    By a factor, a sign, a relation if `related` asks for one, or the largest difference.
    """
    size = (wanted * wanted).sum()
    factor = ((got * wanted).sum() / size).item() if size > 0 else 0.0
    whole = got.equal(got.round()) and wanted.equal(wanted.round())
    if abs(factor - 1) < 5e-3 and close(got, wanted, 1e-2) and not whole:
        return "right but for rounding: computed in 16 bits?", False
    if factor and close(got, factor * wanted, 1e-3):
        turned = abs(factor + 1) < 1e-3
        return "the sign is turned round" if turned else f"{factor:.3g}x the wanted", False
    if found := related and relation(got, wanted):
        return found, True
    worst = (got - wanted).abs().argmax()
    yours, theirs = got.flatten()[worst].item(), wanted.flatten()[worst].item()
    return f"yours {yours:.4g}, wanted {theirs:.4g} where they differ most", False


def relation(got: torch.Tensor, wanted: torch.Tensor) -> str:
    """What makes `got` of `wanted`, two real tensors of one shape, in a few words; "" for nothing.

    `wanted` has to vary: of few or of equal numbers many things look alike.
    """
    got, wanted = got.double(), wanted.double()
    if wanted.numel() < FEWEST or wanted.unique().numel() < FEWEST // 2:
        return ""
    if not got.any():
        return "all of it is 0"
    if _same(got, got.flatten()[0].expand_as(got), wanted):
        return f"all its numbers are the same, {got.flatten()[0]:.3g}"
    return _changed(got, wanted) or _by_lines(got, wanted) or _in_places(got, wanted)


def _same(a, b, scale, tol=1e-3):
    """Equal to `tol` of the largest number of `scale`."""
    return bool(((a - b).abs() <= tol * scale.abs().max().clamp_min(1e-8)).all())


def _changed(got, wanted):
    """One thing done to all of it; with a factor, where that is left."""
    for told, made in _changes(got, wanted):
        if not torch.isfinite(made).all() or _same(made, wanted, wanted, 1e-2):
            continue
        factor = ((got * made).sum() / made.square().sum().clamp_min(1e-30)).item()
        if factor and _same(got, factor * made, got):
            return told if abs(factor - 1) < 2e-3 else f"{told}, and it is {factor:.3g}x that"
    return _shifted(got, wanted)


def _changes(got, wanted):
    """`(words, tensor)`: what may have been done to the right numbers."""
    if wanted.dim() == 2 and len(wanted) == wanted.shape[1]:
        yield "it is transposed", wanted.T
    for dim in range(wanted.dim()):
        side = SIDES[dim] if wanted.dim() == 2 else "number" if wanted.dim() == 1 else "slice"
        yield f"its {side}s are in reverse order", wanted.flip(dim)
        for by in (1, -1):
            yield (
                f"each {side} stands one place too {'late' if by > 0 else 'early'}",
                wanted.roll(by, dim),
            )
    yield "the signs are lost", wanted.abs()
    yield "what is below 0 became 0", wanted.clamp_min(0)
    yield "these are the signs alone", wanted.sign()
    yield "it is squared", wanted.square()
    yield "it is squared, the signs kept", wanted * wanted.abs()
    yield "a root is taken of it", wanted.sign() * wanted.abs().sqrt()
    yield "it is upside down, 1 / it", 1 / wanted
    yield "it is rounded to whole numbers", wanted.round()
    yield "its fractions are cut off", wanted.trunc()
    yield "these are sums of all up to each", wanted.flatten().cumsum(0).view_as(wanted)
    if wanted.dim() == 2:
        by_column = wanted.T.reshape(wanted.shape)
        yield "the right numbers are laid out by columns, wanted row by row", by_column
        for dim, side in SIDES.items():
            mean = wanted.mean(1 - dim, keepdim=True)
            yield f"its {side}s are less their means", wanted - mean
            norms = wanted.norm(dim=1 - dim, keepdim=True)
            yield f"its {side}s are made of length 1", wanted / norms


def _shifted(got, wanted):
    """Something added, cut off, or the right numbers elsewhere."""
    off = got - wanted
    if _same(off, off.mean().expand_as(off), wanted):
        return f"each number is {abs(off.mean()):.3g} too {'large' if off.mean() > 0 else 'small'}"
    low, high = got.min(), got.max()
    held = (wanted > high) | (wanted < low)
    if held.any() and _same(got, wanted.clamp(low, high), wanted):
        return f"what lies beyond {low:.3g} and {high:.3g} is cut off"
    if _same(got.flatten().sort()[0], wanted.flatten().sort()[0], wanted):
        return "the right numbers, in another order"
    return ""


def _by_lines(got, wanted):
    """A factor, or something added, that each row or each column has for itself."""
    for dim, side in SIDES.items() if wanted.dim() == 2 else ():
        if wanted.shape[1 - dim] < 3:
            continue
        sizes = wanted.square().sum(1 - dim, keepdim=True)
        factors = (got * wanted).sum(1 - dim, keepdim=True) / sizes.clamp_min(1e-30)
        wrong = ((factors - 1).abs() > 2e-3) & (sizes > 0)
        if wrong.sum() > 1 and factors[wrong].abs().min() > 0 and _same(got, factors * wanted, got):
            least, most = factors[wrong].min(), factors[wrong].max()
            return f"each {side} has a factor of its own, from {least:.3g} to {most:.3g}"
        off = (got - wanted).mean(1 - dim, keepdim=True)
        if _same(got - off, wanted, wanted):
            return f"to each {side} a number of its own is added"
    return ""


def _in_places(got, wanted):
    """Where it is right, if that is a large part of it, or all but a certain kind of places."""
    right = (got - wanted).abs() <= 1e-4 * wanted.abs().max().clamp_min(1e-8)
    wrong, n = ~right, right.numel()
    if (right & (wanted != 0)).double().mean() < 0.02:  # a 0 that is 0 shows nothing
        return ""
    what = "; what is wrong is 0" if not got[wrong].any() and wanted[wrong].all() else ""
    for sign, mask in (("below", wanted < 0), ("above", wanted > 0)):
        if torch.equal(wrong, mask):
            return f"only the numbers that should be {sign} 0 are wrong{what}"
    for dim, side in SIDES.items() if wanted.dim() == 2 else ():
        lines, shown = wrong.any(1 - dim), wanted.any(1 - dim)  # a line of zeros shows nothing
        good, bad = ((m & shown).nonzero().flatten().tolist() for m in (~lines, lines))
        apart = good and bad and (good[-1] < bad[0] or bad[-1] < good[0])
        if not good or not (apart or what) or (wrong.double().mean(1 - dim)[bad] < 0.5).any():
            continue
        if len(good) <= len(bad):
            return f"right in {_numbered(side, good)} of {len(lines)} alone{what}"
        return f"right but for {_numbered(side, bad)} of {len(lines)}{what}"
    places = wrong.flatten().nonzero().flatten()
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 == len(places) and (first == 0 or last == n - 1):
        part = f"the first {last + 1}" if first == 0 else f"the last {n - first}"
        return f"right but for {part} of {n}{what}"
    return ""


def _numbered(side, which):
    """ "row 3", "rows 0, 2", of more than three the first ones."""
    few = ", ".join(map(str, which[:3])) + (", …" if len(which) > 3 else "")
    return f"{side}{'s' * (len(which) > 1)} {few}"
