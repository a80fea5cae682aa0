"""A tiny language model and its tokenizer, identical in the probes and in the judge."""

import functools

import torch

WORDS = [
    *("turn", "switch", "the", "light", "lamp", "fan", "on", "off", "in", "kitchen"),
    *("hall", "attic", "please", "now", "and", "to", "blue"),
]

ROLES = ["<system>", "<user>", "<assistant>\n", "<assistant>"]  # the last one is stripped


def words(rng, low, high=None):
    """Make a text of `low` known words, or of `low` to `high` words inclusive."""
    n = low if high is None else int(torch.randint(low, high + 1, (), generator=rng))
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=rng))


def language_model(seed):
    """Make `(model, tokenizer)`: one token per word, nothing added, one token for pad and end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<end>", "<unk>", *WORDS, "<start>"])}
    known = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=known,
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
    return llama(torch.Generator().manual_seed(seed)), tokenizer


def add_start(tokenizer):
    """Make the tokenizer add a <start> before any text, as Llama 3's does."""
    from tokenizers import processors

    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first[0]} $A", special_tokens=[first]
    )


@functools.cache
def chat_tokenizer(bos=""):
    """Make a tokenizer whose chat template begins with a <start> unless `bos` is "".

    With "both", the tokenizer also adds a <start> before any text, as Llama 3's does.
    """
    tokenizer = language_model(0)[1]
    tokenizer.add_special_tokens({"additional_special_tokens": ROLES})
    if bos == "both":
        add_start(tokenizer)
    turn = "<{{ m['role'] }}>{{ '\\n' if m['role'] == 'assistant' else ' ' }}{{ m['content'] }} "
    turn += "{{ eos_token }} "
    opening = "{% if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}"
    turns = "{% for m in messages %}" + turn + "{% endfor %}" + opening
    tokenizer.chat_template = "{{ bos_token }} " * bool(bos) + turns
    return tokenizer


def settings(tokenizer):
    """What a call must leave unchanged in a tokenizer."""
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length
    facts = tokenizer.special_tokens_map, tokenizer.chat_template, len(tokenizer), *sides
    return (*map(str, facts), tokenizer("turn the lamp")["input_ids"])


def llama(rng):
    """Make a two-layer Llama with uneven random weights and strong attention dropout, in eval."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": len(WORDS) + 3, "attention_dropout": 0.5, "hidden_size": 32}
    size |= {"intermediate_size": 48}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        model = LlamaForCausalLM(LlamaConfig(**size, **depth, tie_word_embeddings=False))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.copy_(torch.randn(p.shape, generator=rng) * 2 / p.shape[1] ** 0.5)
    return model.eval()
