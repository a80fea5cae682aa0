"""Configurations are found by name, path or hub id; what is none is one clear line."""

import json

import pytest
import torch
import transformers

from labkit import download
from labkit.errors import LabError
from labkit.memory import configs


@pytest.fixture
def found(tmp_path):
    """`found(fields)`: what is found for a config.json with these fields."""

    def find(fields):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return configs.find(tmp_path)

    return find


def test_built_in_names_need_no_exact_case():
    assert configs.find("SmolLM2-135M").hidden_size == 576
    assert configs.find("llama-2-70B").num_key_value_heads == 8


def test_a_file_a_folder_and_a_hub_id_are_read(tmp_path, monkeypatch):
    fields = {"model_type": "qwen3", "hidden_size": 64, "architectures": ["Qwen3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    monkeypatch.setattr(download, "hub_answers", lambda: True)
    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", lambda name: (fields, {}))
    for name in (tmp_path, tmp_path / "config.json", "somebody/qwen"):
        config = configs.find(name)
        assert (type(config), config.hidden_size) == (transformers.Qwen3Config, 64)


SMALL = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 300}
MISTRAL = {"model_type": "mistral4", "hidden_size": 128, "num_hidden_layers": 2}
QWEN = SMALL | {"model_type": "qwen3_vl_text", "head_dim": 32}
ROPE = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
PUBLISHED = [  # type, architecture and fields; the type that it is read as, part_of, taken_for
    ("gemma3", "Gemma3", {"text_config": SMALL}, "gemma3_text", "gemma3", ""),
    # Kimi-K2: a type and code of its own, the layers of DeepSeek-V3
    ("kimi_k2", "DeepseekV3", SMALL, "deepseek_v3", "", "deepseek_v3"),
    # Mistral Small 4: transformers lists its text part elsewhere than among causal LMs
    ("mistral3", "Mistral3", {"text_config": MISTRAL}, "mistral4", "mistral3", ""),
    # MiniMax-M2 was published with the type of MiniMax-01
    ("minimax", "MiniMaxM2", SMALL, "minimax_m2", "", "minimax_m2"),
    ("minimax", "MiniMax", SMALL, "minimax", "", ""),
    # text parts that are no models by themselves: fields beside the vision tower, and inside
    ("qwen2_5_vl", "Qwen2_5_VL", SMALL | ROPE, "qwen2", "qwen2_5_vl", "qwen2"),
    ("qwen3_vl", "Qwen3VL", {"text_config": QWEN}, "qwen3", "qwen3_vl", "qwen3"),
]


@pytest.mark.parametrize(("kind", "architecture", "fields", "read", "part", "taken"), PUBLISHED)
def test_a_published_config_is_read_by_its_text_part_and_its_architecture(
    found, kind, architecture, fields, read, part, taken
):
    fields = fields | {"quantization_config": {"quant_method": "fp8"}, "auto_map": {"any": "a.B"}}
    does = "ForConditionalGeneration" if part else "ForCausalLM"
    config = found({"model_type": kind, "architectures": [architecture + does], **fields})
    assert (config.model_type, config.hidden_size) == (read, 128)
    assert (getattr(config, "part_of", ""), config.taken_for) == (part, taken)
    assert not hasattr(config, "quantization_config")
    with torch.device("meta"):
        assert transformers.AutoModelForCausalLM.from_config(config).config is config


def test_a_text_part_has_the_matrices_that_it_has_in_the_whole(found):
    kind = {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}
    whole = transformers.AutoConfig.for_model(**kind, text_config=QWEN)
    with torch.device("meta"):
        seen = transformers.AutoModelForImageTextToText.from_config(whole)
        own = transformers.AutoModelForCausalLM.from_config(found(kind | {"text_config": QWEN}))
    theirs = {tuple(p.shape) for n, p in seen.named_parameters() if "visual" not in n}
    assert {tuple(p.shape) for p in own.parameters()} == theirs


def test_a_field_of_an_older_name_is_read_without_a_word(found, recwarn):
    """Kimi-Linear as published: `rope_scaling`, and a table of which layers are which."""
    layers = {"kda_layers": [1, 2, 3], "full_attn_layers": [4], "head_dim": 8, "num_heads": 2}
    fields = {"hidden_size": 16, "num_hidden_layers": 4, "num_experts": 4, "rope_scaling": None}
    fields |= {"architectures": ["KimiLinearForCausalLM"], "linear_attn_config": layers}
    kinds = found({"model_type": "kimi_linear", **fields}).layer_types
    assert [kind for kind in kinds if "linear" not in kind] == kinds[-1:]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lama-2-7b", "similar: llama-2-7b"),
        ("zzz", "built in: smollm2-135m"),
        ("meta-llama/Llama-3.1-8B", "hub does not answer; similar: llama-3.1-8b"),
        ("there/is/none/config.json", "no file there/is/none/config.json"),
    ],
)
def test_unknown_models_offer_the_nearest(name, said, monkeypatch):
    monkeypatch.setattr(download, "hub_answers", lambda: False)
    with pytest.raises(LabError, match=rf"\A.*{said}.*\Z"):
        configs.find(name)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "has no model_type"),
        ({"hidden_size": 4}, "has no model_type"),
        ({"model_type": "nonsense"}, "no model type 'nonsense'"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "not a causal"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a causal language"),
        ({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7}, "100"),
    ],
)
def test_configs_that_are_no_causal_lm(found, fields, said):
    with pytest.raises(LabError, match=rf"\A.*{said}.*\Z"):
        found(fields)
