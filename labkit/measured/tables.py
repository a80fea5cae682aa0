"""What lab 5 makes of the rows of many runs: costs, best rates, gaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

# methods as a reader knows them, by their names in the files
NAMES = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "rslora": "rsLoRA",
    "lora+": "LoRA+",
    "lora-fa": "LoRA-FA",
    "dora": "DoRA",
    "miss": "MiSS",
    "pissa": "PiSSA",
    "olora": "OLoRA",
}


def param_table(shapes: dict[str, tuple[int, int]], ranks: Sequence[int]) -> pd.DataFrame:
    """What LoRA trains on the matrices `{name: (d_out, d_in)}`: columns rank, trainable, percent.

    `percent` is of the numbers in these same matrices. PEFT's is lower: of the whole model, with
    embeddings and adapter.
    """
    dense = sum(d_out * d_in for d_out, d_in in shapes.values())
    sides = sum(d_out + d_in for d_out, d_in in shapes.values())
    table = pd.DataFrame({"rank": list(ranks)})
    table["trainable"] = table["rank"] * sides
    table["percent"] = 100 * table["trainable"] / dense
    return table


def overfit_gap(history: pd.DataFrame) -> pd.DataFrame:
    """One row a rank of `history` (rank, step, train_loss, held_out_loss, in any order).

    Columns: `rank`; `best_step`, the first with the lowest held-out loss; `gap`, held-out minus
    training loss at the last step; `rise`, held-out loss at the last step above the lowest.
    """
    rows = []
    for rank, part in history.sort_values("step").groupby("rank"):
        last, best = part.iloc[-1], part.loc[part["held_out_loss"].idxmin()]
        gap = last["held_out_loss"] - last["train_loss"]
        rise = last["held_out_loss"] - best["held_out_loss"]
        rows.append({"rank": rank, "best_step": int(best["step"]), "gap": gap, "rise": rise})
    return pd.DataFrame(rows)


def in_groups(counts: pd.DataFrame, group_of: dict[str, str]) -> pd.DataFrame:
    """A square table of counts with its rows and columns summed by group: `{label: group}`."""
    return counts.groupby(group_of).sum().T.groupby(group_of).sum().T


def with_alpha(runs: pd.DataFrame) -> pd.DataFrame:
    """The rank study's runs, with alpha as the factor alpha / r has it.

    A rank-stabilised run has the factor alpha / sqrt(r): as much as alpha sqrt(r) over r.
    """
    rows = runs[runs["study"] == "rank"].dropna(subset=["loss"]).copy()
    stable = rows["variant"] == "rslora"
    root = rows["rank"] ** 0.5
    rows["alpha"] = rows["alpha"].where(~stable, rows["alpha"] * root).round().astype(int)
    return rows


def best_runs(runs: pd.DataFrame, setting: list[str], score: str, lowest: bool) -> pd.DataFrame:
    """Of each `setting` (columns) the runs at the learning rate whose mean score is best.

    Failed runs are left out. Of rates that have fewer runs than another one, none is chosen: a
    lucky seed alone would win. The best is the lowest where `lowest`, else the highest.
    """
    runs, at = runs.dropna(subset=[score]), [*setting, "learning_rate"]
    tried = runs.groupby(at)[score].agg(["mean", "size"]).reset_index()
    tried = tried[tried["size"] == tried.groupby(setting)["size"].transform("max")]
    best = tried.sort_values("mean", ascending=lowest).drop_duplicates(setting)
    return runs.merge(best[at], on=at)


def against(runs: pd.DataFrame, other: str, paired: Callable) -> pd.DataFrame:
    """Each method's mean loss at its best rate, and its difference from `other`'s in percent.

    `runs` has method, seed, loss, learning_rate, of each method the best rate alone. `paired` is
    the learner's `paired_difference`: of a frame with method, seed, score.
    """
    frame = runs.rename(columns={"loss": "score"})
    base = frame.loc[frame["method"] == other, "score"].mean()
    rows = []
    for method, part in frame.groupby("method"):
        mean, error = paired(frame, method, other)
        rows.append(
            {
                "method": method,
                "seeds": len(part),
                "rate": part["learning_rate"].iloc[0],
                "loss": part["score"].mean(),
                "difference_percent": 100 * mean / base,
                "error_percent": 100 * error / base,
            }
        )
    return pd.DataFrame(rows).sort_values("loss").reset_index(drop=True)


def errors_of_chance(n: int) -> float:
    """How many standard errors n differences average to by chance in one of twenty cases.

    Two-sided quantiles of Student's t with n - 1 degrees of freedom; inf where no error is known.
    """
    few = {2: 12.7, 3: 4.3, 4: 3.2, 5: 2.8, 6: 2.6}
    return few.get(n, 2.5 if n > 6 else float("inf"))


def chance(table: pd.DataFrame) -> pd.Series:
    """How large a difference chance makes in each row of `against`, in percent; NaN: not known."""
    return table["seeds"].map(errors_of_chance) * table["error_percent"]


def verdict(table: pd.DataFrame, other: str) -> str:
    """Which variants in a table of `against` differ from `other` by more than chance, in a line.

    Full fine-tuning is no variant, and has a second line where it is in the table.
    """
    rivals = table[~table["method"].isin([other, NAMES["full"]])]
    if rivals.empty:
        return f"Nothing to compare with {other} yet"
    beyond = table["difference_percent"].abs() > chance(table)  # False where no error is known
    apart = ", ".join(rivals.loc[beyond[rivals.index], "method"])
    told = f"Of {len(rivals)} variants {apart or 'none'} differs from {other} beyond chance"
    if single := sum(rivals["error_percent"].isna()):
        told += f" ({single} with one seed: no error is known)"
    for full in table[table["method"] == NAMES["full"]].itertuples():
        off = f"{full.difference_percent:+.0f} ± {full.error_percent:.1f}%"
        sure = "beyond" if beyond[full.Index] else "within"
        told += f";\n{full.method}: {off} ({full.seeds} seeds), {sure} chance"
    return told


def standing(rungs: pd.DataFrame, answers: pd.DataFrame, wanted: Sequence[str]) -> str:
    """Two lines on the two best methods of a table with accuracy (%) and seeds, by method.

    `answers` has a row a ticket and a column a method and seed. The difference is taken ticket by
    ticket, with the seeds averaged, and has a standard error over tickets.
    """
    first, second = rungs.sort_values("accuracy", ascending=False).iloc[:2].itertuples()
    both = [f"{NAMES.get(m.Index, m.Index)} {m.accuracy:.1f}%" for m in (first, second)]
    told = ", ".join(both)
    seeds = int(min(first.seeds, second.seeds))
    if seeds < 3:
        return f"Highest: {told};\ntoo few seeds for a winner"
    right = answers.eq(pd.Series(list(wanted)), axis=0).astype(float)
    pairs = [right[f"{first.Index} {k}"] - right[f"{second.Index} {k}"] for k in range(seeds)]
    gap = 100 * sum(pairs) / seeds
    return f"Highest: {told};\nticket by ticket {gap.mean():.1f} ± {gap.sem():.1f} points apart"
