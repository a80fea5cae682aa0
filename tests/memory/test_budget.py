"""The closed form agrees with the simulation: to the byte on what stays, closely at the peak."""

import pytest
import transformers
from real_steps import sized

from labkit.errors import LabError
from labkit.memory import budget, configs
from labkit.memory.dimensions import FAMILY, NoClosedForm
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate

CASES = [
    {},
    {"method": "full"},
    {"method": "full", "dtype": "bfloat16", "optim": "adamw_torch"},
    {"method": "full", "checkpointing": True, "attention": "eager"},
    {"method": "full", "autocast": False},
    {"method": "qlora", "optim": "paged_adamw_8bit", "checkpointing": True},
    {"method": "qlora", "optim": "adamw_bnb_8bit", "prepare_kbit": True, "accumulation": 2},
    {"method": "qlora", "double_quant": False, "optim": "paged_adamw_32bit"},
    {"targets": "q_proj,v_proj", "rank": 4, "answer_tokens": 16},
    {"padded": True, "batch": 3},
    {"attention": "eager", "batch": 2},
    {"dropout": 0.1, "autocast": False},
    {"adapter_dtype": "bfloat16", "rank": 64},
    {"dtype": "float32"},
    {"method": "dpo", "batch": 2, "seq": 256},
    {"method": "full", "objective": "dpo", "checkpointing": True, "seq": 128},
]


def config_of(model):
    """A Llama with every bias, or three layers of a built-in model: all are alike."""
    if model == "biased":
        config = sized((128, 320, 3, 4, 2, 1000, False))
        config.attention_bias = config.mlp_bias = True
    else:
        config = configs.find(model)
        config.num_hidden_layers = 3
    return config


BIASED = pytest.param("biased", marks=pytest.mark.thorough)
QWEN = pytest.param("qwen3-0.6b", marks=pytest.mark.thorough)


@pytest.mark.parametrize("model", ["smollm2-135m", QWEN, BIASED])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_static_terms_are_exact_and_the_peak_is_close(model, case):
    config, settings = config_of(model), Settings(**case)
    simulated, closed = simulate(config, settings), budget.closed_form(config, settings)
    assert closed.static() == simulated.static
    # the estimate of what a layer's backward allocates weighs more in the tiny model
    assert closed.peak == pytest.approx(simulated.peak, rel=0.05 if model == "biased" else 0.01)


@pytest.mark.parametrize("method", ["qlora", "dpo"])
def test_each_term_has_a_name_a_formula_and_a_source(method):
    closed = budget.closed_form(configs.find("llama-2-7b"), Settings(method=method))
    assert len({term.name for term in closed.terms}) == len(closed.terms)
    for term in closed.terms:
        assert term.bytes > 0 and term.formula and term.source


COVERED = {  # of each family one with tied embeddings and one without
    (config["model_type"], config.get("tie_word_embeddings")): name
    for name, config in configs.built_in().items()
    if config["model_type"] in FAMILY
}


@pytest.mark.parametrize("name", COVERED.values())
def test_every_built_in_family_is_exact_on_what_stays(name):
    settings = Settings(method="qlora", optim="paged_adamw_8bit", seq=8, checkpointing=True)
    config = configs.find(name)
    config.num_hidden_layers = 2  # all layers are alike, and two are quick
    assert budget.closed_form(config, settings).static() == simulate(config, settings).static


@pytest.mark.parametrize(
    ("name", "gb"),
    [  # static bytes, as computed by hand from the parameter counts
        ("llama-2-7b", {"full": 107.8, "lora": 14.1, "qlora": 4.5}),
        ("llama-2-13b", {"full": 208.3, "lora": 27.0, "qlora": 8.2}),
        ("llama-2-70b", {"full": 1103.6, "lora": 141.3, "qlora": 39.7}),
    ],
)
def test_the_static_table_of_the_course(name, gb):
    for method, wanted in gb.items():
        closed = budget.closed_form(configs.find(name), Settings(method=method))
        assert round(sum(closed.static().values()) / 1e9, 1) == wanted


@pytest.mark.parametrize(
    ("config", "change", "line"),
    [
        (transformers.GPT2Config(), {}, "no closed form for 'gpt2'"),
        (configs.find("qwen3-30b-a3b"), {}, "experts"),
        (configs.find("qwen3-8b"), {"dora": True}, "DoRA"),
        (configs.find("qwen3-8b"), {"method": "grpo"}, "GRPO"),
        (transformers.MistralConfig(sliding_window=64), {"seq": 65}, "sliding window of 64"),
    ],
)
def test_what_it_does_not_cover_is_said(config, change, line):
    with pytest.raises(NoClosedForm, match=line):
        budget.closed_form(config, Settings(**change))


def test_a_layer_that_is_not_there_is_one_line():
    with pytest.raises(LabError, match="no layer 'c_attn': choose from q_proj"):
        budget.closed_form(configs.find("llama-2-7b"), Settings(targets="c_attn"))
