"""A random Llama with the vocabulary of the labs' model, which the tests of training share."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(seed=0, n_layers=2):
    """In fp32 and eval mode: two query heads for one key head, tied embeddings."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": n_layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 49152}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).eval()
