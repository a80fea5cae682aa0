"""Checks of lab 5. The reference is a formula of `guesses05`, or a published count."""

import torch

from labkit.checks import guesses05 as guess
from labkit.checks.compare import ask, expect_number, randn
from labkit.checks.quiz import judge
from labkit.grading.contract import exercise, expect, generator, observe
from labkit.probes import lab05 as probe


def _draw(low, high, rng):
    """An int from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _shapes(rng):
    """Four matrices, wide and tall, of sizes that nobody can guess."""
    names = [f"layers.{i}.{part}" for i in range(2) for part in ("q_proj", "mlp.up_proj")]
    sizes = [(_draw(20, 59, rng), _draw(60, 99, rng)) for _ in names]
    turned = [size[:: 1 if i % 2 else -1] for i, size in enumerate(sizes)]
    return dict(zip(names, turned, strict=True))


def _expect_frame(got, names, call):
    """Raise CheckFailed unless `got` is a frame that has these columns."""
    told = {"NoneType": "None (is `return` missing?)", "list": "a list", "dict": "a dict"}
    kind = got.get("is")
    wrong = isinstance(kind, str)
    expect(not wrong, f"{call} gave {told.get(kind, f'a {kind}')}, wanted a pandas DataFrame")
    missing = [name for name in names if name not in got]
    have = ", ".join(got) or "none"
    expect(not missing, f"{call} has no column {', '.join(missing)}; it has {have}")


def _whole(value):
    """A float that stands for an int as that int: pandas makes floats of ints beside NaN."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@exercise("5.1", points=2)
def counts(param_table):
    """one row a rank, linear in it, percent of the given matrices; equal to published counts"""
    rng = generator()
    shapes = _shapes(rng)
    ranks = [_draw(4, 6, rng), _draw(7, 9, rng), 3, _draw(11, 40, rng)]
    sides, dense = guess.sides(shapes), guess.dense(shapes)
    call = f"param_table of four matrices, ranks {ranks}"
    got = observe(probe.table, param_table, shapes, ranks)
    told = _ranks_of(got, ranks, call)
    for r, trainable, percent in zip(told, got["trainable"], got["percent"], strict=True):
        where = f"{call}: at rank {r}"
        expect_number(_whole(trainable), r * sides, f"{where}, trainable", guess.counted(shapes, r))
        _expect_percent(percent, r * sides, dense, f"{where}, percent")
    for name, (shapes, wanted) in guess.PUBLISHED.items():
        got = observe(probe.table, param_table, shapes, list(wanted))
        told = _ranks_of(got, list(wanted), f"param_table of {name}")
        for r, trainable in zip(told, got["trainable"], strict=True):
            call = f"trainable of {name}, r={r}"
            expect_number(_whole(trainable), wanted[r], call, guess.counted(shapes, r))


def _ranks_of(got, ranks, call):
    """The column rank of a `param_table`, which has a row for each of `ranks`."""
    _expect_frame(got, ("rank", "trainable", "percent"), call)
    told = [_whole(r) for r in got["rank"]]
    same = sorted(told, key=str) == sorted(ranks, key=str)
    expect(same, f"{call}: column rank is {told}, wanted one row a rank")
    return told


def _expect_percent(percent, trainable, dense, call):
    """To two digits or better; an int is as good as a float."""
    wanted = 100 * trainable / dense
    number = float(percent) if type(percent) is int else percent
    if isinstance(number, float) and abs(number - wanted) < 0.0051:
        return
    guesses = {
        "that is a share: times 100": wanted / 100,
        "divide by the numbers in the matrices, without the adapter's": 100
        * trainable
        / (dense + trainable),
        "rounded too much: keep the digits": round(wanted),
        "rounded too much: keep two digits at least": round(wanted, 1),
        "that is the dense matrices in percent of the adapter": 100 * dense / trainable,
    }
    expect_number(number, wanted, call, guesses)


@exercise("5.2", points=4)
def sweeps(sweep):
    """every pair once, the same seed for all, and a failed run is a row with its error"""
    rng = generator()
    ranks = [_draw(2, 5, rng), _draw(6, 9, rng), _draw(10, 20, rng)]
    rates = [_draw(1, 9, rng) / 1000, _draw(11, 99, rng) / 1000]
    for rule, alpha_of in (("twice the rank", lambda r: 2 * r), ("fixed", lambda r: 24)):
        factor = float(_draw(2, 9, rng))
        results = {"loss": factor} if rule == "fixed" else {"loss": factor, "score": -factor}
        got = observe(probe.swept, sweep, ranks, rates, rule, results, [])
        call = f"sweep over ranks {ranks} and learning rates {rates}"
        _expect_frame(got["frame"], (), call)
        told = [e for e in got["frame"].get("error", []) if e]
        expect(got["calls"] or not told, f"{call}: no run was made, for {(told or [''])[0]}")
        _expect_calls(got["calls"], ranks, rates, alpha_of, call, rule)
        rows = _rows(got["frame"], ranks, rates, results, call)
        for (r, rate), row in rows.items():
            at = f"{call}: at rank {r} and learning rate {rate}"
            expect_number(_whole(row["alpha"]), alpha_of(r), f"{at}, alpha")
            for name, times in results.items():
                expect_number(row[name], times * (r + rate), f"{at}, {name}")
            quiet = row["error"] in (None, "")
            expect(quiet, f"{at}: error is {row['error']!r}, but the run went well")
    _expect_failures(sweep, ranks, rates)
    hint = "catch Exception, not everything"
    expect(observe(probe.interrupted, sweep), f"Ctrl-C must still stop the sweep; {hint}")


def _expect_calls(calls, ranks, rates, alpha_of, call, rule):
    """train_fn ran once for every pair, with the alpha of its rank and one seed."""
    pairs = sorted((r, rate) for r in ranks for rate in rates)
    made = sorted((r, rate) for r, _, rate, _ in calls)
    missing = [pair for pair in pairs if pair not in made]
    hint = "every rank meets every learning rate: two loops, one in the other"
    expect(not missing, f"{call}: no run at (rank, learning rate) = {missing[:1]}; {hint}")
    expect(made == pairs, f"{call}: {len(made)} runs, wanted {len(pairs)}, one a pair")
    for r, alpha, _, seed in calls:
        hint = "iterrows and np.array make floats of ints, and a LoraConfig wants an int"
        expect(type(r) is int, f"{call}: train_fn got the rank {r!r}; {hint}")
        expect(type(seed) is int, f"{call}: train_fn got the seed {seed!r}, wanted an int")
        told = f"{call}: alpha is {alpha} at rank {r}, wanted alpha_of({r}) = {alpha_of(r)}"
        expect(alpha == alpha_of(r), f"{told} (here {rule})")
    seeds = sorted({str(seed) for _, _, _, seed in calls})
    hint = "one seed for all, or luck is compared with luck"
    expect(len(seeds) == 1, f"{call}: the seeds are {', '.join(seeds[:4])}; {hint}")


def _rows(frame, ranks, rates, results, call):
    """{(rank, learning rate): row} of a sweep's frame; each pair is there once."""
    _expect_frame(frame, ("rank", "alpha", "learning_rate", "error"), call)
    hint = "what train_fn returns belongs into the row"
    for name in results:
        expect(name in frame, f"{call} has no column {name}; {hint}")
    pairs = zip(frame["rank"], frame["learning_rate"], strict=True)
    keys = [(_whole(r), rate) for r, rate in pairs]
    wanted = sorted((r, rate) for r in ranks for rate in rates)
    same = sorted(keys, key=str) == sorted(wanted, key=str)
    hint = "; is it one dict, appended again and again? Make a new one for each run"
    again = hint * (len(set(map(str, keys))) < len(keys) == len(wanted))
    expect(same, f"{call}: {len(keys)} rows, wanted {len(wanted)}, one for each pair{again}")
    return {key: {n: column[i] for n, column in frame.items()} for i, key in enumerate(keys)}


def _expect_failures(sweep, ranks, rates):
    """A run that raises leaves a row with its error and no result; the others go on."""
    fails = [[ranks[1], rates[0]]]
    call = f"sweep where rank {ranks[1]}, learning rate {rates[0]} raises"
    hint = "in this sweep one run raises: catch Exception, and go on"
    got = ask(call, hint, probe.swept, sweep, ranks, rates, "fixed", {"loss": 2.0}, fails)
    made, wanted = len(got["calls"]), len(ranks) * len(rates)
    expect(made >= wanted, f"{call}: only {made} of {wanted} runs were made; go on after a failure")
    for (r, rate), row in _rows(got["frame"], ranks, rates, {"loss": 2.0}, call).items():
        at = f"rank {r} and learning rate {rate}"
        expect_number(_whole(row["alpha"]), 24, f"{call}: alpha at {at}")
        if [r, rate] not in fails:
            expect(row["error"] in (None, ""), f"{call}: the run at {at} has an error too")
            expect_number(row["loss"], 2.0 * (r + rate), f"{call}: loss at {at}")
            continue
        said = f"diverged at rank {r}" in str(row["error"])
        expect(said, f"{call}: its error is {row['error']!r}; keep the exception's text, str(e)")
        none = row["loss"] in (None, "")  # NaN arrives as None
        expect(none, f"{call}: the failed row has the loss {row['loss']}, but it never got one")


@exercise("5.3", points=2)
def fits(matched_rank):
    """the largest rank whose parameters fit the budget, to the last parameter"""
    rng = generator()
    for low, high in ((3, 30), (3, 30), (4500, 5500)):
        shapes, r = _shapes(rng), _draw(low, high, rng)
        sides = guess.sides(shapes)
        within = r * sides + _draw(sides // 2 + 1, sides - 2, rng)
        cases = [(within, r), (r * sides, r), (r * sides - 1, r - 1), (sides - 1, 0)]
        for budget, wanted in cases:
            call = f"matched_rank of four matrices that cost {sides} a rank, budget {budget}"
            hint = "" if wanted else guess.NONE_FITS
            got = ask(call, hint, probe.rank_within, matched_rank, shapes, budget)
            expect(wanted or got is not None, f"{call} gave None; {hint}")
            expect_number(_whole(got), wanted, call, guess.ranks_within(shapes, budget, wanted))
    attention = {n: s for n, s in guess.SMOL.items() if n.split(".")[-1][0] in "qkvo"}
    mlp = {name: shape for name, shape in guess.SMOL.items() if name not in attention}
    for name, shapes, wanted in [
        ("attention", attention, 10),
        ("MLP", mlp, 6),
        ("all linear", guess.SMOL, 4),
    ]:
        got = observe(probe.rank_within, matched_rank, shapes, 1_221_120)
        expect_number(_whole(got), wanted, f"matched_rank, SmolLM2 {name} layers, 1,221,120")


@exercise("5.4", points=3)
def overlaps(subspace_similarity):
    """1 for equal spans, about i / d for random ones, unmoved by rotation; as projectors have it"""
    rng = generator()
    d = _draw(40, 60, rng)
    A1, A2 = _spread(6, d, rng), _spread(9, d, rng)
    turned = torch.linalg.qr(randn(6, 6, rng=rng))[0] @ A1
    shared = torch.cat([A1[:3], 1e-3 * _spread(5, d, rng)])
    cases = [
        ("two of one rank", A1, _spread(6, d, rng), 2, 5),
        ("the same A rotated", A1, turned, 6, 6),
        ("two random matrices", A1, A2, 3, 3),
        ("two random matrices", A1, A2, 2, 5),
        ("two random matrices", A1, A2, 6, 4),
        ("two random matrices", A1, A2, 1, 9),
        ("A and the same A rotated", A1, turned, 2, 4),
        ("A and a matrix with three of its rows", A1, shared, 6, 3),
        ("a square and a thin matrix", _spread(12, 12, rng), _spread(4, 12, rng), 5, 4),
    ]
    for what, first, second, i, j in cases:
        call = f"subspace_similarity of {what}, i={i}, j={j}"
        wanted = guess.overlap(first, second, i, j) / min(i, j)
        got = observe(subspace_similarity, first, second, i, j)
        expect_number(_number(got), wanted, call, guess.overlaps(first, second, i, j), tol=1e-3)


def _number(value):
    return float(value) if type(value) is int else value


def _spread(r, d, rng):
    """A random (r, d) matrix whose singular values lie clearly apart."""
    left = torch.linalg.qr(randn(r, r, rng=rng))[0]
    right = torch.linalg.qr(randn(d, r, rng=rng))[0]
    return left @ torch.diag(3.0 * 0.7 ** torch.arange(r)) @ right.T


@exercise("5.5", points=3)
def not_beaten(pareto):
    """keeps exactly the rows that no other beats, ties included, failed runs left out"""
    rng, n = generator(), 14
    cost = torch.randint(1, 9, (n,), generator=rng).tolist()
    quality = [x / 10 for x in torch.randint(1, 9, (n,), generator=rng).tolist()]
    order = torch.randperm(n, generator=rng).tolist()
    cases = [
        ("where two cost the same", [2, 2, 5, 1], [0.6, 0.8, 0.7, 0.1], [0, 1, 2, 3]),
        ("where two score the same", [2, 3, 1, 5], [0.8, 0.8, 0.4, 0.8], [0, 1, 2, 3]),
        ("where two are equal in both", [3, 1, 3, 2], [0.9, 0.4, 0.9, 0.3], [2, 0, 3, 1]),
        ("where the best is the cheapest", [1, 2, 3], [0.9, 0.5, 0.7], [5, 6, 7]),
        ("of which one failed", [1, 2, 3], [float("nan"), 0.5, 0.7], [0, 1, 2]),
        ("drawn at random", cost, quality, order),
    ]
    for what, cost, quality, index in cases:
        names = [f"run{i}" for i in range(len(cost))]
        columns = {"run": names, "seconds": cost, "score": quality}
        call = f'pareto(frame, "seconds", "score") of runs {what}'
        got = observe(probe.front, pareto, columns, index, "seconds", "score")
        _expect_frame(got, columns, call)
        _expect_front(got["run"], list(zip(names, cost, quality, strict=True)), call)


def _expect_front(told, rows, call):
    wanted = [a for a, c, q in rows if q == q and not guess.beaten(c, q, rows)]
    shown = {a: f"{a} (seconds {c}, score {q})" for a, c, q in rows}
    for name in told:
        hint = "; where keeps every row: use frame[mask]" * (name is None)
        known = name in list(shown)
        expect(known, f"{call}: column run holds {name!r}, which no row of frame has{hint}")
    expect(len(told) == len(set(told)), f"{call}: a row comes twice")
    for name in told:
        if name not in wanted:
            expect(False, f"{call}: {shown[name]} stays; {guess.why_extra(name, rows)}")
    for name in wanted:
        if name not in told:
            expect(False, f"{call}: {shown[name]} is gone; {guess.why_lost(name, rows)}")


@exercise("5.6", points=2)
def gap(overfit_gap):
    """one row a rank: the best step, the gap at the last step, and the rise since the best"""
    history, wanted = _history(generator())
    call = "overfit_gap of three ranks"
    got = observe(probe.gaps, overfit_gap, history)
    _expect_frame(got, ("rank", "best_step", "gap", "rise"), call)
    told = [_whole(r) for r in got["rank"]]
    hint = "one row a rank, in rising order"
    expect(told == sorted(wanted), f"{call}: column rank is {told}, {hint}: {sorted(wanted)}")
    for k, r in enumerate(told):
        right, guesses = wanted[r]
        for name, value in right.items():
            mine = _whole(got[name][k]) if name == "best_step" else _number(got[name][k])
            expect_number(mine, value, f"{call}: {name} at rank {r}", guesses[name])


def _history(rng):
    """Columns of a history in shuffled order, and {rank: (right row, guesses)}."""
    rows, curves = [], {}
    steps = [10 * k for k in range(1, 8)]
    for r in (_draw(2, 5, rng), _draw(6, 20, rng), _draw(30, 64, rng)):
        train = sorted((_draw(100, 900, rng) / 1000 for _ in steps), reverse=True)
        best, low = _draw(1, 3, rng), _draw(400, 1600, rng) / 1000
        held = [low + abs(k - best) * _draw(50, 90, rng) / 1000 for k in range(len(steps))]
        held[best + 1] = held[best]  # a tie: the first one counts
        if not curves:
            train = [t + 2 for t in train]  # the gaps of the lowest rank are below zero
        elif len(curves) == 1:
            held[0] += 2  # the largest gap of the next one is its first
        rows += [[r, s, t, h] for s, t, h in zip(steps, train, held, strict=True)]
        curves[r] = (train, held, best)
    rows = [rows[i] for i in torch.randperm(len(rows), generator=rng).tolist()]
    ends = {(r, steps[curve[2] + 1]): -1 for r, curve in curves.items()}  # the tie comes first,
    ends |= {(r, steps[-2]): 1 for r in curves}  # and neither the last nor the best step last
    rows.sort(key=lambda row: ends.get((row[0], row[1]), 0))
    first = next(i for i, row in enumerate(rows) if row[0] != min(curves))
    rows.insert(0, rows.pop(first))
    last = {r: steps.index(step) for r, step, *_ in rows}  # where the table's last row of r is
    wanted = {r: guess.gap_of(steps, *curve, last[r]) for r, curve in curves.items()}
    names = ("rank", "step", "train_loss", "held_out_loss")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)), wanted


@exercise("5.7", points=3)
def quiz(quiz):
    """three answers, each with its reason"""
    return judge(quiz, "05")
