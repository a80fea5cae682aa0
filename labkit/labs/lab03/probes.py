"""What runs beside the learner's code in lab 3, and brings plain data back to its checks."""

import copy
import functools
import os
import re
from unittest import mock

import torch

from labkit.contract import CheckFailed, kept
from labkit.probes import tiny

CONFIG_FIELDS = ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "target_modules")
SFT_FIELDS = (
    *("output_dir", "use_cpu", "bf16", "fp16", "learning_rate", "max_length"),
    *("completion_only_loss", "assistant_only_loss"),
)
TODAY = {  # what older tutorials write -> what it is called now
    "max_seq_length": "its name is max_length now",
    "warmup_ratio": "its name is warmup_steps now, and 0.1 still means a tenth of the run",
    "evaluation_strategy": "its name is eval_strategy now",
    "no_cuda": "its name is use_cpu now",
    "torch_dtype": "its name is dtype now, in from_pretrained or in model_init_kwargs",
    "dtype": "the model's dtype goes to from_pretrained or into model_init_kwargs",
    "tokenizer": "it goes to SFTTrainer, as processing_class",
    "peft_config": "it goes to SFTTrainer",
    "overwrite_output_dir": "it is gone: leave it out",
    "group_by_length": "it is gone: leave it out",
    "logging_dir": "it is gone: leave it out",
}
NO_BF16 = {
    "t4": "it asks for bf16, and a T4 has no bf16: fp16=True, bf16=False",
    "cpu": "TRL asks for bf16 unless told otherwise: use_cpu=True, bf16=False",
}
MODELS = {  # (layers, hidden, MLP, vocabulary, heads, key/value heads)
    "SmolLM2-135M": (30, 576, 1536, 49152, 9, 3),
    "Llama-2-7B": (32, 4096, 11008, 32000, 32, 32),
    "Llama-3.1-8B": (32, 4096, 14336, 128256, 32, 8),
}
ROLES = ["<system>", "<user>", "<assistant>\n", "<assistant>"]  # the last is one that was stripped


def _kind(value):
    return {"is": type(value).__name__}


def recipe_fields(recipe, output_dir, device):
    """`[LoraConfig, SFTConfig]` of a recipe as data, built as on a machine with that device.

    Each is its fields, else `{"is": type}`; what is no pair is `{"is": type}` itself.
    """
    has_bf16 = "transformers.training_args.is_torch_bf16_gpu_available"
    try:
        with mock.patch(has_bf16, return_value=device == "a100"):
            pair = recipe(output_dir, device)
    except (TypeError, ValueError) as error:
        error.args = (_advised(str(error), device), *error.args[1:])
        raise
    if not isinstance(pair, tuple | list):
        return _kind(pair)
    return [_fields(config) for config in pair]


def recipe_shares(recipe, output_dir):
    """Whether two calls of a recipe give one and the same LoraConfig."""
    (one, _), (other, _) = (recipe(output_dir, "cpu") for _ in range(2))
    return one is other


def _fields(config):
    """The fields of a configuration as data, target modules sorted; else `{"is": type}`."""
    from peft import LoraConfig
    from trl import SFTConfig

    if isinstance(config, SFTConfig):
        fields = {name: getattr(config, name) for name in SFT_FIELDS}
        return {"sft": fields | {"output_dir": os.path.relpath(config.output_dir)}}
    if not isinstance(config, LoraConfig):
        return _kind(config)
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS}
    fields["task_type"] = str(getattr(config.task_type, "value", config.task_type))
    if isinstance(fields["target_modules"], set | list | tuple):
        fields["target_modules"] = sorted(fields["target_modules"])
    default = LoraConfig().to_dict()
    others = {name: v for name, v in config.to_dict().items() if v != default.get(name)}
    others = {n: str(v) for n, v in others.items() if n not in CONFIG_FIELDS}
    return {"lora": fields | {"others": others}}


@functools.cache
def peft_count(name, targets):
    """`(shapes, count)` of rank-16 LoRA: PEFT on one layer on the meta device, times the layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    keys = ("hidden_size", "intermediate_size", "vocab_size")
    depth, *rest = MODELS[name]
    sizes = dict(zip((*keys, "num_attention_heads", "num_key_value_heads"), rest, strict=True))
    layers = targets if isinstance(targets, str) else list(targets)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1))
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules=layers))
    one = {
        module.removeprefix("base_model.model."): tuple(layer.weight.shape)
        for module, layer in adapted.named_modules()
        if hasattr(layer, "lora_A")
    }
    shapes = {n.replace(".0.", f".{i}."): shape for i in range(depth) for n, shape in one.items()}
    return shapes, depth * adapted.get_nb_trainable_parameters()[0]


def talk(rng, roles, longer=0):
    """Messages of `roles`, of 2 to 5 words that the tiny tokenizer knows, and `longer` more."""
    return [{"role": r, "content": tiny.words(rng, 2 + longer, 5 + longer)} for r in roles]


@functools.cache
def chat_tokenizer(bos):
    """A tokenizer with a chat template, that puts a <start> first if `bos` is not "".

    Where it is "both" the tokenizer puts one there, too, as Llama 3's does.
    """
    tokenizer = tiny.language_model(0)[1]
    tokenizer.add_special_tokens({"additional_special_tokens": ROLES})
    if bos == "both":
        tiny.add_start(tokenizer)
    turn = "<{{ m['role'] }}>{{ '\\n' if m['role'] == 'assistant' else ' ' }}{{ m['content'] }} "
    turn += "{{ eos_token }} "
    tokenizer.chat_template = (
        ("{{ bos_token }} " if bos else "")
        + "{% for m in messages %}"
        + turn
        + "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}"
    )
    return tokenizer


def whole(messages, bos):
    """`(prompt, conversation)`: ids after which an answer comes, and ids with an answer."""
    tokenizer = chat_tokenizer(bos)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answered = [*messages, {"role": "assistant", "content": "lamp"}]
    return prompt, tokenizer.apply_chat_template(answered, return_dict=False)


def rendered(render_prompt, messages, bos):
    """`render_prompt(messages, tokenizer)` with a fresh copy of `chat_tokenizer(bos)`."""
    tokenizer = copy.deepcopy(chat_tokenizer(bos))
    before = _state(tokenizer)
    given = copy.deepcopy(messages)
    ids = kept(render_prompt, given, tokenizer)
    if _state(tokenizer) != before:
        raise CheckFailed("it changes the tokenizer, for everybody: leave it as it is")
    return ids


def _state(tokenizer):
    told = tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.padding_side
    return (*map(str, told), tokenizer("turn the lamp")["input_ids"])


def _advised(message, device):
    """The message of an error of SFTConfig that many meet, and what helps against it."""
    name = re.search(r"unexpected keyword argument '(\w+)'", message)
    if name and name[1] in TODAY:
        return f"{message}: {TODAY[name[1]]}"
    if "support bf16" in message and device in NO_BF16:  # its own advice helps a CPU alone
        return f"{NO_BF16[device]} (transformers' own words: {message})"
    return message


def matched(exact_match, predictions, references):
    """`exact_match(...)`; when it lets the parser's error out, that error with advice."""
    try:
        return exact_match(predictions, references)
    except (ValueError, SyntaxError) as error:
        advice = "a prediction that is no JSON is a wrong answer: catch json.JSONDecodeError"
        error.args = (f"{error}; {advice}", *error.args[1:])
        raise


def perplexity_of(perplexity, seed, texts, start=False):
    """`perplexity(model, tokenizer, texts)` of the tiny model, and what the model was given.

    `training`: in train mode; `longest`: tokens of the longest row; `began`: a row began with a
    token that no text begins with, as the tokenizer's <start> that it adds with `start`.
    """
    model, tokenizer = tiny.language_model(seed)
    rows, training, first = [0], [], {tokenizer(text)["input_ids"][0] for text in texts}
    if start:
        tiny.add_start(tokenizer)

    def look(module, args, kwargs):
        training.append(module.training)
        ids = args[0] if args else kwargs.get("input_ids")
        if isinstance(ids, torch.Tensor) and ids.dim() == 2:
            rows.append(ids.shape[1])
            first.update(ids[:, 0].tolist())

    model.register_forward_pre_hook(look, with_kwargs=True)
    told = {"value": kept(perplexity, model, tokenizer, texts), "training": any(training)}
    return told | {"began": tokenizer.bos_token_id in first, "longest": max(rows)}
