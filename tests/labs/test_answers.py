"""Right answers pass, wrong ones hear what was thought, half-written ones are not written.

What is not written at all stands in the student notebooks: test_unsolved.py.
"""

import pytest
from answers import STEMS, half_written, right, wrong

from labkit import contract


def _listed(cases, n_seeds=1):
    """`pytest.mark.parametrize` with the cases of all labs, each with the inputs of some seeds."""
    return pytest.mark.parametrize(
        ("case", "seed"),
        [
            pytest.param(
                case,
                seed,
                id=f"lab{stem[:2]} {case}, seed {seed}",
                marks=pytest.mark.xdist_group(f"lab{stem[:2]}"),
            )
            for stem in STEMS
            for case in cases(stem)
            for seed in range(n_seeds)
        ],
    )


@pytest.fixture(autouse=True)
def at_seed(seed, monkeypatch):
    """The inputs of the checks come from the seed of the case."""
    monkeypatch.setattr(contract.session, "seed", seed)


@_listed(right, n_seeds=3)
def test_right(case, accepts):
    accepts(case.check, *case.objects)


@_listed(wrong)
def test_wrong(case, rejects):
    assert case.words in rejects(case.check, *case.objects)


@_listed(half_written)
def test_a_stub_among_written_functions(case, not_written):
    not_written(case.check, *case.objects)
