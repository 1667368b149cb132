"""Pictures and what is known of them as tensors of fixed shape, so that any of them form a batch.

With T = most tiles of a picture, S = side of a tile, N = T gh gw tokens, C cues and K boxes, a sample holds::

    tiles    (T, 3, S, S) float32, normalised; zeros behind the picture's own
    count    number of its tiles
    centres  (N, 2) float32, x and y of each token in [0, 1] of the picture
    inside   (N,) bool, False for tokens of padding
    size     (2,) int64, width and height in pixels
    label    0 real, 1 edited (fully synthetic pictures are edited ones whose scope is global)
    index    of the picture in its set
    source   number of its source, the same for twins

and, where it was annotated (``has_…``), what the decoders shall say::

    cues     (C,) float32, 1 where a cue is seen
    boxes    (K, 4) float32, cx, cy, w, h in [0, 1] of the picture, the largest first; ``box_count`` of them
    tokens   (N,) float32, edited share of each token's cell

A real picture is annotated by its label: no boxes, all tokens 0. An edit of global scope has neither boxes nor tokens,
because what differs there is the whole picture. One that an augmentation edited has no cues: nobody looked for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data.boxes import Boxes
from ...data.manipulation.augmentation import Augmentation, label_of
from ...data.manipulation.base import REAL, ManipulationSet, PictureRecord
from ...data.manipulation.framing import Framing, Grid, token_centres, token_targets
from ...data.manipulation.regions import mask_of_boxes
from ...data.manipulation.robustness import Degradation
from ...data.manipulation.sampling import Draws
from ...data.transforms import Preprocess
from ...errors import DataError

Sample = dict[str, Any]


@dataclass(frozen=True)
class Frames:
    """Pictures as a backbone takes them.

    Attributes:
        framing: how tiles are cut.
        grid: rows and columns of tokens on a tile.
        preprocess: mean and standard deviation of the weights.
    """

    framing: Framing
    grid: Grid
    preprocess: Preprocess

    @property
    def most(self) -> int:
        """T: most tiles of a picture."""
        return self.framing.max_tiles + 1 if self.framing.mode == "tile" else 1

    def sample(self, image: Image.Image) -> Sample:
        """``tiles count centres inside size`` of one RGB picture."""
        parts = torch.stack([self._tensor(tile) for tile in self.framing.tiles(image)])
        centres, inside = token_centres(self.framing.rectangles(*image.size), self.grid, *image.size)
        return {
            "tiles": _padded(parts, self.most),
            "count": len(parts),
            "centres": _padded(torch.from_numpy(centres).float(), self.tokens),
            "inside": _padded(torch.from_numpy(inside), self.tokens),
            "size": torch.tensor(image.size),
        }

    @property
    def tokens(self) -> int:
        """N: most tokens of a picture."""
        return self.most * self.grid[0] * self.grid[1]

    def targets(self, mask: np.ndarray) -> Tensor:
        """Edited share of each token's cell (N,), of a mask (H, W)."""
        rectangles = self.framing.rectangles(mask.shape[1], mask.shape[0])
        return _padded(torch.from_numpy(token_targets(mask, rectangles, self.grid)), self.tokens)

    def _tensor(self, tile: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(tile, dtype=np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.preprocess.mean, self.preprocess.std))
        return (pixels - mean) / std


@dataclass(frozen=True)
class Annotations:
    """What of a record the decoders learn.

    Attributes:
        frames: how the picture is seen.
        cues: names, in the order of the head.
        boxes: K, most boxes.
    """

    frames: Frames
    cues: tuple[str, ...]
    boxes: int

    def sample(self, record: PictureRecord, image: Image.Image, mask: np.ndarray | None, boxes: Boxes | None) -> Sample:
        """A sample without its place in a set; `mask` and `boxes` are those of `image`, which may be altered."""
        real, local = label_of(record.label, mask) == REAL, record.scope != "global"
        if mask is None and boxes is not None:
            mask = mask_of_boxes(boxes, *image.size)
        known = Boxes() if real else boxes if local else None
        tokens = None if real or mask is None or not local else self.frames.targets(mask)
        return self.frames.sample(image) | {
            "label": int(not real),
            "has_cues": not real and record.label != REAL and record.cues is not None,
            "cues": torch.tensor([float(cue in (record.cues or ())) for cue in self.cues]),
            "has_boxes": known is not None,
            "boxes": self._boxes(known or Boxes(), *image.size),
            "box_count": min(len(known or Boxes()), self.boxes),
            "has_tokens": real or tokens is not None,
            "tokens": torch.zeros(self.frames.tokens) if tokens is None else tokens,
        }

    def _boxes(self, boxes: Boxes, width: int, height: int) -> Tensor:
        largest = boxes[np.argsort(-boxes.area, kind="stable")[: self.boxes]]
        x0, y0, x1, y1 = largest.to_tensor().unbind(-1)
        relative = torch.stack([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
        return _padded(relative.T, self.boxes)


def boxes_of(record: PictureRecord, size: tuple[int, int] | None = None) -> Boxes | None:
    """The boxes of a record in a picture of `size`; none for a real picture, None where they are not annotated."""
    if record.label == REAL:
        return Boxes(size=size)
    return None if record.boxes is None else Boxes([region.xyxy for region in record.boxes], size=size)


class Pictures(Dataset):
    """The pictures of a set as they are, or all degraded in one way: ``self[index]`` is a sample."""

    def __init__(
        self, pictures: ManipulationSet, annotations: Annotations, degradation: Degradation | None = None
    ) -> None:
        self.pictures, self.annotations, self.degradation = pictures, annotations, degradation

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index = item[1] if isinstance(item, tuple) else item
        record, image = self.pictures.records[index], self.pictures.image(index)
        mask, boxes = truth_of(self.pictures, index, image.size)
        if self.degradation:
            mask, boxes = self.degradation.apply_truth(mask, boxes, *image.size)
            image = self.degradation.apply(image, record.id)
        return self.annotations.sample(record, image, mask, boxes) | _place(self.pictures, index)


class DrawnPictures(Dataset):
    """Training samples: ``self[position, index]`` holds the pictures of one draw, as rows of every tensor.

    What is drawn, and how all pictures of a draw are altered alike, is a function of (seed, position) alone.
    """

    def __init__(
        self,
        pictures: ManipulationSet,
        draws: Draws,
        annotations: Annotations,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self.pictures, self.draws, self.annotations = pictures, draws, annotations
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        position, index = item if isinstance(item, tuple) else (item, item)
        alter = self.augmentation and self.augmentation.draw(np.random.default_rng((self.seed, position, 1)))
        rows = []
        for number in self.draws.draw(index, position):
            record, image = self.pictures.records[number], self.pictures.image(number)
            known = truth_of(self.pictures, number, image.size)
            image, mask, boxes = alter(image, *known) if alter else (image, *known)
            rows.append(self.annotations.sample(record, image, mask, boxes) | _place(self.pictures, number))
        return stacked(rows)


def truth_of(pictures: ManipulationSet, index: int, size: tuple[int, int]) -> tuple[np.ndarray | None, Boxes | None]:
    """Mask and boxes of picture `index`, whose (width, height) is `size`.

    Raises:
        DataError: the mask has another size.
    """
    record, mask = pictures.records[index], pictures.mask(index)
    if mask is not None and mask.shape != size[::-1]:
        raise DataError(
            f"mask '{record.mask}' is {mask.shape[1]} x {mask.shape[0]} pixels, its picture '{record.image}' "
            f"{size[0]} x {size[1]}: mend one of them; `vision-lowrank data validate` finds all such pairs."
        )
    return mask, boxes_of(record, size)


def _place(pictures: ManipulationSet, index: int) -> Sample:
    return {"index": index, "source": int(pictures.sources.codes[index])}


def stacked(samples: Sequence[Sample]) -> Sample:
    """Samples as one, every value with a first dimension for them."""
    return {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in samples[0]}


def tiles_of(batch: Sample, counts: Sequence[int]) -> Tensor:
    """The tiles (M, 3, S, S) of a batch without those behind a picture's own."""
    return torch.cat([tiles[:count] for tiles, count in zip(batch["tiles"], counts, strict=True)])


def whole_pictures(batch: Sample) -> Tensor:
    """The tile (B, 3, S, S) of each picture of a batch that shows all of it: its last one."""
    counts = batch["count"].tolist()
    return torch.stack([tiles[count - 1] for tiles, count in zip(batch["tiles"], counts, strict=True)])


def _padded(rows: Tensor, length: int) -> Tensor:
    """`rows` (n, …) with zeros behind them, (length, …)."""
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])
