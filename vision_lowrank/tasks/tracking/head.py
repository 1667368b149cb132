"""LoRAT's head: two three-layer perceptrons on every search token, one for the score and one for the box.

    score = cls(t) (1 logit),   (l, t, r, b) = sigmoid(reg(t)), shares of the search crop
    box of cell (i, j) = (px - l, py - t, px + r, py + b),   (px, py) = ((j + 0.5) / wx, (i + 0.5) / hx)

Weights start truncated normal with a standard deviation of 0.02, LoRAT's, and of 0.02 · 768 / d in trunks narrower than
its narrowest, ViT-B: there 0.02 would let through so little that boxes learn nothing for thousands of steps.

Boxes are corners as shares of the crop and may exceed [0, 1]. No convolution, so any grid will do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

STD, WIDTH = 0.02, 768


class Found(NamedTuple):
    """What the head says of every cell.

    Attributes:
        logits: (B, h, w) float32, scores before the sigmoid.
        boxes: (B, h, w, 4) float32, left, top, right, bottom as shares of the crop's sides.
    """

    logits: Tensor
    boxes: Tensor


class Perceptron(nn.Module):
    """Linear(d, d), GELU, Linear(d, d), GELU, Linear(d, out); weights truncated normal (see above), biases zero."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)])
        for layer in self.layers:
            nn.init.trunc_normal_(layer.weight, std=STD * max(1.0, WIDTH / width))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (…, d) -> (…, out)."""
        first, second, last = self.layers
        return last(nn.functional.gelu(second(nn.functional.gelu(first(x)))))


class BoxHead(nn.Module):
    """Scores and boxes for the tokens of a grid (rows, columns) of width `width`."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.cls_mlp, self.reg_mlp = Perceptron(width, 1), Perceptron(width, 4)
        rows, columns = grid
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        self.register_buffer("points", torch.stack([x, y], dim=-1), persistent=False)

    def forward(self, tokens: Tensor) -> Found:
        """Compute scores and boxes from normalised search tokens (B, h w, d)."""
        logits = self.cls_mlp(tokens).float().squeeze(-1).unflatten(1, self.grid)
        sides = self.reg_mlp(tokens).float().sigmoid().unflatten(1, self.grid)
        return Found(logits, torch.cat([self.points - sides[..., :2], self.points + sides[..., 2:]], dim=-1))
