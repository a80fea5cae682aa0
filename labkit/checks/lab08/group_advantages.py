"""What exercise 8.4 expects of `group_advantages`: z-scores of each row, by NumPy."""

import functools

import torch

from labkit.checks.compare import ask, close, draw, expect_close, expect_shape, likeliest, randn
from labkit.checks.compound import combined
from labkit.checks.lab08.behaves import as_advantages
from labkit.checks.simplest import simplest, unnamed
from labkit.contract import CheckFailed, observe, part, sound

EQUAL = "a group whose rewards are equal gives zeros: divide by the standard deviation plus eps"
ERRORS = {
    "size of tensor": "keepdim=True, so that a row's mean fits its row",
    "unexpected keyword": "the parameters are rewards and eps=1e-4",
    "positional argument": "the parameters are rewards and eps=1e-4",
}

SPREADS = {
    "": "std",
    "the deviation is divided by n, wanted n - 1 (torch's default)": "ddof",
    "it is not divided by the deviation": "one",
    "divided by the variance, wanted its root": "variance",
    "divided by the deviation of all rewards: each prompt has its own": "all",
    "divided by the range of the rewards": "range",
    "divided by the mean of the rewards": "mean",
    "divided by the largest size": "largest",
    "divided by the mean size of the differences": "mad",
    "divided by the norm of the differences": "norm",
}
EPSILONS = {
    "": "added",
    "eps is not added": "none",
    "eps is hard-coded: the parameter is not used": "fixed",
    "eps stands under the root: it is added to the deviation": "inside",
    "the deviation is kept at eps or more: wanted is the deviation plus eps": "most",
    "eps is taken away": "less",
    "eps is squared under a root": "square",
}


def groups(rng, prompts, samples):
    """Rewards between 0 and 1, whose rows have means and spreads of their own."""
    spread = torch.rand(prompts, 1, generator=rng) * 0.3 + 0.05
    return (randn(prompts, samples, rng=rng) * spread + torch.rand(prompts, 1, generator=rng)).abs()


def z_scores(rewards, eps):
    """By NumPy, in fp64."""
    rows = rewards.double().numpy()
    gap = rows - rows.mean(1, keepdims=True)
    return torch.from_numpy(gap / (rows.std(1, ddof=1, keepdims=True) + eps)).float()


def expect_advantages(group_advantages, rng):
    """Rows of several sizes, another eps, equal rewards."""
    few = draw(3, 5, rng)
    flat = groups(rng, 4, 6)
    flat[0], flat[2], flat[3] = 0.0, 1.0, 0.5
    cases = [
        ("a few groups, eps=0.1", groups(rng, few, 7), 0.1),
        ("a few groups", groups(rng, few, few + 3), None),
        ("as many prompts as samples", groups(rng, few, few), None),
        ("two samples a prompt", groups(rng, 5, 2), None),
        ("groups of which some have equal rewards", flat, None),
        ("very small rewards", 1e-3 * groups(rng, few, 8), None),
        ("rewards that are mostly zero", _sparse(rng), None),
    ]
    run = functools.partial(observe, group_advantages)
    behaves = unnamed(lambda: as_advantages(run, "group_advantages"))
    with part(), simplest(_small(group_advantages)), behaves, likeliest() as case:
        for what, rewards, eps in cases:
            with case():
                _expect(group_advantages, what, rewards, eps)
    if sound():  # of a column of one reward torch warns at length
        with part():
            _expect(group_advantages, "one prompt", groups(rng, 1, 6), None)


def _sparse(rng):
    rewards = torch.zeros(4, 8)
    rewards[1, draw(0, 7, rng)] = 1.0
    rewards[2, :3] = 1.0
    return rewards


def _expect(group_advantages, what, rewards, eps):
    call = f"group_advantages of {what}"
    more = () if eps is None else (eps,)
    got = ask(call, group_advantages, rewards, *more, hint=ERRORS)
    if isinstance(got, torch.Tensor) and got.shape == (rewards.numel(),) != rewards.shape:
        raise CheckFailed(
            f"{call} is flat, wanted the shape of the rewards, {tuple(rewards.shape)}"
        )
    expect_shape(got, rewards.shape, call)
    same = (rewards == rewards[:, :1]).all(1)
    if same.any() and not (got[same].abs() < 1e-2).all():  # NaN is not less, either
        raise CheckFailed(f"{call}: {EQUAL}", bare=bool(torch.isfinite(got).all()))
    if not torch.isfinite(got).all():
        raise CheckFailed(f"{call} holds NaN or infinity: divide by the deviation plus eps")
    eps = 1e-4 if eps is None else eps
    got = got.masked_fill(same[:, None], 0)  # 1e-7 of rounding over eps is not 0, and right
    wanted = z_scores(rewards, eps).masked_fill(same[:, None], 0)
    alike = rewards.shape[1] == 2  # whatever is divided by a spread is the same there
    known = {} if alike or close(got, wanted, 1e-4) else _guesses(rewards, eps)
    expect_close(got, wanted, call, known, tol=1e-4)


def _guesses(rewards, eps):
    """Wrong advantages by what is wrong with them, single mistakes first."""
    rows = rewards.double()
    n = rows.shape[1]
    axes = {
        "": 1,
        "mean and deviation are of a column: a group is a row, dim=1": 0,
        "mean and deviation are of all rewards: each prompt has its own": None,
    }
    centres = {
        "": "mean",
        "the mean is not taken away": "none",
        "the median is taken away, wanted the mean": "median",
        "the lowest reward is taken away, wanted the mean": "min",
        "the best reward is taken away, wanted the mean": "max",
        "the mean of the others is taken away: wanted the group's, the answer itself included": (
            "others"
        ),
        "the mean of all rewards is taken away: each prompt has its own": "all",
        "the sign is turned round": "minus",
    }
    made = functools.partial(_made, rows, n, eps)
    known = {text: torch.nan_to_num(guess).float() for text, guess in _slips(rows, eps).items()}
    return combined(made, axes, centres, SPREADS, EPSILONS) | known


def _slips(rows, eps):
    """Slips of the pen, and what is left of the rewards: their signs, sizes or ranks."""
    mean, std = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
    ranks = rows.argsort(1).argsort(1).double()
    return {
        "brackets are missing: (rewards - mean) / (deviation + eps)": rows - mean / (std + eps),
        "the rewards are divided, and then the mean is taken away: first the mean, then divide": (
            rows / (std + eps) - mean
        ),
        "brackets are missing: eps is added to the deviation, not to the result": (
            (rows - mean) / std + eps
        ),
        "advantages below zero are cut off: what is worse than the mean is made less likely": (
            (rows - mean) / (std + eps)
        ).clamp(min=0),
        "the signs are lost: what is worse than the mean has a negative advantage": (
            (rows - mean).abs() / (std + eps)
        ),
        "ranks stand in the place of the rewards: how far apart these are counts, too": (
            (ranks - ranks.mean(1, keepdim=True)) / (ranks.std(1, keepdim=True) + eps)
        ),
        "the sign alone is left: a reward twice as far from the mean counts twice": (
            (rows - mean).sign()
        ),
    }


def _made(rows, n, eps, axis, centre, spread, epsilon):
    over = {} if axis is None else {"dim": axis, "keepdim": True}
    mean = rows.mean(**over)
    gap = {
        "mean": lambda: rows - mean,
        "minus": lambda: mean - rows,
        "none": lambda: rows,
        "median": lambda: rows - (rows.median(**over).values if over else rows.median()),
        "min": lambda: rows - (rows.amin(**over) if over else rows.min()),
        "max": lambda: rows - (rows.amax(**over) if over else rows.max()),
        "others": lambda: rows - (rows.sum(1, keepdim=True) - rows) / max(1, n - 1),
        "all": lambda: rows - rows.mean(),
    }[centre]()
    size = rows.shape[axis] if axis is not None else rows.numel()
    variance = (rows - mean).square().sum(**over) / max(1, size - 1)
    largest = rows.amax(**over) if over else rows.max()
    least = rows.amin(**over) if over else rows.min()
    scale = {
        "std": lambda: variance.sqrt(),
        "ddof": lambda: (variance * (size - 1) / size).sqrt(),
        "one": lambda: torch.ones_like(mean),
        "variance": lambda: variance,
        "all": lambda: rows.std().expand_as(mean),
        "range": lambda: largest - least,
        "mean": lambda: mean,
        "largest": lambda: gap.abs().amax(1, keepdim=True),
        "mad": lambda: (rows - mean).abs().mean(**over),
        "norm": lambda: gap.norm(dim=1, keepdim=True),
    }[spread]()
    eps_free = spread == "one" and epsilon == "added"
    below = {
        "added": lambda: scale if eps_free else scale + eps,
        "none": lambda: scale,
        "fixed": lambda: scale + 1e-4,
        "inside": lambda: (scale.square() + eps).sqrt(),
        "most": lambda: scale.clamp(min=eps),
        "less": lambda: scale - eps,
        "square": lambda: (scale.square() + eps**2).sqrt(),
    }[epsilon]()
    return torch.nan_to_num(gap / below).float()


def _small(group_advantages):
    """Two samples, then four, then as many prompts as samples."""
    for rows, told in (
        ([[0.0, 1.0]], "mean 0.5, deviation 0.7071"),
        ([[0.0, 0.0, 0.0, 1.0]], "mean 0.25, deviation 0.5"),
        ([[0.0, 1.0], [2.0, 5.0]], "means 0.5 and 3.5, deviations 0.7071 and 2.121"),
    ):
        rewards = torch.tensor(rows)
        answer = functools.partial(observe, group_advantages, rewards)
        yield f"group_advantages({rows})", answer, z_scores(rewards, 1e-4), told
