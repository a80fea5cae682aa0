"""The figures of memory show the numbers that they are given."""

import pytest
from real_steps import sized

from labkit.memory import plots
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate


def test_the_timeline_marks_the_phases_and_reaches_the_peak():
    """Of hundreds of events few are drawn, the highest among them."""
    config = sized((64, 128, 24, 4, 4, 300, False))
    step = simulate(config, Settings(seq=32), timeline=True)
    rows = {"simulated": step.by_category}
    left, ax = plots.bars_and_timeline(rows, step, "One step", limit=8e9).axes
    assert left.texts[-1].get_text() == "8 GB card"
    assert max(bar.get_y() + bar.get_height() for bar in left.patches) == step.peak / 1e9
    assert {"forward", "backward", "step"} <= {text.get_text().strip() for text in ax.texts}
    drawn = [area.get_paths()[0].vertices for area in ax.collections]
    assert max(corners[:, 1].max() for corners in drawn) == pytest.approx(step.peak / 1e9, rel=0.01)
    assert max(corners[:, 0].max() for corners in drawn) < len(step.timeline.held) / 2
