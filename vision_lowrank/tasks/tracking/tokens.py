"""LoRAT's input: template and search crop as one sequence of tokens, told apart by type (arXiv 2403.05231, section 3).

For a template z with mask m (1 = the cell covers the target) and a search crop x::

    tok_z = patch(z) + pos[:hz, :wz] + type[m]        type (3, d): 0 template background, 1 template foreground,
    tok_x = patch(x) + pos           + type[2]                     2 search
    tokens = cat(tok_z, tok_x)                         (B, hz wz + hx wx, d); no class, register or mask tokens

`pos` (hx wx, d) is one table, the pretrained positions resampled to the search grid (bicubic, *not* antialiased, as the
published weights need); the template uses its top-left part, not a resampling of its own. Only `type` trains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.trunk import Trunk

BACKGROUND, FOREGROUND, SEARCH = range(3)
STD = 0.02


class TokenEmbedding(nn.Module):
    """Position table and token types.

    Attributes:
        positions: (1, hx wx, d), frozen.
        types: (3, d), trained.
    """

    positions: Tensor

    def __init__(self, trunk: Trunk, search: tuple[int, int], template: tuple[int, int]) -> None:
        """Resample the positions of `trunk` to the grid `search` (rows, columns), which `template` must fit into."""
        super().__init__()
        self.search, self.template = search, template
        self.register_buffer("positions", search_positions(trunk, search))
        self.types = nn.Parameter(torch.empty(3, trunk.layout.width))
        nn.init.trunc_normal_(self.types, std=STD)

    def forward(self, trunk: Trunk, z: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Embed both crops, see :meth:`template_tokens` and :meth:`search_tokens`: (B, hz wz + hx wx, d)."""
        return torch.cat([self.template_tokens(trunk, z, mask), self.search_tokens(trunk, x)], dim=1)

    def template_tokens(self, trunk: Trunk, z: Tensor, mask: Tensor) -> Tensor:
        """Embed template crops.

        Args:
            trunk: what the positions came from.
            z: (B, 3, Hz, Wz), normalised; or (B, T, 3, Hz, Wz).
            mask: (B, hz, wz), or (B, T, hz, wz), integer or bool, 1 where a cell covers the target.

        Returns:
            (B, hz wz, d); or (B, T hz wz, d), template after template, all with the same positions and types.
        """
        if z.ndim == 5:
            each = self.template_tokens(trunk, z.flatten(0, 1), mask.flatten(0, 1))
            return each.unflatten(0, z.shape[:2]).flatten(1, 2)
        rows, columns = self.template
        shared = self.positions.unflatten(1, self.search)[:, :rows, :columns].flatten(1, 2)
        return trunk.enter(trunk.patch_tokens(z) + shared) + self.types[mask.flatten(1).long()]

    def search_tokens(self, trunk: Trunk, x: Tensor) -> Tensor:
        """Embed search crops (B, 3, Hx, Wx), normalised: (B, hx wx, d)."""
        return trunk.enter(trunk.patch_tokens(x) + self.positions) + self.types[SEARCH]


def search_positions(trunk: Trunk, grid: tuple[int, int]) -> Tensor:
    """Resample the patches' positions of `trunk` to `grid`: (1, h w, d); zeros where it has none."""
    own = trunk.patch_positions()
    if own is None:
        return torch.zeros(1, grid[0] * grid[1], trunk.layout.width)
    table = own.detach().float().transpose(1, 2).unflatten(2, trunk.layout.grid)
    resampled = table if grid == tuple(trunk.layout.grid) else F.interpolate(table, grid, mode="bicubic")
    return resampled.flatten(2).transpose(1, 2).contiguous()
