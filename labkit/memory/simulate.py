"""Simulate a training step of any causal LM without allocating it: peak, categories, timeline.

The model is built on the meta device by transformers, PEFT and bitsandbytes themselves, then a
step runs on fake tensors: shapes and dtypes without data. A `Ledger` follows their storages. So
the simulation holds and frees what the libraries of this environment hold and free, and no weights
are ever allocated.

What it does not see: the CUDA context and library workspaces, the allocator's rounding and
fragmentation (`max_memory_reserved`), and what kernels allocate inside themselves.
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
    """Bytes held after each allocation of the step, and after what is released in a row.

    held: (events, categories) int64, in the order of `ledger.CATEGORIES`.
    starts: {phase: index of its first event}.
    """

    held: np.ndarray
    starts: dict[str, int]

    def changes(self, phase: str) -> np.ndarray:
        """By how much each event of a phase changed what is held, (events, categories)."""
        names = [*self.starts, None]
        end = self.starts.get(names[names.index(phase) + 1])
        return np.diff(self.held[self.starts[phase] : end and end + 1], axis=0)


@dataclass(frozen=True)
class Simulation:
    """One training step after the first; all in bytes.

    peak: at most held on the device. by_category: what the peak consisted of; sums to `peak`.
    static: weights, gradients and optimizer states, as they are when all three exist.
    phases: the peak of each of forward, backward and step; before them reference or rollout.
    paged: optimizer states in paged memory, which can leave the GPU and are not in `peak`.
    n_params, n_trainable: numbers, packed weights counted as what they stand for.
    n_experts: of these, in fused experts, which are no linear layers: 4 bits leave them alone.
    adapted_experts: whether adapters are on them. PEFT's all-linear means them in some models.
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
    """Simulate one step of the causal LM that `config` describes; a `Simulation`.

    device: "cuda" or "cpu", which keep dropout's mask in one byte and in four.
    LabError for targets or a rank that the model cannot have.
    """
    found = None
    if few := repeat.shorter(config):
        *parts, times = few
        found = _drawn_out(*(whole(part, settings, device) for part in parts), times)
        if found and found.n_params != adapted.n_params(config, settings):
            found = None  # a field that `repeat` does not know makes layers differ
    found = found or whole(config, settings, device)
    return found if timeline else replace(found, timeline=None)


def whole(config: PretrainedConfig, settings: Settings, device: str = "cuda") -> Simulation:
    """As `simulate`, with a timeline, and every layer run: slower where there are many."""
    model, n_params = adapted.build(config, settings)
    reference = None
    if settings.second_model:
        reference = adapted.build(config, settings)[0].requires_grad_(False)
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    n_experts = sum(p.numel() for p in adapted.fused_experts(model).values())
    # transformers sees by data, which fakes don't have, whether a row is one sequence
    plain = mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda positions: None)
    with plain, _experts(), adapted.unpacking(), _dropout_of(device), FakeTensorMode():
        adapted.materialise(model, adapted.packed_weight)
        if reference:
            adapted.materialise(reference, adapted.packed_weight)
        try:
            static, paged, history = _step(model, reference, settings)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
            raise LabError(
                f"a step of {config.model_type} does not run so in transformers: {why}; "
                "try another --method, --dtype or --attention"
            ) from error
    numbers = {"n_params": n_params, "n_trainable": n_trainable, "n_experts": n_experts}
    numbers["adapted_experts"] = adapted.on_experts(model)
    return _summed_up(history, static, numbers | {"paged": paged})


def _summed_up(history, static, numbers):
    """The `Simulation` whose peak is the highest moment of this `Timeline`."""
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
    """The simulation with `times` more periods than `short`; None where there is no telling."""

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
    """torch's grouped product has fakes for bfloat16 alone; transformers brings another."""

    def can(x, weight, offsets):
        return weight.dtype == torch.bfloat16

    return mock.patch.object(moe, "_can_use_grouped_mm", can, create=True)


def _dropout_of(device):
    """On a GPU torch fuses dropout, and what is kept for backward is a mask of one byte."""
    if device == "cpu":
        return contextlib.nullcontext()

    def fused(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p else x

    return mock.patch.object(torch.nn.functional, "dropout", fused)


def _step(model, reference, settings):
    """`(static bytes, paged bytes, Timeline)` of a step after the first."""
    trained = [p for p in model.parameters() if p.requires_grad]
    ledger = Ledger("meta", keep_events=True)
    ledger.hold(model)
    if reference:
        ledger.hold(reference)
    with ledger:
        for parameter in trained:  # what an earlier step leaves
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
    """The `Timeline` from the first mark on, with what each storage turned out to be for."""
    events = ledger.book.events
    changes = np.zeros((len(events), len(CATEGORIES)), dtype=np.int64)
    columns = [CATEGORIES.index(category(storage)) for storage, _ in events]
    changes[np.arange(len(events)), columns] = [n_bytes for _, n_bytes in events]
    alone = np.ones(len(changes) + 1, dtype=bool)  # else it joins the release before it
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
