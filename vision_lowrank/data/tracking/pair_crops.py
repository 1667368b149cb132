"""A training pair as two crops: the template as it is, the search crop moved and stretched (LoRAT, arXiv 2403.05231).

With the search crop's scales (sx, sy), shift t and the target's size w x h in the frame::

    sx <- sx / exp(0.25 N(0,1)),  sy likewise, so that its shape changes;   the box's middle stays in the crop's
    t  <- t + U(-1,1)^2 · 3 (w sx + h sy) / 2

drawn again, a few times, unless the box meets the crop and its sides inside are long enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..boxes import Size
from ..geometry import CropMap

TRIES = 11


@dataclass(frozen=True)
class SearchJitter:
    """How a search crop is drawn around a target.

    Attributes:
        factor: area factor of the crop.
        size: (width, height) of the crop in pixels.
        least_side: of the box inside the crop, in pixels.
        scale: standard deviation of the logarithm of each axis' scale.
        shift: most that the box's middle leaves the crop's, in mean sides of the box.
    """

    factor: float
    size: Size
    least_side: float
    scale: float = 0.25
    shift: float = 3.0

    def draw(self, box: np.ndarray, rng: np.random.Generator) -> CropMap | None:
        """Draw where the search crop lies around `box` (4,) xyxy; None where no try gave a box inside."""
        plain, sides, limits = CropMap.around(box, self.factor, self.size), box[2:] - box[:2], np.tile(self.size, 2)
        middle = (box[:2] + box[2:]) / 2
        for _ in range(TRIES):
            scale = plain.scale / np.exp(self.scale * rng.normal(size=2))
            away = rng.uniform(-1, 1, 2) * self.shift * (sides * scale).sum() / 2
            crop = CropMap(scale, np.array(self.size) / 2 - scale * middle + away)
            inside = np.clip(crop.to_crop(box), 0, limits)
            if (inside[2:] - inside[:2] >= self.least_side).all():
                return crop
        return None
