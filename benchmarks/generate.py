"""Time answers: `labkit.training.generation` compared with transformers' `generate`.

Both answer the same `home` commands with an unmerged LoRA (r=16, all linear layers, trained for
some steps so that answers end), 64 rows at once. The two take turns, and the reported ratio is the
median over rounds. On commands of all three tasks, answers in fp32 must be identical, letter by
letter. In bf16, rounding may break ties either way.

    python benchmarks/generate.py --rounds 3 --out build/generate.json
"""

import argparse
import statistics
import time

import studies
import torch
from peft import LoraConfig, get_peft_model

from labkit import tasks
from labkit.training import generation, loop, models

NEW_TOKENS = 40


def adapted(dtype, steps):
    """The labs' model in `dtype` with a LoRA that was trained on `home`, and its tokenizer."""
    torch.manual_seed(0)
    model, tokenizer = models.load(device="cpu", dtype=dtype)
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    for batch in loop.batches(tasks.load("home", "train"), tokenizer, 16, steps):
        loop.answer_loss(tuned, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned.eval(), tokenizer


@torch.no_grad()
def plain(model, tokenizer, conversations):
    """Answers as transformers gives them: padded on the left, one `generate` for 64 rows."""
    prompts = [loop.prompt_ids(tokenizer, messages) for messages in conversations]
    told = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer.pad(
            {"input_ids": prompts[start : start + 64]}, padding_side="left", return_tensors="pt"
        )
        out = model.generate(
            **batch,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = out[:, batch["input_ids"].shape[1] :]
        told += tokenizer.batch_decode(new, skip_special_tokens=True)
    return [text.strip() for text in told]


def ours(model, tokenizer, conversations):
    return generation.answers(model, tokenizer, conversations, max_new_tokens=NEW_TOKENS)


def timed(answer, *asked):
    """(answers, seconds)."""
    begun = time.perf_counter()
    return answer(*asked), time.perf_counter() - begun


def race(model, tokenizer, conversations, rounds):
    """Both in turns; seconds of each round, and the share of rows with the same letters."""
    seconds, same = {"generate": [], "labkit": []}, []
    for _ in range(rounds + 1):  # the first is to warm up
        theirs, took = timed(plain, model, tokenizer, conversations)
        seconds["generate"].append(took)
        mine, took = timed(ours, model, tokenizer, conversations)
        seconds["labkit"].append(took)
        same.append(sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine))
    timed_rounds = {name: times[1:] for name, times in seconds.items()}
    pairs = zip(timed_rounds["labkit"], timed_rounds["generate"], strict=True)
    return {
        "ratio": statistics.median(a / b for a, b in pairs),
        "seconds": {name: statistics.median(times) for name, times in timed_rounds.items()},
        "same_letters": same[-1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of training, before")
    parser.add_argument("--letters", type=int, default=200, help="prompts compared in fp32")
    parser.add_argument("--out", help="write what was measured here, as JSON")
    options = parser.parse_args()
    models.hush_libraries()
    model, tokenizer = adapted(None, options.steps)
    asked = tasks.load("home", "test")["messages"][:64]
    found = race(model, tokenizer, asked, options.rounds)
    print(
        f"{str(model.dtype)[6:]}: generate {found['seconds']['generate']:.1f} s, "
        f"labkit {found['seconds']['labkit']:.1f} s for 64 rows: ratio {found['ratio']:.2f}, "
        f"{found['same_letters']:.0%} the same letters"
    )
    if options.letters:
        model, tokenizer = adapted(torch.float32, options.steps)
        share = -(-options.letters // 3)
        asked = [m for t in tasks.NAMES for m in tasks.load(t, "test")["messages"][:share]]
        pairs = zip(ours(model, tokenizer, asked), plain(model, tokenizer, asked), strict=True)
        found["different_in_fp32"] = sum(a != b for a, b in pairs)
        found["compared_in_fp32"] = len(asked)
        print(f"fp32: {found['different_in_fp32']} of {len(asked)} answers differ")
    studies.note(options.out, found)


if __name__ == "__main__":
    main()
