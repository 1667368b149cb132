"""A teacher for a plain ViT: its tokens learn to tell what the maps of another, frozen network say of the same places.

With maps T_m(x) of a teacher (channels c_m, grids of its own), resized to the tokens' grid (bilinear) and stacked, and
the mean μ and standard deviation σ of each of the C = sum c_m channels over some views of the training data::

    t = (stack_m T_m(x) - μ) / σ                                    (B, N, C)
    y = W a + b,  a the tokens                                      (B, N, C)
    loss = mean smooth_l1(y, t) + mean (1 - cos(y, t))

W and b train beside the ViT and are thrown away with the teacher: feature distillation with a linear regressor on every
token (FitNets, arXiv 1412.6550). Labels are not needed, so any photographs will do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.roles import ImageEncoder
from ...data.transforms import Preprocess
from ...errors import UserError

LEAST = 1e-4  # of a channel's standard deviation: some are always zero


class Teacher(nn.Module):
    """Frozen teacher, trained regressor.

    Attributes:
        regressor: from tokens to standardised channels.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, backbone: ImageEncoder, maps: tuple[int, ...], width: int, views: Tensor, given: Preprocess
    ) -> None:
        """Freeze the teacher and let it look at some views.

        Args:
            backbone: a timm model that gives maps (``forward_intermediates``).
            maps: which of them, as timm numbers them.
            width: of the tokens.
            views: (n, 3, s, s), normalised as the student takes them.
            given: how they are normalised.

        Raises:
            UserError: the backbone gives no maps, or none of a number.
        """
        super().__init__()
        self.backbone, self.maps = backbone.eval().requires_grad_(False), list(maps)
        own = backbone.preprocess
        scale = torch.tensor(given.std) / torch.tensor(own.std)
        shift = (torch.tensor(given.mean) - torch.tensor(own.mean)) / torch.tensor(own.std)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)
        seen = torch.cat([self._channels(part, (8, 8)) for part in views.split(32)]).flatten(0, 1)
        self.register_buffer("mean", seen.mean(dim=0))
        self.register_buffer("deviation", seen.std(dim=0).clamp(min=LEAST))
        self.regressor = nn.Linear(width, len(self.mean))

    def loss(self, tokens: Tensor, views: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute the loss of the module docstring for tokens (B, h w, d) of views (B, 3, s, s) as the student's."""
        told = self.regressor(tokens)
        true = (self._channels(views, grid) - self.mean) / self.deviation
        return F.smooth_l1_loss(told, true) + (1 - F.cosine_similarity(told, true, dim=-1)).mean()

    @torch.no_grad()
    def _channels(self, views: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the teacher's maps on `grid`: (B, h w, C)."""
        pixels = (views * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        try:
            found = self.backbone.model.forward_intermediates(pixels, indices=self.maps, intermediates_only=True)
        except (AttributeError, AssertionError) as error:
            raise UserError(
                f"task.teacher '{self.backbone.name}' gives no maps {self.maps}: name a timm model that has them."
            ) from error
        maps = [F.interpolate(each, grid, mode="bilinear", align_corners=False) for each in found]
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
