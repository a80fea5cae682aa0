"""Measure a block of code: `with track() as peak: ...`, then `peak.bytes` and `peak.by_category`.

The process's resident memory is reported, too, and on a GPU the allocator's figures. Tracking costs
some tens of microseconds per operation (`benchmarks/memory_accuracy.py`): next to nothing in
training, more with tiny tensors.
"""

import contextlib
import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn

from labkit.memory.ledger import CATEGORIES, Ledger

RSS_SECONDS = 0.01  # how often the process's memory is read


@dataclass
class Peak:
    """The peak memory of a block in bytes; complete once the block is left.

    bytes: peak of all tensors' storages, a view or a shared storage counted once.
    by_category: the parts of that peak (`ledger.CATEGORIES`); sums to `bytes`.
    start_bytes, end_bytes: in tensors when the block began and when it was left.
    rss_start_bytes, rss_peak_bytes: resident memory of the process, read every 10 ms.
    allocated_bytes, reserved_bytes: CUDA's peaks of `max_memory_allocated` and
        `max_memory_reserved`; None on a CPU.
    """

    bytes: int = 0
    by_category: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    start_bytes: int = 0
    end_bytes: int = 0
    rss_start_bytes: int = 0
    rss_peak_bytes: int = 0
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


_open = []  # peaks of blocks that are running now, outermost first


@contextlib.contextmanager
def track(
    *held: nn.Module | torch.optim.Optimizer | torch.Tensor, device: str | None = None
) -> Iterator[Peak]:
    """Measure the block; yields a `Peak`, which is complete when the block is left.

    held: modules, optimizers and tensors that count from the start. With none given, everything
        that the process has on the device counts, as in `torch.cuda.max_memory_allocated`.
    device: "cpu" or "cuda"; default the GPU if there is one.

    Blocks may be nested; a block that raises is measured up to there. Code compiled by
    `torch.compile` runs without the dispatcher and is followed on a GPU only.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    ledger, peak = Ledger(device), Peak()
    for thing in held or _all_held():
        ledger.hold(thing)
    peak.start_bytes = ledger.book.total
    with _cuda_peaks(peak, device), _resident_memory(peak):
        try:
            with ledger:
                yield peak
        finally:
            peak.bytes, peak.end_bytes = ledger.book.peak, ledger.book.total
            peak.by_category = ledger.by_category()


def _all_held():
    """Every module, optimizer and tensor in this process, modules before their parameters."""
    kinds = (torch.optim.Optimizer, nn.Module, torch.Tensor)
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]
    return sorted(found, key=lambda thing: isinstance(thing, torch.Tensor))


@contextlib.contextmanager
def _resident_memory(peak):
    process, done = psutil.Process(), threading.Event()
    peak.rss_start_bytes = peak.rss_peak_bytes = process.memory_info().rss

    def look():
        peak.rss_peak_bytes = max(peak.rss_peak_bytes, process.memory_info().rss)

    def watch():
        while not done.wait(RSS_SECONDS):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        look()


@contextlib.contextmanager
def _cuda_peaks(peak, device):
    """Read the allocator's peaks; an outer block's are read before they are reset."""
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
