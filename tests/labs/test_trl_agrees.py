"""Solutions of labs 3 and 8, checks' references and TRL's own trainers: the same numbers."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from answers import solved
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from labkit.checks import lab08
from labkit.probes import lab03, tiny

PROMPTS, SAMPLES, STEPS, RATE = 3, 4, 3, 0.03
PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "gradient_checkpointing": False,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "learning_rate": RATE,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}


SOLVED = solved("08_rewards", "8.1", "8.2", "8.3", "8.4", "8.5")
CONFIG = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"])


def plain():
    """A tiny model without dropout, and its tokenizer."""
    base, tokenizer = tiny.language_model(seed=4)
    for part in (base.config, *base.modules()):
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.0
    base.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    return base, tokenizer


def filled(model):
    """The model, its adapter filled with numbers that change what it says."""
    rng = torch.Generator().manual_seed(5)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = 0.3 * torch.randn(p.shape, generator=rng)
    return model


def texts(n, seed):
    rng = torch.Generator().manual_seed(seed)
    return [tiny.words(rng, 2, 6) for _ in range(n)]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """TRL's trainer of preferences, on five pairs, in the middle of its training."""
    base, tokenizer = plain()
    columns = {name: texts(5, i) for i, name in enumerate(("prompt", "chosen", "rejected"))}
    columns |= {name: [f" {text}" for text in columns[name]] for name in ("chosen", "rejected")}
    args = DPOConfig(str(tmp_path_factory.mktemp("dpo")), beta=0.3, **PLAIN)
    rows = Dataset.from_dict(columns)
    more = {"processing_class": tokenizer, "peft_config": CONFIG}
    trainer = DPOTrainer(base, args=args, train_dataset=rows, **more)
    filled(trainer.model)
    return trainer


class Noting(GRPOTrainer):
    """TRL's trainer of rewards, which keeps the first batch that it was given."""

    batch = None

    def compute_loss(self, model, inputs, *rest, **more):
        self.batch = self.batch or dict(inputs)
        return super().compute_loss(model, inputs, *rest, **more)


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory):
    """TRL's trainer of rewards after some steps on one rollout, with the model before them."""
    base, tokenizer = plain()
    before = filled(get_peft_model(base, CONFIG))
    rng = torch.Generator().manual_seed(6)
    lengths = torch.randint(2, 7, (PROMPTS * SAMPLES,), generator=rng).tolist()
    said = [torch.randint(1, 18, (n,), generator=rng).tolist() for n in lengths]
    paid = torch.rand(PROMPTS * SAMPLES, generator=rng).tolist()
    paid[:SAMPLES] = [0.5] * SAMPLES  # a group that teaches nothing

    def rollout(prompts, trainer):
        asked = [tokenizer(text)["input_ids"] for text in prompts]
        trainer.rows = list(zip(asked, said, strict=True))
        return {"prompt_ids": asked, "completion_ids": said, "logprobs": None}

    args = GRPOConfig(
        str(tmp_path_factory.mktemp("grpo")),
        num_generations=SAMPLES,
        per_device_train_batch_size=PROMPTS * SAMPLES,
        max_steps=STEPS,
        num_iterations=STEPS,
        shuffle_dataset=False,
        beta=0.0,
        temperature=1.0,
        max_completion_length=8,
        **PLAIN,
    )
    trainer = Noting(
        copy.deepcopy(before),
        lambda completions, **_: paid,
        args,
        Dataset.from_dict({"prompt": texts(PROMPTS, 9)}),
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.train()
    trainer.before, trainer.paid = before, torch.tensor(paid).view(PROMPTS, SAMPLES)
    return trainer


def plain_loop(model, said, rewards):
    """Some steps on one batch, as the lab takes them: the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    gains = SOLVED.group_advantages(rewards).flatten()
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    ids = pad([torch.tensor(asked + answer) for asked, answer in said])
    labels = pad([torch.tensor([0] * len(asked) + answer) for asked, answer in said])[:, 1:]
    seen = pad([torch.ones(len(asked + answer)).long() for asked, answer in said])
    mask, losses, old = labels > 0, [], None
    for _ in range(STEPS):
        logp = model(input_ids=ids, attention_mask=seen).logits[:, :-1].log_softmax(-1)
        logp = logp.gather(-1, labels[..., None])[..., 0]
        old = logp.detach() if old is None else old
        loss = SOLVED.grpo_loss(logp, old, gains, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_plain_loop_and_grpo_trainer_take_the_same_steps(rewarded):
    theirs = [row["loss"] for row in rewarded.state.log_history if "loss" in row]
    mine = copy.deepcopy(rewarded.before)
    ours = plain_loop(mine, rewarded.rows, rewarded.paid)
    assert ours == pytest.approx(theirs, abs=2e-5) and max(map(abs, ours)) > 0.05
    for mine_now, theirs_now in zip(mine.parameters(), rewarded.model.parameters(), strict=True):
        torch.testing.assert_close(mine_now, theirs_now, atol=2e-4, rtol=1e-3)
    moved = zip(rewarded.before.parameters(), mine.parameters(), strict=True)
    assert max((a - b).abs().max() for a, b in moved) > RATE


def test_advantages_are_those_of_grpo_trainer(rewarded):
    theirs = rewarded.batch["advantages"].sort().values  # it shuffles them with their answers
    for ours in (SOLVED.group_advantages(rewarded.paid), lab08.z_scores(rewarded.paid).float()):
        torch.testing.assert_close(ours.flatten().sort().values, theirs, atol=1e-5, rtol=1e-5)
        assert (ours[0] == 0).all() and (ours[1:] != 0).all()


def test_clipped_losses_are_those_of_grpo_trainer(rewarded, monkeypatch):
    """Random numbers in the place of the model's, ratios far beyond the clip among them."""
    settings = {"loss_type": "bnpo", "epsilon_low": 0.3, "epsilon_high": 0.3}
    for name, value in (settings | {"current_gradient_accumulation_steps": 1}).items():
        monkeypatch.setattr(rewarded, name, value)
    for seed in range(20):
        logp, old, gains, mask = lab08.batch(torch.Generator().manual_seed(seed))
        leaf = logp.requires_grad_()
        told = lambda *_, leaf=leaf, **__: (leaf, leaf.detach() * 0, None)  # noqa: E731
        monkeypatch.setattr(rewarded, "_get_per_token_logps_and_entropies", told)
        ids = torch.ones(mask.shape, dtype=torch.long)
        given = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids}
        given |= {"completion_mask": mask.long(), "advantages": gains, "old_per_token_logps": old}
        theirs = rewarded._compute_loss(rewarded.model, given)
        ours = SOLVED.grpo_loss(leaf, old, gains, mask, clip=0.3)
        facts = lab08.by_token(logp.detach(), old, gains, mask, 0.3)
        by_token, slope = facts["the loss"], facts["the gradient for logp"]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_token.float(), theirs.detach(), atol=1e-5, rtol=1e-5)
        (gradient,) = torch.autograd.grad(theirs, leaf)
        torch.testing.assert_close(slope.float(), gradient, atol=1e-6, rtol=1e-4)


def test_dpo_is_that_of_dpo_trainer(preferences):
    """The adapter switched off is the reference, as it is in TRL."""
    model = preferences.model.eval()
    batch = preferences.data_collator(list(preferences.train_dataset))
    with torch.no_grad():
        theirs = preferences.compute_loss(model, batch)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        rows = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        policy = SOLVED.sequence_logprob(model(**rows).logits, labels)
    before = SOLVED.reference_logprobs(model, rows | {"labels": labels})
    ours = SOLVED.dpo_loss(*policy.chunk(2), *before.chunk(2), 0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert abs(ours - torch.tensor(2.0).log()) > 0.01  # the adapter says something else


def test_dpo_losses_are_those_of_dpo_trainer(preferences, monkeypatch):
    """Random numbers in the place of both models', margins of a thousand nats among them."""
    monkeypatch.setattr(preferences, "precompute_ref_logps", True)
    monkeypatch.setattr(preferences, "beta", 0.5)
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        four = lab08.pairs(rng, spread=4.0 if seed < 15 else 1000.0)
        told = torch.cat(four[:2])[:, None]
        ids = torch.ones(len(told), 2, dtype=torch.long)
        given = {"input_ids": ids, "attention_mask": ids, "completion_mask": ids}
        given |= {"ref_chosen_logps": four[2], "ref_rejected_logps": four[3]}

        def model(told=told, **_):
            shown = {name: torch.zeros_like(told) for name in ("entropy", "mean_logits")}
            return SimpleNamespace(log_probs=told, is_top1=told > 0, **shown)

        theirs = preferences._compute_loss(model, given, return_outputs=False)
        torch.testing.assert_close(SOLVED.dpo_loss(*four, 0.5), theirs, atol=1e-5, rtol=1e-5)
        ours = lab08.preference(*four, 0.5)["the loss"].float()
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_prompts_and_labels_are_those_of_sft_trainer(tmp_path):
    """Lab 3's, of a batch that TRL pads with the end token."""
    mine = solved("03_peft", "3.2", "3.3")
    model, tokenizer = tiny.language_model(seed=4)[0], copy.deepcopy(lab03.chat_tokenizer())
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    user, assistant = (
        [{"role": r, "content": t} for t in texts(8, 1)] for r in ("user", "assistant")
    )
    pairs = zip(user, reversed(assistant), strict=True)
    rows = Dataset.from_list([{"prompt": [m], "completion": [a]} for m, a in pairs])
    args = SFTConfig(str(tmp_path), **PLAIN)
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    (batch,) = trainer.get_train_dataloader()
    opening = tokenizer.convert_tokens_to_ids("<assistant>\n")
    lengths = (batch["input_ids"] == opening).int().argmax(1) + 1
    labels = mine.answer_labels(batch["input_ids"], batch["attention_mask"], lengths)
    assert torch.equal(labels, batch["labels"]) and (batch["attention_mask"] == 0).any()
    asked = zip(batch["input_ids"].tolist(), lengths, strict=True)
    ours = [mine.render_prompt(row["prompt"], tokenizer) for row in rows]
    assert sorted(ids[:n] for ids, n in asked) == sorted(ours)
