"""Asking a model many questions at once."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[list[dict]],
    max_new_tokens: int = 48,
    batch_size: int = 64,
) -> list[str]:
    """The model's greedy answer to each conversation (lists of messages that end with the user's).

    A trailing assistant message is taken off, so rows of a task can be passed as they are.
    """
    was_training = model.training
    model.eval()
    prompts = [_prompt(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    told = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = _generate(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens)
        for i, text in zip(chosen, texts, strict=True):
            told[i] = text
    model.train(was_training)
    return told


def _prompt(tokenizer, messages):
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)


def _generate(model, tokenizer, prompts, max_new_tokens):
    batch = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    # torch copies a frozen head once a row (gigabytes) when its input is a slice, as it is here
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        out = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    finally:
        hook.remove()
    new = out[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
