"""Right answers pass, wrong ones hear what was thought, stubs are not written: of every lab."""

import pytest
from answers import LABS, cases, seeds

from labkit import contract


def _listed(kind):
    """`pytest.mark.parametrize` with the cases of all labs, each at its seeds."""
    return pytest.mark.parametrize(
        ("case", "seed"),
        [
            pytest.param(
                case,
                seed,
                id=f"lab{number} {case}, seed {seed}",
                marks=pytest.mark.xdist_group(f"lab{number}"),
            )
            for number in LABS
            for case in cases(number, kind)
            for seed in seeds(number, kind)
        ],
    )


@pytest.fixture(autouse=True)
def at_seed(seed, monkeypatch):
    """The inputs of the checks come from the seed of the case."""
    monkeypatch.setattr(contract.session, "seed", seed)


@_listed("RIGHT")
def test_right(case, accepts):
    accepts(case.check, *case.objects)


@_listed("WRONG")
def test_wrong(case, rejects):
    message = rejects(case.check, *case.objects)
    assert any(word in message for word in case.words), message


@_listed("STUBS")
def test_stub(case, not_written):
    not_written(case.check, *case.objects)
