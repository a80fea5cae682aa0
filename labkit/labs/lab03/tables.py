"""Tables of lab 3."""

NAMES = {0: "full", 4: "LoRA, r=4", 64: "LoRA, r=64"}


def forgotten(runs):
    """The runs of benchmarks/forgetting.py that trained, with `way` and `rise`.

    `way` is method and rate; `rise` is what the perplexity on everyday English has grown by, in %.
    """
    base = runs.loc[runs["study"] == "base", "perplexity"].item()
    runs = runs[runs["study"] != "base"]
    rates = runs["rate"].map(" at {:.0e}".format).str.replace("e-0", "e-")
    return runs.assign(
        way=runs["rank"].map(NAMES) + rates, rise=100 * (runs["perplexity"] / base - 1)
    )


def by_way(runs):
    """Means over seeds for each way of training; the standard error is that of `rise`, in %."""
    groups = forgotten(runs).groupby("way", sort=False)
    table = groups.agg(
        seeds=("seed", "size"),
        steps=("steps", "mean"),
        task_loss=("task_loss", "mean"),
        rise=("rise", "mean"),
        error=("rise", "sem"),
        change=("change", "mean"),
        intruders=("intruders", "mean"),
    )
    names = {"rise": "perplexity +%", "error": "± standard error", "change": "|ΔW| / |W|"}
    return table.round({"steps": 1, "rise": 1, "error": 1, "change": 4}).rename(columns=names)
