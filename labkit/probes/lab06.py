"""What runs beside the learner's code in lab 6, and brings plain data back to its checks."""

import time

import torch

from labkit.probes.lab03 import WORDS, tiny_language_model

ADAPTERS = ("home", "homely", "tickets")
TARGETS = ("q_proj", "v_proj", "down_proj")
NEW_TOKENS = 48


def merged(merged_weight, W, A, B, alpha):
    """`[what it returns, its dtype, W, A and B afterwards]`."""
    result = merged_weight(W, A, B, alpha)
    return [result, str(getattr(result, "dtype", None)), W, A, B]


def merged_quantized(merge_quantized, W4, absmax, codebook, A, B, alpha, shape):
    """`[what it returns, its dtype, its tensors afterwards]`; a byte index is explained."""
    try:
        result = merge_quantized(W4, absmax, codebook, A, B, alpha, torch.Size(shape))
    except (IndexError, RuntimeError) as error:
        if "mask" in str(error):
            error.args = ("torch takes a uint8 index for a mask: write codebook[W4.long()]",)
        elif str(2 * W4.numel()) in str(error):
            error.args = (f"{error}; W4 holds one code a byte, there is nothing to unpack",)
        raise
    return [result, str(getattr(result, "dtype", None)), W4, absmax, codebook, A, B]


def combined(combine, adapters, weights):
    """`[what it returns, the adapters afterwards]`."""
    result = combine(adapters, weights)
    return [result, adapters]


def souped(soup, states, weights):
    """`[what it returns, the states afterwards]`; weights=None is left to the default."""
    result = soup(states) if weights is None else soup(states, weights)
    return [result, states]


def soup_error(soup, states, weights):
    """The message of what `soup` raises, or None; weights=None is left to the default."""
    try:
        souped(soup, states, weights)
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def ranks(seed):
    """{adapter: rank}: 2 for home, others for the rest, by the seed."""
    others = torch.randint(3, 9, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    return dict(zip(ADAPTERS, (2, *others), strict=True))


def tiny_served(seed, brief=False):
    """A tiny Llama with three adapters, `home` active, and its tokenizer as `model.tokenizer`.

    It is left as a trainer would leave it: in training mode, with dropout, set to sample. With
    `brief`, the weights of `tickets` are in bf16.
    """
    from peft import LoraConfig, get_peft_model

    base, tokenizer = tiny_language_model(seed)
    head = base.lm_head.weight.data
    head[1] = (head[2] + head[3]) / 2  # "<unk>" is never the likeliest, so no answer holds it
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
    """What `swap_cost(model, name)` returns, the active adapters then, and the call's seconds."""
    model = tiny_served(seed, brief=True)
    begun = time.perf_counter()
    cost = swap_cost(model, name)
    took = time.perf_counter() - begun
    return {"cost": cost, "active": list(model.base_model.active_adapters), "took": took}


def routed(route, seed, prompts, adapter_names):
    """The texts that `route` returns, the largest batch seen, and the active adapters then."""
    model, sizes = tiny_served(seed), [0]
    embedding = model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        texts = route(model, prompts, adapter_names)
    except (IndexError, NameError) as error:
        hint = "; take the tokenizer from the model: model.tokenizer"
        error.args = (f"{error}{hint}", *error.args[1:])
        raise
    active = list(model.base_model.active_adapters)
    return {"texts": texts, "batch": max(sizes), "active": active}


def words(rng, n):
    """`n` words that the tiny tokenizer knows, as text."""
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=rng))
