"""Encode examples; find which tokens are trained on or cut, and whether an end token is."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.data.shapes import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token that is not learned
# the template for a model that has none; saved with the adapter
PLAIN = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class TemplateFault(ValueError):
    """The chat template rejects an example, or renders its prompt differently with an answer."""


@dataclass(frozen=True)
class Encoded:
    """`input_ids` and `labels`, lists of equal length; tokens with label -100 aren't learned."""

    input_ids: list[int]
    labels: list[int]

    def cut(self, max_length: int) -> "Encoded":
        """The first `max_length` tokens."""
        return Encoded(self.input_ids[:max_length], self.labels[:max_length])

    @property
    def learned(self) -> list[int]:
        """The tokens that are learned."""
        return learned(self.labels)

    def ended(self, ends: Iterable[int]) -> bool:
        """Whether an end token is learned as the last token, or before a final newline."""
        return not set(ends).isdisjoint(self.learned[-2:])


def learned(labels: list[int]) -> list[int]:
    """The learned tokens in a row's labels."""
    return [token for token in labels if token != IGNORED]


def ends_of(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> set[int]:
    """The tokens that end an answer: the tokenizer's end token, and the model's stop tokens."""
    file = folder / "generation_config.json"
    stops = json.loads(file.read_text("utf-8")).get("eos_token_id") if file.is_file() else None
    stops = stops if isinstance(stops, list) else [stops]
    return {token for token in (tokenizer.eos_token_id, *stops) if token is not None}


def encode(example: Example, tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """Encode the example in full; in a conversation, only the last message is learned.

    TemplateFault if the tokenizer's chat template cannot be used for the example.
    """
    if not example.messages:
        ids = tokenizer(example.text)["input_ids"]
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        return Encoded(ids, list(ids))
    ids = _templated(tokenizer, example.messages)
    prompt = prompt_ids(example, tokenizer)
    if ids[: len(prompt)] != prompt:
        raise TemplateFault("it renders the prompt differently when an answer follows")
    return Encoded(ids, [IGNORED] * len(prompt) + ids[len(prompt) :])


def prompt_ids(example: Example, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens of the prompt, ready for the model's answer."""
    return _templated(tokenizer, example.messages[:-1], add_generation_prompt=True)


def _templated(tokenizer, messages, **how):
    try:
        return list(tokenizer.apply_chat_template(messages, return_dict=True, **how)["input_ids"])
    except Exception as error:  # a template can raise anything
        raise TemplateFault(str(error).strip().splitlines()[0] if str(error) else "") from error


def control_words(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Strings that the tokenizer reads as control tokens, such as `<|im_end|>`, longest first."""
    words = {*tokenizer.all_special_tokens}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    words |= {token.content for token in added.values() if token.special}
    return sorted((word for word in words if len(word) > 2), key=len, reverse=True)
