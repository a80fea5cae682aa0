"""Rollouts and pairs: log-probabilities are those of plain forwards, and rows stand in order."""

import pytest
import torch
from datasets import Dataset
from test_fast import tuned

from labkit.probes import tiny
from labkit.training import pairs, rollouts


def drawn():
    """Answers of 1 to 5 tokens after two prompts, which begin alike; two of them are the same."""
    rng = torch.Generator().manual_seed(1)
    made = []
    for k, prompt in enumerate([[3, 4, 5], [3, 4, 6, 7]] * 2):
        said = torch.randint(2, 19, (1 + k + k // 3,), generator=rng).tolist()
        labels = [-100] * len(prompt) + said
        made.append({"input_ids": prompt + said, "labels": labels})
    return [*made, made[2]]


def plain(model, answers):
    found = []
    for answer in answers:
        ids, labels = (torch.tensor([answer[name]]) for name in ("input_ids", "labels"))
        logp = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        found.append(logp[labels[:, 1:] != -100])
    return torch.cat(found)


@pytest.mark.parametrize("trained_head", [False, True])
def test_logprobs_and_their_gradient_are_those_of_plain_forwards(monkeypatch, trained_head):
    monkeypatch.setattr(rollouts.fast, "ROWS", 4)  # several parts
    model, answers = tuned().eval(), drawn()
    model.get_output_embeddings().weight.requires_grad_(trained_head)
    logp, mask = rollouts.logprobs(model, answers)
    wanted = plain(model, answers)
    assert mask.sum(1).tolist() == [sum(y != -100 for y in a["labels"]) for a in answers]
    assert not logp[~mask].any()
    torch.testing.assert_close(logp[mask], wanted, rtol=1e-5, atol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = torch.randn(len(wanted), generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad((logp[mask] * weights).sum(), trained)
    asked = torch.autograd.grad((wanted * weights).sum(), trained)
    for g, w in zip(got, asked, strict=True):  # rounding goes with a tensor's largest
        torch.testing.assert_close(g, w, rtol=0, atol=2e-5 * float(w.abs().max()))


def test_answers_stand_by_prompt_and_have_labels_where_they_are():
    model, tokenizer = tiny.language_model(seed=0)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    asked = ("light on", "fan off now")
    rows = [{"messages": [{"role": "user", "content": text}]} for text in asked]

    def answers():
        rng = torch.Generator().manual_seed(0)
        return rollouts.sample(model.float(), tokenizer, rows, 3, 5, generator=rng)

    found = answers()
    assert [a["row"] for a in found] == [rows[0]] * 3 + [rows[1]] * 3
    assert found == answers()
    assert len({a["text"] for a in found}) > 2
    for a in found:
        n = sum(y != -100 for y in a["labels"])
        assert 1 <= n <= 5 and a["labels"][-n:] == a["input_ids"][-n:]


def test_prompts_are_drawn_by_the_seed_and_few_in_a_rehearsal(monkeypatch):
    rows = Dataset.from_list([{"n": i} for i in range(50)])
    first = list(rollouts.prompts(rows, 4, 5, seed=1))
    edges = (0, 12, 25, 38, 50)  # a row of each quarter
    for part in first:
        assert all(a <= row["n"] < b for row, a, b in zip(part, edges, edges[1:], strict=False))
    assert first == list(rollouts.prompts(rows, 4, 5, seed=1))
    assert first != list(rollouts.prompts(rows, 4, 5, seed=2))
    monkeypatch.setenv("LABKIT_REHEARSAL", "1")
    assert len(list(rollouts.prompts(rows, 4, 5))) == 3


def test_pairs_stand_chosen_first_padded_on_the_right(tokenizer):
    texts = [("one", "yes", "a much longer no"), ("two words", "y", "n"), ("3", "good one", "bad")]
    data = {"prompt": [[{"role": "user", "content": prompt}] for prompt, *_ in texts]}
    for at, name in enumerate(("chosen", "rejected"), start=1):
        data[name] = [[{"role": "assistant", "content": row[at]}] for row in texts]
    made = pairs.batches(Dataset.from_dict(data), tokenizer, 2, 3)
    assert len(made) == 3 and all(len(batch["labels"]) == 4 for batch in made)
    said = set()
    for batch in made:
        ids, labels, seen = (batch[n] for n in ("input_ids", "labels", "attention_mask"))
        assert (seen.diff(dim=1) <= 0).all()  # ones, then zeros
        assert (labels[seen == 0] == -100).all()
        told = labels != -100
        assert (labels[told] == ids[told]).all()
        answers = [tokenizer.decode(y[y != -100], skip_special_tokens=True).strip() for y in labels]
        said |= set(zip(answers[:2], answers[2:], strict=True))
    assert said <= {(chosen, rejected) for _, chosen, rejected in texts} and len(said) > 1
