"""Fine-tune with TRL's trainer, a live loss curve, and results cached by configuration."""

import json
import os
import shutil
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset
from filelock import FileLock
from IPython import get_ipython
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig

from labkit import download, fingerprint, live
from labkit.errors import LabError
from labkit.training import checkpoints, hardware, lean

PACKAGES = ("accelerate", "bitsandbytes", "lora-labs", "peft", "torch", "transformers", "trl")
# prefixes of settings that don't affect the result
NO_MATTER = ("output_dir", "run_name", "project", "log", "save_", "hub_", "push_to_hub")


@dataclass(frozen=True)
class Result:
    """The tuned model (in eval mode), its loss at each step, and its adapter's folder."""

    model: PeftModel
    losses: list
    seconds: float  # of the original training, also when cached
    folder: Path
    cached: bool


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    peft_config: LoraConfig,
    args: SFTConfig,
    title: str = "Fine-tuning",
    cache: bool = True,
) -> Result:
    """Train a LoRA as `SFTTrainer` does with these arguments, and return a `Result`.

    `dataset` has the columns `prompt` and `completion`, or `messages`, whose last message is the
    answer. The learning rate, schedule, steps, batches, lengths, clipping and seed of `args` are
    used; its precision, checkpointing, logging and saving are not. `model` is changed in place: it
    becomes the base of `Result.model`.

    With `cache`, repeating a call loads the result or resumes interrupted training. Under
    `accelerate launch`, all processes train together and one process stores the result. A
    rehearsal uses a few rows.
    """
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise LabError("this model already has an adapter: reload the base model")
    dataset = dataset.select(range(hardware.rehearsed("rows", len(dataset))))
    folder = download.cache_dir() / "runs" / _key(model, tokenizer, dataset, peft_config, args)
    with _alone(folder):
        if cache and (folder / "history.json").exists():
            return _stored(model, folder, title)
        work = folder.with_name(f"{folder.name}.partial")
        if not cache:
            shutil.rmtree(work, ignore_errors=True)
        args = replace(args, output_dir=str(work), save_total_limit=1)
        trainer = lean.lean_trainer(model, tokenizer, dataset, peft_config, args)
        tuned, history = _train(trainer, title, work)
        if trainer.accelerator.is_main_process:
            _store(tuned, history, folder)
            shutil.rmtree(work, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
    return Result(tuned, history["losses"], history["seconds"], folder / "adapter", cached=False)


def _alone(folder):
    """Lock `folder`: if two notebooks need the same adapter, the second waits for the first."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return nullcontext()  # these processes train together
    locks = download.cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / folder.name)


class _Losses(TrainerCallback):
    """Show each step's loss in a notebook, and record the seconds up to each checkpoint."""

    def __init__(self, title, noted):
        self.title, self.noted, self.curve = title, noted, None
        self.before = float(noted.read_text()) if noted.is_file() else 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()
        if get_ipython():
            self.curve = live.Curve(self.title, state.max_steps)
            for loss in checkpoints.losses(state.log_history):
                self.curve.add(loss)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs and self.curve:
            self.curve.add(logs["loss"])

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.noted.write_text(str(self.seconds()))

    def seconds(self):
        """Training time in seconds, including the time before an interruption."""
        return self.before + time.perf_counter() - self.begun


def _train(trainer, title, work):
    """Train or resume from `work`; return the tuned model in eval mode and its history."""
    noted = _Losses(title, work / "seconds")
    trainer.add_callback(noted)
    tuned, losses = checkpoints.train(trainer, work, 4, lambda line: print(f"{title}: {line}"))
    return tuned.eval(), {"losses": losses, "seconds": noted.seconds()}


def _key(model, tokenizer, dataset, peft_config, args):
    """Hash everything a result depends on: weights, tokens, rows, settings, code, versions."""
    settings = lean.settings(args, model).to_dict()
    settings["local_rank"] = -1  # processes share one result
    parts = {
        "args": {k: v for k, v in settings.items() if not k.startswith(NO_MATTER)},
        "lora": peft_config.to_dict() | {"base_model_name_or_path": None},
        "rows": dataset.to_list(),
        "template": tokenizer.chat_template,
        "tokenizer": tokenizer.get_vocab(),
        "device": model.device.type,
        "weights": fingerprint.weights(model),
    }
    return fingerprint.of(fingerprint.TRAINING, PACKAGES, parts)[:16]


def _store(tuned, history, folder):
    """Write adapter and history to a temporary folder, then move them to `folder` in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as scratch:
        made = Path(scratch) / "run"
        tuned.save_pretrained(made / "adapter")
        (made / "history.json").write_text(json.dumps(history))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def _stored(model, folder, title):
    """Load the cached result in `folder` and print one line."""
    history = json.loads((folder / "history.json").read_text())
    losses, seconds = history["losses"], history["seconds"]
    tuned = PeftModel.from_pretrained(model, folder / "adapter").eval()
    print(f"{title}: from the cache, trained earlier in {seconds:.0f} s (cache=False retrains)")
    return Result(tuned, losses, seconds, folder / "adapter", cached=True)
