"""Summarize studies for the evidence pages and lab 5: best rates, and the rates needed."""

import numpy as np
import pandas as pd

NAMES = {  # names in the files -> names for readers
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
    "linear TF-IDF": "TF-IDF",
    "linear on characters": "TF-IDF of characters",
}


def at_best_rate(
    runs: pd.DataFrame, by: str = "method", score: str = "loss", lowest: bool = True
) -> pd.DataFrame:
    """Select each `by`'s runs at the rate with the best mean score, with readable names.

    Failed runs are excluded. A rate with fewer seeds than the others is never chosen, since one
    lucky seed could win.
    """
    runs = runs.dropna(subset=[score]).fillna({"learning_rate": 0}).replace({"method": NAMES})
    tried = runs.groupby([by, "learning_rate"])[score].agg(["mean", "size"]).reset_index()
    tried = tried[tried["size"] == tried.groupby(by)["size"].transform("max")]
    best = tried.sort_values("mean", ascending=lowest).drop_duplicates(by)
    return runs.merge(best[[by, "learning_rate"]], on=[by, "learning_rate"])


def with_alpha(runs: pd.DataFrame) -> pd.DataFrame:
    """The rank study, with alpha as in alpha / r: rsLoRA's effective alpha is alpha sqrt(r)."""
    rows = runs[runs["study"] == "rank"].dropna(subset=["loss"]).copy()
    stable = rows["variant"] == "rslora"
    rows["alpha"] = rows["alpha"].where(~stable, rows["alpha"] * rows["rank"] ** 0.5).round()
    return rows


def rates_reaching(runs: pd.DataFrame, loss: float) -> pd.DataFrame:
    """Find the lowest rate at which each run reaches `loss`: columns alpha, rank, seed, rate.

    Interpolates in the logarithm of the rate. Settings whose lowest rate is already below `loss`
    are excluded.
    """
    found = []
    for (alpha, rank, seed), part in with_alpha(runs).groupby(["alpha", "rank", "seed"]):
        part = part.sort_values("learning_rate")
        rates, losses = np.log(part["learning_rate"].to_numpy()), part["loss"].to_numpy()
        for i in range(len(rates) - 1):
            if losses[i] >= loss > losses[i + 1]:
                share = (losses[i] - loss) / (losses[i] - losses[i + 1])
                rate = np.exp(rates[i] + share * (rates[i + 1] - rates[i]))
                found.append({"alpha": alpha, "rank": rank, "seed": seed, "rate": rate})
                break
    return pd.DataFrame(found)


def exponent(reached: pd.DataFrame) -> float:
    """Estimate the power of alpha with which the rate falls, from a line fit in log space."""
    return float(np.polyfit(np.log(reached["alpha"]), np.log(reached["rate"]), 1)[0])
