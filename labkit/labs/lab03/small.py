"""Tiny mixtures of experts with random weights, built as two families of large ones are."""

import torch

SIZE = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": None,
    "eos_token_id": None,
}


def mixture(family):
    """A model of `family`, "qwen3_moe" or "gpt_oss": two layers of eight experts."""
    from transformers import AutoModelForCausalLM, GptOssConfig, Qwen3MoeConfig

    if family == "gpt_oss":
        config = GptOssConfig(**SIZE, num_local_experts=8)
    else:
        config = Qwen3MoeConfig(**SIZE, num_experts=8, moe_intermediate_size=64)
    with torch.random.fork_rng():
        return AutoModelForCausalLM.from_config(config)


def experts_share(family):
    """The share of a mixture's weights that its experts hold."""
    sizes = {name: p.numel() for name, p in mixture(family).named_parameters()}
    return sum(n for name, n in sizes.items() if "experts" in name) / sum(sizes.values())
