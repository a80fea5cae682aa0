"""What any loss of lab 8 has to be: one tensor with a gradient."""

import torch

from labkit.checks.compare import kind_of
from labkit.contract import CheckFailed, expect

LOST = "is there a detach(), .item(), .data, torch.tensor([...]) or no_grad() in it? (torch.stack "
LOST += "keeps the gradient)"


def expect_loss(got, call, n, units):
    """Raise CheckFailed unless what `probes.differentiated` found is one number with a gradient.

    `n` is how many pairs or answers there are, and `units` their name.
    """
    value = got["value"]
    if isinstance(value, float | int):
        raise CheckFailed(f"{call} gave a Python number: a step needs the tensor and its gradient")
    if not isinstance(value, torch.Tensor):
        raise CheckFailed(f"{call} gave {kind_of(value)}, wanted a tensor of one number")
    many = f"{call} gave {value.numel()} numbers, wanted one: the mean of the {units}"
    expect(value.numel() == 1, many)
    expect(value.dim() == 0, f"{call} has shape {tuple(value.shape)}, wanted (): one number")
    expect(got["gradients"] is not None, f"{call} has no gradient, so nothing is learned: {LOST}")
