"""Watch torch's operations and allocations, for the probes and checks of several labs."""

import contextlib
import dis
import tracemalloc
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Watch(TorchDispatchMode):
    """Count operations in `calls`, and pass each operation to a subclass's `seen`."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls):
        """Return False, since skipping torch's compiler would first import it, taking seconds."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        out = function(*args, **(kwargs or {}))
        self.seen(function, args, kwargs or {}, out)
        return out


def tensors(out: object) -> Iterator[torch.Tensor]:
    """The tensors that an operation returns."""
    return (t for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor))


class Filled(Watch):
    """Make torch.empty return NaN instead of old memory, so that no result is right by luck."""

    def seen(self, function, args, kwargs, out):
        if "empty" in function._schema.name and out.is_floating_point():
            out.fill_(torch.nan)


class Work(Watch):
    """Count operations, and detect new tensors of at least `size` elements."""

    def __init__(self, size, *inputs):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in inputs}
        self.size, self.large = size, False

    def seen(self, function, args, kwargs, out):
        new = (t for t in tensors(out) if t.untyped_storage().data_ptr() not in self.known)
        self.large |= any(t.numel() >= self.size for t in new)

    def facts(self, name):
        """The size of the largest tensor made in `name`."""
        size = "as large as W" if self.large else "smaller than W"
        return {f"the largest tensor in {name}": size}

    def pace(self):
        """Whether the computation needed only a few operations."""
        return {"the computation": "vectorized" if self.calls < 100 else "a loop over rows"}


def allocated(f: Callable, *data: object) -> int:
    """The peak bytes that Python and NumPy allocate during `f(*data)`, without torch's."""
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        f(*data)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if started:
            tracemalloc.stop()


class Autograd(BaseException):
    """Autograd was called."""


@contextlib.contextmanager
def no_autograd() -> Iterator[None]:
    """Make gradient computations in this block raise Autograd, including forward mode."""
    refuse = mock.Mock(side_effect=Autograd)
    with (
        mock.patch.object(torch.autograd, "_engine_run_backward", refuse),
        mock.patch.object(forward_ad, "enter_dual_level", refuse),
    ):
        yield


def global_names(f: Callable) -> list[str]:
    """The global names that a function uses."""
    code = getattr(f, "__code__", None)
    found = dis.get_instructions(code) if code else ()
    return [i.argval for i in found if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
