"""Files that llama.cpp reads: transformers' own loader and gguf's own grids say what is in them."""

import json

import gguf as library
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from labkit.errors import LabError
from labkit.ship import gguf, vocabulary

IDS = torch.tensor([[1, 40, 80, 120, 7, 9, 33, 2, 250]])


def read(path):
    whole = GgufConfig(dequantize=True)
    how = {"gguf_file": path.name, "dtype": torch.float32, "quantization_config": whole}
    return AutoModelForCausalLM.from_pretrained(path.parent, **how).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 32},
        {"family": "qwen2"},
        {"family": "qwen2", "tie_word_embeddings": True},
        {"family": "qwen3", "head_dim": 128},
    ],
    ids=str,
)
def test_transformers_reads_the_model_that_was_written(make, tokenizer, tmp_path, changes):
    model = make(**changes)
    path = gguf.write_model(model, tokenizer, tmp_path / "model.gguf", "f32")
    torch.testing.assert_close(logits(read(path)), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_a_grid_is_gguf_s_own(make, tokenizer, tmp_path, kind, family):
    size = {"head_dim": 128} if family == "qwen3" else {}  # what its reader takes for given
    model = make(family, **size)
    path = gguf.write_model(model, tokenizer, tmp_path / "model.gguf", kind)
    stored = {t.name: t for t in library.GGUFReader(str(path)).tensors}
    down = model.model.layers[1].mlp.down_proj.weight.detach()
    tensor = stored["blk.1.ffn_down.weight"]
    wanted = down.numpy()
    if kind != "f16":
        wanted = library.quants.quantize(wanted, library.GGMLQuantizationType[kind.upper()])
    assert tensor.data.tobytes() == wanted.astype(tensor.data.dtype).tobytes()
    back = make(family, **size)
    gguf.load_(back, path)
    torch.testing.assert_close(logits(back), logits(read(path)), rtol=1e-4, atol=1e-4)
    assert stored["blk.0.attn_norm.weight"].tensor_type.name == "F32"


def test_the_end_token_is_in_the_file_and_no_first_one_is_added(make, tokenizer, tmp_path):
    """That llama.cpp cuts words and writes a chat as the tokenizer does, test_server.py shows."""
    path = gguf.write_model(make(), tokenizer, tmp_path / "model.gguf", "f16")
    fields = library.GGUFReader(str(path)).fields
    eos, begins = (f"tokenizer.ggml.{name}" for name in ("eos_token_id", "add_bos_token"))
    assert fields[eos].contents() == 2 and not fields[begins].contents()


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_an_adapter_s_tensors(adapted, tmp_path, rank_stabilized):
    """A as it is, the rows of q's and k's B moved as transformers' loader puts them back."""
    tuned = adapted(use_rslora=rank_stabilized)
    tuned.save_pretrained(tmp_path)
    path = gguf.write_adapter(tmp_path, tuned.config, tmp_path / "adapter.gguf")
    reader = library.GGUFReader(str(path))
    told = {name: field.contents() for name, field in reader.fields.items()}
    alpha = 6 * 2 if rank_stabilized else 6
    assert told["adapter.type"] == "lora" and told["general.type"] == "adapter"
    assert told["adapter.lora.alpha"] == pytest.approx(alpha)
    stored = {t.name: t.data for t in reader.tensors}
    assert len(stored) == 2 * 2 * 7
    turn = LlamaTensorProcessor({})._reverse_permute_weights
    layer = tuned.base_model.model.model.layers[1].self_attn
    for name, heads in (("q", 4), ("k", 2), ("v", None)):
        pair = getattr(layer, f"{name}_proj")
        A, B = (getattr(pair, f"lora_{x}")["default"].weight.detach().numpy() for x in "AB")
        low, high = (stored[f"blk.1.attn_{name}.weight.lora_{x}"] for x in "ab")
        np.testing.assert_array_equal(low, A)
        np.testing.assert_array_equal(turn(high, heads, heads) if heads else high, B)


def test_what_has_no_place_in_a_file_is_one_line(make, adapted, tokenizer, tmp_path):
    scaled = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    sliding = make("qwen2", use_sliding_window=True, sliding_window=8)
    for model, kind, said in (
        (make("gemma", head_dim=16), "f16", "gemma: only the Llama family, Qwen2 and"),
        (sliding, "f16", "use_sliding_window"),
        (make(vocab_size=100), "f16", "the tokenizer has 305 tokens, but the model only 100"),
        (make(attention_bias=True), "f16", "attention_bias"),
        (make(rope_parameters=scaled), "f16", "rope_type linear"),
        (adapted(), "f16", "merge_and_unload"),
        (make(), "q5_k", "no GGUF kind 'q5_k'"),
    ):
        with pytest.raises(LabError, match=f"^[^\n]*{said}[^\n]*$"):
            gguf.write_model(model, tokenizer, tmp_path / "model.gguf", kind)
    assert not list(tmp_path.iterdir())  # nothing half-made


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ],
    ids=str,
)
def test_an_adapter_that_is_more_than_a_and_b_is_one_line(adapted, tmp_path, changes, said):
    tuned = adapted(**changes)
    tuned.save_pretrained(tmp_path)
    with pytest.raises(LabError, match=f"^[^\n]*{said}[^\n]*$"):
        gguf.write_adapter(tmp_path, tuned.config, tmp_path / "adapter.gguf")


def test_another_model_s_file_is_not_loaded(make, tokenizer, tmp_path):
    path = gguf.write_model(make(), tokenizer, tmp_path / "model.gguf", "f16")
    with pytest.raises(LabError, match="has no"):
        gguf.load_(make(intermediate_size=128), path)


def test_words_are_cut_by_the_tokenizer_s_own_rule():
    digits = {"type": "Sequence", "pretokenizers": [vocabulary.DIGITS, vocabulary.BYTES]}
    assert vocabulary._splitting(digits) == "smollm"
    qwen = json.loads(Qwen2Tokenizer().backend_tokenizer.to_str())
    assert vocabulary._splitting(qwen["pre_tokenizer"]) == "qwen2"
    assert TikTokenConverter("none").pattern == vocabulary.RULES["llama-bpe"]
    with pytest.raises(LabError, match="splits words"):
        vocabulary._splitting({"type": "Whitespace"})
