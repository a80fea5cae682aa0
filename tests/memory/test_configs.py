"""Configurations are found by name, path or hub id; what is none is one clear line."""

import json

import pytest
import torch
import transformers

from labkit import download
from labkit.errors import LabError
from labkit.memory import configs


def test_built_in_names_need_no_exact_case():
    assert configs.find("SmolLM2-135M").hidden_size == 576
    assert configs.find("llama-2-70B").num_key_value_heads == 8


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_local_config_is_read(tmp_path, as_folder):
    transformers.Qwen3Config(hidden_size=64, num_hidden_layers=2).save_pretrained(tmp_path)
    path = tmp_path if as_folder else tmp_path / "config.json"
    assert type(configs.find(path)) is transformers.Qwen3Config
    assert configs.find(str(path)).hidden_size == 64


def test_a_hub_id_is_read_when_the_hub_answers(monkeypatch):
    fields = {"model_type": "llama", "hidden_size": 64, "architectures": ["LlamaForCausalLM"]}
    monkeypatch.setattr(download, "hub_answers", lambda: True)
    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", lambda name: (fields, {}))
    assert configs.find("somebody/llama-64").hidden_size == 64


def test_a_model_that_sees_is_taken_by_its_text_part(tmp_path):
    """As published: with remote code, a quantisation, and a vision tower."""
    text = transformers.Gemma3TextConfig(hidden_size=64, num_hidden_layers=2).to_dict()
    fields = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    fields |= {"text_config": text, "vision_config": {"hidden_size": 32}}
    fields |= {"quantization_config": {"quant_method": "fp8"}, "auto_map": {"AutoConfig": "a.B"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = configs.find(tmp_path)
    assert (type(found), found.hidden_size) == (transformers.Gemma3TextConfig, 64)
    assert found.part_of == "gemma3"
    assert not hasattr(found, "quantization_config")


def put(tmp_path, **fields):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return tmp_path


def test_a_type_that_transformers_has_not_is_taken_by_the_architecture_it_names(tmp_path):
    """Kimi-K2 as published: a type and code of its own, the layers of DeepSeek-V3, fp8."""
    found = configs.find(
        put(
            tmp_path,
            model_type="kimi_k2",
            architectures=["DeepseekV3ForCausalLM"],
            auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
            quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
            **{"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 64},
            **{"n_routed_experts": 384, "moe_intermediate_size": 2048, "vocab_size": 163840},
        )
    )
    assert (type(found), found.n_routed_experts) == (transformers.DeepseekV3Config, 384)
    assert found.taken_for == "deepseek_v3"


def test_a_field_of_an_older_name_is_read_without_a_word(tmp_path, recwarn):
    """Kimi-Linear as published: `rope_scaling`, and a table of which layers are which."""
    layers = {"kda_layers": [1, 2, 3], "full_attn_layers": [4], "head_dim": 8, "num_heads": 2}
    fields = {"hidden_size": 16, "num_hidden_layers": 4, "num_experts": 4, "rope_scaling": None}
    fields |= {"architectures": ["KimiLinearForCausalLM"], "linear_attn_config": layers}
    found = configs.find(put(tmp_path, model_type="kimi_linear", **fields))
    assert [kind for kind in found.layer_types if "linear" not in kind] == found.layer_types[-1:]
    assert not recwarn.list


def test_a_causal_lm_that_transformers_lists_elsewhere_is_one(tmp_path):
    """Mistral Small 4 as published: its text part is a mistral4, within a mistral3."""
    text = {"model_type": "mistral4", "hidden_size": 64, "num_hidden_layers": 2}
    fields = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text}
    found = configs.find(put(tmp_path, model_type="mistral3", **fields))
    assert (type(found), found.part_of) == (transformers.Mistral4Config, "mistral3")
    with torch.device("meta"):
        assert transformers.AutoModelForCausalLM.from_config(found).config is found


def test_a_type_whose_layers_are_others_is_taken_by_the_architecture(tmp_path):
    """MiniMax-M2 as it was published: the type is that of MiniMax-01."""
    dims = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    fields = {"model_type": "minimax", "architectures": ["MiniMaxM2ForCausalLM"], **dims}
    found = configs.find(put(tmp_path, **fields, num_local_experts=4))
    assert (type(found), found.taken_for) == (transformers.MiniMaxM2Config, "minimax_m2")
    same = configs.find(put(tmp_path, **fields | {"architectures": ["MiniMaxForCausalLM"]}))
    assert (type(same), same.taken_for) == (transformers.MiniMaxConfig, "")


def test_a_text_part_that_is_no_model_by_itself_has_the_layers_of_one_that_is(tmp_path):
    """As published: Qwen2.5-VL with its text fields beside the vision tower, Qwen3-VL inside."""
    flat = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    flat |= {"num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 300}
    rope = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    kind = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    found = configs.find(put(tmp_path, **kind, **flat, **rope, vision_config={"depth": 2}))
    assert (type(found), found.hidden_size) == (transformers.Qwen2Config, 128)
    assert (found.part_of, found.taken_for) == ("qwen2_5_vl", "qwen2")
    kind = {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}
    text = flat | {"model_type": "qwen3_vl_text", "head_dim": 32}
    found = configs.find(put(tmp_path, **kind, text_config=text, vision_config={"depth": 2}))
    assert (type(found), found.head_dim) == (transformers.Qwen3Config, 32)
    assert found.intermediate_size == 96 and found.part_of == "qwen3_vl"
    whole = transformers.AutoModelForImageTextToText.from_config
    with torch.device("meta"):
        seen = whole(transformers.AutoConfig.for_model(**kind, text_config=text))
        own = transformers.AutoModelForCausalLM.from_config(found)
    theirs = {tuple(p.shape) for n, p in seen.named_parameters() if "visual" not in n}
    assert {tuple(p.shape) for p in own.parameters()} == theirs


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lama-2-7b", "no model 'lama-2-7b'; nearest: llama-2-7b"),
        ("zzz", "no model 'zzz'; built in: smollm2-135m"),
        ("qwen3-8", "nearest: qwen3-8b.*or give a config.json, its folder, or a hub id"),
        ("meta-llama/Llama-3.1-8B", "hub does not answer; nearest: llama-3.1-8b"),
        ("there/is/none/config.json", "no file there/is/none/config.json"),
    ],
)
def test_unknown_models_offer_the_nearest(name, line, monkeypatch):
    monkeypatch.setattr(download, "hub_answers", lambda: False)
    with pytest.raises(LabError, match=line) as error:
        configs.find(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not JSON"),
        ("[]", "names no model_type"),
        ('{"hidden_size": 4}', "names no model_type"),
        ('{"model_type": "nonsense"}', "no model type 'nonsense', a newer one may.*layers are the"),
        ('{"model_type": "vit"}', "is no causal language model"),
        ('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}', "no causal"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "no causal language"),
        (json.dumps({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7}), "100"),
    ],
)
def test_configs_that_are_no_causal_lm(tmp_path, text, line):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(LabError, match=line) as error:
        configs.find(path)
    assert "\n" not in str(error.value)
