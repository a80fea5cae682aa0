"""Measure the memory of a block of code: `with track() as peak: ...`, then read `peak.bytes`.

On a GPU, `Peak` also reports the allocator's figures. Tracking costs some tens of microseconds per
operation (`benchmarks/memory_accuracy.py`). That is negligible in training but noticeable with tiny
tensors.
"""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from labkit.memory.ledger import CATEGORIES, Ledger


@dataclass
class Peak:
    """The peak memory of a block in bytes; complete once the block ends.

    bytes: peak of all tensors' storages; views and shared storages are counted once.
    by_category: that peak split by `ledger.CATEGORIES`; the values sum to `bytes`.
    start_bytes, end_bytes: bytes in tensors when the block begins and when it ends.
    allocated_bytes, reserved_bytes: peaks of CUDA's `max_memory_allocated` and
        `max_memory_reserved`; None on a CPU.
    """

    bytes: int = 0
    by_category: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    start_bytes: int = 0
    end_bytes: int = 0
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


_open = []  # peaks of the blocks running now, outermost first


@contextlib.contextmanager
def track(
    *held: nn.Module | torch.optim.Optimizer | torch.Tensor, device: str | None = None
) -> Iterator[Peak]:
    """Measure a block of code; yields a `Peak`, which is complete when the block ends.

    held: modules, optimizers and tensors to count from the start. By default, everything that the
        process has on the device counts, as in `torch.cuda.max_memory_allocated`.
    device: "cpu" or "cuda"; the default is the GPU if there is one.

    Blocks may be nested. A block that raises is measured up to the error. Code compiled by
    `torch.compile` bypasses the dispatcher and is tracked on a GPU only.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    ledger, peak = Ledger(device), Peak()
    for thing in held or _all_held():
        ledger.hold(thing)
    peak.start_bytes = ledger.book.total
    with _cuda_peaks(peak, device):
        try:
            with ledger:
                yield peak
        finally:
            peak.bytes, peak.end_bytes = ledger.book.peak, ledger.book.total
            peak.by_category = ledger.by_category()


def _all_held():
    """Find every module, optimizer and tensor in this process, modules before parameters."""
    kinds = (torch.optim.Optimizer, nn.Module, torch.Tensor)
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]
    return sorted(found, key=lambda thing: isinstance(thing, torch.Tensor))


@contextlib.contextmanager
def _cuda_peaks(peak, device):
    """Read the allocator's peaks; an outer block's peaks are read before the reset."""
    if device != "cuda":
        yield
        return
    for outer in _open:
        _read_allocator(outer)
    torch.cuda.reset_peak_memory_stats()
    _open.append(peak)
    try:
        yield
    finally:
        _open.remove(peak)
        _read_allocator(peak)


def _read_allocator(peak):
    peak.allocated_bytes = max(peak.allocated_bytes or 0, torch.cuda.max_memory_allocated())
    peak.reserved_bytes = max(peak.reserved_bytes or 0, torch.cuda.max_memory_reserved())
