"""A tiny model with adapters, for `swap_cost` and `route` of lab 7: it runs beside their code."""

import time

import torch

from labkit.contract import CheckFailed, kept
from labkit.contract.kept import picture, same
from labkit.probes import tiny

ADAPTERS = ("home", "homely", "sweet-home", "tickets")
TARGETS = ("q_proj", "v_proj", "down_proj")
NEW_TOKENS = 48
NOT_GREEDY = {  # what generate may be told -> what leaves greedy decoding as it is
    "do_sample": (False, None),
    "num_beams": (1, None),
    "repetition_penalty": (1, 1.0, None),
    "no_repeat_ngram_size": (0, None),
    "min_new_tokens": (0, None),
    "min_length": (0, None),
    "max_length": (None, 20),
    "num_return_sequences": (1, None),
    "stop_strings": (None,),
    "suppress_tokens": (None,),
    "bad_words_ids": (None,),
    "penalty_alpha": (None,),
}
ENDS_A_LINE = "now"  # the word behind which a decoded text goes on in the next line
PAD = "a token id lies outside the embedding: pad with one that exists, eos_token"
SAMPLED = "generation_config.do_sample"  # what the model brings, where nothing else is said
ROUTE = {  # what an error of `route` says -> a hint
    "max_length": "max_length counts the prompt, too: ask for max_new_tokens",
    "training mode": "model.eval() first, and afterwards as it was",
    "chat template functions": "prompts come ready to tokenize: no template once more",
    "is not defined": "take the tokenizer from the model: model.tokenizer",
    "out of range": "take the tokenizer from the model: model.tokenizer",
}


def ranks(seed):
    """{adapter: rank}: 2 for home, others for the rest, by the seed; no sum of some is another."""
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed)).tolist()
    return dict(zip(ADAPTERS, (2, *((3, 7, 11)[i] for i in order)), strict=True))


def tiny_served(seed, brief=False, starts=True):
    """A tiny Llama with three adapters, `home` active, and its tokenizer as `model.tokenizer`.

    It is left as a trainer would leave it: in training mode, with dropout, set to sample. With
    `brief`, the weights of `tickets` are in bf16. With `starts`, the tokenizer
    puts a <start> first, as Llama's does; without, it has one and adds none, as SmolLM2's.
    """
    from peft import LoraConfig, get_peft_model
    from tokenizers import decoders

    base, tokenizer = tiny.language_model(seed)
    lines = decoders.Replace(ENDS_A_LINE, f"{ENDS_A_LINE}\n")
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(cleanup=False), lines]
    )
    if starts:
        tiny.add_start(tokenizer)
    head = base.lm_head.weight.data
    for odd, a, b in ((tokenizer.unk_token_id, 2, 3), (tokenizer.bos_token_id, 4, 5)):
        head[odd] = (head[a] + head[b]) / 2  # never the likeliest, so no answer holds it
    base.generation_config.update(eos_token_id=0, pad_token_id=0, do_sample=True)
    model = None
    for name, r in ranks(seed).items():
        config = LoraConfig(r=r, lora_dropout=0.5, target_modules=list(TARGETS))
        with torch.random.fork_rng():
            if model is None:
                model = get_peft_model(base, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
    _fill(model, torch.Generator().manual_seed(seed + 1), brief)
    model.set_adapter("home")
    model.tokenizer = base.tokenizer = tokenizer
    return model.train()


def _fill(model, rng, brief):
    """Adapters that change answers: random numbers from `rng` in every A and B."""
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=rng) * 0.7
            if brief and ".tickets." in name:
                p.data = p.data.bfloat16()


def swapped(swap_cost, seed, name):
    """What `swap_cost(model, name)` returns, the active adapters then, and the call's seconds.

    `layers`: those of PEFT's layers; `active`, `named`: those that the two models around them name;
    `switched`: whether set_adapter was called; `changed`: what else of the model is other than
    before. Another adapter is active at first.
    """
    model = tiny_served(seed, brief=True)
    before = "homely" if name == "sweet-home" else "sweet-home"
    model.set_adapter(before)
    _forbid_copies(model)
    own, switches = model.set_adapter, []
    model.set_adapter = lambda *args, **kwargs: switches.append(args) or own(*args, **kwargs)
    was = picture(model)
    begun = time.perf_counter()
    cost = swap_cost(model, name)
    took = time.perf_counter() - begun
    now = picture(model)
    for one in (was, now):  # the adapters' own flags follow the switch
        flags = one.pop("the parameters that train").items()
        one["what of the base trains"] = {n: flag for n, flag in flags if "lora_" not in n}
    changed = [what for what in was if not same(was[what], now[what])]
    if lost := [name for name in ADAPTERS if name not in model.peft_config]:
        changed = [f"{' and '.join(lost)} taken out of the model"]
    return {
        "cost": cost,
        "active": list(model.base_model.active_adapters),
        "layers": sorted({name for m in model.modules() for name in _active(m)}),
        "named": str(model.active_adapter),
        "before": before,
        "switched": bool(switches),
        "took": took,
        "changed": [what for what in changed if what != "its active adapter"],
    }


def _active(module):
    """The active adapters of one of PEFT's layers; [] for another module, or one switched off."""
    layer = hasattr(module, "base_layer") and not module.disable_adapters
    return module.active_adapters if layer else []


def routed(route, seed, prompts, adapter_names, training=True):
    """What `route` returns, and how: the largest batch and length seen, generate's options.

    The model is in training mode and the tokenizer pads on the right; or the model evaluates, it
    pads on the left and adds no first token, and generate's own padding is another token.

    `starts`: whether a row had a first token; `twice`: whether all had two (padding may be one).
    `changed` tells what it changed of the tokenizer and generate's settings. The active adapter
    is neither the first nor the last to answer.
    """
    model, options = tiny_served(seed, starts=training).train(training), {}
    sizes, modes, starts = [(0, 0)], set(), []  # of each pass; first tokens, fewest and most
    model.set_adapter("sweet-home")
    base, tokenizer = model.get_base_model(), model.tokenizer
    tokenizer.padding_side = "right" if training else "left"
    base.generation_config.pad_token_id = 0 if training else tokenizer.unk_token_id

    def note(_, inputs):
        ids = inputs[0]
        sizes.append(tuple(ids.shape[:2]))
        modes.add(base.training)
        starts.append((ids == tokenizer.bos_token_id).sum(-1).aminmax())

    model.get_input_embeddings().register_forward_pre_hook(note)
    base.generate = _noting(base, options)
    _forbid_copies(model)
    before, size = _settings(base, tokenizer), len(tokenizer)
    try:
        texts = kept(route, model, prompts, adapter_names)
    except (IndexError, NameError, ValueError) as error:
        hint = next((hint for sign, hint in ROUTE.items() if sign in str(error)), None)
        hint = PAD if len(tokenizer) > size else hint
        error.args = (f"{error}; {hint}",) if hint else error.args
        raise
    now = _settings(base, tokenizer)
    return {
        "texts": texts,
        "batch": max(rows for rows, _ in sizes),
        "longest": max(tokens for _, tokens in sizes),
        "options": options,
        "trained": True in modes,
        "starts": any(most > 0 for _, most in starts),
        "twice": any(fewest > 1 for fewest, _ in starts),
        "changed": {what: [was, now[what]] for what, was in before.items() if was != now[what]},
    }


def _settings(base, tokenizer):
    rates = {str(m.p) for m in base.modules() if isinstance(m, torch.nn.Dropout)}
    settings = base.generation_config.to_dict()
    settings = {f"generation_config.{name}": str(value) for name, value in settings.items()}
    names = ("padding_side", "truncation_side", "pad_token", "eos_token")
    settings |= {f"tokenizer.{name}": str(getattr(tokenizer, name)) for name in names}
    sizes = {"len(tokenizer)": str(len(tokenizer)), "dropout": ", ".join(sorted(rates))}
    return settings | sizes


def _noting(base, options):
    """`base.generate` that puts into `options`, as text, what is not greedy in its arguments."""
    generate = base.generate

    def noted(*args, **kwargs):
        given = kwargs.get("generation_config")
        told = given.to_dict() if hasattr(given, "to_dict") else {}
        for name, value in (told | kwargs).items():
            if name in NOT_GREEDY and value not in NOT_GREEDY[name]:
                options[name] = str(value)
        if (told | kwargs).get("do_sample") is None and base.generation_config.do_sample:
            options[SAMPLED] = "True"
        return generate(*args, **kwargs)

    return noted


def _forbid_copies(model):
    """A copy of the model costs its whole memory, so making one is told at once."""

    def refuse(memo):
        raise CheckFailed("it copies the whole model; work on the one that is there")

    model.__deepcopy__ = model.base_model.__deepcopy__ = refuse
    model.get_base_model().__deepcopy__ = refuse
