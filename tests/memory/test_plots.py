"""The figures of memory show the numbers that they are given."""

import matplotlib.pyplot as plt
import pytest
from real_steps import sized

from labkit.memory import plots
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate


def test_the_timeline_marks_the_phases_and_reaches_the_peak():
    """Of hundreds of events few are drawn, the highest among them."""
    config = sized((64, 128, 24, 4, 4, 300, False))
    step = simulate(config, Settings(seq=32), timeline=True)
    rows = {"full": {"weights": 4e9, "gradients": 2e9}, "lora": {"weights": 2e9, "optimizer": 1e9}}
    left, ax = plots.bars_and_timeline(rows, step, "One step", limit=8e9).axes
    assert {"6", "3", "8 GB card", "optimizer"} <= {text.get_text() for text in left.texts}
    assert [bar.get_height() for bar in left.patches] == [4, 2, 2, 0, 0, 1]
    assert not plt.fignum_exists(plots.bars(rows, "Full is twice LoRA").number)
    assert {"forward", "backward", "step"} <= {text.get_text().strip() for text in ax.texts}
    drawn = [area.get_paths()[0].vertices for area in ax.collections]
    assert max(corners[:, 1].max() for corners in drawn) == pytest.approx(step.peak / 1e9, rel=0.01)
    assert max(corners[:, 0].max() for corners in drawn) < len(step.timeline.held) / 2
