"""Count the planted copies that `labkit grade --similar` finds, and its false alarms.

    python benchmarks/similar.py 04_qlora 07_ship

The class has 200 submissions with randomly chosen answers, no two of which share more than two
thirds of their answers verbatim. It also has 40 copies of some (different names, order and
comments), then 40 submissions that take half of their answers from another one. Nothing is graded.
"""

import argparse
import random

import classroom

from labkit.grading.after import similar


def measured(stem, n=200, copies=40, share=1.0, seed=0):
    """Planted copies that are found, and innocents and pairs of them that are listed."""
    rng = random.Random(seed)
    own = {f"own{i}": cells for i, cells in enumerate(classroom.independents(stem, rng, n))}
    of = {f"copy{i}": name for i, name in enumerate(rng.sample(sorted(own), copies))}
    made = {
        copy: classroom.independent(stem, rng) | classroom.copied(own[name], rng, share)
        for copy, name in of.items()
    }
    found = {frozenset(pair.names): pair.share for pair in similar.pairs(stem, own | made)}
    planted = {frozenset(pair) for pair in of.items()}
    # of copies of one original two are alike, too; that says nothing of an innocent
    false = [pair for pair in found if all(name.startswith("own") for name in pair)]
    return {
        "found": len(planted & found.keys()) / copies,
        "false pairs": len(false) / (n * (n - 1) / 2),
        "false submissions": len(set().union(*false)) / n,
        "least": min((found[p] for p in planted & found.keys()), default=None),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labs", nargs="+", help="such as 04_qlora")
    for stem in parser.parse_args().labs:
        for share in 1.0, 0.5:
            told = measured(stem, share=share)
            print(stem, f"{share:.0%} copied:", ", ".join(f"{k} {v}" for k, v in told.items()))


if __name__ == "__main__":
    main()
