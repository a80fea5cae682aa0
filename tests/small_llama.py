"""A random Llama with the vocabulary of the labs' model, and LoRAs of random numbers."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(seed=0, n_layers=2):
    """In fp32 and eval mode: two query heads for one key head, tied embeddings."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": n_layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 49152}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).eval()


def with_lora(model, names=("default",), std=0.3, **options):
    """A PeftModel in eval mode with LoRAs on all linear layers, by torch's generator."""
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    config = LoraConfig(**options)
    tuned = get_peft_model(model, config, names[0])
    for name in names[1:]:
        tuned.add_adapter(name, config)
    for name, p in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=std)
    return tuned.eval()
