"""Simulate a training step of any causal LM without allocating it: peak, categories, timeline.

transformers, PEFT and bitsandbytes build the model on the meta device. Then a step runs on fake
tensors (shapes and dtypes without data), and a `Ledger` tracks their storages. The simulation
thus allocates and frees the same memory as the installed libraries.

It does not include the CUDA context, library workspaces, the allocator's rounding and fragmentation
(`max_memory_reserved`), or what kernels allocate internally.
"""

import contextlib
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, masking_utils
from transformers.integrations import moe

from labkit.errors import LabError
from labkit.memory import adapted, objectives, optimizers, repeat
from labkit.memory.ledger import CATEGORIES, Ledger, category
from labkit.memory.settings import Settings


@dataclass(frozen=True)
class Timeline:
    """Bytes in use after each allocation of the step, and after each run of releases.

    held: (events, categories) int64, in the order of `ledger.CATEGORIES`.
    starts: {phase: index of its first event}.
    """

    held: np.ndarray
    starts: dict[str, int]

    def changes(self, phase: str) -> np.ndarray:
        """The change in bytes at each event of a phase, shape (events, categories)."""
        names = [*self.starts, None]
        end = self.starts.get(names[names.index(phase) + 1])
        return np.diff(self.held[self.starts[phase] : end and end + 1], axis=0)


@dataclass(frozen=True)
class Simulation:
    """The memory of one training step after the first; all sizes in bytes.

    peak: the most in use on the device. by_category: `peak` split by category.
    static: weights, gradients and optimizer states when all three exist.
    phases: the peak of forward, backward and step, and of reference or rollout before them.
    paged: optimizer states in paged memory, which can leave the GPU and are not in `peak`.
    n_params, n_trainable: parameter counts; packed weights count as if unpacked.
    n_experts: parameters in fused experts, which aren't linear layers and stay unquantized.
    adapted_experts: whether experts have adapters; PEFT's all-linear adds some models' experts.
    timeline: None, or a `Timeline`.
    """

    peak: int
    by_category: dict[str, int]
    static: dict[str, int]
    phases: dict[str, int]
    paged: int
    n_params: int
    n_trainable: int
    n_experts: int
    adapted_experts: bool = False
    timeline: Timeline | None = None


def simulate(
    config: PretrainedConfig, settings: Settings, timeline: bool = False, device: str = "cuda"
) -> Simulation:
    """Simulate one step of the causal LM that `config` describes.

    device: "cuda" or "cpu"; a dropout mask takes 1 byte per element on CUDA and 4 on a CPU.
    LabError for targets or a rank that the model cannot have.
    """
    found = None
    if few := repeat.shorter(config):
        *parts, times = few
        found = _drawn_out(*(whole(part, settings, device) for part in parts), times)
        if found and found.n_params != adapted.n_params(config, settings):
            found = None  # layers differ by a field unknown to `repeat`
    found = found or whole(config, settings, device)
    return found if timeline else replace(found, timeline=None)


def whole(config: PretrainedConfig, settings: Settings, device: str = "cuda") -> Simulation:
    """Simulate every layer, with a timeline and without a shortcut: slower for deep models."""
    model, n_params = adapted.build(config, settings)
    reference = None
    if settings.second_model:
        reference = adapted.build(config, settings)[0].requires_grad_(False)
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    n_experts = sum(p.numel() for p in adapted.fused_experts(model).values())
    # fake tensors have no data in which transformers could detect packed sequences
    plain = mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda positions: None)
    with plain, _experts(), adapted.unpacking(), _dropout_of(device), FakeTensorMode():
        adapted.materialize(model, adapted.packed_weight)
        if reference:
            adapted.materialize(reference, adapted.packed_weight)
        try:
            static, paged, history = _step(model, reference, settings)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
            raise LabError(
                f"transformers can't run a step of {config.model_type} with these settings: {why}; "
                "try another --method, --dtype or --attention"
            ) from error
    numbers = {"n_params": n_params, "n_trainable": n_trainable, "n_experts": n_experts}
    numbers["adapted_experts"] = adapted.on_experts(model)
    return _summed_up(history, static, numbers | {"paged": paged})


def _summed_up(history, static, numbers):
    """Summarize a `Timeline` as a `Simulation`."""
    totals = history.held.sum(axis=1)
    top = history.held[totals.argmax()]
    return Simulation(
        peak=int(totals.max()),
        by_category={name: int(n) for name, n in zip(CATEGORIES, top, strict=True)},
        static=static,
        phases=_phase_peaks(history),
        timeline=history,
        **numbers,
    )


def _drawn_out(short, longer, times):
    """Extend the simulation `short` by `times` periods; None if that is impossible."""

    def more(a, b):
        return a + times * (b - a)

    pieces, starts = [more(short.timeline.held[:1], longer.timeline.held[:1])], {}
    for name in short.timeline.starts:
        changes = [found.timeline.changes(name) for found in (short, longer)]
        if (piece := repeat.drawn_out(*changes, times)) is None:
            return None
        starts[name] = sum(map(len, pieces)) - 1
        pieces.append(piece)
    history = Timeline(np.concatenate(pieces).cumsum(axis=0), starts)
    static = {name: more(n, longer.static[name]) for name, n in short.static.items()}
    names = "paged", "n_params", "n_trainable", "n_experts"
    numbers = {name: more(getattr(short, name), getattr(longer, name)) for name in names}
    numbers["adapted_experts"] = short.adapted_experts
    return _summed_up(history, static, numbers)


def _experts():
    """Patch: fake tensors have torch's grouped matmul only in bfloat16; else use another path."""

    def can(x, weight, offsets):
        return weight.dtype == torch.bfloat16

    return mock.patch.object(moe, "_can_use_grouped_mm", can, create=True)


def _dropout_of(device):
    """Patch: on a GPU, torch fuses dropout and stores a mask of one byte per element."""
    if device == "cpu":
        return contextlib.nullcontext()

    def fused(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p else x

    return mock.patch.object(torch.nn.functional, "dropout", fused)


def _step(model, reference, settings):
    """Run a step after the first: `(static bytes, paged bytes, Timeline)`."""
    trained = [p for p in model.parameters() if p.requires_grad]
    ledger = Ledger("meta", keep_events=True)
    ledger.hold(model)
    if reference:
        ledger.hold(reference)
    with ledger:
        for parameter in trained:  # left by an earlier step
            parameter.grad = torch.zeros_like(parameter)
            ledger.add(parameter.grad, "gradients")
        optimizer = optimizers.make(trained, settings.optim, optimizers.Imagined)
        optimizer.step()
        static = {name: n for name, n in ledger.now().items() if name in CATEGORIES[:3]}
        if settings.accumulation == 1:
            optimizer.zero_grad()
        ids = torch.zeros(settings.rows, settings.seq, dtype=torch.long)
        loss = objectives.loss_of(model, ids, settings, reference, ledger.mark)
        ledger.mark("backward")
        loss.backward()
        ledger.mark("step")
        optimizer.step()
    return static, getattr(optimizer, "paged_bytes", 0), _history(ledger)


def _history(ledger):
    """Build the `Timeline` from the first mark on, with each storage's final category."""
    events = ledger.book.events
    changes = np.zeros((len(events), len(CATEGORIES)), dtype=np.int64)
    columns = [CATEGORIES.index(category(storage)) for storage, _ in events]
    changes[np.arange(len(events)), columns] = [n_bytes for _, n_bytes in events]
    alone = np.ones(len(changes) + 1, dtype=bool)  # else it is merged with the release before it
    alone[1:-1] = (changes[1:].sum(axis=1) > 0) | (changes[:-1].sum(axis=1) > 0)
    alone[[at for at, _ in ledger.marks]] = True
    places = np.cumsum(alone) - 1
    held = np.add.reduceat(changes, np.flatnonzero(alone[:-1])).cumsum(axis=0)
    first = places[ledger.marks[0][0]]
    starts = {name: int(places[at] - first) for at, name in ledger.marks}
    return Timeline(held[max(first - 1, 0) :], starts)


def _phase_peaks(history):
    totals, starts = history.held.sum(axis=1), [*history.starts.values(), None]
    spans = zip(history.starts, starts[:-1], starts[1:], strict=True)
    return {name: int(totals[start : end and end + 1].max()) for name, start, end in spans}
