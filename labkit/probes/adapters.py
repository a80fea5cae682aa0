"""Facts about what training steps and loading do to tiny models with LoRA.

Long, for two topics: the probes of checkpointing and of loading share these models.
"""

import contextlib
import copy
import functools
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

import torch

from labkit.contract import CheckFailed, kind
from labkit.contract.kept import same
from labkit.probes import tiny

FILES = ["adapter_config.json", "adapter_model.safetensors"]
LOADERS = (  # classes whose from_pretrained loads a whole model
    "peft.auto._BaseAutoPeftModel",
    "transformers.PreTrainedModel",
    "transformers.AutoModelForCausalLM",
    "transformers.models.auto.auto_factory._BaseAutoModelClass",
)
REFUSALS = (ValueError, KeyError, RuntimeError, AssertionError)  # errors that a learner may raise
RECURSION = "RecursionError: a function defined in a loop sees only the last block and calls "
RECURSION += "itself. Bind the old forward, as partial does"
MISFITS = {  # a fault in an adapter file's names: the function that makes it
    "where every name has a wrong prefix": lambda key: key.replace("layers.", "_orig_mod.layers."),
    "where one block's names have a wrong prefix": lambda key: key.replace(
        "layers.1.", "_orig_mod.layers.1."
    ),
    "where one name is missing": lambda key: "" if "layers.1.mlp.up_proj.lora_B" in key else key,
    "with the names of one block too many": None,
}


def lora(model):
    """Map names in the base model to the layers that have LoRA, `{name: layer}`."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A") and m.lora_A}
    return {name.removeprefix("base_model.model."): layer for name, layer in layers.items()}


def trains(model):
    """The names of the trained parameters; every A and B is called "lora_A" or "lora_B"."""
    names = [
        n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad
    ]
    short = {name: name.split(".")[-3] for name in names if name.count(".") > 2}
    return sorted({short[n] if short.get(n) in ("lora_A", "lora_B") else n for n in names})


def settings(model):
    """A model's LoRA settings and its trained parameters."""
    layers, (name, config) = lora(model), next(iter(model.peft_config.items()))
    every = layers.values()
    return {
        "the layers that have LoRA": sorted(layers),
        "r": _one({m.r.get(name) for m in every}),
        "lora_alpha": _one({float(m.lora_alpha[name]) for m in every}),
        "alpha / r": _one({m.scaling[name] for m in every}),
        "lora_dropout": _one({float(getattr(m.lora_dropout[name], "p", 0.0)) for m in every}),
        "task_type": str(getattr(config.task_type, "value", config.task_type)),
        "the parameters that train": trains(model),
    }


def _one(values):
    return sorted(values) if len(values) > 1 else next(iter(values), None)


def tuned(seed, r, targets):
    """The tiny Llama with nonzero LoRA and with dropout, in eval mode."""
    return copy.deepcopy(_tuned(seed, r, tuple(targets)))


@functools.lru_cache(maxsize=8)
def _tuned(seed, r, targets):
    """The same model, cached; callers must not change it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_dropout=0.5, target_modules=[*targets], task_type="CAUSAL_LM")
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(), torch.no_grad():
        model = get_peft_model(tiny.llama(torch.Generator().manual_seed(seed)), config).eval()
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return model


def raised_by(f, error):
    """Whether an exception was raised in the learner's own code, not in a library."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    own = getattr(f, "__code__", None)
    return own is not None and trace.tb_frame.f_code.co_filename == own.co_filename


def a_step(model, seed, ids, before_backward=lambda: None):
    """Run one step in train mode: `(loss, {name: gradient})`."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        loss = model.train()(input_ids=ids, labels=ids, use_cache=False).loss
        before_backward()
        loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if "lora_" in n}
    names = {n: n.removeprefix("base_model.model.").removesuffix(".default.weight") for n in grads}
    return loss.item(), {names[n]: g for n, g in grads.items() if g is not None and g.any()}


def flat(grads):
    """Concatenate gradients to one vector, in the order of their names."""
    return torch.cat([grads[name].flatten() for name in sorted(grads)] or [torch.zeros(0)])


def _note(runs, i, part, *_):
    runs.append((i, type(part), torch.is_grad_enabled()))


def checkpointed(with_checkpointing, seed, targets, ids):
    """Facts about a training step of the model that `with_checkpointing` returns."""
    model = tuned(seed, 2, targets)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    blocks, runs, again = list(model.get_base_model().model.layers), [], []
    result = with_checkpointing(model)
    facts = {"the return value": "the model it was given" if result is model else kind(result)}
    facts["the parameters that train"] = trains(model)
    if facts["the parameters that train"] != ["lora_A", "lora_B"]:
        return facts
    for i, block in enumerate(blocks):
        for part in (block.self_attn, block.mlp):
            part.register_forward_pre_hook(functools.partial(_note, runs, i))
    failed, record = "", "recorded for backward()"
    with mock.patch("torch.utils.checkpoint.check_backward_validity") as reentrant:
        try:
            loss, grads = a_step(model, seed, ids, lambda: again.append(len(runs)))
        except RecursionError:
            raise CheckFailed(RECURSION) from None
        except RuntimeError as error:
            if not again:
                raise
            failed = f"raise an error ({error}"[:60].partition(" and ")[0] + ")"
    calls = [call.args[0] for call in reentrant.call_args_list]
    if not all(any(getattr(x, "requires_grad", False) for x in inputs) for inputs in calls):
        record = "lost, as no input requires grad"
    elif not calls and not all(recorded for *_, recorded in runs[: again[0]]):
        record = "under no_grad, where nothing trains"
    facts |= {"the forward pass of the blocks": record, "loss.backward()": failed or "run"}
    if failed:
        return facts
    count = Counter(run[:2] for run in runs)
    times = [min(count[i, type(p)] for p in (b.self_attn, b.mlp)) for i, b in enumerate(blocks)]
    order = list(dict.fromkeys(i for i, *_ in runs[again[0] :]))
    how = "one at a time" if order == sorted(order, reverse=True) else "all at once"
    stayed = all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    return facts | {
        "the A and B that get a gradient": sorted(grads),
        "the checkpointed blocks": [f"model.layers.{i}" for i, n in enumerate(times) if n > 1],
        "the most runs of a block in a step": max(times),
        "the blocks": f"recomputed {how}",
        "the loss": loss,
        "the gradient of A and B": flat(grads),
        "the weights": "left as they were" if stayed else "changed",
    }


@functools.lru_cache(4)
def _base(seed):
    """The tiny model for a seed, cached."""
    return tiny.llama(torch.Generator().manual_seed(seed))


def loaded(load_tuned, seed, r, targets, ids):
    """Facts about the result of `load_tuned(base, folder)`."""
    from peft import PeftModel

    base = copy.deepcopy(_base(seed))
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    try:
        model = _load(load_tuned, base, seed, r, targets)
    except (CheckFailed, NotImplementedError):
        raise
    except REFUSALS as error:
        if not raised_by(load_tuned, error):
            raise
        what = f"load_tuned() raised {type(error).__name__} ({str(error)[:60]}), but this adapter "
        what += "fits: compare the file's names with the keys of get_peft_model_state_dict(model)"
        raise CheckFailed(what) from None
    if not isinstance(model, PeftModel):
        how = _how(model, before) if isinstance(model, torch.nn.Module) else kind(model)
        return {"the return value": how}
    facts = {"the return value": "a PeftModel", "the number of adapters": len(model.peft_config)}
    if len(model.peft_config) > 1:
        return facts
    after = {name.replace(".base_layer", ""): p for name, p in base.named_parameters()}
    stayed = same(before, {name: after.get(name) for name in before})
    own = any(m is base for m in model.modules())
    merged = any(getattr(m, "merged", False) is True for m in model.modules())
    mode = f"in {'training' if any(m.training for m in model.modules()) else 'eval'} mode"
    trained, active = trains(model), _active(model, _tuned(seed, r, tuple(targets)))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
    return facts | {
        "the model": mode,
        "the parameters that train": trained,
        "the model under the adapter": "`base` itself" if own else "another one",
        "the number of PeftModels": sum(isinstance(m, PeftModel) for m in model.modules()),
        "the adapter": "merged into them" if merged else "next to the base's weights",
        "the adapter that is active": active,
        "the output": logits,
        "the base's weights": "left as they were" if stayed else "changed",
        "the output with the adapter switched off": plain,
    }


def misfit(load_tuned, seed, r, targets, wrong):
    """How `load_tuned` handles a file whose names differ from those the model expects."""
    base = copy.deepcopy(_base(seed))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # PEFT's, expected here
            _load(load_tuned, base, seed, r, targets, wrong)
    except (NotImplementedError, CheckFailed):
        raise
    except Exception:
        return {"load_tuned()": "raise an error"}
    return {"load_tuned()": "return without an error"}


def _load(load_tuned, base, seed, r, targets, wrong=""):
    """Call `load_tuned` on a folder with the adapter of `tuned`; `wrong`: see MISFITS."""
    with tempfile.TemporaryDirectory() as folder, _no_other_base():
        for name, data in _files(seed, r, tuple(targets), wrong).items():
            (Path(folder) / name).write_bytes(data)
        return load_tuned(base, folder)


@functools.lru_cache(maxsize=16)
def _files(seed, r, targets, wrong):
    """`{name: bytes}` of an adapter on disk, cached because saving takes longer than loading."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        tuned(seed, r, targets).save_pretrained(folder)
        path, rename = Path(folder) / FILES[1], MISFITS.get(wrong)
        if wrong:
            saved = load_file(path)
            more = {k.replace("layers.1.", "layers.2."): w.clone() for k, w in saved.items()}
            named = more | saved if rename is None else {rename(k): w for k, w in saved.items()}
            save_file({key: w for key, w in named.items() if key}, path)
        return {name: (Path(folder) / name).read_bytes() for name in FILES}


def _active(model, source):
    if any(getattr(m, "disable_adapters", False) is True for m in lora(model).values()):
        return "none"
    wanted = [p.detach() for n, p in source.named_parameters() if "lora_" in n]
    own = [(n.split("."), p.detach()) for n, p in model.named_parameters() if "lora_" in n]
    names = list(model.active_adapters)
    if len(names) > 1:
        return "several"
    active = [p for parts, p in own if names[0] in parts[-2:]]
    return "the saved one" if same(active, wanted) else "another one"


def _how(model, before):
    """Describe where the adapter is in a model that is not a PeftModel."""
    after = dict(model.named_parameters())
    if any("lora_" in name for name in after):
        by_transformers = getattr(model, "_hf_peft_config_loaded", False)
        return f"a plain model with LoRA inside{' (by transformers)' * by_transformers}"
    unchanged = all(torch.equal(p, after.get(name, p)) for name, p in before.items())
    return "a model without an adapter" if unchanged else "a model with the adapter merged into it"


@contextlib.contextmanager
def _no_other_base():
    """Refuse to load any model but `base`, and turn off the Hub, which would take minutes."""

    def refused(*_, **__):
        raise CheckFailed("load_tuned loads another base: put the adapter on `base`")

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True))
        for place in LOADERS:
            stack.enter_context(mock.patch(f"{place}.from_pretrained", refused))
        yield
