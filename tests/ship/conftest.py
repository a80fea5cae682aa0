"""A tiny Llama with a byte-level tokenizer and a chat template, for files and servers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    bare.train_from_iterator(["turn on the lamp in the kitchen, 12 times"] * 4, trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=bare, **names)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def make(tokenizer):
    """`make(**changes)` -> a tiny Llama whose random weights are the same each time."""

    def made(**changes):
        size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
        size |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "rms_norm_eps": 1e-5}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = LlamaForCausalLM(LlamaConfig(**size | changes))
            for p in model.parameters():
                if p.dim() == 2:
                    torch.nn.init.normal_(p, std=1.5 / p.shape[1] ** 0.5)
        return model.eval()

    return made


@pytest.fixture
def adapted(make):
    """`adapted(seed=0, **changes)` -> a PeftModel with a LoRA that is not zero, on all layers."""

    def made(seed=0, **changes):
        settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
        config = LoraConfig(task_type="CAUSAL_LM", **settings | changes)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(make(), config).eval()
            for name, p in model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(p, std=0.3)
        return model

    return made
