"""The optimizers of a simulated step: torch's own, and the states that bitsandbytes' keep."""

import math
from collections.abc import Sequence

import torch

SMALL = 4096  # bitsandbytes keeps states of smaller tensors in fp32
BLOCK = 256  # elements that share a scale in 8-bit states
PAGED_FROM = 100_000  # elements from which bitsandbytes puts a state into paged memory


def make(parameters: Sequence[torch.nn.Parameter], name: str) -> tuple[torch.optim.Optimizer, int]:
    """An optimizer called as in transformers' `optim`, and bytes of paged states.

    Paged states stay out of the optimizer: they are allocated in memory that can leave the GPU.
    """
    if name == "adamw_torch_fused":
        return torch.optim.AdamW(parameters, fused=True), 0
    if name == "adamw_torch":  # foreach is what torch takes on a GPU
        return torch.optim.AdamW(parameters, foreach=True), 0
    bits = 8 if "8bit" in name else 32
    paged = [p for p in parameters if name.startswith("paged") and p.numel() >= PAGED_FROM]
    away = sum(sum(state_bytes(p.numel(), bits)) for p in paged)
    return BlockwiseAdamW(parameters, bits, keep_scales_of=paged), away


def state_bytes(n: int, bits: int) -> tuple[int, int]:
    """Bytes of the two moments of a tensor of n elements, `(first, second)`, without scales."""
    each = n if bits == 8 and n >= SMALL else 4 * n
    return each, each


class BlockwiseAdamW(torch.optim.Optimizer):
    """Holds the states of bitsandbytes' AdamW and updates nothing.

    In 8 bits: a byte an element and fp32 scales a block of 256, for both moments, and two tables
    of 256 values that all tensors share. Of paged tensors only the scales are on the GPU.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        bits: int,
        keep_scales_of: Sequence[torch.nn.Parameter] = (),
    ):
        super().__init__(parameters, {})
        self.bits, self.paged = bits, {id(p) for p in keep_scales_of}
        self.tables = [torch.zeros(256) for _ in range(2)] if bits == 8 else []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make the states of parameters that have none."""
        for parameter in self.param_groups[0]["params"]:
            if parameter not in self.state:
                self.state[parameter] = self._states(parameter)

    def _states(self, parameter):
        small = self.bits == 32 or parameter.numel() < SMALL
        out = {}
        if id(parameter) not in self.paged:
            dtype = torch.float32 if small else torch.uint8
            out = {f"state{i}": torch.zeros_like(parameter, dtype=dtype) for i in (1, 2)}
        if not small:
            blocks = math.ceil(parameter.numel() / BLOCK)
            out |= {f"absmax{i}": torch.zeros(blocks) for i in (1, 2)}
            out |= {f"qmap{i}": table for i, table in enumerate(self.tables, 1)}
        return out
