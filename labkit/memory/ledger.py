"""Track the bytes and the purpose of every storage that torch allocates and frees.

The ledger intercepts each operation with a dispatch mode and enters the storages of the results
into a book. It does not see internal allocations of an operation, except those in `HIDDEN`.
"""

import contextlib
import math

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from labkit.memory.storages import Book, Storage

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "temporary", "other")
# made in forward; becomes "activations" if still in use when backward starts
FORWARD = "forward"


def _dequantized(A, B, shape, *args, **kwargs):
    """Bytes that a 4-bit matmul allocates internally: the weight in A's dtype, and fp32 scales."""
    n = math.prod(shape)
    return n * A.element_size() + math.ceil(n / args[1]) * 4


# Internal allocations that dispatch does not show: {operation: bytes from its arguments}
HIDDEN = {"bitsandbytes::gemm_4bit": _dequantized}


class Ledger(TorchDispatchMode):
    """Track bytes in use on one type of device (`"cpu"`, `"cuda"`, `"meta"`) while active.

    The records are in `book`; `by_category()` splits the peak:

    - weights: parameters, buffers, and the scales of quantized parameters
    - gradients: tensors that backward left in `.grad`
    - optimizer: tensors in an optimizer's state
    - activations: made before backward (or in a recomputation) and still in use when backward runs
    - temporary: everything else made while the mode is active
    - other: everything else that existed before
    """

    def __init__(self, device: str, keep_events: bool = False):
        super().__init__()
        self.book = Book(device, keep_events)
        self.marks: list[tuple[int, str]] = []  # (event, name of the phase that begins there)
        self._in_forward = False
        self._hooked = WeakTensorKeyDictionary()
        self._hooks = contextlib.ExitStack()

    def __enter__(self):
        self._hooks.callback(register_optimizer_step_post_hook(self._after_step).remove)
        return super().__enter__()

    def __exit__(self, *error):
        self._hooks.close()
        self.book.catch_up()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.book.catch_up()
        in_backward = torch._C._current_graph_task_id() != -1
        forward = torch.is_grad_enabled() or not in_backward  # recomputation is forward too
        if self._in_forward and not forward:
            self._settle()
        self._in_forward = forward
        self._note_parameters(args)
        if inside := HIDDEN.get(func.name()):
            self.book.burst(inside(*args, **(kwargs or {})))
        out = func(*args, **(kwargs or {}))
        late = not forward and self._in_place_elsewhere(func, args)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.book.enter(tensor, FORWARD if forward else "temporary", late)
        return out

    def _settle(self):
        """Mark what forward made as activations when backward begins or a recomputation ends."""
        for storage in self.book.held:
            if storage.category == FORWARD:
                storage.category = "activations"

    def _in_place_elsewhere(self, func, args):
        """Whether autograd, without this mode, would write the result over the first argument.

        Autograd sums two gradients of a tensor in place unless the first is a view, which keeps its
        base alive (can_accumulate_inplace in torch's csrc/autograd/input_buffer.cpp).
        """
        first = self.book.find(args[0]) if args else None
        if func.is_view and first:
            first.viewed = True
        return func is torch.ops.aten.add.Tensor and not (first and first.viewed)

    def add(self, tensor: torch.Tensor, category: str) -> None:
        """Count the storage of `tensor` once, in this category."""
        if storage := self.book.enter(tensor, category):
            storage.category = category

    def hold(self, thing: nn.Module | torch.optim.Optimizer | torch.Tensor) -> None:
        """Count the existing tensors of a module or an optimizer, or a single tensor."""
        if isinstance(thing, nn.Module):
            for parameter in thing.parameters():
                self._parameter(parameter)
            for tensor in thing.buffers():
                self.add(tensor, "weights")
        elif isinstance(thing, torch.optim.Optimizer):
            self._after_step(thing)
        elif isinstance(thing, nn.Parameter):
            self._parameter(thing)
        else:
            self.book.enter(thing, "other")

    def mark(self, name: str) -> None:
        """Record the name of the phase that begins now, for the timeline."""
        self.book.catch_up()
        self.marks.append((len(self.book.events or ()), name))

    def by_category(self) -> dict[str, int]:
        """Bytes per category at the peak, a dict whose values sum to the peak."""
        return _summed(self.book.at_peak())

    def now(self) -> dict[str, int]:
        """Bytes per category at this moment, a dict whose values sum to the book's total."""
        self.book.catch_up()
        return _summed(self.book.held)

    def _note_parameters(self, args):
        for arg in args:
            if isinstance(arg, nn.Parameter):
                if arg not in self._hooked:
                    self._parameter(arg)
            elif isinstance(arg, tuple | list):
                self._note_parameters(arg)

    def _parameter(self, parameter):
        self.add(parameter, "weights")
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # bitsandbytes' scales, code tables and offsets
            for tensor in vars(state).values():
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor, "weights")
            state = state.state2
        if parameter not in self._hooked:
            self._hooked[parameter] = True
            self._after_accumulation(parameter)
            if parameter.requires_grad and parameter.is_leaf:
                hook = parameter.register_post_accumulate_grad_hook(self._after_accumulation)
                self._hooks.callback(hook.remove)

    def _after_accumulation(self, parameter):
        if parameter.grad is not None:
            self.add(parameter.grad, "gradients")

    def _after_step(self, optimizer, *_):
        for state in optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor, "optimizer")


def category(storage: Storage) -> str:
    """The category of a storage, as far as it is known now."""
    return "temporary" if storage.category == FORWARD else storage.category


def _summed(held):
    out = dict.fromkeys(CATEGORIES, 0)
    for storage, n_bytes in held.items():
        out[category(storage)] += n_bytes
    return out
