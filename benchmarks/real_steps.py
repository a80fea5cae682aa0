"""Run training steps of models with random weights, using the libraries alone.

`memory_accuracy.py` and the memory tests compare the simulation with these steps. Only the settings
come from labkit.
"""

import contextlib
import copy
import itertools
import tempfile

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from labkit.memory import configs

SMALL = {  # hidden, ffn, layers, heads, key-value heads, vocabulary, tied
    "gqa-untied": (256, 688, 4, 8, 2, 8000, False),
    "mha-tied": (320, 1024, 6, 5, 5, 12000, True),
    "mha-untied": (512, 1376, 3, 8, 8, 4000, False),
    "gqa-tied-qwen": (384, 1536, 5, 6, 2, 16000, True),
}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]  # as PEFT's target_parameters has them
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERT = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {  # a built-in model, and what its tiny version has besides `TINY`
    "qwen3-8b": {"layer_types": ["full_attention"] * 3},
    "qwen3-30b-a3b": EXPERT | {"moe_intermediate_size": 48},
    "gemma-3-4b": {"sliding_window": 16, "layer_types": KINDS},
    "gpt-oss-20b": EXPERT | {"sliding_window": 16, "layer_types": KINDS},
    "llama-4-scout": {
        **{"num_local_experts": 4, "intermediate_size_mlp": 160, "attention_chunk_size": 32},
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        **{"no_rope_layers": [1, 0, 1], "moe_layers": [0, 1, 2]},
    },
    "phi-4": {},
    "smollm3-3b": {"no_rope_layers": [1, 0, 1], "layer_types": ["full_attention"] * 3},
    "deepseek-v3": {
        **{"n_routed_experts": 8, "num_local_experts": 8, "n_group": 2, "topk_group": 1},
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 48, "first_k_dense_replace": 1},
        **{"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16},
        **{"v_head_dim": 16, "qk_head_dim": 24, "num_key_value_heads": 6, "head_dim": 8},
    },
}
TINY = {
    **{"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 16},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 700, "pad_token_id": 0},
}


def tiny(name):
    """A tiny version of a built-in model: the same architecture with three small layers."""
    config = configs.find(name)
    for field, value in (TINY | FAMILIES[name]).items():
        setattr(config, field, value)
    return config


def small_config(name):
    """A small random-weight configuration of `SMALL`."""
    kind = transformers.Qwen2Config if "qwen" in name else transformers.LlamaConfig
    return sized(SMALL[name], kind)


def sized(sizes, kind=transformers.LlamaConfig):
    """A configuration of the sizes that a row of `SMALL` lists."""
    hidden, ffn, layers, heads, kv, vocab, tied = sizes
    return kind(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )


def real_model(config, settings, device):
    """The model with random weights, loaded and adapted by the libraries as a user would."""
    import peft

    with tempfile.TemporaryDirectory() as folder:
        dtype = getattr(torch, settings.dtype)
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
        quantised = None
        if settings.method == "qlora":
            quantised = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=settings.double_quant,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager" if config.model_type == "gpt_oss" else settings.attention,
            quantization_config=quantised,
            device_map={"": device},
        )
    for module in model.modules():  # no packing of weights in rollouts, as on a GPU
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if settings.prepare_kbit:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if settings.method != "full":
        names = settings.target_names
        lora = peft.LoraConfig(
            r=settings.rank,
            target_modules=names[0] if names == ["all-linear"] else names,
            lora_dropout=settings.dropout,
            use_dora=settings.dora,
            target_parameters=EXPERTS if settings.experts else None,
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, lora)
    if settings.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def allocators_peak(job):
    """Bytes at most allocated above the start, from the CPU allocator's log of events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        job()
    events = log.profiler.kineto_results.events()
    changes = [
        (e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]"
    ]
    return max(itertools.accumulate(n_bytes for *_, n_bytes in sorted(changes)))


def training(model, config, settings, device):
    """`(optimizer, step)`: AdamW as the settings have it, and a function that takes one step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    how = {"fused": True} if settings.optim.endswith("fused") else {"foreach": True}
    optimizer = torch.optim.AdamW(trained, **how)
    losses = {"sft": plain_loss, "dpo": dpo_loss, "grpo": grpo_loss}
    reference = copy.deepcopy(model).requires_grad_(False) if settings.second_model else None
    ids = torch.randint(config.vocab_size, (settings.rows, settings.seq), device=device)

    def step():
        for _ in range(settings.accumulation):
            loss = losses[settings.objective](model, ids, settings, reference)
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()

    step.reference = reference
    return optimizer, step


def cast(settings, ids):
    return torch.autocast(ids.device.type, torch.bfloat16, enabled=settings.autocast)


def plain_loss(model, ids, settings, reference):
    kept = settings.answer_tokens or 0
    batch = {"input_ids": ids, "labels": ids[:, -kept:]}
    if settings.padded:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][0, -1] = 0
    with cast(settings, ids):
        return model(**batch, use_cache=False, logits_to_keep=kept).loss


def token_logps(model, ids, settings):
    """Log-probabilities of the tokens after the first, or of the last answer_tokens."""
    kept = settings.answer_tokens
    with cast(settings, ids):
        logits = model(ids, use_cache=False, logits_to_keep=kept + 1 if kept else 0).logits
    logps = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return torch.gather(logps, 2, ids[:, -logps.shape[1] :].unsqueeze(2)).squeeze(2)


def dpo_loss(model, ids, settings, reference):
    """As in the paper: how much likelier chosen and rejected became than under the reference."""
    model.eval()
    with torch.no_grad(), contextlib.nullcontext() if reference else model.disable_adapter():
        before = token_logps(reference or model, ids, settings).sum(1)
    model.train()
    ratios = token_logps(model, ids, settings).sum(1) - before
    n = settings.batch
    return torch.nn.functional.softplus(-0.1 * (ratios[:n] - ratios[n:])).mean()


def grpo_loss(model, ids, settings, reference):
    """Answers drawn by transformers' own `generate`, and a clipped loss on them."""
    prompts, n = ids[:, : -settings.answer_tokens], settings.answer_tokens
    model.eval()
    with torch.no_grad(), cast(settings, ids):
        ids = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            min_new_tokens=n,
            max_new_tokens=n,
            pad_token_id=0,
        )
    model.train()
    logps = token_logps(model, ids, settings)
    ratio = torch.exp(logps - logps.detach())
    advantage = torch.randn(len(ids), 1)
    return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


def held_by(model, optimizer, step):
    """What counts from the start of a step."""
    return [thing for thing in (model, optimizer, step.reference) if thing is not None]
