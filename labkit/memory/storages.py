"""Keep a book of the storages on a device, their bytes, and the peak.

A storage is the memory behind a tensor; views share one. Weak references report freed storages.
"""

import weakref
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(eq=False, slots=True)
class Storage:
    """The book's record of one storage, apart from its bytes."""

    category: str = "temporary"
    viewed: bool = False


class Book:
    """Bytes of the storages on one kind of device: `total` now, `held` as {storage: bytes}."""

    def __init__(self, device: str, keep_events: bool = False):
        self.device, self.total = device, 0
        self.held: dict[Storage, int] = {}
        self.events: list[tuple[Storage, int]] | None = [] if keep_events else None
        self._known = {}  # address: (storage, weak reference)
        self._peak, self._at_peak = 0, {}
        self._late = None  # (storage, bytes) of a sum that autograd computes in place
        self._inside = Storage()  # internal allocations of operations

    def find(self, tensor: object) -> Storage | None:
        """The storage of `tensor` if the book contains it, else None."""
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            return None
        return self._known.get(tensor.untyped_storage()._cdata, (None,))[0]

    def enter(self, tensor: torch.Tensor, category: str, late: bool = False) -> Storage | None:
        """Count the storage of `tensor` once; None if it is on another device.

        A new storage gets `category`. With `late`, it is counted after the next release, at the
        latest before the next operation.
        """
        self.catch_up()
        try:
            real = tensor.untyped_storage()
        except NotImplementedError:  # sparse layouts have none
            return None
        if real.device.type != self.device:
            return None
        address, n_bytes = real._cdata, real.nbytes()
        if address in self._known:
            storage = self._known[address][0]
            if n_bytes != self.held[storage]:  # grown or shrunk in place
                self._change(storage, n_bytes - self.held[storage])
            return storage
        storage = Storage(category)
        self._known[address] = storage, weakref.ref(real, partial(self._freed, address))
        if late:
            self.held[storage], self._late = 0, (storage, n_bytes)
        else:
            self._change(storage, n_bytes)
        return storage

    def burst(self, n_bytes: int) -> None:
        """Count bytes that an operation allocates and frees internally."""
        self._change(self._inside, n_bytes)
        self._change(self._inside, -n_bytes)

    def catch_up(self) -> None:
        """Count the storage that was entered late, if any."""
        if self._late:
            late, self._late = self._late, None
            self._change(*late)

    @property
    def peak(self) -> int:
        """The most bytes in use at once."""
        return sum(self.at_peak().values())

    def at_peak(self) -> dict[Storage, int]:
        """{storage: bytes} at the peak."""
        self.catch_up()
        self._note_peak()
        return self._at_peak

    def _note_peak(self):
        if self.total > self._peak:
            self._peak, self._at_peak = self.total, dict(self.held)

    def _change(self, storage, n_bytes):
        if n_bytes < 0:
            self._note_peak()
        self.held[storage] = self.held.get(storage, 0) + n_bytes
        self.total += n_bytes
        if self.events is not None and n_bytes:
            self.events.append((storage, n_bytes))

    def _freed(self, address, reference):
        storage, current = self._known.get(address, (None, None))
        if current is reference:  # else a new storage has this address
            if self._late and self._late[0] is storage:
                self.catch_up()
            del self._known[address]
            self._change(storage, -self.held[storage])
            del self.held[storage]
            self.catch_up()
