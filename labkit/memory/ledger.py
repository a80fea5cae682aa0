"""Follow every storage that torch makes and frees: how many bytes are held, and what they are for.

A storage is the memory under a tensor; views share one. The ledger sees each operation through a
dispatch mode, notes the storages of its results, and learns of their end by a weak reference.
What an operation allocates and frees inside itself stays unseen, except for `HIDDEN`.
"""

import math
import weakref
from array import array
from functools import partial

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "temporary", "other")


def _dequantised(A, B, shape, *args, **kwargs):
    """Bytes that a 4-bit product makes and frees: the weight in A's dtype and fp32 scales."""
    n = math.prod(shape)
    return n * A.element_size() + math.ceil(n / args[1]) * 4


# Allocations inside an operation that no dispatch shows: {name: bytes from its arguments}
HIDDEN = {"bitsandbytes::gemm_4bit": _dequantised}


class Ledger(TorchDispatchMode):
    """Bytes held on one kind of device (`"cpu"`, `"cuda"`, `"meta"`) while the mode is on.

    `total` and `peak` in bytes. `by_category()` says what the peak consisted of:

    - weights: parameters, buffers, and what quantised parameters carry along
    - gradients: what backward left in `.grad`
    - optimizer: tensors in an optimizer's state
    - activations: made before backward (or in a recomputation) and still held when it needs them
    - temporary: everything else that was made inside
    - other: what was held before and is none of these
    """

    def __init__(self, device, keep_events=False):
        super().__init__()
        self.device = device
        self.total = self.peak = 0
        self.events = array("q") if keep_events else None  # storage, change in bytes, ...
        self.marks = []  # (event, name)
        self._entries = {}  # address: (storage id, weak reference)
        self._live = {}  # storage id: bytes
        self._at_peak = {}
        self._rising = False
        self._labels = {}  # storage id: category
        self._waiting = set()  # made in forward; backward decides whether they were held for it
        self._hooked = WeakTensorKeyDictionary()
        self._handles = []
        self._count = 0
        self._late = None  # (storage id, bytes) of a sum that autograd makes in place
        self._viewed = set()  # storages of which backward made a view

    def __enter__(self):
        self._handles.append(register_optimizer_step_post_hook(self._after_step))
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._catch_up()
        self._end_of_rise()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._catch_up()
        in_backward = torch._C._current_graph_task_id() != -1
        recording = torch.is_grad_enabled()
        if self._waiting and in_backward and not recording:
            self._settle()
        self._note_parameters(args)
        inside = HIDDEN.get(func.name())
        if inside:
            self._change(0, inside(*args, **(kwargs or {})))
            self._change(0, -self._live[0])
        out = func(*args, **(kwargs or {}))
        waits = recording or not in_backward
        late = not waits and self._in_place_elsewhere(func, args)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor, waits=waits, late=late)
        return out

    def _in_place_elsewhere(self, func, args):
        """Whether autograd, without us, would write the result of `func` over its first argument.

        Two gradients of one tensor are summed in place unless the first is a view, which keeps
        its base alive, and never under a dispatch mode: can_accumulate_inplace in torch's
        csrc/autograd/input_buffer.cpp.
        """
        if func.is_view:
            self._viewed.add(self._number(args[0]))
        return func is torch.ops.aten.add.Tensor and self._number(args[0]) not in self._viewed

    def add(self, tensor, category=None, waits=False, late=False):
        """Count the storage of `tensor`, once; with a category, say what it is for.

        late: count it after the release that follows, if one does before the next operation.
        """
        self._catch_up()
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse layouts have none
            return
        if storage.device.type != self.device:
            return
        address, n_bytes = storage._cdata, storage.nbytes()
        if address in self._entries:
            number = self._entries[address][0]
            if n_bytes != self._live[number]:  # grown or shrunk in place
                self._change(number, n_bytes - self._live[number])
        else:
            self._count = number = self._count + 1
            gone = weakref.ref(storage, partial(self._freed, address))
            self._entries[address] = (number, gone)
            if late:
                self._live[number], self._late = 0, (number, n_bytes)
            else:
                self._change(number, n_bytes)
            if waits:
                self._waiting.add(number)
        if category:
            self._labels[number] = category

    def hold(self, thing):
        """Count what a module, an optimizer or a tensor holds already."""
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
            self.add(thing)
            if (number := self._number(thing)) is not None:
                self._labels.setdefault(number, "other")

    def mark(self, name):
        """Name the phase that begins now, for the timeline."""
        self._catch_up()
        self.marks.append((len(self.events) // 2 if self.events is not None else 0, name))

    def by_category(self):
        """Bytes of each category at the peak, a dict that sums to `peak`."""
        self._catch_up()
        self._end_of_rise()
        return self._summed(self._at_peak)

    def now(self):
        """Bytes of each category at this moment, a dict that sums to `total`."""
        self._catch_up()
        return self._summed(self._live)

    def category(self, number):
        """What storage `number` was for, as far as is known by now."""
        return self._labels.get(number, "temporary")

    def _summed(self, storages):
        out = dict.fromkeys(CATEGORIES, 0)
        for number, n_bytes in storages.items():
            out[self.category(number)] += n_bytes
        return out

    def _number(self, tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            return None
        entry = self._entries.get(tensor.untyped_storage()._cdata)
        return entry and entry[0]

    def _change(self, number, n_bytes):
        if n_bytes < 0:
            self._end_of_rise()
        self._live[number] = self._live.get(number, 0) + n_bytes
        self.total += n_bytes
        if self.total > self.peak:
            self.peak, self._rising = self.total, True
        if self.events is not None and n_bytes:
            self.events.extend((number, n_bytes))

    def _catch_up(self):
        """Count the sum that was left for later."""
        if self._late:
            late, self._late = self._late, None
            self._change(*late)

    def _end_of_rise(self):
        """Keep what is held now if this is the highest so far: it is about to shrink."""
        if self._rising:
            self._at_peak, self._rising = dict(self._live), False

    def _freed(self, address, reference):
        number, current = self._entries.get(address, (None, None))
        if current is reference:  # else the address was taken by a new storage meanwhile
            if self._late and self._late[0] == number:
                self._catch_up()
            del self._entries[address]
            self._change(number, -self._live[number])
            del self._live[number]
            self._waiting.discard(number)
            self._viewed.discard(number)
            self._catch_up()

    def _settle(self):
        """Backward begins (or a recomputation ended): what waits was held for it."""
        for number in self._waiting:
            self._labels.setdefault(number, "activations")
        self._waiting.clear()

    def _note_parameters(self, args):
        for arg in args:
            if isinstance(arg, nn.Parameter):
                if arg not in self._hooked:
                    self._parameter(arg)
            elif isinstance(arg, tuple | list):
                self._note_parameters(arg)

    def _parameter(self, parameter):
        self.add(parameter, "weights")
        for tensor in quantisation_tensors(parameter):
            self.add(tensor, "weights")
        if parameter not in self._hooked:
            self._hooked[parameter] = True
            self._after_accumulation(parameter)
            if parameter.requires_grad and parameter.is_leaf:
                hook = parameter.register_post_accumulate_grad_hook(self._after_accumulation)
                self._handles.append(hook)

    def _after_accumulation(self, parameter):
        if parameter.grad is not None:
            self.add(parameter.grad, "gradients")

    def _after_step(self, optimizer, *_):
        for state in optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor, "optimizer")


def quantisation_tensors(parameter):
    """Tensors that a quantised parameter of bitsandbytes carries: scales, code tables, offsets."""
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        yield from (value for value in vars(state).values() if isinstance(value, torch.Tensor))
        state = state.state2
