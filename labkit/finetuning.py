"""`finetune`: TRL's SFTTrainer without waste on a CPU, drawn live, cached by configuration.

What is not TRL's own: batches hold no padding and their common prefix once, logits exist where
answers are, nothing is checkpointed, weights keep the model's precision. Rows, their order,
optimizer, schedule, clipping and loss are TRL's (`benchmarks/train_step.py` compares the two).
"""

import copy
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from IPython import get_ipython
from IPython.display import display
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from labkit import hardware, live, models, packing, plots, training
from labkit.errors import LabError

PACKAGES = ("lora-labs", "peft", "torch", "transformers", "trl")
NO_MATTER = (
    "output_dir",
    "run_name",
    "project",
    "logging_",
    "log_",
    "save_",
    "hub_",
    "push_to_hub",
)


class AlreadyAdapted(LabError, ValueError):
    """The base model still carries an adapter, and a second one would be added to it."""


@dataclass(frozen=True)
class Result:
    """A tuned model: `model` (in eval mode), its loss at each step, and its adapter's folder."""

    model: PeftModel
    losses: list
    seconds: float  # of the training, also when it was done earlier
    folder: Path
    cached: bool


def finetune(model, tokenizer, dataset, peft_config, args, title="Fine-tuning", cache=True):
    """Train a LoRA as `SFTTrainer` does with these arguments, and return a `Result`.

    `dataset` has the columns `prompt` and `completion`, or `messages`, whose last one is the
    answer. `args` is an SFTConfig; its learning rate, schedule, steps, batches, lengths, clipping
    and seed hold, its precision, checkpointing, logging and saving do not. `model` is changed: it
    becomes the base of `Result.model`. With `cache`, the same call a second time loads the result.
    Under `accelerate launch` all processes train together, and one of them keeps the result.
    """
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise AlreadyAdapted("this model has an adapter already: load the base model afresh")
    folder = models.cache_dir() / "runs" / _key(model, tokenizer, dataset, peft_config, args)
    if cache and (folder / "history.json").exists():
        return _stored(model, folder, title)
    trainer = lean_trainer(model, tokenizer, dataset, peft_config, args)
    tuned, history = _train(trainer, title)
    if trainer.accelerator.is_main_process:
        _keep(tuned, history, folder)
    trainer.accelerator.wait_for_everyone()
    return Result(tuned, history["losses"], history["seconds"], folder / "adapter", cached=False)


def lean_trainer(model, tokenizer, dataset, peft_config, args):
    """The trainer that `finetune` runs, not yet started; it changes `model` in place."""
    forward, settings = vars(model).get("forward"), _lean(args, model)
    trainer = LeanTrainer(
        model=model,
        args=settings,
        train_dataset=_rows(dataset, tokenizer),
        data_collator=packing.pack,
        processing_class=tokenizer,
        peft_config=copy.deepcopy(peft_config),  # PEFT writes into it
    )
    vars(model).pop("forward", None)  # SFTTrainer's own, which would keep the model in memory
    if forward is not None:
        model.forward = forward
    if settings.fp16:  # its gradient scaler takes fp32 alone, and TRL makes QLoRA's adapters bf16
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


class LeanTrainer(SFTTrainer):
    """SFTTrainer on the batches of `packing.pack`: the same loss for less work."""

    def train(self, *args, **options):
        """As Trainer's; meanwhile the base model returns logits and targets of answer tokens."""
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        with _returning(base, partial(_answer_logits, base)):
            return super().train(*args, **options)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The answer tokens' losses, summed, over their number in all accumulated batches.

        It calls `model` itself, whatever wraps it: autocast, or what adds up processes' gradients.
        """
        if return_outputs:
            raise NotImplementedError("LeanTrainer makes no logits of prompts to return")
        logits, targets = model(**inputs)
        total = F.cross_entropy(logits.float(), targets, reduction="sum")
        if num_items_in_batch is None:
            return total / len(targets)
        # the number is of all processes, and the mean of their gradients is taken
        shares = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total / num_items_in_batch * shares


def _answer_logits(base, rows=None, **batch):
    """`training.answer_logits` in place of the base model's forward; PEFT adds arguments: None."""
    batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return training.answer_logits(base, batch | {"rows": rows})


@contextmanager
def _returning(model, forward):
    """Give `model` another forward for a while."""
    own = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own


class _Losses(TrainerCallback):
    """Notes each step's loss; in a notebook a curve grows with it."""

    def __init__(self, title):
        self.title, self.losses, self.curve = title, [], None

    def on_train_begin(self, args, state, control, **kwargs):
        if get_ipython():
            self.curve = live.Curve(self.title, state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])
            if self.curve:
                self.curve.add(logs["loss"])


def _lean(args, model):
    """A copy of an SFTConfig with what `finetune` decides: precision, checkpointing, silence."""
    known = {field.name for field in fields(args)}
    checkpointing = {"gradient_checkpointing", "activation_checkpointing"} & known
    return replace(
        args,
        **dict.fromkeys(checkpointing, False),
        **mixed_precision(args, model),
        use_cpu=model.device.type == "cpu",
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def mixed_precision(args, model):
    """SFTConfig's `bf16` and `fp16` for `model`, whose weights rest in the precision they have.

    Autocast helps fp32 weights only, and only to what the hardware multiplies. fp16 weights need
    the gradient scaler that `fp16=True` brings.
    """
    kind, whole = hardware.precision(model.device.type), model.dtype == torch.float32
    return {
        "bf16": bool(args.bf16) and whole and kind == torch.bfloat16,
        "fp16": model.dtype == torch.float16
        or (bool(args.fp16) and whole and kind == torch.float16),
    }


def _rows(dataset, tokenizer):
    """Conversations as token ids with labels; a prompt-completion dataset is TRL's to prepare."""
    if "messages" not in dataset.column_names:
        return dataset
    return Dataset.from_list([training.encode(tokenizer, m) for m in dataset["messages"]])


def _train(trainer, title):
    """The tuned model in eval mode, and the history of its training."""
    noted = _Losses(title)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(noted)
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    tuned = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return tuned.eval(), {"losses": noted.losses, "seconds": seconds}


def _key(model, tokenizer, dataset, peft_config, args):
    """A hash of all that a result depends on: weights, tokens, rows, settings, versions."""
    settings = _lean(args, model).to_dict() | {"local_rank": -1}  # processes share one result
    lora = peft_config.to_dict() | {"base_model_name_or_path": None}
    parts = {
        "args": {k: v for k, v in settings.items() if not k.startswith(NO_MATTER)},
        "lora": lora,
        "rows": dataset.to_list(),
        "template": tokenizer.chat_template,
        "tokenizer": tokenizer.get_vocab(),
        "device": model.device.type,
        "versions": {name: version(name) for name in PACKAGES},
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=_sorted).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _sorted(value):
    """JSON for a set (in order) and for anything else that JSON does not know."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _keep(tuned, history, folder):
    """Write adapter and history beside `folder`, then move them into place whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as scratch:
        made = Path(scratch) / "run"
        tuned.save_pretrained(made / "adapter")
        (made / "history.json").write_text(json.dumps(history))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def _stored(model, folder, title):
    """The result that an earlier call left in `folder`; its curve and one line are shown."""
    history = json.loads((folder / "history.json").read_text())
    losses, seconds = history["losses"], history["seconds"]
    tuned = PeftModel.from_pretrained(model, folder / "adapter").eval()
    print(f"{title}: from the cache, trained earlier in {seconds:.0f} s (cache=False trains anew)")
    display(plots.growing_loss(losses, len(losses), title))
    return Result(tuned, losses, seconds, folder / "adapter", cached=True)
