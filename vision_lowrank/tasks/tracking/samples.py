"""Training samples: two frames of one clip become a template, a search crop and a box, augmented.

Crops are augmented as pixels in [0, 1] (:mod:`.augment`), then normalised. A sample is a function of (seed, position).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...data.geometry import channel_means, draw_crop
from ...data.tracking.base import Clip
from ...data.tracking.pair_crops import SearchJitter
from ...data.tracking.pairs import PairSource, draw_near
from ...data.transforms import Preprocess
from ...errors import DataError
from .augment import Augmentation, augment_pair
from .cropping import Cropping, mask_of, normalised

PAIRS_TRIED = 50


class PairSamples(Dataset):
    """``self[position, index]``: ``{"z": (3, Hz, Wz), "x": (3, Hx, Wx), "mask": (hz, wz) bool, "box": (4,),
    "positives": (hx, wx) bool}``, crops normalised, the box clipped to the search crop, as shares of its sides. With
    several templates ``z`` and ``mask`` have an axis of them in front.
    """

    def __init__(
        self,
        pairs: PairSource,
        cropping: Cropping,
        grids: tuple[tuple[int, int], tuple[int, int]],
        preprocess: Preprocess,
        *,
        jitter: SearchJitter,
        augmentation: Augmentation,
        length: int,
        seed: int,
        templates: int = 1,
    ) -> None:
        """Take samples from `pairs`.

        Args:
            pairs: which frames.
            cropping: of the crops.
            grids: of search and template crop.
            preprocess: of the backbone.
            jitter: where search crops lie.
            augmentation: how much both crops are changed.
            length: pairs of an epoch.
            seed: of all randomness.
            templates: of a sample; the further ones are of frames that are as near to the search crop's as a template.
        """
        self.pairs, self.cropping, self.grids, self.preprocess = pairs, cropping, grids, preprocess
        self.jitter, self.augmentation = jitter, augmentation
        self.length, self.seed, self.templates = length, seed, templates

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        position, _ = item
        rng = np.random.default_rng((self.seed, position))
        for attempt in range(PAIRS_TRIED):
            clip, first, second = self.pairs.draw(self.seed, position, attempt)
            sample = self._cut(clip, first, second, rng)
            if sample is not None:
                return sample
        raise DataError(f"no usable pair in {PAIRS_TRIED} tries: the targets are smaller than a pixel or never seen.")

    def _cut(self, clip: Clip, first: int, second: int, rng: np.random.Generator) -> dict[str, Tensor] | None:
        """Cut, augment and normalise both crops; None where the search crop cannot hold the target."""
        box, side = corners(clip.box(second)), self.cropping.search
        where = self.jitter.draw(box, rng)
        if where is None:
            return None
        shown = [first, *(draw_near(clip, second, self.pairs.gap, rng) for _ in range(self.templates - 1))]
        shown = [first if index is None else index for index in shown]
        cut = [self.cropping.cut_template(clip.frame(i), corners(clip.box(i)), self.grids[1]) for i in shown]
        z, mask = (torch.stack(parts) for parts in zip(*cut, strict=True))
        frame = clip.frame(second)
        x, drawn = draw_crop(frame, where, (side, side), channel_means(frame))
        inside = np.clip(drawn.to_crop(box), 0, side)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        z, x, mask, inside = augment_pair(z / 255, x / 255, mask, inside, generator, self.augmentation)
        if self.templates == 1:
            z, mask = z[0], mask[0]
        return {
            "z": normalised(255 * z, self.preprocess),
            "x": normalised(255 * x, self.preprocess),
            "mask": mask,
            "box": torch.from_numpy(inside / side).float(),
            "positives": mask_of(inside, side, self.grids[0]),
        }


def corners(xywh: np.ndarray) -> np.ndarray:
    """Turn left, top, width, height into left, top, right, bottom, (4,)."""
    return np.concatenate([xywh[:2], xywh[:2] + xywh[2:]])
