"""Figures of lab 1."""

import numpy as np
from matplotlib.ticker import PercentFormatter

from labkit.plots import INK, PALETTE, figure, headed, likely

BLUE, ORANGE, GREEN, PINK, YELLOW = PALETTE[:5]
GREY = "#777777"  # whatever is random
# colour and marker of a series, the same in every figure
LOOKS = dict.fromkeys(("trained", "weights"), (GREEN, "o"))
LOOKS |= dict.fromkeys(("random", "chance"), (GREY, "o"))
LOOKS |= dict.fromkeys(("update", "full", "Adam"), (ORANGE, "s"))
LOOKS |= dict.fromkeys(("ceiling", "Adam, 7 steps"), (YELLOW, "^"))
LOOKS |= {"SGD": (PINK, "D"), "LoRA": (BLUE, "o")}


def rank_grid(pictures, errors):
    """Grey pictures in two rows; both arguments map a rank to a picture or its error (0 to 1)."""
    fig, axes = figure(len(pictures) // 2, width=9.5, height=6.0, n_rows=2)
    for ax, r in zip(axes.flat, pictures, strict=True):
        _picture(ax, pictures[r], f"r = {r} · error {errors[r]:.1%}")
    good = min(r for r in errors if errors[r] < 0.1)
    return headed(fig, f"Rank {good} of {max(errors)} is within 10% of the photograph")


def one_picture(picture, title):
    """One grey picture (0 black to 1 white) under its title."""
    fig, ax = figure(width=3.4, height=4.0)
    _picture(ax, picture, title)
    return fig


def _picture(ax, picture, title):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=10, weight="normal")
    ax.axis("off")


def error_and_cost(costs, errors, r_even, guess):
    """Error against numbers stored, both as shares; `errors` maps a name to a list; `guess` in %.

    The guess is of the second list, at a fifth of the numbers.
    """
    fig, ax = figure(height=3.4)
    fifth = fifth_of(costs)
    for (name, values), colour in zip(errors.items(), (BLUE, GREY), strict=True):
        ax.plot(_percent(costs), _percent(values), color=colour)
        where = (100 * costs[2 * fifth], 100 * values[2 * fifth])
        ax.annotate(name, where, (6, 6), textcoords="offset points", color=colour)
        ax.plot(100 * costs[fifth], 100 * values[fifth], color=colour, marker="o")
    ax.axvline(100, color=INK, ls=":", lw=1.2)
    ax.text(101, 98, f" r = {r_even} is the last\n that saves", va="top", color=INK)
    ax.set(xlim=(0, 135), ylim=(0, 102), ylabel="relative error")
    ax.set_xlabel("numbers stored, as a share of the matrix")
    _in_percent(ax.xaxis, ax.yaxis)
    photo, noise = (values[fifth] for values in errors.values())
    told = f"error {photo:.0%} on the photograph, {noise:.0%} on noise"
    ax.set_title(f"{costs[fifth]:.0%} of the numbers: {told}")
    guess.draw(ax)
    return fig


def fifth_of(costs):
    """The place in `costs`, which grow, of the one that is nearest to a fifth."""
    return int(np.abs(np.array(costs) - 0.2).argmin())


def _percent(values):
    return [100 * value for value in values]


def _in_percent(*axes):
    """Percent signs at ticks that are percentages; guesses are in percent, too."""
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(100, decimals=0))


def spectra(real, random):
    """Singular values over |W|, a panel for each name; both arguments map a name to an array."""
    fig, axes = figure(len(real), width=8.4, height=3.4, sharey=True)
    counts = []
    for ax, (name, s) in zip(axes, real.items(), strict=True):
        chance, trained = (values / np.linalg.norm(values) for values in (random[name], s))
        largest, above = chance[0], int((trained > chance[0]).sum())
        ax.plot(chance, color=GREY, ls="--")
        ax.plot(trained, color=GREEN)
        ax.axhline(largest, color=INK, ls=":", lw=1.2)
        ax.fill_between(range(above), trained[:above], largest, color=GREEN, alpha=0.35)
        counts.append(f"{above} in {name}")
        ax.set_title(name, fontsize=10.5, weight="normal")
        ax.set(yscale="log", xlabel="position", ylim=(1e-3, 0.3))
    axes[0].set_ylabel("singular value / |W|")
    axes[0].text(310, 0.045, "random", color=GREY)
    axes[0].text(25, 0.2, "trained", color=GREEN)
    axes[1].text(len(trained) / 30, 0.15, "dotted: largest random", color=INK, fontsize=9)
    told = "Block 15: singular values above the largest of a random matrix:"
    return headed(fig, f"{told}\n{', '.join(counts)}")


def rank_strips(panels, title, guess=None, top=None):
    """Dots by kind of projection, an axis a panel, up to `top`; a guess is of the first.

    `panels` maps an axis label to {series: {kind: values}}; a series of one value a kind is
    drawn as a dash. The title is of the first panel, the others have their medians above them.
    """
    fig, axes = figure(len(panels), width=8.4, height=3.6, squeeze=False)
    for ax, (label, series) in zip(axes[0], panels.items(), strict=True):
        guessed = ax is axes[0][0] and guess and guess.value is not None
        room = (1.5 if guessed else 0.5) * len(panels)  # for names, and for a guess beside them
        _strip(ax, label, series, room, top)
    for ax, series in zip(axes[0][1:], list(panels.values())[1:], strict=True):
        medians = [np.median(np.concatenate(list(kinds.values()))) for kinds in series.values()]
        told = [f"{m:.{int(m < 10)}f} {name}" for m, name in zip(medians, series, strict=True)]
        ax.set_title(f"median: {', '.join(told)}", fontsize=10.5, weight="normal")
    if guess:
        guess.draw(axes[0][0])
    return headed(fig, title)


def _strip(ax, label, series, room, top=None):
    """Dots by kind, the name of each series beside its last kind; no name lies over another."""
    for name, kinds in series.items():
        _dots(ax, kinds, *LOOKS[name])
    ax.set(ylabel=label, ylim=(0, top), xlim=(-0.6, len(kinds) + room))
    last = {name: np.median(list(kinds.values())[-1]) for name, kinds in series.items()}
    gap = 0.07 * ax.get_ylim()[1]
    below = -gap / 2  # none lies over the axis
    for name, height in sorted(last.items(), key=lambda item: item[1]):
        below = max(height, below + gap)
        style = {"color": LOOKS[name][0], "va": "center", "textcoords": "offset points"}
        ax.annotate(name, (len(series[name]) - 0.7, below), (7, 0), **style)


def _dots(ax, kinds, colour, marker):
    """The values of each kind of projection side by side; one alone is a dash."""
    for x, values in enumerate(kinds.values()):
        single = len(values) == 1
        spread = np.linspace(-0.25, 0.25, len(values)) if not single else [0]
        dash, dot = {"marker": "_", "s": 420, "lw": 2}, {"marker": marker, "s": 15, "alpha": 0.75}
        ax.scatter(x + np.array(spread), values, color=colour, **(dash if single else dot))
    ax.set_xticks(range(len(kinds)), [kind.removesuffix("_proj") for kind in kinds])
    ax.set_xlabel("kind of matrix (dots: first block to last)")
    ax.grid(axis="x", visible=False)


def energy_and_gain(ranks, energy, gain, right, right_uncut, n, guess):
    """What a cut to each rank keeps of energy and gain, and the share of n answers that is right.

    All are shares; `right_uncut` is that of the whole update, and `guess` is of the gain, in %.
    """
    fig, ax = figure(height=4.4)
    for name, values, colour, marker in (
        ("loss gain kept", gain, BLUE, "o"),
        ("energy kept", energy, ORANGE, "s"),
        (f"of {n} answers right (band: 95% interval)", right, GREEN, "^"),
    ):
        ax.plot(ranks, _percent(values), color=colour, marker=marker, label=name, clip_on=False)
    ax.fill_between(ranks, *_percent(likely(np.array(right), n)), color=GREEN, alpha=0.15, lw=0)
    low, high = likely(right_uncut, n)
    uncut = f"answers right, uncut: {right_uncut:.0%} (95%: {low:.0%} to {high:.0%})"
    ax.axhline(100 * right_uncut, color=GREEN, ls=":", lw=1.5, label=uncut)
    ax.set(xscale="log", xlabel="rank that every update is cut to", ylim=(0, 106))
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.minorticks_off()
    ax.set_ylabel("share of gain, energy or answers")
    _in_percent(ax.yaxis)
    fig.legend(loc="outside lower center", ncols=2, fontsize=9)
    at = ranks.index(8)
    kept = f"Rank 8 keeps {energy[at]:.0%} of the energy and {gain[at]:.0%} of the gain"
    ax.set_title(
        f"{kept};\nof {n} answers {right[at] * n:.0f} are right, {right_uncut * n:.0f} uncut"
    )
    guess.draw(ax)
    return fig


def parts_of_update(parts):
    """Paired bars; `parts` maps what is kept of the update to (share of energy, of the gain)."""
    fig, ax = figure(height=1.1 + 0.55 * len(parts))
    y = np.arange(len(parts))[::-1]
    for shift, which, name, colour in ((0.19, 0, "energy", ORANGE), (-0.19, 1, "gain", BLUE)):
        values = [100 * pair[which] for pair in parts.values()]
        ax.barh(y + shift, values, height=0.34, color=colour)
        for place, value in zip(y + shift, values, strict=True):
            ax.text(max(value, 0) + 1, place, f"{value:.0f}% {name}", va="center", color=colour)
    ax.set_yticks(y, list(parts))
    gains = [gain for _, gain in parts.values()]
    ax.set(xlim=(100 * min(0, *gains), 122), xlabel="share of the full update")
    _in_percent(ax.xaxis)
    ax.grid(axis="y", visible=False)
    told = f"At one size, directions 1 to 8 gain {gains[0]:.0%}, 8 random inputs {gains[-1]:.0%};"
    return headed(fig, f"{told}\nthe smaller part in directions 9 to 16 gains {gains[1]:.0%}")


def ways_of_rank_8(results, n):
    """Held-out loss, and the share of n answers right; `results` maps a way to these two."""
    fig, axes = figure(2, width=8.4, height=1 + 0.42 * len(results), sharey=True)
    y = np.arange(len(results))[::-1]
    losses, shares = (np.array(values) for values in zip(*results.values(), strict=True))
    low, high = likely(shares, n)
    look = {"color": [ORANGE, YELLOW, BLUE], "height": 0.6, "ecolor": INK, "capsize": 3}
    axes[0].barh(y, losses, **look)
    axes[1].barh(y, 100 * shares, xerr=100 * np.abs([shares - low, high - shares]), **look)
    for place, loss, share, end in zip(y, losses, shares, high, strict=True):
        axes[0].text(loss, place, f" {loss:.3f}", va="center")
        axes[1].text(100 * end, place, f" {share:.0%}", va="center")
    axes[0].set(xlabel="held-out loss (nats a token)", xlim=(0, 1.2 * losses.max()))
    axes[1].set(xlabel=f"of {n} answers right (line: 95% interval)", xlim=(0, 120 * high.max()))
    _in_percent(axes[1].xaxis)
    axes[0].set_yticks(y, list(results))
    axes[1].tick_params(axis="y", left=False)
    for ax in axes:
        ax.grid(axis="y", visible=False)
    full, cut, trained = losses
    told = f"{trained:.2f} if trained, {cut:.2f} if cut from the full update ({full:.2f})"
    return headed(fig, f"Held-out loss at rank 8: {told}")


def two_optimizers(spectra, ranks, title):
    """Singular values of one update by optimizer, and the rank for 90% of the energy of many.

    `spectra` maps an optimizer to an array (of q_proj in block 15), `ranks` to {kind: values}.
    """
    fig, axes = figure(2, width=8.4, height=3.6, width_ratios=(1, 1.4))
    for name, s in spectra.items():
        colour, x = LOOKS[name][0], np.arange(1, len(s) + 1)
        line = "--" if "steps" in name else "-"
        axes[0].plot(x, s / np.linalg.norm(s), color=colour, label=name, ls=line)
    axes[0].set(xscale="log", yscale="log", ylim=(1e-4, 1), xlabel="position (q of block 15)")
    axes[0].set_ylabel("singular value / |update|")
    axes[0].legend(loc="lower left")
    _strip(axes[1], "rank for 90% of the energy", ranks, 2)
    return headed(fig, title)


def learned_factors(errors, bound, A_learned, A_svd):
    """How a trained B A nears the Eckart-Young bound, and the angles between the rows of A."""
    fig, axes = figure(3, width=8.4, height=3, width_ratios=(1.5, 1, 1))
    axes[0].plot(errors, color=BLUE)
    axes[0].axhline(bound, color=INK, ls=":", lw=1.5)
    axes[0].text(0, bound - 0.01, f"Eckart-Young bound {bound:.3f}", va="top", color=INK)
    spot = (len(errors) // 8, errors[len(errors) // 8])
    axes[0].annotate("learned B A", spot, (8, 4), textcoords="offset points", color=BLUE)
    axes[0].set(xlabel="step", ylabel="relative error", ylim=(bound - 0.12, None))
    mine, theirs = (M / np.linalg.norm(M, axis=1, keepdims=True) for M in (A_learned, A_svd))
    for ax, other, name in ((axes[1], mine, "learned rows"), (axes[2], theirs, "the SVD's rows")):
        ax.imshow(np.abs(mine @ other.T), cmap="Blues", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], xlabel=f"|cosine| with {name}\n(white 0, dark blue 1)")
    axes[1].set_ylabel("rows of the learned A")
    told = f"The learned product's error ends at {errors[-1]:.3f}, the bound is {bound:.3f};"
    return headed(fig, f"{told}\neach learned row is a mixture of the SVD's")


def intruders_by_size(sizes, grown, trained, n_directions):
    """Intruders against the size of the update, as a share of |W0|; a list for each way.

    `trained` maps a way to their number as it was trained.
    """
    fig, ax = figure(height=3.4)
    for (way, values), colour, marker in zip(grown.items(), (BLUE, ORANGE), "os", strict=True):
        label = f"{way} ({trained[way]} as trained)"
        ax.plot(_percent(sizes), values, color=colour, marker=marker, label=label)
    ax.set(xlabel="size of the update, as a share of |W0|", xlim=(0, None), ylim=(-1, None))
    ax.set_ylabel(f"intruders of {n_directions} directions")
    _in_percent(ax.xaxis)
    ax.legend(loc="upper left")
    found = [", ".join(f"{way} {values[at]}" for way, values in grown.items()) for at in (0, -1)]
    told = f"{found[0]} where updates are {sizes[0]:.0%} of |W0|"
    ax.set_title(f"Intruders: {told},\n{found[1]} where they are {sizes[-1]:.0%}")
    return fig


def intrinsic(dims, accuracies, full, d90):
    """Accuracy against dimension; the last three map the number of parameters D to their values."""
    fig, ax = figure(height=3.7)
    looks = (BLUE, "o", (-8, 10), "right", 0), (ORANGE, "s", (10, -14), "left", 4)
    spot = len(dims) // 2
    for D, (colour, marker, shift, side, offset) in zip(accuracies, looks, strict=True):
        values = accuracies[D]
        ax.plot(dims, values, color=colour, marker=marker, ms=5)
        dashes = {"ls": (offset, (4, 4)), "lw": 1.2}  # which take turns where two lines are one
        ax.plot([d90[D]] * 2, [0, values[dims.index(d90[D])]], color=colour, **dashes)
        where = {"xytext": shift, "textcoords": "offset points", "ha": side}
        ax.annotate(f"D = {D:,}", (dims[spot], values[spot]), color=colour, **where)
    level = 0.9 * np.mean(list(full.values()))
    ax.axhline(level, color=INK, ls=":", lw=1.2)
    ax.text(dims[0], level - 0.02, "90% of full training", va="top", color=INK)
    ax.axhline(0.1, color=INK, ls="-.", lw=1.2)
    ax.text(dims[3], 0.09, "guessing one of ten", va="top", color=INK)
    ax.set(xscale="log", xlabel="dimension d of the subspace", ylabel="accuracy", ylim=(0, 1.03))
    ax.set_xticks(dims, [str(d) for d in dims])
    ax.minorticks_off()
    texts = [f"d = {d} at D = {D:,}" for D, d in d90.items()]
    ax.set_title(f"90% of full training: {', '.join(texts)}")
    return fig
