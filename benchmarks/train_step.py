"""Time a training step: `labkit.training.finetuning` compared with TRL's default SFTTrainer.

Both train LoRA r=16 on q and v of the real model (`--targets all-linear`: on every linear layer),
on the same `home` commands in the same batches, with the same seed, learning rate and schedule.
TRL's side uses TRL's defaults: weights in fp32 with bf16 autocast, padding, checkpointing. The two
processes take turns, one step each, and the reported ratio is the median of the steps' ratios, so
that other work on the machine slows both. (In a single process, one of them would not run in the
first thread, and its small operations would take twice their time.)

    python benchmarks/train_step.py --steps 20 --out build/train_step.json
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import studies
import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from labkit import tasks
from labkit.training import models
from labkit.training.lean import lean_trainer

WARM_UP = 3  # steps that are run and not timed


class Turns(TrainerCallback):
    """One of several trainers: a step when it is its turn, timed, then the next one's.

    A turn is all of a step: fetching and padding the batch, forward, backward, optimizer, logging.
    """

    def __init__(self, mine, next_one):
        self.mine, self.next_one = mine, next_one
        self.seconds, self.losses = [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self._wait()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.seconds.append(time.perf_counter() - self.begun)
            self.next_one.release()
            if state.global_step < state.max_steps:
                self._wait()

    def _wait(self):
        if not self.mine.acquire(timeout=600):
            raise TimeoutError("the other trainer has stopped")
        self.begun = time.perf_counter()


def settings(options, **more):
    """The SFTConfig of both sides; logging every step is what the loss curves need."""
    return SFTConfig(
        output_dir=str(Path(options.out or "build").parent / "train_step"),
        max_steps=options.steps + WARM_UP,
        per_device_train_batch_size=options.batch,
        learning_rate=options.learning_rate,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )


def trainer(name, options):
    """TRL's trainer with its defaults, or labkit's, for the same examples in the same order."""
    where = options.targets if options.targets == "all-linear" else options.targets.split(",")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=where)
    rows = tasks.load("home", "train").select(range(16 * (options.steps + WARM_UP)))
    examples = rows.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=rows.column_names,
    )
    if name == "labkit":
        model, tokenizer = models.load(device="cpu")
        return lean_trainer(model, tokenizer, examples, lora, settings(options))
    more = {"bf16": False} if options.no_autocast else {}
    path = str(models.fetch())
    return SFTTrainer(path, settings(options, **more), train_dataset=examples, peft_config=lora)


def take_part(name, options, gates, told):
    """A process of the race: train in turns, then tell seconds and losses of each step."""
    models.hush_libraries()
    turns, runner = Turns(*gates), trainer(name, options)
    runner.remove_callback(PrinterCallback)
    runner.add_callback(turns)
    runner.train()
    told.put((name, {"seconds": turns.seconds, "losses": turns.losses}))


def race(options):
    """Run both trainers in turns; `{name: seconds and losses of each step}`."""
    spawn = multiprocessing.get_context("spawn")
    first, second, told = spawn.Semaphore(1), spawn.Semaphore(0), spawn.Queue()
    gates = {"trl": (first, second), "labkit": (second, first)}
    parts = [
        spawn.Process(target=take_part, args=(name, options, pair, told))
        for name, pair in gates.items()
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
        if part.exitcode:
            raise SystemExit("a trainer stopped with an error")
    return dict(told.get() for _ in gates)


def report(turns, options):
    """What was measured, as a dict of numbers and lists."""
    timed = {name: t["seconds"][WARM_UP:] for name, t in turns.items()}
    pairs = zip(timed["labkit"], timed["trl"], strict=True)
    losses = {name: t["losses"] for name, t in turns.items()}
    gaps = [abs(a - b) for a, b in zip(*losses.values(), strict=True)]
    return {
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
        "seconds_per_step": {name: statistics.median(times) for name, times in timed.items()},
        "largest_loss_difference": max(gaps),
        "losses": losses,
        "all_seconds": {name: t["seconds"] for name, t in turns.items()},
        "settings": vars(options)
        | {"threads": torch.get_num_threads(), "torch": torch.__version__},
    }


def show(found):
    """Print both loss curves side by side, then the ratio."""
    print(f"{'step':>4} {'trl':>8} {'labkit':>8}   (loss, nats a token)")
    for step, (a, b) in enumerate(zip(*found["losses"].values(), strict=True), start=1):
        print(f"{step:>4} {a:>8.4f} {b:>8.4f}")
    trl, ours = (found["seconds_per_step"][name] for name in ("trl", "labkit"))
    print(f"largest difference of the losses {found['largest_loss_difference']:.3f}")
    print(f"median step: trl {trl:.2f} s, labkit {ours:.2f} s: ratio {found['ratio']:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help=f"timed steps, after {WARM_UP} more")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--targets", default="q_proj,v_proj", help="or all-linear")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--no-autocast", action="store_true", help="TRL with bf16=False")
    parser.add_argument("--out", help="write what was measured here, as JSON")
    options = parser.parse_args()
    found = report(race(options), options)
    show(found)
    studies.note(options.out, found)


if __name__ == "__main__":
    main()
