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

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data.boxes import Boxes
from ...data.manipulation.augmentation import Augmentation, label_of
from ...data.manipulation.base import REAL, ManipulationSet, PictureRecord, check_mask_size
from ...data.manipulation.regions import mask_of_boxes
from ...data.manipulation.robustness import Degradation
from ...data.manipulation.sampling import Draws
from .frames import Frames, Sample, padded, stacked


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
        """Make a sample without its place in a set; `mask` and `boxes` are those of `image`, which may be altered."""
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
        return padded(relative.T, self.boxes)


def boxes_of(record: PictureRecord, size: tuple[int, int] | None = None) -> Boxes | None:
    """Return the boxes of a record in a picture of `size`.

    There are none for a real picture; None where they are not annotated.
    """
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
    """Return mask and boxes of picture `index`, whose (width, height) is `size`.

    Raises:
        DataError: the mask has another size.
    """
    record, mask = pictures.records[index], pictures.mask(index)
    if mask is not None:
        check_mask_size(record, mask, size)  # what the record states may be wrong
    return mask, boxes_of(record, size)


def _place(pictures: ManipulationSet, index: int) -> Sample:
    return {"index": index, "source": int(pictures.sources.codes[index])}
