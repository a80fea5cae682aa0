"""The figures of memory show the numbers that they are given."""

import matplotlib.pyplot as plt
import pytest
from real_steps import sized

from labkit.memory import plots
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate


def test_bars_stack_to_the_total_and_show_the_limit():
    rows = {"full": {"weights": 4e9, "gradients": 2e9}, "lora": {"weights": 2e9, "optimizer": 1e9}}
    fig = plots.bars(rows, "Full is twice LoRA", limit=8e9)
    ax, ends = fig.axes[0], {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == {0: 6, 1: 3}
    texts = {text.get_text().strip() for text in ax.texts}
    assert {"6 GB", "3 GB", "8 GB card"} <= texts
    assert not plt.fignum_exists(fig.number)


def test_the_timeline_marks_the_phases_and_reaches_the_peak():
    """Of hundreds of events few are drawn, the highest among them."""
    config = sized((64, 128, 24, 4, 4, 300, False))
    step = simulate(config, Settings(seq=32), timeline=True)
    ax = plots.bars_and_timeline({"simulated": step.by_category}, step, "One step").axes[1]
    assert {"forward", "backward", "step"} <= {text.get_text().strip() for text in ax.texts}
    drawn = [area.get_paths()[0].vertices for area in ax.collections]
    assert max(corners[:, 1].max() for corners in drawn) == pytest.approx(step.peak / 1e9, rel=0.01)
    assert max(corners[:, 0].max() for corners in drawn) < len(step.timeline.held) / 2
