"""Probes for lab 3."""

import contextlib
import copy
import functools
import io
import itertools
import tempfile
from pathlib import Path
from unittest import mock

import torch

from labkit.contract import kept, kind
from labkit.contract.kept import same
from labkit.probes import adapters, tiny
from labkit.probes.tiny import chat_tokenizer


def trained(train_adapter, talks, learning_rate):
    """Facts about what `train_adapter` trains and saves, given the conversations `talks`."""
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTTrainer

    model, tokenizer = tiny.language_model(0)[0], copy.deepcopy(chat_tokenizer())
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text = [{"text": talk[-2]["content"], "answer": talk[-1]["content"]} for talk in talks]
    rows = [one | {"messages": talk} for one, talk in zip(text, talks, strict=True)]
    with _workshop() as (folder, batches, columns):
        output_dir = folder / "a-name-nobody-would-write"
        rows = Dataset.from_list(rows)
        trainer = train_adapter(model, tokenizer, rows, str(output_dir), learning_rate)
        if not isinstance(trainer, SFTTrainer):
            return {"the return value": kind(trainer)}
        facts = {"the return value": "an SFTTrainer"}
        if not isinstance(trainer.model, PeftModel):
            return facts | {"the trainer's model": kind(trainer.model)}
        facts["the trainer's model"] = "a PeftModel"
        facts |= adapters.settings(trainer.model) | _run(trainer, batches)
        facts |= _labels(tokenizer, batches, talks, columns)
        return facts | _saved(trainer.model, output_dir)


@contextlib.contextmanager
def _workshop():
    """Yield `(folder, batches, columns of the training data)`: on the CPU, offline, silent."""
    from transformers import Trainer, TrainingArguments, logging
    from trl import SFTTrainer

    batches, step, begin = [], Trainer.training_step, TrainingArguments.__post_init__
    columns, make = [], SFTTrainer.__init__

    @functools.wraps(make)
    def made(self, *args, **more):
        tables = (x for x in (more.get("train_dataset"), *args) if hasattr(x, "column_names"))
        columns[:] = getattr(next(tables, None), "column_names", [])
        make(self, *args, **more)

    def noted(self, model, inputs, *rest, **more):
        batches.append((self.state.global_step, dict(inputs)))
        return step(self, model, inputs, *rest, **more)

    def on_the_cpu(self):
        self.use_cpu = True
        begin(self)

    level = logging.get_verbosity()
    with contextlib.ExitStack() as stack:
        stack.callback(logging.set_verbosity, level)
        logging.set_verbosity_error()
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for context in (
            contextlib.chdir(folder),  # for files that the learner's code creates
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            torch.random.fork_rng(devices=[]),  # a trainer seeds torch
            mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
            mock.patch("accelerate.utils.memory.clear_device_cache"),  # slow, nothing to clear
            mock.patch("peft.PeftModel.create_or_update_model_card"),  # slow, not needed
            mock.patch.object(SFTTrainer, "__init__", made),
            mock.patch.object(Trainer, "training_step", noted),
            mock.patch.object(TrainingArguments, "__post_init__", on_the_cpu),
        ):
            stack.enter_context(context)
        yield Path(folder), batches, columns


def _run(trainer, batches):
    args, steps = trainer.args, itertools.groupby(batches, key=lambda batch: batch[0])
    sizes = [sum(len(inputs["input_ids"]) for _, inputs in batches) for _, batches in steps]
    (group, *_) = trainer.optimizer.param_groups if trainer.optimizer else [{}]
    rate = group.get("initial_lr", group.get("lr", args.learning_rate))
    own = "the model's own (bf16=False)"
    hint = "" if sizes else " (no step was run: call trainer.train())"
    if args.num_train_epochs == 3 and sizes and sizes == 3 * sizes[: len(sizes) // 3]:
        hint = " (three passes: TRL's default is num_train_epochs=3)"
    return {
        "the rows in each step": f"{sizes}{hint}",
        "the learning rate": float(rate),
        "the precision of the run": "bf16" if args.bf16 else "fp16" if args.fp16 else own,
    }


def _labels(tokenizer, batches, talks, columns):
    """The labeled tokens of the first conversations, and how many other rows are wrong."""

    def text(ids):
        return " ".join(token.strip() for token in tokenizer.convert_ids_to_tokens(ids.tolist()))

    seen = {}
    for _, inputs in batches:
        ids, labels = inputs["input_ids"], inputs["labels"]
        masks = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        for row, mask, label in zip(ids, masks, labels, strict=True):
            seen[text(row[mask])] = text(label[label != -100])
    plain = not any(role.strip() in row.split() for row in seen for role in tiny.ROLES)
    facts = {"each row": PLAIN if plain else "written with the chat template"}
    found = [_found(as_text(talk), seen, columns) for talk in talks]
    facts |= {labeled(talk): label for talk, label in zip(talks[:SHOWN], found, strict=False)}
    right = [f"{talk[-1]['content']} <end>" for talk in talks]
    others = list(zip(found, right, strict=True))[SHOWN:]
    wrong = [a for a, b in others if a != b]
    hint = f" ({CUT})" * any(CUT in label for label in wrong)
    return facts | {"the number of other rows with wrong labels": f"{len(wrong)}{hint}"}


def _found(text, seen, columns):
    """The labeled tokens of a conversation, or a likely mistake."""
    if seen.get(text) == text:
        alone = "messages" in columns and "prompt" not in columns
        return f"every token: {ALONE if alone else 'completion_only_loss must be on'}"
    if text in seen:
        return f"those of 2 messages: {LAST}" if seen[text].count("<end>") == 2 else seen[text]
    if cut := next((row for row in seen if row and text.startswith(f"{row} ")), None):
        return f"none: {CUT}, the model reads “{cut}”"
    return NO_ROW


CUT = "a row is cut"
NO_ROW = "none: no row has this conversation. The prompt is messages[:-1], a list and not a string"
ALONE = "TRL trains on all of `messages`: make the columns prompt and completion"
LAST = "the completion must be only the last one, messages[-1:]"
PLAIN = "in plain text: make prompt and completion lists of messages, not strings"
SHOWN = 3  # conversations whose labels a learner sees


def as_text(talk):
    """A conversation as the model sees it, with a space between tokens."""
    return " ".join(f"<{m['role']}> {m['content']} <end>" for m in talk)


def labeled(talk):
    """The noun for the labeled tokens of a conversation."""
    return f"the labels of “{as_text(talk)}”"


def _saved(model, folder):
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    moved = [
        n for n, m in adapters.lora(model).items() if all(B.weight.any() for B in m.lora_B.values())
    ]
    files = [name for name in adapters.FILES if (folder / name).is_file()]
    facts = {"the layers whose B moved": sorted(moved)}
    none = "none: call trainer.save_model(output_dir)"
    facts["the files in output_dir"] = " and ".join(files) or none
    if adapters.FILES[1] in files:
        saved = load_file(folder / adapters.FILES[1])
        own = {k: v.detach() for k, v in get_peft_model_state_dict(model).items()}
        early = not any(w.any() for name, w in saved.items() if "lora_B" in name)
        other = "one that didn't train (save_model() comes after train())" if early else "another"
        alike = same(dict(sorted(own.items())), dict(sorted(saved.items())))
        facts["the saved adapter"] = "the trained one" if alike else other
    return facts


def labels(answer_labels, input_ids, attention_mask, prompt_lengths):
    """The labels row by row, and their type."""
    got = answer_labels(input_ids, attention_mask, prompt_lengths)
    if not isinstance(got, torch.Tensor):
        return {"the return value": kind(got)}
    facts = {"the return value": "a Tensor", "the dtype of the labels": str(got.dtype)[6:]}
    facts["the shape of the labels"] = str(tuple(got.shape))
    return facts | {f"row {i} of the labels": row for i, row in enumerate(got.tolist())}


def rendered(render_prompt, messages, bos):
    """The prompt as text with one word per token, from a fresh copy of `chat_tokenizer(bos)`."""
    tokenizer = copy.deepcopy(chat_tokenizer(bos))
    before, given = tiny.settings(tokenizer), copy.deepcopy(messages)
    ids = kept(render_prompt, given, tokenizer)
    facts = {"the result": _listed(ids), "the tokenizer": "left as it was"}
    if tiny.settings(tokenizer) != before:
        facts["the tokenizer"] = "changed"
    return facts | (shown(ids) if facts["the result"] == "a list of ints" else {})


def _listed(ids):
    if isinstance(ids, list) and ids:
        kinds = {type(i).__name__ for i in ids}
        return f"a list of {kinds.pop()}s" if len(kinds) == 1 else "a list of several kinds"
    return kind(ids)


def shown(ids):
    """Facts about a prompt: its length if it is long, then its tokens."""
    known = chat_tokenizer().convert_ids_to_tokens(ids)
    text = " ".join(t or str(i) for t, i in zip(known, ids, strict=True)).replace("\n", "\\n")
    return ({"the number of tokens": len(ids)} if len(ids) > 100 else {}) | {"the prompt": text}


def fitted(fit, prompt_ids, answer_ids, max_length):
    """The two lists that `fit` returns."""
    got = fit(prompt_ids, answer_ids, max_length)
    if not isinstance(got, list | tuple) or len(got) != 2:
        return {"the return value": kind(got)}
    pair = dict(zip(("input_ids", "labels"), got, strict=True))
    padded = isinstance(got[0], list) and len(got[0]) > len(prompt_ids) + len(answer_ids)
    if padded:
        return {"the return value": "two lists", "the row": "padded"}
    return {"the return value": "two lists", "the row": "as long as its tokens"} | pair


def perplexity_of(perplexity, seed, texts, start=False):
    """The tiny model's `perplexity`, and how that function uses the model; see `add_start`."""
    model, tokenizer = copy.deepcopy(_language_model(seed))
    tokenizer.model_max_length = 1024  # truncation=True cuts here; else there is a warning
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    training, first, shapes = [], {tokenizer(text)["input_ids"][0] for text in texts}, []
    if start:
        tiny.add_start(tokenizer)

    def look(module, args, kwargs):
        training.append(module.training)
        ids = args[0] if args else kwargs.get("input_ids")
        if isinstance(ids, torch.Tensor) and ids.dim() == 2:
            first.update(ids[:, 0].tolist())
            shapes.append(ids.shape)

    @functools.wraps(perplexity)
    def measured(model, *rest):
        value = perplexity(model, *rest)
        return value, any(training) and model.eval()  # a fact reports it, so `kept` need not

    model.register_forward_pre_hook(look, with_kwargs=True)
    before = tiny.settings(tokenizer)
    value, trains = kept(measured, model, tokenizer, texts)
    stayed = tiny.settings(tokenizer) == before
    if trains:
        return {"the model": "in train mode, with dropout: leave it in eval mode"}
    facts = {"the model": "in eval mode", "a text's first token": "its own"}
    if tokenizer.bos_token_id in first:
        facts["a text's first token"] = "a BOS: pass add_special_tokens=False"
    facts["the longest text"] = _whole(shapes, texts)
    if facts["the longest text"] != "whole":
        return facts
    settings = "left as they were" if stayed else "changed"
    return facts | {"the result": value, "the tokenizer's settings": settings}


_language_model = functools.lru_cache(maxsize=4)(tiny.language_model)


def _whole(shapes, texts):
    """How the model reads the longest text, judging by the shapes of its inputs."""
    rows, longest = sum(n for n, _ in shapes), max((n for _, n in shapes), default=0)
    if rows < len(texts) or longest >= max(len(text.split()) for text in texts) - 1:
        return "whole"
    pieces = f"in pieces of at most {longest:,} tokens"
    return pieces if rows > len(texts) else f"cut after {longest:,} tokens: omit truncation"
