"""A LoRA layer as numbers, and what it has to give: the dense layer's output."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass
class Layer:
    """W (d_out, d_in), bias (d_out,) or None, A (r, d_in), B (d_out, r), and alpha."""

    W: torch.Tensor
    bias: torch.Tensor | None
    A: torch.Tensor
    B: torch.Tensor
    alpha: float

    @property
    def r(self) -> int:
        """The rank."""
        return len(self.A)

    @property
    def scaling(self) -> float:
        """The factor alpha / r."""
        return self.alpha / self.r

    @property
    def update(self) -> torch.Tensor:
        """What a merge adds to W, (d_out, d_in)."""
        return self.scaling * self.B @ self.A

    @property
    def sizes(self) -> dict:
        """What a wrong factor may be made of."""
        d_out, d_in = self.W.shape
        return {"alpha": self.alpha, "r": self.r, "d_in": d_in, "d_out": d_out}

    @property
    def data(self) -> list:
        """Plain data, as the probes take it."""
        return [self.W, self.bias, self.A, self.B, self.alpha]

    def base(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen layer's output (..., d_out) for `x` (..., d_in)."""
        return x @ self.W.T + (0 if self.bias is None else self.bias)

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        """The adapted layer's output (..., d_out): x (W + alpha / r B A)ᵀ + bias."""
        return replace(self, W=self.W + self.update).base(x)

    def gradients(self, loss: Callable) -> tuple:
        """The gradients of A and B of `loss(layer)`, by autograd."""
        A, B = self.A.clone().requires_grad_(), self.B.clone().requires_grad_()
        return torch.autograd.grad(loss(replace(self, A=A, B=B)), (A, B))
