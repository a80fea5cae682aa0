"""Make torch and bitsandbytes optimizers by their names in transformers' `optim`."""

from collections.abc import Sequence

import torch
from bitsandbytes.optim import AdamW

SMALL = 4096  # bitsandbytes keeps states of smaller tensors in fp32
BLOCK = 256  # elements that share a scale in 8-bit states
PAGED_FROM = 100_000  # bitsandbytes pages states of at least this many elements


class Imagined(AdamW):
    """bitsandbytes' AdamW with states on any device; paged states are only counted."""

    paged_bytes = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Create the states of parameters that have none."""
        (group,) = self.param_groups
        for i, parameter in enumerate(group["params"]):
            if not self.state[parameter]:
                self.init_state(group, parameter, 0, i)

    def fill_qmap(self) -> None:
        """Create the two tables of 8-bit values that all states share, filled with zeros."""
        self.name2qmap = {name: torch.zeros(256) for name in ("dynamic", "udynamic")}

    def get_state_buffer(
        self, p: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor | None:
        """Zeros for one of Adam's moments of `p`; None if the moment is paged."""
        if not self.is_paged or p.numel() < PAGED_FROM:
            return torch.zeros_like(p, dtype=dtype)
        self.paged_bytes += p.numel() * dtype.itemsize


def make(
    parameters: Sequence[torch.nn.Parameter], name: str, kind: type[AdamW] = AdamW
) -> torch.optim.Optimizer:
    """Make the optimizer called `name`; `kind` is the class for bitsandbytes' optimizers."""
    if name.startswith("adamw_torch"):  # foreach is torch's default on a GPU
        how = {"fused": True} if name.endswith("fused") else {"foreach": True}
        return torch.optim.AdamW(parameters, **how)
    bits = 8 if "8bit" in name else 32
    return kind(parameters, optim_bits=bits, is_paged=name.startswith("paged"))
