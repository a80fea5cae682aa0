"""Lab 5's checks: stubs, wrong answers that learners give, right answers written differently."""

import itertools
import math
import statistics
import traceback
from types import SimpleNamespace

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers

from labkit import contract, measured
from labkit.checks import lab05 as check
from labkit.measured import capacity, short, tables

SEEDS = {"RIGHT": range(6)}

# --- right answers -------------------------------------------------------------------------


def first_update(G, A, r, alpha, lr):
    return -(alpha / r) * lr * torch.sign(G @ A.T) @ A


def update_by_torch(G, A, r, alpha, lr):
    A = torch.nn.Parameter(A.clone())
    B = torch.nn.Parameter(torch.zeros(G.shape[0], r))
    optimizer = torch.optim.Adam([A, B], lr=lr)
    B.grad = (alpha / r) * G @ A.detach().T
    A.grad = (alpha / r) * B.detach().T @ G
    optimizer.step()
    return ((alpha / r) * B @ A).detach()


def update_by_formulas(G, A, r, alpha, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    s = alpha / r
    grad = s * torch.einsum("oi,ri->or", G, A)
    m, v = (1 - beta1) * grad, (1 - beta2) * grad**2
    step = (m / (1 - beta1)) / ((v / (1 - beta2)).sqrt() + eps)
    return s * torch.matmul(-lr * step, A)


def update_in_loops(G, A, r, alpha, lr):
    change = torch.zeros_like(G)
    for o in range(G.shape[0]):
        for k in range(r):
            slope = sum(float(G[o, i]) * float(A[k, i]) for i in range(G.shape[1]))
            if slope != 0:
                change[o] -= (lr if slope > 0 else -lr) * alpha / r * A[k]
    return change


def update_by_autograd(G, A, r, alpha, lr):
    B = torch.zeros(len(G), A.size(0), requires_grad=True)
    (grad,) = torch.autograd.grad((G * (B @ A * (alpha / r))).sum(), B)
    return alpha / r * (B.detach() - lr * grad.sign()) @ A


def update_in_numpy(G, A, r, alpha, lr):
    G, A = G.double().numpy(), A.double().numpy()
    return torch.from_numpy(-lr * alpha / r * np.sign(G @ A.T) @ A).float()


def paired_difference(frame, a, b):
    scores = frame.dropna(subset=["score"]).set_index("seed")
    gap = (scores.score[scores.method == a] - scores.score[scores.method == b]).dropna()
    return gap.mean(), gap.std() / len(gap) ** 0.5 if len(gap) else math.nan


def pairs_pivoted(frame, a, b):
    wide = frame.pivot(index="seed", columns="method", values="score")
    gap = (wide[a] - wide[b]).dropna()
    return float(gap.mean()), float(gap.sem())


def pairs_merged(frame, a, b):
    sides = [frame.loc[frame["method"] == name, ["seed", "score"]] for name in (a, b)]
    both = sides[0].merge(sides[1], on="seed", suffixes=("_a", "_b")).dropna()
    gaps = (both["score_a"] - both["score_b"]).to_numpy()
    if not gaps.size:
        return float("nan"), float("nan")
    error = gaps.std(ddof=1) / np.sqrt(gaps.size) if gaps.size > 1 else float("nan")
    return gaps.mean(), error


def pairs_in_loops(frame, a, b):
    scores = {}
    for _, row in frame.iterrows():
        if not math.isnan(row["score"]):
            scores[row["method"], row["seed"]] = row["score"]
    seeds = {seed for name, seed in scores if name == a and (b, seed) in scores}
    gaps = [scores[a, seed] - scores[b, seed] for seed in seeds]
    if not gaps:
        return math.nan, math.nan
    mean = sum(gaps) / len(gaps)
    if len(gaps) == 1:
        return mean, math.nan
    variance = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    return mean, math.sqrt(variance / len(gaps))


def pairs_in_torch(frame, a, b):
    one, other = (dict(frame[frame.method == m][["seed", "score"]].values) for m in (a, b))
    gaps = torch.tensor([one[s] - other[s] for s in sorted(one.keys() & other.keys())])
    gaps = gaps[~gaps.isnan()]
    error = gaps.std().item() / len(gaps) ** 0.5 if len(gaps) > 1 else math.nan
    return gaps.mean().item(), error


def sweep(train_fn, ranks, learning_rates, alpha_of):
    rows = []
    for rank in ranks:
        for rate in learning_rates:
            row = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate, "error": ""}
            try:
                row |= train_fn(rank=rank, alpha=alpha_of(rank), learning_rate=rate, seed=0)
            except Exception as error:
                row["error"] = str(error)
            rows.append(row)
    return pd.DataFrame(rows)


def sweep_positional(train_fn, ranks, learning_rates, alpha_of):
    def one(rate, rank):
        try:
            return train_fn(rank, alpha_of(rank), rate, 7) | {"error": ""}
        except Exception as error:
            return {"error": repr(error)}

    pairs = list(itertools.product(learning_rates, ranks))
    told = pd.DataFrame([one(*pair) for pair in pairs])
    told["learning_rate"], told["rank"] = zip(*pairs, strict=True)
    return told.assign(alpha=told["rank"].map(alpha_of), seed=7)


def sweep_as_index(train_fn, ranks, learning_rates, alpha_of):
    """An index on the way, and rows in another order."""
    frame = sweep(train_fn, ranks, learning_rates, alpha_of).set_index(["rank", "learning_rate"])
    return frame.sort_index(ascending=False).reset_index()


def sweep_that_stops(train_fn, ranks, learning_rates, alpha_of):
    """Ctrl-C ends it, and what was done is returned."""
    rows, pairs = [], [(r, rate) for rate in learning_rates for r in ranks]
    for rank, learning_rate in pairs:
        setting = dict(rank=rank, alpha=alpha_of(rank), learning_rate=learning_rate)
        try:
            rows.append({**setting, **train_fn(**setting, seed=42), "error": ""})
        except KeyboardInterrupt:
            break
        except Exception as error:
            rows.append({**setting, "error": f"{error!r}"})
    return pd.DataFrame(rows)


def sweep_concat(train_fn, ranks, learning_rates, alpha_of):
    frames = []
    for rank, learning_rate in itertools.product(ranks, learning_rates):
        setting = {"rank": rank, "alpha": float(alpha_of(rank)), "learning_rate": learning_rate}
        try:
            found = train_fn(**setting, seed=123)
        except Exception as error:
            found = {"loss": math.nan, "error": f"{type(error).__name__}: {error}"}
        frames.append(pd.DataFrame([setting | found]))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(error=frame.get("error", pd.Series(index=frame.index)).fillna(""))


def sweep_turned(train_fn, ranks, learning_rates, alpha_of):
    """A column a run, turned at the end: all columns hold objects."""
    runs = {}
    for i, (rank, rate) in enumerate(itertools.product(ranks, learning_rates)):
        runs[i] = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate}
        try:
            runs[i] |= train_fn(**runs[i], seed=17) | {"error": ""}
        except KeyboardInterrupt:
            raise
        except BaseException:
            runs[i]["error"] = traceback.format_exc()
    return pd.DataFrame(runs).T


def matched_rank(shapes, budget):
    return budget // sum(o + i for o, i in shapes.values())


def rank_counted(shapes, budget):
    r = 0
    while sum((r + 1) * (o + i) for o, i in shapes.values()) <= budget:
        r += 1
    return r


def rank_halved(shapes, budget):
    """Search by halves."""
    low, high = 0, budget
    while low < high:
        middle = (low + high + 1) // 2
        fits = middle * sum(map(sum, shapes.values())) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def rank_floor(shapes, budget):
    return math.floor(budget / np.array(list(shapes.values())).sum())


def subspace_similarity(A1, A2, i, j):
    U1 = torch.linalg.svd(A1, full_matrices=False).Vh[:i]
    U2 = torch.linalg.svd(A2, full_matrices=False).Vh[:j]
    return (U1 @ U2.T).square().sum().item() / min(i, j)


def similarity_norm(A1, A2, i, j):
    V1, V2 = (torch.svd(A)[2] for A in (A1, A2))
    return float(torch.linalg.matrix_norm(V1[:, :i].T @ V2[:, :j]) ** 2 / min(i, j))


def similarity_projectors(A1, A2, i, j):
    (V1, V2) = (torch.linalg.svd(A, full_matrices=False).Vh for A in (A1, A2))
    return torch.trace(V1[:i].T @ V1[:i] @ V2[:j].T @ V2[:j]).item() / min(i, j)


def similarity_full(A1, A2, i, j):
    V1, V2 = (np.linalg.svd(A.double().numpy())[2] for A in (A1, A2))
    return np.linalg.norm(V1[:i] @ V2[:j].T) ** 2 / min(i, j)


def similarity_angles(A1, A2, i, j):
    V1, V2 = (torch.linalg.svd(A.T, full_matrices=False).U for A in (A1, A2))
    return torch.linalg.svdvals(V1[:, :i].T @ V2[:, :j]).pow(2).sum().div(min(i, j)).item()


def quiz():
    return {"q1": "c", "q2": "b", "q3": "a", "q4": "d"}


RIGHT = [
    *[(check.first_step, f) for f in (first_update, update_by_torch, update_by_formulas)],
    *[(check.first_step, f) for f in (update_in_loops, update_by_autograd, update_in_numpy)],
    *[(check.sweeps, f) for f in (sweep, sweep_positional, sweep_as_index, sweep_concat)],
    (check.sweeps, sweep_that_stops),
    (check.sweeps, sweep_turned),
    *[(check.fits, f) for f in (matched_rank, rank_counted, rank_floor, rank_halved)],
    (check.overlaps, subspace_similarity),
    (check.overlaps, similarity_norm),
    (check.overlaps, similarity_full),
    (check.overlaps, similarity_angles),
    (check.overlaps, similarity_projectors),
    *[(check.pairs, f) for f in (paired_difference, pairs_pivoted, pairs_merged)],
    *[(check.pairs, f) for f in (pairs_in_loops, pairs_in_torch)],
    (check.quiz, quiz),
    (check.quiz, lambda: {"q3": " A", "q1": "C", "q2": "B ", "q4": "(d)"}),
]


# --- wrong answers, each with a word of the message that names what the learner thought -------


def _with_weight_decay(G, A, r, alpha, lr):
    return first_update(G, A, r, alpha, lr) * (1 - 0.01 * lr)  # AdamW's default


def _update(step=None, factor=None, up=False):
    """A `first_update` with another step of B, or another factor before B @ A."""

    def wrong(G, A, r, alpha, lr):
        grad = alpha / r * G @ A.T
        moved = lr * (step or torch.sign)(grad)
        return (1 if up else -1) * (factor or (lambda alpha, r: alpha / r))(alpha, r) * moved @ A

    return wrong


def _uncorrected(grad):
    return 0.1 * grad / ((0.001 * grad**2).sqrt() + 1e-8)


def _by_sgd(G, A, r, alpha, lr):
    s = alpha / r
    B = -lr * s * G @ A.T
    return s * B @ A


def _by_torch_sgd(G, A, r, alpha, lr):
    A, B = A.clone().requires_grad_(), torch.zeros(len(G), r, requires_grad=True)
    optimizer = torch.optim.SGD([A, B], lr=lr)
    (G * (B @ A) * alpha / r).sum().backward()
    optimizer.step()
    return alpha / r * B @ A


def _a_moves_after_b(G, A, r, alpha, lr):
    B = -lr * torch.sign(G @ A.T)
    A = A - lr * torch.sign(B.T @ G)
    return alpha / r * B @ A


def _shifted_sign(G, A, r, alpha, lr):
    step = torch.where(G @ A.T > 0, 1.0, -1.0)
    return -alpha / r * lr * step @ A


def _in_place_on_g(G, A, r, alpha, lr):
    step = (G @ A.T).sign_()
    return G.zero_().sub_(alpha / r * lr * step @ A)


def _two_steps(G, A, r, alpha, lr):
    return 2 * first_update(G, A, r, alpha, lr)


def _large_epsilon(G, A, r, alpha, lr):
    grad = alpha / r * G @ A.T
    return -alpha / r * lr * grad / (grad.abs() + 1e-3) @ A


def _one_term(G, A, r, alpha, lr):
    return -alpha / r * lr * torch.outer(torch.sign(G @ A[0]), A[0])


def _unit_rows_of_a(G, A, r, alpha, lr):
    A = torch.nn.functional.normalize(A, dim=1)
    return first_update(G, A, r, alpha, lr)


UPDATES = [
    (_with_weight_decay, "A shrinks by a weight decay"),
    (_update(step=lambda grad: grad / grad.abs()), "0 / 0? A number whose gradient is 0"),
    (_large_epsilon, "Adam's is 1e-8"),
    (_one_term, "the first of r terms"),
    (_unit_rows_of_a, "made of length one"),
    (lambda G, A, r, alpha, lr: -lr * G, "gradient descent on W"),
    (lambda G, A, r, alpha, lr: G + first_update(G, A, r, alpha, lr), "and not W"),
    (lambda G, A, r, alpha, lr: first_update(G, A, r, alpha // r * r, lr), "cuts the fraction off"),
    (
        lambda G, A, r, alpha, lr: -alpha / r * lr * torch.ones(len(G), r) @ A,
        "move the same way here",
    ),
    (_update(up=True), "the sign is turned round"),
    (_update(step=lambda grad: grad), "plain gradient descent"),
    (_by_sgd, "plain gradient descent"),
    (_by_torch_sgd, "plain gradient descent"),
    (_update(factor=lambda alpha, r: 1), "alpha / r is missing"),
    (_update(factor=lambda alpha, r: alpha), "the division by r is missing"),
    (_update(factor=lambda alpha, r: 1 / r), "alpha is missing"),
    (_update(factor=lambda alpha, r: (alpha / r) ** 2), "comes twice"),
    (_update(factor=lambda alpha, r: alpha / r**0.5), "without a root"),
    (_update(factor=lambda alpha, r: r / alpha), "upside down"),
    (_update(factor=lambda alpha, r: alpha / r / r), "divided by r twice"),
    (_update(step=lambda grad: grad / grad.norm()), ("divided by its norm", "along the gradient")),
    (_update(step=lambda grad: grad / grad.abs().max()), "divided by its largest"),
    (_update(step=_uncorrected), "Adam divides by 1 - beta"),
    (_update(step=lambda grad: 0.1 * torch.sign(grad)), "m is not divided by 1 - beta1"),
    (_update(step=lambda grad: torch.sign(grad).abs()), "the sign of the gradient is lost"),
    (lambda G, A, r, alpha, lr: -alpha / r * torch.sign(G @ A.T) @ A, "lr is missing"),
    (lambda G, A, r, alpha, lr: -lr * torch.sign(G), "first step of full fine-tuning"),
    (lambda G, A, r, alpha, lr: -lr * alpha / r * torch.sign(G), "full fine-tuning, times"),
    (lambda G, A, r, alpha, lr: -lr * alpha / r * G.sign() @ A.T @ A, "the sign is taken of G"),
    (
        lambda G, A, r, alpha, lr: -lr * (alpha / r) ** 2 * G.sign() @ A.T @ A,
        "the sign is taken of G, and alpha / r behind it",
    ),
    (
        lambda G, A, r, alpha, lr: -lr * alpha / r * (G @ A.T @ A).sign(),
        "the sign is taken of G @ A.T @ A",
    ),
    (
        lambda G, A, r, alpha, lr: -lr * (G @ A.T @ A).sign(),
        "B's gradient, G @ A.T, and alpha / r and @ A come after",
    ),
    (_a_moves_after_b, "both gradients are taken at the old B"),
    (_shifted_sign, "a gradient of 0 moves nothing"),
    (_in_place_on_g, "changes its input G in place"),
    (_two_steps, "twice a first step"),
    (lambda G, A, r, alpha, lr: -lr * torch.sign(alpha / r * G @ A.T), "that is B's change"),
    (lambda G, A, r, alpha, lr: first_update(G, A, r, alpha, lr).T, "transposed"),
    (lambda G, A, r, alpha, lr: -alpha / r * lr * torch.sign(G @ A) @ A.T, "G is (d_out, d_in)"),
    (lambda G, A, r, alpha, lr: (torch.sign(G @ A.T), torch.zeros_like(A)), "two things"),
    (lambda G, A, r, alpha, lr: None, "return"),
    (lambda G, A, r, alpha, lr: first_update(G, A, r, alpha, lr).norm(), "wanted"),
]


def _sweep(pairs=None, alpha=None, seed=None, keep=True, catch=Exception, text=str, result=None):
    """A `sweep` with one thing wrong."""

    def wrong(train_fn, ranks, rates, alpha_of):
        rows, last = [], {}
        for k, (rank, rate) in enumerate((pairs or itertools.product)(ranks, rates)):
            a = (alpha or alpha_of)(rank)
            row = {"rank": rank, "alpha": a, "learning_rate": rate, "error": ""}
            try:
                found = train_fn(rank, a, rate, seed(k) if seed else 0)
                row |= result(found) if result else found
                last = found
            except catch as error:
                if not keep:
                    continue
                row["error"] = text(error)
                row |= last if keep == "stale" else {}
            rows.append(row)
        return pd.DataFrame(rows)

    return wrong


def _float_ranks(train_fn, ranks, rates, alpha_of):
    pairs = np.array(list(itertools.product(ranks, rates)))
    return sweep(train_fn, pairs[::2, 0].tolist(), pairs[:2, 1].tolist(), alpha_of)


def _failed_as(**columns):
    def wrong(train_fn, ranks, rates, alpha_of):
        frame = sweep(train_fn, ranks, rates, alpha_of)
        for name, value in columns.items():
            frame[name] = frame[name].astype(object)
            frame.loc[frame["error"] != "", name] = value
        return frame

    return wrong


def _one_dict(train_fn, ranks, rates, alpha_of):
    row, rows = {"error": ""}, []
    for rank, rate in itertools.product(ranks, rates):
        row |= {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate}
        row |= train_fn(rank, alpha_of(rank), rate, 0)
        rows.append(row)
    return pd.DataFrame(rows)


def _one_dict_a_rank(train_fn, ranks, rates, alpha_of):
    frames = [_one_dict(train_fn, [rank], rates, alpha_of) for rank in ranks]
    return pd.concat(frames, ignore_index=True)


def _error_stays(train_fn, ranks, rates, alpha_of):
    frame = sweep(train_fn, ranks, rates, alpha_of)
    return frame.assign(error=frame["error"].replace("", None).ffill().fillna(""))


class _Never(Exception):
    """Nothing raises it."""


def _stops(train_fn, ranks, rates, alpha_of):
    rows = []
    try:
        for rank, rate in itertools.product(ranks, rates):
            row = {"rank": rank, "alpha": alpha_of(rank), "learning_rate": rate, "error": ""}
            rows.append(row)
            row |= train_fn(rank, alpha_of(rank), rate, 0)
    except Exception as error:
        rows[-1]["error"] = str(error)
    return pd.DataFrame(rows)


def _skips_the_rank(train_fn, ranks, rates, alpha_of):
    frames = [_stops(train_fn, [rank], rates, alpha_of) for rank in ranks]
    return pd.concat(frames, ignore_index=True)


def _no_seed(train_fn, ranks, rates, alpha_of):
    return sweep(lambda seed, **s: train_fn(**s), ranks, rates, alpha_of)


def _no_error_column(train_fn, ranks, rates, alpha_of):
    return sweep(train_fn, ranks, rates, alpha_of).drop(columns="error")


def _row_a_rank(train_fn, ranks, rates, alpha_of):
    """The row is appended behind the inner loop."""
    return sweep(train_fn, ranks, rates, alpha_of).groupby("rank", as_index=False).last()


def _with_lr(train_fn, ranks, rates, alpha_of):
    return sweep(lambda learning_rate, **s: train_fn(lr=learning_rate, **s), ranks, rates, alpha_of)


def _three_mistakes(train_fn, ranks, rates, alpha_of):
    """The factor for alpha, a seed a run, and a loss where there is none."""
    frame = _sweep(alpha=lambda r: alpha_of(r) / r, seed=lambda k: k)(
        train_fn, ranks, rates, alpha_of
    )
    return frame.fillna({"loss": 0.0})


def _drops_failed(train_fn, ranks, learning_rates, alpha_of):
    table = sweep(train_fn, ranks, learning_rates, alpha_of)
    return table[table["error"] == ""]


def _other_parameters(train_fn, ranks, rates, rule):
    return sweep(train_fn, ranks, rates, rule)


def _by_place(train_fn, ranks, learning_rates, alpha_of):
    def placed(rank, alpha, learning_rate, seed):
        return train_fn(rank, alpha, seed, learning_rate)

    return sweep(placed, ranks, learning_rates, alpha_of)


def _tried_again(train_fn, ranks, rates, alpha_of):
    def twice(**settings):
        try:
            return train_fn(**settings)
        except Exception:
            return train_fn(**settings)

    return sweep(twice, ranks, rates, alpha_of)


def _tried_with_other_seeds(train_fn, ranks, rates, alpha_of):
    def tried(seed, **settings):
        for other in (seed, 1, 2):
            try:
                return train_fn(seed=other, **settings)
            except Exception as error:
                failure = error
        raise failure

    return sweep(tried, ranks, rates, alpha_of)


def _last_pair_again(train_fn, ranks, rates, alpha_of):
    """Where a run failed, the last one is made twice."""
    frame = sweep(train_fn, ranks, rates, alpha_of)
    if (frame["error"] != "").any():
        sweep(train_fn, ranks[-1:], rates[-1:], alpha_of)
    return frame


def _first_argument(train_fn, ranks, rates, alpha_of):
    return _sweep(text=lambda error: error.args[0])(train_fn, ranks, rates, alpha_of)


def _fills_all(train_fn, ranks, rates, alpha_of):
    return sweep(train_fn, ranks, rates, alpha_of).fillna("")


SWEEPS = [
    (_first_argument, "raises an exception without a text, AssertionError()"),
    (_fills_all, "filled in (fillna fills all columns; only error needs it)"),
    (_sweep(keep="stale"), "that of the run before"),
    (_by_place, "pass each of the four by its name"),
    (_tried_again, "was run 2 times; a run that raised is not tried again"),
    (_tried_with_other_seeds, "was run 3 times; a run that raised is not tried again"),
    (_last_pair_again, "7 runs were made, wanted 6"),
    (_other_parameters, "unexpected keyword argument 'alpha_of'"),
    (_row_a_rank, "append in the inner loop"),
    (_with_lr, "unexpected keyword argument 'lr'"),
    (_three_mistakes, "the factor alpha / r"),
    (_three_mistakes, "one seed for all"),
    (
        lambda f, r, x, alpha_of: sweep(f, r, x, lambda rank: alpha_of),
        "alpha is a function: call it",
    ),
    (_float_ranks, "np.array make floats of ints"),
    (_sweep(seed=lambda k: None), "the seed None, wanted an int"),
    (_sweep(seed=lambda k: 0.5), "the seed 0.5, wanted an int"),
    (_sweep(catch=RuntimeError), "catch Exception"),
    (
        lambda f, r, x, alpha_of: sweep(f, r, x, alpha_of).set_index("rank"),
        "the index here, not a column",
    ),
    (
        lambda f, r, x, alpha_of: sweep(f, r, x, alpha_of).replace({"error": {"": None}}),
        'wanted is ""',
    ),
    (lambda f, r, x, alpha_of: sweep(f, np.array(r), x, alpha_of), "wanted an int, int(rank)"),
    (_sweep(text=lambda error: error), "an exception; wanted is its text"),
    (_sweep(text=lambda error: error.args), "column error holds a tuple"),
    (_failed_as(alpha=None), "alpha at rank"),
    (_failed_as(alpha=1), "alpha at rank"),
    (_failed_as(loss=math.inf), "never got one"),
    (_failed_as(loss="none"), "never got one"),
    (_failed_as(rank=None), "one for each pair"),
    (_one_dict, "a new one for each run"),
    (_one_dict, "6 rows are of (rank, learning rate) = "),
    (_one_dict_a_rank, "2 rows are of (rank, learning rate) = "),
    (_sweep(seed=lambda k: k), "the seeds are 0, 1, 2, 3, …; one seed"),
    (_sweep(seed=lambda k: k % 2), "the seeds are 0, 1; one seed"),
    (_error_stays, "and learning rate"),
    (_sweep(pairs=zip), "two loops"),
    (_sweep(pairs=lambda a, b: 2 * list(itertools.product(a, b))), "one a pair"),
    (_sweep(alpha=lambda r: r), "alpha_of"),
    (_sweep(alpha=lambda r: 2 * r), "alpha_of"),
    (_sweep(seed=lambda k: k), "one seed for all"),
    (_sweep(keep=False), "one for each pair"),
    (_sweep(keep="stale"), "never got one"),
    (_sweep(catch=_Never), "Broken"),
    (_sweep(catch=BaseException), "Ctrl-C"),
    (_sweep(text=lambda error: "failed"), "keep the exception's text"),
    (_sweep(text=lambda error: type(error).__name__), "keep the exception's text"),
    (_sweep(result=lambda found: {}), "no column loss"),
    (_sweep(result=lambda found: {"loss": found["loss"]}), "no column score"),
    (_sweep(result=lambda found: {"result": found}), "no column loss"),
    (_stops, "go on after a failure"),
    (_skips_the_rank, "no run at (9, 0.075) after it"),
    (_no_error_column, "no column error"),
    (_no_seed, "argument: 'seed'"),
    (lambda train_fn, ranks, rates, alpha_of: None, "return"),
    (_drops_failed, "the run that raised has none"),
]


def _capped(top):
    def wrong(shapes, budget):
        return max((r for r in range(1, top) if r * _sides(shapes) <= budget), default=0)

    return wrong


def _without_default(shapes, budget):
    return max(r for r in range(1, 6000) if r * _sides(shapes) <= budget)


def _sides(shapes):
    return sum(o + i for o, i in shapes.values())


def _dense(shapes):
    return sum(o * i for o, i in shapes.values())


RANKS = [
    (lambda shapes, budget: max(0, budget - _dense(shapes)) // _sides(shapes), "frozen weights"),
    (lambda shapes, budget: budget // _sides(shapes) // 2 * 2, "an even rank is not asked for"),
    (lambda shapes, budget: budget // sum(map(min, shapes.values())), "the smaller side alone"),
    (
        lambda s, budget: sum(budget // len(s) // sum(pair) for pair in s.values()) // len(s),
        "each matrix has its share, and the mean is taken",
    ),
    (lambda shapes, budget: budget // _sides(shapes) or -1, "0 is wanted, not less"),
    (lambda shapes, budget: budget // sum(map(max, shapes.values())), "not the larger side alone"),
    (lambda shapes, budget: budget // sum(2 * i for _, i in shapes.values()), "not twice d_in"),
    (lambda shapes, budget: budget // sum(2 * o for o, _ in shapes.values()), "not twice d_out"),
    (lambda shapes, budget: min(64, budget // _sides(shapes)), "nothing but the budget limits it"),
    (
        lambda shapes, budget: min(*map(min, shapes.values()), budget // _sides(shapes)),
        "no matrix sets a limit here",
    ),
    (lambda shapes, budget: _sides(shapes) // budget, "upside down"),
    (lambda s, b: min(b // (len(s) * sum(pair)) for pair in s.values()), "not shared out equally"),
    (lambda s, budget: sum(budget // sum(pair) for pair in s.values()), "each matrix alone"),
    (lambda shapes, budget: math.isqrt(budget // _sides(shapes)), "no square root"),
    (lambda shapes, budget: budget // (2 * _sides(shapes)), "half of what fits"),
    (lambda shapes, budget: 2 ** (max(1, budget // _sides(shapes)).bit_length() - 1), "power of"),
    (lambda shapes, budget: math.ceil(budget / _sides(shapes)), "round down"),
    (lambda shapes, budget: round(budget / _sides(shapes)), "round down"),
    (lambda shapes, budget: budget / _sides(shapes), "fraction of a rank"),
    (lambda shapes, budget: float(budget // _sides(shapes)), "wanted the int"),
    (lambda shapes, budget: np.floor(budget / _sides(shapes)), "wanted the int"),
    (lambda s, budget: min(budget // _sides(s), *map(min, s.values())), "the budget alone does"),
    (lambda shapes, budget: (budget - 1) // _sides(shapes), "meets the budget exactly"),
    (lambda shapes, budget: budget // sum(o * i for o, i in shapes.values()), "dense"),
    (lambda shapes, budget: min(budget // (o + i) for o, i in shapes.values()), "one matrix"),
    (lambda shapes, budget: max(1, budget // _sides(shapes)), "not even rank 1 fits: 0 is"),
    (lambda shapes, budget: budget // _sides(shapes) or None, "not even rank 1 fits: 0 is"),
    (_without_default, "not even rank 1 fits: 0 is"),
    (_capped(257), "is the search over"),
    (_capped(4097), "is the search over"),
    (lambda shapes, budget: None, "return"),
    (lambda shapes, budget: matched_rank(shapes, budget) // 8 * 8, "a multiple of 8"),
    (lambda shapes, budget: matched_rank(shapes, budget // 4), "not in bytes"),
    (
        lambda shapes, budget: budget // sum(map(sum, set(shapes.values()))),
        "one shape are counted once",
    ),
]


def _overlap(cut=None, scale=None, power=2):
    """A `subspace_similarity` that cuts or scales wrongly."""

    def wrong(A1, A2, i, j):
        V1, V2 = (torch.linalg.svd(A, full_matrices=False)[2] for A in (A1, A2))
        U1, U2 = (cut or (lambda V, k: V[:k].T))(V1, i), (cut or (lambda V, k: V[:k].T))(V2, j)
        total = (U1.T @ U2).norm() ** power
        return total.item() / (scale or min)(i, j)

    return wrong


def _first_rows(A1, A2, i, j):
    Q1, Q2 = torch.linalg.qr(A1[:i].T)[0], torch.linalg.qr(A2[:j].T)[0]
    return (Q1.T @ Q2).square().sum().item() / min(i, j)


def _left(A1, A2, i, j):
    U1, U2 = (torch.linalg.svd(A, full_matrices=False).U for A in (A1, A2))
    return (U1[:, :i].T @ U2[:, :j]).square().sum().item() / min(i, j)


def _columns(A1, A2, i, j):
    V1, V2 = (torch.linalg.svd(A).Vh for A in (A1, A2))
    return (V1[:, :i].T @ V2[:, :j]).square().sum().item() / min(i, j)


def _in_numpy(vectors):
    """A similarity of `vectors(A, k)`, (d_in, k), as NumPy's LAPACK has them."""

    def wrong(A1, A2, i, j):
        U, V = vectors(A1.numpy(), i), vectors(A2.numpy(), j)
        return float(((U.T @ V) ** 2).sum() / min(i, j))

    return wrong


def _upwards(A1, A2, i, j):
    V1, V2 = (torch.linalg.eigh(A.T @ A).eigenvectors for A in (A1, A2))
    return (V1[:, :i].T @ V2[:, :j]).square().sum().item() / min(i, j)


def _centred(A1, A2, i, j):
    V1, V2 = (torch.pca_lowrank(A, q=min(A.shape))[2] for A in (A1, A2))
    return (V1[:, :i].T @ V2[:, :j]).square().sum().item() / min(i, j)


def _product(reduce):
    def wrong(A1, A2, i, j):
        V1, V2 = (torch.linalg.svd(A, full_matrices=False).Vh for A in (A1, A2))
        return reduce(V1[:i] @ V2[:j].T, min(i, j))

    return wrong


def _overlap_of(one, other):
    """`overlap`'s answer from other vectors: `one` and `other` pick them from `(A, i, j)`."""

    def similarity(A1, A2, i, j):
        return (one(A1, i, j) @ other(A2, i, j).T).square().sum().item() / min(i, j)

    return similarity


def _right_vectors(A):
    return torch.linalg.svd(A, full_matrices=False).Vh


def _unit_rows(A, k):
    return torch.nn.functional.normalize(A[:k], dim=1)


def _one_minus(A1, A2, i, j):
    pick = _overlap_of(lambda A, i, j: _right_vectors(A)[:i], lambda A, i, j: _right_vectors(A)[:j])
    return 1 - pick(A1, A2, i, j)


def _cut_both(A1, A2, i, j):
    return _similar(A1, A2, min(i, j), min(i, j))


def _of_the_product(A1, A2, i, j):
    S = torch.linalg.svdvals(A1 @ A2.T).square()
    return (S[: min(i, j)].sum() / S.sum()).item()


def _distance(A1, A2, i, j):
    U, V = (torch.linalg.svd(A, full_matrices=False).Vh[:k] for A, k in ((A1, i), (A2, j)))
    return (U.T @ U - V.T @ V).square().sum().item() / min(i, j)


def _similar(A1, A2, i, j):
    U, V = (torch.linalg.svd(A, full_matrices=False).Vh[:k] for A, k in ((A1, i), (A2, j)))
    return (U @ V.T).square().sum().item() / min(i, j)


def _every_other(A1, A2, i, j):
    """Each second vector, as `[::2]` has it."""
    U, V = (torch.linalg.svd(A, full_matrices=False).Vh[::2][:k] for A, k in ((A1, i), (A2, j)))
    return (U @ V.T).square().sum().item() / min(i, j)


OVERLAPS = [
    (lambda A1, A2, i, j: _similar(A1, A1, i, j), "A1, or A2, compared with itself"),
    (lambda A1, A2, i, j: _similar(A1, A2, i, j) * min(i, j) / len(A1), "number of A1's rows"),
    (_cut_both, "the smaller of i and j cuts both"),
    (_every_other, "of axes 1, 2 one lies in the span of 4, 3, 2"),
    (_of_the_product, "both span axis 1"),
    (_distance, "both span axis 1"),
    (lambda A1, A2, i, j: _similar(A1, A2, i, j) * min(i, j) * 2 / (i + j), "the mean of i and j"),
    (_columns, "these are columns of Vh"),
    (_in_numpy(lambda A, k: np.linalg.svd(A)[2][:, :k]), "these are columns of Vh"),
    (_in_numpy(lambda A, k: np.linalg.svd(A, False)[2][:, :k]), "these are columns of Vh"),
    (_in_numpy(lambda A, k: np.linalg.svd(A, False)[2][:, 1 : k + 1]), "or columns of Vh"),
    (_in_numpy(lambda A, k: np.linalg.svd(A, False)[0][:, :k]), "left singular vectors"),
    (_in_numpy(lambda A, k: np.linalg.eigh(A.T @ A)[1][:, :k]), "eigh sorts upwards"),
    (_upwards, "eigh sorts upwards"),
    (
        _in_numpy(lambda A, k: np.linalg.eigh(A.T.astype(float) @ A)[1][:, :k]),
        "the weakest directions: eigh sorts upwards",
    ),
    (_in_numpy(lambda A, k: np.linalg.svd(A)[2][-k:].T), "those of an SVD come first"),
    (_centred, "centred first, as PCA does"),
    (_product(lambda M, n: M.abs().max().item()), "largest overlap of two"),
    (_product(lambda M, n: torch.linalg.matrix_norm(M, 2).item() ** 2 / n), "another norm"),
    (_product(lambda M, n: (M.norm().item() / n) ** 2), "square the whole norm once"),
    (_product(lambda M, n: round(M.square().sum().item() / n, 2)), "it is rounded"),
    (_product(lambda M, n: math.sqrt(M.square().sum().item() / n)), "no square root of it all"),
    (_overlap(scale=lambda i, j: 1), "divide by min"),
    (_overlap(scale=max), "divide by min"),
    (_overlap(scale=lambda i, j: i), "divide by min"),
    (_overlap(scale=lambda i, j: j), "divide by min"),
    (_overlap(scale=lambda i, j: i * j), "mean of the squares"),
    (_left, "left singular vectors"),
    (_overlap(power=1), "not squared"),
    (_overlap(cut=lambda V, k: V[:, :k]), "columns of Vh"),
    (lambda A1, A2, i, j: (A1[:i] @ A2[:j].T).square().sum().item() / min(i, j), "rows of A"),
    (_first_rows, "first rows"),
    (lambda A1, A2, i, j: subspace_similarity(A1.T, A2.T, i, j), ("RuntimeError", "wanted")),
    (lambda A1, A2, i, j: torch.tensor(subspace_similarity(A1, A2, i, j)), "item"),
    (lambda A1, A2, i, j: subspace_similarity(A1, A2, j, i), ("swapped", "wanted")),
    (lambda A1, A2, i, j: None, "return"),
    (_one_minus, "one minus it"),
    (
        _overlap_of(lambda A, i, j: _unit_rows(A, i), lambda A, i, j: _unit_rows(A, j)),
        "of length one",
    ),
    (
        _overlap_of(lambda A, i, j: _right_vectors(A)[:i], lambda A, i, j: _right_vectors(A)[:i]),
        "i cuts both",
    ),
    (
        _overlap_of(lambda A, i, j: _right_vectors(A), lambda A, i, j: _right_vectors(A)),
        "all singular vectors",
    ),
]


def _gaps(frame, a, b):
    wide = frame.pivot(index="seed", columns="method", values="score")
    return (wide[a] - wide[b]).dropna()


def _pairs(mean=None, error=None):
    """A `paired_difference` with one of its figures made otherwise, of the differences."""

    def wrong(frame, a, b):
        gaps = _gaps(frame, a, b)
        return (mean or pd.Series.mean)(gaps), (error or pd.Series.sem)(gaps)

    return wrong


def _scores(frame, a, b):
    return [frame[frame["method"] == name]["score"].dropna() for name in (a, b)]


def _means_apart(frame, a, b):
    first, second = _scores(frame, a, b)
    return first.mean() - second.mean(), _gaps(frame, a, b).sem()


def _errors_apart(frame, a, b):
    first, second = _scores(frame, a, b)
    return _gaps(frame, a, b).mean(), math.hypot(first.sem(), second.sem())


def _by_rows(frame, a, b):
    first, second = (side.to_numpy() for side in _scores(frame, a, b))
    n = min(len(first), len(second))
    gaps = pd.Series(first[:n] - second[:n])
    return gaps.mean(), gaps.sem()


def _by_labels(frame, a, b):
    """pandas pairs by labels, and none is shared."""
    first, second = _scores(frame.reset_index(drop=True), a, b)
    gaps = (first - second).dropna()
    return gaps.mean(), gaps.sem()


def _nan_as_zero(frame, a, b):
    return paired_difference(frame.fillna({"score": 0.0}), a, b)


def _outer(frame, a, b):
    wide = frame.pivot(index="seed", columns="method", values="score").fillna(0)
    gaps = (wide[a] - wide[b])[(wide[a] != 0) | (wide[b] != 0)]
    return gaps.mean(), gaps.sem()


def _nan_stays(frame, a, b):
    wide = frame.pivot(index="seed", columns="method", values="score")
    gaps = (wide[a] - wide[b]).to_numpy()
    return gaps.mean(), gaps.std(ddof=1) / len(gaps) ** 0.5


def _all_seeds_count(frame, a, b):
    gaps = _gaps(frame, a, b)
    n = frame[frame["method"].isin([a, b])]["seed"].nunique()
    return gaps.mean(), gaps.std() / n**0.5


def _failed_count(frame, a, b):
    gaps = _gaps(frame, a, b)
    seeds = [set(frame[frame["method"] == name]["seed"]) for name in (a, b)]
    return gaps.mean(), gaps.std() / len(seeds[0] & seeds[1]) ** 0.5


def _within_names(frame, a, b):
    sides = [
        frame[frame["method"].str.contains(name, regex=False)].groupby("seed")["score"].mean()
        for name in (a, b)
    ]
    gaps = (sides[0] - sides[1]).dropna()
    return gaps.mean(), gaps.sem()


def _no_error_is_zero(frame, a, b):
    gaps = _gaps(frame, a, b)
    return gaps.mean(), gaps.sem() if len(gaps) > 1 else 0.0


def _needs_two(frame, a, b):
    gaps = _gaps(frame, a, b)
    return (gaps.mean(), gaps.sem()) if len(gaps) > 1 else (math.nan, math.nan)


def _needs_three(frame, a, b):
    gaps = _gaps(frame, a, b)
    return (gaps.mean(), gaps.sem()) if len(gaps) > 2 else (math.nan, math.nan)


def _statistics(frame, a, b):
    gaps = list(_gaps(frame, a, b))
    return statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5


def _zero_for_none(frame, a, b):
    gaps = _gaps(frame, a, b)
    return gaps.mean() if len(gaps) else 0.0, gaps.sem()


def _drops_in_place(frame, a, b):
    frame.dropna(subset=["score"], inplace=True)
    return paired_difference(frame, a, b)


def _no_hole(frame, a, b):
    """Rows with a hole in any column are gone."""
    return paired_difference(frame.dropna(), a, b)


def _of_every_method(frame, a, b):
    wide = frame.pivot(index="seed", columns="method", values="score").dropna()
    gaps = wide[a] - wide[b]
    return gaps.mean(), gaps.sem()


def _all_others(frame, a, b):
    by_seed = frame.set_index("seed")
    others = by_seed[by_seed["method"] != a].groupby(level=0)["score"].mean()
    gaps = (by_seed.loc[by_seed["method"] == a, "score"] - others).dropna()
    return gaps.mean(), gaps.sem()


def _failed_stay(frame, a, b):
    first, second = (frame[frame["method"] == name].set_index("seed")["score"] for name in (a, b))
    both = first.index.intersection(second.index)
    gaps = (first[both] - second[both]).to_numpy()
    return gaps.mean(), gaps.std(ddof=1) / len(gaps) ** 0.5


def _about_zero(gaps):
    n = len(gaps)
    return ((gaps**2).sum() / (n - 1) / n) ** 0.5 if n > 1 else math.nan


def _sorted_by_seed(frame, a, b):
    sides = [frame[frame.method == m].sort_values("seed").score.tolist() for m in (a, b)]
    gaps = pd.Series([x - y for x, y in zip(*sides, strict=False)]).dropna()
    return gaps.mean(), gaps.sem()


PAIRS = [
    (_of_every_method, "seeds that another method lacks are gone"),
    (_all_others, "all other methods are taken for b"),
    (_failed_stay, "leave failed runs (nan) out, of both"),
    (_pairs(error=_about_zero), "the mean is not taken off"),
    (
        _pairs(error=lambda gaps: gaps.std() / (len(gaps) - 1) if len(gaps) > 1 else math.nan),
        "which std() has inside",
    ),
    (_sorted_by_seed, "from the lowest seed on"),
    (lambda frame, a, b: paired_difference(frame, a, b)[::-1], "mean and error are swapped"),
    (_pairs(mean=lambda gaps: abs(gaps.mean())), "the sign is turned round"),
    (_pairs(mean=lambda gaps: round(gaps.mean(), 2)), ("it is rounded", "that is rounded")),
    (
        _pairs(error=lambda gaps: (gaps - gaps.mean()).abs().mean() / len(gaps) ** 0.5),
        "deviations over sqrt(n)",
    ),
    (lambda frame, a, b: paired_difference(frame, b, a), "the sign is turned round"),
    (_means_apart, "the means are of all seeds"),
    (_errors_apart, "two means apart"),
    (_by_rows, "paired by their order"),
    (_by_labels, "pair rows by their seed, not by their label"),
    (_nan_as_zero, "a failed run counts with some number"),
    (_outer, "counts as 0 here"),
    (_nan_stays, "a seed that one of them lacks is left out"),
    (_all_seeds_count, "not of those that either has"),
    (_failed_count, "failed ones left out"),
    (_within_names, "compare whole names"),
    (_pairs(error=pd.Series.std), "that is the spread of the differences"),
    (_pairs(error=lambda gaps: gaps.std(ddof=0) / len(gaps) ** 0.5), "ddof=1"),
    (_pairs(error=lambda gaps: np.std(gaps.to_numpy())), "ddof=1"),
    (_pairs(error=lambda gaps: gaps.std() / len(gaps)), "not by n"),
    (_pairs(error=lambda gaps: gaps.var() / len(gaps)), "its root is wanted"),
    (_pairs(error=lambda gaps: 1.96 * gaps.sem()), "1.96 errors"),
    (_pairs(error=lambda gaps: (gaps.max() - gaps.min()) / 2), "half of the range"),
    (_pairs(error=lambda gaps: gaps.std() / max(1, len(gaps) - 1) ** 0.5), "inside already"),
    (_pairs(mean=pd.Series.median), "that is the median"),
    (_pairs(mean=pd.Series.sum), "that is the sum"),
    (_pairs(mean=lambda gaps: gaps.abs().mean()), "keep the signs"),
    (_pairs(mean=lambda gaps: gaps.iloc[0]), ("first difference alone", "first seed's difference")),
    (_no_error_is_zero, "nothing to tell its error by"),
    (_needs_two, "the mean is nan"),
    (_needs_three, "2 differences have a mean, and from two on a spread"),
    (
        _pairs(error=lambda gaps: gaps.sem() if len(gaps) > 2 else math.nan),
        "the error is nan; 2 differences have a mean, and from two on a spread",
    ),
    (_statistics, "nothing to tell its error by"),
    (_zero_for_none, "both are nan"),
    (_drops_in_place, "changes its input frame in place"),
    (_no_hole, "a hole in another column"),
    (lambda frame, a, b: paired_difference(frame, a, b)[0], "gave a float, wanted two numbers"),
    (lambda frame, a, b: _gaps(frame, a, b), "gave a Series, wanted two numbers"),
    (lambda frame, a, b: (*paired_difference(frame, a, b), 3), "gave 3 things"),
    (lambda frame, a, b: dict(zip("me", paired_difference(frame, a, b), strict=True)), "a dict"),
    (lambda frame, a, b: None, "return"),
]


def by_vectors(pick):
    """A similarity of the products of the right vectors, by another norm than Frobenius."""

    def similarity(A1, A2, i, j):
        first, second = (torch.linalg.svd(A, full_matrices=False).Vh for A in (A1, A2))
        return pick(first[:i] @ second[:j].T, min(i, j)).item()

    return similarity


def t_value(frame, a, b):
    mean, error = paired_difference(frame, a, b)
    return mean, mean / error


def _by_length(G, A, r, alpha, lr):
    gradient = alpha / r * G @ A.T
    return -alpha / r * lr * (gradient / gradient.norm(dim=0)) @ A


def _by_pseudo_inverse(G, A, r, alpha, lr):
    return -alpha / r * lr * (G @ torch.linalg.pinv(A)).sign() @ A


def _of_the_first(A1, A2, i, j):
    first, second = (torch.linalg.svd(A, full_matrices=False).Vh[:i] for A in (A1, A2))
    return (first @ second.T).square().sum().item() / i


def _between(shapes, budget):
    r = 0
    while sum((r + 1) * (a + b) + (r + 1) ** 2 for a, b in shapes.values()) <= budget:
        r += 1
    return r


def _vectors(cut):
    """The similarity of the vectors that `cut(Vh, i)` takes."""

    def similarity(A1, A2, i, j):
        U, V = (cut(torch.linalg.svd(A, full_matrices=False).Vh, k) for A, k in ((A1, i), (A2, j)))
        return (U @ V.T).square().sum().item() / min(i, j)

    return similarity


def _mean_of_shares(shapes, budget):
    return int(sum(budget / (a + b) for a, b in shapes.values()) / len(shapes))


def _half_cost(shapes, budget):
    return int(budget / sum((a + b) / 2 for a, b in shapes.values()))


def _by_place(frame, a, b):
    first, second = (frame[frame.method == name].score.to_numpy() for name in (a, b))
    gaps = first - second
    return float(gaps.mean()), float(gaps.std(ddof=1) / len(gaps) ** 0.5)


def _t_value_first(frame, a, b):
    mean, error = paired_difference(frame, a, b)
    return mean / error, error


def _variance_over_root(frame, a, b):
    mean, error = paired_difference(frame, a, b)
    return mean, error**2 * len(frame[frame.method == a]) ** 0.5


def _pivot_table(frame, a, b):
    wide = frame.pivot_table(index="seed", columns="method", values="score")
    gaps = (wide[a] - wide[b]).dropna()
    return gaps.mean(), gaps.sem()


RARER = [
    (check.pairs, _pivot_table, "all runs of that method failed"),
    (check.first_step, lambda G, A, r, alpha, lr: 0 * G, "B is 0 only before the step"),
    (check.fits, _half_cost, "not half of it"),
    (check.fits, _mean_of_shares, "and the mean is taken"),
    (check.overlaps, _vectors(lambda Vh, i: Vh[i - 1 : i]), "the i-th and the j-th vector alone"),
    (check.overlaps, _vectors(lambda Vh, i: Vh[i:]), "the vectors after the first"),
    (check.pairs, _by_place, "pair scores by seed"),
    (check.pairs, _t_value_first, "a t value; wanted is the mean"),
    (check.pairs, _variance_over_root, "var() is the square of std()"),
    (check.first_step, _by_length, "numbers of B move by"),
    (check.first_step, _by_pseudo_inverse, "some the wrong way: against the sign of G @ A.T"),
    (check.overlaps, _of_the_first, "i cuts both"),
    (check.fits, _between, "no r x r matrix"),
]
WRONG = [
    *RARER,
    (
        check.first_step,
        lambda G, A, r, alpha, lr: -(alpha / len(G)) * lr * (G @ A.T).sign() @ A,
        "alpha is divided by d_out",
    ),
    (check.overlaps, by_vectors(lambda M, n: torch.linalg.svdvals(M)[0] ** 2), "largest singular"),
    (check.overlaps, by_vectors(lambda M, n: M.sum() ** 2 / n), "square each entry"),
    (check.overlaps, by_vectors(lambda M, n: M[-1, -1] ** 2), "alone; the first i"),
    (check.pairs, t_value, "mean over its error"),
    *[(check.first_step, *case) for case in UPDATES],
    *[(check.sweeps, *case) for case in SWEEPS],
    *[(check.fits, *case) for case in RANKS],
    *[(check.overlaps, *case) for case in OVERLAPS],
    *[(check.pairs, *case) for case in PAIRS],
    (check.quiz, lambda: {"q1": "c", "q2": "b", "q3": "b", "q4": "d"}, "3 of 4"),
    (check.quiz, lambda: ["c", "b", "a", "d"], "dict"),
    (check.quiz, lambda: {"q1": "c", "q2": "e", "q3": "a", "q4": "d"}, "q2 wants one of"),
]


# --- stubs ---------------------------------------------------------------------------------


def _stub(*args, **kwargs):
    raise NotImplementedError


STUBS = [
    (check.first_step, _stub),
    (check.sweeps, _stub),
    (check.fits, _stub),
    (check.overlaps, _stub),
    (check.pairs, _stub),
    (check.quiz, _stub),
]


# --- what was measured beforehand ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_columns_of_vh_are_named_though_their_signs_are_free(seed, rejects, monkeypatch):
    monkeypatch.setattr(contract.session, "seed", seed)
    assert "columns of Vh" in rejects(check.overlaps, _columns)


def test_seeds_that_a_third_method_lacks_are_told_alone(rejects):
    told = rejects(check.pairs, _of_every_method)
    assert "seeds that another method lacks" in told and "label" not in told


def test_an_error_without_a_name_is_not_told_beside_a_wrong_mean(rejects):
    told = rejects(check.pairs, _no_hole)
    assert "a hole in another column" in told and "the error" not in told


def test_each_measured_run_stands_once_and_has_a_loss_or_an_error():
    runs = measured.load("rank_sweep")
    settings = ["study", "rank", "alpha", "learning_rate", "seed", "variant", "targets"]
    assert not runs.duplicated(settings).any()
    assert (runs["loss"].notna() | (runs["error"] != "")).all()


def test_every_rule_has_three_ranks_and_meets_the_others_at_16():
    rules = short.by_rule(measured.load("rank_sweep"))
    assert all(set(lines) == {4, 16, 64} for lines in rules.values())
    first, *others = (lines[16] for lines in rules.values())
    assert all(first.equals(line) for line in others)


def test_the_spread_leaves_failed_runs_out():
    runs = pd.DataFrame({"learning_rate": [1, 1, 2, 2], "loss": [0.2, 0.4, math.nan, 0.5]})
    spread = measured.spread(runs)
    assert spread["mean"].tolist() == pytest.approx([0.3, 0.5])
    assert spread["low"].tolist() == [0.2, 0.5]
    assert spread["high"].tolist() == [0.4, 0.5]
    assert spread["runs"].tolist() == [2, 1]


def test_a_measurement_is_made_once_for_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    made = []

    def double(n):
        made.append(n)
        return {"twice": 2 * n}

    assert [measured.remember(double, n=n)["twice"] for n in (3, 4, 3)] == [6, 8, 6]
    assert made == [3, 4]


def test_the_reduced_factor_spans_what_the_update_spans():
    A, B = torch.randn(4, 30), torch.randn(20, 4)
    leaf = torch.nn.Module()
    leaf.lora_A, leaf.lora_B = ({"default": torch.nn.Linear(1, 1)} for _ in "AB")
    leaf.lora_A["default"].weight = torch.nn.Parameter(A)
    leaf.lora_B["default"].weight = torch.nn.Parameter(B)
    attention = torch.nn.Module()
    attention.q_proj = leaf
    block = torch.nn.Module()
    block.self_attn = attention
    base = SimpleNamespace(model=SimpleNamespace(layers=[block]))
    tuned = SimpleNamespace(model=SimpleNamespace(get_base_model=lambda: base))
    same, reduced = short.factors(tuned, layer=0)
    assert torch.equal(same, A)
    assert subspace_similarity(reduced, (B @ A).T, 2, 2) == pytest.approx(1, abs=1e-4)
    values = torch.linalg.svdvals(B @ A)[:4]
    assert torch.allclose(torch.linalg.svdvals(reduced), values, rtol=1e-4)


# --- what the course makes of the rows ------------------------------------------------------


def test_param_table_counts_what_was_published():
    shapes = short.shapes("smollm2-135m", "q, v")
    table = tables.param_table(shapes, [4, 64])
    assert table["trainable"].tolist() == [230_400, 3_686_400]
    one = tables.param_table({"w": (2, 3)}, [1])
    assert one["percent"].tolist() == pytest.approx([500 / 6])


def test_counts_by_group_add_up_rows_and_columns():
    labels, told = list("abc"), list("acb")
    counts = pd.DataFrame([[1, 2, 0], [0, 3, 4], [5, 0, 6]], index=labels, columns=told)
    groups = tables.in_groups(counts, {"a": "x", "b": "x", "c": "y"})
    assert groups.loc["x"].to_dict() == {"x": 1 + 0 + 0 + 4, "y": 2 + 3}
    assert groups.loc["y"].to_dict() == {"x": 5 + 6, "y": 0}


def test_the_gap_is_of_the_last_step_of_each_rank():
    rows = [(8, 2, 0.5, 0.25), (4, 3, 1.0, 3.0), (4, 1, 3.0, 4.0), (4, 2, 2.0, 2.5), (8, 1, 1.5, 1)]
    history = pd.DataFrame(rows, columns=["rank", "step", "train_loss", "held_out_loss"])
    table = tables.overfit_gap(history)
    assert table.to_dict("list") == {
        "rank": [4, 8],
        "best_step": [2, 2],
        "gap": [2.0, -0.25],
        "rise": [0.5, 0.0],
    }


def test_a_stabilised_run_has_the_alpha_of_an_equal_factor():
    rows = tables.with_alpha(measured.load("rank_sweep"))
    assert sorted(rows["alpha"].unique()) == [8, 16, 32, 64, 128]
    stable = rows[rows["variant"] == "rslora"].groupby("rank")["alpha"].first()
    assert stable.to_dict() == {4: 16, 64: 64}


def test_of_each_setting_the_rate_of_the_best_mean_is_taken():
    runs = pd.DataFrame(
        [("a", 1, 0, 0.5), ("a", 1, 1, 0.7), ("a", 2, 0, 0.4), ("a", 2, 1, 0.9), ("b", 2, 0, 1)],
        columns=["method", "learning_rate", "seed", "loss"],
    )
    lowest = tables.best_runs(runs, ["method"], "loss", lowest=True)
    assert lowest["loss"].tolist() == [0.5, 0.7, 1]
    highest = tables.best_runs(runs, ["method"], "loss", lowest=False)
    assert highest["loss"].tolist() == [0.4, 0.9, 1]


def test_a_rate_with_fewer_seeds_than_another_is_not_chosen():
    runs = pd.DataFrame(
        [("a", 1, 0, 0.5), ("a", 1, 1, 0.7), ("a", 2, 0, 0.1), ("a", 2, 1, math.nan)],
        columns=["method", "learning_rate", "seed", "loss"],
    )
    assert tables.best_runs(runs, ["method"], "loss", lowest=True)["loss"].tolist() == [0.5, 0.7]


@pytest.mark.parametrize("n", [2, 3, 5, 6])
def test_chance_is_student_s(n):
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(200_000, n, generator=rng)
    t = drawn.mean(1) / (drawn.std(1) / n**0.5)
    beyond = (t.abs() > tables.errors_of_chance(n)).float().mean().item()
    assert abs(beyond - 0.05) < 0.003
    assert tables.errors_of_chance(1) == math.inf


def test_a_verdict_needs_more_than_one_seed_and_more_than_chance():
    def told(gap, error, seeds=3, full=-9):
        rows = [("full fine-tuning", 3, full, 1), ("dora", seeds, gap, error), ("lora", 3, 0, 0)]
        names = ["method", "seeds", "difference_percent", "error_percent"]
        return tables.verdict(pd.DataFrame(rows, columns=names), "lora").split("\n")

    assert told(-1.0, 0.4)[0] == "Of 1 variants none differs from lora beyond chance;"
    assert " none " in told(-9.0, 3)[0]
    assert " dora " in told(-1.8, 0.4)[0] and " dora " in told(1.8, 0.4)[0]
    assert told(-5, math.nan, 1)[0].endswith("chance (1 with one seed: no error is known);")
    assert told(-1.0, 0.4)[1] == "full fine-tuning: -9 ± 1.0% (3 seeds), beyond chance"
    assert told(-1.0, 0.4, full=4)[1].endswith("within chance")


def test_the_ladder_s_best_two_are_compared_ticket_by_ticket():
    wanted = ["a", "b"] * 10
    half = ["a"] * 20
    answers = {f"lora {k}": half for k in range(3)} | {f"full {k}": half for k in range(3)}
    answers["full 0"] = answers["full 1"] = wanted

    def told(seeds):
        rows = {"accuracy": [83.3, 50.0], "seeds": [seeds, 3]}
        rungs = pd.DataFrame(rows, index=["full", "lora"])
        return tables.standing(rungs, pd.DataFrame(answers), wanted)

    assert "too few seeds" in told(1)
    gaps = [0, 200 / 3] * 10  # two seeds of three are right where the other never is
    error = statistics.stdev(gaps) / 20**0.5
    assert f"{statistics.mean(gaps):.1f} ± {error:.1f} points apart" in told(3)


def test_an_adapter_of_the_pairs_is_what_peft_makes_of_the_last_mlp():
    """On a tiny Llama: the logits of `capacity` are the model's own with a trained gate_proj."""
    config = transformers.LlamaConfig(
        vocab_size=8000, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = capacity.keys(6, config.vocab_size)
    stage = capacity.staged(model, tokens, lambda parts, _: parts)
    trains = capacity.adapter(stage, 3, seed=1)
    torch.nn.init.normal_(trains[1])
    lora = peft.LoraConfig(r=3, lora_alpha=capacity.ALPHA, target_modules=r".*1\.mlp\.gate_proj")
    tuned = peft.get_peft_model(model, lora)
    gate = tuned.base_model.model.model.layers[1].mlp.gate_proj
    gate.lora_A["default"].weight.data = trains[0].detach()
    gate.lora_B["default"].weight.data = trains[1].detach()
    with torch.no_grad():
        wanted = tuned(tokens).logits[:, -1, 1000 : 1000 + 100 * capacity.VALUES : 100]
        got = capacity.logits(stage, trains, torch.arange(6))
    assert torch.allclose(got, wanted, atol=1e-5)


def test_pairs_are_learned_by_heart_and_counted_in_bits():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    sides = (drawn(30, 16), drawn(30, 16), drawn(30, 24), drawn(30, 24))
    stage = capacity.Stage(*sides, drawn(16, 24), torch.ones(16), drawn(capacity.VALUES, 16))
    found = capacity.memorise(stage, 20, 8, 0.03, 0, 10, lambda items, _: items)
    assert found["trainable"] == 8 * (16 + 24)
    assert 0 < found["bits"] <= 20 * 6 and found["right"] > 0.5
