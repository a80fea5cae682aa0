"""What the check of `sweep` asks of its calls and of its table."""

from typing import NamedTuple

from labkit.checks.lab05 import frames
from labkit.checks.lab05.frames import whole
from labkit.contract import expect


class Run(NamedTuple):
    """One sweep: the rule for alpha by name and as a function, what was wanted, what came."""

    rule: str
    alpha_of: object
    pairs: list  # (rank, learning rate), sorted
    results: dict  # {name: factor}
    frame: dict
    calls: list  # [rank, alpha, learning rate, seed]


def expect_made(run, call):
    """Raise CheckFailed unless there is a frame, and train_fn ran once for each pair."""
    told = frames.columns(run.frame, (), call).get("error", [])
    told = [str(error) for error in told if error]
    expect(run.calls or not told, f"{call}: no run was made, for {(told or [''])[0]}")
    hint = "wanted an int, int(rank): iterrows and np.array make floats of ints, or NumPy's"
    for r, _, rate, _ in run.calls:
        expect(type(r) is int, f"{call}: train_fn got the rank {_shown(r)}; {hint}")
        number = type(rate) in (int, float)
        expect(number, f"{call}: train_fn got the learning rate {_shown(rate)}")
        told = f"{call}: train_fn got the learning rate {rate}, which is not asked"
        asked = rate in [wanted for _, wanted in run.pairs]
        expect(asked, f"{told}; pass each of the four by its name, and the rate as it is")
    made = sorted((r, rate) for r, _, rate, _ in run.calls)
    missing = [pair for pair in run.pairs if pair not in made]
    hint = "every rank meets every learning rate: two loops, one in the other"
    expect(not missing, f"{call}: no run at (rank, learning rate) = {missing[:1]}; {hint}")
    told = f"{call}: {len(made)} runs, wanted {len(run.pairs)}, one a pair"
    expect(made == run.pairs, told)


def _shown(value):
    return f"of type {value['is']}" if isinstance(value, dict) else repr(value)


def expect_alphas(run, call):
    """train_fn and the table have the alpha of each rank."""
    for r, alpha, _, _ in run.calls:
        called = not isinstance(alpha, dict) or "function" not in alpha["is"]
        expect(called, f"{call}: alpha is a function: call it, alpha_of(rank)")
        told = f"{call}: alpha is {_shown(alpha)} at rank {r}, wanted alpha_of({r})"
        told += f" = {run.alpha_of(r)} (here {run.rule})"
        if alpha == run.alpha_of(r) / r:
            told += ": that is the factor alpha / r, and train_fn wants alpha"
        expect(alpha == run.alpha_of(r), told)
    for (r, rate), row in _rows(run, call).items():
        at = f"{call}: alpha at rank {r} and learning rate {rate}"
        frames.expect_cell(row["alpha"], run.alpha_of(r), at)


def expect_seed(run, call):
    """One seed, an int."""
    seeds = [seed for *_, seed in run.calls]
    for seed in seeds:
        hint = "; int(…) makes one of it" if isinstance(seed, dict | float) else ""
        told = f"{call}: train_fn got the seed {_shown(seed)}, wanted an int{hint}"
        expect(type(seed) is int, told)
    hint = "one seed for all, or luck is compared with luck"
    seeds = sorted(set(seeds))
    different = ", ".join(map(str, seeds[:4])) + (", …" if len(seeds) > 4 else "")
    expect(len(seeds) == 1, f"{call}: the seeds are {different}; {hint}")


def expect_results(run, call, failed=None):
    """Each row but that of the pair `failed` holds what its run returned, and error is ''."""
    for (r, rate), row in _rows(run, call).items():
        if (r, rate) == failed:
            continue
        at = f"{call}: at rank {r} and learning rate {rate}"
        for name, factor in run.results.items():
            frames.expect_cell(row[name], factor * (r + rate), f"{at}, {name}")
        error = "NaN or None" if row["error"] is None else repr(row["error"])
        told = f'{at}: error is {error}, but the run went well: wanted is ""'
        expect(row["error"] == "", told)


def expect_failed(run, failed, call, said=True):
    """The row of the pair `failed` has the exception's text, if it `said` any, and no result."""
    row = _rows(run, call, failed)[failed]
    told = f"{call}: its row has no error; keep its text, str(e)"
    expect(row["error"] is not None or not said, told)
    text = isinstance(row["error"], str) and f"diverged at rank {failed[0]}" in row["error"]
    told = f"{call}: its error is {row['error']!r}; keep the exception's text, str(e)"
    expect(text or not said, told)
    if all(alpha == run.alpha_of(r) for r, alpha, *_ in run.calls):
        at = f"{call}: alpha at rank {failed[0]} (put it into the row before the run)"
        frames.expect_cell(row["alpha"], run.alpha_of(failed[0]), at)
    told = f"{call}: the failed row has the loss {row['loss']!r}{_whose(run, failed, row['loss'])}"
    expect(row["loss"] is None, f"{told}, but it never got one; leave it NaN")  # NaN comes as None


def _whose(run, failed, loss):
    """Where the loss of the failed row is from, as words, if that can be seen."""
    made = [(r, rate) for r, _, rate, _ in run.calls]
    at = made.index(failed)
    if at and loss == run.results["loss"] * sum(made[at - 1]):
        return ", that of the run before (its result is still there)"
    filled = " filled in (fillna fills all columns; only error needs it)"
    return filled if loss == "" else ""


def _rows(run, call, failed=None):
    """{(rank, learning rate): row} of a sweep's frame; each pair is there once."""
    columns = frames.columns(run.frame, ("rank", "alpha", "learning_rate"), call)
    told = f'{call}: no column error; a run that goes well has one as well, ""'
    expect("error" in columns or failed, told)
    for name in run.results:
        expect(name in columns, f"{call}: no column {name}; {_why(columns, name)}")
    frames.columns(run.frame, ("error", *run.results), call)
    pairs = zip(columns["rank"], columns["learning_rate"], strict=True)
    keys = [(whole(r), rate) for r, rate in pairs]
    same = sorted(keys, key=str) == sorted(run.pairs, key=str)
    told = f"{len(keys)} rows, wanted {len(run.pairs)}, one for each pair"
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if len(keys) < len(run.pairs):
        ranks, rates = (len({pair[k] for pair in run.pairs}) for k in (0, 1))
        few = {ranks: "one a rank: ", rates: "one a rate: "}.get(len(keys), "")
        hint = f"; {few}append in the inner loop, and keep all of them, not the best alone"
        lacks = failed and failed not in keys
        told += "; the run that raised has none: append its row all the same" if lacks else hint
    elif len(keys) == len(run.pairs) and twice:
        lost = next((pair for pair in run.pairs if pair not in keys), None)
        told = (
            f"{keys.count(twice)} rows are of (rank, learning rate) = {twice}, and none of {lost}"
        )
        told += "; is it one dict, appended again and again? Make a new one for each run"
    elif len(keys) == len(run.pairs):
        told = f"rank and learning_rate hold {keys[0]} and others, wanted are {run.pairs}"
        told += ", one for each pair"
    expect(same, f"{call}: {told}")
    return {key: {n: column[i] for n, column in columns.items()} for i, key in enumerate(keys)}


def _why(columns, name):
    if any(isinstance(cell, dict) and cell["is"] == "dict" for c in columns.values() for cell in c):
        return "a column holds whole dicts: join train_fn's to the row, row | result"
    return "what train_fn returns belongs into the row"
