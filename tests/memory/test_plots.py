"""The figures of memory show the numbers that they are given."""

import matplotlib.pyplot as plt
import pytest
import transformers

from labkit.memory import plots
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate


@pytest.fixture(scope="module")
def step():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, vocab_size=300)
    return simulate(config, Settings(seq=32), timeline=True)


def test_bars_stack_to_the_total_and_show_the_limit():
    rows = {"full": {"weights": 4e9, "gradients": 2e9}, "lora": {"weights": 2e9, "optimizer": 1e9}}
    fig = plots.bars(rows, "Full is twice LoRA", limit=8e9)
    ax = fig.axes[0]
    ends = {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == {0: 6, 1: 3}
    texts = {text.get_text().strip() for text in ax.texts}
    assert {"6 GB", "3 GB", "8 GB card"} <= texts
    assert ax.get_title(loc="left") + ax.get_title() == "Full is twice LoRA"
    assert not plt.fignum_exists(fig.number)


def test_the_timeline_marks_the_phases_and_reaches_the_peak(step):
    rows = {"simulated": step.by_category}
    ax = plots.bars_and_timeline(rows, step, "One step").axes[1]
    assert {"forward", "backward", "step"} <= {text.get_text().strip() for text in ax.texts}
    top = max(area.get_paths()[0].vertices[:, 1].max() for area in ax.collections)
    assert top == pytest.approx(step.peak / 1e9, rel=0.01)


def test_thinning_keeps_the_peak(step):
    held, starts = plots._thinned(step.timeline, n=20)
    assert held.sum(axis=1).max() == step.peak
    assert len(held) < 60 and all(0 <= at <= len(held) for at in starts.values())
