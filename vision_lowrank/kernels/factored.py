"""A linear with a low-rank update inside, for models that only predict: no PEFT, nothing that trains or switches.

It computes what an attached layer computes in evaluation, by the same function and with the same tensors, and shares
its down-projection with its neighbours as that does (:mod:`.layers`), so outputs are equal bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import forward_together
from .linear import Branch, fused_linear


class FactoredLinear(nn.Module):
    """y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ.

    No ``nn.Linear``, so that nothing takes W for all there is: merging, fusing attention and attaching refuse it.

    Args:
        linear: holds W (out, in) and b, which are shared with it.
        A: (r, in).
        B: (out, r).
        scale: the factor before B A.
    """

    forward_together = staticmethod(forward_together)
    A: Tensor
    B: Tensor

    def __init__(self, linear: nn.Linear, A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        self.register_buffer("A", A.to(linear.weight.device))
        self.register_buffer("B", B.to(linear.weight.device))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the linear with the factors: (..., in) -> (..., out)."""
        return fused_linear(x, *self.branch())

    def branch(self) -> Branch:
        """Return the computation for the kernel."""
        return Branch(self.weight, self.bias, self.A, self.B, self.scale)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return an ordinary linear of W + scale · B A, computed in float32 or wider and cast to W's type once."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        delta = self.scale * (self.B.to(wide) @ self.A.to(wide))
        linear = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter((self.weight.to(wide) + delta).to(self.weight.dtype), requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)
