"""A tiny Llama or Qwen with a byte-level tokenizer and a chat template, for files and servers."""

import pytest
import torch
from small_llama import with_lora
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXT = "turn on the lamp in the kitchen, 12 times; it's 2024 12345 -- WE'LL\n\n  see  "
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tokenizer_of(rule=None):
    """A tokenizer that cuts text by ByteLevel's own rule, or by a regex."""
    from tokenizers import ByteLevelBPETokenizer, Regex, pre_tokenizers

    bare = ByteLevelBPETokenizer()
    if rule:
        cut = pre_tokenizers.Split(Regex(rule), behavior="isolated", invert=False)
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bare.pre_tokenizer = pre_tokenizers.Sequence([cut, rest])
    special = ["<unk>", "<s>", "</s>"]
    bare.train_from_iterator([TEXT] * 4, 320, show_progress=False, special_tokens=special)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=bare._tokenizer, **names)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def cutting():
    """`cutting(rule)` -> a tokenizer that cuts text by a regex."""
    return tokenizer_of


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_of()


@pytest.fixture(scope="session")
def make(tokenizer):
    """`make(family="llama", **changes)` -> a tiny model of random weights, the same each time."""

    def made(family="llama", **changes):
        size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
        size |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "rms_norm_eps": 1e-5}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            config = AutoConfig.for_model(family, **size | changes)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for p in model.parameters():
                if p.dim() == 2:
                    torch.nn.init.normal_(p, std=1.5 / p.shape[1] ** 0.5)
                else:  # Qwen's biases and the norms of its heads, which a fresh model has at 0 or 1
                    p.data += torch.randn(p.shape) * 0.2
        return model.eval()

    return made


@pytest.fixture(scope="session")
def adapted(make):
    """`adapted(model=None, names=("default",), std=0.3, **changes)` -> a PeftModel.

    Its LoRAs are the same each time.
    """

    def made(model=None, names=("default",), **changes):
        torch.manual_seed(1)
        return with_lora(model or make(), names, **{"lora_alpha": 6} | changes)

    return made
