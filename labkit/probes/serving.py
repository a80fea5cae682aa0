"""A tiny model with four adapters for lab 7's `route`, and how `route` calls the model."""

import copy
import functools
import json

import torch

from labkit.contract import CheckFailed, kept, kind
from labkit.probes import tiny

ADAPTERS = {"home": 2, "homely": 3, "sweet-home": 7, "tickets": 5}  # and their ranks
ENDS_A_LINE = "now"  # decoded texts have a line break after this word
BATCH = "the number of prompts in a batch"
READS = "what the model reads"
HOW = {  # facts for a right call of generate
    "the model": "in eval mode",
    "the decoding": "greedy",
    "the padding": "on the left",
    READS: "the prompt alone",
    "the adapter of a prompt": "its own",
}
OUT = {}  # results of generate, to run each call once


class _Enough(BaseException):
    """The call of generate is wrong, so generate need not run."""


@functools.lru_cache(2)
def served(seed):
    """A tiny one-block Llama with four adapters; `model.tokenizer` adds nothing to a text."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Regex, decoders

    base, tokenizer = tiny.language_model(seed)
    base.model.layers, base.config.num_hidden_layers = base.model.layers[:1], 1
    lines = decoders.Replace(ENDS_A_LINE, f"{ENDS_A_LINE}\n")
    words, space = decoders.WordPiece(cleanup=False), decoders.Replace(Regex(r"\A"), " ")
    steps = [words, lines, decoders.Fuse(), space]  # a decoded text begins with a space
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    head = base.lm_head.weight.data
    for odd, a, b in ((tokenizer.unk_token_id, 2, 3), (tokenizer.bos_token_id, 4, 5)):
        head[odd] = (head[a] + head[b]) / 2  # never the most likely, so in no answer
    model, rng = None, torch.Generator().manual_seed(seed + 1)
    for name, r in ADAPTERS.items():
        config = LoraConfig(r=r, lora_dropout=0.5, target_modules=["q_proj", "v_proj", "down_proj"])
        with torch.random.fork_rng(devices=[]):
            if model:
                model.add_adapter(name, config)
            else:
                model = get_peft_model(base, config, adapter_name=name)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=rng) * 0.7
    base.generation_config.update(eos_token_id=0, pad_token_id=0)
    model.tokenizer = base.tokenizer = tokenizer
    return model.eval()


def routed(route, seed, prompts, names, trained=True):
    """The answers of `route` and how it calls generate; after a wrong call, only the call.

    If `trained`, the model is in train mode, and the tokenizer pads on the right and adds <start>.
    Otherwise, the model is in eval mode, and the tokenizer pads on the left, with <unk>, and adds
    nothing.
    """
    model = _given(seed, trained)
    base, how, rows = model.get_base_model(), {BATCH: len(prompts)} | HOW, [0]
    model.get_input_embeddings().register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))
    model.generate = _noting(model, seed, how, prompts, names)
    before = _state(base)
    try:
        texts = kept(route, model, prompts, names)
    except _Enough:
        return how
    if type(texts) in (list, tuple) and any(str(t) != str(t).strip() for t in texts):
        raise CheckFailed("an answer still has whitespace around it: strip() each answer")
    if max(rows) < len(prompts):
        how[BATCH] = max(rows)
    for name, value in _state(base).items():
        if value != before[name]:
            raise CheckFailed(f"{name} was {before[name]} and is now {value}")
    listed = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
    facts = how | {"the return value": "a list of texts" if listed else kind(texts)}
    if listed:
        facts |= {"the number of answers": len(texts)} | answers(texts, names)
    return facts


def answers(texts, names):
    """The answers as facts: their lengths, then the words."""
    pairs = enumerate(zip(texts, names, strict=False))
    words = {f"answer {i} ({name})": text.split() for i, (text, name) in pairs}
    sizes = {f"the number of words in {which}": len(text) for which, text in words.items()}
    return sizes | {which: " ".join(text) for which, text in words.items()}


def _given(seed, trained):
    """The model for `route`; copying is refused because a copy would double the memory."""
    model = copy.deepcopy(served(seed)).train(trained)
    base, tokenizer = model.get_base_model(), model.tokenizer
    model.set_adapter("sweet-home")
    tokenizer.padding_side = "right" if trained else "left"
    tokenizer.pad_token = tokenizer.eos_token if trained else tokenizer.unk_token
    base.generation_config.update(do_sample=True, pad_token_id=tokenizer.pad_token_id)
    if trained:
        tiny.add_start(tokenizer)
    for part in (model, model.base_model, base):
        part.__deepcopy__ = _refuse
    return model


def _refuse(memo):
    raise CheckFailed("your code copies the whole model: use the given model itself")


def _state(base):
    facts = {f"generation_config.{k}": repr(v) for k, v in base.generation_config.to_dict().items()}
    for name in ("padding_side", "truncation_side", "pad_token", "eos_token"):
        facts[f"tokenizer.{name}"] = repr(getattr(base.tokenizer, name))
    rates = {m.p for m in base.modules() if isinstance(m, torch.nn.Dropout)}
    return facts | {"len(tokenizer)": str(len(base.tokenizer)), "dropout": str(sorted(rates))}


def _noting(model, seed, how, prompts, names):
    """Make a `model.generate` that records a call's faults in `how` and then stops."""
    generate, base = model.generate, model.get_base_model()
    own = [model.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]

    def noted(*args, **kwargs):
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
            return generate(*args, **kwargs)
        if wrong := _how(base, ids, kwargs, own, names):
            how.update(wrong)
            raise _Enough
        base.get_input_embeddings()(ids)
        call = json.dumps([seed, base.generation_config, ids, kwargs], default=_listed)
        if len(OUT) > 30:
            OUT.clear()
        if call not in OUT:
            OUT[call] = generate(*args, **kwargs)
        return copy.deepcopy(OUT[call])

    return noted


def _listed(thing):
    return thing.tolist() if isinstance(thing, torch.Tensor) else str(thing)


def _how(base, ids, kwargs, own, names):
    """The first wrong fact of a call; `own` are the tokens of each prompt."""
    if len(ids) < len(own):
        return {BATCH: len(ids)}
    if base.training:
        return {"the model": "in train mode"}
    settings = [vars(s) for s in (kwargs.get("generation_config"), base.generation_config) if s]
    sampled = [s["do_sample"] for s in (kwargs, *settings) if s.get("do_sample") is not None]
    if any(sampled[:1]) and kwargs.get("top_k") != 1:
        own_idea = kwargs.get("do_sample") is None
        return {"the decoding": "sampling" + " by default" * own_idea}
    late = [row for row in ids.tolist() if not any(row[-len(one) :] == one for one in own)]
    if late and all(any(_begins(row, one) for one in own) for row in late):
        return {"the padding": "on the right"}
    mask = kwargs.get("attention_mask")
    keep = torch.ones_like(ids).bool() if mask is None else mask.bool()
    read = [row[some].tolist() for row, some in zip(ids, keep, strict=True)]
    if sorted(read) != sorted(own):
        return {READS: _reading(base.tokenizer.bos_token_id, read, own)}
    if (given := kwargs.get("adapter_names")) is None:
        return {"the adapter of a prompt": "the active one"}
    right = sorted(zip(read, given, strict=False)) == sorted(zip(own, names, strict=True))
    return {} if right else {"the adapter of a prompt": "another one"}


def _begins(row, tokens):
    """Whether a row starts with these tokens, possibly after one other token."""
    return tokens in (row[: len(tokens)], row[1 : len(tokens) + 1])


def _reading(start, read, own):
    """Describe the fault in the tokens that the mask lets the model read."""
    if any(row[:2] == [start, start] for row in read):
        return "a prompt with two first tokens"
    if any(row[-len(one) :] == one != row for row in read for one in own):
        return "the prompt and padding"
    if sorted(read) == sorted(one[1:] for one in own):
        return "a prompt without its first token"
    fewer = sum(map(len, read)) < sum(map(len, own))
    return "only a part of it" if fewer else "another text"
